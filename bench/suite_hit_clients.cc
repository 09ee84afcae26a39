// Suite `hit --clients N`: N processes look up resident pages at once.
//
// Independent keys, as `hit_ns_mean` of suite `hit`. Every client also looks at its own memory map:
// besides its channel it must have no shared memory that it can write, for then no cache line is
// written by two clients.
#include <unistd.h>

#include "bench/content.h"
#include "bench/daemon.h"
#include "bench/memory_maps.h"
#include "bench/processes.h"
#include "bench/residents.h"
#include "bench/statistics.h"
#include "bench/suites.h"

namespace terrace::bench {
namespace {

struct ClientOutcome {
  uint64_t hits = 0;
  uint64_t misses = 0;
  double seconds = 0;
  uint64_t writable_shared = 0;  // Mappings.
};

Status LookUpFor(const Residents& residents, double seconds, Link& link) {
  ASSIGN_OR_RETURN(const Engine engine, StartEngine(residents, "hit", /*read_only=*/true));
  ClientOutcome outcome;
  // The first pass meets every arena; its hits are not counted.
  const auto run = [&](double for_seconds) {
    outcome = {};
    const Stopwatch watch;
    uint64_t number = Mix(static_cast<uint64_t>(getpid()));
    while ((outcome.seconds = watch.Seconds()) < for_seconds) {
      for (int i = 0; i < 4096; ++i) {
        const kvc_key key = SyntheticKey(Mix(number++) % residents.pages);
        kvc_page page;
        const kvc_ticket ticket =
            kvc_pin(engine.reader.get(), engine.space.get(), &key, &page, nullptr);
        ++(ticket != 0 ? outcome.hits : outcome.misses);
        if (ticket != 0) kvc_unpin(engine.reader.get(), ticket);
      }
    }
  };
  run(seconds / 10);
  RETURN_IF_ERROR(link.Send(Go{}));
  RETURN_IF_ERROR(link.Receive<Go>().status());
  run(seconds);
  ASSIGN_OR_RETURN(const std::vector<MappedRange> ranges, MapsOf(getpid()));
  for (const MappedRange& range : ranges) {
    outcome.writable_shared += range.shared && range.writable ? 1 : 0;
  }
  return link.Send(outcome);
}

struct ClientsFigures {
  double hits_per_second = 0;
  uint64_t extra_writable = 0;  // Writable shared mappings beyond one a client.
};
Result<ClientsFigures> RunClients(const Residents& residents, uint32_t clients, double seconds) {
  std::vector<Child> children;
  for (uint32_t i = 0; i < clients; ++i) {
    ASSIGN_OR_RETURN(Child child, Child::Start("client", [&](Link& link) {
                       return LookUpFor(residents, seconds, link);
                     }));
    children.push_back(std::move(child));
  }
  RETURN_IF_ERROR(HearAll(children));
  RETURN_IF_ERROR(TellAll(children));
  ClientsFigures figures;
  for (Child& child : children) {
    ASSIGN_OR_RETURN(const ClientOutcome outcome, child.link().Receive<ClientOutcome>());
    if (outcome.misses > 0) return Status(Code::kInternal, "resident pages were missed");
    figures.hits_per_second += static_cast<double>(outcome.hits) / outcome.seconds;
    figures.extra_writable += outcome.writable_shared > 0 ? outcome.writable_shared - 1 : 0;
  }
  RETURN_IF_ERROR(WaitAll(children));
  return figures;
}

}  // namespace

Result<Figures> RunHitClients(const SuiteOptions& options) {
  const uint64_t pages = options.quick ? 5000 : 500'000;
  const double seconds = options.quick ? 0.1 : 2;
  ASSIGN_OR_RETURN(
      const Daemon daemon,
      Daemon::Start({.binary = options.terraced, .capacity_bytes = pages * 4096 + (1u << 30)}));
  const Residents residents{.socket = daemon.socket(), .salt = "hit", .pages = pages};
  RETURN_IF_ERROR(MakeResident(residents, [](uint64_t, std::span<uint8_t>) {}));
  Figures figures;
  double extra_writable = 0;
  for (uint32_t clients = 1;; clients = std::min(2 * clients, options.clients)) {
    ASSIGN_OR_RETURN(const ClientsFigures found, RunClients(residents, clients, seconds));
    figures.push_back({"hits_per_second_" + std::to_string(clients), found.hits_per_second, "1/s"});
    extra_writable += static_cast<double>(found.extra_writable);
    if (clients == options.clients) {
      figures.insert(figures.begin(), {"hits_per_second", found.hits_per_second, "1/s"});
      break;
    }
  }
  figures.push_back({"clients", static_cast<double>(options.clients), "count"});
  figures.push_back({"writable_shared_mappings_beyond_channel", extra_writable, "count"});
  return figures;
}

}  // namespace terrace::bench
