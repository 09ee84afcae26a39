// Host memory under the engine: how slabs are cut, the budget, the reserve, what goes back, and a
// tier that fails.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "daemon/engine/placement/host_memory.h"
#include "daemon/engine/placement/slab.h"
#include "tests/engine/engine_world.h"

namespace terrace {
namespace {

using testing::SizeIs;

constexpr uint32_t kPage = EngineWorld::kPage;
constexpr uint64_t kMiB = 1u << 20;

TEST(SlabShapeTest, PagesAreCarvedWithoutWaste) {
  for (const uint32_t bytes : {64u, 4096u, 16384u, 24u << 10, 262144u, 3u << 20, 497664u, 562176u,
                               1064960u, 8u << 20, 64u << 20}) {
    const SlabShape shape = SlabShape::Of(bytes, 64 * kMiB, 2 * kMiB);
    EXPECT_EQ(shape.arena_bytes, uint64_t{shape.slots} * bytes) << bytes;
    EXPECT_EQ(shape.arena_bytes % 4096, 0u) << bytes;
    EXPECT_EQ(shape.grain_bytes() % 4096, 0u) << bytes;
    EXPECT_GT(shape.arena_bytes, 32 * kMiB) << bytes;
    EXPECT_LE(shape.arena_bytes, 64 * kMiB) << bytes;
    EXPECT_LE(shape.slots, shm::kMaxSlots);
  }
}

TEST(SlabShapeTest, WindowsAreWholeHugePagesWherePossible) {
  EXPECT_EQ(SlabShape::Of(262144, 64 * kMiB, 2 * kMiB).window_grains, 8u);
  EXPECT_EQ(SlabShape::Of(4096, 64 * kMiB, 2 * kMiB).window_grains, 512u);
  const SlabShape odd = SlabShape::Of(24 << 10, 64 * kMiB, 2 * kMiB);
  EXPECT_EQ(odd.window_grains * odd.grain_bytes() % (2 * kMiB), 0u);
  EXPECT_EQ(odd.grains() % odd.window_grains, 0u);
  EXPECT_EQ(SlabShape::Of(1064960, 64 * kMiB, 2 * kMiB).window_grains, 1u)
      << "130 MiB would be needed";
}

TEST(SlabShapeTest, APageLargerThanASlabHasASlabOfItsOwn) {
  const SlabShape shape = SlabShape::Of(100 * kMiB + 64, 64 * kMiB, 2 * kMiB);
  EXPECT_EQ(shape.slots, 1u);
  EXPECT_EQ(shape.grains(), 1u);
  EXPECT_EQ(shape.arena_bytes % 4096, 0u);
  EXPECT_EQ(shape.BytesOf(0, 1), shape.arena_bytes);
}

TEST(HostMemoryTest, SlotWithoutFurtherSequenceNumbersIsRetired) {
  SimHostTier tier;
  Slabs slabs;
  HostMemory memory({.capacity_bytes = 4 * kPage,
                     .slab_bytes = 2 * kPage,
                     .huge_page_bytes = kPage,
                     .pretouch_bytes = 0},
                    tier, slabs);
  SlabClass* of = *memory.ClassOf(1, kPage);
  ASSERT_TRUE(memory.Extend(*of));
  const SlotRef slot = slabs.Take(*of).value();
  slot->sequence = shm::kMaxSequence;
  slabs.Free(slot);
  EXPECT_EQ(slot->state, SlotState::kRetired);
  ASSERT_TRUE(memory.Extend(*of));
  const SlotRef next = slabs.Take(*of).value();
  EXPECT_NE(next.index, slot.index);
  EXPECT_FALSE(slabs.Take(*of).has_value());
  EXPECT_EQ(memory.Punch(*of, UINT64_MAX), kPage) << "its memory goes back";
  EXPECT_EQ(memory.CheckInvariants(), Status());
}

TEST(HostMemoryTest, ABlankBeyondTheBudgetThatCannotBeEmptiedIsReleased) {
  SimHostTier tier({.blank_bytes = kMiB});
  tier.SetReserve(kMiB);
  ASSERT_EQ(tier.MakeBlanks(), 1u);
  Slabs slabs;
  HostMemory memory({.capacity_bytes = kMiB / 2, .slab_bytes = kMiB, .huge_page_bytes = 4096}, tier,
                    slabs);
  SlabClass* of = *memory.ClassOf(1, kPage);
  tier.punch_faults.FailAfter(0, Status(Code::kInternal, "no"));
  EXPECT_FALSE(memory.Extend(*of));
  EXPECT_EQ(tier.arena_count(), 0u);
  EXPECT_EQ(memory.CheckInvariants(), Status());
  EXPECT_TRUE(memory.Extend(*of));
}

TEST(HostMemoryTest, PageSizesOfATenantAreBounded) {
  SimHostTier tier;
  Slabs slabs;
  HostMemory memory(
      {.capacity_bytes = 1 << 30, .slab_bytes = 4096, .huge_page_bytes = 4096, .pretouch_bytes = 0},
      tier, slabs);
  SlabClass* first = *memory.ClassOf(1, 64);
  ASSERT_TRUE(memory.Extend(*first));
  for (uint32_t i = 2; i <= HostMemory::kMaxClasses; ++i) {
    Result<SlabClass*> of = memory.ClassOf(1, 64 * i);
    ASSERT_TRUE(of.has_value());
    if (i < HostMemory::kMaxClasses) {
      ASSERT_TRUE(memory.Extend(**of));
    }
  }
  EXPECT_TRUE(memory.ClassOf(1, 1 << 16).has_value()) << "one class had no slab";
  ASSERT_TRUE(memory.Extend(**memory.ClassOf(1, 1 << 16)));
  EXPECT_EQ(memory.ClassOf(1, 1 << 17).status().code(), Code::kExhausted);
  EXPECT_TRUE(memory.ClassOf(2, 1 << 17).has_value()) << "of this tenant only";
}

class MemoryTest : public testing::Test {
 protected:
  ~MemoryTest() override {
    EXPECT_EQ(world.engine->CheckInvariants(), Status());
    EXPECT_LE(world.engine->Summary().used_bytes, world.options.host_capacity_bytes);
  }
  StatusReport Summary() const { return world.engine->Summary(); }
  void Fill(ClientOfTest& client, const SpaceGiven& space, uint64_t pages = 16) {
    for (uint64_t key = 0; key < pages; ++key)
      ASSERT_TRUE(client.Put(space, key).has_value()) << key;
  }
  void Drop(const ClientOfTest& client, const SpaceGiven& space, uint64_t pages = 16) {
    std::vector<Digest> keys;
    for (uint64_t key = 0; key < pages; ++key)
      keys.push_back(KeyOf(key));
    ASSERT_EQ(*world.engine->Drop(client.given.id, space.slot, space.epoch, 0, keys), pages);
  }
  void TurnFor(MonotonicNs ns) {
    for (MonotonicNs passed = 0; passed < ns; passed += 100 * kNsPerMs) {
      world.clock.Advance(100 * kNsPerMs);
      world.engine->Turn();
    }
  }

  EngineWorld world;
};

TEST_F(MemoryTest, TheReserveIsKeptAheadOfDemand) {
  EngineOptions options = EngineWorld::SmallOptions();
  options.host_capacity_bytes = 64 * kPage;  // A sixteenth of it is four pages.
  EngineWorld large(options);
  ClientOfTest client(large);
  const SpaceGiven space = client.Open();
  Fill(client, space, 64);
  EXPECT_EQ(large.engine->Summary().evicted_pages, 0u);
  large.engine->Turn();
  const uint64_t ahead = large.engine->Summary().evicted_pages;
  EXPECT_GE(ahead, 4u);
  for (uint64_t key = 100; key < 104; ++key)
    ASSERT_TRUE(client.Put(space, key).has_value());
  EXPECT_EQ(large.engine->Summary().evicted_pages, ahead) << "the reserve served these";
  EXPECT_EQ(large.engine->CheckInvariants(), Status());
}

TEST_F(MemoryTest, WithoutDemandNothingIsEvictedAhead) {
  ClientOfTest client(world);
  const SpaceGiven space = client.Open();
  Fill(client, space);
  world.clock.Advance(100 * kNsPerSecond);
  while (world.engine->Turn()) {
  }
  EXPECT_EQ(Summary().evicted_pages, 0u);
}

TEST(ReserveTest, BlanksAndUsedMemoryStayWithinTheCapacity) {
  EngineOptions options = EngineWorld::SmallOptions();
  options.host_capacity_bytes = 8 * kMiB;
  options.slab_bytes = kMiB;
  EngineWorld world(options);
  const auto expect_within_capacity = [&] {
    EXPECT_LE(world.engine->Summary().used_bytes + world.tier.Report().blank_target_bytes,
              options.host_capacity_bytes);
  };
  EXPECT_EQ(world.tier.Report().blank_target_bytes, 8 * kMiB);
  while (world.tier.MakeBlanks() > 0) {
  }
  ClientOfTest client(world);
  const SpaceGiven space = client.Open();
  for (uint64_t key = 0; key < 2000; ++key) {
    ASSERT_TRUE(client.Put(space, key).has_value());
    expect_within_capacity();
    if (key % 10 == 0) world.tier.MakeBlanks();
    if (key % 64 == 0) {
      world.clock.Advance(10 * kNsPerMs);
      world.engine->Turn();
      expect_within_capacity();
    }
  }
  EXPECT_EQ(world.tier.populate_faults.calls(), 0u) << "all memory came from blanks";
  EXPECT_EQ(world.engine->CheckInvariants(), Status());
}

TEST(ReserveTest, BlanksThatCouldNotBeMadeAreTriedAgain) {
  EngineOptions options = EngineWorld::SmallOptions();
  options.host_capacity_bytes = 8 * kMiB;
  EngineWorld world(options);
  world.tier.blank_faults.FailAfter(0, Status(Code::kExhausted, "cgroup is full"));
  EXPECT_EQ(world.tier.MakeBlanks(), 0u);
  EXPECT_EQ(world.tier.MakeBlanks(), 0u) << "it stopped";
  world.clock.Advance(10 * kNsPerSecond);
  world.engine->Turn();
  EXPECT_EQ(world.tier.MakeBlanks(), 1u);
}

TEST_F(MemoryTest, IdleMemoryGoesBack) {
  ClientOfTest client(world);
  const SpaceGiven space = client.Open();
  Fill(client, space);
  Drop(client, space, 15);
  TurnFor(20 * kNsPerSecond);
  EXPECT_EQ(Summary().free_bytes, 15 * kPage) << "a lull is no end";
  TurnFor(20 * kNsPerSecond);
  EXPECT_EQ(Summary().free_bytes, 0u);
  EXPECT_EQ(Summary().used_bytes, kPage);
  EXPECT_THAT(world.events.gone[client.tenant()], SizeIs(3));
  EXPECT_EQ(world.tier.arena_count(), 1u);
  EXPECT_TRUE(client.Find(space, 15).has_value());
  EXPECT_TRUE(client.Put(space, 16).has_value()) << "and comes again";
}

TEST_F(MemoryTest, AnArenaStaysAsLongAsAPinNamesIt) {
  ClientOfTest client(world);
  const SpaceGiven space = client.Open();
  Fill(client, space, 1);
  const shm::Handle handle = client.Find(space, 0).value();
  Drop(client, space, 1);
  TurnFor(kNsPerSecond);
  EXPECT_EQ(Summary().limbo_pages, 0u);
  // A reader with an old handle: it will find the page gone, but looks at it now.
  const uint32_t pin = client.channel.Pin(handle);
  TurnFor(60 * kNsPerSecond);
  EXPECT_EQ(Summary().used_bytes, 0u);
  EXPECT_EQ(world.tier.arena_count(), 1u);
  client.channel.Unpin(pin);
  TurnFor(2 * kNsPerSecond);
  EXPECT_EQ(world.tier.arena_count(), 0u);
  EXPECT_FALSE(world.engine->FindArena(client.given.id, shm::ArenaOf(handle)).has_value());
}

TEST_F(MemoryTest, PagesOfAnOddSizeShareTheirPagesOfMemory) {
  ClientOfTest client(world);
  constexpr uint32_t kOdd = 1536;  // Eight fill three pages of 4096.
  const SpaceGiven odd = client.Open(kOdd);
  const SpaceGiven even = client.Open(kPage, 1);
  std::vector<shm::Handle> handles;
  for (uint64_t key = 0; key < 160; ++key)
    handles.push_back(client.Put(odd, key).value());
  client.channel.Pin(handles[7]);
  TurnFor(5 * kNsPerSecond);  // There is no demand for odd pages any more.
  for (uint64_t key = 0; key < 100; ++key)
    ASSERT_TRUE(client.Put(even, key).has_value()) << key;
  EXPECT_EQ(client.Find(odd, 7), handles[7]);
  EXPECT_EQ(Summary().used_bytes, 15 * kPage + 8 * kOdd)
      << "all went to even pages but the memory that the pinned page lies in";
}

TEST_F(MemoryTest, AllocationFailsWhereTheTierRefusesAndRecovers) {
  ClientOfTest client(world);
  const SpaceGiven space = client.Open();
  world.tier.create_faults.FailAfter(0, Status(Code::kUnavailable, "no descriptors"));
  EXPECT_EQ(client.Grant(space, 1).code, Code::kExhausted);
  world.tier.populate_faults.FailAfter(0, Status(Code::kExhausted, "cgroup is full"));
  EXPECT_EQ(client.Grant(space, 1).code, Code::kExhausted);
  EXPECT_EQ(Summary().used_bytes, 0u) << "what failed to become resident is not in the books";
  EXPECT_TRUE(client.Put(space, 1).has_value());
}

TEST_F(MemoryTest, WhereTheTierRefusesPagesOfTheSizeMakePlace) {
  ClientOfTest client(world);
  const SpaceGiven space = client.Open();
  Fill(client, space, 4);
  for (uint64_t call = 0; call < 16; ++call)
    world.tier.create_faults.FailAfter(call, Status(Code::kUnavailable, "no descriptors"));
  EXPECT_TRUE(client.Put(space, 100).has_value());
  EXPECT_FALSE(client.Find(space, 0).has_value());
}

TEST_F(MemoryTest, WhatCannotBePunchedStaysInTheBooks) {
  ClientOfTest client(world);
  const SpaceGiven small = client.Open();
  const SpaceGiven large = client.Open(4 * kPage, 1);
  Fill(client, small);
  for (uint64_t call = 0; call < 64; ++call)
    world.tier.punch_faults.FailAfter(call, Status(Code::kInternal, "no"));
  EXPECT_EQ(client.Grant(large, 100).code, Code::kExhausted);
  EXPECT_EQ(Summary().used_bytes, 16 * kPage);
  EXPECT_EQ(world.engine->CheckInvariants(), Status());
  world.tier.punch_faults.Clear();
  EXPECT_TRUE(client.Put(large, 100).has_value());
}

TEST_F(MemoryTest, MemoryThatCouldNotBeGivenBackIsInTheBooksAndComesBackWithItsSlots) {
  ClientOfTest client(world);
  const SpaceGiven space = client.Open();
  world.tier.populate_faults.FailAfter(0, Status(Code::kExhausted, "cgroup is full"));
  world.tier.punch_faults.FailAfter(0, Status(Code::kInternal, "no"));
  (void)client.Grant(space, 1);
  EXPECT_GE(Summary().used_bytes, 2 * kPage);
  EXPECT_EQ(world.engine->CheckInvariants(), Status());
  // Pages of another size take the memory, and when they go the first size has all of it.
  const SpaceGiven large = client.Open(4 * kPage, 1);
  for (uint64_t key = 0; key < 4; ++key)
    ASSERT_TRUE(client.Put(large, 100 + key).has_value()) << key;
  Fill(client, space);
  for (uint64_t key = 0; key < 16; ++key)
    EXPECT_TRUE(client.Find(space, key).has_value()) << key;
}

TEST_F(MemoryTest, APageLargerThanTheCapacityTakesNothingFromOthers) {
  ClientOfTest client(world);
  const SpaceGiven small = client.Open();
  const SpaceGiven huge = client.Open(17 * kPage, 1);
  Fill(client, small);
  Drop(client, small, 8);
  TurnFor(100 * kNsPerMs);
  const uint64_t used = Summary().used_bytes;
  EXPECT_EQ(client.Grant(huge, 100).code, Code::kExhausted);
  EXPECT_EQ(Summary().evicted_pages, 0u);
  EXPECT_EQ(Summary().used_bytes, used);
}

TEST_F(MemoryTest, AnAllocationThatCannotBeMetTakesNothingFromOthers) {
  ClientOfTest client(world);
  const SpaceGiven small = client.Open();
  const SpaceGiven large = client.Open(4 * kPage, 1);
  std::vector<uint64_t> grants;
  for (uint64_t key = 0; key < 16; ++key)
    grants.push_back(client.Grant(small, key).grant);
  ASSERT_EQ(world.engine->Abort(client.given.id, std::span(grants).first(3)), Status());
  EXPECT_EQ(client.Grant(large, 100).code, Code::kExhausted);
  EXPECT_EQ(Summary().used_bytes, 16 * kPage);
  // One more, and there is memory for it.
  ASSERT_EQ(world.engine->Abort(client.given.id, std::span(grants).subspan(3, 1)), Status());
  EXPECT_EQ(client.Grant(large, 100).code, Code::kOk);
}

TEST_F(MemoryTest, PagesArriveWithMemoryBehindThem) {
  ClientOfTest client(world);
  const SpaceGiven small = client.Open();
  const SpaceGiven large = client.Open(4 * kPage, 1);
  for (uint64_t key = 0; key < 100; ++key) {
    const SpaceGiven& space = key / 10 % 2 == 0 ? small : large;
    const GrantGiven grant = client.Grant(space, key);
    ASSERT_EQ(grant.code, Code::kOk);
    const auto arena = world.tier.Map(shm::ArenaOf(grant.handle));
    ASSERT_NE(arena, nullptr);
    EXPECT_TRUE(
        arena->Resident(uint64_t{shm::SlotOf(grant.handle)} * space.page_bytes, space.page_bytes));
    ASSERT_EQ(client.Commit(grant.grant), Code::kOk);
  }
}

}  // namespace
}  // namespace terrace
