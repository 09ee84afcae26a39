// Grants, commits, drops and eviction of pages, through the verbs of Engine.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "tests/engine/engine_world.h"

namespace terrace {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

constexpr uint32_t kPage = EngineWorld::kPage;

class PagesTest : public testing::Test {
 protected:
  ~PagesTest() override { EXPECT_EQ(world.engine->CheckInvariants(), Status()); }
  StatusReport Summary() const { return world.engine->Summary(); }
  // Fills the host memory with pages 0 to 15.
  std::vector<shm::Handle> Fill(ClientOfTest& client, const SpaceGiven& space) {
    std::vector<shm::Handle> handles;
    for (uint64_t key = 0; key < 16; ++key)
      handles.push_back(client.Put(space, key).value());
    return handles;
  }

  EngineWorld world;
};

TEST_F(PagesTest, CommittedPageIsFoundWithItsTokens) {
  ClientOfTest client(world);
  const SpaceGiven space = client.Open();
  const GrantGiven grant = client.Grant(space, 1);
  EXPECT_EQ(client.Find(space, 1), std::nullopt) << "a granted page is invisible";
  EXPECT_EQ(client.Commit(grant.grant, 5), Code::kOk);
  const std::optional<LinkedPage> page =
      world.engine->index(client.tenant()).Find({space.slot, space.epoch, 0, KeyOf(1)});
  ASSERT_TRUE(page.has_value());
  EXPECT_EQ(page->valid_tokens, 5u);
  EXPECT_EQ(page->bytes, kPage);
  EXPECT_EQ(shm::ExtentOf(page->handle), shm::ExtentOf(grant.handle));
  EXPECT_EQ(Summary().linked_bytes, kPage);
}

TEST_F(PagesTest, PinnedPageSurvivesPressure) {
  ClientOfTest client(world);
  const SpaceGiven space = client.Open();
  const std::vector<shm::Handle> handles = Fill(client, space);
  client.channel.Pin(handles[3]);
  for (uint64_t key = 100; key < 200; ++key)
    ASSERT_TRUE(client.Put(space, key).has_value()) << key;
  EXPECT_EQ(client.Find(space, 3), handles[3]);
  EXPECT_EQ(client.Find(space, 4), std::nullopt);
  EXPECT_LE(Summary().used_bytes, world.options.host_capacity_bytes);
}

TEST_F(PagesTest, ABusyTenantDoesNotKeepTheRingsOfOthersWaiting) {
  ClientOfTest busy(world, "busy");
  ClientOfTest calm(world, "calm");
  busy.channel.channel().lanes = UINT64_MAX;
  shm::Ring& ring = calm.channel.channel().rings[0];
  for (int turn = 0; turn < 8; ++turn) {
    for (shm::Ring& theirs : busy.channel.channel().rings)
      theirs.head = theirs.tail + shm::kRingRecords;
    calm.channel.Touch(1);
    (void)world.engine->Turn();
  }
  EXPECT_GE(ring.tail + 1, ring.head);
}

TEST_F(PagesTest, TouchedPageOutlivesOlderOnes) {
  ClientOfTest client(world);
  const SpaceGiven space = client.Open();
  const std::vector<shm::Handle> handles = Fill(client, space);
  client.channel.Touch(handles[0]);
  for (uint64_t key = 100; key < 108; ++key)
    ASSERT_TRUE(client.Put(space, key).has_value());
  EXPECT_TRUE(client.Find(space, 0).has_value());
  EXPECT_FALSE(client.Find(space, 1).has_value());
}

TEST_F(PagesTest, AllocationFailsOnlyWhenAllIsPinnedOrGranted) {
  ClientOfTest client(world);
  const SpaceGiven space = client.Open();
  const std::vector<shm::Handle> handles = Fill(client, space);
  std::vector<uint32_t> pins;
  for (int i = 0; i < 10; ++i)
    pins.push_back(client.channel.Pin(handles[i]));
  std::vector<uint64_t> grants;
  for (uint64_t key = 100; key < 106; ++key) {
    const GrantGiven grant = client.Grant(space, key);
    ASSERT_EQ(grant.code, Code::kOk) << key;
    grants.push_back(grant.grant);
  }
  EXPECT_EQ(client.Grant(space, 106).code, Code::kExhausted);
  EXPECT_EQ(Summary().failed_allocations, 1u);
  client.channel.Unpin(pins[7]);
  EXPECT_EQ(client.Grant(space, 107).code, Code::kOk) << "one page is pinned no more";
  client.Abort(grants[0]);
  EXPECT_EQ(client.Grant(space, 108).code, Code::kOk) << "one grant is gone";
}

TEST_F(PagesTest, ABatchIsGrantedAsFarAsMemoryGoes) {
  ClientOfTest client(world);
  const SpaceGiven space = client.Open();
  std::vector<Digest> keys;
  for (uint64_t key = 0; key < 20; ++key)
    keys.push_back(KeyOf(key));
  const std::vector<GrantGiven> grants = client.Grant(space, keys);
  EXPECT_EQ(std::count_if(grants.begin(), grants.end(),
                          [](const GrantGiven& grant) { return grant.code == Code::kOk; }),
            16);
  EXPECT_EQ(grants.back().code, Code::kExhausted);
  EXPECT_EQ(Summary().granted_bytes, 16 * kPage);
}

TEST_F(PagesTest, MemoryGoesToAnotherPageSizeWhenItIsOlder) {
  ClientOfTest client(world);
  const SpaceGiven small = client.Open();
  const SpaceGiven large = client.Open(4 * kPage, 1);
  Fill(client, small);
  for (uint64_t key = 100; key < 104; ++key)
    ASSERT_TRUE(client.Put(large, key).has_value()) << key;
  EXPECT_EQ(Summary().linked_bytes, 16 * kPage) << "the small pages gave all their memory";
  EXPECT_FALSE(client.Find(small, 15).has_value());
  for (uint64_t key = 200; key < 216; ++key)
    ASSERT_TRUE(client.Put(small, key).has_value()) << key;
  EXPECT_FALSE(client.Find(large, 103).has_value());
  EXPECT_LE(Summary().used_bytes, world.options.host_capacity_bytes);
}

TEST_F(PagesTest, MemoryNeverPassesToAnotherTenantInTheSameArena) {
  ClientOfTest one(world, "one");
  ClientOfTest two(world, "two");
  const SpaceGiven of_one = one.Open();
  const SpaceGiven of_two = two.Open();
  Fill(one, of_one);
  EXPECT_FALSE(two.Find(of_two, 7).has_value()) << "a key of one tenant is nothing to another";
  const shm::Handle handle = two.Put(of_two, 7).value();
  EXPECT_TRUE(world.engine->FindArena(two.given.id, shm::ArenaOf(handle)).has_value());
  EXPECT_FALSE(world.engine->FindArena(one.given.id, shm::ArenaOf(handle)).has_value());
  EXPECT_NE(of_one.id, of_two.id);
}

TEST_F(PagesTest, PinsOfAnotherTenantHoldNothing) {
  ClientOfTest one(world, "one");
  ClientOfTest two(world, "two");
  const SpaceGiven space = one.Open();
  const std::vector<shm::Handle> handles = Fill(one, space);
  for (const shm::Handle handle : handles)
    two.channel.Pin(handle);
  two.channel.Pin(shm::MakeHandle(0xfffff, 0xfffff, 1));
  two.channel.Pin(~uint64_t{0});
  EXPECT_TRUE(one.Put(space, 100).has_value());
  EXPECT_EQ(world.engine->Clients()[1].pinned_bytes, 0u);
  EXPECT_EQ(world.engine->Clients()[1].pins, 18u);
}

TEST_F(PagesTest, GrantPastDeadlineIsChargedUntilAcknowledged) {
  ClientOfTest client(world);
  const SpaceGiven space = client.Open();
  const GrantGiven grant = client.Grant(space, 1, 100);
  world.clock.Advance(101 * kNsPerMs);
  EXPECT_EQ(client.Commit(grant.grant), Code::kDeadlineExceeded);
  EXPECT_EQ(Summary().granted_bytes, kPage);
  EXPECT_EQ(Summary().abandoned_grants, 1u);
  EXPECT_EQ(client.Commit(grant.grant), Code::kDeadlineExceeded);
  EXPECT_EQ(world.engine->Clients()[0].granted_bytes, kPage);
  client.Abort(grant.grant);
  EXPECT_EQ(Summary().granted_bytes, 0u);
  EXPECT_EQ(Summary().abandoned_grants, 0u);
  EXPECT_EQ(client.Commit(grant.grant), Code::kNotFound);
}

TEST_F(PagesTest, TheTurnTellsOfPassedDeadlinesOnce) {
  ClientOfTest client(world);
  const SpaceGiven space = client.Open();
  const GrantGiven early = client.Grant(space, 1, 100);
  const GrantGiven late = client.Grant(space, 2, 200);
  world.clock.Advance(101 * kNsPerMs);
  world.engine->Turn();
  world.engine->Turn();
  EXPECT_THAT(world.events.expired[client.given.id], ElementsAre(early.grant));
  EXPECT_EQ(client.Commit(late.grant), Code::kOk);
  EXPECT_EQ(Summary().expired_grants, 1u);
}

TEST_F(PagesTest, FirstCommitOfAKeyStays) {
  ClientOfTest one(world);
  ClientOfTest two(world);
  const SpaceGiven space = one.Open();
  two.Open();
  const GrantGiven first = one.Grant(space, 1);
  const GrantGiven second = two.Grant(space, 1);
  EXPECT_EQ(two.Commit(second.grant), Code::kOk);
  EXPECT_EQ(one.Commit(first.grant), Code::kAlreadyExists);
  EXPECT_EQ(shm::ExtentOf(one.Find(space, 1).value()), shm::ExtentOf(second.handle));
  EXPECT_EQ(Summary().duplicate_commits, 1u);
  EXPECT_EQ(Summary().granted_bytes, 0u) << "the second is freed";
  EXPECT_EQ(one.Grant(space, 1).code, Code::kAlreadyExists);
}

TEST_F(PagesTest, OnlyTheOwnerCommits) {
  ClientOfTest one(world);
  ClientOfTest two(world);
  const SpaceGiven space = one.Open();
  const GrantGiven grant = one.Grant(space, 1);
  EXPECT_EQ(two.Commit(grant.grant), Code::kNotFound);
  two.Abort(grant.grant);
  EXPECT_EQ(one.Commit(grant.grant), Code::kOk);
}

TEST_F(PagesTest, TooManyValidTokensAreRefusedAndTheGrantStays) {
  ClientOfTest client(world);
  const SpaceGiven space = client.Open();
  const GrantGiven grant = client.Grant(space, 1);
  EXPECT_EQ(client.Commit(grant.grant, 17), Code::kInvalidArgument);
  EXPECT_EQ(client.Commit(grant.grant, 16), Code::kOk);
}

TEST_F(PagesTest, CommitAfterTheGenerationMovedIsStale) {
  ClientOfTest client(world);
  const SpaceGiven space = client.Open();
  const GrantGiven grant = client.Grant(space, 1);
  TenantIndex& index = world.engine->index(client.tenant());
  index.SetGeneration(space.generation_index, space.generation + 1);
  EXPECT_EQ(client.Commit(grant.grant), Code::kStale);
  EXPECT_EQ(Summary().granted_bytes, 0u);
}

TEST_F(PagesTest, CommitWithoutAPlaceInTheDirectoryFreesTheSlot) {
  ClientOfTest client(world);
  const SpaceGiven space = client.Open(128);  // 2048 of these fit into memory.
  world.directories.refuse = true;            // The directory cannot grow beyond its 1024 lines.
  Code code = Code::kOk;
  uint64_t key = 0;
  for (; code == Code::kOk && key < 1024; ++key)
    code = client.Commit(client.Grant(space, key).grant);
  EXPECT_EQ(code, Code::kExhausted);
  EXPECT_EQ(Summary().granted_bytes, 0u);
  EXPECT_EQ(Summary().pages, key - 1);
  world.directories.refuse = false;
  uint64_t linked = 0;
  for (; key < 2000; ++key) {
    if (client.Put(space, key).has_value()) ++linked;
  }
  EXPECT_GT(linked, 900u) << "it grows as soon as it can";
  EXPECT_GE(Summary().directory_growths, 1u);
}

TEST_F(PagesTest, MemoryForLargerPagesComesInWholeHugePages) {
  ClientOfTest client(world);
  const SpaceGiven small = client.Open();
  const SpaceGiven large = client.Open(2 * kPage, 1);
  const std::vector<shm::Handle> handles = Fill(client, small);
  // From the oldest: 0, 2, 4, ... 14, then 1, 3, ... 15. Two slots are a huge page here.
  for (uint64_t key = 1; key < 16; key += 2)
    client.channel.Touch(handles[key]);
  ASSERT_TRUE(client.Put(large, 100).has_value());
  EXPECT_FALSE(client.Find(small, 0).has_value());
  const auto neighbour = [&](uint64_t key) { return handles[key] ^ shm::MakeHandle(0, 1, 0); };
  for (uint64_t key = 0; key < 16; ++key) {
    const bool gone = !client.Find(small, key).has_value();
    const auto other = std::find_if(handles.begin(), handles.end(), [&](shm::Handle handle) {
      return shm::ExtentOf(handle) == shm::ExtentOf(neighbour(key));
    });
    ASSERT_NE(other, handles.end());
    EXPECT_EQ(gone, !client.Find(small, static_cast<uint64_t>(other - handles.begin())).has_value())
        << "page " << key << " and its neighbour in the huge page went together";
  }
}

TEST_F(PagesTest, DroppedPageWaitsForItsReaders) {
  ClientOfTest client(world);
  const SpaceGiven space = client.Open();
  const std::vector<shm::Handle> handles = Fill(client, space);
  const uint32_t pin = client.channel.Pin(handles[2]);
  const std::vector<Digest> keys = {KeyOf(2), KeyOf(3), KeyOf(99)};
  const Result<uint32_t> dropped =
      world.engine->Drop(client.given.id, space.slot, space.epoch, 0, keys);
  ASSERT_TRUE(dropped.has_value());
  EXPECT_EQ(*dropped, 2u);
  EXPECT_FALSE(client.Find(space, 2).has_value());
  world.clock.Advance(kNsPerSecond);
  world.engine->Turn();
  EXPECT_EQ(Summary().limbo_pages, 1u) << "the one that is pinned";
  EXPECT_EQ(Summary().limbo_bytes, kPage);
  for (uint64_t key = 100; key < 130; ++key) {
    const std::optional<shm::Handle> handle = client.Put(space, key);
    ASSERT_TRUE(handle.has_value());
    EXPECT_NE(shm::ExtentOf(*handle), shm::ExtentOf(handles[2]));
  }
  client.channel.Unpin(pin);
  world.clock.Advance(kNsPerSecond);
  world.engine->Turn();
  EXPECT_EQ(Summary().limbo_pages, 0u);
}

TEST_F(PagesTest, DroppedPageIsReusedAtOnceUnderPressure) {
  ClientOfTest client(world);
  const SpaceGiven space = client.Open();
  const std::vector<shm::Handle> handles = Fill(client, space);
  for (int i = 1; i < 16; ++i)
    client.channel.Pin(handles[i]);
  const std::vector<Digest> keys = {KeyOf(0)};
  ASSERT_TRUE(world.engine->Drop(client.given.id, space.slot, space.epoch, 0, keys).has_value());
  EXPECT_TRUE(client.Put(space, 100).has_value()) << "no turn has passed since the drop";
}

TEST_F(PagesTest, TheDeadGiveBackEverything) {
  auto client = std::make_unique<ClientOfTest>(world);
  ClientOfTest other(world);
  const SpaceGiven space = client->Open();
  other.Open();
  const std::vector<shm::Handle> handles = Fill(*client, space);
  for (const shm::Handle handle : handles)
    client->channel.Pin(handle);
  EXPECT_EQ(other.Grant(space, 100).code, Code::kExhausted);
  world.engine->ClientGone(client->given.id);
  client.reset();
  EXPECT_TRUE(other.Put(space, 100).has_value());
  const GrantGiven grant = other.Grant(space, 101);
  EXPECT_EQ(grant.code, Code::kOk);
  world.engine->ClientGone(other.given.id);
  EXPECT_EQ(Summary().grants, 0u);
  EXPECT_EQ(Summary().granted_bytes, 0u);
  EXPECT_EQ(Summary().clients, 0u);
  std::vector<GrantGiven> given;
  EXPECT_EQ(world.engine->Grant(other.given.id, {}, &given).code(), Code::kNotFound);
}

TEST_F(PagesTest, EvictFreesWhatNobodyHolds) {
  ClientOfTest client(world);
  const SpaceGiven space = client.Open();
  const std::vector<shm::Handle> handles = Fill(client, space);
  client.channel.Pin(handles[0]);
  const Evicted some = world.engine->Evict(3 * kPage, UINT64_MAX);
  EXPECT_EQ(some.pages, 3u);
  EXPECT_EQ(some.bytes, 3 * kPage);
  EXPECT_EQ(world.engine->Evict(0, UINT64_MAX).pages, 12u);
  EXPECT_EQ(Summary().pages, 1u);
  EXPECT_EQ(Summary().evicted_pages, 15u);
}

TEST_F(PagesTest, LowerCapacityIsReachedTurnByTurn) {
  ClientOfTest client(world);
  const SpaceGiven space = client.Open();
  const std::vector<shm::Handle> handles = Fill(client, space);
  client.channel.Pin(handles[15]);
  world.engine->SetHostCapacity(4 * kPage);
  while (world.engine->Turn()) {
  }
  EXPECT_LE(Summary().used_bytes, 4 * kPage);
  EXPECT_EQ(client.Find(space, 15), handles[15]);
  world.engine->SetHostCapacity(16 * kPage);
  for (uint64_t key = 100; key < 140; ++key)
    ASSERT_TRUE(client.Put(space, key).has_value());
  EXPECT_EQ(Summary().linked_bytes, 16 * kPage);
}

TEST_F(PagesTest, BudgetOfGrantsIsHeld) {
  EngineOptions options = EngineWorld::SmallOptions();
  options.max_grants = 2;
  EngineWorld small(options);
  ClientOfTest client(small);
  const SpaceGiven space = client.Open();
  const std::vector<GrantGiven> grants =
      client.Grant(space, std::vector<Digest>{KeyOf(1), KeyOf(2), KeyOf(3)});
  EXPECT_EQ(grants[1].code, Code::kOk);
  EXPECT_EQ(grants[2].code, Code::kExhausted);
  EXPECT_EQ(client.Commit(grants[0].grant), Code::kOk);
  EXPECT_EQ(client.Grant(space, 3).code, Code::kOk);
}

TEST_F(PagesTest, ChangedLimitsAreForThoseWhoComeAfter) {
  EngineWorld changing(EngineWorld::SmallOptions());
  ClientOfTest before(changing);
  const SpaceGiven space = before.Open();
  ClientLimits limits;
  limits.max_grants = 0;
  EXPECT_EQ(changing.engine->SetClientLimits(limits).code(), Code::kInvalidArgument);
  limits.max_grants = 1;
  ASSERT_EQ(changing.engine->SetClientLimits(limits), Status());
  ClientOfTest after(changing);
  after.Open();
  const std::vector<Digest> keys = {KeyOf(1), KeyOf(2)};
  EXPECT_EQ(after.Grant(space, keys)[1].code, Code::kExhausted);
  EXPECT_EQ(before.Grant(space, std::vector<Digest>{KeyOf(3), KeyOf(4)})[1].code, Code::kOk);
}

TEST_F(PagesTest, ClientOverItsPinnedBytesIsCut) {
  EngineOptions options = EngineWorld::SmallOptions();
  options.max_pinned_bytes = 4 * kPage;
  EngineWorld small(options);
  ClientOfTest greedy(small);
  ClientOfTest modest(small);
  const SpaceGiven space = greedy.Open();
  modest.Open();
  const std::vector<shm::Handle> handles = Fill(greedy, space);
  for (int i = 0; i < 4; ++i) {
    modest.channel.Pin(handles[i]);
    modest.channel.Pin(handles[i]);  // Each extent counts once.
  }
  for (int i = 0; i < 5; ++i)
    greedy.channel.Pin(handles[4 + i]);
  for (uint64_t key = 100; key < 112; ++key)
    ASSERT_TRUE(modest.Put(space, key).has_value()) << "the pins of the cut client do not count";
  small.engine->Turn();
  ASSERT_TRUE(small.events.cut.contains(greedy.given.id));
  EXPECT_EQ(small.events.cut.size(), 1u);
  std::vector<GrantGiven> given;
  const Status refused = small.engine->Grant(
      greedy.given.id, {.slot = space.slot, .epoch = space.epoch, .keys = {}}, &given);
  EXPECT_EQ(refused.code(), Code::kPermissionDenied);
  EXPECT_THAT(refused.message(), HasSubstr("budget"));
  EXPECT_EQ(small.engine->CheckInvariants(), Status());
}

TEST_F(PagesTest, BatchesAreBounded) {
  ClientOfTest client(world);
  const SpaceGiven space = client.Open();
  const std::vector<Digest> keys(513);
  std::vector<GrantGiven> given;
  EXPECT_EQ(
      world.engine
          ->Grant(client.given.id, {.slot = space.slot, .epoch = space.epoch, .keys = keys}, &given)
          .code(),
      Code::kInvalidArgument);
  const std::vector<uint64_t> grants(513);
  std::vector<Code> codes;
  EXPECT_EQ(world.engine->Commit(client.given.id, grants, {}, &codes).code(),
            Code::kInvalidArgument);
  EXPECT_EQ(world.engine->Abort(client.given.id, grants).code(), Code::kInvalidArgument);
  EXPECT_EQ(world.engine->Drop(client.given.id, space.slot, space.epoch, 0, keys).status().code(),
            Code::kInvalidArgument);
  const std::vector<uint64_t> one(1);
  const std::vector<uint32_t> two(2);
  EXPECT_EQ(world.engine->Commit(client.given.id, one, two, &codes).code(), Code::kInvalidArgument);
}

TEST_F(PagesTest, ReadersWriteNothing) {
  ClientOfTest writer(world);
  ClientOfTest reader(world, "t", false);
  const SpaceGiven space = reader.Open();
  std::vector<GrantGiven> given;
  std::vector<Code> codes;
  const std::vector<Digest> keys = {KeyOf(1)};
  EXPECT_EQ(
      world.engine
          ->Grant(reader.given.id, {.slot = space.slot, .epoch = space.epoch, .keys = keys}, &given)
          .code(),
      Code::kPermissionDenied);
  EXPECT_EQ(world.engine->Commit(reader.given.id, {}, {}, &codes).code(), Code::kPermissionDenied);
  EXPECT_EQ(world.engine->Drop(reader.given.id, space.slot, space.epoch, 0, keys).status().code(),
            Code::kPermissionDenied);
  EXPECT_EQ(
      world.engine
          ->Grant(writer.given.id, {.slot = space.slot, .epoch = space.epoch, .keys = keys}, &given)
          .code(),
      Code::kPermissionDenied)
      << "it did not open the space";
}

}  // namespace
}  // namespace terrace
