// Spaces: identity, mismatches, who has them open, and when their slots are used again.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <deque>

#include "daemon/engine/catalog.h"
#include "daemon/engine/clients.h"
#include "tests/engine/engine_world.h"

namespace terrace {
namespace {

using testing::HasSubstr;

constexpr uint32_t kPage = EngineWorld::kPage;

class SpacesTest : public testing::Test {
 protected:
  ~SpacesTest() override { EXPECT_EQ(world.engine->CheckInvariants(), Status()); }
  static SpaceSpec SpecOf(uint32_t page_bytes, uint32_t page_tokens = 16) {
    SpaceSpec spec;
    spec.layout = LayoutOf(page_bytes, page_tokens);
    return spec;
  }
  Result<SpaceGiven> Open(const ClientOfTest& client, const SpaceSpec& spec) {
    return world.engine->OpenSpace(client.given.id, spec);
  }

  EngineWorld world;
};

TEST_F(SpacesTest, TheSameSpaceIsSharedWithinATenant) {
  ClientOfTest one(world);
  ClientOfTest two(world);
  const SpaceGiven first = one.Open();
  const SpaceGiven second = two.Open();
  EXPECT_EQ(first.id, second.id);
  EXPECT_EQ(first.slot, second.slot);
  EXPECT_EQ(first.epoch, second.epoch);
  EXPECT_EQ(first.page_bytes, kPage);
  EXPECT_EQ(world.engine->Spaces().at(0).open_by, 2u);
}

TEST_F(SpacesTest, AnotherLayoutIsRefusedAndTheFieldNamed) {
  ClientOfTest one(world);
  ClientOfTest two(world);
  ASSERT_TRUE(Open(one, SpecOf(kPage, 16)).has_value());
  const Result<SpaceGiven> other = Open(two, SpecOf(kPage, 32));
  ASSERT_FALSE(other.has_value());
  EXPECT_EQ(other.error().code(), Code::kMismatch);
  EXPECT_THAT(other.error().message(), HasSubstr("head_size"));
}

TEST_F(SpacesTest, PagesAloneKeepTheLayout) {
  auto one = std::make_unique<ClientOfTest>(world);
  const SpaceGiven space = one->Open();
  ASSERT_TRUE(one->Put(space, 1).has_value());
  world.engine->ClientGone(one->given.id);
  ClientOfTest two(world);
  SpaceSpec other = SpecOf(2 * kPage);
  other.salt = {0};
  EXPECT_EQ(Open(two, other).status().code(), Code::kMismatch);
  EXPECT_EQ(world.engine->Evict(0, UINT64_MAX).pages, 1u);
  const Result<SpaceGiven> opened = Open(two, other);
  ASSERT_TRUE(opened.has_value());
  EXPECT_NE(opened->epoch, space.epoch) << "nothing of the old space may be found in the new one";
}

TEST_F(SpacesTest, SaltAdapterAndWeightsMakeOtherSpaces) {
  ClientOfTest client(world);
  SpaceSpec spec = SpecOf(kPage);
  const Digest plain = Open(client, spec)->id;
  spec.salt = {1};
  const Digest salted = Open(client, spec)->id;
  spec.adapter = KeyOf(1);
  const Digest adapted = Open(client, spec)->id;
  spec.weights = KeyOf(2);
  const Digest weighted = Open(client, spec)->id;
  EXPECT_EQ(std::set<Digest>({plain, salted, adapted, weighted}).size(), 4u);
  spec.salt.resize(65);
  EXPECT_EQ(Open(client, spec).status().code(), Code::kInvalidArgument);
}

TEST_F(SpacesTest, OpensByIdOnlyWhatIsPresent) {
  auto one = std::make_unique<ClientOfTest>(world);
  ClientOfTest two(world);
  const SpaceGiven space = one->Open();
  const Result<SpaceGiven> found = world.engine->OpenSpaceById(two.given.id, space.id);
  ASSERT_TRUE(found.has_value());
  EXPECT_EQ(found->slot, space.slot);
  EXPECT_EQ(found->layout, LayoutOf(kPage));
  EXPECT_EQ(world.engine->CloseSpace(two.given.id, space.slot, space.epoch), Status());
  world.engine->ClientGone(one->given.id);
  EXPECT_EQ(world.engine->OpenSpaceById(two.given.id, space.id).status().code(), Code::kNotFound);
  ClientOfTest stranger(world, "another tenant");
  EXPECT_EQ(world.engine->OpenSpaceById(stranger.given.id, space.id).status().code(),
            Code::kNotFound);
}

TEST_F(SpacesTest, ClosingNeedsAnOpening) {
  ClientOfTest one(world);
  ClientOfTest two(world);
  const SpaceGiven space = one.Open();
  one.Open();
  EXPECT_EQ(world.engine->CloseSpace(two.given.id, space.slot, space.epoch).code(),
            Code::kNotFound);
  EXPECT_EQ(world.engine->CloseSpace(one.given.id, space.slot, space.epoch + 1).code(),
            Code::kStale);
  EXPECT_EQ(world.engine->CloseSpace(one.given.id, space.slot, space.epoch), Status());
  EXPECT_EQ(world.engine->CloseSpace(one.given.id, space.slot, space.epoch), Status());
  EXPECT_EQ(world.engine->CloseSpace(one.given.id, space.slot, space.epoch).code(),
            Code::kNotFound);
}

TEST_F(SpacesTest, SlotsOfUnusedSpacesAreUsedAgain) {
  ClientOfTest client(world);
  SpaceSpec spec = SpecOf(kPage);
  const SpaceGiven kept = client.Open();
  for (uint32_t i = 0; i < 2 * shm::kMaxSpaces; ++i) {
    spec.weights = KeyOf(i);
    const Result<SpaceGiven> space = Open(client, spec);
    ASSERT_TRUE(space.has_value()) << i;
    ASSERT_EQ(world.engine->CloseSpace(client.given.id, space->slot, space->epoch), Status());
  }
  EXPECT_EQ(world.engine->OpenSpaceById(client.given.id, kept.id)->epoch, kept.epoch);
}

TEST_F(SpacesTest, SpaceSlotsCanRunOut) {
  std::deque<ClientOfTest> clients;
  SpaceSpec spec = SpecOf(kPage);
  for (uint32_t i = 0; i < shm::kMaxSpaces; ++i) {
    if (i % world.options.max_spaces == 0) clients.emplace_back(world);
    spec.weights = KeyOf(i);
    ASSERT_TRUE(Open(clients.back(), spec).has_value()) << i;
  }
  spec.weights = KeyOf(shm::kMaxSpaces);
  EXPECT_EQ(Open(clients.emplace_back(world), spec).status().code(), Code::kExhausted);
}

TEST_F(SpacesTest, OneClientCannotOpenAllSpaces) {
  ClientOfTest greedy(world);
  SpaceSpec spec = SpecOf(kPage);
  std::vector<SpaceGiven> open;
  for (uint32_t i = 0; i < world.options.max_spaces; ++i) {
    spec.weights = KeyOf(i);
    const Result<SpaceGiven> space = Open(greedy, spec);
    ASSERT_TRUE(space.has_value()) << i;
    open.push_back(*space);
  }
  // One that it has open already costs nothing more, and closing that again frees nothing.
  ASSERT_TRUE(Open(greedy, spec).has_value());
  ASSERT_EQ(world.engine->CloseSpace(greedy.given.id, open.back().slot, open.back().epoch),
            Status());
  SpaceSpec more = spec;
  more.weights = KeyOf(world.options.max_spaces);
  const Status refused = Open(greedy, more).status();
  EXPECT_EQ(refused.code(), Code::kExhausted);
  EXPECT_NE(refused.message().find("limits.spaces"), std::string::npos) << refused.message();
  ClientOfTest other(world);
  const Result<SpaceGiven> others = Open(other, more);
  ASSERT_TRUE(others.has_value());
  EXPECT_EQ(world.engine->OpenSpaceById(greedy.given.id, others->id).status().code(),
            Code::kExhausted);
  ASSERT_EQ(world.engine->CloseSpace(greedy.given.id, open[0].slot, open[0].epoch), Status());
  EXPECT_TRUE(Open(greedy, more).has_value());
}

TEST_F(SpacesTest, CommitIntoARetiredSpaceIsStale) {
  ClientOfTest one(world);
  ClientOfTest two(world);
  const SpaceGiven space = one.Open();
  const GrantGiven grant = one.Grant(space, 1);
  ASSERT_EQ(world.engine->CloseSpace(one.given.id, space.slot, space.epoch), Status());
  two.Open(2 * kPage);  // The same identity: retires the space, which nobody has open.
  EXPECT_EQ(one.Commit(grant.grant), Code::kStale);
  std::vector<GrantGiven> given;
  EXPECT_EQ(
      world.engine
          ->Grant(one.given.id, {.slot = space.slot, .epoch = space.epoch, .keys = {}}, &given)
          .code(),
      Code::kStale);
}

TEST_F(SpacesTest, AnUnknownModelFencesNothing) {
  ClientOfTest client(world);
  SpaceSpec spec = SpecOf(kPage);
  spec.model = "nobody/knows";
  const Result<SpaceGiven> space = Open(client, spec);
  EXPECT_EQ(space.status().code(), Code::kNotFound);
  EXPECT_THAT(space.status().message(), HasSubstr("nobody/knows"));
}

TEST_F(SpacesTest, ReportsNameLayoutAndPages) {
  ClientOfTest client(world);
  const SpaceGiven space = client.Open();
  for (uint64_t key = 0; key < 3; ++key)
    ASSERT_TRUE(client.Put(space, key).has_value());
  const std::vector<SpaceReport> spaces = world.engine->Spaces();
  ASSERT_EQ(spaces.size(), 1u);
  EXPECT_EQ(spaces[0].tenant, "t");
  EXPECT_EQ(spaces[0].pages, 3u);
  EXPECT_EQ(spaces[0].bytes, 3 * kPage);
  EXPECT_EQ(spaces[0].layout, LayoutOf(kPage));
  EXPECT_EQ(world.engine->Pages("", 0, 0).size(), 3u);
  EXPECT_EQ(world.engine->Pages(space.id.Hex(), 2, 0).size(), 2u);
  EXPECT_EQ(world.engine->Pages(space.id.Hex(), 0, 0).at(0).space, space.id);
  EXPECT_EQ(world.engine->Pages(KeyOf(1).Hex(), 0, 0).size(), 0u);
  EXPECT_EQ(world.engine->Pages("no hex", 0, 0).size(), 0u);
}

TEST(TenantsTest, TheSameNameIsTheSameTenant) {
  EngineWorld world;
  const TenantId one = *world.engine->AddTenant("one");
  EXPECT_EQ(*world.engine->AddTenant("one"), one);
  EXPECT_NE(*world.engine->AddTenant("two"), one);
}

TEST(TenantsTest, WithoutMemoryForADirectoryThereIsNoTenant) {
  EngineWorld world;
  world.directories.refuse = true;
  EXPECT_EQ(world.engine->AddTenant("one").status().code(), Code::kExhausted);
  world.directories.refuse = false;
  EXPECT_TRUE(world.engine->AddTenant("one").has_value());
}

TEST(TenantsTest, ClientsNeedATenantAndAWholeChannel) {
  EngineWorld world;
  ChannelOfTest channel;
  EXPECT_EQ(world.engine->ClientArrived({.tenant = 7, .name = ""}, channel.bytes()).status().code(),
            Code::kNotFound);
  const TenantId tenant = *world.engine->AddTenant("one");
  EXPECT_EQ(world.engine->ClientArrived({.tenant = tenant, .name = ""}, channel.bytes().first(4096))
                .status()
                .code(),
            Code::kInvalidArgument);
  const Result<ClientGiven> given =
      world.engine->ClientArrived({.tenant = tenant, .name = "", .max_pins = 9}, channel.bytes());
  ASSERT_TRUE(given.has_value());
  EXPECT_EQ(given->max_pins, 16u) << "whole lines";
  EXPECT_EQ(channel.channel().client_id.load(), given->id);
  EXPECT_EQ(channel.channel().pin_lines.load(), 2u);
  EXPECT_EQ(channel.channel().magic.load(), shm::kChannelMagic);
}

TEST(TenantsTest, TheirNumberIsBounded) {
  Catalog catalog([] { return Result<std::unique_ptr<TenantIndex>>(nullptr); }, 16);
  for (uint32_t i = 0; i < Catalog::kMaxTenants; ++i)
    ASSERT_TRUE(catalog.AddTenant(std::to_string(i)).has_value());
  EXPECT_EQ(catalog.AddTenant("one more").status().code(), Code::kExhausted);
  EXPECT_TRUE(catalog.AddTenant("7").has_value());
}

TEST(TenantsTest, ModelsThatFenceSpacesAreBounded) {
  PlainDirectory memory;
  Catalog catalog([&] { return MakeTenantIndex(memory); }, shm::kMaxSpaces);
  Tenant& tenant = catalog.At(*catalog.AddTenant("one"));
  const auto any_model = [](const std::string&) { return true; };
  SpaceSpec spec;
  spec.layout = LayoutOf(kPage);
  for (uint32_t i = 1; i <= shm::kMaxGenerations; ++i) {
    spec.model = std::to_string(i);
    spec.weights = KeyOf(i);
    const Result<Space*> space = catalog.Open(tenant, 1, spec, any_model);
    EXPECT_EQ(space.status().code(), i < shm::kMaxGenerations ? Code::kOk : Code::kExhausted) << i;
  }
}

TEST(ClientsTest, TheirNumberIsBounded) {
  Clients clients;
  const EngineOptions options;
  for (size_t i = 0; i < Clients::kMaxClients; ++i)
    ASSERT_TRUE(clients.Add({}, options, 1 << 20).has_value());
  EXPECT_EQ(clients.Add({}, options, 1 << 20).status().code(), Code::kExhausted);
  clients.Remove(7);
  EXPECT_TRUE(clients.Add({}, options, 1 << 20).has_value());
}

TEST(EngineOptionsTest, EachIsCheckedAndNamed) {
  const auto refusal = [](auto change) {
    EngineOptions options = EngineWorld::SmallOptions();
    change(options);
    SimHostTier tier;
    SimJournal journal;
    SimWeightSources sources;
    ManualClock clock;
    PlainDirectory directories;
    RecordedEvents events;
    EngineParts parts;
    parts.clock = &clock;
    parts.host = &tier;
    parts.sources = &sources;
    parts.journal = &journal;
    parts.directory_memory = &directories;
    parts.host_policy = MakeLru();
    return MakeEngine(options, std::move(parts), events).status().message();
  };
  EXPECT_THAT(refusal([](EngineOptions& o) { o.host_capacity_bytes = 0; }),
              HasSubstr("host_capacity_bytes"));
  EXPECT_THAT(refusal([](EngineOptions& o) { o.slab_bytes = 1; }), HasSubstr("slab_bytes"));
  EXPECT_THAT(refusal([](EngineOptions& o) { o.block_bytes = 5000; }), HasSubstr("block_bytes"));
  EXPECT_THAT(refusal([](EngineOptions& o) { o.block_bytes = 1u << 30; }),
              HasSubstr("block_bytes"));
  EXPECT_THAT(refusal([](EngineOptions& o) { o.huge_page_bytes = 0; }),
              HasSubstr("huge_page_bytes"));
  EXPECT_THAT(refusal([](EngineOptions& o) { o.max_pins = 65537; }), HasSubstr("max_pins"));
  EXPECT_THAT(refusal([](EngineOptions& o) { o.max_grants = 0; }), HasSubstr("max_grants"));
  EXPECT_THAT(refusal([](EngineOptions& o) { o.grant_deadline_ms = 0; }),
              HasSubstr("grant_deadline_ms"));
  EXPECT_EQ(refusal([](EngineOptions&) {}), "");
}

}  // namespace
}  // namespace terrace
