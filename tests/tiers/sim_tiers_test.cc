#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <optional>

#include "tiers/sim/sim_executor.h"
#include "tiers/sim/sim_host_tier.h"
#include "tiers/sim/sim_journal.h"
#include "tiers/sim/sim_weight_sources.h"

namespace terrace {
namespace {

using ::testing::ElementsAre;
constexpr size_t kPage = 4096;

TEST(SimHostTier, KeepsTheContractOfHostMemory) {
  SimHostTier tier({.blank_bytes = 4 * kPage});
  const auto slab = tier.Create(8 * kPage, ArenaUse::kSlab);
  ASSERT_TRUE(slab.has_value());
  EXPECT_FALSE(slab->resident);
  ASSERT_TRUE(tier.Populate({slab->id, 0, kPage + 1}).ok());
  const auto mapped = tier.Map(slab->id);
  EXPECT_TRUE(mapped->Resident(0, 2 * kPage));
  EXPECT_FALSE(mapped->Resident(0, 3 * kPage));
  tier.Bytes(slab->id)[0] = 1;
  tier.Bytes(slab->id)[kPage] = 2;
  ASSERT_TRUE(tier.Punch({slab->id, 0, kPage + 10}).ok());
  EXPECT_EQ(mapped->bytes()[0], 0);
  EXPECT_EQ(mapped->bytes()[kPage], 0);
  EXPECT_EQ(mapped->resident_bytes(), kPage);
  tier.Bytes(slab->id)[kPage] = 3;
  tier.Release(slab->id);
  EXPECT_TRUE(mapped->released());
  EXPECT_EQ(mapped->bytes()[kPage], 3);
  EXPECT_EQ(tier.Map(slab->id), nullptr);
  EXPECT_EQ(tier.Create(kPage, ArenaUse::kSlab)->id, slab->id + 1);
  EXPECT_EQ(tier.Create(kPage, ArenaUse::kBlock)->id, kFirstBlockId);
}

TEST(SimHostTier, ReserveIsMadeStepByStepAndServesResidentArenas) {
  SimHostTier tier({.blank_bytes = 4 * kPage, .blanks_per_step = 2});
  tier.SetReserve(12 * kPage);
  EXPECT_EQ(tier.Report().blank_target_bytes, 12 * kPage);
  EXPECT_EQ(tier.MakeBlanks(), 2u);
  EXPECT_EQ(tier.MakeBlanks(), 1u);
  EXPECT_EQ(tier.MakeBlanks(), 0u);
  EXPECT_TRUE(tier.Create(3 * kPage, ArenaUse::kSlab)->resident);
  EXPECT_FALSE(tier.Create(5 * kPage, ArenaUse::kSlab)->resident);
  tier.SetReserve(4 * kPage);
  EXPECT_EQ(tier.Report().blank_bytes, 4 * kPage);
}

TEST(SimHostTier, FailsByPlanAndAtItsCapacity) {
  SimHostTier tier({.capacity_bytes = 4 * kPage});
  tier.create_faults.FailAfter(1, Status(Code::kExhausted, "planned"));
  const auto first = tier.Create(kPage, ArenaUse::kSlab);
  EXPECT_TRUE(first.has_value());
  EXPECT_EQ(tier.Create(kPage, ArenaUse::kSlab).error().message(), "planned");
  EXPECT_TRUE(tier.Create(3 * kPage, ArenaUse::kSlab).has_value());
  EXPECT_EQ(tier.Create(kPage, ArenaUse::kSlab).error().code(), Code::kExhausted);
  tier.Release(first->id);
  EXPECT_TRUE(tier.Create(kPage, ArenaUse::kSlab).has_value());
}

TEST(SimHostTierDeathTest, MisuseByTheEngineAborts) {
  SimHostTier tier;
  const ArenaId block = tier.Create(kPage, ArenaUse::kBlock)->id;
  EXPECT_DEATH((void)tier.Punch({block, 0, kPage}), "check failed");
  EXPECT_DEATH((void)tier.Populate({block, kPage, 1}), "check failed");
  EXPECT_DEATH(tier.Release(block + 1), "check failed");
}

TEST(SimWeightSources, ReadsCompleteWhenToldWithTheBytesOfThatMoment) {
  SimWeightSources sources;
  sources.AddFile("/m", {{"a", "U8", {3}, {1, 2, 3}}, {"b", "U8", {2}, {4, 5}}});
  std::shared_ptr<WeightSource> source;
  sources.Open({.paths = {"/m"}, .fds = {}, .index = ""}, [&](auto opened) { source = *opened; });
  EXPECT_EQ(source, nullptr);
  EXPECT_EQ(sources.RunPending(), 1u);
  ASSERT_NE(source, nullptr);
  EXPECT_EQ(source->tensors()[1].file_offset, 3u);
  EXPECT_EQ(source->files()[0].bytes, 5u);
  std::vector<uint8_t> into(3);
  std::optional<Status> read;
  source->Read(
      {.memory = {}, .pieces = {{0, 1, std::span(into).first(2)}, {1, 0, std::span(into).last(1)}}},
      [&](const Result<BlockBytes>& bytes) { read = bytes.status(); });
  EXPECT_FALSE(read.has_value());
  sources.RunPending();
  EXPECT_TRUE(read->ok());
  EXPECT_THAT(into, ElementsAre(2, 3, 4));
  std::optional<Digest> digest;
  source->Hash({into}, [&](auto hashed) { digest = *hashed; });
  sources.RunPending();
  EXPECT_EQ(digest, Sha256::Of(into));
}

TEST(SimWeightSources, ReportsWhatIsMissingShortOrPlanned) {
  SimWeightSources sources;
  sources.AddFile("/m", {{"a", "U8", {3}, {1, 2, 3}}});
  std::optional<Status> status;
  sources.Open({.paths = {"/x"}, .fds = {}, .index = ""},
               [&](auto opened) { status = opened.status(); });
  sources.RunPending();
  EXPECT_EQ(status->code(), Code::kNotFound);
  std::shared_ptr<WeightSource> source;
  sources.Open({.paths = {"/m"}, .fds = {}, .index = ""}, [&](auto opened) { source = *opened; });
  sources.RunPending();
  std::vector<uint8_t> into(3);
  const auto read = [&] {
    source->Read({.memory = {}, .pieces = {{0, 0, into}}},
                 [&](const Result<BlockBytes>& bytes) { status = bytes.status(); });
    sources.RunPending();
    return status->code();
  };
  EXPECT_EQ(read(), Code::kOk);
  sources.read_faults.FailAfter(0, Status(Code::kUnavailable, "planned"));
  EXPECT_EQ(read(), Code::kUnavailable);
  sources.Truncate("/m", 2);
  EXPECT_EQ(read(), Code::kDataLoss);
  status.reset();
  source->Read({.memory = {}, .pieces = {{0, 0, into}}},
               [&](const Result<BlockBytes>& bytes) { status = bytes.status(); });
  sources.DropPending();
  EXPECT_EQ(sources.RunPending(), 0u);
  EXPECT_FALSE(status.has_value());
}

TEST(SimJournal, LosesAtACrashWhatWasNotMadeDurable) {
  SimJournal journal;
  int completed = 0;
  const auto count = [&](const Status&) { ++completed; };
  journal.Put("a", "1", count);
  journal.RunPending();
  journal.Put("b", "2", count);
  journal.Put("c", "3", count);
  EXPECT_EQ(journal.Load("")->size(), 1u);
  journal.Crash(1);
  EXPECT_EQ(completed, 1);
  EXPECT_EQ(journal.RunPending(), 0u);
  const auto records = *journal.Load("");
  ASSERT_EQ(records.size(), 2u);
  EXPECT_EQ(records[1].key, "b");
}

TEST(SimJournal, FailsByPlanAndKeepsTheOldRecord) {
  SimJournal journal;
  std::vector<Code> codes;
  const auto note = [&](const Status& status) { codes.push_back(status.code()); };
  journal.write_faults.FailAfter(1, Status(Code::kExhausted, "planned"));
  journal.Put("a", "1", note);
  journal.Delete("a", note);
  journal.Put("b", "2", note);
  journal.RunPending();
  EXPECT_THAT(codes, ElementsAre(Code::kOk, Code::kExhausted, Code::kOk));
  EXPECT_EQ(journal.record_count(), 2u);
}

TEST(ManualExecutor, RunsInOrderUpToItsLimit) {
  ManualExecutor executor;
  std::vector<int> ran;
  executor.Post([&] {
    ran.push_back(1);
    executor.Post([&] { ran.push_back(3); });
  });
  executor.Post([&] { ran.push_back(2); });
  EXPECT_EQ(executor.RunAll(2), 2u);
  EXPECT_THAT(ran, ElementsAre(1, 2));
  EXPECT_EQ(executor.RunAll(), 1u);
  EXPECT_THAT(ran, ElementsAre(1, 2, 3));
  EXPECT_FALSE(executor.RunOne());
  EXPECT_FALSE(executor.RunUntil([] { return false; }, std::chrono::milliseconds(5)));
}

}  // namespace
}  // namespace terrace
