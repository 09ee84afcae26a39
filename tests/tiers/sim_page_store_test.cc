// SimPageStore keeps the contract of PageStore, and fails as it is told.
#include "tiers/sim/sim_page_store.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <optional>
#include <vector>

namespace terrace {
namespace {

using testing::ElementsAre;

constexpr uint32_t kBytes = 8192;

class SimPageStoreTest : public testing::Test {
 protected:
  StoredPage Page(uint8_t key, PlaceId place) {
    StoredPage page;
    page.name.key.bytes[0] = key;
    page.place = place;
    page.bytes = kBytes;
    return page;
  }
  // Writes and completes; the page with its serial.
  StoredPage Put(uint8_t key) {
    StoredPage page = Page(key, store.Allocate(kBytes, 1).at(0));
    const std::vector<uint8_t> bytes(kBytes, key);
    store.Write(
        {{.page = page, .bytes = bytes}}, 0,
        [&](size_t, const Result<uint64_t>& serial) { page.serial = serial ? *serial : 0; },
        [](size_t) {});
    store.RunPending();
    return page;
  }
  struct Outcome {
    std::optional<ReadFault> fault;
    bool ended = false;
    std::vector<uint8_t> bytes = std::vector<uint8_t>(kBytes);
  };
  void Read(const StoredPage& page, Outcome* outcome) {
    store.Read(
        {{.page = page, .into = outcome->bytes}}, 0,
        [outcome](size_t, ReadFault fault, const Status&) { outcome->fault = fault; },
        [outcome](size_t) { outcome->ended = true; });
  }
  std::vector<uint8_t> Restored() {
    std::vector<uint8_t> keys;
    EXPECT_TRUE(
        store.Restore([&](const StoredPage& page) { keys.push_back(page.name.key.bytes[0]); })
            .ok());
    return keys;
  }

  SimPageStore store{{.capacity_bytes = 4 * (kBytes + SimPageStore::kHeaderBytes)}};
};

TEST_F(SimPageStoreTest, WhatIsWrittenIsReadBack) {
  const StoredPage page = Put(7);
  Outcome outcome;
  Read(page, &outcome);
  EXPECT_FALSE(outcome.fault.has_value()) << "never from within";
  store.RunPending();
  EXPECT_EQ(outcome.fault, ReadFault::kNone);
  EXPECT_TRUE(outcome.ended);
  EXPECT_EQ(outcome.bytes, std::vector<uint8_t>(kBytes, 7));
}

TEST_F(SimPageStoreTest, PlacesAreNeighboursAndEnd) {
  const std::vector<PlaceId> places = store.Allocate(kBytes, 6);
  EXPECT_THAT(places, ElementsAre(1, 2, 3, 4));
  EXPECT_EQ(store.free_bytes(), 0u);
  store.Release(2);
  EXPECT_EQ(store.free_bytes(), store.PlaceBytes(kBytes));
  EXPECT_THAT(store.Allocate(kBytes, 1), ElementsAre(2));
}

TEST_F(SimPageStoreTest, AnotherSerialIsStale) {
  StoredPage page = Put(7);
  ++page.serial;
  Outcome outcome;
  Read(page, &outcome);
  store.RunPending();
  EXPECT_EQ(outcome.fault, ReadFault::kStale);
}

TEST_F(SimPageStoreTest, AWriteFailsByPlanAndItsPlaceIsFree) {
  store.write_faults.FailAfter(0, Status(Code::kUnavailable, "EIO"));
  EXPECT_EQ(Put(7).serial, 0u);
  EXPECT_EQ(store.free_bytes(), store.capacity_bytes());
  EXPECT_EQ(store.pages(), 0u);
}

TEST_F(SimPageStoreTest, ACorruptPageFailsItsChecks) {
  const StoredPage page = Put(7);
  store.Corrupt(page.name, ReadFault::kData);
  Outcome outcome;
  Read(page, &outcome);
  store.RunPending();
  EXPECT_EQ(outcome.fault, ReadFault::kData);
  EXPECT_NE(outcome.bytes, std::vector<uint8_t>(kBytes, 7));
}

TEST_F(SimPageStoreTest, ASlowReadWritesIntoTheMemoryUntilItEnds) {
  const StoredPage page = Put(7);
  store.slow_faults.FailAfter(0, Status(Code::kDeadlineExceeded, "slow"));
  Outcome outcome;
  Read(page, &outcome);
  store.RunPending();
  EXPECT_EQ(outcome.fault, ReadFault::kOverdue);
  EXPECT_FALSE(outcome.ended);
  EXPECT_EQ(store.InUse().size(), 1u);
  outcome.bytes.assign(kBytes, 1);
  store.EndOverdue();
  EXPECT_TRUE(outcome.ended);
  EXPECT_NE(outcome.bytes, std::vector<uint8_t>(kBytes, 1));
}

TEST_F(SimPageStoreTest, ACrashLosesWhatWasNotAcknowledged) {
  Put(1);
  for (const uint8_t key : {2, 3}) {
    static const std::vector<uint8_t> bytes(kBytes);
    store.Write(
        {{.page = Page(key, store.Allocate(kBytes, 1).at(0)), .bytes = bytes}}, 0,
        [](size_t, const Result<uint64_t>&) { FAIL(); }, [](size_t) { FAIL(); });
  }
  store.Crash(/*reached_disk=*/1);
  store.RunPending();
  EXPECT_THAT(Restored(), ElementsAre(1, 2));
  EXPECT_EQ(store.free_bytes(), 2 * store.PlaceBytes(kBytes));
}

TEST_F(SimPageStoreTest, AnErasedPageIsGoneWhenThatIsAcknowledged) {
  const StoredPage page = Put(1);
  std::optional<Status> erased;
  store.erase_faults.FailAfter(0, Status(Code::kUnavailable, "EIO"));
  store.Erase({page}, [&](Status status) { erased = std::move(status); });
  store.RunPending();
  EXPECT_FALSE(erased->ok());
  EXPECT_THAT(Restored(), ElementsAre(1));
  store.Erase({page}, [&](Status status) { erased = std::move(status); });
  store.RunPending();
  EXPECT_TRUE(erased->ok());
  EXPECT_THAT(Restored(), ElementsAre());
}

TEST_F(SimPageStoreTest, DevicesTakeNoWritesOrAreNotRead) {
  const StoredPage page = Put(1);
  store.SetState(DeviceState::kReadOnly);
  EXPECT_TRUE(store.Allocate(kBytes, 1).empty());
  EXPECT_TRUE(store.Readable(page.place));
  store.SetState(DeviceState::kQuarantined);
  EXPECT_FALSE(store.Readable(page.place));
  Outcome outcome;
  Read(page, &outcome);
  store.RunPending();
  EXPECT_EQ(outcome.fault, ReadFault::kRefused);
}

using SimPageStoreDeathTest = SimPageStoreTest;

TEST_F(SimPageStoreDeathTest, BytesThatChangeWhileTheyAreWrittenAreFound) {
  std::vector<uint8_t> bytes(kBytes, 1);
  store.Write(
      {{.page = Page(1, store.Allocate(kBytes, 1).at(0)), .bytes = bytes}}, 0,
      [](size_t, const Result<uint64_t>&) {}, [](size_t) {});
  bytes[100] = 2;
  EXPECT_DEATH(store.RunPending(), "CheckOf");
}

TEST_F(SimPageStoreDeathTest, AnErasureOfWhatIsReadIsFound) {
  const StoredPage page = Put(1);
  Outcome outcome;
  Read(page, &outcome);
  EXPECT_DEATH(store.Erase({page}, [](const Status&) {}), "busy");
}

}  // namespace
}  // namespace terrace
