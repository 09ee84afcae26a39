// Channels: the daemon sees what honest clients do, and is unharmed by what others write.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>

#include "base/random.h"
#include "tests/heart/plain_memory.h"

namespace terrace {
namespace {

using testing::ElementsAre;
using testing::UnorderedElementsAre;

class Channels : public testing::Test {
 protected:
  void SetUp() override { index_ = *MakeTenantIndex(memory_); }

  // Extents by client.
  std::multimap<ClientId, uint64_t> Scan() {
    std::multimap<ClientId, uint64_t> extents;
    counts_ = index_->ScanPins([&](ClientId client, std::span<const uint64_t> batch) {
      for (const uint64_t extent : batch)
        extents.emplace(client, extent);
    });
    return extents;
  }
  std::vector<TenantIndex::RingVisit> Drain(uint64_t limit) {
    std::vector<TenantIndex::RingVisit> visits;
    drained_ = index_->DrainRings(limit, [&](const auto& visit) { visits.push_back(visit); });
    return visits;
  }
  static void SetPin(shm::Channel& channel, uint32_t line, uint32_t word, shm::Handle handle) {
    channel.upper_summary[line / 4096] |= uint64_t{1} << line / 64 % 64;
    channel.summary[line / 64] |= uint64_t{1} << line % 64;
    channel.lines[line].pins[word] = handle;
  }
  static void Push(shm::Channel& channel, uint32_t lane, uint64_t tag) {
    channel.lanes |= uint64_t{1} << lane;
    shm::Ring& ring = channel.rings[lane];
    ring.records[ring.head % shm::kRingRecords].tag = tag;
    ring.head += 1;
  }

  PlainDirectory memory_;
  std::unique_ptr<TenantIndex> index_;
  PlainChannel one_;
  PlainChannel two_;
  std::vector<TenantIndex::ClientPins> counts_;
  uint64_t drained_ = 0;
};

TEST_F(Channels, DaemonWritesTheHeader) {
  index_->AddChannel(42, one_.span(), 100);
  EXPECT_EQ(one_.channel().magic, shm::kChannelMagic);
  EXPECT_EQ(one_.channel().version, shm::kLayoutVersion);
  EXPECT_EQ(one_.channel().client_id, 42u);
  EXPECT_EQ(one_.channel().pin_lines, 100u);
}

TEST_F(Channels, ScanSeesEveryPinOfEveryClient) {
  index_->AddChannel(1, one_.span(), shm::kMaxPinLines);
  index_->AddChannel(2, two_.span(), shm::kMaxPinLines);
  SetPin(one_.channel(), 0, 0, shm::MakeHandle(3, 4, 5));
  SetPin(one_.channel(), 64, 7, shm::MakeHandle(3, 4, 6));
  SetPin(two_.channel(), 8191, 3, shm::MakeHandle(9, 1, 1));
  EXPECT_THAT(Scan(), UnorderedElementsAre(std::pair(1, shm::ExtentOf(shm::MakeHandle(3, 4, 0))),
                                           std::pair(1, shm::ExtentOf(shm::MakeHandle(3, 4, 0))),
                                           std::pair(2, shm::ExtentOf(shm::MakeHandle(9, 1, 0)))));
  ASSERT_EQ(counts_.size(), 2u);
  EXPECT_EQ(counts_[0].pins, 2u);
  EXPECT_EQ(counts_[1].pins, 1u);
  index_->RemoveChannel(1);
  EXPECT_EQ(Scan().size(), 1u);
}

TEST_F(Channels, MoreThanOneBatchOfPinsIsSeen) {
  index_->AddChannel(1, one_.span(), shm::kMaxPinLines);
  for (uint32_t i = 0; i < 10'000; ++i) {
    SetPin(one_.channel(), i / 8, i % 8, shm::MakeHandle(1, i, 1));
  }
  EXPECT_EQ(Scan().size(), 10'000u);
  EXPECT_EQ(counts_[0].pins, 10'000u);
}

TEST_F(Channels, PinsBeyondTheGrantedLinesDoNotCount) {
  index_->AddChannel(1, one_.span(), 70);
  SetPin(one_.channel(), 69, 0, shm::MakeHandle(1, 1, 1));
  SetPin(one_.channel(), 70, 0, shm::MakeHandle(1, 2, 1));
  SetPin(one_.channel(), 5000, 0, shm::MakeHandle(1, 3, 1));
  EXPECT_EQ(Scan().size(), 1u);
}

TEST_F(Channels, RingRecordsArriveInOrderWithinTheLimit) {
  index_->AddChannel(1, one_.span(), 8);
  for (uint32_t part = 0; part < 5; ++part) {
    Push(one_.channel(), 3, shm::PackTag(shm::RingKind::kTouch, 77, part));
  }
  auto visits = Drain(2);
  ASSERT_EQ(visits.size(), 2u);
  EXPECT_EQ(visits[1].part, 1u);
  EXPECT_EQ(visits[1].space_slot, 77u);
  EXPECT_EQ(one_.channel().rings[3].tail, 2u);
  visits = Drain(100);
  ASSERT_EQ(visits.size(), 3u);
  EXPECT_EQ(visits[0].part, 2u);
  EXPECT_EQ(drained_, 3u);
  EXPECT_TRUE(Drain(100).empty());
}

TEST_F(Channels, BusyClientDoesNotKeepOthersWaiting) {
  index_->AddChannel(1, one_.span(), 8);
  index_->AddChannel(2, two_.span(), 8);
  for (uint32_t i = 0; i < shm::kRingRecords; ++i) {
    Push(one_.channel(), 0, shm::PackTag(shm::RingKind::kTouch, 1, i));
  }
  Push(two_.channel(), 0, shm::PackTag(shm::RingKind::kMiss, 2, 0));
  bool heard = false;
  for (int turn = 0; turn < 2; ++turn) {
    for (const auto& visit : Drain(10))
      heard |= visit.kind == shm::RingKind::kMiss;
  }
  EXPECT_TRUE(heard);
}

TEST_F(Channels, OneClientIsDrainedAPartAtATimeAndNothingOfOthers) {
  index_->AddChannel(1, one_.span(), 8);
  index_->AddChannel(2, two_.span(), 8);
  constexpr uint32_t kLanes = 6;
  for (uint32_t lane = 0; lane < kLanes; ++lane) {
    for (uint32_t i = 0; i < shm::kRingRecords; ++i)
      Push(one_.channel(), lane, shm::PackTag(shm::RingKind::kTouch, lane, 0));
  }
  Push(two_.channel(), 0, shm::PackTag(shm::RingKind::kTouch, 0, 0));
  uint64_t visits = 0;
  const auto visit_one = [&](const auto& visit) { visits += visit.client == 1 ? 1 : 0; };
  index_->DrainRingsOf(1, visit_one);
  EXPECT_EQ(visits, 4096u) << "no client keeps others waiting";
  index_->DrainRingsOf(1, visit_one);
  EXPECT_EQ(visits, uint64_t{kLanes} * shm::kRingRecords);
  EXPECT_EQ(Drain(UINT64_MAX).size(), 1u) << "the other's";
  index_->DrainRingsOf(3, [](const auto&) { FAIL() << "nobody has that name"; });
}

TEST_F(Channels, ImpossibleRingHeadIsSkippedAndCounted) {
  index_->AddChannel(1, one_.span(), 8);
  Push(one_.channel(), 0, shm::PackTag(shm::RingKind::kTouch, 1, 0));
  EXPECT_EQ(Drain(10).size(), 1u);
  for (const uint64_t head : {uint64_t{0}, uint64_t{2 + shm::kRingRecords}, UINT64_MAX}) {
    one_.channel().rings[0].head = head;
    const uint64_t dropped = index_->totals().dropped;
    EXPECT_TRUE(Drain(10).empty()) << head;
    EXPECT_EQ(index_->totals().dropped, dropped + 1) << head;
    EXPECT_EQ(one_.channel().rings[0].tail, head);
    // From there on it works again.
    Push(one_.channel(), 0, shm::PackTag(shm::RingKind::kTouch, 1, 9));
    EXPECT_EQ(Drain(10).size(), 1u) << head;
  }
}

TEST_F(Channels, TailWrittenByTheClientIsNotBelieved) {
  index_->AddChannel(1, one_.span(), 8);
  Push(one_.channel(), 0, shm::PackTag(shm::RingKind::kTouch, 1, 0));
  one_.channel().rings[0].tail = 1000;
  EXPECT_EQ(Drain(10).size(), 1u);
  EXPECT_EQ(one_.channel().rings[0].tail, 1u);
}

TEST_F(Channels, RecordOfNoKnownKindIsSkippedAndCounted) {
  index_->AddChannel(1, one_.span(), 8);
  Push(one_.channel(), 0, 0);
  Push(one_.channel(), 0, 0xff);
  Push(one_.channel(), 0, shm::PackTag(shm::RingKind::kMiss, 1, 0));
  EXPECT_EQ(Drain(10).size(), 1u);
  EXPECT_EQ(index_->totals().dropped, 2u);
}

TEST_F(Channels, CountersOfEndedAndLiveClientsAddUp) {
  index_->AddChannel(1, one_.span(), 8);
  index_->AddChannel(2, two_.span(), 8);
  for (PlainChannel* channel : {&one_, &two_}) {
    channel->channel().lanes = 1u << 5;
    shm::LaneCounters& counters = channel->channel().counters[5];
    counters.lookups = 10;
    counters.hits[static_cast<int>(shm::Tier::kHost)] = 7;
    counters.misses[static_cast<int>(shm::Miss::kBusy)] = 3;
    counters.dropped = 1;
  }
  const auto expect = [](const ChannelTotals& totals, uint64_t times) {
    EXPECT_EQ(totals.lookups, 10 * times);
    EXPECT_EQ(totals.hits[static_cast<int>(shm::Tier::kHost)], 7 * times);
    EXPECT_EQ(totals.misses[static_cast<int>(shm::Miss::kBusy)], 3 * times);
    EXPECT_EQ(totals.dropped, times);
  };
  expect(index_->totals(), 2);
  expect(index_->totals_of(2), 1);
  index_->RemoveChannel(1);
  expect(index_->totals(), 2);
  expect(index_->totals_of(1), 0);
  index_->RemoveChannel(1);  // Gone already.
  expect(index_->totals(), 2);
}

TEST_F(Channels, CountersThatNoReaderCanHaveWrittenAreNotAddedUp) {
  index_->AddChannel(1, one_.span(), 8);
  one_.channel().lanes = 3;
  shm::LaneCounters& honest = one_.channel().counters[0];
  // Its client was killed when it had counted its lookups, but not yet what became of them: those
  // are none.
  honest.lookups = 500;
  honest.hits[static_cast<int>(shm::Tier::kHost)] = 100;
  const auto expect_one_lane = [](const ChannelTotals& totals) {
    EXPECT_EQ(totals.lookups, 100u);
    EXPECT_EQ(totals.hits[static_cast<int>(shm::Tier::kHost)], 100u);
    EXPECT_EQ(totals.misses[static_cast<int>(shm::Miss::kBusy)], 0u);
    EXPECT_EQ(totals.dropped, 1u);
  };
  shm::LaneCounters& hostile = one_.channel().counters[1];
  hostile.lookups = (1u << 20) + 1;
  expect_one_lane(index_->totals());
  hostile.lookups = hostile.hits[0] = UINT64_MAX;
  expect_one_lane(index_->totals());
  // A sum that overflows to something that fits.
  hostile.lookups = 0;
  hostile.hits[0] = hostile.misses[static_cast<int>(shm::Miss::kBusy)] = uint64_t{1} << 63;
  expect_one_lane(index_->totals());
  hostile.hits[0] = hostile.misses[static_cast<int>(shm::Miss::kBusy)] = 0;
  hostile.dropped = UINT64_MAX;
  expect_one_lane(index_->totals_of(1));
  index_->RemoveChannel(1);
  expect_one_lane(index_->totals());
}

TEST_F(Channels, HitTimesAreBelievedAsFarAsLookupsWereMade) {
  index_->AddChannel(1, one_.span(), 8);
  one_.channel().lanes = 1;
  shm::LaneCounters& counters = one_.channel().counters[0];
  counters.lookups = counters.hits[static_cast<int>(shm::Tier::kHost)] = 10;
  shm::LaneTimes& times = one_.channel().times[0];
  times.buckets[2] = 9;
  times.buckets[shm::kHitTimeBuckets - 1] = 1;
  times.total_ns = 5000;
  EXPECT_EQ(index_->totals().hit_ns, 5000u);
  EXPECT_EQ(index_->totals().hit_times[2], 9u);
  EXPECT_EQ(index_->totals().hit_times[shm::kHitTimeBuckets - 1], 1u);
  const auto expect_no_times = [&] {
    const ChannelTotals totals = index_->totals();
    EXPECT_EQ(totals.hit_ns, 0u);
    for (const uint64_t count : totals.hit_times)
      EXPECT_EQ(count, 0u);
    EXPECT_EQ(totals.lookups, 10u) << "its counters are believed all the same";
  };
  times.buckets[2] = 10;
  expect_no_times();
  // A sum that overflows to something that fits.
  times.buckets[2] = times.buckets[3] = uint64_t{1} << 63;
  expect_no_times();
  times.buckets[2] = times.buckets[3] = 0;
  times.total_ns = UINT64_MAX;
  expect_no_times();
}

TEST_F(Channels, WhatIsToldWasReadLastAndLosesNothingAtTheEnd) {
  index_->AddChannel(1, one_.span(), 8);
  index_->AddChannel(2, two_.span(), 8);
  const auto count = [](PlainChannel& channel, uint64_t lookups) {
    channel.channel().lanes = 1;
    shm::LaneCounters& counters = channel.channel().counters[0];
    counters.lookups = counters.hits[static_cast<int>(shm::Tier::kHost)] = lookups;
  };
  count(one_, 10);
  count(two_, 100);
  EXPECT_EQ(index_->told().totals.lookups, 0u) << "nobody has read them";
  EXPECT_EQ(index_->Reread(0, 1).last, 1u);
  EXPECT_EQ(index_->told().totals.lookups, 10u);
  EXPECT_EQ(index_->Reread(1, 1000).last, 2u);
  EXPECT_EQ(index_->Reread(2, 1000).last, 0u);
  EXPECT_EQ(index_->told().totals.lookups, 110u);
  // What a channel counted after that is told when it ends.
  count(one_, 12);
  EXPECT_EQ(index_->told().totals.lookups, 110u);
  index_->RemoveChannel(1);
  EXPECT_EQ(index_->told().totals.lookups, 112u);
}

TEST_F(Channels, PinsAreToldInStepsOfAboutSoManyLines) {
  index_->AddChannel(1, one_.span(), shm::kMaxPinLines);
  index_->AddChannel(2, two_.span(), 8);
  for (uint32_t line = 0; line < 500; ++line)
    SetPin(one_.channel(), line, line % 8, shm::MakeHandle(1, line, 1));
  SetPin(two_.channel(), 7, 0, shm::MakeHandle(1, 1, 1));
  SetPin(two_.channel(), 8, 0, shm::MakeHandle(1, 1, 1));  // Beyond its lines.
  const TenantIndex::ReadStep step = index_->Reread(0, 100);
  EXPECT_EQ(step.last, 1u) << "one is more than was asked for";
  EXPECT_GE(step.lines, 500u);
  EXPECT_EQ(index_->told().pins, 500u);
  index_->Reread(1, 100);
  EXPECT_EQ(index_->told().pins, 501u);
  index_->RemoveChannel(1);
  EXPECT_EQ(index_->told().pins, 1u);
}

TEST_F(Channels, RecordsThatWaitAreTold) {
  index_->AddChannel(1, one_.span(), 8);
  for (uint32_t part = 0; part < 5; ++part)
    Push(one_.channel(), 3, shm::PackTag(shm::RingKind::kTouch, 77, part));
  Drain(2);
  index_->Reread(0, 1);
  EXPECT_EQ(index_->told().ring_records, 3u);
  one_.channel().rings[3].head = UINT64_MAX;
  index_->Reread(0, 1);
  EXPECT_LE(index_->told().ring_records, shm::kRingRecords);
}

// The daemon is unharmed by any content of a channel: this is for the sanitizers, and for the
// bounds that are checked below.
TEST_F(Channels, AnyContentIsSurvived) {
  PlainChannel honest;
  index_->AddChannel(1, one_.span(), 100);
  index_->AddChannel(2, honest.span(), 100);
  SetPin(honest.channel(), 3, 3, shm::MakeHandle(1, 2, 3));
  for (uint64_t seed = 0; seed < 20; ++seed) {
    Random random(seed);
    uint64_t* const words = reinterpret_cast<uint64_t*>(one_.span().data());
    for (size_t i = 0; i < one_.span().size() / 8; ++i) {
      words[i] = seed % 2 == 0 ? random() : UINT64_MAX;
    }
    const auto extents = Scan();
    EXPECT_EQ(extents.count(2), 1u);
    EXPECT_LE(extents.count(1), 800u);
    Drain(10'000);
    EXPECT_LE(drained_, 10'000u);
    index_->totals();
    index_->Reread(0, UINT64_MAX);
    index_->told();
  }
  index_->RemoveChannel(1);
  EXPECT_EQ(Scan().size(), 1u);
}

}  // namespace
}  // namespace terrace
