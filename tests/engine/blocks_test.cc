// Weights and pages under one budget, through the verbs of Engine.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <optional>

#include "tests/engine/engine_world.h"

namespace terrace {
namespace {

constexpr uint32_t kPage = EngineWorld::kPage;

class BlocksTest : public testing::Test {
 protected:
  BlocksTest() : client(world), space(client.Open()) {
    // Two blocks of four pages' bytes.
    AddModel("m", 8 * kPage);
  }
  ~BlocksTest() override {
    EXPECT_EQ(world.engine->CheckInvariants(), Status());
    EXPECT_LE(Summary().used_bytes, world.options.host_capacity_bytes);
  }
  StatusReport Summary() const { return world.engine->Summary(); }

  // Runs everything that waits for the tiers or for a turn.
  void Settle() {
    for (int quiet = 0; quiet < 3;) {
      const bool busy = world.sources.RunPending() + world.journal.RunPending() > 0;
      quiet = world.engine->Turn() || busy ? 0 : quiet + 1;
    }
  }
  ModelSpec SpecOf(const std::string& name) const {
    ModelSpec spec;
    spec.name = name;
    spec.version = "1";
    spec.tenant = client.tenant();
    spec.source.paths = {"/" + name};
    return spec;
  }
  void AddModel(const std::string& name, uint64_t bytes) {
    world.sources.AddFile(
        "/" + name,
        {{.name = "w", .dtype = "U8", .shape = {bytes}, .bytes = std::vector<uint8_t>(bytes, 7)}});
    std::optional<Result<ModelAdded>> added;
    world.engine->AddModel(SpecOf(name), [&](Result<ModelAdded> result) { added = result; });
    Settle();
    ASSERT_TRUE(added.has_value() && added->has_value());
  }
  Status SetAccess(const std::string& tenant, bool granted) {
    std::optional<Status> done;
    world.engine->SetModelAccess("m", tenant, granted,
                                 [&](const Status& status) { done = status; });
    Settle();
    return done.value_or(Status(Code::kInternal, "it never completed"));
  }
  Status Load(const std::string& name) {
    std::optional<Status> loaded;
    world.engine->Load(client.given.id, name, "", {},
                       [&](const Result<ModelLoaded>& result) { loaded = result.status(); });
    Settle();
    return loaded.value_or(Status(Code::kInternal, "the load never completed"));
  }
  Result<Attached> Attach(const std::string& name) {
    std::optional<Result<Attached>> attached;
    world.engine->Attach(client.given.id, name, "", false, 0,
                         [&](const Result<Attached>& result) { attached = result; });
    Settle();
    return attached.value_or(Status(Code::kInternal, "the attach never completed"));
  }
  void Fill(uint64_t first, uint64_t pages) {
    for (uint64_t key = first; key < first + pages; ++key)
      ASSERT_TRUE(client.Put(space, key).has_value()) << key;
  }
  uint32_t ResidentBlocks() const {
    return world.engine->Models().at(0).versions.at(0).blocks_resident;
  }

  EngineWorld world;
  ClientOfTest client;
  SpaceGiven space;
};

TEST_F(BlocksTest, ALoadTakesThePlaceOfOlderPages) {
  Fill(0, 16);
  ASSERT_EQ(Load("m"), Status());
  EXPECT_EQ(ResidentBlocks(), 2u);
  EXPECT_GE(Summary().block_bytes, 8 * kPage);
  EXPECT_FALSE(client.Find(space, 0).has_value());
  EXPECT_GT(Summary().pages, 0u);
}

TEST_F(BlocksTest, BlocksNobodyHoldsMakePlaceForPages) {
  ASSERT_EQ(Load("m"), Status());
  Fill(0, 100);
  EXPECT_EQ(ResidentBlocks(), 0u);
  EXPECT_EQ(Summary().evicted_blocks, 2u);
  EXPECT_EQ(Load("m"), Status()) << "and can be loaded again";
}

TEST_F(BlocksTest, AttachedBlocksSurvivePressure) {
  ASSERT_EQ(Load("m"), Status());
  const Result<Attached> attached = Attach("m");
  ASSERT_TRUE(attached.has_value());
  Fill(0, 100);
  EXPECT_EQ(ResidentBlocks(), 2u);
  EXPECT_EQ(world.engine->Clients().at(0).attached_bytes, 8 * kPage);
  const Result<std::vector<ArenaId>> blocks =
      world.engine->BlocksOf(client.given.id, attached->attachment, {});
  ASSERT_TRUE(blocks.has_value());
  EXPECT_EQ(blocks->size(), 2u);
  EXPECT_EQ(world.engine->Detach(client.given.id, attached->attachment), Status());
  Fill(200, 100);
  EXPECT_EQ(ResidentBlocks(), 0u);
}

TEST_F(BlocksTest, ALoadFailsWhenTooMuchIsHeld) {
  Fill(0, 16);
  for (uint64_t key = 0; key < 10; ++key)
    client.channel.Pin(client.Find(space, key).value());
  EXPECT_EQ(Load("m").code(), Code::kExhausted);
  EXPECT_TRUE(client.Find(space, 9).has_value());
}

TEST_F(BlocksTest, TheDeadDetach) {
  ASSERT_EQ(Load("m"), Status());
  ClientOfTest other(world);
  ASSERT_TRUE(Attach("m").has_value());
  world.engine->ClientGone(client.given.id);
  const SpaceGiven of_other = other.Open();
  for (uint64_t key = 0; key < 100; ++key)
    ASSERT_TRUE(other.Put(of_other, key).has_value());
  EXPECT_EQ(ResidentBlocks(), 0u);
}

TEST_F(BlocksTest, EvictTakesBlocksToo) {
  ASSERT_EQ(Load("m"), Status());
  const Evicted evicted = world.engine->Evict(0, UINT64_MAX);
  EXPECT_EQ(evicted.blocks, 2u);
  EXPECT_EQ(evicted.bytes, 8 * kPage);
}

TEST_F(BlocksTest, SpacesOfAModelShareItsGeneration) {
  SpaceSpec spec;
  spec.layout = LayoutOf(kPage);
  spec.model = "m";
  spec.salt = {1};
  const SpaceGiven one = *world.engine->OpenSpace(client.given.id, spec);
  spec.salt = {2};
  const SpaceGiven two = *world.engine->OpenSpace(client.given.id, spec);
  EXPECT_NE(one.generation_index, 0u);
  EXPECT_EQ(one.generation_index, two.generation_index);
  spec.model = "";
  EXPECT_EQ(world.engine->OpenSpace(client.given.id, spec).status().code(), Code::kMismatch)
      << "it is open as a space of the model";
  const GrantGiven grant = client.Grant(one, 1);
  world.engine->index(client.tenant()).SetGeneration(one.generation_index, one.generation + 1);
  EXPECT_EQ(client.Commit(grant.grant), Code::kStale);
}

TEST_F(BlocksTest, StrangersLoadAndAttachNothing) {
  std::optional<Status> status;
  world.engine->Attach(999, "m", "", true, 0,
                       [&](const Result<Attached>& result) { status = result.status(); });
  EXPECT_EQ(status.value().code(), Code::kNotFound);
  status.reset();
  world.engine->Load(999, "m", "", {},
                     [&](const Result<ModelLoaded>& result) { status = result.status(); });
  EXPECT_EQ(status.value().code(), Code::kNotFound);
  EXPECT_EQ(ResidentBlocks(), 0u);
  EXPECT_EQ(world.engine->BlocksOf(999, 1, {}).status().code(), Code::kNotFound);
  EXPECT_EQ(world.engine->Detach(999, 1).code(), Code::kNotFound);
}

// ---- Who may attach

TEST_F(BlocksTest, OnlyATenantThatAModelIsGrantedToAttachesIt) {
  ClientOfTest other(world, "other");
  const auto attach = [&](bool load) {
    std::optional<Result<Attached>> attached;
    world.engine->Attach(other.given.id, "m", "", load, 0,
                         [&](const Result<Attached>& result) { attached = result; });
    Settle();
    return attached.value_or(Status(Code::kInternal, "the attach never completed"));
  };
  EXPECT_EQ(attach(true).status(),
            Status(Code::kPermissionDenied, "model 'm' is not granted to tenant 'other'"));
  EXPECT_EQ(world.engine->CheckModelAccess(other.tenant(), "m").code(), Code::kPermissionDenied);
  EXPECT_EQ(world.engine->CheckModelAccess(other.tenant(), "unknown"), Status());
  EXPECT_EQ(SetAccess("nobody of this host", true).code(), Code::kNotFound);
  ASSERT_EQ(SetAccess("other", true), Status());
  const Result<Attached> attached = attach(true);
  ASSERT_EQ(attached.status(), Status());
  ASSERT_EQ(world.engine->BlocksOf(other.given.id, attached->attachment, {}).status(), Status());

  // Revoked: what it has it has, but it gets nothing more.
  ASSERT_EQ(SetAccess("other", false), Status());
  EXPECT_EQ(world.engine->BlocksOf(other.given.id, attached->attachment, {}).status().code(),
            Code::kPermissionDenied);
  EXPECT_EQ(attach(false).status().code(), Code::kPermissionDenied);
  EXPECT_EQ(Attach("m").status(), Status());  // Of who added it.
  // Nor by the removal of the model, and of its list with it.
  world.engine->RemoveModel("m", "", [](const Status&) {});
  Settle();
  EXPECT_EQ(world.engine->BlocksOf(other.given.id, attached->attachment, {}).status().code(),
            Code::kPermissionDenied);
  EXPECT_EQ(world.engine->Detach(other.given.id, attached->attachment), Status());
}

TEST_F(BlocksTest, WhoIsRevokedWhileItWaitsForTheLoadGetsNothing) {
  std::optional<Result<Attached>> attached;
  world.engine->Attach(client.given.id, "m", "", true, 0,
                       [&](const Result<Attached>& result) { attached = result; });
  ASSERT_FALSE(attached.has_value());
  ASSERT_EQ(SetAccess("t", false), Status());  // Which also lets the load run to its end.
  ASSERT_TRUE(attached.has_value());
  EXPECT_EQ(attached->status().code(), Code::kPermissionDenied);
  EXPECT_EQ(world.engine->Models().at(0).versions.at(0).attachments, 0u);
}

TEST_F(BlocksTest, AModelWhoseDaemonWasKilledBeforeItsListWasWrittenIsThereAndClosed) {
  world.engine->RemoveModel("m", "", [](const Status&) {});
  Settle();
  std::optional<Status> added;
  world.engine->AddModel(SpecOf("m"),
                         [&](const Result<ModelAdded>& result) { added = result.status(); });
  // Its two records are written one after the other: here the first one is, and the second waits.
  while (world.journal.pending() == 0)
    ASSERT_GT(world.sources.RunPending(), 0u);
  ASSERT_EQ(world.journal.RunPending(1), 1u);
  ASSERT_EQ(world.journal.pending(), 1u);
  EXPECT_FALSE(added.has_value()) << "it is not said to be durable before both are";
  world.Restart();

  const std::vector<ModelReport> models = world.engine->Models();
  ASSERT_EQ(models.size(), 1u);
  EXPECT_EQ(models[0].name, "m");
  EXPECT_TRUE(models[0].tenants.empty());
  EXPECT_THAT(Summary().restore_problems, testing::ElementsAre(testing::HasSubstr("model 'm'")));
  ClientOfTest again(world);
  const auto attach = [&] {
    std::optional<Status> attached;
    world.engine->Attach(again.given.id, "m", "", true, 0,
                         [&](const Result<Attached>& result) { attached = result.status(); });
    Settle();
    return attached.value_or(Status(Code::kInternal, "the attach never completed"));
  };
  EXPECT_EQ(attach().code(), Code::kPermissionDenied) << "not even by who added it";
  ASSERT_EQ(SetAccess("t", true), Status());
  EXPECT_EQ(attach(), Status());
}

TEST_F(BlocksTest, AModelThatIsRemovedAndAddedByAnotherTenantIsThatOnes) {
  ASSERT_EQ(SetAccess("t", true), Status());
  world.engine->RemoveModel("m", "", [](const Status&) {});
  Settle();
  ModelSpec spec;
  spec.name = "m";
  spec.version = "2";
  spec.tenant = *world.engine->AddTenant("second");
  spec.source.paths = {"/m"};
  world.engine->AddModel(std::move(spec), [](const Result<ModelAdded>&) {});
  Settle();
  EXPECT_EQ(world.engine->Models().at(0).tenants, std::vector<std::string>{"second"});
  EXPECT_EQ(Attach("m").status().code(), Code::kPermissionDenied);
}

}  // namespace
}  // namespace terrace
