// Suite `flood`: what hostile clients cost those that keep the protocol.
//
// 56 good clients look up and verify resident pages, publish and drop pages of their own, and ping,
// with pauses, so that all get on; in every second round 10 hostile clients run beside them, two of
// each kind (hostile.h). Rounds alternate so that whatever else the machine does meets both. Each
// hit is timed by itself: the ratio is of the medians over all good clients.
//
// The daemon's memory is what it has for itself (RssAnon): pages and channels are counted
// elsewhere.
#include <poll.h>

#include <array>
#include <cmath>

#include "base/random.h"
#include "bench/content.h"
#include "bench/daemon.h"
#include "bench/hostile.h"
#include "bench/memory_maps.h"
#include "bench/processes.h"
#include "bench/residents.h"
#include "bench/statistics.h"
#include "bench/suites.h"

namespace terrace::bench {
namespace {

struct Sizes {
  uint32_t good = 56;
  uint32_t hostile = 10;
  int rounds = 6;       // With and without.
  double seconds = 10;  // A round: 60 in all.
  uint64_t pages = 50'000;
};
constexpr uint64_t kHitsAtATime = 200;
constexpr uint64_t kOwnPages = 4;
constexpr uint64_t kPageBytes = 4096;

// Hits by time, in steps of kStepNs; the last counts all above.
constexpr double kStepNs = 4;
struct Times {
  std::array<uint64_t, 4096> hits{};

  void Add(double ns) {
    ++hits[std::min(static_cast<size_t>(std::max(ns, 0.0) / kStepNs), hits.size() - 1)];
  }
  void Add(const Times& more) {
    for (size_t i = 0; i < hits.size(); ++i)
      hits[i] += more.hits[i];
  }
  uint64_t count() const {
    uint64_t sum = 0;
    for (const uint64_t number : hits)
      sum += number;
    return sum;
  }
  double Median() const {
    const uint64_t half = (count() + 1) / 2;
    uint64_t sum = 0;
    for (size_t i = 0; i < hits.size(); ++i) {
      sum += hits[i];
      if (sum >= half) return (static_cast<double>(i) + 0.5) * kStepNs;
    }
    return 0;
  }
};

struct Outcome {
  Times times;
  uint64_t errors = 0;
  uint64_t published = 0;
};

class GoodClient {
 public:
  GoodClient(const Engine& engine, const Sizes& sizes, uint64_t number)
      : engine_(engine), sizes_(sizes), number_(number), random_(number + 1) {}

  Outcome Work(double seconds) {
    Outcome outcome;
    const Stopwatch watch;
    while (watch.Seconds() < seconds) {
      LookUp(outcome);
      if (random_.Chance(1, 16)) Publish(outcome);
      if (random_.Chance(1, 16)) {
        outcome.errors += kvc_ping(engine_.client.get(), 0, nullptr) != KVC_OK;
      }
      outcome.errors += kvc_epoch(engine_.client.get()) != 1;  // It was disconnected.
      poll(nullptr, 0, 2);
    }
    return outcome;
  }

 private:
  void LookUp(Outcome& outcome) {
    for (uint64_t i = 0; i < kHitsAtATime; ++i) {
      const kvc_key key = SyntheticKey(random_.Below(sizes_.pages));
      kvc_page page;
      const uint64_t start = Ticks();
      const kvc_ticket ticket =
          kvc_pin(engine_.reader.get(), engine_.space.get(), &key, &page, nullptr);
      const uint64_t end = Ticks();
      if (ticket == 0) {
        ++outcome.errors;
        continue;
      }
      if (i == 0) {
        outcome.errors += WrongBytes(key, {static_cast<const uint8_t*>(page.data), kPageBytes}) > 0;
      }
      kvc_unpin(engine_.reader.get(), ticket);
      outcome.times.Add((static_cast<double>(end - start) - scale_.empty_ticks) *
                        scale_.ns_per_tick);
    }
  }

  // Its own pages anew.
  void Publish(Outcome& outcome) {
    std::vector<kvc_key> keys;
    for (uint64_t i = 0; i < kOwnPages; ++i)
      keys.push_back(SyntheticKey(sizes_.pages + kOwnPages * number_ + i));
    uint32_t dropped = 0;
    outcome.errors += kvc_drop(engine_.client.get(), engine_.space.get(), keys.data(), keys.size(),
                               0, &dropped, nullptr) != KVC_OK;
    const Result<Published> published =
        Put(engine_.client.get(), engine_.space.get(), {.keys = keys},
            [&](size_t index, std::span<uint8_t> page) { FillContent(keys[index], page); });
    if (!published || published->committed != kOwnPages) {
      ++outcome.errors;
    } else {
      outcome.published += kOwnPages;
    }
  }

  const Engine& engine_;
  const Sizes& sizes_;
  const uint64_t number_;
  Random random_;
  const TickScale scale_ = MeasureTicks();
};

// Works for a round each time it is told to, until the other end closes.
Status BeGood(const Residents& residents, const Sizes& sizes, uint64_t number, Link& link) {
  ASSIGN_OR_RETURN(const Engine engine, StartEngine(residents, "good", /*read_only=*/false));
  GoodClient client(engine, sizes, number);
  (void)client.Work(sizes.seconds / 10);  // Meets every arena.
  RETURN_IF_ERROR(link.Send(Go{}));
  while (link.Receive<Go>())
    RETURN_IF_ERROR(link.Send(client.Work(sizes.seconds)));
  return {};
}

struct Round {
  Outcome outcome;
  double most_memory = 0;
};

Result<Round> PlayRound(std::vector<Child>& good, const Daemon& daemon, const Sizes& sizes) {
  Round round;
  RETURN_IF_ERROR(TellAll(good));
  for (const Stopwatch watch; watch.Seconds() < sizes.seconds; poll(nullptr, 0, 50)) {
    ASSIGN_OR_RETURN(const double bytes, StatusBytes(daemon.pid(), "RssAnon"));
    round.most_memory = std::max(round.most_memory, bytes);
  }
  for (Child& child : good) {
    ASSIGN_OR_RETURN(const Outcome outcome, child.link().Receive<Outcome>());
    round.outcome.times.Add(outcome.times);
    round.outcome.errors += outcome.errors;
    round.outcome.published += outcome.published;
  }
  return round;
}

Result<std::vector<Child>> StartHostile(const std::string& socket, const Sizes& sizes,
                                        uint64_t round) {
  std::vector<Child> hostile;
  for (uint32_t i = 0; i < sizes.hostile; ++i) {
    const auto how = static_cast<Misbehaviour>(i % kMisbehaviours);
    const uint64_t seed = round * sizes.hostile + i;
    ASSIGN_OR_RETURN(Child child,
                     Child::Start("hostile", [=](Link&) { return Misbehave(how, socket, seed); }));
    hostile.push_back(std::move(child));
  }
  return hostile;
}

}  // namespace

Result<Figures> RunFlood(const SuiteOptions& options) {
  const Sizes sizes =
      options.quick ? Sizes{.good = 4, .hostile = 5, .rounds = 1, .seconds = 0.5, .pages = 2000}
                    : Sizes{};
  ASSIGN_OR_RETURN(const Daemon daemon,
                   Daemon::Start({.binary = options.terraced,
                                  .capacity_bytes = 2 * sizes.pages * kPageBytes + (64u << 20)}));
  const Residents residents{.socket = daemon.socket(), .salt = "flood", .pages = sizes.pages};
  RETURN_IF_ERROR(MakeResident(residents, [](uint64_t index, std::span<uint8_t> page) {
    FillContent(SyntheticKey(index), page);
  }));
  std::vector<Child> good;
  for (uint64_t i = 0; i < sizes.good; ++i) {
    ASSIGN_OR_RETURN(Child child, Child::Start("good", [&, i](Link& link) {
                       return BeGood(residents, sizes, i, link);
                     }));
    good.push_back(std::move(child));
  }
  RETURN_IF_ERROR(HearAll(good));

  ASSIGN_OR_RETURN(const uint64_t descriptors_before, OpenDescriptors(daemon.pid()));
  ASSIGN_OR_RETURN(const double memory_before, StatusBytes(daemon.pid(), "RssAnon"));
  Outcome calm, flooded;
  double most_memory = 0;
  uint64_t most_descriptors = 0;
  for (int i = 0; i < sizes.rounds; ++i) {
    ASSIGN_OR_RETURN(const Round without, PlayRound(good, daemon, sizes));
    ASSIGN_OR_RETURN(const std::vector<Child> hostile,
                     StartHostile(daemon.socket(), sizes, static_cast<uint64_t>(i)));
    ASSIGN_OR_RETURN(const Round with, PlayRound(good, daemon, sizes));
    ASSIGN_OR_RETURN(const uint64_t descriptors, OpenDescriptors(daemon.pid()));
    most_descriptors = std::max(most_descriptors, descriptors);
    calm.times.Add(without.outcome.times);
    calm.errors += without.outcome.errors;
    flooded.times.Add(with.outcome.times);
    flooded.errors += with.outcome.errors;
    flooded.published += with.outcome.published;
    most_memory = std::max(most_memory, with.most_memory);
  }
  if (calm.times.count() == 0 || flooded.times.count() == 0) {
    return Status(Code::kInternal, "the good clients had no hits");
  }
  const double calm_ns = calm.times.Median();
  const double flooded_ns = flooded.times.Median();
  return Figures{
      {"errors_for_good_clients", static_cast<double>(calm.errors + flooded.errors), "count"},
      {"hit_ns_p50_ratio", flooded_ns / calm_ns, "ratio"},
      {"hit_ns_p50_without", calm_ns, "ns"},
      {"hit_ns_p50_with", flooded_ns, "ns"},
      {"daemon_memory_growth_bytes", std::max(most_memory - memory_before, 0.0), "bytes"},
      {"daemon_descriptors_more",
       static_cast<double>(most_descriptors) - static_cast<double>(descriptors_before), "count"},
      {"hits_with", static_cast<double>(flooded.times.count()), "count"},
      {"pages_published_with", static_cast<double>(flooded.published), "count"}};
}

}  // namespace terrace::bench
