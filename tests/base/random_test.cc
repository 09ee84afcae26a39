#include "base/random.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <vector>

namespace terrace {
namespace {

TEST(Random, MatchesThePublishedGenerator) {
  // xoshiro256** seeded with splitmix64 of 0.
  Random random(0);
  for (const uint64_t expected :
       {11091344671253066420u, 13793997310169335082u, 1900383378846508768u, 7684712102626143532u,
        13521403990117723737u}) {
    EXPECT_EQ(random(), expected);
  }
}

TEST(Random, SeedDecidesTheSequence) {
  Random one(7);
  Random same(7);
  Random other(8);
  const uint64_t first = one();
  EXPECT_EQ(first, same());
  EXPECT_NE(first, other());
}

TEST(Random, BelowStaysBelowAndReachesEverything) {
  Random random(1);
  std::array<int, 10> seen{};
  for (int i = 0; i < 10'000; ++i) {
    const uint64_t value = random.Below(seen.size());
    ASSERT_LT(value, seen.size());
    ++seen[value];
  }
  // 1000 each are expected, with a standard deviation of 30.
  for (const int count : seen)
    EXPECT_NEAR(count, 1000, 300);
}

TEST(Random, ChanceAndUnitFollowTheirArguments) {
  Random random(2);
  int hits = 0;
  for (int i = 0; i < 10'000; ++i) {
    hits += random.Chance(1, 4);
    const double unit = random.Unit();
    ASSERT_GE(unit, 0.0);
    ASSERT_LT(unit, 1.0);
  }
  EXPECT_NEAR(hits, 2500, 400);
  EXPECT_FALSE(random.Chance(0, 4));
  EXPECT_TRUE(random.Chance(4, 4));
}

TEST(Secret, FillsEveryByteAndDoesNotRepeat) {
  std::vector<uint8_t> seen(100, 0);
  // A byte of a hundred secrets stays 0 with a probability of 2^-800.
  for (int i = 0; i < 100; ++i) {
    std::vector<uint8_t> secret(100, 0);
    FillSecret(secret);
    for (size_t at = 0; at < secret.size(); ++at)
      seen[at] |= secret[at];
  }
  EXPECT_EQ(std::count(seen.begin(), seen.end(), 0), 0);
  EXPECT_NE(SecretWord(), SecretWord());
}

}  // namespace
}  // namespace terrace
