// The reader's side of the protocol, step by step: with all of its steps no seed finds anything
// wrong, and without any one of them a seed does. Of the evictor's: engine_simulation_test.cc.
#include <gtest/gtest.h>

#include <cstdio>
#include <ostream>
#include <string>

#include "tests/sim/steps/steps_world.h"

namespace terrace {
namespace {

#if defined(__SANITIZE_ADDRESS__)
constexpr uint64_t kSeeds = 400;
#else
constexpr uint64_t kSeeds = 2000;
#endif
// Within so many an omission must show.
constexpr uint64_t kSeedsForOmission = 2000;

StepsResult RunSeed(uint64_t seed, Omitted omitted) {
  return StepsWorld(seed, omitted).Run();
}

TEST(Steps, NothingIsWrongUnderAnySeed) {
  StepsResult sum;
  for (uint64_t seed = 1; seed <= kSeeds; ++seed) {
    const StepsResult result = RunSeed(seed, Omitted::kNothing);
    ASSERT_EQ(result.wrong, "") << "seed " << seed;
    sum.hits += result.hits;
    sum.evicted += result.evicted;
    sum.linked_again += result.linked_again;
    sum.growths += result.growths;
    sum.accesses += result.accesses;
  }
  // The runs were about something.
  EXPECT_GT(sum.hits, 10 * kSeeds);
  EXPECT_GT(sum.evicted, kSeeds);
  EXPECT_GT(sum.linked_again, 0u);
  EXPECT_GT(sum.growths, kSeeds / 4);
  RecordProperty("hits", std::to_string(sum.hits));
  RecordProperty("evicted", std::to_string(sum.evicted));
  RecordProperty("linked_again", std::to_string(sum.linked_again));
  RecordProperty("growths", std::to_string(sum.growths));
  RecordProperty("accesses", std::to_string(sum.accesses));
}

TEST(Steps, SeedDecidesEverything) {
  for (const uint64_t seed : {1, 2, 3}) {
    const StepsResult one = RunSeed(seed, Omitted::kNothing);
    const StepsResult two = RunSeed(seed, Omitted::kNothing);
    EXPECT_EQ(one.accesses, two.accesses);
    EXPECT_EQ(one.hits, two.hits);
    EXPECT_EQ(one.evicted, two.evicted);
  }
}

struct Omission {
  Omitted step;
  const char* name;
};
std::ostream& operator<<(std::ostream& out, const Omission& omission) {
  return out << omission.name;
}

class StepLeftOut : public testing::TestWithParam<Omission> {};

TEST_P(StepLeftOut, IsFoundByASeed) {
  for (uint64_t seed = 1; seed <= kSeedsForOmission; ++seed) {
    const StepsResult result = RunSeed(seed, GetParam().step);
    if (result.wrong.empty()) continue;
    std::printf("seed %llu: %s\n", static_cast<unsigned long long>(seed), result.wrong.c_str());
    RecordProperty("seed", std::to_string(seed));
    return;
  }
  FAIL() << "no seed shows what the step is good for";
}

constexpr Omission kOmissions[] = {
    {Omitted::kHandleNotReadAgain, "HandleNotReadAgain"},
    {Omitted::kSupersededNotReadAgain, "SupersededNotReadAgain"},
    {Omitted::kGenerationNotReadAgain, "GenerationNotReadAgain"},
    {Omitted::kSpaceNotReadAgain, "SpaceNotReadAgain"},
    {Omitted::kPinAfterConfirmation, "PinAfterConfirmation"},
    {Omitted::kMarkNotRaised, "MarkNotRaised"},
    {Omitted::kMarkRaisedAfterPin, "MarkRaisedAfterPin"},
    {Omitted::kMarkClearedBeforeLastPin, "MarkClearedBeforeLastPin"},
    {Omitted::kPinStoredOverAnother, "PinStoredOverAnother"},
};
INSTANTIATE_TEST_SUITE_P(Each, StepLeftOut, testing::ValuesIn(kOmissions),
                         [](const auto& each) { return std::string(each.param.name); });

}  // namespace
}  // namespace terrace
