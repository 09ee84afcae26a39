// The engine under many seeds. A failing seed is printed; TERRACE_SIM_SEED=n runs that one alone,
// TERRACE_SIM_SEEDS=n so many.
#include "tests/sim/engine_simulation.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <string>

namespace terrace {
namespace {

uint64_t FromEnvironment(const char* name, uint64_t otherwise) {
  const char* text = std::getenv(name);
  return text != nullptr ? std::strtoull(text, nullptr, 10) : otherwise;
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
      std::getenv("TERRACE_SIM_SEED") != nullptr ? 1 : FromEnvironment("TERRACE_SIM_SEEDS", 300);
  SimulationResult sum;
  for (uint64_t seed = first; seed < first + seeds; ++seed) {
    const SimulationResult result = EngineSimulation(seed).Run();
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

TEST(EngineSimulationTest, ASeedReplays) {
  const SimulationResult one = EngineSimulation(7).Run();
  const SimulationResult two = EngineSimulation(7).Run();
  EXPECT_EQ(one.hits, two.hits);
  EXPECT_EQ(one.commits, two.commits);
  EXPECT_EQ(one.evicted_pages, two.evicted_pages);
  EXPECT_EQ(one.kills, two.kills);
}

}  // namespace
}  // namespace terrace
