#include <array>
#include <numeric>

#include "tests/weights/weights_world.h"

namespace terrace {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

// Loads that have been asked for and how they ended.
struct Outcomes {
  std::vector<Code> codes;
  std::string message;

  std::function<void(Result<ModelLoaded>)> Loaded() {
    return [this](const Result<ModelLoaded>& result) { Note(result.status()); };
  }
  std::function<void(Result<Attached>)> Attached() {
    return [this](const Result<terrace::Attached>& result) { Note(result.status()); };
  }
  void Note(const Status& status) {
    codes.push_back(status.code());
    message = status.message();
  }
};

constexpr ClientId kClient = WeightsWorld::kClient;

class Loading : public testing::Test {
 protected:
  ~Loading() override { world_.ExpectConsistent(); }
  WeightsWorld world_;
};

TEST_F(Loading, MappedTensorsHaveTheBytesOfTheFile) {
  world_.AddRandom("m", 1);
  const auto loaded = world_.Load("m");
  ASSERT_TRUE(loaded.has_value()) << loaded.error().ToString();
  EXPECT_EQ(loaded->version, "1");
  EXPECT_FALSE(loaded->digest.IsZero());
  const auto attached = world_.Attach("m", /*load=*/false);
  ASSERT_TRUE(attached.has_value()) << attached.error().ToString();
  EXPECT_GT(world_.HeaderOf(*attached).blocks, 2u);
  EXPECT_EQ(attached->digest, loaded->digest);
  const std::array counts = world_.weights->Figures().read_times.counts;
  EXPECT_EQ(std::accumulate(counts.begin(), counts.end(), uint64_t{0}),
            world_.HeaderOf(*attached).blocks);
  world_.ExpectContents(*attached, "/m");
  EXPECT_EQ(world_.StateOf("m"), "resident");
}

TEST_F(Loading, WhoeverAsksWhileALoadRunsWaitsForIt) {
  world_.AddRandom("m", 1);
  ASSERT_TRUE(world_.Load("m").has_value());
  const uint64_t reads_of_one_load = world_.sources.read_faults.calls();
  ASSERT_TRUE(world_.weights->Unload("m", "").has_value());
  Outcomes outcomes;
  for (int i = 0; i < 5; ++i)
    world_.weights->Load(kClient, "m", "", {}, outcomes.Loaded());
  world_.weights->Attach(7, "m", "1", true, 0, outcomes.Attached());
  world_.weights->Turn();
  world_.sources.RunPending(1);
  world_.weights->Load(kClient, "m", "1", {}, outcomes.Loaded());
  EXPECT_TRUE(outcomes.codes.empty());
  EXPECT_EQ(world_.StateOf("m"), "loading");
  world_.Run();
  EXPECT_EQ(outcomes.codes, std::vector<Code>(7, Code::kOk));
  EXPECT_EQ(world_.sources.read_faults.calls(), 2 * reads_of_one_load);
}

TEST_F(Loading, LoadOfAResidentModelReadsNothing) {
  world_.AddRandom("m", 1);
  ASSERT_TRUE(world_.Load("m").has_value());
  const uint64_t reads = world_.sources.read_faults.calls();
  EXPECT_TRUE(world_.Load("m").has_value());
  EXPECT_EQ(world_.sources.read_faults.calls(), reads);
}

TEST_F(Loading, ProgressGrowsToTheTotalAndLateComersHearWhereItIs) {
  world_.AddRandom("m", 1, /*layers=*/40);
  using Steps = std::vector<std::pair<uint64_t, uint64_t>>;
  Steps first;
  Steps second;
  const auto note = [](Steps& steps) {
    return [&steps](uint64_t done, uint64_t total) { steps.emplace_back(done, total); };
  };
  Outcomes outcomes;
  world_.weights->Load(kClient, "m", "", note(first), outcomes.Loaded());
  while (first.size() < 3) {
    world_.weights->Turn();
    world_.sources.RunPending(1);
  }
  world_.weights->Load(kClient, "m", "", note(second), outcomes.Loaded());
  ASSERT_FALSE(second.empty());
  EXPECT_EQ(second.front(), first.back());
  EXPECT_EQ(world_.ReportOf("m").loading_done_bytes, first.back().first);
  world_.Run();
  EXPECT_EQ(outcomes.codes.size(), 2u);
  EXPECT_TRUE(std::is_sorted(first.begin(), first.end()));
  EXPECT_EQ(first.back().first, first.back().second);
  EXPECT_EQ(second.back(), first.back());
}

TEST_F(Loading, ProgressFunctionKeepsWhatItRemembers) {
  world_.AddRandom("m", 1, /*layers=*/40);
  int calls = 0;
  int seen = 0;
  Outcomes outcomes;
  world_.weights->Load(
      kClient, "m", "",
      [&seen, &calls, mine = 0](uint64_t, uint64_t) mutable { seen = ++mine, ++calls; },
      outcomes.Loaded());
  world_.Run();
  EXPECT_GT(calls, 3);
  EXPECT_EQ(seen, calls);
}

TEST_F(Loading, PopulatesABoundedPieceATurn) {
  WeightsWorld world({.capacity = 256u << 20, .block_bytes = 32u << 20});
  world.MakeFile("/m", WeightsWorld::MakeTensors(1, 4, 10u << 20));
  ASSERT_TRUE(world.Add("m", "1", {"/m"}).has_value());
  Outcomes outcomes;
  world.weights->Load(kClient, "m", "", {}, outcomes.Loaded());
  world.sources.RunPending(1);  // The stamp of the files.
  uint64_t resident = 0;
  int turns = 0;
  bool more = true;
  while (more) {
    more = world.weights->Turn();
    const uint64_t now = world.host.Report().small_page_bytes;
    EXPECT_LE(now - resident, Weights::kPopulateStepBytes);
    resident = now;
    ++turns;
  }
  EXPECT_GT(turns, 3);
  world.Run();
  EXPECT_THAT(outcomes.codes, ElementsAre(Code::kOk));
}

// ---- Failures -----------------------------------------------------------------------------------

TEST_F(Loading, ReadErrorHalfWayFailsAllWaitersAndLeavesNothing) {
  world_.AddRandom("m", 1, 40);
  Outcomes outcomes;
  world_.sources.read_faults.FailAfter(5, {Code::kDataLoss, "/m: broken"});
  for (int i = 0; i < 3; ++i)
    world_.weights->Load(kClient, "m", "", {}, outcomes.Loaded());
  world_.Run();
  EXPECT_EQ(outcomes.codes, std::vector<Code>(3, Code::kDataLoss));
  EXPECT_THAT(outcomes.message, HasSubstr("model 'm' version '1': /m: broken"));
  EXPECT_THAT(world_.StateOf("m"), HasSubstr("failed: data_loss: /m: broken"));
  world_.ExpectNoMemory();
  EXPECT_TRUE(world_.Load("m").has_value());
  EXPECT_EQ(world_.StateOf("m"), "resident");
}

// Giving up memory takes time, and the owner thread has others to serve.
class LargeModel : public ::testing::Test {
 protected:
  static constexpr size_t kBytes = 160u << 20;

  void SetUp() override {
    world.MakeFile("/large", {{.name = "w",
                               .dtype = "U8",
                               .shape = {kBytes},
                               .bytes = std::vector<uint8_t>(kBytes, 3)}});
    ASSERT_TRUE(world.Add("large", "1", {"/large"}).has_value());
  }
  uint64_t Resident() { return world.weights->totals().resident_bytes; }
  // What a turn releases at most, and a block.
  void ExpectStep(uint64_t before) {
    EXPECT_LT(Resident(), before);
    EXPECT_GE(Resident() + Weights::kReleaseStepBytes + world_options.block_bytes, before);
    world.ExpectConsistent();
  }
  void ExpectReleasedInSteps() {
    for (uint64_t before = Resident(); before > 0; before = Resident()) {
      (void)world.weights->Turn();
      ExpectStep(before);
      if (HasFailure()) return;
    }
    EXPECT_FALSE(world.weights->Turn());
    world.ExpectNoMemory();
  }

  const WorldOptions world_options{.capacity = 512u << 20, .block_bytes = 16u << 20};
  WeightsWorld world{world_options};
};

TEST_F(LargeModel, IsReleasedInSteps) {
  ASSERT_TRUE(world.Load("large").has_value());
  const uint64_t all = Resident();
  const Result<Unloaded> unloaded = world.weights->Unload("large", "1");
  ASSERT_TRUE(unloaded.has_value());
  EXPECT_EQ(unloaded->freed_bytes, kBytes);
  ExpectStep(all);
  EXPECT_GT(Resident(), 0u);
  EXPECT_EQ(world.weights->totals().let_go_bytes, 0u) << "nobody holds them";
  ExpectReleasedInSteps();
}

TEST_F(LargeModel, ALoadTakesUpWhatIsNotReleasedYet) {
  ASSERT_TRUE(world.Load("large").has_value());
  ASSERT_TRUE(world.weights->Unload("large", "1").has_value());
  ASSERT_GT(Resident(), 0u);
  ASSERT_TRUE(world.Load("large").has_value());
  EXPECT_EQ(world.StateOf("large"), "resident");
  world.ExpectConsistent();
  EXPECT_FALSE(world.weights->Turn());
  EXPECT_GE(Resident(), kBytes);
}

TEST_F(LargeModel, RemovedItLeavesInStepsToo) {
  ASSERT_TRUE(world.Load("large").has_value());
  std::optional<Status> removed;
  world.weights->RemoveModel("large", "1", [&](Status status) { removed = std::move(status); });
  EXPECT_GT(Resident(), 0u);
  world.ExpectConsistent();
  ExpectReleasedInSteps();
  (void)world.journal.RunPending();
  EXPECT_EQ(removed, Status());
}

TEST_F(LargeModel, ALoadThatFailsLateIsReleasedInSteps) {
  world.sources.hash_faults.FailAfter(0, Status(Code::kInternal, "told to fail"));
  EXPECT_FALSE(world.Load("large").has_value());
  world.ExpectConsistent();
  ExpectReleasedInSteps();
}

TEST_F(Loading, PlansAndManifestsThatCannotBeMadeFailTheLoad) {
  world_.AddRandom("m", 1);
  world_.sources.run_faults.FailAfter(0, Status(Code::kExhausted, "told to fail"));
  EXPECT_EQ(world_.Load("m").status().code(), Code::kExhausted);
  world_.ExpectNoMemory();
  EXPECT_TRUE(world_.Load("m").has_value());
  // Likewise when it is added, and when it is planned again after a restart.
  world_.MakeFile("/n", WeightsWorld::MakeTensors(2));
  world_.sources.run_faults.FailAfter(0, Status(Code::kExhausted, "told to fail"));
  EXPECT_EQ(world_.Add("n", "1", {"/n"}).status().code(), Code::kExhausted);
  EXPECT_TRUE(world_.Add("n", "1", {"/n"}).has_value());
}

TEST_F(Loading, FileThatBecameShorterIsDataLoss) {
  world_.AddRandom("m", 1);
  world_.sources.Truncate("/m", 20'000);
  EXPECT_EQ(world_.Load("m").status().code(), Code::kDataLoss);
  world_.ExpectNoMemory();
}

TEST_F(Loading, ModelThatCanNeverFitEvictsNothing) {
  WeightsWorld world({.capacity = 150'000, .block_bytes = 16384});
  world.AddRandom("small", 1, 2);
  world.AddRandom("large", 2, 40);
  ASSERT_TRUE(world.Load("small").has_value());
  const auto loaded = world.Load("large");
  EXPECT_EQ(loaded.status().code(), Code::kExhausted);
  EXPECT_THAT(loaded.status().message(), HasSubstr("of which the daemon has 150000"));
  EXPECT_EQ(world.StateOf("small"), "resident");
  EXPECT_EQ(world.weights->totals().evicted_blocks, 0u);
}

TEST_F(Loading, NoRoomBesideHeldBlocksIsExhausted) {
  WeightsWorld world({.capacity = 150'000, .block_bytes = 16384});
  world.AddRandom("a", 1);
  world.AddRandom("b", 2);
  const auto attached = world.Attach("a");
  ASSERT_TRUE(attached.has_value());
  const auto loaded = world.Load("b");
  EXPECT_EQ(loaded.status().code(), Code::kExhausted);
  EXPECT_THAT(loaded.status().message(), HasSubstr("block"));
  world.ExpectContents(*attached, "/a");
  world.ExpectConsistent();
  ASSERT_TRUE(world.weights->Detach(WeightsWorld::kClient, attached->attachment).ok());
  EXPECT_TRUE(world.Load("b").has_value());
  world.ExpectConsistent();
}

TEST_F(Loading, FailureOfTheHostTierFailsCleanly) {
  world_.AddRandom("m", 1);
  // The last arena to be created is the manifest, the first four are blocks.
  ASSERT_TRUE(world_.Load("m").has_value());
  const uint64_t arenas = world_.host.create_faults.calls();
  ASSERT_TRUE(world_.weights->Unload("m", "").has_value());
  for (FaultPlan* faults :
       {&world_.host.create_faults, &world_.host.populate_faults, &world_.host.seal_faults}) {
    for (uint64_t skip = 0; skip < arenas; ++skip) {
      faults->FailAfter(skip, {Code::kExhausted, "no memory"});
      const auto loaded = world_.Load("m");
      faults->Clear();
      if (!loaded.has_value()) {
        EXPECT_EQ(loaded.status().code(), Code::kExhausted);
        world_.ExpectNoMemory();
      } else {
        EXPECT_GT(skip, 0u) << "the fault was not met";
        ASSERT_TRUE(world_.weights->Unload("m", "").has_value());
      }
    }
  }
  const auto attached = world_.Attach("m");
  ASSERT_TRUE(attached.has_value());
  world_.ExpectContents(*attached, "/m");
}

TEST_F(Loading, RemovalWhileLoadingWaitsForReadsButNotWithTheAnswer) {
  world_.AddRandom("m", 1, 40);
  Outcomes outcomes;
  world_.weights->Load(kClient, "m", "", {}, outcomes.Loaded());
  world_.sources.RunPending(1);  // The stamp of the files.
  world_.weights->Turn();
  ASSERT_GT(world_.sources.pending(), 0u);
  std::optional<Status> removed;
  world_.weights->RemoveModel("m", "", [&](Status status) { removed = std::move(status); });
  world_.journal.RunPending();
  EXPECT_TRUE(removed.has_value() && removed->ok());
  EXPECT_EQ(world_.StateOf("m"), "");
  // Reads still write into the blocks: they must be there.
  EXPECT_GT(world_.memory.arenas(), 0u);
  world_.Run();
  EXPECT_THAT(outcomes.codes, ElementsAre(Code::kNotFound));
  EXPECT_THAT(outcomes.message, HasSubstr("was removed"));
  world_.ExpectNoMemory();
}

TEST_F(Loading, RemovalFromWithinAProgressReportEndsTheLoad) {
  world_.AddRandom("m", 1, 40);
  Outcomes outcomes;
  int reports = 0;
  world_.weights->Load(
      kClient, "m", "",
      [&](uint64_t, uint64_t) {
        if (++reports == 2) world_.weights->RemoveModel("m", "", [](const Status&) {});
      },
      outcomes.Loaded());
  world_.Run();
  EXPECT_EQ(reports, 2);
  EXPECT_THAT(outcomes.codes, ElementsAre(Code::kNotFound));
  world_.ExpectNoMemory();
}

TEST_F(Loading, UnloadWhileLoadingIsRefused) {
  world_.AddRandom("m", 1);
  Outcomes outcomes;
  world_.weights->Load(kClient, "m", "", {}, outcomes.Loaded());
  EXPECT_EQ(world_.weights->Unload("m", "").status().code(), Code::kUnavailable);
  world_.Run();
  EXPECT_THAT(outcomes.codes, ElementsAre(Code::kOk));
}

TEST_F(Loading, ClientThatGoesWhileItWaitsIsAnsweredOnceAndTheLoadGoesOn) {
  world_.AddRandom("m", 1);
  Outcomes gone;
  Outcomes stays;
  world_.weights->Attach(1, "m", "", true, 0, gone.Attached());
  world_.weights->Attach(2, "m", "", true, 0, stays.Attached());
  world_.weights->ClientGone(1);
  EXPECT_THAT(gone.codes, ElementsAre(Code::kUnavailable));
  world_.Run();
  EXPECT_EQ(gone.codes.size(), 1u);
  EXPECT_THAT(stays.codes, ElementsAre(Code::kOk));
  EXPECT_EQ(world_.weights->HoldingsOf(1).attachments, 0u);
  EXPECT_EQ(world_.weights->HoldingsOf(2).attachments, 1u);
}

TEST_F(Loading, PassedDeadlineAnswersAndTheLoadGoesOn) {
  world_.AddRandom("m", 1);
  Outcomes late;
  Outcomes patient;
  world_.weights->Attach(1, "m", "", true, 10, late.Attached());
  world_.weights->Attach(2, "m", "", true, 1000, patient.Attached());
  world_.clock.Advance(9 * kNsPerMs);
  world_.weights->Turn();
  EXPECT_TRUE(late.codes.empty());
  world_.clock.Advance(2 * kNsPerMs);
  world_.weights->Turn();
  EXPECT_THAT(late.codes, ElementsAre(Code::kDeadlineExceeded));
  world_.Run();
  EXPECT_EQ(late.codes.size(), 1u);
  EXPECT_THAT(patient.codes, ElementsAre(Code::kOk));
  EXPECT_EQ(world_.weights->HoldingsOf(1).attachments, 0u);
}

TEST_F(Loading, NoTenantTakesAllPlacesOfWaiters) {
  world_.AddRandom("m", 1);
  Outcomes greedy;
  for (size_t i = 0; i < Weights::kMaxWaiters / 2; ++i)
    world_.weights->Load(1 + i / Weights::kMaxClientWaiters, "m", "", {}, greedy.Loaded());
  EXPECT_TRUE(greedy.codes.empty());
  world_.weights->Load(999, "m", "", {}, greedy.Loaded());
  EXPECT_THAT(greedy.codes, ElementsAre(Code::kExhausted));
  EXPECT_THAT(greedy.message, HasSubstr("4096 of this tenant wait already"));
  Outcomes other;
  for (size_t i = 0; i < Weights::kMaxWaiters / 4; ++i) {
    world_.weights->Load(WeightsWorld::kClientsOfTenant + i / Weights::kMaxClientWaiters, "m", "",
                         {}, other.Loaded());
  }
  EXPECT_TRUE(other.codes.empty());
  world_.Run();
  EXPECT_EQ(greedy.codes.size(), Weights::kMaxWaiters / 2 + 1);
  EXPECT_EQ(other.codes.size(), Weights::kMaxWaiters / 4);
}

TEST_F(Loading, OneClientCannotTakeAllPlacesOfWaiters) {
  world_.AddRandom("m", 1);
  world_.AddRandom("n", 2);
  Outcomes greedy;
  Outcomes other;
  for (size_t i = 0; i < Weights::kMaxClientWaiters / 2; ++i) {
    world_.weights->Attach(1, i % 2 == 0 ? "m" : "n", "", true, 0, greedy.Attached());
    world_.weights->Load(1, i % 2 == 0 ? "m" : "n", "", {}, greedy.Loaded());
  }
  EXPECT_TRUE(greedy.codes.empty());
  world_.weights->Attach(1, "m", "", true, 0, greedy.Attached());
  world_.weights->Load(1, "m", "", {}, greedy.Loaded());
  EXPECT_THAT(greedy.codes, ElementsAre(Code::kExhausted, Code::kExhausted));
  EXPECT_THAT(greedy.message, HasSubstr("waits for loads 64 times already"));
  world_.weights->Attach(2, "m", "", true, 0, other.Attached());
  world_.weights->Load(2, "m", "", {}, other.Loaded());
  world_.Run();
  EXPECT_EQ(greedy.codes.size(), Weights::kMaxClientWaiters + 2);
  EXPECT_THAT(other.codes, ElementsAre(Code::kOk, Code::kOk));
  EXPECT_EQ(world_.weights->HoldingsOf(1).attachments, Weights::kMaxClientWaiters / 2);
}

TEST_F(Loading, AClientThatGoesWaitsForNoLoadAndTheLoadGoesOn) {
  world_.AddRandom("m", 1);
  Outcomes gone;
  for (size_t i = 0; i < Weights::kMaxClientWaiters; ++i)
    world_.weights->Load(1, "m", "", {}, gone.Loaded());
  EXPECT_EQ(world_.weights->Figures().waiters, Weights::kMaxClientWaiters);
  world_.weights->ClientGone(1);
  EXPECT_EQ(gone.codes, std::vector<Code>(Weights::kMaxClientWaiters, Code::kUnavailable));
  EXPECT_EQ(world_.weights->Figures().waiters, 0u);
  world_.Run();
  EXPECT_EQ(world_.StateOf("m"), "resident");
  EXPECT_EQ(gone.codes.size(), Weights::kMaxClientWaiters);
}

TEST_F(Loading, NothingIsCalledBackAfterTheEnd) {
  WeightsWorld world;
  world.AddRandom("m", 1);
  bool called = false;
  world.weights->Load(kClient, "m", "", {}, [&](const Result<ModelLoaded>&) { called = true; });
  world.weights->Turn();
  world.weights->AddModel(WeightsWorld::SpecOf("n", "1", {"/m"}),
                          [&](const Result<ModelAdded>&) { called = true; });
  world.weights->RemoveModel("m", "", [&](const Status&) { called = true; });
  called = false;  // The load was answered by the removal or will be dropped.
  // Hashes and openings complete after Weights is gone; reads must not (they write into blocks).
  world.weights.reset();
  world.journal.RunPending();
  EXPECT_FALSE(called);
}

// ---- Contents -----------------------------------------------------------------------------------

TEST_F(Loading, OtherBytesThanOnRecordAreDataLossAndNotPublished) {
  world_.AddRandom("m", 1);
  const auto first = world_.Load("m");
  ASSERT_TRUE(first.has_value());
  const std::vector<SimTensor> original = world_.contents["/m"];
  for (const size_t tensor : {size_t{0}, original.size() - 1}) {
    std::vector<SimTensor> changed = original;
    changed[tensor].bytes.back() ^= 1;
    world_.MakeFile("/m", changed);
    ASSERT_TRUE(world_.weights->Unload("m", "").has_value());
    world_.Restart();
    const auto again = world_.Load("m");
    EXPECT_EQ(again.status().code(), Code::kDataLoss);
    EXPECT_THAT(again.status().message(), HasSubstr("'" + changed[tensor].name + "'"));
    EXPECT_THAT(world_.Attach("m", false).status().code(), Code::kNotFound);
    world_.ExpectNoMemory();
  }
  world_.MakeFile("/m", original);
  world_.Restart();
  const auto restored = world_.Load("m");
  ASSERT_TRUE(restored.has_value()) << restored.error().ToString();
  EXPECT_EQ(restored->digest, first->digest);
}

TEST_F(Loading, OtherTensorsThanWhenAddedAreDataLoss) {
  world_.AddRandom("m", 1);
  const std::vector<SimTensor> original = world_.contents["/m"];
  std::vector<std::vector<SimTensor>> others(3, original);
  others[0][0].dtype = "I8";
  others[1][0].name = "model.embed2";
  others[2].pop_back();
  for (std::vector<SimTensor>& changed : others) {
    world_.MakeFile("/m", std::move(changed));
    world_.Restart();
    const auto loaded = world_.Load("m");
    EXPECT_EQ(loaded.status().code(), Code::kDataLoss);
    EXPECT_THAT(loaded.status().message(), HasSubstr("other tensors than when they were added"));
    world_.ExpectNoMemory();
  }
}

TEST_F(Loading, FilesThatAreGoneAfterARestartAreNotFound) {
  world_.AddRandom("m", 1);
  world_.Restart();
  world_.sources.open_faults.FailAfter(0, {Code::kNotFound, "/m: no such file"});
  EXPECT_EQ(world_.Load("m").status().code(), Code::kNotFound);
  EXPECT_TRUE(world_.Load("m").has_value());
}

TEST_F(Loading, EvictedBlocksAloneAreReadAgain) {
  world_.AddRandom("m", 1, 40);
  ASSERT_TRUE(world_.Load("m").has_value());
  const uint32_t blocks = world_.ReportOf("m").blocks;
  ASSERT_GT(blocks, 10u);
  for (int i = 0; i < 3; ++i)
    ASSERT_TRUE(world_.memory.EvictOne());
  EXPECT_EQ(world_.ReportOf("m").blocks_resident, blocks - 3);
  EXPECT_EQ(world_.StateOf("m"), "partly evicted");
  EXPECT_THAT(world_.Attach("m", false).status().message(), HasSubstr("was partly evicted"));
  const uint64_t reads = world_.sources.read_faults.calls();
  const auto attached = world_.Attach("m");
  ASSERT_TRUE(attached.has_value()) << attached.error().ToString();
  EXPECT_EQ(world_.sources.read_faults.calls(), reads + 3);
  world_.ExpectContents(*attached, "/m");
}

TEST_F(Loading, LoadUnderPressureDoesNotEvictItsOwnModel) {
  // Room for one model and a bit: the other one must go, block by block.
  WeightsWorld world({.capacity = 130'000, .block_bytes = 16384});
  world.AddRandom("a", 1);
  world.AddRandom("b", 2);
  for (int i = 0; i < 5; ++i) {
    for (const char* name : {"a", "b"}) {
      const auto attached = world.Attach(name);
      ASSERT_TRUE(attached.has_value()) << attached.error().ToString();
      world.ExpectContents(*attached, std::string("/") + name);
      world.ExpectConsistent();
      ASSERT_TRUE(world.weights->Detach(WeightsWorld::kClient, attached->attachment).ok());
    }
  }
  EXPECT_GT(world.weights->totals().evicted_blocks, 0u);
}

}  // namespace
}  // namespace terrace
