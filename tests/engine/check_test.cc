// Whether what is stored is still right: the operator's check, and the scrub.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "daemon/engine/store/scrub.h"
#include "tests/engine/store_world.h"

namespace terrace {
namespace {

constexpr uint32_t kPage = StoreWorld::kPage;

class StoreCheckTest : public testing::Test {
 protected:
  explicit StoreCheckTest(EngineOptions options = StoreWorld::Options())
      : w(options), client(w), space(client.Open()) {
    client.PutChain(space, 0, 8);
    w.world.Settle();
  }
  ~StoreCheckTest() override { EXPECT_EQ(w.world.engine->CheckInvariants(), Status()); }
  Engine& engine() { return *w.world.engine; }
  using Answer = std::optional<Result<StoreCheckReport>>;
  std::shared_ptr<Answer> Begin(const StoreCheckSpec& spec) {
    auto answer = std::make_shared<Answer>();
    engine().CheckStore(
        client.given.id, spec,
        [this](uint64_t done, uint64_t total) { told.emplace_back(done, total); },
        [answer](Result<StoreCheckReport> report) { *answer = std::move(report); });
    return answer;
  }
  StoreCheckReport Check(const StoreCheckSpec& spec) {
    const auto answer = Begin(spec);
    w.world.Settle();
    EXPECT_TRUE(answer->has_value() && (*answer)->has_value());
    return answer->has_value() && (*answer)->has_value() ? ***answer : StoreCheckReport();
  }
  uint64_t FaultsOf(const StoreCheckReport& report, ReadFault fault) {
    return report.faults[static_cast<size_t>(fault)];
  }
  // A page in the store that the engine knows nothing of.
  PlaceId WriteBehindItsBack(uint64_t key) {
    const PlaceId place = w.store.Allocate(kPage, 1).at(0);
    static const std::vector<uint8_t> bytes(kPage, 7);
    PageStore::PageWrite write;
    write.page.name = client.NameOf(space, key);
    write.page.place = place;
    write.page.bytes = kPage;
    write.bytes = bytes;
    w.store.Write(
        {write}, INT64_MAX, [](size_t, const Result<uint64_t>&) {}, [](size_t) {});
    w.store.RunPending();
    return place;
  }

  StoreWorld w;
  StoringClient client;
  const SpaceGiven space;
  std::vector<std::pair<uint64_t, uint64_t>> told;
};

TEST_F(StoreCheckTest, AStoreThatIsRightIsClean) {
  const StoreCheckReport books = Check({});
  EXPECT_EQ(books.findings(), 0u);
  EXPECT_EQ(books.entries, 8u);
  EXPECT_EQ(books.pages, 8u);
  EXPECT_EQ(books.read_pages, 0u);
  EXPECT_EQ(w.store.checked_pages(), 0u);
  const StoreCheckReport data = Check({.read_data = true});
  EXPECT_EQ(data.findings(), 0u);
  EXPECT_EQ(data.read_pages, 8u);
  EXPECT_EQ(data.read_bytes, 8 * kPage);
  ASSERT_FALSE(told.empty());
  EXPECT_EQ(told.back().first, told.back().second);
}

TEST_F(StoreCheckTest, DamageIsFoundByReadingAndErasedByRepair) {
  w.store.Corrupt(client.NameOf(space, 1), ReadFault::kData);
  w.store.Corrupt(client.NameOf(space, 2), ReadFault::kHeader);
  w.store.Corrupt(client.NameOf(space, 3), ReadFault::kIo);
  EXPECT_EQ(Check({}).findings(), 0u) << "the books are right";
  const StoreCheckReport found = Check({.read_data = true});
  EXPECT_EQ(found.findings(), 3u);
  EXPECT_EQ(FaultsOf(found, ReadFault::kData), 1u);
  EXPECT_EQ(FaultsOf(found, ReadFault::kHeader), 1u);
  EXPECT_EQ(FaultsOf(found, ReadFault::kIo), 1u);
  EXPECT_EQ(found.examples.size(), 3u);
  EXPECT_EQ(found.repaired, 0u);
  EXPECT_EQ(w.store.pages(), 8u) << "read only";
  EXPECT_EQ(Check({.read_data = true, .repair = true}).repaired, 3u);
  w.world.Settle();
  EXPECT_EQ(w.store.pages(), 5u);
  EXPECT_EQ(w.Erased(StoredErasure::kFault), 3u);
  EXPECT_EQ(Check({.read_data = true}).findings(), 0u);
}

TEST_F(StoreCheckTest, RepairErasesNothingThatASecondReadGives) {
  w.store.Corrupt(client.NameOf(space, 3), ReadFault::kIo);
  w.store.read_faults.FailAfter(0, Status(Code::kUnavailable, "of the moment"));
  const StoreCheckReport report = Check({.read_data = true, .repair = true});
  EXPECT_EQ(report.read_pages, 8u);
  EXPECT_EQ(report.findings(), 1u) << "each page counts once";
  EXPECT_EQ(report.repaired, 1u);
  w.world.Settle();
  EXPECT_EQ(w.store.pages(), 7u);
  EXPECT_FALSE(w.store.Has(client.NameOf(space, 3)));
}

TEST_F(StoreCheckTest, EntriesAndSlotsOfNoPageAreFoundAndFreed) {
  WriteBehindItsBack(77);
  ASSERT_EQ(w.store.Allocate(kPage, 1).size(), 1u);
  const uint64_t free = w.store.free_bytes();
  const StoreCheckReport found = Check({});
  EXPECT_EQ(found.unknown_entries, 1u);
  EXPECT_EQ(found.unknown_slots, 2u);
  EXPECT_EQ(w.store.free_bytes(), free) << "read only";
  EXPECT_EQ(Check({.repair = true}).repaired, 3u);
  EXPECT_EQ(w.store.free_bytes(), free + 2 * w.store.PlaceBytes(kPage));
  EXPECT_EQ(Check({.read_data = true}).findings(), 0u);
}

TEST_F(StoreCheckTest, APageWithoutItsEntryIsFoundAndErased) {
  w.store.LoseEntry(client.NameOf(space, 4));
  const StoreCheckReport found = Check({.read_data = true});
  EXPECT_EQ(found.missing_entries, 1u);
  EXPECT_EQ(found.findings(), 1u);
  EXPECT_EQ(found.read_pages, 7u);
  EXPECT_EQ(Check({.repair = true}).repaired, 1u);
  w.world.Settle();
  EXPECT_EQ(w.Figures().pages, 7u);
  EXPECT_EQ(Check({}).findings(), 0u);
}

// Whatever is written, replaced, dropped or erased while the check is at any of its steps.
TEST_F(StoreCheckTest, WhatMovesMeanwhileIsNoFinding) {
  for (size_t steps = 0; steps < 12; ++steps) {
    const auto answer = Begin({.read_data = true});
    for (size_t i = 0; i < steps; ++i) {
      w.world.clock.Advance(10 * kNsPerMs);
      (void)engine().Turn();
      w.store.RunPending(1);
    }
    const uint64_t key = 8 + 2 * steps;
    client.PutChain(space, key, 2);
    client.Drop(space, key - 1);
    client.Drop(space, steps % 4);
    client.PutChain(space, steps % 4, 1);
    w.world.Settle();
    w.world.Settle();
    ASSERT_TRUE(answer->has_value()) << steps;
    EXPECT_EQ((***answer).findings(), 0u)
        << "after " << steps << ": " << testing::PrintToString((***answer).examples);
  }
}

TEST_F(StoreCheckTest, AWriteThatIsOverdueIsNoFinding) {
  for (int i = 0; i < 2; ++i)
    w.store.slow_faults.FailAfter(i, Status(Code::kDeadlineExceeded, "slow"));
  client.PutChain(space, 20, 2);
  w.world.Settle();
  EXPECT_EQ(w.store.overdue(), 2u);
  EXPECT_EQ(Check({.repair = true}).findings(), 0u);
  w.store.EndOverdue();
  EXPECT_EQ(Check({}).findings(), 0u);
}

TEST_F(StoreCheckTest, ADeviceThatIsNotReadFromSaysNothingOfItsPages) {
  w.store.SetState(DeviceState::kQuarantined);
  const StoreCheckReport report = Check({.read_data = true, .repair = true});
  EXPECT_EQ(report.findings(), 0u);
  EXPECT_EQ(report.not_read, 8u);
  EXPECT_EQ(report.repaired, 0u);
}

TEST_F(StoreCheckTest, ReadsOfClientsGoFirst) {
  w.EvictAll();
  const auto fetch = client.Prefetch(space, 0, 1);
  const auto answer = Begin({.read_data = true});
  // The fetch is the first thing pending and stays so; the check answers its own questions.
  for (int i = 0; i < 50; ++i) {
    w.world.clock.Advance(10 * kNsPerMs);
    (void)engine().Turn();
    if (w.store.pending() > 1) w.store.RunOne(1);
  }
  EXPECT_EQ(w.store.checked_pages(), 0u);
  EXPECT_FALSE(answer->has_value());
  w.world.clock.Advance(kNsPerSecond);
  for (int i = 0; i < 20 && w.store.checked_pages() == 0; ++i) {
    (void)engine().Turn();
    if (w.store.pending() > 1) w.store.RunOne(1);
  }
  EXPECT_GT(w.store.checked_pages(), 0u) << "but not for ever";
  w.world.Settle();
  EXPECT_TRUE(answer->has_value());
}

TEST_F(StoreCheckTest, OneAtATimeAndItEndsWithItsClient) {
  const auto first = Begin({});
  const auto second = Begin({});
  ASSERT_TRUE(second->has_value());
  EXPECT_EQ((*second)->error().code(), Code::kExhausted);
  engine().ClientGone(client.given.id);
  w.world.Settle();
  ASSERT_TRUE(first->has_value());
  EXPECT_EQ((*first)->error().code(), Code::kUnavailable);
}

// ---- Scrub

class ScrubTest : public StoreCheckTest {
 protected:
  static EngineOptions Scrubbing() {
    EngineOptions options = StoreWorld::Options();
    options.store.scrub_bytes_per_second = 16 * kPage;
    return options;
  }
  ScrubTest() : StoreCheckTest(Scrubbing()) {}
  void Pass(MonotonicNs time) {
    for (MonotonicNs at = 0; at < time; at += 10 * kNsPerMs) {
      w.world.clock.Advance(10 * kNsPerMs);
      (void)engine().Turn();
      w.store.RunPending();
      w.world.journal.RunPending();
    }
  }
  uint64_t Found(ReadFault fault) { return w.Figures().scrub_faults[static_cast<size_t>(fault)]; }
};

TEST_F(ScrubTest, GoesRoundAndRoundAndErasesWhatIsBad) {
  Pass(Scrub::kRoundNs);
  EXPECT_GE(w.Figures().scrub_rounds, 1u);
  EXPECT_GE(w.Figures().scrubbed.extents, 8u);
  EXPECT_EQ(w.Figures().pages, 8u);
  w.store.Corrupt(client.NameOf(space, 5), ReadFault::kData);
  w.store.Corrupt(client.NameOf(space, 6), ReadFault::kIo);
  Pass(2 * Scrub::kRoundNs);
  EXPECT_EQ(Found(ReadFault::kData), 1u);
  EXPECT_GE(Found(ReadFault::kIo), 1u);
  EXPECT_FALSE(w.store.Has(client.NameOf(space, 5)));
  EXPECT_TRUE(w.store.Has(client.NameOf(space, 6))) << "perhaps it can be read another time";
  EXPECT_EQ(w.Erased(StoredErasure::kFault), 1u);
}

TEST_F(ScrubTest, ASmallStoreIsNotReadAllTheTime) {
  Pass(10 * Scrub::kRoundNs);
  EXPECT_LE(w.store.checked_pages(), 12 * 8u);
  EXPECT_GE(w.store.checked_pages(), 8 * 8u);
}

TEST_F(ScrubTest, KeepsToItsRate) {
  for (uint64_t first = 8; first < 88; first += 8) {
    client.PutChain(space, first, 8);
    w.world.Settle();
  }
  Pass(2 * Scrub::kRoundNs);
  const uint64_t before = w.store.checked_pages();
  Pass(kNsPerSecond * 2);
  // A batch ends with the page that reaches its bounds, and the next waits for as long as that
  // takes.
  EXPECT_LE(w.store.checked_pages() - before, 88u);
}

TEST_F(ScrubTest, SkipsItsTurnsWhileAClientReads) {
  Pass(Scrub::kRoundNs / 2);
  w.EvictAll();
  const auto fetch = client.Prefetch(space, 0, 1);
  const uint64_t before = w.store.checked_pages();
  w.world.clock.Advance(2 * Scrub::kRoundNs);
  (void)engine().Turn();
  (void)engine().Turn();
  EXPECT_EQ(w.store.pending(), 1u) << "the fetch alone";
  w.store.RunPending();
  Pass(kNsPerSecond);
  EXPECT_GT(w.store.checked_pages(), before);
}

}  // namespace
}  // namespace terrace
