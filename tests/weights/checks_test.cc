// What later loads go by: checks instead of digests, image files instead of safetensors files, and
// what happens where either does not hold.
#include "daemon/engine/weights/checks.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "daemon/engine/weights/record.h"
#include "tests/weights/weights_world.h"

namespace terrace {
namespace {

using testing::HasSubstr;
using weights::Checks;

class ChecksTest : public testing::Test {
 protected:
  void SetUp() override { world_.AddRandom("m", 1); }
  void ExpectLoads() {
    const auto attached = world_.Attach("m");
    ASSERT_TRUE(attached.has_value()) << attached.error().ToString();
    world_.ExpectContents(*attached, "/m");
    world_.ExpectConsistent();
    ASSERT_TRUE(world_.weights->Detach(WeightsWorld::kClient, attached->attachment).ok());
  }
  void Unload() {
    ASSERT_TRUE(world_.weights->Unload("m", "").has_value());
    world_.Run();
    world_.ExpectNoMemory();
  }
  void AddAndImport(const std::function<void(Result<ModelAdded>)>& done) {
    world_.weights->AddModel(WeightsWorld::SpecOf("m", "1", {"/m"}),
                             [this, done](Result<ModelAdded> added) {
                               if (!added) return done(std::move(added));
                               world_.weights->Import("m", "1", *std::move(added), {}, done);
                             });
  }
  LoadedBy Loaded() { return world_.ReportOf("m").loaded; }

  WeightsWorld world_;
};

TEST_F(ChecksTest, ALaterLoadHashesNothing) {
  ExpectLoads();
  EXPECT_EQ(Loaded().checked_by, "sha256");
  const Digest digest = world_.ReportOf("m").digest;
  const uint64_t hashes = world_.sources.hashes();
  EXPECT_GT(hashes, 0u);
  Unload();
  ExpectLoads();
  EXPECT_EQ(Loaded().checked_by, "crc32c");
  Unload();
  world_.Restart();
  ExpectLoads();
  EXPECT_EQ(Loaded().checked_by, "crc32c");
  EXPECT_EQ(world_.sources.hashes(), hashes);
  EXPECT_EQ(world_.ReportOf("m").digest, digest);
}

TEST_F(ChecksTest, FilesThatWereTouchedAreHashedOnceMore) {
  ExpectLoads();
  Unload();
  world_.sources.Touch("/m");
  ExpectLoads();
  EXPECT_EQ(Loaded().checked_by, "sha256");
  Unload();
  ExpectLoads();
  EXPECT_EQ(Loaded().checked_by, "crc32c");
}

TEST_F(ChecksTest, ABlockOfTouchedFilesIsHashedThoughThisLifeHashedNothing) {
  ExpectLoads();
  Unload();
  world_.Restart();
  ExpectLoads();
  EXPECT_EQ(Loaded().checked_by, "crc32c");
  ASSERT_TRUE(world_.memory.EvictOne());
  world_.sources.Touch("/m");
  ExpectLoads();
  EXPECT_EQ(Loaded().checked_by, "sha256");
}

TEST_F(ChecksTest, AByteThatRottedIsDataLossThatNamesFileAndTensor) {
  ExpectLoads();
  Unload();
  world_.sources.Change("/m", "model.layers.3.w", 9'000, true);
  const auto loaded = world_.Load("m");
  EXPECT_EQ(loaded.status().code(), Code::kDataLoss);
  EXPECT_THAT(loaded.status().message(), HasSubstr("/m: holds other bytes"));
  EXPECT_THAT(loaded.status().message(), HasSubstr("'model.layers.3.w'"));
  world_.ExpectNoMemory();
}

TEST_F(ChecksTest, WithoutChecksOnRecordTheDigestDecides) {
  ExpectLoads();
  const Digest digest = world_.ReportOf("m").digest;
  Unload();
  world_.journal.Delete(weights::ChecksKey("m", "1"), [](const Status&) {});
  world_.Run();
  world_.sources.Change("/m", "model.layers.0.norm", 5, true);
  world_.Restart();
  const auto loaded = world_.Load("m");
  EXPECT_EQ(loaded.status().code(), Code::kDataLoss);
  EXPECT_THAT(loaded.status().message(), HasSubstr(digest.Hex()));
}

TEST_F(ChecksTest, OtherBlocksThanThoseOfTheChecksAreHashed) {
  ExpectLoads();
  Unload();
  world_.Restart(8192);
  ExpectLoads();
  EXPECT_EQ(Loaded().checked_by, "sha256");
}

TEST_F(ChecksTest, RecordsAreReadAsTheyWereWrittenAndNoOthers) {
  const Checks checks{.imported = true,
                      .image_bytes = 5u << 20,
                      .block_bytes = 4u << 20,
                      .content = Sha256::Of({}),
                      .stamp = Digest{},
                      .crcs = {1, 2, 3}};
  const std::string encoded = weights::EncodeChecks(checks);
  const auto decoded = weights::DecodeChecks("checks/m@1", encoded);
  ASSERT_TRUE(decoded.has_value()) << decoded.error().ToString();
  EXPECT_EQ(weights::EncodeChecks(*decoded), encoded);
  for (size_t bytes = 0; bytes < encoded.size(); ++bytes)
    EXPECT_FALSE(weights::DecodeChecks("k", encoded.substr(0, bytes)).has_value());
  std::string other = encoded;
  other[0] = 2;
  EXPECT_THAT(weights::DecodeChecks("k", other).error().message(), HasSubstr("format 2"));
  Checks wrong = checks;
  wrong.crcs.push_back(4);
  EXPECT_FALSE(weights::DecodeChecks("k", weights::EncodeChecks(wrong)).has_value());
  wrong = checks;
  wrong.block_bytes = 4097;
  EXPECT_FALSE(weights::DecodeChecks("k", weights::EncodeChecks(wrong)).has_value());
}

// ---- Images -------------------------------------------------------------------------------------

class Imported : public ChecksTest {
 protected:
  void SetUp() override {
    ChecksTest::SetUp();
    const ModelAdded added = Import();
    ASSERT_TRUE(added.imported) << added.why_not_imported;
    ASSERT_TRUE(world_.images.Has("m@1"));
    Unload();
  }
  ModelAdded Import() {
    std::optional<Result<ModelAdded>> added;
    AddAndImport([&added](Result<ModelAdded> result) { added = std::move(result); });
    world_.Run();
    TERRACE_CHECK(added.has_value() && added->has_value());
    return **added;
  }
};

TEST_F(Imported, LaterLoadsReadTheImageAndNothingElse) {
  const uint64_t reads = world_.sources.reads();
  ExpectLoads();
  Unload();
  world_.Restart();
  ExpectLoads();
  EXPECT_EQ(world_.sources.reads(), reads);
  EXPECT_EQ(Loaded().image_bytes, world_.images_bytes("m"));
  EXPECT_EQ(Loaded().checked_by, "crc32c");
  EXPECT_TRUE(world_.ReportOf("m").imported);
  EXPECT_EQ(world_.ReportOf("m").image_problem, "");
}

TEST_F(Imported, ADamagedBlockComesFromTheFiles) {
  world_.images.Damage("m@1", 40'000);
  ExpectLoads();
  EXPECT_GT(Loaded().image_bytes, 0u);
  EXPECT_GT(Loaded().buffered_bytes, 0u);
  EXPECT_THAT(world_.ReportOf("m").image_problem, HasSubstr("the image: holds other bytes"));
  // The same again writes it anew.
  EXPECT_TRUE(Import().imported);
  Unload();
  ExpectLoads();
  EXPECT_EQ(Loaded().buffered_bytes, 0u);
  EXPECT_EQ(world_.ReportOf("m").image_problem, "");
}

TEST_F(Imported, ADamagedGapBetweenTensorsIsNotLeftInTheBlock) {
  world_.images.Damage("m@1", 30'007 + 100);  // Behind the first tensor.
  ExpectLoads();
  EXPECT_GT(Loaded().buffered_bytes, 0u);
}

TEST_F(Imported, FilesThatWereTouchedAreHashedWhenTheImageIsDamaged) {
  world_.Restart();
  world_.sources.Touch("/m");
  world_.images.Damage("m@1", 40'000);
  ExpectLoads();
  EXPECT_EQ(Loaded().checked_by, "sha256");
}

TEST_F(Imported, AnImageThatCannotBeOpenedIsDoneWithout) {
  world_.images.open_faults.FailAfter(0, {Code::kMismatch, "image: another format"});
  ExpectLoads();
  EXPECT_EQ(Loaded().image_bytes, 0u);
  EXPECT_THAT(world_.ReportOf("m").image_problem, HasSubstr("another format"));
}

TEST_F(Imported, WhatWasWrongIsForgottenWhenAllOfItIsReadAgain) {
  world_.images.open_faults.FailAfter(0, {Code::kMismatch, "image: another format"});
  ExpectLoads();
  // One block that is right says nothing of the others.
  ASSERT_TRUE(world_.memory.EvictOne());
  ExpectLoads();
  EXPECT_THAT(world_.ReportOf("m").image_problem, HasSubstr("another format"));
  Unload();
  ExpectLoads();
  EXPECT_EQ(Loaded().image_bytes, world_.images_bytes("m"));
  EXPECT_EQ(world_.ReportOf("m").image_problem, "");
}

TEST_F(Imported, AnImageThatIsGoneIsWrittenAgainForWhoAsks) {
  ExpectLoads();
  world_.images.Remove("m@1", [](const Status&) {});
  world_.Run();
  ASSERT_FALSE(world_.images.Has("m@1"));
  EXPECT_TRUE(Import().imported);
  EXPECT_TRUE(world_.images.Has("m@1"));
  EXPECT_EQ(world_.ReportOf("m").image_problem, "");
  world_.ExpectConsistent();
}

TEST_F(Imported, AnImageThatIsThereIsNotWrittenAgain) {
  ExpectLoads();
  const uint64_t writes = world_.images.write_faults.calls();
  EXPECT_TRUE(Import().imported);
  EXPECT_EQ(world_.images.write_faults.calls(), writes);
  world_.ExpectConsistent();
}

TEST_F(Imported, AModelThatIsRemovedWhileItsImageIsLookedForIsNotImported) {
  ExpectLoads();
  std::optional<Result<ModelAdded>> added;
  world_.weights->Import("m", "1", {}, {}, [&](Result<ModelAdded> result) { added = result; });
  ASSERT_FALSE(added.has_value());
  ASSERT_TRUE(world_.Remove("m").ok());
  ASSERT_TRUE(added.has_value() && added->has_value());
  EXPECT_FALSE((**added).imported);
  EXPECT_THAT((**added).why_not_imported, HasSubstr("was removed"));
  EXPECT_FALSE(world_.images.Has("m@1"));
  world_.ExpectNoMemory();
}

TEST_F(Imported, ADeviceThatHangsFailsTheLoadAndKeepsItsMemoryUntilItLetsGo) {
  world_.images.Hang();
  const auto loaded = world_.Load("m");
  EXPECT_EQ(loaded.status().code(), Code::kDeadlineExceeded);
  EXPECT_GT(world_.memory.arenas(), 0u);
  world_.ExpectConsistent();
  world_.images.Release();
  world_.Run();
  world_.ExpectNoMemory();
  ExpectLoads();
}

TEST_F(Imported, TheImageGoesWithTheModel) {
  ASSERT_TRUE(world_.Remove("m").ok());
  EXPECT_FALSE(world_.images.Has("m@1"));
  world_.Restart();
  world_.AddRandom("m", 2);
  EXPECT_FALSE(world_.ReportOf("m").imported);
}

TEST_F(Imported, ImagesThatNobodyHasAreRemovedAtTheStart) {
  world_.journal.Delete(weights::RecordKey("m", "1"), [](const Status&) {});
  world_.Run();
  world_.Restart();
  EXPECT_FALSE(world_.images.Has("m@1"));
}

TEST_F(Imported, AnImageWhoseRecordsCannotBeReadIsKept) {
  world_.journal.Put(weights::ChecksKey("m", "1"), "of a later daemon", [](const Status&) {});
  world_.Run();
  world_.Restart();
  EXPECT_EQ(world_.problems.size(), 1u);
  EXPECT_TRUE(world_.images.Has("m@1"));
  ExpectLoads();  // From the files, whose checks it keeps.
}

TEST_F(Imported, ChecksOfAModelThatIsGoneGoAtTheStart) {
  world_.journal.Delete(weights::RecordKey("m", "1"), [](const Status&) {});
  world_.Run();
  world_.Restart();
  world_.Run();
  EXPECT_TRUE(world_.journal.Load(weights::kChecksPrefix)->empty());
}

TEST_F(ChecksTest, ImportsOfOneModelAtATimeWriteOneImage) {
  std::vector<bool> imported;
  for (int i = 0; i < 3; ++i) {
    AddAndImport(
        [&](Result<ModelAdded> result) { imported.push_back(result && result->imported); });
  }
  while (world_.images.pending() == 0)
    world_.Step();
  for (int i = 0; i < 100; ++i)
    world_.Step();
  EXPECT_EQ(world_.images.pending(), 1u);
  world_.ExpectConsistent();
  world_.Run();
  EXPECT_THAT(imported, testing::ElementsAre(true, true, true));
}

TEST_F(ChecksTest, AnImageOfARemovedModelIsNotWrittenOverWhileItIsWritten) {
  const auto import = [&](std::optional<Result<ModelAdded>>& added) {
    AddAndImport([&added](Result<ModelAdded> result) { added = std::move(result); });
  };
  std::optional<Result<ModelAdded>> first;
  import(first);
  while (world_.images.pending() == 0)
    world_.Step();
  world_.weights->RemoveModel("m", "", [](const Status&) {});
  std::optional<Result<ModelAdded>> second;
  import(second);
  for (int i = 0; i < 100; ++i)
    world_.Step();
  ASSERT_TRUE(second.has_value() && second->has_value());
  EXPECT_FALSE((*second)->imported);
  EXPECT_THAT((*second)->why_not_imported, HasSubstr("still being written"));
  world_.Run();
  ASSERT_TRUE(first.has_value() && first->has_value());
  EXPECT_THAT((*first)->why_not_imported, HasSubstr("was removed"));
  ExpectLoads();
}

TEST_F(ChecksTest, AnImageThatCannotBeWrittenLeavesTheModel) {
  world_.images.write_faults.FailAfter(0, {Code::kExhausted, "no room for the image"});
  std::optional<Result<ModelAdded>> added;
  AddAndImport([&added](Result<ModelAdded> result) { added = std::move(result); });
  world_.Run();
  ASSERT_TRUE(added.has_value() && added->has_value());
  EXPECT_FALSE((*added)->imported);
  EXPECT_THAT((*added)->why_not_imported, HasSubstr("no room for the image"));
  ExpectLoads();
  EXPECT_FALSE(world_.ReportOf("m").imported);
}

TEST_F(ChecksTest, AModelThatIsRemovedWhileItsImageIsWrittenLeavesNone) {
  std::optional<Result<ModelAdded>> added;
  AddAndImport([&added](Result<ModelAdded> result) { added = std::move(result); });
  while (world_.images.pending() == 0)
    world_.Step();
  world_.weights->RemoveModel("m", "", [](const Status&) {});
  world_.Run();
  ASSERT_TRUE(added.has_value());
  EXPECT_FALSE(world_.images.Has("m@1"));
  world_.ExpectNoMemory();
}

}  // namespace
}  // namespace terrace
