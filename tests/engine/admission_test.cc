// What is worth a write, what is worth a read, and how much may be written: pure functions.
#include "daemon/engine/store/admission.h"

#include <gtest/gtest.h>

#include <vector>

#include "daemon/engine/store/worth.h"

namespace terrace {
namespace {

AdmissionFigures Roomy() {
  return {.device_writes = true,
          .place_bytes = 10,
          .free_bytes = 500,
          .capacity_bytes = 1000,
          .high_bytes = 900,
          .queued_pages = 3,
          .max_queued_pages = 4,
          .budget_bytes = 1};
}

TEST(Admission, WhatThereIsRoomForIsWritten) {
  EXPECT_EQ(Admit(Roomy()), Unspilled::kNone);
}

TEST(Admission, NothingIsWrittenWithoutADevice) {
  AdmissionFigures figures = Roomy();
  figures.device_writes = false;
  EXPECT_EQ(Admit(figures), Unspilled::kDevice);
}

TEST(Admission, AFullQueueTakesNoMore) {
  AdmissionFigures figures = Roomy();
  figures.queued_pages = 4;
  EXPECT_EQ(Admit(figures), Unspilled::kQueue);
}

TEST(Admission, AboveTheWatermarkAPageHasToBeBetterThanTheVictim) {
  AdmissionFigures figures = Roomy();
  figures.free_bytes = 105;
  figures.frequency = 2;
  figures.victim_frequency = 2;
  EXPECT_EQ(Admit(figures), Unspilled::kRare);
  figures.frequency = 3;
  EXPECT_EQ(Admit(figures), Unspilled::kNone);
  figures.frequency = 0;
  figures.free_bytes = 110;
  EXPECT_EQ(Admit(figures), Unspilled::kNone) << "just below it";
}

TEST(Admission, AnEmptyBudgetPaysForNothing) {
  AdmissionFigures figures = Roomy();
  figures.budget_bytes = 0;
  EXPECT_EQ(Admit(figures), Unspilled::kBudget);
  figures.free_bytes = 105;
  EXPECT_EQ(Admit(figures), Unspilled::kBudget) << "nor for those who ask not what is worth it";
}

TEST(WriteBudget, FillsByTheDayUpToItsBurst) {
  constexpr MonotonicNs kDay = 86'400 * kNsPerSecond;
  WriteBudget budget(1000, 300, 0);
  EXPECT_EQ(budget.Left(0), 300u) << "full at first";
  budget.Take(250, 0);
  EXPECT_EQ(budget.Left(0), 50u);
  EXPECT_EQ(budget.Left(kDay / 10), 150u);
  EXPECT_EQ(budget.Left(10 * kDay), 300u);
}

TEST(WriteBudget, TheLastPageMayExceedItAndIsPaidForLater) {
  constexpr MonotonicNs kDay = 86'400 * kNsPerSecond;
  WriteBudget budget(1000, 300, 0);
  budget.Take(500, 0);
  EXPECT_EQ(budget.Left(0), 0u);
  EXPECT_EQ(budget.Left(kDay / 10), 0u);
  EXPECT_EQ(budget.Left(3 * kDay / 10), 100u);
  budget.GiveBack(50);
  EXPECT_EQ(budget.Left(3 * kDay / 10), 150u);
}

TEST(WriteBudget, WithoutALimitNothingIsCounted) {
  WriteBudget budget(0, 300, 0);
  budget.Take(1u << 30, 0);
  EXPECT_EQ(budget.Left(0), UINT64_MAX);
}

TEST(Worth, WithoutACostAllIsWorthHaving) {
  EXPECT_EQ(WorthPrefix(std::vector<PrefixPage>(5, {false, 1u << 20}), FetchSpeed(), 0), 5u);
}

FetchSpeed SpeedOf(uint64_t latency_us, uint64_t bytes_per_second) {
  FetchSpeed speed;
  speed.Add({.first_ns = static_cast<MonotonicNs>(latency_us) * 1000,
             .rest_bytes = bytes_per_second,
             .rest_ns = kNsPerSecond});
  return speed;
}

TEST(Worth, TheLatencyHasToBeMadeUpFor) {
  // A page takes 1000 us to read and 1500 us to compute: two make up for a latency of 700 us.
  const FetchSpeed speed = SpeedOf(700, 1'000'000'000);
  const std::vector<PrefixPage> pages(8, {false, 1'000'000});
  EXPECT_EQ(WorthPrefix(std::span(pages).first(1), speed, 1500), 0u);
  EXPECT_EQ(WorthPrefix(std::span(pages).first(2), speed, 1500), 2u);
  EXPECT_EQ(WorthPrefix(pages, speed, 1500), 8u);
  EXPECT_EQ(WorthPrefix(pages, speed, 999), 0u) << "computing is faster, however many";
}

TEST(Worth, WhatIsInMemoryCostsNothing) {
  const FetchSpeed speed = SpeedOf(700, 1'000'000'000);
  std::vector<PrefixPage> pages(4, {true, 1'000'000});
  EXPECT_EQ(WorthPrefix(pages, speed, 1), 4u);
  pages.push_back({false, 1'000'000});
  EXPECT_EQ(WorthPrefix(pages, speed, 1), 4u) << "up to the first that is not";
}

TEST(Worth, SpeedIsAMovingAverage) {
  FetchSpeed speed = SpeedOf(100, 1'000'000'000);
  EXPECT_EQ(speed.latency_ns(), 100'000u);
  EXPECT_EQ(speed.bytes_per_second(), 1'000'000'000u);
  speed.Add({.first_ns = 900'000});
  EXPECT_EQ(speed.latency_ns(), 200'000u);
  EXPECT_EQ(speed.bytes_per_second(), 1'000'000'000u) << "one page tells nothing of it";
}

}  // namespace
}  // namespace terrace
