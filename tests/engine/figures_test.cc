// Figures: what is told by tenant and space is what happened to it.
#include <gtest/gtest.h>

#include "tests/engine/engine_world.h"

namespace terrace {
namespace {

constexpr uint32_t kPage = EngineWorld::kPage;

class FiguresTest : public testing::Test {
 protected:
  // Invariants hold figures to the extents.
  ~FiguresTest() override { EXPECT_EQ(world.engine->CheckInvariants(), Status()); }
  EngineFigures Figures() const { return world.engine->Figures(); }
  static void Tell(ClientOfTest& client, shm::RingKind kind, uint32_t space_slot,
                   shm::Handle handle) {
    shm::Channel& channel = client.channel.channel();
    channel.lanes |= 1;
    shm::Ring& ring = channel.rings[0];
    shm::RingRecord& record = ring.records[ring.head % shm::kRingRecords];
    record.tag = shm::PackTag(kind, space_slot, 0);
    record.handle = handle;
    ++ring.head;
  }

  EngineWorld world;
};

TEST_F(FiguresTest, PagesBelongToTheirTenantByState) {
  ClientOfTest a(world, "a");
  ClientOfTest b(world, "b");
  const SpaceGiven space_a = a.Open();
  const SpaceGiven space_b = b.Open(kPage / 2);
  ASSERT_TRUE(a.Put(space_a, 1).has_value());
  ASSERT_TRUE(a.Put(space_a, 2).has_value());
  ASSERT_TRUE(b.Put(space_b, 1).has_value());
  const GrantGiven open = b.Grant(space_b, 2);
  const GrantGiven late = b.Grant(space_b, 3, /*deadline_ms=*/1);
  world.clock.Advance(2 * kNsPerMs);
  world.engine->Turn();
  const EngineFigures figures = Figures();
  ASSERT_EQ(figures.tenants.size(), 2u);
  EXPECT_EQ(figures.tenants[0].name, "a");
  EXPECT_EQ(figures.tenants[0].linked.extents, 2u);
  EXPECT_EQ(figures.tenants[0].linked.bytes, 2 * kPage);
  EXPECT_EQ(figures.tenants[0].clients, 1u);
  EXPECT_EQ(figures.tenants[0].pages.committed.bytes, 2 * kPage);
  EXPECT_EQ(figures.tenants[1].linked.bytes, kPage / 2);
  EXPECT_EQ(figures.tenants[1].granted.extents, 1u);
  EXPECT_EQ(figures.tenants[1].abandoned.extents, 1u);
  EXPECT_EQ(figures.tenants[1].pages.expired_grants, 1u);
  EXPECT_EQ(figures.tenants[1].pages.granted.extents, 3u);
  ASSERT_EQ(figures.spaces.size(), 2u);
  EXPECT_EQ(figures.spaces[0].id, space_a.id);
  EXPECT_EQ(figures.spaces[0].tenant, 0u);
  EXPECT_EQ(figures.spaces[0].pages, 2u);
  EXPECT_EQ(figures.spaces[1].bytes, kPage / 2);
  b.Abort(open.grant);
  b.Abort(late.grant);
}

TEST_F(FiguresTest, CommitsAreToldByWhatBecameOfThem) {
  ClientOfTest client(world);
  const SpaceGiven space = client.Open();
  const GrantGiven first = client.Grant(space, 1);
  const GrantGiven second = client.Grant(space, 1);
  const GrantGiven late = client.Grant(space, 2, /*deadline_ms=*/1);
  EXPECT_EQ(client.Commit(first.grant), Code::kOk);
  EXPECT_EQ(client.Commit(second.grant), Code::kAlreadyExists);
  world.clock.Advance(2 * kNsPerMs);
  EXPECT_EQ(client.Commit(late.grant), Code::kDeadlineExceeded);
  EXPECT_EQ(client.Commit(12345), Code::kNotFound);
  const PageCounts pages = Figures().tenants[0].pages;
  EXPECT_EQ(pages.committed.extents, 1u);
  EXPECT_EQ(pages.duplicate_commits, 1u);
  EXPECT_EQ(pages.refused_commits, 2u);
  EXPECT_EQ(pages.stale_commits, 0u);
  client.Abort(late.grant);
}

TEST_F(FiguresTest, APageIsReusedOnceHoweverOftenItIsRead) {
  ClientOfTest client(world);
  const SpaceGiven space = client.Open();
  const shm::Handle handle = client.Put(space, 1).value();
  ASSERT_TRUE(client.Put(space, 2).has_value());
  for (int i = 0; i < 3; ++i)
    Tell(client, shm::RingKind::kTouch, space.slot, handle);
  Tell(client, shm::RingKind::kMiss, space.slot, 0);
  world.engine->Turn();
  EXPECT_EQ(Figures().tenants[0].pages.reused, 1u);
  EXPECT_EQ(Figures().spaces[0].hits, 3u);
  EXPECT_EQ(Figures().spaces[0].misses, 1u);
  // Another page in its place is another page.
  world.engine->Evict(0, UINT64_MAX);
  EXPECT_EQ(client.Find(space, 1), std::nullopt);
  const shm::Handle again = client.Put(space, 1).value();
  Tell(client, shm::RingKind::kTouch, space.slot, handle);
  world.engine->Turn();
  EXPECT_EQ(Figures().tenants[0].pages.reused, 1u) << "that stay is over";
  Tell(client, shm::RingKind::kTouch, space.slot, again);
  world.engine->Turn();
  EXPECT_EQ(Figures().tenants[0].pages.reused, 2u);
}

TEST_F(FiguresTest, SlotsThatNoSpaceHasAreIgnored) {
  ClientOfTest client(world);
  const SpaceGiven space = client.Open();
  for (const uint32_t slot : {space.slot + 1, 4096u, 0xffffffu})
    Tell(client, shm::RingKind::kMiss, slot, 0);
  world.engine->Turn();
  EXPECT_EQ(Figures().spaces[0].misses, 0u);
}

TEST_F(FiguresTest, EvictionsAreToldByTenantAndReason) {
  ClientOfTest a(world, "a");
  ClientOfTest b(world, "b");
  const SpaceGiven space_a = a.Open();
  const SpaceGiven space_b = b.Open();
  const auto evicted = [&](size_t tenant, EvictionReason reason) {
    return Figures().tenants[tenant].evicted[static_cast<int>(reason)];
  };
  for (uint64_t key = 0; key < 16; ++key)
    ASSERT_TRUE(a.Put(space_a, key).has_value());
  EXPECT_EQ(evicted(0, EvictionReason::kPages).extents, 0u);
  ASSERT_TRUE(b.Put(space_b, 1).has_value());
  const uint64_t for_pages = evicted(0, EvictionReason::kPages).extents;
  EXPECT_GT(for_pages, 0u);
  EXPECT_EQ(evicted(0, EvictionReason::kPages).bytes, for_pages * kPage);
  EXPECT_EQ(evicted(1, EvictionReason::kPages).extents, 0u);
  world.engine->SetHostCapacity(4 * kPage);
  for (int turn = 0; turn < 100 && world.engine->Turn(); ++turn)
    continue;
  EXPECT_GT(evicted(0, EvictionReason::kCapacity).extents, 0u);
  const Evicted done = world.engine->Evict(0, UINT64_MAX);
  EXPECT_EQ(
      evicted(0, EvictionReason::kOperator).extents + evicted(1, EvictionReason::kOperator).extents,
      done.pages);
  EXPECT_GT(done.pages, 0u);
}

TEST_F(FiguresTest, BeyondTheBoundSpacesAreOnlyCounted) {
  std::deque<ClientOfTest> clients;
  for (int tenant = 0; tenant < 3; ++tenant) {
    clients.emplace_back(world, "t" + std::to_string(tenant));
    for (uint32_t i = 0; i < 1000; ++i) {
      SpaceSpec spec;
      spec.layout = LayoutOf(kPage);
      spec.salt = {static_cast<uint8_t>(i), static_cast<uint8_t>(i >> 8)};
      ASSERT_TRUE(world.engine->OpenSpace(clients.back().given.id, spec));
    }
  }
  const EngineFigures figures = Figures();
  EXPECT_EQ(figures.spaces.size(), EngineFigures::kMaxSpaces);
  for (const TenantFigures& tenant : figures.tenants)
    EXPECT_EQ(tenant.spaces, 1000u);
}

}  // namespace
}  // namespace terrace
