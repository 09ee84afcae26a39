// The power goes: what was written since the last sync of its file is taken back, or a part of it.
// What a store of durability `power` acknowledged is there all the same; one of `process` misses
// some of it, and serves no wrong byte.
#include <gtest/gtest.h>

#include <map>

#include "tests/nvme/store_fixture.h"
#include "tiers/sim/faulty_disk_io.h"

namespace terrace {
namespace {

constexpr uint32_t kBytes = 10'000;

class NvmePowerTest : public testing::Test {
 protected:
  void Open(const std::function<void(FaultyDiskIo&)>& prepare = {}) {
    open = std::make_unique<OpenStore>(options, clock, [&](std::unique_ptr<DiskIo> real) {
      auto faulty = std::make_unique<FaultyDiskIo>(
          std::move(real), FaultyDiskIo::Options{.io = NvmeIoOptions(options), .keep_undo = true},
          clock);
      io = faulty.get();
      if (prepare) prepare(*faulty);
      return faulty;
    });
    ASSERT_TRUE(open->status.ok()) << open->status.ToString();
  }
  // Returns how many writes were lost.
  uint64_t CutPower(Random* odds) {
    open->store.reset();
    const uint64_t lost = io->Crash(odds);
    open.reset();
    return lost;
  }

  TempFolder folder;
  SystemClock clock;
  NvmeStoreOptions options{
      .directories = {{folder.Make("a"), 16u << 20}, {folder.Make("b"), 16u << 20}},
      .durability = Durability::kPower};
  FaultyDiskIo* io = nullptr;
  std::unique_ptr<OpenStore> open;
};

TEST_F(NvmePowerTest, WhatWasAcknowledgedIsThere) {
  std::map<uint64_t, std::pair<StoredPage, uint64_t>> acknowledged;  // With its version.
  Random random(1);
  for (uint64_t life = 1; life <= 8; ++life) {
    Open();
    EXPECT_EQ(open->found.size(), acknowledged.size());
    for (const auto& [id, page] : acknowledged)
      ASSERT_EQ(open->Read(page.first).bytes, BytesOf(page.first, page.second)) << id;
    std::vector<OpenStore::Wanted> wanted;
    for (uint64_t id = random.Below(3); id < 60; id += 1 + random.Below(5))
      wanted.push_back({PageOf(id, kBytes), life, 0});
    std::map<uint64_t, StoredPage> written;
    std::vector<StoredPage> replaced;
    for (const auto& answer : open->Write(wanted)) {
      ASSERT_TRUE(answer.status.ok()) << answer.status.ToString();
      written[answer.page.position] = answer.page;
    }
    for (const auto& [id, page] : written) {
      if (acknowledged.contains(id)) replaced.push_back(acknowledged[id].first);
      acknowledged[id] = {page, life};
    }
    ASSERT_TRUE(open->Erase(replaced).ok());
    (void)CutPower(life % 2 == 0 ? nullptr : &random);
  }
}

TEST_F(NvmePowerTest, AStoreOfLessDurabilityMissesAndServesNoWrongByte) {
  options.durability = Durability::kProcess;
  Open();
  std::vector<StoredPage> pages;
  for (uint64_t id = 0; id < 40; ++id)
    pages.push_back(open->Write(PageOf(id, kBytes), 1).page);
  Random random(7);
  EXPECT_GT(CutPower(&random), 0U);
  Open();
  size_t missed = 0;
  for (const StoredPage& page : pages) {
    const ReadAnswer answer = open->Read(page);
    missed += answer.fault == ReadFault::kNone ? 0 : 1;
    if (answer.fault == ReadFault::kNone) {
      EXPECT_EQ(answer.bytes, BytesOf(page, 1));
    }
  }
  EXPECT_GT(missed, 0U);
}

TEST_F(NvmePowerTest, AWriteWhoseFileCannotBeSyncedIsNotAcknowledged) {
  Open();
  io->Add({.fault = IoFault::kError, .verb = IoVerb::kSync, .times = 1});
  EXPECT_FALSE(open->Write(PageOf(1, kBytes), 1).status.ok());
  open.reset();
  Open();
  EXPECT_TRUE(open->found.empty());
}

TEST_F(NvmePowerTest, TheIndexIsSyncedBeforeAnythingIsAcknowledged) {
  for (const Durability durability : {Durability::kPower, Durability::kProcess}) {
    options.durability = durability;
    Open();
    for (uint64_t id = 0; id < 5; ++id) {
      const auto synced = [&, before = open->store->Report().index_syncs] {
        return open->store->Report().index_syncs > before;
      };
      const StoredPage page = open->Write(PageOf(id, kBytes), 1).page;
      if (id == 0) continue;  // Whose batch also counts the syncs of the start.
      EXPECT_EQ(synced(), durability == Durability::kPower);
      const auto erased = [&, before = open->store->Report().index_syncs] {
        return open->store->Report().index_syncs > before;
      };
      ASSERT_TRUE(open->Erase({page}).ok());
      EXPECT_EQ(erased(), durability == Durability::kPower);
    }
    open.reset();
  }
}

TEST_F(NvmePowerTest, PagesOfAStoreOfLessDurabilityAreSyncedAtTheStart) {
  options.durability = Durability::kProcess;
  Open();
  for (uint64_t id = 0; id < 10; ++id)
    ASSERT_TRUE(open->Write(PageOf(id, kBytes), 1).status.ok());
  open.reset();
  options.durability = Durability::kPower;
  Open();
  EXPECT_EQ(io->Report().syncs, 2U);  // A file a device.
  EXPECT_EQ(open->found.size(), 10U);
  open.reset();
  // What cannot be made durable is not served as if it were.
  Open([](FaultyDiskIo& faulty) {
    faulty.Add({.fault = IoFault::kError, .verb = IoVerb::kSync, .times = 1});
  });
  EXPECT_EQ(open->store->Report().devices[0].state, DeviceState::kOff);
  EXPECT_EQ(open->store->Report().devices[1].state, DeviceState::kServing);
}

}  // namespace
}  // namespace terrace
