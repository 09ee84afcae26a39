#include "daemon/engine/weights/record.h"
#include "tests/weights/weights_world.h"

namespace terrace {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

class Registering : public testing::Test {
 protected:
  ~Registering() override { world_.ExpectConsistent(); }

  std::vector<std::string> Registered() {
    std::vector<std::string> found;
    for (const ModelReport& model : world_.weights->Models()) {
      for (const ModelVersionReport& version : model.versions)
        found.push_back(model.name + "@" + version.version);
    }
    return found;
  }
  WeightsWorld world_;
};

TEST_F(Registering, TellsWhatTheFilesHold) {
  world_.MakeFile("/a", WeightsWorld::MakeTensors(1));
  std::vector<SimTensor> more = WeightsWorld::MakeTensors(2, 1);
  for (SimTensor& tensor : more)
    tensor.name = "more." + tensor.name;
  world_.MakeFile("/b", more);
  const auto added = world_.Add("org/m", "v1", {"/a", "/b"});
  ASSERT_TRUE(added.has_value()) << added.error().ToString();
  uint64_t bytes = 0;
  for (const char* path : {"/a", "/b"}) {
    for (const SimTensor& tensor : world_.contents[path])
      bytes += tensor.bytes.size();
  }
  EXPECT_EQ(added->tensors, world_.contents["/a"].size() + more.size());
  EXPECT_EQ(added->bytes, bytes);
  EXPECT_EQ(added->blocks, (bytes + 16383) / 16384);
  EXPECT_TRUE(added->durable);
  EXPECT_EQ(world_.StateOf("org/m"), "registered");
  ASSERT_EQ(world_.ReportOf("org/m").files.size(), 2u);
  world_.ExpectNoMemory();
}

TEST_F(Registering, SurvivesARestartInOrder) {
  for (const char* name : {"zebra", "ant", "m"})
    world_.AddRandom(name, 1);
  world_.MakeFile("/second", WeightsWorld::MakeTensors(8));
  ASSERT_TRUE(world_.Add("ant", "2", {"/second"}).has_value());
  const ModelVersionReport before = world_.ReportOf("ant");
  world_.Restart();
  EXPECT_THAT(world_.problems, IsEmpty());
  EXPECT_THAT(Registered(), ElementsAre("zebra@1", "ant@1", "ant@2", "m@1"));
  const ModelVersionReport after = world_.ReportOf("ant");
  EXPECT_EQ(after.tensors, before.tensors);
  EXPECT_EQ(after.bytes, before.bytes);
  EXPECT_EQ(after.blocks, before.blocks);
  EXPECT_EQ(after.files[0].path, "/second");
  EXPECT_TRUE(after.durable);
  const auto attached = world_.Attach("ant");
  ASSERT_TRUE(attached.has_value()) << attached.error().ToString();
  world_.ExpectContents(*attached, "/second");
  world_.weights->ClientGone(WeightsWorld::kClient);
  ASSERT_TRUE(world_.weights->Unload("ant", "").has_value());
}

TEST_F(Registering, DigestOfTheFirstLoadIsOnRecord) {
  world_.AddRandom("m", 1);
  EXPECT_TRUE(world_.ReportOf("m").digest.IsZero());
  const auto loaded = world_.Load("m");
  ASSERT_TRUE(loaded.has_value());
  ASSERT_TRUE(world_.weights->Unload("m", "").has_value());
  world_.Restart();
  EXPECT_EQ(world_.ReportOf("m").digest, loaded->digest);
}

TEST_F(Registering, FileThatTheDaemonCannotReopenIsNotDurableAndSaysWhy) {
  world_.MakeFile("/m", WeightsWorld::MakeTensors(1), /*reopenable=*/false);
  const auto added = world_.Add("m", "1", {"/m"});
  ASSERT_TRUE(added.has_value());
  EXPECT_FALSE(added->durable);
  EXPECT_THAT(added->why_not, HasSubstr("not readable"));
  EXPECT_TRUE(world_.Load("m").has_value());
  ASSERT_TRUE(world_.weights->Unload("m", "").has_value());
  world_.Restart();
  EXPECT_THAT(Registered(), IsEmpty());
}

TEST_F(Registering, JournalThatFailsLeavesAModelThatIsNotDurable) {
  world_.MakeFile("/m", WeightsWorld::MakeTensors(1));
  world_.journal.write_faults.FailAfter(0, {Code::kUnavailable, "disk full"});
  const auto added = world_.Add("m", "1", {"/m"});
  ASSERT_TRUE(added.has_value());
  EXPECT_FALSE(added->durable);
  EXPECT_THAT(added->why_not, HasSubstr("the journal: disk full"));
  EXPECT_FALSE(world_.ReportOf("m").durable);
  EXPECT_TRUE(world_.Load("m").has_value());
  // The digest's record was written, so the model is durable after all.
  EXPECT_TRUE(world_.ReportOf("m").durable);
  ASSERT_TRUE(world_.weights->Unload("m", "").has_value());
}

TEST_F(Registering, AnswerComesWhenTheRecordIsOnDisk) {
  world_.MakeFile("/m", WeightsWorld::MakeTensors(1));
  bool answered = false;
  world_.weights->AddModel(WeightsWorld::SpecOf("m", "1", {"/m"}),
                           [&](const Result<ModelAdded>&) { answered = true; });
  world_.sources.RunPending();
  EXPECT_FALSE(answered);
  EXPECT_EQ(world_.journal.RunPending(), 1u);
  EXPECT_TRUE(answered);
}

TEST_F(Registering, SameFilesAgainChangeNothing) {
  world_.AddRandom("m", 1);
  const auto again = world_.Add("m", "1", {"/m"});
  ASSERT_TRUE(again.has_value()) << again.error().ToString();
  EXPECT_TRUE(again->durable);
  EXPECT_THAT(Registered(), ElementsAre("m@1"));
}

TEST_F(Registering, SameFilesAgainMakeDurableWhatWasNot) {
  world_.MakeFile("/m", WeightsWorld::MakeTensors(1), /*reopenable=*/false);
  ASSERT_FALSE(world_.Add("m", "1", {"/m"})->durable);
  world_.MakeFile("/m", WeightsWorld::MakeTensors(1));
  // The journal fails first, so the same is tried again.
  world_.journal.write_faults.FailAfter(0, {Code::kUnavailable, "disk full"});
  auto again = world_.Add("m", "1", {"/m"});
  ASSERT_TRUE(again.has_value()) << again.error().ToString();
  EXPECT_FALSE(again->durable);
  EXPECT_THAT(again->why_not, HasSubstr("the journal: disk full"));
  again = world_.Add("m", "1", {"/m"});
  ASSERT_TRUE(again.has_value()) << again.error().ToString();
  EXPECT_TRUE(again->durable);
  EXPECT_EQ(again->why_not, "");
  world_.Restart();
  EXPECT_THAT(Registered(), ElementsAre("m@1"));
  // After a restart, too, nothing changes what is durable.
  again = world_.Add("m", "1", {"/m"});
  ASSERT_TRUE(again.has_value()) << again.error().ToString();
  EXPECT_TRUE(again->durable);
  EXPECT_GT(again->blocks, 0u);
  EXPECT_TRUE(world_.Load("m").has_value());
  ASSERT_TRUE(world_.weights->Unload("m", "").has_value());
}

TEST_F(Registering, FilesThatCannotBeReopenedTakeNothingFromADurableModel) {
  world_.AddRandom("m", 1);
  world_.MakeFile("/m", WeightsWorld::MakeTensors(1), /*reopenable=*/false);
  const auto again = world_.Add("m", "1", {"/m"});
  ASSERT_TRUE(again.has_value()) << again.error().ToString();
  EXPECT_TRUE(again->durable);
}

TEST_F(Registering, OtherFilesUnderATakenNameAreRefused) {
  world_.AddRandom("m", 1);
  world_.MakeFile("/n", WeightsWorld::MakeTensors(1));
  const auto other = world_.Add("m", "1", {"/n"});
  EXPECT_EQ(other.status().code(), Code::kAlreadyExists);
  EXPECT_THAT(other.status().message(), HasSubstr("model 'm' version '1'"));
  EXPECT_TRUE(world_.Add("m", "2", {"/n"}).has_value());
}

TEST_F(Registering, TwoAtOnceUnderOneNameAreOne) {
  world_.MakeFile("/a", WeightsWorld::MakeTensors(1));
  world_.MakeFile("/b", WeightsWorld::MakeTensors(2));
  std::vector<Code> codes;
  for (const char* path : {"/a", "/b"}) {
    world_.weights->AddModel(
        WeightsWorld::SpecOf("m", "1", {path}),
        [&](const Result<ModelAdded>& added) { codes.push_back(added.status().code()); });
  }
  world_.Run();
  EXPECT_THAT(codes, testing::UnorderedElementsAre(Code::kOk, Code::kAlreadyExists));
  EXPECT_THAT(Registered(), ElementsAre("m@1"));
}

TEST_F(Registering, BadNamesAreRefusedBeforeTheFilesAreOpened) {
  world_.MakeFile("/m", WeightsWorld::MakeTensors(1));
  EXPECT_THAT(world_.Add("m@x", "1", {"/m"}).status().message(), HasSubstr("name: must be"));
  EXPECT_THAT(world_.Add("m", "", {"/m"}).status().message(), HasSubstr("version: must be"));
  EXPECT_EQ(world_.sources.open_faults.calls(), 0u);
}

TEST_F(Registering, FilesThatDoNotOpenAreRefused) {
  EXPECT_EQ(world_.Add("m", "1", {"/none"}).status().code(), Code::kNotFound);
  EXPECT_THAT(Registered(), IsEmpty());
}

TEST_F(Registering, ModelWithoutAByteIsRefused) {
  world_.MakeFile("/m", {{.name = "empty", .dtype = "U8", .shape = {0}, .bytes = {}}});
  const auto added = world_.Add("m", "1", {"/m"});
  EXPECT_EQ(added.status().code(), Code::kInvalidArgument);
  EXPECT_THAT(added.status().message(), HasSubstr("none has a byte"));
}

TEST_F(Registering, TooManyAtOnceAreRefused) {
  world_.MakeFile("/m", WeightsWorld::MakeTensors(1));
  std::vector<Code> codes;
  for (size_t i = 0; i <= Weights::kMaxOpening; ++i) {
    world_.weights->AddModel(
        WeightsWorld::SpecOf("m" + std::to_string(i), "1", {"/m"}),
        [&](const Result<ModelAdded>& added) { codes.push_back(added.status().code()); });
  }
  EXPECT_THAT(codes, ElementsAre(Code::kExhausted));
  world_.Run();
  EXPECT_EQ(codes.size(), Weights::kMaxOpening + 1);
  EXPECT_EQ(Registered().size(), Weights::kMaxOpening);
}

TEST_F(Registering, TooManyVersionsAreRefused) {
  world_.MakeFile("/m", WeightsWorld::MakeTensors(1, 0, 1));
  for (size_t i = 0; i < Weights::kMaxVersions; ++i)
    ASSERT_TRUE(world_.Add("m", std::to_string(i), {"/m"}).has_value());
  EXPECT_EQ(world_.Add("m", "one-more", {"/m"}).status().code(), Code::kExhausted);
  ASSERT_TRUE(world_.Remove("m", "7").ok());
  EXPECT_TRUE(world_.Add("m", "one-more", {"/m"}).has_value());
}

TEST_F(Registering, RemovedModelsDoNotComeBack) {
  world_.AddRandom("a", 1);
  world_.AddRandom("b", 2);
  ASSERT_TRUE(world_.Add("a", "2", {"/b"}).has_value());
  ASSERT_TRUE(world_.Remove("a", "1").ok());
  EXPECT_THAT(Registered(), ElementsAre("b@1", "a@2"));
  EXPECT_TRUE(world_.weights->Knows("a"));
  ASSERT_TRUE(world_.Remove("a").ok());
  world_.Restart();
  EXPECT_THAT(Registered(), ElementsAre("b@1"));
  EXPECT_FALSE(world_.weights->Knows("a"));
  EXPECT_EQ(world_.Remove("a").code(), Code::kNotFound);
  EXPECT_THAT(world_.Remove("b", "9").message(), HasSubstr("has no version '9'"));
}

TEST_F(Registering, RemovalOvertakesARecordThatIsStillBeingWritten) {
  world_.MakeFile("/m", WeightsWorld::MakeTensors(1));
  world_.weights->AddModel(WeightsWorld::SpecOf("m", "1", {"/m"}),
                           [](const Result<ModelAdded>&) {});
  world_.sources.RunPending();
  ASSERT_EQ(world_.journal.pending(), 1u);
  ASSERT_TRUE(world_.Remove("m").ok());
  world_.Restart();
  EXPECT_THAT(Registered(), IsEmpty());
}

TEST_F(Registering, RemovalThatTheJournalRefusesSaysSo) {
  world_.AddRandom("m", 1);
  world_.journal.write_faults.FailAfter(0, {Code::kUnavailable, "disk full"});
  const Status removed = world_.Remove("m");
  EXPECT_EQ(removed.code(), Code::kUnavailable);
  EXPECT_THAT(removed.message(), HasSubstr("the journal: disk full"));
  EXPECT_THAT(Registered(), IsEmpty());
}

TEST_F(Registering, DamagedRecordIsReportedAndTheOthersAreKept) {
  world_.AddRandom("a", 1);
  world_.AddRandom("b", 2);
  world_.journal.Put("model/bad@1", "not a record", [](const Status&) {});
  world_.journal.RunPending();
  world_.Restart();
  EXPECT_THAT(Registered(), ElementsAre("a@1", "b@1"));
  EXPECT_THAT(world_.problems, ElementsAre(HasSubstr("'model/bad@1'")));
}

TEST_F(Registering, JournalThatCannotBeReadIsAnError) {
  world_.journal.load_faults.FailAfter(0, {Code::kUnavailable, "no disk"});
  std::vector<std::string> problems;
  EXPECT_EQ(world_.weights->Restore(&problems).code(), Code::kUnavailable);
}

}  // namespace
}  // namespace terrace
