// The engine with a store under many seeds: nothing goes wrong under any of them, and where it does
// not wait for one of the things that it waits for something does under some. A failing seed is
// printed; TERRACE_SIM_SEED=n runs that one alone, TERRACE_SIM_SEEDS=n so many.
#include "tests/sim/store_simulation.h"

#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>
#include <ostream>
#include <string>

namespace terrace {
namespace {

// Under so many seeds nothing goes wrong in the ordinary run; in so many is looked for what does
// where something is left out.
constexpr uint64_t kSeeds = 60;
constexpr uint64_t kSeedsToMiss = 400;

uint64_t FromEnvironment(const char* name, uint64_t otherwise) {
  const char* text = std::getenv(name);
  return text != nullptr ? std::strtoull(text, nullptr, 10) : otherwise;
}

TEST(StoreSimulationTest, PromisesHoldUnderEverySeed) {
  const uint64_t first = FromEnvironment("TERRACE_SIM_SEED", 1);
  const uint64_t seeds =
      std::getenv("TERRACE_SIM_SEED") != nullptr ? 1 : FromEnvironment("TERRACE_SIM_SEEDS", kSeeds);
  StoreSimulationResult sum;
  for (uint64_t seed = first; seed < first + seeds; ++seed) {
    const StoreSimulationResult result = StoreSimulation(seed).Run();
    ASSERT_EQ(result.wrong, "") << "TERRACE_SIM_SEED=" << seed;
    sum.commits += result.commits;
    sum.spilled += result.spilled;
    sum.promoted += result.promoted;
    sum.faults += result.faults;
    sum.unspilled += result.unspilled;
    sum.erased += result.erased;
    sum.made_room += result.made_room;
    sum.persisted += result.persisted;
    sum.demoted += result.demoted;
    sum.promoted_by_hand += result.promoted_by_hand;
    sum.checks += result.checks;
    sum.crashes += result.crashes;
    sum.found_again += result.found_again;
    sum.held += result.held;
  }
  std::printf(
      "%llu commits, %llu spilled, %llu promoted, %llu faults, %llu not spilled, %llu "
      "erased (%llu for room), %llu persisted, %llu demoted, %llu crashes, %llu found "
      "again, %llu held\n",
      static_cast<unsigned long long>(sum.commits), static_cast<unsigned long long>(sum.spilled),
      static_cast<unsigned long long>(sum.promoted), static_cast<unsigned long long>(sum.faults),
      static_cast<unsigned long long>(sum.unspilled), static_cast<unsigned long long>(sum.erased),
      static_cast<unsigned long long>(sum.made_room),
      static_cast<unsigned long long>(sum.persisted), static_cast<unsigned long long>(sum.demoted),
      static_cast<unsigned long long>(sum.crashes),
      static_cast<unsigned long long>(sum.found_again), static_cast<unsigned long long>(sum.held));
  if (seeds < kSeeds) return;
  // A simulation in which something never happens says nothing about it.
  EXPECT_GT(sum.spilled, 1000u);
  EXPECT_GT(sum.promoted, 1000u);
  EXPECT_GT(sum.faults, 100u);
  EXPECT_GT(sum.made_room, 50u);
  EXPECT_GT(sum.persisted, 500u);
  EXPECT_GT(sum.demoted, 100u);
  EXPECT_GT(sum.promoted_by_hand, 100u);
  EXPECT_GT(sum.checks, 100u);
  EXPECT_GT(sum.crashes, 300u);
  EXPECT_GT(sum.found_again, 300u);
  EXPECT_GT(sum.held, 500u);
}

TEST(StoreSimulationTest, ASeedReplays) {
  const StoreSimulationResult one = StoreSimulation(7).Run();
  const StoreSimulationResult two = StoreSimulation(7).Run();
  EXPECT_EQ(one.wrong, two.wrong);
  EXPECT_EQ(one.spilled, two.spilled);
  EXPECT_EQ(one.promoted, two.promoted);
  EXPECT_EQ(one.erased, two.erased);
}

struct NotWaitedFor {
  StoreOmission thing;
  const char* name;
  const char* breaks;  // What is to be seen to go wrong.
};
std::ostream& operator<<(std::ostream& out, const NotWaitedFor& each) {
  return out << each.name;
}

class WaitOfTheEngine : public testing::TestWithParam<NotWaitedFor> {};

TEST_P(WaitOfTheEngine, IsMissedBySomeSeed) {
  for (uint64_t seed = 1; seed <= kSeedsToMiss; ++seed) {
    const StoreSimulationResult result = StoreSimulation(seed, GetParam().thing).Run();
    if (!result.wrong.starts_with(GetParam().breaks)) continue;
    std::printf("seed %llu: %s\n", static_cast<unsigned long long>(seed), result.wrong.c_str());
    return;
  }
  FAIL() << "none of " << kSeedsToMiss << " seeds shows what the wait is good for";
}

constexpr NotWaitedFor kWaits[] = {
    {StoreOmission::kEndOfRead, "EndOfRead", "promise 1: "},
    {StoreOmission::kSpaceRecord, "SpaceRecord", "a page that was acknowledged as durable"},
};
INSTANTIATE_TEST_SUITE_P(Each, WaitOfTheEngine, testing::ValuesIn(kWaits),
                         [](const auto& each) { return std::string(each.param.name); });

}  // namespace
}  // namespace terrace
