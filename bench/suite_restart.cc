// Suite `restart`: a daemon with 1,000,000 stored pages is killed, and is warm when it is back.
//
// Pages are 4 KiB, made durable through the daemon. The time runs from SIGKILL, through the start
// of the new daemon, to the moment when a page that only the store has is pinned by a client that
// connected anew. Then pages are asked for at random and compared byte by byte. `pages_found` is
// the share of pages known after the restart of those that were durable before, and 0 if one of
// those asked for did not come. Memory a page is what the daemon has for itself (RssAnon) beyond
// one with an empty store, after the restart.
#include <poll.h>

#include <deque>

#include "bench/content.h"
#include "bench/daemon.h"
#include "bench/memory_maps.h"
#include "bench/processes.h"
#include "bench/raw_disk.h"
#include "bench/statistics.h"
#include "bench/store_pages.h"
#include "bench/suites.h"

namespace terrace::bench {
namespace {

constexpr uint64_t kPageBytes = 4096;
constexpr uint32_t kDepth = 32;
constexpr double kServeSeconds = 60;

struct Sizes {
  uint64_t pages = 1'000'000;
  uint64_t asked = 10'000;
  int kills = 5;
};

// When it accepts connections again.
Result<Engine> ConnectAnew(const Residents& residents) {
  const Stopwatch watch;
  for (;;) {
    Result<Engine> engine = StartEngine(residents, "restart", /*read_only=*/false);
    if (engine || watch.Seconds() > kServeSeconds) return engine;
    poll(nullptr, 0, 1);
  }
}

struct Restart {
  double seconds = 0;
  double connect_seconds = 0;  // Of these, until the client was connected.
};
Result<Restart> KillOnce(Daemon& daemon, const Residents& residents, uint64_t number) {
  Restart restart;
  const Stopwatch watch;
  RETURN_IF_ERROR(daemon.KillAndLaunch());
  ASSIGN_OR_RETURN(const Engine engine, ConnectAnew(residents));
  restart.connect_seconds = watch.Seconds();
  const kvc_key key = SyntheticKey(number);
  ASSIGN_OR_RETURN(const Fetch fetch, Prefetch(engine, key));
  RETURN_IF_ERROR(Await(fetch.get()));
  ASSIGN_OR_RETURN(const bool there, Resident(engine, key, true));
  restart.seconds = watch.Seconds();
  if (!there) return Status(Code::kInternal, "the first page that came is not in memory");
  return restart;
}

// Whether every page that is asked for comes, with its bytes.
Result<bool> AllCome(const Engine& engine, const Sizes& sizes) {
  Shuffled numbers(sizes.pages, 4);
  std::deque<std::pair<kvc_key, Fetch>> fetches;
  for (uint64_t begun = 0; begun < sizes.asked || !fetches.empty();) {
    if (begun < sizes.asked && fetches.size() < kDepth) {
      const kvc_key key = SyntheticKey(numbers.Take());
      ASSIGN_OR_RETURN(Fetch fetch, Prefetch(engine, key));
      fetches.emplace_back(key, std::move(fetch));
      ++begun;
      continue;
    }
    const auto& [key, fetch] = fetches.front();
    if (!Await(fetch.get()).ok()) return false;
    ASSIGN_OR_RETURN(const bool there, Resident(engine, key, true));
    if (!there) return false;
    fetches.pop_front();
  }
  return true;
}

}  // namespace

Result<Figures> RunRestart(const SuiteOptions& options) {
  const Sizes sizes = options.quick ? Sizes{.pages = 10'000, .asked = 200, .kills = 2} : Sizes{};
  // Slots of 8 KiB, and below the watermark from which on pages have to be worth it.
  ASSIGN_OR_RETURN(
      Daemon daemon,
      Daemon::Start({.binary = options.terraced,
                     .capacity_bytes = 256u << 20,
                     .store_bytes = sizes.pages * 2 * kPageBytes * 5 / 4 + (256u << 20)}));
  const Residents residents{.socket = daemon.socket(),
                            .salt = "restart",
                            .pages = 0,
                            .page_bytes = kPageBytes,
                            .page_tokens = 16};
  ASSIGN_OR_RETURN(const double memory_empty, StatusBytes(daemon.pid(), "RssAnon"));
  double put_seconds = 0;
  {
    ASSIGN_OR_RETURN(const Engine engine, StartEngine(residents, "writer", /*read_only=*/false));
    const Stopwatch watch;
    RETURN_IF_ERROR(PutDurable(engine, {.first = 0, .pages = sizes.pages}));
    put_seconds = watch.Seconds();
  }
  std::vector<double> seconds, connect;
  Shuffled first(sizes.pages, 5);
  for (int i = 0; i < sizes.kills; ++i) {
    ASSIGN_OR_RETURN(const Restart restart, KillOnce(daemon, residents, first.Take()));
    seconds.push_back(restart.seconds);
    connect.push_back(restart.connect_seconds);
  }
  ASSIGN_OR_RETURN(const Engine engine, ConnectAnew(residents));
  ASSIGN_OR_RETURN(const uint64_t found, StoreNumber(engine.client.get(), "/pages"));
  ASSIGN_OR_RETURN(const uint64_t index_bytes, StoreNumber(engine.client.get(), "/index_bytes"));
  ASSIGN_OR_RETURN(const uint64_t catalog, StoreNumber(engine.client.get(), "/catalog_bytes"));
  ASSIGN_OR_RETURN(const double memory, StatusBytes(daemon.pid(), "RssAnon"));
  ASSIGN_OR_RETURN(const bool all_come, AllCome(engine, sizes));
  const auto pages = static_cast<double>(sizes.pages);
  Figures figures;
  AddSpread(&figures, "restart_seconds", seconds, "s");
  figures.push_back({"connect_seconds", Median(connect), "s"});
  figures.push_back({"pages_found", all_come ? static_cast<double>(found) / pages : 0, "ratio"});
  figures.push_back({"bytes_per_indexed_page", (memory - memory_empty) / pages, "bytes"});
  figures.push_back({"catalog_bytes_per_page", static_cast<double>(catalog) / pages, "bytes"});
  figures.push_back(
      {"disk_bytes_per_indexed_page", static_cast<double>(index_bytes) / pages, "bytes"});
  figures.push_back({"pages", pages, "count"});
  figures.push_back({"durable_puts_per_second", pages / put_seconds, "1/s"});
  return figures;
}

}  // namespace terrace::bench
