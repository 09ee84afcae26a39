// Suite `evict`: what a page costs that must be evicted for another, while 64 clients hold 10,000
// pins each.
//
// The tier is filled with pages of 4 KiB. Some 40,000 of them are what the clients pin, each client
// its own 10,000 by chance, so that the daemon's scans read 640,000 pins and nearly all of the
// 40,000 stay. Then a writer asks for batches of 512 pages, grants and commits, without writing to
// them.
//
// `evict_us_per_page` is all the time that these batches take, divided by the pages that the daemon
// evicted meanwhile by its own counter: an upper bound, for it holds granting and committing too,
// and whatever the daemon does between the messages. `daemon_cpu_us_per_page` is the processor time
// of the daemon alone in that time. `put_us_per_page` is the same wall time while there is room;
// `evict_verb_us_per_page` is the verb that evicts on demand.
#include "base/random.h"
#include "bench/content.h"
#include "bench/daemon.h"
#include "bench/processes.h"
#include "bench/residents.h"
#include "bench/statistics.h"
#include "bench/suites.h"

namespace terrace::bench {
namespace {

struct Sizes {
  uint32_t clients = 64;
  uint64_t pins = 10'000;
  uint64_t hot_pages = 40'000;
  uint64_t capacity_bytes = 512u << 20;
  int batches = 60;
};

Sizes SizesOf(const SuiteOptions& options) {
  if (!options.quick) return {};
  return {.clients = 4, .pins = 100, .hot_pages = 400, .capacity_bytes = 64u << 20, .batches = 4};
}

Status HoldPins(const Residents& residents, const Sizes& sizes, uint64_t seed, Link& link) {
  RETURN_IF_ERROR(link.Receive<Go>().status());
  ASSIGN_OR_RETURN(const Engine engine, StartEngine(residents, "holder", /*read_only=*/true));
  Random random(seed);
  for (uint64_t i = 0; i < sizes.pins; ++i) {
    const kvc_key key = SyntheticKey(random.Below(sizes.hot_pages));
    kvc_page page;
    if (kvc_pin(engine.reader.get(), engine.space.get(), &key, &page, nullptr) == 0) {
      return {Code::kNotFound, "a page to pin is not resident"};
    }
  }
  RETURN_IF_ERROR(link.Send(Go{}));
  return link.Receive<Go>().status();
}

Result<uint64_t> EvictedPages(kvc_client* client) {
  return StatusNumber(client, "/pages/evicted");
}

// Puts batches of pages that nobody has seen.
class FreshPages {
 public:
  FreshPages(const Engine& engine, uint64_t first) : engine_(engine), next_(first) {}

  Status PutBatches(int batches) {
    for (int i = 0; i < batches; ++i) {
      std::vector<kvc_key> keys;
      for (size_t k = 0; k < kMaxBatch; ++k)
        keys.push_back(SyntheticKey(next_++));
      ASSIGN_OR_RETURN(const Published published,
                       Put(engine_.client.get(), engine_.space.get(), {.keys = keys},
                           [](size_t, std::span<uint8_t>) {}));
      if (published.committed != keys.size()) {
        return {Code::kExhausted, std::to_string(keys.size() - published.committed) +
                                      " pages of a batch were not taken"};
      }
    }
    return {};
  }

 private:
  const Engine& engine_;
  uint64_t next_;
};

Result<Figures> Measure(const Daemon& daemon, const Engine& engine, const Sizes& sizes) {
  kvc_client* client = engine.client.get();
  FreshPages fresh(engine, sizes.hot_pages);
  const int room_batches = std::max(2, sizes.batches / 4);
  const Stopwatch roomy;
  RETURN_IF_ERROR(fresh.PutBatches(room_batches));
  const double roomy_us = roomy.Us() / (room_batches * static_cast<double>(kMaxBatch));

  // Fill up: from the first eviction on, every batch needs as many as it brings.
  const uint64_t most = sizes.capacity_bytes / 4096 / kMaxBatch * 2;
  uint64_t evicted = 0;
  for (uint64_t i = 0; i < most && evicted == 0; ++i) {
    RETURN_IF_ERROR(fresh.PutBatches(1));
    ASSIGN_OR_RETURN(evicted, EvictedPages(client));
  }
  RETURN_IF_ERROR(fresh.PutBatches(4));
  ASSIGN_OR_RETURN(const uint64_t before, EvictedPages(client));
  ASSIGN_OR_RETURN(const double cpu_before, daemon.ProcessorSeconds());
  const Stopwatch full;
  RETURN_IF_ERROR(fresh.PutBatches(sizes.batches));
  const double full_us = full.Us();
  ASSIGN_OR_RETURN(const double cpu_after, daemon.ProcessorSeconds());
  ASSIGN_OR_RETURN(const uint64_t after, EvictedPages(client));
  if (after == before) return Status(Code::kInternal, "nothing was evicted");

  kvc_evicted verb{};
  verb.struct_size = sizeof verb;
  kvc_error error{};
  const Stopwatch on_demand;
  RETURN_IF_ERROR(ToStatus(kvc_evict(client, sizes.capacity_bytes / 8, 0, &verb, &error), error));
  const double verb_us = on_demand.Us();
  ASSIGN_OR_RETURN(const uint64_t found_pinned, StatusNumber(client, "/pages/evictions_pinned"));
  return Figures{{"evict_us_per_page", full_us / static_cast<double>(after - before), "us"},
                 {"daemon_cpu_us_per_page",
                  (cpu_after - cpu_before) * 1e6 / static_cast<double>(after - before), "us"},
                 {"put_us_per_page", roomy_us, "us"},
                 {"evict_verb_us_per_page",
                  verb.pages == 0 ? 0 : verb_us / static_cast<double>(verb.pages), "us"},
                 {"evicted_pages", static_cast<double>(after - before), "count"},
                 {"pins", static_cast<double>(sizes.clients * sizes.pins), "count"},
                 {"victims_found_pinned", static_cast<double>(found_pinned), "count"},
                 {"clients", static_cast<double>(sizes.clients), "count"}};
}

}  // namespace

Result<Figures> RunEvict(const SuiteOptions& options) {
  const Sizes sizes = SizesOf(options);
  ASSIGN_OR_RETURN(const Daemon daemon, Daemon::Start({.binary = options.terraced,
                                                       .capacity_bytes = sizes.capacity_bytes}));
  const Residents residents{.socket = daemon.socket(), .salt = "evict", .pages = sizes.hot_pages};
  std::vector<Child> holders;
  for (uint32_t i = 0; i < sizes.clients; ++i) {
    ASSIGN_OR_RETURN(Child child, Child::Start("holder", [&, i](Link& link) {
                       return HoldPins(residents, sizes, i + 1, link);
                     }));
    holders.push_back(std::move(child));
  }
  RETURN_IF_ERROR(MakeResident(residents, [](uint64_t, std::span<uint8_t>) {}));
  RETURN_IF_ERROR(TellAll(holders));
  RETURN_IF_ERROR(HearAll(holders));
  ASSIGN_OR_RETURN(const Engine engine, StartEngine(residents, "writer", /*read_only=*/false));
  Result<Figures> figures = Measure(daemon, engine, sizes);
  RETURN_IF_ERROR(TellAll(holders));
  RETURN_IF_ERROR(WaitAll(holders));
  return figures;
}

}  // namespace terrace::bench
