// From memory into the store: what is written, what is not and why, what survives the daemon.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "daemon/engine/store/spill.h"
#include "tests/engine/store_world.h"

namespace terrace {
namespace {

using testing::Each;
using testing::ElementsAre;
using testing::HasSubstr;

constexpr uint32_t kPage = StoreWorld::kPage;

class StoreTest : public testing::Test {
 protected:
  ~StoreTest() override { EXPECT_EQ(w.world.engine->CheckInvariants(), Status()); }
  Engine& engine() { return *w.world.engine; }

  StoreWorld w;
};

TEST_F(StoreTest, CommittedPagesAreWrittenBehindTheCommit) {
  StoringClient client(w);
  const SpaceGiven space = client.Open();
  client.PutChain(space, 0, 4);
  EXPECT_EQ(w.store.pages(), 0u);
  w.world.Settle();
  EXPECT_EQ(w.store.pages(), 4u);
  EXPECT_EQ(w.Figures().spill_times.counts[0], 4u);
  EXPECT_EQ(w.store.write_calls(), 1u) << "one commit is one write";
  EXPECT_EQ(w.Figures().spilled.extents, 4u);
  EXPECT_EQ(w.Figures().spilled.bytes, 4 * kPage);
  EXPECT_EQ(engine().Figures().tenants[0].stored[static_cast<int>(ItemClass::kKv)].extents, 4u);
}

TEST_F(StoreTest, NothingIsWrittenBeforeItsSpaceIsOnRecord) {
  StoringClient client(w);
  const SpaceGiven space = client.Open();
  client.PutChain(space, 0, 2);
  (void)engine().Turn();
  EXPECT_EQ(w.store.pending(), 0u);
  EXPECT_EQ(w.world.journal.pending(), 1u);
  EXPECT_EQ(w.Figures().queued_pages, 2u);
  w.world.journal.RunPending();
  EXPECT_EQ(w.store.pending(), 2u) << "it goes on when the journal has answered";
}

TEST_F(StoreTest, WhereTheSpaceCannotBePutOnRecordNothingIsWritten) {
  StoringClient client(w);
  const SpaceGiven space = client.Open();
  w.world.journal.write_faults.FailAfter(0, Status(Code::kExhausted, "planned"));
  client.PutChain(space, 0, 1);
  w.world.Settle();
  EXPECT_EQ(w.store.pages(), 0u);
  EXPECT_EQ(w.Unspilled(Unspilled::kSpace), 1u);
  w.world.clock.Advance(2 * kNsPerSecond);
  client.PutChain(space, 1, 1);
  w.world.Settle();
  EXPECT_EQ(w.store.pages(), 1u) << "the journal works again";
}

TEST_F(StoreTest, AStoredPageIsNotWrittenTwice) {
  StoringClient client(w);
  const SpaceGiven space = client.Open();
  client.PutChain(space, 0, 1);
  w.world.Settle();
  w.EvictAll();
  client.PutChain(space, 0, 1);
  w.world.Settle();
  EXPECT_EQ(w.Figures().spilled.extents, 1u);
  EXPECT_EQ(w.store.pages(), 1u);
}

TEST_F(StoreTest, TheSpacesRecordGoesWithItsLastPage) {
  StoringClient client(w);
  const SpaceGiven space = client.Open();
  client.PutChain(space, 0, 2);
  w.world.Settle();
  EXPECT_EQ(w.world.journal.record_count(), 1u);
  client.Drop(space, 0);
  w.world.Settle();
  EXPECT_EQ(w.world.journal.record_count(), 1u);
  client.Drop(space, 1);
  w.world.Settle();
  EXPECT_EQ(w.world.journal.record_count(), 0u);
  EXPECT_EQ(w.Figures().spaces, 0u);
  client.PutChain(space, 2, 1);
  w.world.Settle();
  EXPECT_EQ(w.world.journal.record_count(), 1u) << "and comes back with the next";
  EXPECT_EQ(w.store.pages(), 1u);
}

// ---- While the device reads the bytes

TEST_F(StoreTest, APageInTransferStaysWhereItIs) {
  StoringClient client(w);
  const SpaceGiven space = client.Open();
  client.PutChain(space, 0, 1);
  (void)engine().Turn();
  w.world.journal.RunPending();
  ASSERT_EQ(w.store.pending(), 1u);
  const shm::Handle handle = client.Find(space, 0).value();
  for (uint64_t key = 100; key < 140; ++key)
    ASSERT_TRUE(client.Put(space, key).has_value()) << "others make room for each other";
  EXPECT_EQ(client.Find(space, 0), handle);
  w.EvictAll();
  EXPECT_EQ(client.Find(space, 0), handle);
  while (w.store.pending() > 0)
    w.store.RunPending();
  w.EvictAll();
  EXPECT_EQ(client.Find(space, 0), std::nullopt);
}

TEST_F(StoreTest, WhatIsDroppedWhileItIsWrittenIsErasedAtOnce) {
  StoringClient client(w);
  const SpaceGiven space = client.Open();
  client.PutChain(space, 0, 1);
  (void)engine().Turn();
  w.world.journal.RunPending();
  EXPECT_EQ(client.Drop(space, 0), 1u);
  for (int turn = 0; turn < 5; ++turn) {
    w.world.clock.Advance(20 * kNsPerMs);
    (void)engine().Turn();
  }
  EXPECT_EQ(engine().Summary().limbo_pages, 1u) << "the device reads it still";
  w.world.Settle();
  EXPECT_EQ(engine().Summary().limbo_pages, 0u);
  EXPECT_EQ(w.store.pages(), 0u);
  EXPECT_EQ(w.Erased(StoredErasure::kDropped), 1u);
}

TEST_F(StoreTest, WhatIsStaleWhenItIsWrittenIsErased) {
  StoringClient client(w);
  const SpaceGiven space = client.Open();
  client.PutChain(space, 0, 1);
  (void)engine().Turn();
  w.world.journal.RunPending();
  engine().index(client.tenant()).SetGeneration(space.generation_index, space.generation + 1);
  w.world.Settle();
  EXPECT_EQ(w.store.pages(), 0u);
  EXPECT_EQ(w.Erased(StoredErasure::kStale), 1u);
}

TEST_F(StoreTest, AnOverdueWriteKeepsItsSlotUntilItEnds) {
  StoringClient client(w);
  const SpaceGiven space = client.Open();
  client.PutChain(space, 0, 1);
  w.store.slow_faults.FailAfter(0, Status(Code::kDeadlineExceeded, "slow"));
  w.world.Settle();
  EXPECT_EQ(w.store.overdue(), 1u);
  EXPECT_EQ(w.Unspilled(Unspilled::kFailed), 1u);
  EXPECT_EQ(w.Figures().used_bytes, 0u);
  w.EvictAll();
  EXPECT_TRUE(client.Find(space, 0).has_value());
  w.store.EndOverdue();
  w.EvictAll();
  EXPECT_FALSE(client.Find(space, 0).has_value());
}

TEST_F(StoreTest, AFailedWriteIsCountedAndThePageStays) {
  StoringClient client(w);
  const SpaceGiven space = client.Open();
  w.store.write_faults.FailAfter(0, Status(Code::kUnavailable, "EIO"));
  client.PutChain(space, 0, 2);
  w.world.Settle();
  EXPECT_EQ(w.store.pages(), 1u);
  EXPECT_EQ(w.Unspilled(Unspilled::kFailed), 1u);
  EXPECT_TRUE(client.Reads(space, 0));
}

TEST_F(StoreTest, NothingIsWrittenToAReadOnlyDevice) {
  StoringClient client(w);
  const SpaceGiven space = client.Open();
  w.store.SetState(DeviceState::kReadOnly);
  client.PutChain(space, 0, 1);
  w.world.Settle();
  EXPECT_EQ(w.store.write_calls(), 0u);
  EXPECT_EQ(w.Unspilled(Unspilled::kDevice), 1u);
}

// ---- Dropping

TEST_F(StoreTest, DropTakesTheStoredCopyToo) {
  StoringClient client(w);
  const SpaceGiven space = client.Open();
  client.PutChain(space, 0, 2);
  w.world.Settle();
  w.EvictAll();
  EXPECT_EQ(client.Drop(space, 0), 1u) << "it was in the store alone";
  EXPECT_EQ(client.Drop(space, 7), 0u);
  w.world.Settle();
  EXPECT_FALSE(w.store.Has(client.NameOf(space, 0)));
  EXPECT_TRUE(w.store.Has(client.NameOf(space, 1)));
}

TEST_F(StoreTest, APageIsWrittenAnewWhenItsOldCopyIsGone) {
  StoringClient client(w);
  const SpaceGiven space = client.Open();
  client.PutChain(space, 0, 1);
  w.world.Settle();
  client.Drop(space, 0);
  client.PutChain(space, 0, 1);
  const auto persisted = client.Persist(space, {0});
  EXPECT_FALSE(persisted->has_value());
  w.world.Settle();
  ASSERT_TRUE(persisted->has_value());
  EXPECT_THAT(***persisted, ElementsAre(Code::kOk));
  EXPECT_EQ(w.store.pages(), 1u);
  EXPECT_EQ(w.Figures().spilled.extents, 2u);
}

TEST_F(StoreTest, AFailedErasureIsTriedAgain) {
  StoringClient client(w);
  const SpaceGiven space = client.Open();
  client.PutChain(space, 0, 1);
  w.world.Settle();
  w.store.erase_faults.FailAfter(0, Status(Code::kUnavailable, "EIO"));
  client.Drop(space, 0);
  w.world.Settle();
  EXPECT_EQ(w.store.pages(), 1u);
  EXPECT_EQ(w.Figures().erasing_pages, 1u);
  w.world.clock.Advance(2 * kNsPerSecond);
  w.world.Settle();
  EXPECT_EQ(w.store.pages(), 0u);
  EXPECT_EQ(w.Figures().erasing_pages, 0u);
}

// ---- Persist

TEST_F(StoreTest, PersistAnswersWhenEachPageIsDurable) {
  StoringClient client(w);
  const SpaceGiven space = client.Open();
  client.PutChain(space, 0, 3);
  w.world.Settle();
  client.PutChain(space, 3, 1);
  w.EvictAll();
  client.PutChain(space, 4, 2);
  const auto persisted = client.Persist(space, {0, 4, 5, 99});
  w.store.RunPending(1);
  EXPECT_FALSE(persisted->has_value()) << "one is not durable yet";
  w.store.RunPending();
  ASSERT_TRUE(persisted->has_value());
  EXPECT_THAT(***persisted, ElementsAre(Code::kOk, Code::kOk, Code::kOk, Code::kNotFound));
  w.world.Restart();
  EXPECT_TRUE(w.store.Has(client.NameOf(space, 4)));
  EXPECT_TRUE(w.store.Has(client.NameOf(space, 5)));
}

TEST_F(StoreTest, APageThatWaitsToBeDurableStaysInMemory) {
  StoringClient client(w);
  const SpaceGiven space = client.Open();
  client.PutChain(space, 0, 1);
  const auto persisted = client.Persist(space, {0});  // Waits for the journal.
  w.EvictAll();
  EXPECT_TRUE(client.Find(space, 0).has_value());
  w.world.Settle();
  EXPECT_THAT(***persisted, ElementsAre(Code::kOk));
}

TEST_F(StoreTest, WhatIsDroppedIsNotDurable) {
  StoringClient client(w);
  const SpaceGiven space = client.Open();
  client.PutChain(space, 0, 2);
  const auto queued = client.Persist(space, {0});
  client.Drop(space, 0);
  w.world.journal.RunPending();
  const auto writing = client.Persist(space, {1});
  client.Drop(space, 1);
  w.world.Settle();
  EXPECT_THAT(***queued, ElementsAre(Code::kNotFound));
  EXPECT_THAT(***writing, ElementsAre(Code::kNotFound));
  EXPECT_EQ(engine().Summary().limbo_pages, 0u);
}

TEST_F(StoreTest, PersistTellsOfFailures) {
  StoringClient client(w);
  const SpaceGiven space = client.Open();
  client.PutChain(space, 0, 1);
  w.store.write_faults.FailAfter(0, Status(Code::kUnavailable, "EIO"));
  const auto failed = client.Persist(space, {0});
  w.world.Settle();
  EXPECT_THAT(***failed, ElementsAre(Code::kUnavailable));
  w.store.SetState(DeviceState::kReadOnly);
  EXPECT_THAT(***client.Persist(space, {0}), ElementsAre(Code::kUnavailable));
}

TEST_F(StoreTest, AFullStoreIsNotADeviceThatTakesNoWrites) {
  StoreWorld full(StoreWorld::Options(),
                  {.capacity_bytes = 2 * (kPage + SimPageStore::kHeaderBytes)});
  StoringClient client(full);
  const SpaceGiven space = client.Open();
  client.PutChain(space, 0, 3);
  const auto all = client.Persist(space, {0, 1, 2});
  full.world.journal.RunPending();
  full.store.RunPending();
  EXPECT_FALSE(all->has_value()) << "the last waits until there is a place for it";
  (void)full.world.engine->Turn();
  full.store.RunPending();
  ASSERT_TRUE(all->has_value()) << "the oldest has left for it";
  EXPECT_THAT(***all, Each(Code::kOk));
  EXPECT_EQ(full.Erased(StoredErasure::kRoom), 1u);
  EXPECT_EQ(full.Unspilled(Unspilled::kPlace), 0u);
  full.store.SetState(DeviceState::kReadOnly);
  EXPECT_THAT(***client.Persist(space, {0}), ElementsAre(Code::kUnavailable));
  EXPECT_EQ(full.world.engine->CheckInvariants(), Status());
}

TEST_F(StoreTest, WhatGotNoPlaceInTimeIsToldSo) {
  StoreWorld tiny(StoreWorld::Options(), {.capacity_bytes = kPage});  // And none for its header.
  StoringClient client(tiny);
  const SpaceGiven space = client.Open();
  client.PutChain(space, 0, 1);
  const auto persisted = client.Persist(space, {0});
  tiny.world.Settle();
  tiny.EvictAll();
  EXPECT_TRUE(client.Find(space, 0).has_value()) << "somebody waits for it";
  EXPECT_FALSE(persisted->has_value());
  tiny.world.clock.Advance(tiny.world.options.store.write_deadline_ms * kNsPerMs);
  (void)tiny.world.engine->Turn();
  ASSERT_TRUE(persisted->has_value());
  EXPECT_THAT(***persisted, ElementsAre(Code::kExhausted));
  EXPECT_EQ(tiny.Unspilled(Unspilled::kPlace), 1u);
  EXPECT_EQ(tiny.Figures().queued_pages, 0u);
  tiny.EvictAll();
  EXPECT_FALSE(client.Find(space, 0).has_value());
}

TEST_F(StoreTest, APlaceThatComesWithoutAnErasureIsFound) {
  StoreWorld one(StoreWorld::Options(), {.capacity_bytes = kPage + SimPageStore::kHeaderBytes});
  StoringClient client(one);
  const SpaceGiven space = client.Open();
  client.PutChain(space, 0, 1);
  (void)one.world.engine->Turn();
  one.world.journal.RunPending();
  client.PutChain(space, 1, 1);
  const auto persisted = client.Persist(space, {1});
  (void)one.world.engine->Turn();  // Nothing can leave: the one page there is is being written.
  one.store.write_faults.FailAfter(0, Status(Code::kUnavailable, "EIO"));
  one.store.RunPending();
  one.world.clock.Advance(Spill::kPlacesAgainNs);
  one.world.Settle();
  ASSERT_TRUE(persisted->has_value());
  EXPECT_THAT(***persisted, ElementsAre(Code::kOk));
}

TEST_F(StoreTest, AWriteThatFoundItsFileSystemFullIsTriedAgain) {
  StoringClient client(w);
  const SpaceGiven space = client.Open();
  client.PutChain(space, 0, 2);
  const auto persisted = client.Persist(space, {0});
  for (int i = 0; i < 2; ++i)
    w.store.write_faults.FailAfter(i, Status(Code::kExhausted, "ENOSPC"));
  w.world.Settle();
  EXPECT_FALSE(persisted->has_value());
  EXPECT_EQ(w.Unspilled(Unspilled::kPlace), 1u) << "that nobody waits for";
  w.world.clock.Advance(Spill::kPlacesAgainNs);
  w.world.Settle();
  ASSERT_TRUE(persisted->has_value());
  EXPECT_THAT(***persisted, ElementsAre(Code::kOk));
  EXPECT_EQ(w.store.pages(), 1u);
}

TEST_F(StoreTest, WhoIsGoneWaitsForNoPlace) {
  StoreWorld tiny(StoreWorld::Options(), {.capacity_bytes = kPage});
  StoringClient client(tiny);
  StoringClient other(tiny);
  const SpaceGiven space = client.Open();
  (void)other.Open();
  client.PutChain(space, 0, 1);
  const auto persisted = client.Persist(space, {0});
  const auto too = other.Persist(space, {0});
  tiny.world.Settle();
  tiny.world.engine->ClientGone(client.given.id);
  ASSERT_TRUE(persisted->has_value());
  EXPECT_FALSE(too->has_value());
  tiny.world.engine->ClientGone(other.given.id);
  ASSERT_TRUE(too->has_value());
  tiny.world.clock.Advance(Spill::kPlacesAgainNs);
  tiny.world.Settle();
  EXPECT_EQ(tiny.Figures().queued_pages, 0u);
  EXPECT_EQ(tiny.world.engine->CheckInvariants(), Status());
}

TEST_F(StoreTest, WhoWaitsForADeviceThatNeverAnswersIsToldInTime) {
  EngineOptions options = StoreWorld::Options();
  options.store.max_writing_pages = 1;
  StoreWorld hung(options);
  StoringClient client(hung);
  const SpaceGiven space = client.Open();
  client.PutChain(space, 0, 2);
  (void)hung.world.engine->Turn();
  hung.world.journal.RunPending();
  const auto queued = client.Persist(space, {1});
  hung.world.clock.Advance((options.store.write_deadline_ms + 1) * kNsPerMs);
  (void)hung.world.engine->Turn();
  ASSERT_TRUE(queued->has_value());
  EXPECT_THAT(***queued, ElementsAre(Code::kUnavailable));
  hung.EvictAll();
  EXPECT_FALSE(client.Find(space, 1).has_value()) << "nothing is held for it any more";
}

TEST_F(StoreTest, WhoIsGoneWaitsForNoPageToBeDurable) {
  StoringClient client(w);
  const SpaceGiven space = client.Open();
  client.PutChain(space, 0, 2);
  const auto queued = client.Persist(space, {0, 1});
  engine().ClientGone(client.given.id);
  ASSERT_TRUE(queued->has_value());
  EXPECT_THAT(***queued, Each(Code::kUnavailable));
  w.EvictAll();
  EXPECT_EQ(engine().Summary().pages, 0u);
}

TEST_F(StoreTest, WhoIsGoneWaitsForNoWriteUnderWay) {
  StoringClient client(w);
  StoringClient other(w);
  const SpaceGiven space = client.Open();
  (void)other.Open();
  client.PutChain(space, 0, 1);
  const auto mine = client.Persist(space, {0});
  const auto theirs = other.Persist(space, {0});
  w.world.journal.RunPending();
  ASSERT_EQ(w.store.pending(), 1u);
  engine().ClientGone(client.given.id);
  ASSERT_TRUE(mine->has_value());
  EXPECT_THAT(***mine, Each(Code::kUnavailable));
  EXPECT_FALSE(theirs->has_value());
  w.store.RunPending();
  EXPECT_THAT(***theirs, ElementsAre(Code::kOk));
}

TEST_F(StoreTest, AWriteThatHangsDoesNotStopOthers) {
  EngineOptions options = StoreWorld::Options();
  options.store.max_writing_pages = 1;
  StoreWorld hung(options);
  StoringClient client(hung);
  const SpaceGiven space = client.Open();
  hung.store.slow_faults.FailAfter(0, Status(Code::kDeadlineExceeded, "slow"));
  client.PutChain(space, 0, 2);
  hung.world.Settle();
  EXPECT_EQ(hung.store.overdue(), 1u);
  EXPECT_TRUE(hung.store.Has(client.NameOf(space, 1)));
  hung.store.EndOverdue();
  EXPECT_EQ(hung.world.engine->CheckInvariants(), Status());
}

TEST_F(StoreTest, ManyWritesThatHangStopOthers) {
  EngineOptions options = StoreWorld::Options();
  options.store.max_writing_pages = 1;
  StoreWorld hung(options);
  StoringClient client(hung);
  const SpaceGiven space = client.Open();
  for (uint64_t i = 0; i < Spill::kOverdueShare; ++i)
    hung.store.slow_faults.FailAfter(i, Status(Code::kDeadlineExceeded, "slow"));
  client.PutChain(space, 0, Spill::kOverdueShare + 2);
  hung.world.Settle();
  EXPECT_EQ(hung.store.overdue(), Spill::kOverdueShare);
  EXPECT_EQ(hung.store.pages(), 0u);
  EXPECT_EQ(hung.Figures().queued_pages, 2u);
  hung.store.EndOverdue(1);
  hung.world.Settle();
  EXPECT_EQ(hung.store.pages(), 2u);
  hung.store.EndOverdue();
  EXPECT_EQ(hung.world.engine->CheckInvariants(), Status());
}

TEST_F(StoreTest, TheOldestLeaveFirstAfterARestartToo) {
  EngineOptions options = StoreWorld::Options();
  options.store.high_percent = 80;
  options.store.low_percent = 80;
  StoreWorld small(options, {.capacity_bytes = 5 * (kPage + SimPageStore::kHeaderBytes)});
  {
    StoringClient client(small);
    const SpaceGiven space = client.Open();
    client.PutChain(space, 0, 2);
    small.world.Settle();
    client.Drop(space, 0);
    small.world.Settle();
    small.world.clock.Advance(kNsPerSecond);
    client.PutChain(space, 2, 2);  // One of them in the place of the first.
    small.world.Settle();
  }
  small.world.Restart();
  StoringClient client(small);
  const SpaceGiven space = client.Open();
  small.world.clock.Advance(kNsPerSecond);
  client.PutChain(space, 4, 1);
  client.PutChain(space, 5, 1);
  (void)client.Persist(space, {5});
  small.world.Settle();
  EXPECT_FALSE(small.store.Has(client.NameOf(space, 1)));
  EXPECT_TRUE(small.store.Has(client.NameOf(space, 2))) << "newer, in an older place";
  EXPECT_TRUE(small.store.Has(client.NameOf(space, 5)));
}

TEST(StoreWithoutPromises, PersistIsAMismatch) {
  StoreWorld w(StoreWorld::Options(), {.durability = Durability::kNone});
  StoringClient client(w);
  const SpaceGiven space = client.Open();
  client.PutChain(space, 0, 1);
  EXPECT_EQ((*client.Persist(space, {0}))->error().code(), Code::kMismatch);
}

TEST(NoStoreTest, VerbsOnStoredPagesAreUnavailable) {
  EngineWorld world;
  ClientOfTest client(world);
  const SpaceGiven space = client.Open();
  ASSERT_TRUE(client.Put(space, 0).has_value());
  const std::vector<Digest> keys = {KeyOf(0), KeyOf(1)};
  world.engine->Persist(client.given.id, {.slot = space.slot, .epoch = space.epoch, .keys = keys},
                        [](const Result<std::vector<Code>>& codes) {
                          EXPECT_EQ(codes.error().code(), Code::kUnavailable);
                        });
  world.engine->Demote(0, {}, [](const Result<Demoted>& demoted) {
    EXPECT_EQ(demoted.error().code(), Code::kUnavailable);
  });
  world.engine->Flush({},
                      [](const Status& flushed) { EXPECT_EQ(flushed.code(), Code::kUnavailable); });
  std::optional<Prefetched> found;
  world.engine->Prefetch(client.given.id, {.slot = space.slot, .epoch = space.epoch, .keys = keys},
                         [&](const Result<Prefetched>& answer) { found = *answer; });
  ASSERT_TRUE(found.has_value()) << "what is in memory is told at once";
  EXPECT_THAT(found->codes, ElementsAre(Code::kOk, Code::kNotFound));
  EXPECT_EQ(found->worth, 1u);
  EXPECT_FALSE(world.engine->Summary().store.present);
}

TEST_F(StoreTest, FlushIsTheStores) {
  StoringClient client(w);
  client.PutChain(client.Open(), 0, 2);
  w.world.Settle();
  std::optional<Status> flushed;
  uint64_t told = 0;
  engine().Flush([&](uint64_t bytes, uint64_t) { told = bytes; },
                 [&](Status status) { flushed = std::move(status); });
  EXPECT_FALSE(flushed.has_value());
  w.store.RunPending();
  EXPECT_EQ(flushed, Status());
  EXPECT_EQ(told, 2 * kPage);
}

// ---- Bounds

TEST(StoreBounds, AFullQueueIsNotSpilled) {
  EngineOptions options = StoreWorld::Options();
  options.store.max_queued_pages = 3;
  StoreWorld w(options);
  StoringClient client(w);
  const SpaceGiven space = client.Open();
  client.PutChain(space, 0, 5);
  EXPECT_EQ(w.Figures().queued_pages, 3u);
  EXPECT_EQ(w.Unspilled(Unspilled::kQueue), 2u);
  w.world.Settle();
  EXPECT_EQ(w.store.pages(), 3u);
}

TEST(StoreBounds, OnlySoMuchIsWrittenAtATime) {
  EngineOptions options = StoreWorld::Options();
  options.store.max_writing_pages = 2;
  StoreWorld w(options);
  StoringClient client(w);
  const SpaceGiven space = client.Open();
  client.PutChain(space, 0, 5);
  (void)w.world.engine->Turn();
  w.world.journal.RunPending();
  EXPECT_EQ(w.store.pending(), 2u);
  EXPECT_EQ(w.Figures().writing_pages, 2u);
  EXPECT_EQ(w.Figures().queued_pages, 3u);
  w.world.Settle();
  EXPECT_EQ(w.store.pages(), 5u);
}

TEST(StoreBounds, TheBudgetEndsWritingForTheDay) {
  EngineOptions options = StoreWorld::Options();
  options.store.write_bytes_per_day = 86'400 * kPage;
  options.store.write_burst_bytes = 3 * (kPage + SimPageStore::kHeaderBytes);
  StoreWorld w(options);
  StoringClient client(w);
  const SpaceGiven space = client.Open();
  client.PutChain(space, 0, 5);
  EXPECT_EQ(w.Unspilled(Unspilled::kBudget), 2u);
  EXPECT_THAT(***client.Persist(space, {4}), ElementsAre(Code::kExhausted));
  const auto paid = client.Persist(space, {0, 1, 2});
  w.world.journal.RunPending();
  ASSERT_EQ(w.Figures().writing_pages, 3u);
  const auto written = client.Persist(space, {1});
  w.world.Settle();
  EXPECT_THAT(***written, ElementsAre(Code::kOk));
  EXPECT_THAT(***paid, ElementsAre(Code::kOk, Code::kOk, Code::kOk)) << "they are on their way";
  EXPECT_EQ(w.store.pages(), 3u);
  w.world.clock.Advance(2 * kNsPerSecond);
  const auto persisted = client.Persist(space, {4});
  w.world.Settle();
  EXPECT_THAT(***persisted, ElementsAre(Code::kOk)) << "two seconds pay for a page";
}

TEST(StoreBounds, APageIsPaidForOnceHoweverOftenItIsToBeDurable) {
  EngineOptions options = StoreWorld::Options();
  options.store.write_bytes_per_day = 86'400;
  options.store.write_burst_bytes = 2 * (kPage + SimPageStore::kHeaderBytes);
  StoreWorld w(options);
  StoringClient client(w);
  const SpaceGiven space = client.Open();
  client.PutChain(space, 0, 1);
  const auto many = client.Persist(space, {0, 0, 0});
  const auto queued = client.Persist(space, {0});
  w.world.journal.RunPending();
  const auto writing = client.Persist(space, {0});
  w.store.RunPending();
  EXPECT_THAT(***many, ElementsAre(Code::kOk, Code::kOk, Code::kOk));
  EXPECT_THAT(***queued, ElementsAre(Code::kOk));
  EXPECT_THAT(***writing, ElementsAre(Code::kOk));
  client.PutChain(space, 1, 1);
  EXPECT_EQ(w.Unspilled(Unspilled::kBudget), 0u) << "half of it is left";
  EXPECT_EQ(w.Figures().write_budget_bytes, 0u);
  EXPECT_THAT(***client.Persist(space, {0}), ElementsAre(Code::kOk));
}

TEST(StoreBounds, ANearlyFullStoreIsNoWayAroundTheBudget) {
  EngineOptions options = StoreWorld::Options();
  options.store.high_percent = 30;
  options.store.low_percent = 30;
  options.store.write_bytes_per_day = 86'400;
  options.store.write_burst_bytes = 3 * (kPage + SimPageStore::kHeaderBytes);
  StoreWorld w(options, {.capacity_bytes = 10 * (kPage + SimPageStore::kHeaderBytes)});
  StoringClient client(w);
  const SpaceGiven space = client.Open();
  client.PutChain(space, 0, 3);
  w.world.Settle();
  ASSERT_EQ(w.store.pages(), 3u);
  client.PutChain(space, 3, 1);
  EXPECT_THAT(***client.Persist(space, {3}), ElementsAre(Code::kExhausted));
  w.world.engine->Demote(0, {}, [](const Result<Demoted>&) {});
  w.world.Settle();
  EXPECT_EQ(w.Figures().spilled.extents, 3u);
  EXPECT_TRUE(client.Reads(space, 3));
}

TEST(StoreBounds, RoomIsMadeAheadOfNeed) {
  // Ten pages fit; above nine they leave until there are at most seven.
  EngineOptions options = StoreWorld::Options();
  options.store.high_percent = 90;
  options.store.low_percent = 70;
  StoreWorld w(options, {.capacity_bytes = 10 * (kPage + SimPageStore::kHeaderBytes)});
  StoringClient client(w);
  const SpaceGiven space = client.Open();
  client.PutChain(space, 0, 9);
  w.world.Settle();
  EXPECT_EQ(w.store.pages(), 9u);
  client.PutChain(space, 9, 1);
  EXPECT_EQ(w.Unspilled(Unspilled::kRare), 1u) << "no better than who would leave for it";
  const auto persisted = client.Persist(space, {9});
  w.world.Settle();
  EXPECT_THAT(***persisted, ElementsAre(Code::kOk));
  EXPECT_EQ(w.store.pages(), 7u);
  EXPECT_EQ(w.Erased(StoredErasure::kRoom), 3u);
  EXPECT_FALSE(w.store.Has(client.NameOf(space, 0))) << "the oldest went";
  EXPECT_TRUE(w.store.Has(client.NameOf(space, 9)));
  EXPECT_EQ(w.world.engine->CheckInvariants(), Status());
}

TEST_F(StoreTest, NothingLeavesADeviceBecauseItTakesNoWrite) {
  StoringClient client(w);
  const SpaceGiven space = client.Open();
  client.PutChain(space, 0, 2);
  w.world.Settle();
  client.PutChain(space, 2, 2);
  w.store.SetState(DeviceState::kReadOnly);  // While they wait.
  w.world.Settle();
  EXPECT_EQ(w.Unspilled(Unspilled::kPlace), 2u);
  EXPECT_EQ(w.store.pages(), 2u);
}

TEST(StoreBounds, WithoutAPlaceOfItsSizeTheOldestOfThatSizeLeaves) {
  // Some room is left, of which no place of this size can be made.
  EngineOptions options = StoreWorld::Options();
  options.store.high_percent = 100;
  options.store.low_percent = 100;
  StoreWorld w(options, {.capacity_bytes = 4 * (kPage + SimPageStore::kHeaderBytes) + 4096});
  StoringClient client(w);
  const SpaceGiven space = client.Open();
  client.PutChain(space, 0, 5);
  w.world.Settle();
  EXPECT_EQ(w.store.pages(), 3u);
  EXPECT_EQ(w.Unspilled(Unspilled::kPlace), 1u);
  const auto persisted = client.Persist(space, {4});
  w.world.Settle();
  EXPECT_THAT(***persisted, ElementsAre(Code::kOk)) << "the oldest has left for it";
  EXPECT_FALSE(w.store.Has(client.NameOf(space, 0)));
  EXPECT_EQ(w.store.pages(), 4u) << "and no other";
  EXPECT_EQ(w.world.engine->CheckInvariants(), Status());
}

// ---- Restart

TEST_F(StoreTest, WhatWasStoredIsFoundAfterACrash) {
  SpaceGiven before;
  {
    StoringClient client(w);
    before = client.Open();
    client.PutChain(before, 0, 4);
    w.world.Settle();
  }
  w.world.Restart();
  EXPECT_EQ(w.Figures().pages, 4u);
  EXPECT_EQ(w.Figures().absent[static_cast<int>(ItemClass::kKv)].extents, 4u)
      << "the tenant is not there yet";
  StoringClient client(w);
  EXPECT_EQ(w.Figures().absent[static_cast<int>(ItemClass::kKv)].extents, 0u);
  const Result<SpaceGiven> space = engine().OpenSpaceById(client.given.id, before.id);
  ASSERT_TRUE(space) << "what it is was on record: " << space.error().ToString();
  EXPECT_EQ(space->page_bytes, before.page_bytes);
  const auto fetch = client.Prefetch(*space, 0, 4);
  w.world.Settle();
  EXPECT_THAT(fetch->codes(), Each(Code::kOk));
  for (uint64_t key = 0; key < 4; ++key)
    EXPECT_TRUE(client.Reads(*space, key)) << key;
}

TEST_F(StoreTest, ASpaceOfAnotherTenantIsNotOpenedById) {
  StoringClient client(w);
  const SpaceGiven space = client.Open();
  client.PutChain(space, 0, 1);
  w.world.Settle();
  w.world.Restart();
  StoringClient other(w, "other");
  EXPECT_EQ(engine().OpenSpaceById(other.given.id, space.id).error().code(), Code::kNotFound);
}

TEST_F(StoreTest, WhatWasNotAcknowledgedMayBeLost) {
  StoringClient client(w);
  const SpaceGiven space = client.Open();
  client.PutChain(space, 0, 4);
  (void)engine().Turn();
  w.world.journal.RunPending();
  w.world.Restart(/*stored=*/2);
  EXPECT_EQ(w.Figures().pages, 2u);
}

TEST_F(StoreTest, PagesOfUnknownSpacesAreErased) {
  StoringClient client(w);
  const SpaceGiven space = client.Open();
  client.PutChain(space, 0, 3);
  w.world.Settle();
  SimJournal empty;
  std::swap(w.world.journal, empty);
  w.world.Restart();
  StoringClient again(w);
  const SpaceGiven opened = again.Open();
  EXPECT_EQ(opened.id, space.id);
  const auto fetch = again.Prefetch(opened, 0, 3);
  EXPECT_THAT(fetch->codes(), Each(Code::kNotFound)) << "nobody knows what they mean";
  w.world.Settle();
  EXPECT_EQ(w.store.pages(), 0u);
  EXPECT_EQ(w.Erased(StoredErasure::kUnknown), 3u);
  again.PutChain(opened, 0, 1);
  w.world.Settle();
  EXPECT_EQ(w.store.pages(), 1u) << "then the space is used anew";
}

TEST_F(StoreTest, ADamagedSpaceRecordIsTold) {
  w.world.journal.Put("space/00", "x", [](const Status&) {});
  w.world.journal.RunPending();
  w.world.Restart();
  ASSERT_EQ(engine().Summary().restore_problems.size(), 1u);
  EXPECT_THAT(engine().Summary().restore_problems[0], HasSubstr("space/00"));
}

TEST_F(StoreTest, ADamagedStoreIsNotUsedAndTold) {
  w.store.restore_faults.FailAfter(0, Status(Code::kDataLoss, "no index"));
  w.world.Restart();
  EXPECT_FALSE(w.Figures().present);
  ASSERT_EQ(engine().Summary().restore_problems.size(), 1u);
  EXPECT_THAT(engine().Summary().restore_problems[0], HasSubstr("no index"));
  StoringClient client(w);
  const SpaceGiven space = client.Open();
  client.PutChain(space, 0, 1);
  EXPECT_TRUE(client.Reads(space, 0)) << "memory works without it";
}

TEST_F(StoreTest, ASpaceThatNobodyHasOpenKeepsItsPages) {
  StoringClient client(w);
  const SpaceGiven space = client.Open();
  client.PutChain(space, 0, 2);
  w.world.Settle();
  w.EvictAll();
  ASSERT_TRUE(engine().CloseSpace(client.given.id, space.slot, space.epoch).ok());
  // Slots of the directory are needed by others, so that the space is retired.
  for (uint32_t i = 0; i < shm::kMaxSpaces; ++i) {
    SpaceSpec spec;
    spec.layout = LayoutOf(kPage);
    spec.salt = {static_cast<uint8_t>(i), static_cast<uint8_t>(i >> 8), 1};
    const Result<SpaceGiven> other = engine().OpenSpace(client.given.id, spec);
    ASSERT_TRUE(other) << i << other.error().ToString();
    ASSERT_TRUE(engine().CloseSpace(client.given.id, other->slot, other->epoch).ok());
  }
  const SpaceGiven again = client.Open();
  EXPECT_TRUE(again.slot != space.slot || again.epoch != space.epoch);
  const auto fetch = client.Prefetch(again, 0, 2);
  w.world.Settle();
  EXPECT_THAT(fetch->codes(), Each(Code::kOk));
  EXPECT_TRUE(client.Reads(again, 1));
}

}  // namespace
}  // namespace terrace
