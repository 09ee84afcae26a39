// Suite `promote`: random pages out of the store, back into memory, by kvc_prefetch and
// kvc_wait_any.
//
// Memory is a quarter of what is stored and full, so each page that comes lets another go. One
// fetch a page, as many at once as the depth says; the rival reads as many random pieces of a file
// of the same size, as many at once, through a bare ring. Rounds take turns. At depth 1 single
// pages and single reads take turns, and a page's time runs from the call of kvc_prefetch to the
// return of kvc_wait. Between rounds every page that came is pinned, and some are compared byte by
// byte.
#include <vector>

#include "bench/content.h"
#include "bench/daemon.h"
#include "bench/raw_disk.h"
#include "bench/statistics.h"
#include "bench/store_pages.h"
#include "bench/suites.h"

namespace terrace::bench {
namespace {

constexpr uint32_t kDepth = 32;

struct Sizes {
  uint64_t stored_bytes = 2u << 30;
  uint64_t memory_bytes = 512u << 20;
  uint64_t round_bytes = 192u << 20;
  int rounds = 21;
  int singles = 300;
};

struct Measured {
  std::vector<double> over_raw, gb_per_second, raw_gb_per_second;
  std::vector<double> single_us, raw_single_us;
  double daemon_cpu_us = 0;  // A page.
};

class Promotion {
 public:
  Promotion(const Sizes& sizes, uint64_t page_bytes, const Engine& engine, RawDisk& raw)
      : sizes_(sizes),
        page_bytes_(page_bytes),
        engine_(engine),
        raw_(raw),
        pages_(sizes.stored_bytes / page_bytes, 1),
        pieces_(raw.transfers(), 2) {}

  Result<Measured> Run(const Daemon& daemon) {
    Measured measured;
    RETURN_IF_ERROR(Fetched().status());  // Memory is touched and full from here on.
    ASSIGN_OR_RETURN(const double cpu_before, daemon.ProcessorSeconds());
    for (int i = 0; i < sizes_.rounds; ++i) {
      double ours = 0, bare = 0;
      for (const bool raw : {i % 2 == 0, i % 2 != 0}) {
        ASSIGN_OR_RETURN((raw ? bare : ours), raw ? Bare() : Fetched());
      }
      const double gigabytes = static_cast<double>(RoundPages() * page_bytes_) / 1e9;
      measured.over_raw.push_back(bare / ours);
      measured.gb_per_second.push_back(gigabytes / ours);
      measured.raw_gb_per_second.push_back(gigabytes / bare);
    }
    ASSIGN_OR_RETURN(const double cpu_after, daemon.ProcessorSeconds());
    measured.daemon_cpu_us = (cpu_after - cpu_before) * 1e6 /
                             static_cast<double>(sizes_.rounds * static_cast<int>(RoundPages()));
    for (int i = 0; i < sizes_.singles; ++i) {
      for (const bool raw : {i % 2 == 0, i % 2 != 0}) {
        ASSIGN_OR_RETURN(const double us, raw ? BareSingle() : FetchedSingle());
        (raw ? measured.raw_single_us : measured.single_us).push_back(us);
      }
    }
    return measured;
  }

 private:
  uint64_t RoundPages() const { return sizes_.round_bytes / page_bytes_; }

  // A random page that is in the store alone.
  Result<kvc_key> Take() {
    for (uint64_t tries = 0; tries < sizes_.stored_bytes / page_bytes_; ++tries) {
      const kvc_key key = SyntheticKey(pages_.Take());
      ASSIGN_OR_RETURN(const bool resident, Resident(engine_, key, false));
      if (!resident) return key;
    }
    return Status(Code::kInternal, "every page is in memory");
  }

  Result<double> Fetched() {
    std::vector<kvc_key> keys;
    while (keys.size() < RoundPages()) {
      ASSIGN_OR_RETURN(const kvc_key key, Take());
      keys.push_back(key);
    }
    std::vector<Fetch> fetches;
    const Stopwatch watch;
    for (size_t begun = 0; begun < keys.size() || !fetches.empty();) {
      if (begun < keys.size() && fetches.size() < kDepth) {
        ASSIGN_OR_RETURN(Fetch fetch, Prefetch(engine_, keys[begun++]));
        fetches.push_back(std::move(fetch));
        continue;
      }
      RETURN_IF_ERROR(AwaitAny(&fetches));
    }
    const double seconds = watch.Seconds();
    for (size_t i = 0; i < keys.size(); ++i)
      RETURN_IF_ERROR(Check(keys[i], i % 16 == 0));
    return seconds;
  }

  Result<double> FetchedSingle() {
    ASSIGN_OR_RETURN(const kvc_key key, Take());
    const Stopwatch watch;
    ASSIGN_OR_RETURN(const Fetch fetch, Prefetch(engine_, key));
    RETURN_IF_ERROR(Await(fetch.get()));
    const double us = watch.Us();
    RETURN_IF_ERROR(Check(key, true));
    return us;
  }

  Status Check(const kvc_key& key, bool bytes) {
    ASSIGN_OR_RETURN(const bool resident, Resident(engine_, key, bytes));
    if (resident) return {};
    return {Code::kInternal, "a page that came back from the store is not in memory"};
  }

  Result<double> Bare() {
    std::vector<uint64_t> pieces(RoundPages());
    for (uint64_t& piece : pieces)
      piece = pieces_.Take();
    return raw_.Move(RawDisk::Verb::kRead, pieces, kDepth);
  }
  Result<double> BareSingle() {
    const uint64_t piece = pieces_.Take();
    ASSIGN_OR_RETURN(const double seconds, raw_.Move(RawDisk::Verb::kRead, {&piece, 1}, 1));
    return seconds * 1e6;
  }

  const Sizes sizes_;
  const uint64_t page_bytes_;
  const Engine& engine_;
  RawDisk& raw_;
  Shuffled pages_;
  Shuffled pieces_;
};

Result<Measured> Measure(const SuiteOptions& options, const Sizes& sizes, uint64_t page_bytes) {
  ASSIGN_OR_RETURN(const Daemon daemon, Daemon::Start({.binary = options.terraced,
                                                       .capacity_bytes = sizes.memory_bytes,
                                                       .store_bytes = 2 * sizes.stored_bytes}));
  ASSIGN_OR_RETURN(RawDisk raw, RawDisk::Make({.path = daemon.folder() + "/raw",
                                               .transfer_bytes = page_bytes,
                                               .transfers = sizes.stored_bytes / page_bytes,
                                               .memory_bytes = sizes.memory_bytes}));
  const Residents residents{.socket = daemon.socket(),
                            .salt = "promote",
                            .pages = 0,
                            .page_bytes = page_bytes,
                            .page_tokens = 64};
  ASSIGN_OR_RETURN(const Engine engine, StartEngine(residents, "promote", /*read_only=*/false));
  RETURN_IF_ERROR(PutDurable(engine, {.first = 0,
                                      .pages = sizes.stored_bytes / page_bytes,
                                      .batch = sizes.memory_bytes / 8 / page_bytes}));
  return Promotion(sizes, page_bytes, engine, raw).Run(daemon);
}

}  // namespace

Result<Figures> RunPromote(const SuiteOptions& options) {
  const Sizes sizes = options.quick ? Sizes{.stored_bytes = 256u << 20,
                                            .memory_bytes = 64u << 20,
                                            .round_bytes = 16u << 20,
                                            .rounds = 3,
                                            .singles = 5}
                                    : Sizes{};
  ASSIGN_OR_RETURN(const Measured large, Measure(options, sizes, 2u << 20));
  ASSIGN_OR_RETURN(const Measured small, Measure(options, sizes, 256u << 10));
  const auto added = [](const Measured& of) {
    return Median(of.single_us) - Median(of.raw_single_us);
  };
  Figures figures = {
      {"promote_over_raw", std::min(Median(large.over_raw), Median(small.over_raw)), "ratio"},
      {"added_us", std::max(added(large), added(small)), "us"}};
  for (const auto& [name, of] : {std::pair("_2m", &large), std::pair("_256k", &small)}) {
    AddSpread(&figures, "promote_over_raw" + std::string(name), of->over_raw, "ratio");
    figures.push_back({"added_us" + std::string(name), added(*of), "us"});
    AddSpread(&figures, "single_us" + std::string(name), of->single_us, "us");
    AddSpread(&figures, "raw_single_us" + std::string(name), of->raw_single_us, "us");
    figures.push_back({"gb_per_second" + std::string(name), Median(of->gb_per_second), "GB/s"});
    figures.push_back(
        {"raw_gb_per_second" + std::string(name), Median(of->raw_gb_per_second), "GB/s"});
    figures.push_back({"daemon_cpu_us_per_page" + std::string(name), of->daemon_cpu_us, "us"});
  }
  return figures;
}

}  // namespace terrace::bench
