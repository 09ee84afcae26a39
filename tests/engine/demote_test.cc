// Leaving memory with a store below it: what is stored goes first, what is not is written before.
#include <gtest/gtest.h>

#include "tests/engine/store_world.h"

namespace terrace {
namespace {

constexpr uint32_t kPage = StoreWorld::kPage;

class DemoteTest : public testing::Test {
 protected:
  ~DemoteTest() override { EXPECT_EQ(w.world.engine->CheckInvariants(), Status()); }
  Engine& engine() { return *w.world.engine; }
  uint64_t Lost() { return engine().Figures().tenants[0].pages.evicted_unstored.extents; }
  // Pages that are in memory alone, for the device took no write when they were committed.
  void PutUnstored(StoringClient& client, const SpaceGiven& space, uint64_t first, uint64_t count) {
    w.store.SetState(DeviceState::kReadOnly);
    client.PutChain(space, first, count);
    w.store.SetState(DeviceState::kServing);
  }
  std::shared_ptr<std::optional<Demoted>> Demote(uint64_t bytes) {
    auto answer = std::make_shared<std::optional<Demoted>>();
    engine().Demote(bytes, {}, [answer](const Result<Demoted>& demoted) { *answer = *demoted; });
    return answer;
  }

  StoreWorld w;
};

TEST_F(DemoteTest, StoredPagesGoBeforeOthers) {
  StoringClient client(w);
  const SpaceGiven space = client.Open();
  PutUnstored(client, space, 0, 8);
  client.PutChain(space, 8, 8);
  // Without a turn, which would keep a reserve.
  const auto stored = client.Persist(space, {8});
  w.world.journal.RunPending();
  w.store.RunPending();
  ASSERT_TRUE(stored->has_value());
  for (uint64_t key = 100; key < 108; ++key)
    client.PutChain(space, key, 1);
  EXPECT_EQ(Lost(), 0u);
  for (uint64_t key = 0; key < 8; ++key)
    EXPECT_TRUE(client.Reads(space, key)) << "older, but in memory alone: " << key;
}

TEST_F(DemoteTest, WhatIsNotStoredIsLostWhenNothingElseIsLeft) {
  StoringClient client(w);
  const SpaceGiven space = client.Open();
  PutUnstored(client, space, 0, 16);
  PutUnstored(client, space, 100, 4);
  EXPECT_GE(Lost(), 4u);
  EXPECT_TRUE(client.Reads(space, 103));
}

TEST_F(DemoteTest, TheReserveIsMadeOfWhatWasWrittenFirst) {
  StoringClient client(w);
  const SpaceGiven space = client.Open();
  PutUnstored(client, space, 0, 16);
  // Recent demand wants a reserve ahead, for which pages have to leave.
  w.world.Settle();
  EXPECT_GT(w.Figures().spilled.extents, 0u);
  EXPECT_GT(
      engine().Figures().tenants[0].evicted[static_cast<int>(EvictionReason::kReserve)].extents,
      0u);
  EXPECT_EQ(Lost(), 0u);
}

TEST_F(DemoteTest, TheReserveWaitsForWhatIsWrittenFirst) {
  StoringClient client(w);
  const SpaceGiven space = client.Open();
  PutUnstored(client, space, 0, 16);
  const auto walks_of_turns = [&](int turns) {
    const uint64_t before = w.world.walks;
    for (int turn = 0; turn < turns; ++turn) {
      w.world.clock.Advance(kNsPerMs);
      (void)engine().Turn();
    }
    return w.world.walks - before;
  };
  EXPECT_EQ(walks_of_turns(20), 1u) << "what was found then is on its way";
  w.world.journal.RunPending();
  EXPECT_EQ(walks_of_turns(20), 0u) << "it is being written";
  w.store.RunPending();
  EXPECT_EQ(walks_of_turns(1), 1u) << "now it can go";
  EXPECT_GT(
      engine().Figures().tenants[0].evicted[static_cast<int>(EvictionReason::kReserve)].extents,
      0u);
}

TEST_F(DemoteTest, TheReserveIsLookedForAgainInAWhile) {
  StoringClient client(w);
  const SpaceGiven space = client.Open();
  PutUnstored(client, space, 0, 16);
  (void)engine().Turn();
  const uint64_t before = w.world.walks;
  w.world.clock.Advance(100 * kNsPerMs);
  (void)engine().Turn();
  EXPECT_EQ(w.world.walks, before + 1) << "though no write has ended";
}

TEST_F(DemoteTest, DemoteWritesWhatIsNotStoredAndThenLetsItGo) {
  StoringClient client(w);
  const SpaceGiven space = client.Open();
  PutUnstored(client, space, 0, 6);
  const auto demoted = Demote(0);
  EXPECT_FALSE(demoted->has_value());
  w.world.Settle();
  ASSERT_TRUE(demoted->has_value());
  EXPECT_EQ((*demoted)->pages, 6u);
  EXPECT_EQ((*demoted)->bytes, 6 * kPage);
  EXPECT_EQ(engine().Summary().pages, 0u);
  EXPECT_EQ(w.store.pages(), 6u);
  EXPECT_EQ(Lost(), 0u);
  const auto fetch = client.Prefetch(space, 0, 6);
  w.world.Settle();
  for (uint64_t key = 0; key < 6; ++key)
    EXPECT_TRUE(client.Reads(space, key));
}

TEST_F(DemoteTest, DemoteStopsWhenItHasEnough) {
  StoringClient client(w);
  const SpaceGiven space = client.Open();
  client.PutChain(space, 0, 8);
  w.world.Settle();
  const auto demoted = Demote(3 * kPage);
  w.world.Settle();
  ASSERT_TRUE(demoted->has_value());
  EXPECT_EQ((*demoted)->pages, 3u);
  EXPECT_FALSE(client.Reads(space, 0));
  EXPECT_TRUE(client.Reads(space, 3)) << "the least used went";
}

TEST_F(DemoteTest, WhatIsHeldOrCannotBeStoredStays) {
  StoringClient client(w);
  const SpaceGiven space = client.Open();
  client.PutChain(space, 0, 2);
  w.world.Settle();
  PutUnstored(client, space, 2, 2);
  client.channel.Pin(client.Find(space, 0).value());
  w.store.SetState(DeviceState::kReadOnly);
  const auto demoted = Demote(0);
  w.world.Settle();
  ASSERT_TRUE(demoted->has_value());
  EXPECT_EQ((*demoted)->pages, 1u);
  EXPECT_TRUE(client.Reads(space, 0));
  EXPECT_FALSE(client.Reads(space, 1));
  EXPECT_TRUE(client.Reads(space, 2));
  EXPECT_TRUE(client.Reads(space, 3));
}

TEST_F(DemoteTest, ADemotionEndsWhereTheStoreTakesNoMore) {
  StoringClient client(w);
  const SpaceGiven space = client.Open();
  PutUnstored(client, space, 0, 2);
  client.PutChain(space, 2, 2);
  w.world.Settle();
  w.store.SetState(DeviceState::kReadOnly);
  const auto demoted = Demote(0);
  (void)engine().Turn();
  ASSERT_TRUE(demoted->has_value());
  EXPECT_EQ((*demoted)->pages, 0u) << "what comes after it in the policy's order is not asked";
}

TEST_F(DemoteTest, ADemotionGoesInSteps) {
  constexpr uint32_t kSmall = 256;
  StoringClient client(w);
  const SpaceGiven space = client.Open(kSmall);
  client.PutChain(space, 0, 400);
  client.PutChain(space, 400, 400);
  w.world.Settle();
  const uint64_t before = engine().Summary().pages;
  const auto demoted = Demote(0);
  EXPECT_TRUE(engine().Turn()) << "there is more to do";
  EXPECT_EQ(engine().Summary().pages, before - 512);
  w.world.Settle();
  EXPECT_EQ((*demoted)->pages, before);
}

TEST_F(DemoteTest, OneDemotionAtATime) {
  StoringClient client(w);
  const SpaceGiven space = client.Open();
  PutUnstored(client, space, 0, 2);
  const auto demoted = Demote(0);
  Code refused = Code::kOk;
  engine().Demote(0, {}, [&](const Result<Demoted>& second) { refused = second.error().code(); });
  EXPECT_EQ(refused, Code::kExhausted);
  w.world.Settle();
  EXPECT_TRUE(demoted->has_value());
}

TEST_F(DemoteTest, ADemotionEndsWhenTheDeviceNeverAnswers) {
  StoringClient client(w);
  const SpaceGiven space = client.Open();
  PutUnstored(client, space, 0, 2);
  const auto demoted = Demote(0);
  (void)engine().Turn();
  w.world.journal.RunPending();
  for (int turn = 0; turn < 40; ++turn) {
    w.world.clock.Advance(kNsPerSecond);
    (void)engine().Turn();
  }
  ASSERT_TRUE(demoted->has_value());
  EXPECT_EQ((*demoted)->pages, 0u);
  EXPECT_EQ(w.store.pending(), 2u);
}

}  // namespace
}  // namespace terrace
