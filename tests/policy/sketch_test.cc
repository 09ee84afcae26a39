// FrequencySketch: estimates are never too low, rarely too high, and fade.
#include "daemon/policy/sketch.h"

#include <gtest/gtest.h>

#include <map>

#include "base/random.h"

namespace terrace {
namespace {

TEST(FrequencySketch, AnEstimateIsNeverTooLow) {
  FrequencySketch sketch(1024);
  Random random(1);
  std::map<uint64_t, uint32_t> uses;
  for (int i = 0; i < 1500; ++i) {
    const uint64_t item = random.Below(300);
    sketch.Add(item);
    ++uses[item];
  }
  for (const auto& [item, count] : uses)
    EXPECT_GE(sketch.Estimate(item), std::min(count, FrequencySketch::kMax)) << item;
}

TEST(FrequencySketch, MostEstimatesAreExactWhereThereIsRoom) {
  FrequencySketch sketch(4096);
  for (uint64_t item = 0; item < 500; ++item) {
    for (uint64_t use = 0; use < item % 5; ++use)
      sketch.Add(item * 0x9e3779b97f4a7c15);
  }
  int exact = 0;
  for (uint64_t item = 0; item < 500; ++item)
    exact += sketch.Estimate(item * 0x9e3779b97f4a7c15) == item % 5 ? 1 : 0;
  EXPECT_GE(exact, 495);
}

TEST(FrequencySketch, CountersStopAtTheirMaximum) {
  FrequencySketch sketch(1024);
  for (int i = 0; i < 100; ++i)
    sketch.Add(7);
  EXPECT_EQ(sketch.Estimate(7), FrequencySketch::kMax);
  EXPECT_EQ(sketch.Estimate(8), 0u);
}

TEST(FrequencySketch, WhatWasUsedLongAgoFades) {
  FrequencySketch sketch(64);
  for (int i = 0; i < 8; ++i)
    sketch.Add(7);
  const uint32_t fresh = sketch.Estimate(7);
  for (int i = 0; i < 4 * 8 * 64; ++i)
    sketch.Add(1);
  EXPECT_EQ(fresh, 8u);
  EXPECT_LE(sketch.Estimate(7), 1u);
}

TEST(FrequencySketch, ItsMemoryIsTwoBytesACounterOfARow) {
  EXPECT_EQ(FrequencySketch(1000).bytes(), 2 * 1024u);
}

}  // namespace
}  // namespace terrace
