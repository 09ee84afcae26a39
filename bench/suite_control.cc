// Suite `control`: what a message costs.
//
// `rtt_over_echo` is the median of kvc_ping over that of a bare echo: 16 bytes, an empty frame's
// size, there and back over a Unix stream socket to a process that blocks in recv and answers.
// Rounds of both alternate. `commits_per_second` are pages of batches of 64, the time of the grants
// and of the commits both counted, with room for all of them.
#include <sys/socket.h>

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
  ASSIGN_OR_RETURN(const RoundTrips trips,
                   CompareRoundTrips(engine.client.get(), echo.link(), rounds));
  ASSIGN_OR_RETURN(const double commits, CommitsPerSecond(engine, batches));
  return Figures{{"rtt_over_echo", trips.ratio, "ratio"},
                 {"rtt_us", trips.ping_us, "us"},
                 {"echo_us", trips.echo_us, "us"},
                 {"commits_per_second", commits, "1/s"}};
}

}  // namespace terrace::bench
