// Suite `connect`: a client's whole life, as short as it can be, 100,000 times.
//
// Connect, hello, map channel and directory, open the space, find and pin one page (whose arena is
// fetched and mapped for it), let go, goodbye and close: everything by libkvclient, by as many
// processes at once as there are processors, at most four. Afterwards /proc tells whether the
// daemon, or a client process, keeps a descriptor or a mapping of memory that they shared.
#include <poll.h>
#include <unistd.h>

#include <algorithm>

#include "bench/content.h"
#include "bench/daemon.h"
#include "bench/memory_maps.h"
#include "bench/processes.h"
#include "bench/residents.h"
#include "bench/statistics.h"
#include "bench/suites.h"

namespace terrace::bench {
namespace {

// What one life must not leave behind, of this process or of the daemon's.
struct Held {
  uint64_t descriptors = 0;
  uint64_t mappings = 0;  // Of memfds.
};
Result<Held> HeldBy(pid_t pid) {
  Held held;
  ASSIGN_OR_RETURN(held.descriptors, OpenDescriptors(pid));
  ASSIGN_OR_RETURN(const std::vector<MappedRange> ranges, MapsOf(pid));
  for (const MappedRange& range : ranges)
    held.mappings += range.name.starts_with("/memfd:");
  return held;
}

Status LiveOnce(const Residents& residents, uint64_t number) {
  ASSIGN_OR_RETURN(const Engine engine, StartEngine(residents, "brief", /*read_only=*/true));
  const kvc_key key = SyntheticKey(number % residents.pages);
  kvc_page page;
  const kvc_ticket ticket = kvc_pin(engine.reader.get(), engine.space.get(), &key, &page, nullptr);
  if (ticket == 0) return {Code::kInternal, "a resident page was missed"};
  const bool right = WrongBytes(key, {static_cast<const uint8_t*>(page.data), 64}) == 0;
  kvc_unpin(engine.reader.get(), ticket);
  return right ? Status() : Status(Code::kDataLoss, "a wrong byte was mapped");
}

struct Lives {
  double us_p50 = 0;
  double us_p99 = 0;
  Held left;
};

Status LiveOften(const Residents& residents, uint64_t lives, Link& link) {
  RETURN_IF_ERROR(LiveOnce(residents, 0));  // Whatever a library makes once.
  ASSIGN_OR_RETURN(const Held before, HeldBy(getpid()));
  RETURN_IF_ERROR(link.Send(Go{}));
  RETURN_IF_ERROR(link.Receive<Go>().status());
  std::vector<double> us;
  us.reserve(lives);
  for (uint64_t i = 0; i < lives; ++i) {
    const Stopwatch watch;
    RETURN_IF_ERROR(LiveOnce(residents, i));
    us.push_back(watch.Us());
  }
  RETURN_IF_ERROR(link.Send(Go{}));
  ASSIGN_OR_RETURN(const Held after, HeldBy(getpid()));
  return link.Send(
      Lives{.us_p50 = Median(us),
            .us_p99 = Percentile(us, 0.99),
            .left = {after.descriptors - before.descriptors, after.mappings - before.mappings}});
}

}  // namespace

Result<Figures> RunConnect(const SuiteOptions& options) {
  const uint64_t lives = options.quick ? 200 : 100'000;
  const auto processes =
      static_cast<uint64_t>(std::clamp<long>(sysconf(_SC_NPROCESSORS_ONLN), 1, 4));
  ASSIGN_OR_RETURN(const Daemon daemon,
                   Daemon::Start({.binary = options.terraced, .capacity_bytes = 64u << 20}));
  const Residents residents{.socket = daemon.socket(), .salt = "connect", .pages = 1000};
  RETURN_IF_ERROR(MakeResident(residents, [](uint64_t index, std::span<uint8_t> page) {
    FillContent(SyntheticKey(index), page);
  }));
  std::vector<Child> children;
  for (uint64_t i = 0; i < processes; ++i) {
    ASSIGN_OR_RETURN(Child child, Child::Start("client", [&](Link& link) {
                       return LiveOften(residents, lives / processes, link);
                     }));
    children.push_back(std::move(child));
  }
  RETURN_IF_ERROR(HearAll(children));
  // It sees the end of who was connected before a little after that.
  ASSIGN_OR_RETURN(Held before, HeldBy(daemon.pid()));
  const Stopwatch calming;
  for (Held earlier{}; before.descriptors != earlier.descriptors && calming.Seconds() < 5;) {
    earlier = before;
    poll(nullptr, 0, 100);
    ASSIGN_OR_RETURN(before, HeldBy(daemon.pid()));
  }
  const Stopwatch watch;
  RETURN_IF_ERROR(TellAll(children));
  RETURN_IF_ERROR(HearAll(children));
  const double seconds = watch.Seconds();
  std::vector<double> p50, p99;
  Held left_in_clients;
  for (Child& child : children) {
    ASSIGN_OR_RETURN(const Lives lived, child.link().Receive<Lives>());
    p50.push_back(lived.us_p50);
    p99.push_back(lived.us_p99);
    left_in_clients.descriptors += lived.left.descriptors;
    left_in_clients.mappings += lived.left.mappings;
  }
  RETURN_IF_ERROR(WaitAll(children));
  // The daemon sees the end of the last connection a little after its client.
  ASSIGN_OR_RETURN(Held after, HeldBy(daemon.pid()));
  for (const Stopwatch settling; after.descriptors > before.descriptors && settling.Seconds() < 5;
       poll(nullptr, 0, 10)) {
    ASSIGN_OR_RETURN(after, HeldBy(daemon.pid()));
  }
  const auto number = [](uint64_t now, uint64_t then) {
    return static_cast<double>(now) - static_cast<double>(then);
  };
  return Figures{
      {"connects_per_second", static_cast<double>(processes * (lives / processes)) / seconds,
       "1/s"},
      {"connect_us_p50", Median(p50), "us"},
      {"connect_us_p99", Percentile(p99, 1), "us"},
      {"daemon_descriptors_left", number(after.descriptors, before.descriptors), "count"},
      {"daemon_mappings_left", number(after.mappings, before.mappings), "count"},
      {"client_descriptors_left", static_cast<double>(left_in_clients.descriptors), "count"},
      {"client_mappings_left", static_cast<double>(left_in_clients.mappings), "count"},
      {"connects", static_cast<double>(processes * (lives / processes)), "count"},
      {"processes", static_cast<double>(processes), "count"}};
}

}  // namespace terrace::bench
