// Suite `spill`: pages on their way to the store behind the backs of those who put them.
//
// A round commits pages that were granted and filled before, and waits until all are durable; then
// they are dropped, so that every round but the first writes into the same places again. The rival
// writes as many pieces of the same size to a file through a bare ring, at the best of several
// depths. Rounds take turns.
//
// What the writing costs who puts: two daemons, one with a store and one without, get batches in
// turn by the second, spaced so that the disk keeps up; a batch is granted, copied and committed.
#include <time.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>

#include "bench/content.h"
#include "bench/daemon.h"
#include "bench/raw_disk.h"
#include "bench/statistics.h"
#include "bench/store_pages.h"
#include "bench/suites.h"

namespace terrace::bench {
namespace {

constexpr std::array<uint32_t, 4> kDepths = {2, 4, 8, 32};
constexpr uint64_t kPutPageBytes = 2u << 20;

struct Sizes {
  uint64_t round_bytes = 512u << 20;
  int rounds = 15;
  int windows = 11;         // Of putting, each to either daemon.
  int window_batches = 60;  // Of so many pages:
  size_t batch_pages = 8;
  double share_of_disk = 0.7;  // That the putting takes of what was spilled by the second before.
};

struct Measured {
  std::vector<double> over_raw, gb_per_second, raw_gb_per_second;
  double fresh_over_raw = 0;  // Into files that nothing was written to yet.
  uint32_t raw_depth = 0;
  double daemon_cpu_us = 0;  // A page.
};

class Spilling {
 public:
  Spilling(const Sizes& sizes, uint64_t page_bytes, const Engine& engine, RawDisk& raw)
      : pages_(sizes.round_bytes / page_bytes), engine_(engine), raw_(raw) {}

  Result<Measured> Run(const Daemon& daemon, int rounds) {
    Measured measured;
    const double gigabytes = static_cast<double>(pages_ * PageBytes(engine_.space.get())) / 1e9;
    ASSIGN_OR_RETURN(measured.raw_depth, BestDepth());
    ASSIGN_OR_RETURN(const double fresh, Spilled());
    ASSIGN_OR_RETURN(const double bare_then, Bare(measured.raw_depth));
    measured.fresh_over_raw = bare_then / fresh;
    ASSIGN_OR_RETURN(const double cpu_before, daemon.ProcessorSeconds());
    for (int i = 0; i < rounds; ++i) {
      double ours = 0, bare = 0;
      for (const bool raw : {i % 2 == 0, i % 2 != 0}) {
        ASSIGN_OR_RETURN((raw ? bare : ours), raw ? Bare(measured.raw_depth) : Spilled());
      }
      measured.over_raw.push_back(bare / ours);
      measured.gb_per_second.push_back(gigabytes / ours);
      measured.raw_gb_per_second.push_back(gigabytes / bare);
    }
    ASSIGN_OR_RETURN(const double cpu_after, daemon.ProcessorSeconds());
    measured.daemon_cpu_us =
        (cpu_after - cpu_before) * 1e6 / (rounds * static_cast<double>(pages_));
    return measured;
  }

 private:
  // From the first commit until the last page is durable.
  Result<double> Spilled() {
    std::vector<kvc_key> keys;
    for (uint64_t i = 0; i < pages_; ++i)
      keys.push_back(SyntheticKey(next_++));
    const uint64_t page_bytes = PageBytes(engine_.space.get());
    std::vector<Grants> batches;
    for (size_t first = 0; first < keys.size(); first += kMaxBatch) {
      const std::span<const kvc_key> batch =
          std::span(keys).subspan(first, std::min(kMaxBatch, keys.size() - first));
      ASSIGN_OR_RETURN(Grants grants, Grant(engine_.client.get(), engine_.space.get(), batch));
      for (size_t i = 0; i < batch.size(); ++i) {
        auto* page = static_cast<uint8_t*>(kvc_grants_data(grants.get(), i));
        if (page == nullptr) return Status(Code::kExhausted, "a page was not granted");
        FillContent(batch[i], {page, page_bytes});
      }
      batches.push_back(std::move(grants));
    }
    const Stopwatch watch;
    for (const Grants& batch : batches) {
      kvc_error error{};
      RETURN_IF_ERROR(ToStatus(kvc_commit(batch.get(), nullptr, 0, &error), error));
    }
    RETURN_IF_ERROR(Persist(engine_, keys));
    const double seconds = watch.Seconds();
    RETURN_IF_ERROR(Drop(engine_, keys));
    return seconds;
  }

  Result<double> Bare(uint32_t depth) {
    std::vector<uint64_t> pieces(pages_);
    for (size_t i = 0; i < pieces.size(); ++i)
      pieces[i] = i;
    return raw_.Move(RawDisk::Verb::kWrite, pieces, depth);
  }

  Result<uint32_t> BestDepth() {
    uint32_t best = 0;
    double best_seconds = 0;
    for (const uint32_t depth : kDepths) {
      std::vector<double> seconds;
      for (int i = 0; i < 3; ++i) {
        ASSIGN_OR_RETURN(seconds.emplace_back(), Bare(depth));
      }
      if (best != 0 && Median(seconds) >= best_seconds) continue;
      best = depth;
      best_seconds = Median(seconds);
    }
    return best;
  }

  const uint64_t pages_;
  const Engine& engine_;
  RawDisk& raw_;
  uint64_t next_ = 0;
};

Result<Measured> Measure(const SuiteOptions& options, const Sizes& sizes, uint64_t page_bytes) {
  ASSIGN_OR_RETURN(const Daemon daemon, Daemon::Start({.binary = options.terraced,
                                                       .capacity_bytes = 2 * sizes.round_bytes,
                                                       .store_bytes = 4 * sizes.round_bytes}));
  ASSIGN_OR_RETURN(RawDisk raw, RawDisk::Make({.path = daemon.folder() + "/raw",
                                               .transfer_bytes = page_bytes,
                                               .transfers = sizes.round_bytes / page_bytes,
                                               .memory_bytes = sizes.round_bytes}));
  const Residents residents{.socket = daemon.socket(),
                            .salt = "spill",
                            .pages = 0,
                            .page_bytes = page_bytes,
                            .page_tokens = 64};
  ASSIGN_OR_RETURN(const Engine engine, StartEngine(residents, "spill", /*read_only=*/false));
  return Spilling(sizes, page_bytes, engine, raw).Run(daemon, sizes.rounds);
}

// ---- What it costs who puts

// Batches put into one daemon at a steady pace.
class Putting {
 public:
  Putting(const Sizes& sizes, const Daemon& daemon) : sizes_(sizes), daemon_(daemon) {}

  Status Start() {
    ASSIGN_OR_RETURN(engine_, StartEngine({.socket = daemon_.socket(),
                                           .salt = "put",
                                           .pages = 0,
                                           .page_bytes = kPutPageBytes,
                                           .page_tokens = 64},
                                          "put", /*read_only=*/false));
    return {};
  }

  // The median of the seconds that a batch took.
  Result<double> Window(const HugeMemory& source, double seconds_a_batch, bool durable) {
    std::vector<double> took;
    std::vector<kvc_key> all;
    for (int i = 0; i < sizes_.window_batches; ++i) {
      const Stopwatch watch;
      std::vector<kvc_key> keys;
      for (size_t k = 0; k < sizes_.batch_pages; ++k)
        keys.push_back(SyntheticKey(next_++));
      ASSIGN_OR_RETURN(const Published published,
                       Put(engine_.client.get(), engine_.space.get(), {.keys = keys},
                           [&](size_t index, std::span<uint8_t> page) {
                             std::memcpy(page.data(), source.bytes().data() + index * page.size(),
                                         page.size());
                           }));
      took.push_back(watch.Seconds());
      if (published.committed != keys.size()) {
        return Status(Code::kExhausted, "a page was not taken");
      }
      all.insert(all.end(), keys.begin(), keys.end());
      Pause(seconds_a_batch - watch.Seconds());
    }
    if (durable) RETURN_IF_ERROR(Persist(engine_, all));
    RETURN_IF_ERROR(Drop(engine_, all));
    return Median(took);
  }

 private:
  static void Pause(double seconds) {
    if (seconds <= 0) return;
    const auto ns = static_cast<int64_t>(seconds * 1e9);
    timespec left{ns / 1'000'000'000, ns % 1'000'000'000};
    while (nanosleep(&left, &left) != 0 && errno == EINTR) {
    }
  }

  const Sizes& sizes_;
  const Daemon& daemon_;
  Engine engine_;
  uint64_t next_ = 0;
};

Result<std::vector<double>> MeasurePutting(const SuiteOptions& options, const Sizes& sizes,
                                           double gb_per_second) {
  const uint64_t batch_bytes = sizes.batch_pages * kPutPageBytes;
  const uint64_t window_bytes = batch_bytes * static_cast<uint64_t>(sizes.window_batches);
  ASSIGN_OR_RETURN(const Daemon without,
                   Daemon::Start({.binary = options.terraced, .capacity_bytes = 2 * window_bytes}));
  ASSIGN_OR_RETURN(const Daemon with, Daemon::Start({.binary = options.terraced,
                                                     .capacity_bytes = 2 * window_bytes,
                                                     .store_bytes = 4 * window_bytes}));
  ASSIGN_OR_RETURN(const HugeMemory source, HugeMemory::Allocate(batch_bytes));
  Putting bare(sizes, without), stored(sizes, with);
  RETURN_IF_ERROR(bare.Start());
  RETURN_IF_ERROR(stored.Start());
  const double pace =
      static_cast<double>(batch_bytes) / 1e9 / (sizes.share_of_disk * gb_per_second);
  std::vector<double> slowdown;
  for (int i = -1; i < sizes.windows; ++i) {
    double took[2] = {};
    for (const bool on : {i % 2 == 0, i % 2 != 0}) {
      ASSIGN_OR_RETURN(took[on ? 1 : 0], (on ? stored : bare).Window(source, pace, on));
    }
    if (i >= 0) slowdown.push_back(took[1] / took[0]);  // The first touched memory.
  }
  return slowdown;
}

}  // namespace

Result<Figures> RunSpill(const SuiteOptions& options) {
  const Sizes sizes = options.quick ? Sizes{.round_bytes = 64u << 20,
                                            .rounds = 3,
                                            .windows = 1,
                                            .window_batches = 6,
                                            .batch_pages = 4}
                                    : Sizes{};
  ASSIGN_OR_RETURN(const Measured large, Measure(options, sizes, 2u << 20));
  ASSIGN_OR_RETURN(const Measured small, Measure(options, sizes, 256u << 10));
  ASSIGN_OR_RETURN(const std::vector<double> slowdown,
                   MeasurePutting(options, sizes, Median(large.gb_per_second)));
  Figures figures = {
      {"spill_over_raw", std::min(Median(large.over_raw), Median(small.over_raw)), "ratio"}};
  AddSpread(&figures, "put_slowdown", slowdown, "ratio");
  for (const auto& [name, of] : {std::pair("_2m", &large), std::pair("_256k", &small)}) {
    AddSpread(&figures, "spill_over_raw" + std::string(name), of->over_raw, "ratio");
    figures.push_back({"fresh_over_raw" + std::string(name), of->fresh_over_raw, "ratio"});
    figures.push_back({"gb_per_second" + std::string(name), Median(of->gb_per_second), "GB/s"});
    figures.push_back(
        {"raw_gb_per_second" + std::string(name), Median(of->raw_gb_per_second), "GB/s"});
    figures.push_back(
        {"raw_depth" + std::string(name), static_cast<double>(of->raw_depth), "count"});
    figures.push_back({"daemon_cpu_us_per_page" + std::string(name), of->daemon_cpu_us, "us"});
  }
  return figures;
}

}  // namespace terrace::bench
