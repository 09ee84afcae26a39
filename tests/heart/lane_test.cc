// Lanes: pin words, budgets, counters and rings of one reader thread.
#include "libclient/lane.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <memory>
#include <optional>
#include <set>
#include <thread>
#include <vector>

#include "base/random.h"
#include "tests/heart/plain_memory.h"

namespace terrace {
namespace {

constexpr uint64_t kNoLimit = uint64_t{1} << 40;

class Lanes : public testing::Test {
 protected:
  shm::Channel& Channel(uint32_t pin_lines) {
    memory_.channel().pin_lines = pin_lines;
    return memory_.channel();
  }
  // Extents that a scan which follows the marks would see.
  size_t Marked() const {
    size_t pins = 0;
    const shm::Channel& channel = memory_.channel();
    for (uint32_t line = 0; line < shm::kMaxPinLines; ++line) {
      if ((channel.upper_summary[line / 4096] >> line / 64 % 64 & 1) == 0) continue;
      if ((channel.summary[line / 64] >> line % 64 & 1) == 0) continue;
      for (const shm::Word& pin : channel.lines[line].pins)
        pins += pin != 0 ? 1 : 0;
    }
    return pins;
  }
  bool AnyMark() const {
    const shm::Channel& channel = memory_.channel();
    uint64_t marks = 0;
    for (const shm::Word& word : channel.upper_summary)
      marks |= word;
    for (const shm::Word& word : channel.summary)
      marks |= word;
    return marks != 0;
  }

  PlainChannel memory_;
};

Pinned PinOne(Lane<>& lane, uint32_t slot, uint32_t bytes = 1) {
  Pinned page{.handle = shm::MakeHandle(1, slot, 1), .bytes = bytes};
  page.pin = lane.Pin(page.handle, bytes);
  return page;
}
void ReleaseOne(Lane<>& lane, const Pinned& page) {
  lane.Release({&page, 1});
}

TEST_F(Lanes, EveryPinIsInAWordOfItsOwnUnderAMark) {
  PinPool<> pool(Channel(shm::kMaxPinLines), kNoLimit);
  Lane<> lane(pool, 0);
  std::set<shm::Word*> words;
  for (uint32_t i = 0; i < 10'000; ++i) {
    const Pinned page = PinOne(lane, i);
    ASSERT_NE(page.pin, nullptr);
    EXPECT_EQ(*page.pin, page.handle);
    EXPECT_TRUE(words.insert(page.pin).second);
    if (i % 1000 == 0) {
      ASSERT_EQ(Marked(), i + 1);
    }
  }
  EXPECT_EQ(Marked(), 10'000u);
  EXPECT_EQ(lane.pins(), 10'000u);
  EXPECT_EQ(lane.pinned_bytes(), 10'000u);
}

TEST_F(Lanes, HitTimesAreCountedInTheirBuckets) {
  PinPool<> pool(Channel(8), kNoLimit);
  Lane<> lane(pool, 3);
  const shm::LaneTimes& times = memory_.channel().times[3];
  const std::pair<uint64_t, uint32_t> expected[] = {{0, 0},        {31, 0},       {32, 1},
                                                    {63, 1},       {64, 2},       {131'072, 13},
                                                    {262'143, 13}, {262'144, 14}, {1u << 30, 14}};
  uint64_t total = 0;
  for (const auto& [ns, bucket] : expected) {
    const uint64_t before = times.buckets[bucket];
    lane.CountHitTime(ns);
    EXPECT_EQ(times.buckets[bucket], before + 1) << ns;
    if (bucket + 1 < shm::kHitTimeBuckets) {
      EXPECT_LT(ns, shm::HitTimeBoundNs(bucket));
    }
    total += ns;
    EXPECT_EQ(times.total_ns, total);
  }
}

TEST_F(Lanes, OneLookupInAboutSoManyPagesIsTimed) {
  PinPool<> pool(Channel(8), kNoLimit);
  Lane<> lane(pool, 0);
  uint64_t timed = 0;
  for (uint32_t page = 1; page <= 10 * shm::kTimedEvery; ++page) {
    if (!lane.TimesNext(1)) continue;
    ++timed;
    EXPECT_EQ(page % shm::kTimedEvery, 0u);
  }
  EXPECT_EQ(timed, 10u);
  EXPECT_FALSE(lane.TimesNext(shm::kTimedEvery / 2));
  EXPECT_TRUE(lane.TimesNext(shm::kTimedEvery / 2));
  EXPECT_TRUE(lane.TimesNext(100 * shm::kTimedEvery)) << "once";
  EXPECT_FALSE(lane.TimesNext(shm::kTimedEvery - 1));
}

TEST_F(Lanes, LanesOfAClientNeverShareALine) {
  PinPool<> pool(Channel(shm::kMaxPinLines), kNoLimit);
  Lane<> one(pool, 0);
  Lane<> two(pool, 1);
  std::set<uintptr_t> lines[2];
  for (uint32_t i = 0; i < 100; ++i) {
    lines[0].insert(reinterpret_cast<uintptr_t>(PinOne(one, i).pin) / shm::kLineBytes);
    lines[1].insert(reinterpret_cast<uintptr_t>(PinOne(two, i).pin) / shm::kLineBytes);
  }
  for (const uintptr_t line : lines[0])
    EXPECT_FALSE(lines[1].contains(line));
}

TEST_F(Lanes, MarksGoWithTheLastPinAndNeverBefore) {
  PinPool<> pool(Channel(shm::kMaxPinLines), kNoLimit);
  Lane<> lane(pool, 0);
  std::vector<Pinned> pages;
  for (uint32_t i = 0; i < 1000; ++i)
    pages.push_back(PinOne(lane, i));
  for (size_t i = 0; i < pages.size(); ++i) {
    ReleaseOne(lane, pages[i]);
    // Use makes the lane return what it does not need.
    for (uint32_t use = 0; use < 8; ++use)
      ReleaseOne(lane, PinOne(lane, use));
    ASSERT_EQ(Marked(), pages.size() - i - 1);
  }
  EXPECT_EQ(lane.pins(), 0u);
}

TEST_F(Lanes, EndOfALaneReturnsItsLinesButNotThoseStillPinned) {
  PinPool<> pool(Channel(shm::kMaxPinLines), kNoLimit);
  {
    Lane<> lane(pool, 0);
    const Pinned page = PinOne(lane, 1);
    ReleaseOne(lane, page);
    EXPECT_TRUE(AnyMark());
  }
  EXPECT_FALSE(AnyMark());
  {
    Lane<> lane(pool, 0);
    PinOne(lane, 1);
  }
  EXPECT_EQ(Marked(), 1u);
}

TEST_F(Lanes, BudgetOfPinsIsKeptAndAReleaseMakesRoom) {
  PinPool<> pool(Channel(2), kNoLimit);
  Lane<> lane(pool, 0);
  std::vector<Pinned> pages;
  for (uint32_t i = 0; i < 16; ++i) {
    pages.push_back(PinOne(lane, i));
    ASSERT_NE(pages.back().pin, nullptr) << i;
  }
  EXPECT_EQ(PinOne(lane, 16).pin, nullptr);
  EXPECT_EQ(lane.pins(), 16u);  // What was refused is not held.
  ReleaseOne(lane, pages[3]);
  const Pinned again = PinOne(lane, 17);
  EXPECT_EQ(again.pin, pages[3].pin);
  EXPECT_EQ(PinOne(lane, 18).pin, nullptr);
}

TEST_F(Lanes, IdleLaneKeepsNoPinsFromAnother) {
  PinPool<> pool(Channel(100), kNoLimit);
  Lane<> one(pool, 0);
  Lane<> two(pool, 1);
  std::vector<Pinned> pages;
  for (uint32_t i = 0; i < 800; ++i)
    pages.push_back(PinOne(one, i));
  EXPECT_EQ(PinOne(two, 0).pin, nullptr);
  one.Release(pages);
  for (uint32_t i = 0; i < 800; ++i)
    ASSERT_NE(PinOne(two, i).pin, nullptr) << i;
  EXPECT_EQ(Marked(), 800u);
  EXPECT_EQ(PinOne(one, 0).pin, nullptr);
}

TEST_F(Lanes, WordsBetweenTheirPinsAreOfUseToOtherLanes) {
  PinPool<> pool(Channel(10), kNoLimit);
  Lane<> one(pool, 0);
  Lane<> two(pool, 1);
  std::vector<Pinned> pages;
  for (uint32_t i = 0; i < 80; ++i)
    pages.push_back(PinOne(one, i));
  for (size_t i = 0; i < pages.size(); ++i) {
    if (i % 8 != 0) ReleaseOne(one, pages[i]);
  }
  for (uint32_t i = 0; i < 70; ++i)
    ASSERT_NE(PinOne(two, i).pin, nullptr) << i;
  EXPECT_EQ(PinOne(two, 70).pin, nullptr);
  EXPECT_EQ(PinOne(one, 80).pin, nullptr);
  for (size_t i = 0; i < pages.size(); i += 8)
    EXPECT_EQ(*pages[i].pin, pages[i].handle);
}

TEST_F(Lanes, SharedLineIsMarkedUntilTheLastPinOfTheLastLane) {
  PinPool<> pool(Channel(1), kNoLimit);
  std::optional<Lane<>> one(std::in_place, pool, 0);
  std::optional<Lane<>> two(std::in_place, pool, 1);
  const Pinned of_one = PinOne(*one, 1);
  const Pinned of_two = PinOne(*two, 2);
  ASSERT_NE(of_two.pin, nullptr);
  ReleaseOne(*one, of_one);
  EXPECT_EQ(Marked(), 1u);
  // That the line is empty when the first lane ends must not unmark it for the second.
  ReleaseOne(*two, of_two);
  one.reset();
  const Pinned later = PinOne(*two, 3);
  EXPECT_EQ(Marked(), 1u);
  ReleaseOne(*two, later);
  two.reset();
  EXPECT_FALSE(AnyMark());
}

TEST_F(Lanes, IdleLaneKeepsNoBytesFromAnother) {
  constexpr uint32_t kPages = 8000;
  constexpr uint32_t kBytes = 4096;
  PinPool<> pool(Channel(shm::kMaxPinLines), uint64_t{kPages} * kBytes);
  Lane<> one(pool, 0);
  Lane<> two(pool, 1);
  std::vector<Pinned> pages;
  for (uint32_t i = 0; i < 7900; ++i)
    pages.push_back(PinOne(one, i, kBytes));
  ASSERT_NE(pages.back().pin, nullptr);
  one.Release(pages);
  uint32_t pinned = 0;
  while (PinOne(two, pinned, kBytes).pin != nullptr)
    ++pinned;
  EXPECT_LE(pinned, kPages);
  EXPECT_GE(pinned, kPages - 2 * kPages / 1024 - 1);  // Two chunks and a page.
}

TEST_F(Lanes, BudgetOfBytesIsKeptAcrossLanes) {
  constexpr uint64_t kBudget = 1000 * 256;
  PinPool<> pool(Channel(shm::kMaxPinLines), kBudget);
  Lane<> one(pool, 0);
  Lane<> two(pool, 1);
  std::vector<Pinned> pages;
  while (true) {
    pages.push_back(PinOne(one, 1, 700));
    if (pages.back().pin == nullptr) break;
    pages.push_back(PinOne(two, 1, 300));
    if (pages.back().pin == nullptr) break;
  }
  const uint64_t held = one.pinned_bytes() + two.pinned_bytes();
  EXPECT_LE(held, kBudget);
  EXPECT_GT(held, kBudget - 4 * kBudget / 1024 - 700);  // Lanes hold two chunks each unused.
  pages.pop_back();
  for (size_t i = 0; i < pages.size(); ++i)
    ReleaseOne(i % 2 == 0 ? one : two, pages[i]);
}

TEST_F(Lanes, EndOfALaneReturnsAllItsBytes) {
  constexpr uint64_t kBudget = 1000 * 256;
  PinPool<> pool(Channel(shm::kMaxPinLines), kBudget);
  for (int i = 0; i < 100; ++i) {
    Lane<> lane(pool, 0);
    for (uint32_t page = 0; page < 1000; ++page)
      ReleaseOne(lane, PinOne(lane, page, 200));
  }
  Lane<> one(pool, 0);
  Lane<> two(pool, 1);
  EXPECT_NE(PinOne(one, 1, kBudget).pin, nullptr);
  EXPECT_EQ(PinOne(two, 1, 1).pin, nullptr);
}

// Lanes that live on a few lines and a few bytes, and take them from each other all the time.
TEST_F(Lanes, ThreadsShareLinesAndBytesAndLoseNone) {
  constexpr uint32_t kLines = 3;
  constexpr uint32_t kBudget = 20 * 1000;
  constexpr int kThreads = 3;
  PinPool<> pool(Channel(kLines), kBudget);
  std::vector<std::unique_ptr<Lane<>>> lanes;
  for (uint32_t i = 0; i < kThreads; ++i)
    lanes.push_back(std::make_unique<Lane<>>(pool, i));
  std::atomic<uint64_t> bytes_held = 0;
  std::atomic<uint64_t> over_budget = 0;
  std::atomic<uint64_t> lost = 0;
  std::atomic<uint64_t> pins = 0;
  std::vector<std::thread> threads;
  for (uint32_t i = 0; i < kThreads; ++i) {
    threads.emplace_back([&, i] {
      Random random(i + 1);
      std::vector<Pinned> held;
      for (uint32_t step = 0; step < 60'000; ++step) {
        const Pinned page = PinOne(*lanes[i], i << 16 | step % 0xffff, 1000);
        if (page.pin != nullptr) {
          ++pins;
          held.push_back(page);
          if (bytes_held.fetch_add(1000) + 1000 > kBudget) ++over_budget;
        }
        while (!held.empty() && (page.pin == nullptr || held.size() > 12 || random.Chance(1, 2))) {
          std::swap(held[random.Below(held.size())], held.back());
          if (*held.back().pin != held.back().handle) ++lost;
          bytes_held.fetch_sub(1000);
          ReleaseOne(*lanes[i], held.back());
          held.pop_back();
          if (page.pin == nullptr && random.Chance(1, 4)) break;
        }
        // Now and then a lane ends, and with it its part of shared lines.
        if (held.empty() && random.Chance(1, 16)) {
          lanes[i].reset();
          lanes[i] = std::make_unique<Lane<>>(pool, i);
        }
      }
      bytes_held.fetch_sub(1000 * held.size());
      lanes[i]->Release(held);
    });
  }
  for (std::thread& thread : threads)
    thread.join();
  EXPECT_EQ(over_budget, 0u);
  EXPECT_EQ(lost, 0u);
  EXPECT_GT(pins, 0u);
  EXPECT_EQ(Marked(), 0u);
  lanes.clear();
  Lane<> lane(pool, 0);
  EXPECT_NE(PinOne(lane, 1, kBudget).pin, nullptr);
  EXPECT_EQ(PinOne(lane, 2, 1).pin, nullptr);
}

TEST_F(Lanes, PageLargerThanTheBudgetIsRefused) {
  PinPool<> pool(Channel(8), 4096);
  Lane<> lane(pool, 0);
  EXPECT_EQ(PinOne(lane, 1, 4097).pin, nullptr);
  EXPECT_NE(PinOne(lane, 1, 4096).pin, nullptr);
  EXPECT_EQ(PinOne(lane, 1, 1).pin, nullptr);
}

TEST_F(Lanes, PinsThatWereNotConfirmedCostNothing) {
  PinPool<> pool(Channel(1), 100);
  Lane<> lane(pool, 0);
  for (int i = 0; i < 1000; ++i) {
    const Pinned page = PinOne(lane, 1, 60);
    ASSERT_NE(page.pin, nullptr);
    lane.Unpin(page.pin, page.bytes);
    EXPECT_EQ(*page.pin, 0u);
  }
  EXPECT_EQ(lane.pins(), 0u);
}

TEST_F(Lanes, RandomUseNeverLosesAWordOrSharesOne) {
  constexpr uint32_t kLines = 40;
  PinPool<> pool(Channel(kLines), kNoLimit);
  std::optional<Lane<>> owned(std::in_place, pool, 0);
  Lane<>& lane = *owned;
  Random random(7);
  std::vector<Pinned> held;
  for (int step = 0; step < 200'000; ++step) {
    // The aim wanders, so that lines are leased and returned again and again.
    const uint64_t aim = (step / 5000 * 97) % (kLines * 8 + 1);
    if (held.size() < aim || held.empty()) {
      const Pinned page = PinOne(lane, static_cast<uint32_t>(step) % shm::kMaxSlots);
      if (held.size() < kLines * 8) {
        ASSERT_NE(page.pin, nullptr) << "with " << held.size() << " held";
        held.push_back(page);
      } else {
        ASSERT_EQ(page.pin, nullptr);
      }
    }
    if (held.size() > aim || random.Chance(1, 3)) {
      std::swap(held[random.Below(held.size())], held.back());
      ASSERT_EQ(*held.back().pin, held.back().handle);
      ReleaseOne(lane, held.back());
      held.pop_back();
    }
    if (step % 1000 == 0) {
      ASSERT_EQ(Marked(), held.size());
    }
  }
  lane.Release(held);
  owned.reset();
  EXPECT_FALSE(AnyMark());
}

// Counts what it does, so that cost is asserted without a clock.
struct CountingAtomics : shm::StdAtomics {
  static inline uint64_t loads = 0;
  static inline uint64_t marks = 0;
  static uint64_t Load(const shm::Word& word, std::memory_order order) {
    ++loads;
    return StdAtomics::Load(word, order);
  }
  static uint64_t FetchOr(shm::Word& word, uint64_t bits, std::memory_order order) {
    ++marks;
    return StdAtomics::FetchOr(word, bits, order);
  }
};

TEST_F(Lanes, PinStaysCheapWithTenThousandHeld) {
  PinPool<CountingAtomics> pool(Channel(shm::kMaxPinLines), kNoLimit);
  Lane<CountingAtomics> lane(pool, 0);
  Random random(3);
  std::vector<Pinned> held;
  const auto pin = [&] {
    Pinned page{.handle = 1, .bytes = 1};
    page.pin = lane.Pin(1, 1);
    ASSERT_NE(page.pin, nullptr);
    held.push_back(page);
  };
  const auto release = [&](size_t i) {
    std::swap(held[i], held.back());
    lane.Release({&held.back(), 1});
    held.pop_back();
  };
  for (int i = 0; i < 10'000; ++i)
    pin();
  CountingAtomics::loads = CountingAtomics::marks = 0;
  constexpr uint64_t kTimes = 100'000;
  for (uint64_t i = 0; i < kTimes; ++i) {
    pin();
    release(random.Below(held.size()));
  }
  EXPECT_LE(CountingAtomics::loads, 16 * kTimes);
  EXPECT_LE(CountingAtomics::marks, kTimes / 4);
  // Pin and release of the newest, as a single lookup does.
  CountingAtomics::loads = CountingAtomics::marks = 0;
  for (uint64_t i = 0; i < kTimes; ++i) {
    pin();
    release(held.size() - 1);
  }
  EXPECT_LE(CountingAtomics::loads, 2 * kTimes);
  EXPECT_LE(CountingAtomics::marks, 2u);
}

TEST_F(Lanes, ReleaseComesFromAnyThread) {
  PinPool<> pool(Channel(64), kNoLimit);
  Lane<> lane(pool, 0);
  constexpr int kRounds = 2000;
  std::atomic<int> released = 0;
  std::vector<Pinned> mailbox[2];
  std::atomic<int> full = 0;  // Rounds handed over.
  std::thread other([&] {
    for (int round = 0; round < kRounds; ++round) {
      while (full.load(std::memory_order_acquire) <= round)
        std::this_thread::yield();
      lane.Release(mailbox[round % 2]);
      released.store(round + 1, std::memory_order_release);
    }
  });
  for (int round = 0; round < kRounds; ++round) {
    // The other thread still releases the round before this one meanwhile.
    while (released.load(std::memory_order_acquire) < round - 1)
      std::this_thread::yield();
    mailbox[round % 2].clear();
    for (uint32_t i = 0; i < 100; ++i) {
      mailbox[round % 2].push_back(PinOne(lane, i));
      EXPECT_NE(mailbox[round % 2].back().pin, nullptr);
    }
    full.store(round + 1, std::memory_order_release);
  }
  other.join();
  EXPECT_EQ(lane.pins(), 0u);
  EXPECT_EQ(Marked(), 0u);
}

TEST_F(Lanes, FullRingDropsAndCounts) {
  PinPool<> pool(Channel(8), kNoLimit);
  Lane<> lane(pool, 2);
  const shm::Ring& ring = memory_.channel().rings[2];
  for (uint64_t i = 0; i < shm::kRingRecords + 10; ++i)
    lane.Record(1, i, 0, 0);
  EXPECT_EQ(ring.head, 0u);
  lane.Publish();
  EXPECT_EQ(ring.head, shm::kRingRecords);
  EXPECT_EQ(memory_.channel().counters[2].dropped, 10u);
  memory_.channel().rings[2].tail = 3;  // The daemon has read three.
  for (uint64_t i = 0; i < 5; ++i)
    lane.Record(1, 5000 + i, 0, 0);
  lane.Publish();
  EXPECT_EQ(ring.head, shm::kRingRecords + 3);
  EXPECT_EQ(ring.records[2].key[0], 5002u);
  EXPECT_EQ(memory_.channel().counters[2].dropped, 12u);
}

TEST_F(Lanes, NextLaneOfTheSameIndexGoesOnInTheRing) {
  PinPool<> pool(Channel(8), kNoLimit);
  {
    Lane<> lane(pool, 2);
    lane.Record(1, 10, 0, 0);
    lane.Publish();
    lane.CountHits(shm::Tier::kHost, 2);
  }
  Lane<> lane(pool, 2);
  EXPECT_EQ(memory_.channel().lanes, 1u << 2);
  lane.Record(1, 11, 0, 0);
  lane.Publish();
  EXPECT_EQ(memory_.channel().rings[2].head, 2u);
  EXPECT_EQ(memory_.channel().rings[2].records[1].key[0], 11u);
  lane.CountMisses(shm::Miss::kDisconnected, 3);
  lane.CountLost(shm::Tier::kHost, shm::Miss::kUnmapped, 1);
  const shm::LaneCounters& counters = memory_.channel().counters[2];
  EXPECT_EQ(counters.lookups, 5u);
  EXPECT_EQ(counters.hits[static_cast<int>(shm::Tier::kHost)], 1u);
  EXPECT_EQ(counters.misses[static_cast<int>(shm::Miss::kDisconnected)], 3u);
  EXPECT_EQ(counters.misses[static_cast<int>(shm::Miss::kUnmapped)], 1u);
}

}  // namespace
}  // namespace terrace
