// The engine under many seeds: with all of its steps nothing goes wrong under any of them, and
// without any one of the evictor's something does under some. A failing seed is printed;
// TERRACE_SIM_SEED=n runs that one alone, TERRACE_SIM_SEEDS=n so many.
#include "tests/sim/engine_simulation.h"

#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>
#include <optional>
#include <ostream>
#include <string>

namespace terrace {
namespace {

// Under so many seeds nothing goes wrong, and under some of them whatever is left out does.
constexpr uint64_t kSeeds = 500;

uint64_t FromEnvironment(const char* name, uint64_t otherwise) {
  const char* text = std::getenv(name);
  return text != nullptr ? std::strtoull(text, nullptr, 10) : otherwise;
}

// One simulation at a time: this one is gone when the next begins.
SimulationResult RunSeed(uint64_t seed, std::optional<Omission> omission = {}) {
  return EngineSimulation(seed, omission).Run();
}

void Add(const SimulationResult& more, SimulationResult* sum) {
  sum->hits += more.hits;
  sum->commits += more.commits;
  sum->evicted_pages += more.evicted_pages;
  sum->evicted_blocks += more.evicted_blocks;
  sum->linked_again += more.linked_again;
  sum->refused += more.refused;
  sum->judged_refusals += more.judged_refusals;
  sum->kills += more.kills;
  sum->cuts += more.cuts;
  sum->growths += more.growths;
  sum->released_arenas += more.released_arenas;
  sum->attached += more.attached;
}

TEST(EngineSimulationTest, PromisesHoldUnderEverySeed) {
  const uint64_t first = FromEnvironment("TERRACE_SIM_SEED", 1);
  const uint64_t seeds =
      std::getenv("TERRACE_SIM_SEED") != nullptr ? 1 : FromEnvironment("TERRACE_SIM_SEEDS", kSeeds);
  SimulationResult sum;
  for (uint64_t seed = first; seed < first + seeds; ++seed) {
    const SimulationResult result = RunSeed(seed);
    ASSERT_EQ(result.wrong, "") << "TERRACE_SIM_SEED=" << seed;
    Add(result, &sum);
  }
  if (seeds < 100) return;
  // A simulation in which something never happens says nothing about it.
  EXPECT_GT(sum.hits, 1000u);
  EXPECT_GT(sum.commits, 1000u);
  EXPECT_GT(sum.evicted_pages, 1000u);
  EXPECT_GT(sum.evicted_blocks, 50u);
  EXPECT_GT(sum.linked_again, 10u);
  EXPECT_GT(sum.judged_refusals, 20u);
  EXPECT_GT(sum.kills, 100u);
  EXPECT_GT(sum.cuts, 5u);
  EXPECT_GT(sum.growths, 0u);
  EXPECT_GT(sum.released_arenas, 50u);
  EXPECT_GT(sum.attached, 50u);
}

void ExpectSame(const SimulationResult& one, const SimulationResult& two) {
  EXPECT_EQ(one.wrong, two.wrong);
  EXPECT_EQ(one.hits, two.hits);
  EXPECT_EQ(one.commits, two.commits);
  EXPECT_EQ(one.evicted_pages, two.evicted_pages);
  EXPECT_EQ(one.linked_again, two.linked_again);
  EXPECT_EQ(one.kills, two.kills);
}

TEST(EngineSimulationTest, ASeedReplays) {
  ExpectSame(RunSeed(7), RunSeed(7));
}

// What an omission shows is due to the step, not to the index that leaves it out.
TEST(EngineSimulationTest, LeavingNothingOutChangesNothing) {
  for (uint64_t seed = 1; seed <= kSeeds / 10; ++seed) {
    SCOPED_TRACE(seed);
    ExpectSame(RunSeed(seed), RunSeed(seed, Omission::kNothing));
  }
}

struct LeftOut {
  Omission step;
  const char* name;
  const char* breaks;  // What is to be seen to go wrong.
};
std::ostream& operator<<(std::ostream& out, const LeftOut& left_out) {
  return out << left_out.name;
}

class StepOfTheEngine : public testing::TestWithParam<LeftOut> {};

TEST_P(StepOfTheEngine, IsMissedBySomeSeed) {
  for (uint64_t seed = 1; seed <= kSeeds; ++seed) {
    const SimulationResult result = RunSeed(seed, GetParam().step);
    if (!result.wrong.starts_with(GetParam().breaks)) continue;
    std::printf("seed %llu: %s\n", static_cast<unsigned long long>(seed), result.wrong.c_str());
    RecordProperty("seed", std::to_string(seed));
    return;
  }
  FAIL() << "none of " << kSeeds << " seeds shows what the step is good for";
}

constexpr const char* kBytes = "promise 1: ";
constexpr const char* kRefusal = "promise 4: ";
constexpr LeftOut kLeftOut[] = {
    {Omission::kScanBeforeVictims, "ScanBeforeVictims", kRefusal},
    {Omission::kUnlinkBeforeScan, "UnlinkBeforeScan", kBytes},
    {Omission::kScanAfterUnlink, "ScanAfterUnlink", kBytes},
    {Omission::kScanComparesExtents, "ScanComparesExtents", kBytes},
    {Omission::kNewSequence, "NewSequence", kBytes},
    {Omission::kLimbo, "Limbo", kBytes},
    {Omission::kHandleGoneBeforeKey, "HandleGoneBeforeKey", kBytes},
    {Omission::kKeyBeforeHandle, "KeyBeforeHandle", kBytes},
    {Omission::kSupersededBeforeUnlink, "SupersededBeforeUnlink", kBytes},
};
INSTANTIATE_TEST_SUITE_P(Each, StepOfTheEngine, testing::ValuesIn(kLeftOut),
                         [](const auto& each) { return std::string(each.param.name); });

}  // namespace
}  // namespace terrace
