#include "tests/weights/weights_world.h"

namespace terrace {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

constexpr ClientId kClient = WeightsWorld::kClient;
constexpr ClientId kOther = 2;

class Attaching : public testing::Test {
 protected:
  Attaching() { world_.AddRandom("m", 1, 20); }
  ~Attaching() override { world_.ExpectConsistent(); }

  uint64_t EvictAll() {
    uint64_t evicted = 0;
    while (world_.memory.EvictOne())
      ++evicted;
    return evicted;
  }
  WeightsWorld world_;
};

TEST_F(Attaching, EveryClientGetsTheSameMemory) {
  const auto one = world_.Attach("m");
  const auto two = world_.Attach("m", true, kOther);
  ASSERT_TRUE(one.has_value() && two.has_value());
  EXPECT_NE(one->attachment, two->attachment);
  EXPECT_EQ(one->manifest, two->manifest);
  EXPECT_EQ(*world_.weights->BlocksOf(kClient, one->attachment, {}),
            *world_.weights->BlocksOf(kOther, two->attachment, {}));
  world_.ExpectContents(*two, "/m", kOther);
  EXPECT_EQ(world_.ReportOf("m").attachments, 2u);
  EXPECT_EQ(world_.weights->HoldingsOf(kOther).bytes, world_.weights->totals().held_bytes);
}

TEST_F(Attaching, WithoutLoadNeedsAResidentModel) {
  EXPECT_THAT(world_.Attach("m", false).status().message(), HasSubstr("is not loaded"));
  EXPECT_EQ(world_.Attach("m", false).status().code(), Code::kNotFound);
  EXPECT_EQ(world_.Attach("other").status().code(), Code::kNotFound);
  EXPECT_TRUE(world_.Attach("m", true).has_value());
  EXPECT_TRUE(world_.Attach("m", false).has_value());
}

TEST_F(Attaching, HeldBlocksAreNotEvicted) {
  const auto attached = world_.Attach("m");
  ASSERT_TRUE(attached.has_value());
  EXPECT_EQ(EvictAll(), 0u);
  world_.ExpectContents(*attached, "/m");
  ASSERT_TRUE(world_.weights->Detach(kClient, attached->attachment).ok());
  EXPECT_EQ(EvictAll(), world_.ReportOf("m").blocks);
  world_.ExpectNoMemory();
  EXPECT_EQ(world_.StateOf("m"), "registered");
}

TEST_F(Attaching, ChosenBlocksAloneAreHeld) {
  const auto attached = world_.Attach("m");
  ASSERT_TRUE(attached.has_value());
  const uint32_t blocks = world_.ReportOf("m").blocks;
  const auto chosen = world_.weights->BlocksOf(kClient, attached->attachment, std::vector{2u, 5u});
  ASSERT_TRUE(chosen.has_value());
  EXPECT_EQ(chosen->size(), 2u);
  EXPECT_EQ(EvictAll(), blocks - 2);
  EXPECT_EQ(world_.ReportOf("m").blocks_resident, 2u);
  // What was held is still given; what was evicted is not, and nothing changes by asking.
  EXPECT_EQ(*world_.weights->BlocksOf(kClient, attached->attachment, std::vector{5u, 2u}),
            (std::vector<ArenaId>{(*chosen)[1], (*chosen)[0]}));
  const auto gone = world_.weights->BlocksOf(kClient, attached->attachment, std::vector{2u, 3u});
  EXPECT_EQ(gone.status().code(), Code::kUnavailable);
  EXPECT_THAT(gone.status().message(), HasSubstr("block 3 of model 'm' version '1' was evicted"));
  // Its manifest and its blocks serve who comes next.
  const auto again = world_.Attach("m", true, kOther);
  ASSERT_TRUE(again.has_value()) << again.error().ToString();
  EXPECT_EQ(again->manifest, attached->manifest);
  world_.ExpectContents(*again, "/m", kOther);
}

TEST_F(Attaching, BlocksChosenOneAfterAnotherAreAllHeld) {
  const auto attached = world_.Attach("m");
  ASSERT_TRUE(attached.has_value());
  for (const uint32_t block : {0u, 3u, 1u, 3u})
    ASSERT_TRUE(
        world_.weights->BlocksOf(kClient, attached->attachment, std::vector{block}).has_value());
  EXPECT_EQ(EvictAll(), world_.ReportOf("m").blocks - 3);
}

TEST_F(Attaching, WrongNamesOfBlocksAndAttachmentsAreRefused) {
  const auto attached = world_.Attach("m");
  ASSERT_TRUE(attached.has_value());
  const uint32_t blocks = world_.ReportOf("m").blocks;
  const auto code = [&](ClientId client, uint64_t attachment, std::vector<uint32_t> chosen) {
    return world_.weights->BlocksOf(client, attachment, chosen).status().code();
  };
  EXPECT_EQ(code(kClient, attached->attachment, {blocks}), Code::kInvalidArgument);
  EXPECT_EQ(code(kClient, attached->attachment, std::vector<uint32_t>(blocks + 1, 0)),
            Code::kInvalidArgument);
  EXPECT_EQ(code(kOther, attached->attachment, {0}), Code::kNotFound);
  EXPECT_EQ(code(kClient, attached->attachment + 1, {0}), Code::kNotFound);
  EXPECT_EQ(world_.weights->Detach(kOther, attached->attachment).code(), Code::kNotFound);
  EXPECT_TRUE(world_.weights->Detach(kClient, attached->attachment).ok());
  EXPECT_EQ(world_.weights->Detach(kClient, attached->attachment).code(), Code::kNotFound);
  EXPECT_EQ(code(kClient, attached->attachment, {0}), Code::kNotFound);
}

TEST_F(Attaching, DepartureOfAClientEndsItsAttachments) {
  for (const ClientId client : {kClient, kClient, kOther})
    ASSERT_TRUE(world_.Attach("m", true, client).has_value());
  world_.weights->ClientGone(kClient);
  EXPECT_EQ(world_.ReportOf("m").attachments, 1u);
  EXPECT_EQ(EvictAll(), 0u);
  world_.weights->ClientGone(kOther);
  EXPECT_GT(EvictAll(), 0u);
  world_.ExpectNoMemory();
}

TEST_F(Attaching, UnloadFreesWhatIsNotHeldAndTheRestWhenLetGo) {
  const auto attached = world_.Attach("m");
  ASSERT_TRUE(attached.has_value());
  ASSERT_TRUE(world_.weights->BlocksOf(kClient, attached->attachment, std::vector{1u}).has_value());
  const uint64_t all = world_.weights->totals().resident_bytes;
  const auto unloaded = world_.weights->Unload("m", "1");
  ASSERT_TRUE(unloaded.has_value());
  EXPECT_EQ(unloaded->held_bytes, 16384u);
  EXPECT_EQ(world_.weights->totals().resident_bytes, all - unloaded->freed_bytes);
  EXPECT_EQ(world_.weights->totals().let_go_bytes, 16384u);
  EXPECT_EQ(world_.StateOf("m"), "unloaded, held by clients");
  // Held bytes stay what they are.
  EXPECT_TRUE(world_.weights->BlocksOf(kClient, attached->attachment, std::vector{1u}).has_value());
  ASSERT_TRUE(world_.weights->Detach(kClient, attached->attachment).ok());
  world_.ExpectNoMemory();
  EXPECT_EQ(world_.weights->Unload("m", "1")->freed_bytes, 0u);
}

TEST_F(Attaching, LoadTakesUpWhatAnUnloadLeftHeld) {
  const auto attached = world_.Attach("m");
  ASSERT_TRUE(attached.has_value());
  ASSERT_EQ(world_.weights->Unload("m", "")->freed_bytes, 0u);
  EXPECT_THAT(world_.Attach("m", false).status().message(), HasSubstr("was unloaded"));
  const uint64_t reads = world_.sources.read_faults.calls();
  const auto second = world_.Attach("m", true, kOther);
  ASSERT_TRUE(second.has_value());
  EXPECT_EQ(world_.sources.read_faults.calls(), reads);
  world_.weights->ClientGone(kClient);
  world_.weights->ClientGone(kOther);
  EXPECT_EQ(world_.StateOf("m"), "resident");
}

TEST_F(Attaching, RemovedModelStaysReadableForWhoHoldsIt) {
  const auto attached = world_.Attach("m");
  ASSERT_TRUE(attached.has_value());
  ASSERT_TRUE(world_.Remove("m").ok());
  EXPECT_EQ(world_.Attach("m", true, kOther).status().code(), Code::kNotFound);
  world_.ExpectContents(*attached, "/m");
  world_.ExpectConsistent();
  // A model of the same name is another one.
  world_.AddRandom("m", 99, 20);
  const auto other = world_.Attach("m", true, kOther);
  ASSERT_TRUE(other.has_value());
  EXPECT_NE(other->digest, attached->digest);
  world_.ExpectContents(*other, "/m", kOther);
  world_.weights->ClientGone(kOther);
  ASSERT_TRUE(world_.weights->Unload("m", "").has_value());
  ASSERT_TRUE(world_.weights->Detach(kClient, attached->attachment).ok());
  world_.ExpectNoMemory();
}

TEST_F(Attaching, NewestVersionIsMeantWhereNoneIsNamed) {
  world_.MakeFile("/m2", WeightsWorld::MakeTensors(5));
  ASSERT_TRUE(world_.Add("m", "2", {"/m2"}).has_value());
  const auto attached = world_.Attach("m");
  ASSERT_TRUE(attached.has_value());
  EXPECT_EQ(attached->version, "2");
  world_.ExpectContents(*attached, "/m2");
}

TEST_F(Attaching, TooManyAttachmentsOfAClientAreRefused) {
  for (size_t i = 0; i < Weights::kMaxAttachments; ++i)
    ASSERT_TRUE(world_.Attach("m").has_value());
  EXPECT_EQ(world_.Attach("m").status().code(), Code::kExhausted);
  EXPECT_TRUE(world_.Attach("m", true, kOther).has_value());
}

TEST_F(Attaching, WhatAClientHoldsCountsEachBlockOnce) {
  const auto one = world_.Attach("m");
  const auto two = world_.Attach("m");
  ASSERT_TRUE(one.has_value() && two.has_value());
  const auto holdings = [&] { return world_.weights->HoldingsOf(kClient); };
  const uint64_t whole = world_.weights->totals().held_bytes;
  const uint64_t block = world_.HeaderOf(*one).block_bytes;
  EXPECT_EQ(holdings().attachments, 2u);
  EXPECT_EQ(holdings().bytes, whole);
  ASSERT_TRUE(world_.weights->BlocksOf(kClient, one->attachment, std::vector{0u, 1u}).has_value());
  EXPECT_EQ(holdings().bytes, whole);
  ASSERT_TRUE(world_.weights->BlocksOf(kClient, two->attachment, std::vector{1u, 2u}).has_value());
  EXPECT_EQ(holdings().bytes, 3 * block);
  ASSERT_TRUE(world_.weights->Detach(kClient, one->attachment).ok());
  EXPECT_EQ(holdings().bytes, 2 * block);
  EXPECT_EQ(world_.weights->CheckInvariants(), Status());
  world_.weights->ClientGone(kClient);
  EXPECT_EQ(holdings().attachments, 0u);
  EXPECT_EQ(holdings().bytes, 0u);
  EXPECT_EQ(EvictAll(), world_.ReportOf("m").blocks);
}

// A walk over all attachments in every verb and for every client of a report would not end here.
TEST_F(Attaching, AttachingAndReportingCostNothingOfWhatOthersAttached) {
  constexpr ClientId kClients = 256;
  world_.AddRandom("small", 2, /*layers=*/1);
  const auto attach = [&](ClientId client) {
    const Result<Attached> attached = world_.Attach("small", true, client);
    ASSERT_TRUE(attached.has_value());
    ASSERT_TRUE(
        world_.weights->BlocksOf(client, attached->attachment, std::vector{0u}).has_value());
  };
  for (ClientId client = 1; client <= kClients; ++client) {
    for (size_t i = 0; i < Weights::kMaxAttachments; ++i)
      attach(client);
  }
  const uint64_t block = world_.weights->HoldingsOf(1).bytes;
  EXPECT_GT(block, 0u);
  for (ClientId client = 1; client <= kClients; ++client) {
    EXPECT_EQ(world_.weights->HoldingsOf(client).attachments, Weights::kMaxAttachments);
    EXPECT_EQ(world_.weights->HoldingsOf(client).bytes, block);
  }
  EXPECT_EQ(world_.weights->Figures().attachments, kClients * Weights::kMaxAttachments);
  for (ClientId client = 1; client <= kClients; ++client)
    world_.weights->ClientGone(client);
  EXPECT_EQ(world_.weights->Figures().attachments, 0u);
}

TEST_F(Attaching, CompletionsMayCallVerbs) {
  // The first waiter's completion takes the model away from the second one.
  std::vector<Code> codes;
  world_.weights->Load(kClient, "m", "", {}, [&](const Result<ModelLoaded>& loaded) {
    codes.push_back(loaded.status().code());
    world_.weights->RemoveModel("m", "", [&](const Status& s) { codes.push_back(s.code()); });
    world_.weights->ClientGone(kOther);
  });
  world_.weights->Attach(kClient, "m", "", true, 0, [&](const Result<Attached>& attached) {
    codes.push_back(attached.status().code());
  });
  world_.Run();
  EXPECT_THAT(codes, ElementsAre(Code::kOk, Code::kNotFound, Code::kOk));
  world_.ExpectNoMemory();
}

// Whatever clients, operators and pressure do: the books are right, nothing leaks, and who is
// attached reads the right bytes.
TEST(AttachingAtRandom, KeepsItsPromises) {
  for (uint64_t seed = 1; seed <= 60; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Random random(seed);
    WeightsWorld world({.capacity = 260'000, .block_bytes = 8192});
    const std::vector<std::string> names = {"a", "b", "c"};
    for (const std::string& name : names)
      world.AddRandom(name, seed + static_cast<uint64_t>(name[0]));
    uint64_t asked = 0;
    uint64_t answered = 0;
    std::vector<std::pair<ClientId, Attached>> attached;
    for (int step = 0; step < 150; ++step) {
      const std::string& name = names[random.Below(names.size())];
      const ClientId client = 1 + random.Below(3);
      switch (random.Below(10)) {
        case 0:
        case 1:
        case 2:
          ++asked;
          if (random.Chance(1, 3)) {
            world.weights->AttachEarly(client, name, "", static_cast<uint32_t>(random.Below(50)),
                                       [&, client](const Result<Attached>& result) {
                                         ++answered;
                                         if (result) attached.emplace_back(client, *result);
                                       });
            break;
          }
          world.weights->Attach(client, name, "", random.Chance(3, 4),
                                static_cast<uint32_t>(random.Below(50)),
                                [&, client](const Result<Attached>& result) {
                                  ++answered;
                                  if (result) attached.emplace_back(client, *result);
                                });
          break;
        case 3:
          if (!attached.empty()) {
            const auto [owner, handle] = attached[random.Below(attached.size())];
            const uint32_t blocks = world.HeaderOf(handle).blocks;
            const std::vector wanted{static_cast<uint32_t>(random.Below(blocks))};
            (void)world.weights->BlocksOf(owner, handle.attachment, wanted);
            ++asked;
            world.weights->AwaitBlocks(owner, handle.attachment, wanted,
                                       static_cast<uint32_t>(random.Below(50)),
                                       [&](const Result<Arrival>&) { ++answered; });
          }
          break;
        case 4:
          if (!attached.empty()) {
            const size_t which = random.Below(attached.size());
            const auto [owner, handle] = attached[which];
            ASSERT_TRUE(world.weights->Detach(owner, handle.attachment).ok());
            attached.erase(attached.begin() + static_cast<ptrdiff_t>(which));
          }
          break;
        case 5:
          if (random.Chance(1, 3)) {
            world.weights->ClientGone(client);
            std::erase_if(attached, [&](const auto& a) { return a.first == client; });
          }
          break;
        case 6:
          (void)world.weights->Unload(name, "");
          break;
        case 7:
          world.memory.EvictOne();
          break;
        case 8:
          if (random.Chance(1, 4)) {
            world.sources.read_faults.FailAfter(random.Below(5), {Code::kDataLoss, "broken"});
          }
          world.clock.Advance(static_cast<MonotonicNs>(random.Below(20)) * kNsPerMs);
          break;
        default:
          world.weights->Turn();
          world.sources.RunPending(random.Below(6));
          break;
      }
      world.ExpectConsistent();
    }
    world.sources.read_faults.Clear();
    world.Run();
    EXPECT_EQ(answered, asked);
    for (const ClientId client : {1, 2, 3})
      world.weights->ClientGone(client);
    for (const std::string& name : names) {
      const auto last = world.Attach(name);
      ASSERT_TRUE(last.has_value()) << last.error().ToString();
      world.ExpectContents(*last, "/" + name);
      world.weights->ClientGone(kClient);
      ASSERT_TRUE(world.weights->Unload(name, "").has_value());
    }
    world.ExpectConsistent();
    while (world.memory.EvictOne()) {
    }
    world.ExpectNoMemory();
    if (testing::Test::HasFailure()) return;
  }
}

}  // namespace
}  // namespace terrace
