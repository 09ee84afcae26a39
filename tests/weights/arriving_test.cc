// Attaching while the load runs: blocks are given as they come, and a load that fails takes nothing
// away from under who has mapped them.
#include "tests/weights/weights_world.h"

namespace terrace {
namespace {

using testing::HasSubstr;

constexpr ClientId kClient = WeightsWorld::kClient;
constexpr ClientId kOther = 2;

class Arriving : public testing::Test {
 protected:
  Arriving() { world_.AddRandom("m", 1, 20); }
  ~Arriving() override { world_.ExpectConsistent(); }

  // One completion of a source at a time, until `met`; false when nothing moves any more.
  bool StepUntil(const std::function<bool()>& met) {
    while (!met()) {
      bool more = world_.weights->Turn();
      more = world_.sources.RunPending(1) > 0 || more;
      more = world_.journal.RunPending() > 0 || more;
      world_.ExpectConsistent();
      if (!more) return false;
    }
    return true;
  }
  Attached AttachEarly(ClientId client = kClient) {
    std::optional<Result<Attached>> attached;
    world_.weights->AttachEarly(client, "m", "", 0,
                                [&](Result<Attached> result) { attached = std::move(result); });
    EXPECT_TRUE(StepUntil([&] { return attached.has_value(); }));
    EXPECT_TRUE(attached->has_value()) << attached->status().ToString();
    return **attached;
  }
  using Answer = std::shared_ptr<std::optional<Result<Arrival>>>;
  Answer Ask(const Attached& attached, std::vector<uint32_t> blocks, uint32_t deadline_ms = 0,
             ClientId client = kClient) {
    auto answer = std::make_shared<std::optional<Result<Arrival>>>();
    world_.weights->AwaitBlocks(client, attached.attachment, blocks, deadline_ms,
                                [answer](Result<Arrival> result) { *answer = std::move(result); });
    return answer;
  }
  std::vector<ArenaId> BlocksOf(const Attached& attached, std::vector<uint32_t> blocks) {
    const auto arenas = world_.weights->BlocksOf(kClient, attached.attachment, blocks);
    EXPECT_TRUE(arenas.has_value()) << arenas.status().ToString();
    return arenas ? *arenas : std::vector<ArenaId>();
  }

  WeightsWorld world_;
};

TEST_F(Arriving, TheFirstBlockIsThereBeforeTheLast) {
  const Attached attached = AttachEarly();
  EXPECT_TRUE(attached.arriving);
  EXPECT_TRUE(attached.digest.IsZero());
  const uint32_t last = world_.HeaderOf(attached).blocks - 1;
  ASSERT_GT(last, 8u);
  EXPECT_EQ(BlocksOf(attached, {0, last}), (std::vector<ArenaId>{0, 0}));
  const Answer first = Ask(attached, {0});
  ASSERT_TRUE(StepUntil([&] { return first->has_value(); }));
  ASSERT_TRUE((*first)->has_value());
  EXPECT_TRUE((**first)->arriving);
  const std::vector<ArenaId> arenas = BlocksOf(attached, {0, last});
  ASSERT_NE(arenas.at(0), 0u);
  EXPECT_EQ(arenas.at(1), 0u);
  EXPECT_TRUE(world_.host.Map(arenas[0])->sealed());
  const std::vector<uint8_t>& embed = world_.contents["/m"][0].bytes;
  EXPECT_EQ(std::memcmp(world_.host.Map(arenas[0])->bytes().data(), embed.data(), 16384), 0);
  EXPECT_EQ(world_.StateOf("m"), "loading");

  const Answer all = Ask(attached, {});
  world_.Run();
  ASSERT_TRUE(all->has_value() && (*all)->has_value());
  EXPECT_FALSE((**all)->arriving);
  EXPECT_EQ((**all)->digest, world_.ReportOf("m").digest);
  EXPECT_EQ(BlocksOf(attached, {0}), std::vector<ArenaId>{arenas[0]}) << "it stays where it was";
  world_.ExpectContents(attached, "/m");
}

TEST_F(Arriving, WhatIsLoadedIsAttachedAsEver) {
  ASSERT_TRUE(world_.Load("m").has_value());
  const Attached attached = AttachEarly();
  EXPECT_FALSE(attached.arriving);
  EXPECT_FALSE(attached.digest.IsZero());
  const Answer answer = Ask(attached, {0});
  ASSERT_TRUE(answer->has_value() && (*answer)->has_value());
  EXPECT_FALSE((**answer)->arriving);
  world_.ExpectContents(attached, "/m");
}

TEST_F(Arriving, WhatIsLeftOfALoadBeforeIsThereAtOnce) {
  ASSERT_TRUE(world_.Load("m").has_value());
  ASSERT_TRUE(world_.memory.EvictOne());
  const Digest digest = world_.ReportOf("m").digest;
  const Attached attached = AttachEarly();
  EXPECT_TRUE(attached.arriving);
  EXPECT_EQ(attached.digest, digest);
  const std::vector<ArenaId> arenas = BlocksOf(attached, {0, 1});
  EXPECT_EQ(arenas.at(0), 0u) << "the one that was evicted";
  EXPECT_NE(arenas.at(1), 0u);
  world_.Run();
  world_.ExpectContents(attached, "/m");
}

TEST_F(Arriving, AfterwardsItHoldsWhatItNamedAndElseEverything) {
  const Attached some = AttachEarly();
  const Attached all = AttachEarly(kOther);
  EXPECT_EQ(some.manifest, all.manifest);
  BlocksOf(some, {1});
  BlocksOf(some, {4});
  world_.Run();
  while (world_.memory.EvictOne()) {
  }
  const uint32_t blocks = world_.ReportOf("m").blocks;
  EXPECT_EQ(world_.ReportOf("m").blocks_resident, blocks);
  world_.weights->ClientGone(kOther);
  while (world_.memory.EvictOne()) {
  }
  EXPECT_EQ(world_.ReportOf("m").blocks_resident, 2u);
}

TEST_F(Arriving, ALoadThatFailsEndsTheAttachmentAndFreesNothingThatIsMapped) {
  const Attached attached = AttachEarly();
  const Answer first = Ask(attached, {0});
  ASSERT_TRUE(StepUntil([&] { return first->has_value(); }));
  const ArenaId mapped = BlocksOf(attached, {0}).at(0);
  const Answer all = Ask(attached, {});
  world_.sources.read_faults.FailAfter(0, {Code::kDataLoss, "the disk is broken"});
  world_.Run();
  ASSERT_TRUE(all->has_value());
  EXPECT_EQ((*all)->status().code(), Code::kDataLoss);
  EXPECT_THAT((*all)->status().message(), HasSubstr("the disk is broken"));
  EXPECT_EQ((*Ask(attached, {0}))->status().code(), Code::kDataLoss);
  const auto blocks = world_.weights->BlocksOf(kClient, attached.attachment, std::vector{0u});
  EXPECT_EQ(blocks.status().code(), Code::kDataLoss);
  ASSERT_NE(world_.host.Map(mapped), nullptr);
  EXPECT_GT(world_.weights->HoldingsOf(kClient).bytes, 0u);
  EXPECT_GT(world_.weights->totals().let_go_bytes, 0u);
  world_.ExpectConsistent();

  // A later load has blocks of its own.
  world_.sources.read_faults.Clear();
  const auto again = world_.Attach("m", true, kOther);
  ASSERT_TRUE(again.has_value());
  world_.ExpectContents(*again, "/m", kOther);
  EXPECT_TRUE(world_.weights->Detach(kClient, attached.attachment).ok());
  EXPECT_EQ(world_.weights->HoldingsOf(kClient).bytes, 0u);
  world_.weights->ClientGone(kOther);
  ASSERT_TRUE(world_.weights->Unload("m", "").has_value());
  world_.Run();
  world_.ExpectNoMemory();
}

TEST_F(Arriving, BlocksThatTwoWereGivenGoWithTheLastOfThem) {
  const Attached one = AttachEarly();
  const Attached two = AttachEarly(kOther);
  const Answer first = Ask(one, {0});
  ASSERT_TRUE(StepUntil([&] { return first->has_value(); }));
  const ArenaId mapped = BlocksOf(one, {0}).at(0);
  ASSERT_TRUE(world_.weights->BlocksOf(kOther, two.attachment, std::vector{0u}).has_value());
  world_.sources.read_faults.FailAfter(0, {Code::kDataLoss, "broken"});
  world_.Run();
  EXPECT_TRUE(world_.weights->Detach(kClient, one.attachment).ok());
  world_.Run();
  EXPECT_NE(world_.host.Map(mapped), nullptr);
  world_.weights->ClientGone(kOther);
  world_.Run();
  world_.ExpectNoMemory();
}

TEST_F(Arriving, TheFailureOfALoadDoesNotLookLikeADeadlineOfTheWait) {
  const Attached attached = AttachEarly();
  const Answer all = Ask(attached, {});
  world_.sources.read_faults.FailAfter(0, {Code::kDeadlineExceeded, "the device does not answer"});
  world_.Run();
  ASSERT_TRUE(all->has_value());
  EXPECT_EQ((*all)->status().code(), Code::kInternal);
  EXPECT_THAT((*all)->status().message(), HasSubstr("the device does not answer"));
}

TEST_F(Arriving, AWaitEndsByItsDeadlineAndTheLoadGoesOn) {
  const Attached attached = AttachEarly();
  const Answer answer = Ask(attached, {0}, 10);
  world_.clock.Advance(10 * kNsPerMs);
  world_.weights->Turn();
  ASSERT_TRUE(answer->has_value());
  EXPECT_EQ((*answer)->status().code(), Code::kDeadlineExceeded);
  world_.Run();
  world_.ExpectContents(attached, "/m");
}

TEST_F(Arriving, WaitsEndWithTheAttachmentTheClientAndTheModel) {
  const Attached detached = AttachEarly();
  const Attached of_gone = AttachEarly(kOther);
  const Attached removed = AttachEarly();
  const Answer one = Ask(detached, {});
  const Answer two = Ask(of_gone, {}, 0, kOther);
  const Answer three = Ask(removed, {});
  EXPECT_TRUE(world_.weights->Detach(kClient, detached.attachment).ok());
  ASSERT_TRUE(one->has_value());
  EXPECT_EQ((*one)->status().code(), Code::kNotFound);
  world_.weights->ClientGone(kOther);
  ASSERT_TRUE(two->has_value());
  EXPECT_EQ((*two)->status().code(), Code::kUnavailable);
  EXPECT_FALSE(three->has_value());
  ASSERT_TRUE(world_.Remove("m").ok());
  ASSERT_TRUE(three->has_value());
  EXPECT_THAT((*three)->status().message(), HasSubstr("was removed"));
  EXPECT_TRUE(world_.weights->Detach(kClient, removed.attachment).ok());
  world_.Run();
  world_.ExpectNoMemory();
}

TEST_F(Arriving, WhoAsksForWhatThereIsNotIsRefused) {
  const Attached attached = AttachEarly();
  const uint32_t blocks = world_.HeaderOf(attached).blocks;
  EXPECT_EQ((*Ask(attached, {blocks}))->status().code(), Code::kInvalidArgument);
  EXPECT_EQ((*Ask(attached, {0}, 0, kOther))->status().code(), Code::kNotFound);
  std::vector<Answer> waiting;
  for (size_t i = 0; i < Weights::kMaxClientWaiters; ++i)
    waiting.push_back(Ask(attached, {}));
  EXPECT_EQ((*Ask(attached, {}))->status().code(), Code::kExhausted);
  world_.Run();
  for (const Answer& answer : waiting)
    EXPECT_TRUE(answer->has_value() && (*answer)->has_value());
}

TEST_F(Arriving, NoTenantTakesAllPlacesOfThoseWhoWaitForBlocks) {
  std::vector<Answer> waiting;
  const auto wait = [&](ClientId client, size_t times) {
    const Attached attached = AttachEarly(client);
    for (size_t i = 0; i < times; ++i)
      waiting.push_back(Ask(attached, {}, 0, client));
  };
  for (size_t of = 0; of < Weights::kMaxWaiters / 2 / Weights::kMaxClientWaiters; ++of)
    wait(1 + of, Weights::kMaxClientWaiters);
  for (const Answer& answer : waiting)
    ASSERT_FALSE(answer->has_value());
  const ClientId other = WeightsWorld::kClientsOfTenant;
  wait(other - 1, 1);
  ASSERT_TRUE(waiting.back()->has_value());
  EXPECT_EQ((*waiting.back())->status().code(), Code::kExhausted);
  EXPECT_THAT((*waiting.back())->status().message(), HasSubstr("of this tenant wait already"));
  waiting.pop_back();
  wait(other, Weights::kMaxClientWaiters);
  world_.Run();
  for (const Answer& answer : waiting)
    EXPECT_TRUE(answer->has_value() && (*answer)->has_value());
}

TEST_F(Arriving, WhoAsksWhileTheLoadEndsIsAttachedAfterIt) {
  // Everything was read; the digest is being computed.
  std::optional<Result<ModelLoaded>> loaded;
  world_.weights->Load(kOther, "m", "", {},
                       [&](Result<ModelLoaded> result) { loaded = std::move(result); });
  uint64_t steps = 0;
  ASSERT_TRUE(StepUntil([&] {
    ++steps;
    return loaded.has_value();
  }));
  world_.weights->ClientGone(kOther);
  ASSERT_TRUE(world_.Remove("m").ok());
  // At each step of the same load somebody comes.
  for (uint64_t at = 0; at < steps; at += 3) {
    SCOPED_TRACE("step " + std::to_string(at));
    WeightsWorld world;
    world.AddRandom("m", 1, 20);
    bool ended = false;
    world.weights->Load(kOther, "m", "", {}, [&](const Result<ModelLoaded>&) { ended = true; });
    for (uint64_t step = 0; step < at && !ended; ++step) {
      world.weights->Turn();
      world.sources.RunPending(1);
      world.journal.RunPending();
    }
    std::optional<Result<Attached>> attached;
    world.weights->AttachEarly(kClient, "m", "", 0,
                               [&](Result<Attached> result) { attached = std::move(result); });
    world.Run();
    ASSERT_TRUE(attached.has_value() && attached->has_value());
    world.ExpectContents(**attached, "/m");
    world.ExpectConsistent();
  }
}

// ---- What the hub published

class Published : public testing::Test {
 protected:
  void Add(bool wrong) {
    const std::vector<SimTensor> tensors = WeightsWorld::MakeTensors(1);
    Sha256 hash;
    for (const SimTensor& tensor : tensors)
      hash.Update(tensor.bytes);
    digest_ = wrong ? Sha256::Of({}) : hash.Finish();
    world_.MakeFile("/m", tensors);
    world_.sources.Publish("/m", digest_);
    ASSERT_TRUE(world_.Add("m", "1", {"/m"}).has_value());
  }
  WeightsWorld world_;
  Digest digest_;
};

TEST_F(Published, AFileThatIsWhatWasPublishedIsLoadedAndNotHashedAgain) {
  Add(false);
  const auto attached = world_.Attach("m");
  ASSERT_TRUE(attached.has_value()) << attached.error().ToString();
  world_.ExpectContents(*attached, "/m");
  const uint64_t hashes = world_.sources.hashes();
  ASSERT_TRUE(world_.weights->Detach(kClient, attached->attachment).ok());
  ASSERT_TRUE(world_.weights->Unload("m", "").has_value());
  ASSERT_TRUE(world_.Load("m").has_value());
  EXPECT_EQ(world_.sources.hashes(), hashes);
}

TEST_F(Published, WhoseLoadIsCancelledIsHashedNoMore) {
  Add(false);
  std::optional<Result<ModelLoaded>> loaded;
  world_.weights->Load(kClient, "m", "", {},
                       [&](Result<ModelLoaded> result) { loaded = std::move(result); });
  while (world_.ReportOf("m").loading_done_bytes < world_.images_bytes("m"))
    (void)(world_.weights->Turn() || world_.sources.RunPending(1) > 0);
  // Tensors that are being hashed, and the file.
  const uint64_t under_way = world_.sources.pending();
  const uint64_t hashes = world_.sources.hashes();
  ASSERT_TRUE(world_.Remove("m").ok());
  ASSERT_TRUE(loaded.has_value());
  EXPECT_EQ(loaded->status().code(), Code::kNotFound);
  EXPECT_EQ(world_.sources.hashes(), hashes + under_way - 1);
  world_.ExpectNoMemory();
}

TEST_F(Published, AnotherFileIsDataLossThatNamesItAndBothDigests) {
  Add(true);
  const Status status = world_.Load("m").status();
  EXPECT_EQ(status.code(), Code::kDataLoss);
  EXPECT_THAT(status.message(), HasSubstr("/m: is not what was published"));
  EXPECT_THAT(status.message(), HasSubstr(digest_.Hex()));
  world_.ExpectNoMemory();
  EXPECT_TRUE(world_.ReportOf("m").digest.IsZero());
}

}  // namespace
}  // namespace terrace
