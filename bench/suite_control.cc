// Suite `control`: what a message costs.
//
// `rtt_over_echo` is the median of kvc_ping over that of a bare echo: 16 bytes, an empty frame's
// size, there and back over a Unix stream socket to a process that blocks in recv and answers.
// Rounds of both alternate. Where the two ends run decides more than what they do: on one processor
// a message is a switch of threads, across two it may wake an idle one, which in a virtual machine
// costs ten times more, and the scheduler chooses for each pair of processes as it likes. So both
// pairs are placed alike, on one processor and then on two, and `rtt_over_echo` is the worse of the
// two ratios. `commits_per_second`, placed by the scheduler, are pages of batches of 64, the time
// of the grants and of the commits both counted, with room for all of them.
#include <sched.h>
#include <sys/socket.h>

#include <algorithm>

#include "bench/content.h"
#include "bench/daemon.h"
#include "bench/processes.h"
#include "bench/residents.h"
#include "bench/statistics.h"
#include "bench/suites.h"

namespace terrace::bench {
namespace {

constexpr size_t kBatch = 64;

struct EmptyFrame {
  uint8_t bytes[16];
};

// Answers until the other end closes.
Status Echo(Link& link) {
  while (true) {
    Result<EmptyFrame> frame = link.Receive<EmptyFrame>();
    if (!frame) return {};
    RETURN_IF_ERROR(link.Send(*frame));
  }
}

// The processors that this process may use.
std::vector<int> Processors() {
  cpu_set_t set;
  CPU_ZERO(&set);
  std::vector<int> processors;
  if (sched_getaffinity(0, sizeof set, &set) != 0) return processors;
  for (int processor = 0; processor < CPU_SETSIZE; ++processor) {
    if (CPU_ISSET(processor, &set)) processors.push_back(processor);
  }
  return processors;
}

// Where a thread may run (0: this one).
Status Place(pid_t thread, const std::vector<int>& processors) {
  cpu_set_t set;
  CPU_ZERO(&set);
  for (const int processor : processors)
    CPU_SET(processor, &set);
  if (sched_setaffinity(thread, sizeof set, &set) != 0) {
    return SystemError("sched_setaffinity", errno);
  }
  return {};
}

struct RoundTrips {
  double ping_us = 0;
  double echo_us = 0;
  double ratio = 0;
};
Result<RoundTrips> CompareRoundTrips(kvc_client* client, Link& echo, int rounds) {
  constexpr int kTripsOfRound = 200;
  std::vector<double> ping, bare, ratio;
  for (int round = 0; round <= rounds; ++round) {
    std::vector<double> pings, echoes;
    for (int i = 0; i < kTripsOfRound; ++i) {
      kvc_error error{};
      const Stopwatch watch;
      RETURN_IF_ERROR(ToStatus(kvc_ping(client, 0, &error), error));
      pings.push_back(watch.Us());
    }
    for (int i = 0; i < kTripsOfRound; ++i) {
      const Stopwatch watch;
      RETURN_IF_ERROR(echo.Send(EmptyFrame{}));
      RETURN_IF_ERROR(echo.Receive<EmptyFrame>().status());
      echoes.push_back(watch.Us());
    }
    if (round == 0) continue;
    ping.push_back(Median(pings));
    bare.push_back(Median(echoes));
    ratio.push_back(ping.back() / bare.back());
  }
  return RoundTrips{Median(ping), Median(bare), Median(ratio)};
}

// This thread on the first processor, whoever answers on the one at `place`.
Result<RoundTrips> ComparePlaced(const Engine& engine, const Daemon& daemon, Child& echo,
                                 size_t place, int rounds) {
  const std::vector<int> all = Processors();
  if (all.empty()) return SystemError("sched_getaffinity", errno);
  const std::vector<int> there = {all[std::min(place, all.size() - 1)]};
  RETURN_IF_ERROR(Place(daemon.pid(), there));  // Its first thread is the owner thread.
  RETURN_IF_ERROR(Place(echo.pid(), there));
  RETURN_IF_ERROR(Place(0, {all.front()}));
  ASSIGN_OR_RETURN(const RoundTrips trips,
                   CompareRoundTrips(engine.client.get(), echo.link(), rounds));
  RETURN_IF_ERROR(Place(daemon.pid(), all));
  RETURN_IF_ERROR(Place(0, all));
  return trips;
}

Result<double> CommitsPerSecond(const Engine& engine, uint64_t batches) {
  std::vector<kvc_key> keys(kBatch);
  uint64_t next = 0;
  const auto put = [&](uint64_t count) -> Status {
    for (uint64_t i = 0; i < count; ++i) {
      for (kvc_key& key : keys)
        key = SyntheticKey(next++);
      ASSIGN_OR_RETURN(const Published published,
                       Put(engine.client.get(), engine.space.get(), {.keys = keys, .batch = kBatch},
                           [](size_t, std::span<uint8_t>) {}));
      if (published.committed != kBatch) return {Code::kExhausted, "pages were refused"};
    }
    return {};
  };
  RETURN_IF_ERROR(put(batches / 10));
  std::vector<double> rates;
  constexpr uint64_t kParts = 9;
  for (uint64_t part = 0; part < kParts; ++part) {
    const uint64_t count = std::max<uint64_t>(1, batches / kParts);
    const Stopwatch watch;
    RETURN_IF_ERROR(put(count));
    rates.push_back(static_cast<double>(count * kBatch) / watch.Seconds());
  }
  return Median(rates);
}

}  // namespace

Result<Figures> RunControl(const SuiteOptions& options) {
  const int rounds = options.quick ? 2 : 25;
  const uint64_t batches = options.quick ? 20 : 3000;
  ASSIGN_OR_RETURN(Child echo, Child::Start("echo", Echo));
  ASSIGN_OR_RETURN(const Daemon daemon,
                   Daemon::Start({.binary = options.terraced, .capacity_bytes = 1u << 30}));
  const Residents residents{.socket = daemon.socket(), .salt = "control"};
  ASSIGN_OR_RETURN(const Engine engine, StartEngine(residents, "control", /*read_only=*/false));
  ASSIGN_OR_RETURN(const RoundTrips near, ComparePlaced(engine, daemon, echo, 0, rounds));
  ASSIGN_OR_RETURN(const RoundTrips far, ComparePlaced(engine, daemon, echo, 1, rounds));
  ASSIGN_OR_RETURN(const double commits, CommitsPerSecond(engine, batches));
  return Figures{{"rtt_over_echo", std::max(near.ratio, far.ratio), "ratio"},
                 {"rtt_us_one_processor", near.ping_us, "us"},
                 {"echo_us_one_processor", near.echo_us, "us"},
                 {"rtt_us_two_processors", far.ping_us, "us"},
                 {"echo_us_two_processors", far.echo_us, "us"},
                 {"commits_per_second", commits, "1/s"}};
}

}  // namespace terrace::bench
