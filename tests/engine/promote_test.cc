// From the store back into memory: flights, their waiters, faults, and pages that are held.
#include "daemon/engine/store/promote.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/engine/store_world.h"

namespace terrace {
namespace {

using testing::Each;
using testing::ElementsAre;

constexpr uint32_t kPage = StoreWorld::kPage;

class PromoteTest : public testing::Test {
 protected:
  PromoteTest() : client(w), space(client.Open()) {
    client.PutChain(space, 0, 8);
    w.world.Settle();
    w.EvictAll();
  }
  ~PromoteTest() override { EXPECT_EQ(w.world.engine->CheckInvariants(), Status()); }
  Engine& engine() { return *w.world.engine; }

  StoreWorld w;
  StoringClient client;
  const SpaceGiven space;
};

TEST_F(PromoteTest, StoredPagesComeBackWithTheirBytes) {
  const auto fetch = client.Prefetch(space, 0, 8);
  EXPECT_FALSE(fetch->answer.has_value());
  w.world.clock.Advance(3 * kNsPerMs);
  EXPECT_EQ(w.store.read_calls(), 1u) << "one read for the batch";
  EXPECT_EQ(client.Find(space, 0), std::nullopt) << "invisible before it has checked out";
  EXPECT_EQ(engine().Summary().filling_bytes, 8 * kPage);
  w.store.RunPending();
  EXPECT_THAT(fetch->codes(), Each(Code::kOk));
  EXPECT_EQ((*fetch->answer)->worth, 8u);
  for (uint64_t key = 0; key < 8; ++key)
    EXPECT_TRUE(client.Reads(space, key)) << key;
  EXPECT_EQ(w.Figures().promoted.extents, 8u);
  EXPECT_EQ(engine().Figures().tenants[0].pages.promoted.extents, 8u);
  const Durations& times = w.Figures().promote_times;
  EXPECT_EQ(times.total_ns, 8 * 3 * kNsPerMs);
  EXPECT_EQ(times.counts[5], 8u) << "of more than 2 ms, and at most 5";
  EXPECT_EQ(engine().Summary().filling_bytes, 0u);
}

TEST_F(PromoteTest, APromotedPageIsNotWrittenAgain) {
  client.Prefetch(space, 0, 8);
  w.world.Settle();
  EXPECT_EQ(w.Figures().spilled.extents, 8u);
  w.world.clock.Advance(kNsPerSecond * 10);
  w.world.Settle();
  w.EvictAll();
  EXPECT_EQ(engine().Figures().tenants[0].pages.evicted_unstored.extents, 0u);
}

TEST_F(PromoteTest, WhatIsInMemoryIsAnsweredAtOnce) {
  client.PutChain(space, 0, 2);
  const auto fetch = client.Prefetch(space, 0, 2);
  ASSERT_TRUE(fetch->answer.has_value());
  EXPECT_THAT(fetch->codes(), Each(Code::kOk));
  EXPECT_EQ(w.store.read_calls(), 0u);
}

TEST_F(PromoteTest, BehindAGapNothingIsFetched) {
  client.Drop(space, 2);
  const auto fetch = client.Prefetch(space, 0, 5);
  w.store.RunPending();
  EXPECT_THAT(fetch->codes(),
              ElementsAre(Code::kOk, Code::kOk, Code::kNotFound, Code::kNotFound, Code::kNotFound));
  EXPECT_EQ((*fetch->answer)->worth, 2u);
}

TEST_F(PromoteTest, OnePageIsReadOnceHoweverManyWait) {
  StoringClient other(w);
  const SpaceGiven theirs = other.Open();
  const auto one = client.Prefetch(space, 0, 4);
  const auto two = other.Prefetch(theirs, 0, 6);
  EXPECT_EQ(w.Figures().reading_pages, 6u);
  w.store.RunPending();
  EXPECT_THAT(one->codes(), Each(Code::kOk));
  EXPECT_THAT(two->codes(), Each(Code::kOk));
  EXPECT_EQ(w.Figures().promoted.extents, 6u);
  EXPECT_EQ(w.Figures().holds, 10u);
}

TEST_F(PromoteTest, AKeyNamedTwiceIsReadOnce) {
  auto fetch = std::make_shared<StoringClient::Fetch>();
  fetch->keys = {KeyOf(1), KeyOf(1)};
  engine().Prefetch(client.given.id,
                    {.slot = space.slot, .epoch = space.epoch, .keys = fetch->keys},
                    [fetch](Result<Prefetched> answer) { fetch->answer = std::move(answer); });
  EXPECT_EQ(w.Figures().reading_pages, 1u);
  w.store.RunPending();
  EXPECT_THAT(fetch->codes(), ElementsAre(Code::kOk, Code::kOk));
}

// ---- Held pages

TEST_F(PromoteTest, AFetchedPageIsHeldUntilItsClientHasPinnedIt) {
  client.Prefetch(space, 0, 1);
  w.store.RunPending();
  const shm::Handle handle = client.Find(space, 0).value();
  w.EvictAll();
  EXPECT_EQ(client.Find(space, 0), handle) << "nobody has pinned it, and it stays";
  const uint32_t pin = client.channel.Pin(handle);
  client.channel.Touch(handle);
  w.EvictAll();
  EXPECT_EQ(w.Figures().holds, 0u) << "its ring tells of the hit";
  EXPECT_EQ(client.Find(space, 0), handle) << "and the pin keeps it";
  client.channel.Unpin(pin);
  w.EvictAll();
  EXPECT_EQ(client.Find(space, 0), std::nullopt);
}

TEST_F(PromoteTest, APinOfSomebodyElseEndsNoHold) {
  StoringClient other(w);
  (void)other.Open();
  client.Prefetch(space, 0, 1);
  w.store.RunPending();
  const shm::Handle handle = client.Find(space, 0).value();
  const uint32_t pin = other.channel.Pin(handle);
  other.channel.Touch(handle);
  w.EvictAll();
  other.channel.Unpin(pin);
  w.EvictAll();
  EXPECT_EQ(client.Find(space, 0), handle);
}

TEST_F(PromoteTest, AHitInTheRingEndsTheHold) {
  client.Prefetch(space, 0, 1);
  w.store.RunPending();
  client.channel.Touch(client.Find(space, 0).value());
  (void)engine().Turn();
  EXPECT_EQ(w.Figures().holds, 0u);
}

TEST_F(PromoteTest, WhatWasFoundBeforeItWasAskedForEndsNoHold) {
  client.PutChain(space, 0, 1);
  const shm::Handle handle = client.Find(space, 0).value();
  const uint32_t pin = client.channel.Pin(handle);
  client.channel.Touch(handle);  // Of another request, a moment ago.
  client.Prefetch(space, 0, 1);
  w.EvictAll();
  client.channel.Unpin(pin);
  w.EvictAll();
  EXPECT_EQ(w.Figures().holds, 1u);
  EXPECT_EQ(client.Find(space, 0), handle);
  client.channel.Touch(handle);
  w.EvictAll();
  EXPECT_EQ(client.Find(space, 0), std::nullopt) << "now it was found";
}

TEST_F(PromoteTest, ARecordOfAnotherPageInThatSlotEndsNoHold) {
  client.Prefetch(space, 0, 1);
  w.store.RunPending();
  const shm::Handle handle = client.Find(space, 0).value();
  client.channel.Touch(
      shm::MakeHandle(shm::ArenaOf(handle), shm::SlotOf(handle), shm::SequenceOf(handle) - 1));
  w.EvictAll();
  EXPECT_EQ(client.Find(space, 0), handle);
}

TEST_F(PromoteTest, TheDeadlineEndsTheHold) {
  client.Prefetch(space, 0, 1, {.deadline_ms = 50});
  w.store.RunPending();
  w.world.clock.Advance(51 * kNsPerMs);
  (void)engine().Turn();
  w.EvictAll();
  EXPECT_EQ(client.Find(space, 0), std::nullopt);
}

TEST_F(PromoteTest, ADropEndsTheHold) {
  client.Prefetch(space, 0, 1);
  w.store.RunPending();
  client.Drop(space, 0);
  w.world.Settle();
  EXPECT_EQ(w.Figures().holds, 0u);
  EXPECT_EQ(engine().Summary().limbo_pages, 0u);
}

TEST_F(PromoteTest, WhoIsGoneHoldsNothing) {
  const auto fetch = client.Prefetch(space, 0, 4);
  engine().ClientGone(client.given.id);
  EXPECT_TRUE(fetch->answer.has_value()) << "answered all the same";
  EXPECT_EQ(w.Figures().holds, 0u);
  EXPECT_EQ(w.Figures().requests, 0u);
  w.store.RunPending();
  w.EvictAll();
  EXPECT_EQ(engine().Summary().pages, 0u);
}

TEST_F(PromoteTest, AClientHoldsNoMoreThanItMayPin) {
  StoringClient small(w, "t", true);
  EngineOptions options = StoreWorld::Options();
  options.max_pinned_bytes = 3 * kPage;
  ClientLimits limits = options;
  ASSERT_TRUE(engine().SetClientLimits(limits).ok());
  StoringClient modest(w);
  const SpaceGiven theirs = modest.Open();
  const auto fetch = modest.Prefetch(theirs, 0, 5);
  w.store.RunPending();
  EXPECT_THAT(fetch->codes(),
              ElementsAre(Code::kOk, Code::kOk, Code::kOk, Code::kExhausted, Code::kExhausted));
  EXPECT_EQ(w.Figures().held_bytes, 3 * kPage);
}

class SmallBudget : public PromoteTest {
 protected:
  SmallBudget() : modest(OfThreePages()), theirs(modest.Open()) {}
  StoringClient OfThreePages() {
    EngineOptions options = StoreWorld::Options();
    options.max_pinned_bytes = 3 * kPage;
    TERRACE_CHECK(engine().SetClientLimits(options).ok());
    return StoringClient(w);
  }
  uint32_t Pin(uint64_t key) { return modest.channel.Pin(modest.Find(theirs, key).value()); }
  // Two pages were pinned when pins were looked for last, and are not any more.
  void PinAndUnpinTwo() {
    modest.PutChain(theirs, 0, 2);
    const uint32_t one = Pin(0);
    const uint32_t two = Pin(1);
    w.EvictAll();  // A scan.
    modest.channel.Unpin(one);
    modest.channel.Unpin(two);
  }

  StoringClient modest;
  const SpaceGiven theirs;
};

TEST_F(SmallBudget, WhatIsPinnedIsNotThereForHolds) {
  modest.PutChain(theirs, 0, 2);
  Pin(0);
  Pin(1);
  w.EvictAll();  // A scan.
  const auto fetch = modest.Prefetch(theirs, 4, 3);
  w.store.RunPending();
  EXPECT_THAT(fetch->codes(), ElementsAre(Code::kOk, Code::kExhausted, Code::kExhausted));
}

TEST_F(SmallBudget, PinsThatAreGoneRefuseNothing) {
  PinAndUnpinTwo();
  w.world.clock.Advance(kNsPerSecond);
  const auto fetch = modest.Prefetch(theirs, 4, 3);
  w.store.RunPending();
  EXPECT_THAT(fetch->codes(), Each(Code::kOk));
}

TEST_F(SmallBudget, ScansForPrefetchesAreRationed) {
  PinAndUnpinTwo();
  const auto at_once = modest.Prefetch(theirs, 4, 3);
  w.store.RunPending();
  EXPECT_THAT(at_once->codes(), ElementsAre(Code::kOk, Code::kExhausted, Code::kExhausted));
}

TEST_F(SmallBudget, WhoIsFoundOverItsBudgetByAPrefetchIsCut) {
  modest.PutChain(theirs, 0, 4);
  Pin(0);
  w.EvictAll();  // A scan.
  modest.PutChain(theirs, 0, 4);
  for (uint64_t key = 0; key < 4; ++key)
    Pin(key);
  w.world.clock.Advance(kNsPerSecond);
  const auto fetch = modest.Prefetch(theirs, 4, 3);
  ASSERT_TRUE(fetch->answer.has_value());
  EXPECT_EQ(fetch->answer->status().code(), Code::kPermissionDenied);
  EXPECT_EQ(w.Figures().holds, 0u);
  EXPECT_EQ(w.Figures().requests, 0u);
  (void)engine().Turn();
  EXPECT_TRUE(w.world.events.cut.contains(modest.given.id));
}

class TwoReadsAtATime : public testing::Test {
 protected:
  static EngineOptions TwoPages() {
    EngineOptions options = StoreWorld::Options();
    options.store.max_reading_pages = 2;
    return options;
  }
  StoreWorld w{TwoPages()};
};

// What one device does not let go of keeps nobody from what others have.
TEST_F(TwoReadsAtATime, ReadsThatAreOverdueCountAgainstMemoryAndNotAgainstOtherReads) {
  StoringClient client(w);
  const SpaceGiven space = client.Open();
  client.PutChain(space, 0, 6);
  w.world.Settle();
  w.EvictAll();
  for (int i = 0; i < 2; ++i)
    w.store.slow_faults.FailAfter(i, Status(Code::kDeadlineExceeded, "slow"));
  const auto hung = client.Prefetch(space, 0, 2);
  w.store.RunPending();
  EXPECT_THAT(hung->codes(), Each(Code::kDeadlineExceeded));
  EXPECT_EQ(w.Figures().reading_bytes, 2 * kPage) << "the device has it";
  const auto fetch = client.Prefetch(space, 2, 4);
  w.world.Settle();
  ASSERT_TRUE(fetch->answer.has_value());
  EXPECT_THAT(fetch->codes(), Each(Code::kOk));
  EXPECT_EQ(w.world.engine->CheckInvariants(), Status());
  std::optional<Result<Promoted>> promoted;
  w.world.engine->Promote({}, {}, [&](Result<Promoted> answer) { promoted = std::move(answer); });
  w.world.Settle();
  EXPECT_TRUE(promoted.has_value());
  w.store.EndOverdue();
  EXPECT_EQ(w.Figures().reading_bytes, 0u);
  EXPECT_EQ(w.world.engine->CheckInvariants(), Status());
}

TEST_F(PromoteTest, HoldsAndPinsAreTogetherNoMoreThanAClientMayPin) {
  EngineOptions options = StoreWorld::Options();
  options.max_pins = shm::kPinsPerLine;
  ASSERT_TRUE(engine().SetClientLimits(options).ok());
  StoringClient modest(w);
  const SpaceGiven theirs = modest.Open();
  modest.PutChain(theirs, 0, 1);
  for (uint32_t pin = 0; pin < shm::kPinsPerLine - 1; ++pin)
    modest.channel.Pin(modest.Find(theirs, 0).value());
  w.EvictAll();  // A scan.
  const auto fetch = modest.Prefetch(theirs, 4, 2);
  w.store.RunPending();
  EXPECT_THAT(fetch->codes(), ElementsAre(Code::kOk, Code::kExhausted));
}

TEST_F(SmallBudget, HoldsGiveWayToPins) {
  modest.Prefetch(theirs, 4, 1, {.deadline_ms = 500});
  modest.Prefetch(theirs, 5, 2, {.deadline_ms = 100});
  w.store.RunPending();
  EXPECT_EQ(w.Figures().holds, 3u);
  modest.PutChain(theirs, 0, 2);
  Pin(0);
  Pin(1);
  w.EvictAll();
  EXPECT_EQ(w.Figures().held_bytes, kPage);
  EXPECT_TRUE(modest.Reads(theirs, 4)) << "the others' time was over first";
  EXPECT_FALSE(modest.Reads(theirs, 5));
  EXPECT_TRUE(modest.Reads(theirs, 0));
  EXPECT_TRUE(w.world.events.cut.empty());
}

TEST_F(PromoteTest, FetchingDoesNotEvictWhatIsHeldForTheSameRequest) {
  // Memory has 16 pages: eight are in memory and the oldest, eight come from the store.
  client.PutChain(space, 0, 8);
  client.PutChain(space, 8, 8);
  w.world.Settle();
  client.PutChain(space, 100, 8);  // Takes the place of the oldest: 0 to 7.
  w.world.Settle();
  const auto fetch = client.Prefetch(space, 0, 16);
  w.world.Settle();
  EXPECT_THAT(fetch->codes(), Each(Code::kOk));
  for (uint64_t key = 0; key < 16; ++key)
    EXPECT_TRUE(client.Reads(space, key)) << key;
}

// ---- Faults

class EachFault : public PromoteTest, public testing::WithParamInterface<ReadFault> {};

TEST_P(EachFault, IsAMissAndNeverData) {
  const bool lost = GetParam() != ReadFault::kIo && GetParam() != ReadFault::kRefused;
  w.store.Corrupt(client.NameOf(space, 1), GetParam());
  const auto fetch = client.Prefetch(space, 0, 3);
  w.store.RunPending();
  EXPECT_THAT(fetch->codes(),
              ElementsAre(Code::kOk, lost ? Code::kDataLoss : Code::kUnavailable, Code::kOk));
  EXPECT_EQ(client.Find(space, 1), std::nullopt);
  EXPECT_EQ(w.Faults(GetParam()), 1u);
  w.world.Settle();
  EXPECT_EQ(w.store.Has(client.NameOf(space, 1)), !lost) << "kept unless it can never be right";
  EXPECT_EQ(engine().Summary().filling_bytes, 0u);
  EXPECT_EQ(w.Figures().holds, 2u);
}
INSTANTIATE_TEST_SUITE_P(Promote, EachFault,
                         testing::Values(ReadFault::kIo, ReadFault::kHeader, ReadFault::kName,
                                         ReadFault::kStale, ReadFault::kData));

TEST_F(PromoteTest, AnOverdueReadAnswersAndKeepsItsSlotUntilItEnds) {
  w.store.slow_faults.FailAfter(0, Status(Code::kDeadlineExceeded, "slow"));
  const auto fetch = client.Prefetch(space, 0, 1);
  w.store.RunPending();
  EXPECT_THAT(fetch->codes(), ElementsAre(Code::kDeadlineExceeded));
  EXPECT_EQ(engine().Summary().filling_bytes, kPage);
  const auto meanwhile = client.Prefetch(space, 0, 1);
  EXPECT_THAT(meanwhile->codes(), ElementsAre(Code::kUnavailable));
  // All of memory is written while the device still writes into that slot.
  for (uint64_t key = 100; key < 140; ++key)
    client.PutChain(space, key, 1);
  w.store.EndOverdue();
  EXPECT_EQ(engine().Summary().filling_bytes, 0u);
  for (uint64_t key = 126; key < 140; ++key)
    EXPECT_TRUE(client.Reads(space, key)) << key;
  const auto again = client.Prefetch(space, 0, 1);
  w.world.Settle();
  EXPECT_THAT(again->codes(), ElementsAre(Code::kOk)) << "it was kept";
}

TEST_F(PromoteTest, ARequestIsAnsweredAtItsDeadlineAndThePageComesLater) {
  const auto fetch = client.Prefetch(space, 0, 2, {.deadline_ms = 20});
  w.world.clock.Advance(21 * kNsPerMs);
  (void)engine().Turn();
  EXPECT_THAT(fetch->codes(), Each(Code::kDeadlineExceeded));
  w.store.RunPending();
  EXPECT_TRUE(client.Reads(space, 0));
  EXPECT_EQ(w.Figures().holds, 0u);
}

TEST_F(PromoteTest, AQuarantinedDeviceIsNotAsked) {
  w.store.SetState(DeviceState::kQuarantined);
  const auto fetch = client.Prefetch(space, 0, 2);
  EXPECT_THAT(fetch->codes(), Each(Code::kNotFound));
  EXPECT_EQ(w.store.read_calls(), 0u);
  w.store.SetState(DeviceState::kServing);
  const auto back = client.Prefetch(space, 0, 2);
  w.store.RunPending();
  EXPECT_THAT(back->codes(), Each(Code::kOk));
}

// ---- What happens while a page is read

TEST_F(PromoteTest, WhatIsDroppedWhileItIsReadDoesNotAppear) {
  const auto fetch = client.Prefetch(space, 0, 1);
  client.Drop(space, 0);
  w.store.RunPending(1);
  EXPECT_THAT(fetch->codes(), ElementsAre(Code::kNotFound));
  EXPECT_EQ(client.Find(space, 0), std::nullopt);
  w.world.Settle();
  EXPECT_FALSE(w.store.Has(client.NameOf(space, 0)));
}

TEST_F(PromoteTest, WhatIsStaleWhenItWasReadDoesNotAppear) {
  const auto fetch = client.Prefetch(space, 0, 1);
  engine().index(client.tenant()).SetGeneration(space.generation_index, space.generation + 1);
  w.store.RunPending();
  EXPECT_THAT(fetch->codes(), ElementsAre(Code::kStale));
  EXPECT_EQ(client.Find(space, 0), std::nullopt);
  EXPECT_EQ(w.Figures().stale_reads, 1u);
  const auto again = client.Prefetch(space, 0, 1);
  EXPECT_THAT(again->codes(), ElementsAre(Code::kNotFound));
}

TEST_F(PromoteTest, ACommitThatIsFirstIsThePageThatIsHeld) {
  const auto fetch = client.Prefetch(space, 0, 1);
  client.PutChain(space, 0, 1);
  const shm::Handle handle = client.Find(space, 0).value();
  w.store.RunPending();
  EXPECT_THAT(fetch->codes(), ElementsAre(Code::kOk));
  w.EvictAll();
  EXPECT_EQ(client.Find(space, 0), handle);
  EXPECT_EQ(w.Figures().holds, 1u);
  EXPECT_EQ(engine().Summary().filling_bytes, 0u);
}

TEST_F(PromoteTest, WhatIsReadIsNotErasedToMakeRoom) {
  const auto fetch = client.Prefetch(space, 0, 1);
  client.Drop(space, 0);
  for (int turn = 0; turn < 5; ++turn) {
    w.world.clock.Advance(10 * kNsPerMs);
    (void)engine().Turn();
  }
  EXPECT_EQ(w.Figures().erasing_pages, 0u) << "the store would abort";
  w.world.Settle();
  EXPECT_EQ(w.Erased(StoredErasure::kDropped), 1u);
}

// ---- Worth

TEST_F(PromoteTest, LessThanTheFractionIsNotFetched) {
  const auto fetch = client.Prefetch(space, 4, 8, {.min_fraction = 0.6});
  ASSERT_TRUE(fetch->answer.has_value());
  EXPECT_EQ((*fetch->answer)->worth, 0u);
  EXPECT_THAT(fetch->codes(), Each(Code::kNotFound));
  EXPECT_EQ(w.store.read_calls(), 0u);
  const auto enough = client.Prefetch(space, 4, 8, {.min_fraction = 0.5});
  w.store.RunPending();
  EXPECT_EQ((*enough->answer)->worth, 4u);
}

TEST_F(PromoteTest, WhatIsComputedSoonerIsNotFetched) {
  // The store takes ten milliseconds for anything, as the first read shows.
  client.Prefetch(space, 0, 1);
  w.world.clock.Advance(10 * kNsPerMs);
  w.store.RunPending();
  const auto slow = client.Prefetch(space, 1, 3, {.recompute_us_per_page = 1000});
  EXPECT_EQ((*slow->answer)->worth, 0u);
  const auto fetch = client.Prefetch(space, 1, 3, {.recompute_us_per_page = 5000});
  w.store.RunPending();
  EXPECT_EQ((*fetch->answer)->worth, 3u);
  EXPECT_THAT(fetch->codes(), Each(Code::kOk));
}

// ---- Bounds

TEST_F(PromoteTest, ClientsHaveOnlySoManyRequests) {
  for (size_t i = 0; i < Promote::kMaxRequestsOfClient; ++i)
    EXPECT_FALSE(client.Prefetch(space, 0, 1)->answer.has_value());
  const auto refused = client.Prefetch(space, 0, 1);
  ASSERT_TRUE(refused->answer.has_value());
  EXPECT_EQ(refused->answer->error().code(), Code::kExhausted);
  w.store.RunPending();
  EXPECT_TRUE(client.Prefetch(space, 0, 1)->answer.has_value());
}

TEST(PromoteBounds, OnlySoMuchIsReadAtATime) {
  EngineOptions options = StoreWorld::Options();
  options.store.max_reading_pages = 2;
  StoreWorld w(options);
  StoringClient client(w);
  const SpaceGiven space = client.Open();
  client.PutChain(space, 0, 3);
  w.world.Settle();
  w.EvictAll();
  const auto fetch = client.Prefetch(space, 0, 3);
  EXPECT_EQ(w.Figures().reading_pages, 2u);
  EXPECT_EQ(w.store.RunPending(2), 2u);
  EXPECT_FALSE(fetch->answer.has_value());
  EXPECT_EQ(w.Figures().reading_pages, 1u) << "the last had to wait for the others";
  w.store.RunPending();
  EXPECT_THAT(fetch->codes(), Each(Code::kOk));
}

TEST(PromoteBounds, WhatHadNoRoomByTheDeadlineWasNotRead) {
  EngineOptions options = StoreWorld::Options();
  options.store.max_reading_bytes = 2 * kPage;
  StoreWorld w(options);
  StoringClient client(w);
  const SpaceGiven space = client.Open();
  client.PutChain(space, 0, 3);
  w.world.Settle();
  w.EvictAll();
  const auto fetch = client.Prefetch(space, 0, 3, {.deadline_ms = 20});
  EXPECT_FALSE(w.world.engine->Turn()) << "there is nothing to be done until a read ends";
  w.world.clock.Advance(21 * kNsPerMs);
  (void)w.world.engine->Turn();
  EXPECT_THAT(fetch->codes(), Each(Code::kDeadlineExceeded));
  w.store.RunPending();
  EXPECT_FALSE(client.Reads(space, 2)) << "nobody waits for it any more";
  EXPECT_EQ(w.world.engine->CheckInvariants(), Status());
}

TEST(PromoteBounds, APageLargerThanWhatMayBeReadIsReadAlone) {
  EngineOptions options = StoreWorld::Options();
  options.store.max_reading_bytes = kPage / 2;
  StoreWorld w(options);
  StoringClient client(w);
  const SpaceGiven space = client.Open();
  client.PutChain(space, 0, 2);
  w.world.Settle();
  w.EvictAll();
  const auto fetch = client.Prefetch(space, 0, 2);
  EXPECT_EQ(w.Figures().reading_pages, 1u);
  w.world.Settle();
  EXPECT_THAT(fetch->codes(), Each(Code::kOk));
}

class TwoReaders : public testing::TestWithParam<bool> {};

// Whether pages or bytes are what there is too little of.
TEST_P(TwoReaders, WhileOthersWaitAClientReadsHalfOfWhatMayBeRead) {
  EngineOptions options = StoreWorld::Options();
  if (GetParam()) {
    options.store.max_reading_pages = 4;
  } else {
    options.store.max_reading_bytes = 4 * kPage;
  }
  StoreWorld w(options);
  StoringClient one(w);
  StoringClient two(w);
  const SpaceGiven space = one.Open();
  (void)two.Open();
  one.PutChain(space, 0, 8);
  one.PutChain(space, 10, 4);
  w.world.Settle();
  w.EvictAll();
  const auto all = one.Prefetch(space, 0, 8);
  const auto few = two.Prefetch(space, 10, 4);
  EXPECT_EQ(w.Figures().reading_pages, 4u) << "the first had everything while nobody else waited";
  w.store.RunPending(4);
  EXPECT_TRUE(one.Reads(space, 3));
  EXPECT_EQ(w.Figures().reading_pages, 4u);
  w.store.RunPending(4);
  EXPECT_TRUE(one.Reads(space, 5) && two.Reads(space, 11));
  EXPECT_FALSE(one.Reads(space, 6) || two.Reads(space, 12));
  w.world.Settle();
  EXPECT_THAT(all->codes(), Each(Code::kOk));
  EXPECT_THAT(few->codes(), Each(Code::kOk));
  EXPECT_EQ(w.world.engine->CheckInvariants(), Status());
}
INSTANTIATE_TEST_SUITE_P(Promote, TwoReaders, testing::Bool(), [](const auto& each) {
  return std::string(each.param ? "Pages" : "Bytes");
});

TEST(PromoteBounds, MemoryIsGotInSteps) {
  EngineOptions options = StoreWorld::Options();
  constexpr uint32_t kLarge = 1u << 20;
  options.host_capacity_bytes = 48 * kLarge;
  options.slab_bytes = 4 * kLarge;
  options.max_pinned_bytes = 48 * kLarge;
  StoreWorld w(options);
  StoringClient client(w);
  const SpaceGiven space = client.Open(kLarge);
  client.PutChain(space, 0, 20);
  client.PutChain(space, 20, 20);
  w.world.Settle();
  w.EvictAll();
  const auto fetch = client.Prefetch(space, 0, 40);
  EXPECT_EQ(w.Figures().reading_pages, Promote::kStepBytes / kLarge);
  (void)w.world.engine->Turn();
  EXPECT_EQ(w.Figures().reading_pages, 40u);
  w.store.RunPending();
  EXPECT_THAT(fetch->codes(), Each(Code::kOk));
}

TEST(PromoteBounds, AModelsPagesAreNotThoseOfAnother) {
  StoreWorld w;
  StoringClient client(w);
  const auto open = [&](const std::string& model) {
    w.world.sources.AddFile(
        "/" + model,
        {{.name = "w", .dtype = "U8", .shape = {64}, .bytes = std::vector<uint8_t>(64)}});
    ModelSpec spec;
    spec.name = model;
    spec.version = "1";
    spec.tenant = client.tenant();
    spec.source.paths = {"/" + model};
    w.world.engine->AddModel(std::move(spec), [](const Result<ModelAdded>&) {});
    while (w.world.sources.RunPending() + w.world.journal.RunPending() > 0) {
    }
    SpaceSpec wanted;
    wanted.layout = LayoutOf(kPage);
    wanted.model = model;
    const Result<SpaceGiven> space = w.world.engine->OpenSpace(client.given.id, wanted);
    TERRACE_CHECK(space.has_value());
    return *space;
  };
  const SpaceGiven one = open("one");
  client.PutChain(one, 0, 2);
  w.world.Settle();
  w.EvictAll();
  ASSERT_TRUE(w.world.engine->CloseSpace(client.given.id, one.slot, one.epoch).ok());
  const SpaceGiven two = open("two");
  EXPECT_EQ(two.id, one.id);
  EXPECT_THAT(client.Prefetch(two, 0, 2)->codes(), Each(Code::kNotFound));
  w.world.Settle();
  EXPECT_EQ(w.store.pages(), 0u);
  client.PutChain(two, 0, 2);
  w.world.Settle();
  EXPECT_EQ(w.store.pages(), 2u);
  EXPECT_EQ(w.world.engine->CheckInvariants(), Status());
}

}  // namespace
}  // namespace terrace
