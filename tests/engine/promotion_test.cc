// Promotion by hand: stored pages come back into memory that is free, and nothing leaves for them.
#include <gtest/gtest.h>

#include "tests/engine/store_world.h"

namespace terrace {
namespace {

constexpr uint32_t kPage = StoreWorld::kPage;
constexpr uint64_t kRoom = 16;  // Pages that memory has room for.

PromoteSpec UpTo(uint64_t bytes) {
  PromoteSpec spec;
  spec.bytes = bytes;
  return spec;
}
PromoteSpec OfTenant(const std::string& tenant) {
  PromoteSpec spec;
  spec.tenant = tenant;
  return spec;
}
PromoteSpec OfSpace(const Digest& space) {
  PromoteSpec spec;
  spec.space = space;
  return spec;
}

class PromotionTest : public testing::Test {
 protected:
  explicit PromotionTest(const EngineOptions& options = StoreWorld::Options())
      : w(options), client(w), space(client.Open()) {}
  ~PromotionTest() override { EXPECT_EQ(w.world.engine->CheckInvariants(), Status()); }
  Engine& engine() { return *w.world.engine; }
  // Pages in the store alone.
  void Store(StoringClient& whose, const SpaceGiven& where, uint64_t first, uint64_t count) {
    whose.PutChain(where, first, count);
    w.world.Settle();
    w.EvictAll();
  }
  void Store(uint64_t first, uint64_t count) { Store(client, space, first, count); }
  // Some in the store alone, others in memory too.
  void StoreAndKeep(uint64_t stored, uint64_t kept) {
    Store(0, stored);
    client.PutChain(space, 100, kept);
    w.world.Settle();
  }
  void ExpectInMemory(uint64_t first, uint64_t count) {
    for (uint64_t key = first; key < first + count; ++key)
      EXPECT_TRUE(client.Reads(space, key)) << key;
  }
  using Answer = std::optional<Result<Promoted>>;
  std::shared_ptr<Answer> Promote(const PromoteSpec& spec = {}) {
    auto answer = std::make_shared<Answer>();
    engine().Promote(
        spec, [this](uint64_t done, uint64_t total) { told.emplace_back(done, total); },
        [answer](Result<Promoted> promoted) { *answer = std::move(promoted); });
    return answer;
  }
  Promoted Ended(const PromoteSpec& spec = {}) {
    const auto answer = Promote(spec);
    w.world.Settle();
    EXPECT_TRUE(answer->has_value());
    return answer->has_value() ? ***answer : Promoted();
  }

  StoreWorld w;
  StoringClient client;
  const SpaceGiven space;
  std::vector<std::pair<uint64_t, uint64_t>> told;
};

TEST_F(PromotionTest, PagesComeBackWithTheirBytes) {
  Store(0, 6);
  const Promoted promoted = Ended();
  EXPECT_EQ(promoted.pages, 6u);
  EXPECT_EQ(promoted.bytes, 6 * kPage);
  ExpectInMemory(0, 6);
  ASSERT_FALSE(told.empty());
  EXPECT_EQ(told.back().first, 6 * kPage);
  EXPECT_GE(told.back().second, told.back().first);
}

TEST_F(PromotionTest, NothingLeavesMemoryForThem) {
  StoreAndKeep(12, 10);
  const uint64_t evicted = engine().Summary().evicted_pages;
  const uint64_t before = engine().Summary().pages;
  const Promoted promoted = Ended();
  EXPECT_EQ(engine().Summary().evicted_pages, evicted);
  EXPECT_EQ(engine().Summary().pages, before + promoted.pages);
  EXPECT_GT(promoted.pages, 0u);
  EXPECT_LE(before + promoted.pages, kRoom);
  ExpectInMemory(100, 10);
}

TEST_F(PromotionTest, UntilTheyAreReadTheyLeaveBeforeOthers) {
  StoreAndKeep(4, 4);
  EXPECT_EQ(Ended().pages, 4u);
  client.channel.Touch(client.Find(space, 1).value());
  (void)engine().Turn();
  (void)engine().Evict(3 * kPage, UINT64_MAX);
  EXPECT_TRUE(client.Reads(space, 1));
  for (const uint64_t key : {0, 2, 3})
    EXPECT_FALSE(client.Reads(space, key)) << key;
  ExpectInMemory(100, 4);
}

// What a client waits for by then is what it asked for.
TEST_F(PromotionTest, OneThatAClientWaitsForIsAsIfItHadAsked) {
  StoreAndKeep(2, 1);
  const auto promoted = Promote();
  (void)engine().Turn();  // The reads are under way.
  const auto fetch = client.Prefetch(space, 0, 1, {.deadline_ms = 1});
  w.world.Settle();
  ASSERT_TRUE(promoted->has_value());
  (void)engine().Evict(2 * kPage, UINT64_MAX);
  EXPECT_TRUE(client.Reads(space, 0));
  EXPECT_FALSE(client.Reads(space, 1));
  EXPECT_FALSE(client.Reads(space, 100));
}

TEST_F(PromotionTest, ThoseUsedLastComeFirst) {
  Store(0, 4);
  Store(4, 4);
  client.Prefetch(space, 1, 1);  // A use.
  w.world.Settle();
  w.EvictAll();
  EXPECT_EQ(Ended(UpTo(3 * kPage)).pages, 3u);
  EXPECT_TRUE(client.Reads(space, 1));
  EXPECT_TRUE(client.Reads(space, 7));
  EXPECT_TRUE(client.Reads(space, 6));
  EXPECT_FALSE(client.Reads(space, 0));
}

TEST_F(PromotionTest, NoMoreThanAskedFor) {
  Store(0, 8);
  EXPECT_EQ(Ended(UpTo(2 * kPage + kPage / 2)).pages, 2u);
  EXPECT_EQ(Ended(UpTo(kPage - 1)).pages, 0u);
}

TEST_F(PromotionTest, OfTheSpaceOrTenantThatWasNamed) {
  StoringClient other(w, "u");
  const SpaceGiven theirs = other.Open();
  Store(0, 2);
  Store(other, theirs, 0, 3);
  EXPECT_EQ(Ended(OfTenant("u")).pages, 3u);
  EXPECT_FALSE(client.Reads(space, 0));
  EXPECT_TRUE(other.Reads(theirs, 0));
  EXPECT_EQ(Ended(OfSpace(space.id)).pages, 2u);
  EXPECT_TRUE(client.Reads(space, 0));
}

TEST_F(PromotionTest, WhoNamesWhatIsNotThereIsTold) {
  const auto no_tenant = Promote(OfTenant("nobody"));
  ASSERT_TRUE(no_tenant->has_value());
  EXPECT_EQ((*no_tenant)->error().code(), Code::kNotFound);
  const auto no_space = Promote(OfSpace(KeyOf(1)));
  ASSERT_TRUE(no_space->has_value());
  EXPECT_EQ((*no_space)->error().code(), Code::kNotFound);
}

TEST_F(PromotionTest, OneAtATime) {
  Store(0, 2);
  const auto first = Promote();
  const auto second = Promote();
  ASSERT_TRUE(second->has_value());
  EXPECT_EQ((*second)->error().code(), Code::kExhausted);
  w.world.Settle();
  ASSERT_TRUE(first->has_value());
  EXPECT_TRUE((*first)->has_value());
}

TEST_F(PromotionTest, ADamagedPageIsErasedAndTheOthersCome) {
  Store(0, 4);
  w.store.Corrupt(client.NameOf(space, 2), ReadFault::kData);
  EXPECT_EQ(Ended().pages, 3u);
  w.world.Settle();
  EXPECT_FALSE(w.store.Has(client.NameOf(space, 2)));
  EXPECT_EQ(w.Erased(StoredErasure::kFault), 1u);
}

TEST_F(PromotionTest, APageThatWasDroppedMeanwhileStaysAway) {
  Store(0, 2);
  const auto promoted = Promote();
  (void)engine().Turn();  // The reads are under way.
  EXPECT_EQ(client.Drop(space, 1), 1u);
  w.world.Settle();
  ASSERT_TRUE(promoted->has_value());
  EXPECT_EQ((***promoted).pages, 1u);
  EXPECT_FALSE(client.Reads(space, 1));
}

TEST_F(PromotionTest, WhatIsInMemoryIsPassedOver) {
  Store(0, 4);
  client.Prefetch(space, 0, 4);
  w.world.Settle();
  EXPECT_EQ(Ended().pages, 0u);
}

// Nobody has opened the space since the start.
TEST_F(PromotionTest, ASpaceThatNobodyHasOpenIsPromotedToo) {
  Store(0, 4);
  engine().ClientGone(client.given.id);
  EXPECT_EQ(Ended().pages, 4u);
  StoringClient again(w);
  const SpaceGiven reopened = again.Open();
  EXPECT_EQ(reopened.id, space.id);
  for (uint64_t key = 0; key < 4; ++key)
    EXPECT_TRUE(again.Reads(reopened, key)) << key;
}

class PromotionBesideReadersTest : public PromotionTest {
 protected:
  PromotionBesideReadersTest() : PromotionTest(TwoPagesAtATime()) {}
  static EngineOptions TwoPagesAtATime() {
    EngineOptions options = StoreWorld::Options();
    options.store.max_reading_pages = 2;
    options.store.read_deadline_ms = 120'000;
    return options;
  }
};

TEST_F(PromotionBesideReadersTest, ItWaitsForThemWithoutWorkAndEndsAfterAWhile) {
  Store(0, 4);
  // A client reads half of what may be read, and its device takes its time.
  client.Prefetch(space, 0, 1, {.deadline_ms = 60'000});
  while (engine().Turn()) {
  }
  const auto promoted = Promote();
  for (int second = 0; second < 29; ++second) {
    EXPECT_FALSE(engine().Turn()) << "it asks for the next turn at once";
    w.world.clock.Advance(kNsPerSecond);
  }
  EXPECT_FALSE(promoted->has_value());
  w.world.clock.Advance(2 * kNsPerSecond);
  (void)engine().Turn();
  ASSERT_TRUE(promoted->has_value());
  EXPECT_EQ((***promoted).pages, 0u);
  w.world.Settle();
}

TEST_F(PromotionBesideReadersTest, HalfOfWhatMayBeReadIsLeftToThem) {
  Store(0, 4);
  const auto promoted = Promote();
  (void)engine().Turn();
  EXPECT_EQ(w.Figures().reading_pages, 1u);
  client.Prefetch(space, 3, 1);
  w.world.Settle();
  ASSERT_TRUE(promoted->has_value());
  ExpectInMemory(0, 4);
}

TEST_F(PromotionBesideReadersTest, ItGoesOnWhenTheyHaveDone) {
  Store(0, 4);
  client.Prefetch(space, 0, 1, {.deadline_ms = 60'000});
  const auto promoted = Promote();
  (void)engine().Turn();
  w.world.clock.Advance(29 * kNsPerSecond);
  (void)engine().Turn();
  w.world.Settle();
  ASSERT_TRUE(promoted->has_value());
  EXPECT_EQ((***promoted).pages, 3u);
  EXPECT_TRUE(client.Reads(space, 3));
}

TEST_F(PromotionTest, ADeviceThatHangsEndsItAfterAWhile) {
  Store(0, 2);
  const auto promoted = Promote();
  (void)engine().Turn();
  w.world.clock.Advance(31 * kNsPerSecond);
  (void)engine().Turn();
  ASSERT_TRUE(promoted->has_value());
  EXPECT_EQ((***promoted).pages, 0u);
  w.world.Settle();
}

}  // namespace
}  // namespace terrace
