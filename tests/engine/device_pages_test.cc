// KV pages in the memory of devices, through the verbs of Engine.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <optional>
#include <random>
#include <set>

#include "tests/engine/device_world.h"

namespace terrace {
namespace {

using testing::ElementsAre;
using testing::SizeIs;

constexpr uint32_t kPage = EngineWorld::kPage;

class DevicePagesTest : public testing::Test {
 protected:
  DevicePagesTest() : client(of), space(client.Open()) {}
  ~DevicePagesTest() override { Check(); }
  void Check() { ASSERT_EQ(of.world.engine->CheckInvariants(), Status()); }
  GpuReport Device() const { return of.Device(); }
  SimDeviceTier& tier() { return *of.tiers[0]; }
  void EndGeneration() {
    TenantIndex& index = of.world.engine->index(client.tenant());
    index.SetGeneration(space.generation_index, index.generation(space.generation_index) + 1);
  }
  // Fills all four slabs with pages first to first + 15.
  void Fill(uint64_t first = 0) {
    for (uint64_t i = first; i < first + 16; ++i)
      ASSERT_TRUE(client.PutHere(space, i).has_value()) << i;
  }

  DeviceWorld of;
  DeviceClient client;
  SpaceGiven space;
};

TEST_F(DevicePagesTest, AGrantWaitsForMemoryAndAPageIsFoundWhereItWasCommitted) {
  std::vector<GrantGiven> granted;
  const std::vector<Digest> keys = {KeyOf(1)};
  const GrantSpec spec{.slot = space.slot, .epoch = space.epoch, .keys = keys, .device = 1};
  ASSERT_TRUE(of.world.engine->Grant(client.given.id, spec, &granted).ok());
  EXPECT_TRUE(granted.empty()) << "the tier makes a slab";
  tier().RunPending();
  ASSERT_TRUE(of.world.engine->Grant(client.given.id, spec, &granted).ok());
  ASSERT_THAT(granted, SizeIs(1));
  ASSERT_EQ(granted[0].code, Code::kOk);
  EXPECT_GE(shm::ArenaOf(granted[0].handle), kFirstDeviceSlabId);
  EXPECT_FALSE(client.FindAt(space, 1, 1).has_value()) << "not before it is committed";
  client.Write(space, granted[0].handle, 1);
  Check();
  ASSERT_EQ(client.Commit(granted[0].grant), Code::kOk);
  EXPECT_TRUE(client.ReadsAt(space, 1, 1));
  EXPECT_FALSE(client.FindAt(space, 1, 0).has_value());
  EXPECT_FALSE(client.FindAt(space, 1, 2).has_value());
  const auto facts = of.world.engine->FindArena(client.given.id, shm::ArenaOf(granted[0].handle));
  ASSERT_TRUE(facts.has_value());
  EXPECT_EQ(facts->device, 1u);
  EXPECT_EQ(facts->bytes, DeviceWorld::kSlab);
  EXPECT_EQ(Device().linked_bytes, kPage);
  EXPECT_EQ(Device().bytes.pages, DeviceWorld::kSlab);
  EXPECT_EQ(client.GrantHere(space, {1})[0].code, Code::kAlreadyExists);
}

TEST_F(DevicePagesTest, ADeviceThatThereIsNotIsNamed) {
  std::vector<GrantGiven> granted;
  const std::vector<Digest> keys = {KeyOf(1)};
  const GrantSpec spec{.slot = space.slot, .epoch = space.epoch, .keys = keys, .device = 3};
  const Status status = of.world.engine->Grant(client.given.id, spec, &granted);
  EXPECT_EQ(status.code(), Code::kInvalidArgument);
  EXPECT_THAT(status.message(), testing::HasSubstr("device 3"));
}

TEST_F(DevicePagesTest, TenantsNeverShareASlab) {
  DeviceClient other(of, "u");
  const SpaceGiven others = other.Open();
  std::set<ArenaId> mine;
  std::set<ArenaId> theirs;
  for (uint64_t i = 0; i < 6; ++i) {
    mine.insert(shm::ArenaOf(client.PutHere(space, i).value()));
    theirs.insert(shm::ArenaOf(other.PutHere(others, i).value()));
  }
  for (const ArenaId arena : mine) {
    EXPECT_FALSE(theirs.contains(arena));
    EXPECT_TRUE(of.world.engine->FindArena(client.given.id, arena).has_value());
    EXPECT_FALSE(of.world.engine->FindArena(other.given.id, arena).has_value());
    EXPECT_TRUE(of.world.engine->GiveDeviceArena(client.given.id, arena).has_value());
    EXPECT_EQ(of.world.engine->GiveDeviceArena(other.given.id, arena).status().code(),
              Code::kNotFound);
  }
}

TEST_F(DevicePagesTest, PagesAreCopiedDownBeforeTheyLeave) {
  Fill();
  for (uint64_t i = 16; i < 24; ++i)
    ASSERT_TRUE(client.PutHere(space, i).has_value()) << i;
  Check();
  for (uint64_t i = 0; i < 24; ++i) {
    EXPECT_TRUE(client.ReadsAt(space, i, 0) || client.ReadsAt(space, i, 1)) << i;
  }
  EXPECT_GE(Device().demoted_pages, 8u);
  EXPECT_EQ(Device().lost_pages, 0u);
  EXPECT_LE(Device().bytes.used(), of.device_options.capacity_bytes);
}

TEST_F(DevicePagesTest, PinnedPagesStay) {
  std::vector<uint32_t> pins;
  Fill();
  for (uint64_t i = 0; i < 16; ++i)
    pins.push_back(client.channel.Pin(client.FindAt(space, i, 1).value()));
  const std::vector<GrantGiven> granted = client.GrantHere(space, {100});
  ASSERT_THAT(granted, SizeIs(1));
  EXPECT_EQ(granted[0].code, Code::kExhausted);
  for (uint64_t i = 0; i < 16; ++i)
    EXPECT_TRUE(client.ReadsAt(space, i, 1)) << i;
  client.channel.Unpin(pins[3]);
  EXPECT_EQ(client.GrantHere(space, {100})[0].code, Code::kOk);
  EXPECT_FALSE(client.FindAt(space, 3, 1).has_value());
  EXPECT_TRUE(client.ReadsAt(space, 3, 0));
}

TEST_F(DevicePagesTest, WhereHostMemoryTakesNothingPagesAreEvictedAllTheSame) {
  for (uint64_t i = 200; i < 216; ++i) {
    const auto handle = client.Put(space, i);
    ASSERT_TRUE(handle.has_value());
    client.channel.Pin(*handle);
  }
  Fill();
  ASSERT_TRUE(client.PutHere(space, 16).has_value());
  EXPECT_TRUE(client.ReadsAt(space, 16, 1));
  EXPECT_GT(Device().lost_pages, 0u);
}

TEST_F(DevicePagesTest, ADropTakesAPageOutOfEveryPlace) {
  ASSERT_TRUE(client.PutHere(space, 1).has_value());
  ASSERT_TRUE(client.Put(space, 1).has_value());
  EXPECT_EQ(client.Drop(space, 1), 1u);
  EXPECT_FALSE(client.FindAt(space, 1, 0).has_value());
  EXPECT_FALSE(client.FindAt(space, 1, 1).has_value());
}

TEST_F(DevicePagesTest, WhatIsDroppedOnItsWayDownDoesNotComeBack) {
  ASSERT_TRUE(client.PutHere(space, 1).has_value());
  std::optional<Result<Demoted>> done;
  of.world.engine->DemoteDevice(1, 0, {}, [&](const Result<Demoted>& demoted) { done = demoted; });
  (void)of.world.engine->Turn();
  ASSERT_GT(tier().pending(), 0u);
  EXPECT_EQ(client.Drop(space, 1), 1u);
  Check();
  of.Settle();
  EXPECT_FALSE(client.FindAt(space, 1, 0).has_value());
  EXPECT_TRUE(done.has_value());
  EXPECT_EQ(Device().limbo_bytes, 0u);
}

TEST_F(DevicePagesTest, WhatIsInvalidatedOnItsWayDownIsNotFound) {
  ASSERT_TRUE(client.PutHere(space, 1).has_value());
  of.world.engine->DemoteDevice(1, 0, {}, [](const Result<Demoted>&) {});
  (void)of.world.engine->Turn();
  tier().RunPending(1);  // The slab of the host is there; the copy waits.
  EndGeneration();
  of.Settle();
  EXPECT_FALSE(client.FindAt(space, 1, 0).has_value());
}

TEST_F(DevicePagesTest, AGenerationThatEndsMakesGrantsStale) {
  const GrantGiven grant = client.GrantHere(space, {1})[0];
  EndGeneration();
  EXPECT_EQ(client.Commit(grant.grant), Code::kStale);
  EXPECT_FALSE(client.FindAt(space, 1, 1).has_value());
}

TEST_F(DevicePagesTest, DemotionByHandEndsWithAllInHostMemory) {
  for (uint64_t i = 0; i < 6; ++i)
    ASSERT_TRUE(client.PutHere(space, i).has_value());
  uint64_t told = 0;
  std::optional<Result<Demoted>> done;
  of.world.engine->DemoteDevice(
      1, 0, [&](uint64_t bytes, uint64_t) { told = bytes; },
      [&](const Result<Demoted>& demoted) { done = demoted; });
  Status second;
  of.world.engine->DemoteDevice(1, 0, {},
                                [&](const Result<Demoted>& demoted) { second = demoted.status(); });
  EXPECT_EQ(second.code(), Code::kExhausted);
  of.Settle();
  ASSERT_TRUE(done.has_value() && done->has_value());
  EXPECT_EQ((*done)->pages, 6u);
  EXPECT_EQ(told, 6 * kPage);
  for (uint64_t i = 0; i < 6; ++i) {
    EXPECT_TRUE(client.ReadsAt(space, i, 0));
    EXPECT_FALSE(client.FindAt(space, i, 1).has_value());
  }
}

TEST_F(DevicePagesTest, ADemotionWhoseCopiesFailKeepsThePages) {
  ASSERT_TRUE(client.PutHere(space, 1).has_value());
  tier().copy_faults.FailAfter(0, Status(Code::kUnavailable, "no"));
  std::optional<Result<Demoted>> done;
  of.world.engine->DemoteDevice(1, 0, {}, [&](const Result<Demoted>& demoted) { done = demoted; });
  of.Settle();
  ASSERT_TRUE(done.has_value() && done->has_value());
  EXPECT_EQ((*done)->pages, 0u);
  EXPECT_TRUE(client.ReadsAt(space, 1, 1));
  EXPECT_FALSE(client.FindAt(space, 1, 0).has_value());
}

TEST_F(DevicePagesTest, AHostSlabThatTheTierDoesNotTakeKeepsThePages) {
  ASSERT_TRUE(client.PutHere(space, 1).has_value());
  tier().host_faults.FailAfter(0, Status(Code::kExhausted, "no"));
  of.world.engine->DemoteDevice(1, 0, {}, [](const Result<Demoted>&) {});
  of.Settle();
  EXPECT_TRUE(client.ReadsAt(space, 1, 1));
  of.world.clock.Advance(kNsPerSecond);
  of.world.engine->DemoteDevice(1, 0, {}, [](const Result<Demoted>&) {});
  of.Settle();
  EXPECT_TRUE(client.ReadsAt(space, 1, 0)) << "it is tried again";
}

TEST_F(DevicePagesTest, ASlabThatTheTierDoesNotMakeIsRefusedInTheEnd) {
  for (uint64_t i = 0; i < 1000; ++i)
    tier().create_faults.FailAfter(i, Status(Code::kExhausted, "no memory"));
  const std::vector<GrantGiven> granted = client.GrantHere(space, {1});
  EXPECT_TRUE(granted.empty() || granted[0].code == Code::kExhausted);
  EXPECT_EQ(Device().bytes.used(), 0u);
  tier().create_faults.Clear();
  of.world.clock.Advance(kNsPerSecond);
  EXPECT_TRUE(client.PutHere(space, 1).has_value());
}

TEST_F(DevicePagesTest, ADeviceThatDoesNotServeIsNoMemoryThatIsUsedUp) {
  ASSERT_TRUE(client.PutHere(space, 1).has_value());
  of.Lose();
  tier().resting = true;
  of.Settle();
  const std::vector<Digest> keys = {KeyOf(2)};
  const GrantSpec spec{.slot = space.slot, .epoch = space.epoch, .keys = keys, .device = 1};
  std::vector<GrantGiven> granted;
  Status status;
  for (int tries = 0; tries < 100 && status.ok() && granted.empty(); ++tries) {
    status = of.world.engine->Grant(client.given.id, spec, &granted);
    of.Settle();
  }
  EXPECT_EQ(status.code(), Code::kUnavailable);
  tier().resting = false;
  of.world.clock.Advance(kNsPerSecond);
  EXPECT_TRUE(client.PutHere(space, 2).has_value());
}

TEST_F(DevicePagesTest, AnAbandonedSlotStaysUntilItsWriterSaysSo) {
  const GrantGiven grant = client.GrantHere(space, {1}, 50)[0];
  of.world.clock.Advance(kNsPerSecond);
  of.Settle();
  EXPECT_THAT(of.world.events.expired[client.given.id], ElementsAre(grant.grant));
  EXPECT_EQ(client.Commit(grant.grant), Code::kDeadlineExceeded);
  EXPECT_EQ(Device().granted_bytes, kPage);
  Check();
  client.Abort(grant.grant);
  EXPECT_EQ(Device().granted_bytes, 0u);
}

TEST_F(DevicePagesTest, AClientThatIsGoneLeavesItsSlots) {
  (void)client.GrantHere(space, {1, 2});
  EXPECT_EQ(Device().granted_bytes, 2 * kPage);
  of.world.engine->ClientGone(client.given.id);
  EXPECT_EQ(Device().granted_bytes, 0u);
}

TEST_F(DevicePagesTest, ALostDeviceLosesItsPagesAndNothingBelow) {
  ASSERT_TRUE(client.PutHere(space, 1).has_value());
  const ArenaId arena = shm::ArenaOf(client.PutHere(space, 2).value());
  ASSERT_TRUE(client.Put(space, 2).has_value());
  ASSERT_TRUE(of.world.engine->GiveDeviceArena(client.given.id, arena).has_value());
  const GrantGiven grant = client.GrantHere(space, {3})[0];
  of.Lose();
  EXPECT_FALSE(client.FindAt(space, 1, 1).has_value());
  EXPECT_FALSE(client.FindAt(space, 2, 1).has_value());
  EXPECT_TRUE(client.FindAt(space, 2, 0).has_value());
  Check();
  EXPECT_EQ(client.Commit(grant.grant), Code::kStale);
  of.Settle();
  const auto& told = of.world.events.unmap_wanted[client.given.id];
  ASSERT_THAT(told, SizeIs(1));
  EXPECT_TRUE(told[0].lost);
  EXPECT_THAT(told[0].arenas, ElementsAre(arena));
  EXPECT_EQ(Device().bytes.used(), 0u);
  EXPECT_EQ(Device().lost_pages, 2u);
  EXPECT_TRUE(client.PutHere(space, 4).has_value()) << "the next memory serves";
}

TEST_F(DevicePagesTest, ADeviceLostWhilePagesGoDownLeavesNothingOfThem) {
  Fill();
  of.world.engine->DemoteDevice(1, 0, {}, [](const Result<Demoted>&) {});
  (void)of.world.engine->Turn();
  ASSERT_GT(tier().pending(), 0u);
  of.Lose();
  Check();
  of.Settle();
  for (uint64_t i = 0; i < 16; ++i) {
    EXPECT_FALSE(client.FindAt(space, i, 1).has_value());
    EXPECT_FALSE(client.FindAt(space, i, 0).has_value());
  }
  EXPECT_EQ(Device().bytes.used(), 0u);
}

TEST_F(DevicePagesTest, MemoryPassesToAnotherTenantWhenItsClientsHaveUnmapped) {
  Fill();
  std::set<ArenaId> mapped;
  for (uint64_t i = 0; i < 16; ++i)
    mapped.insert(shm::ArenaOf(client.FindAt(space, i, 1).value()));
  for (const ArenaId arena : mapped)
    ASSERT_TRUE(of.world.engine->GiveDeviceArena(client.given.id, arena).has_value());
  DeviceClient other(of, "u");
  const SpaceGiven others = other.Open();
  std::vector<GrantGiven> granted;
  const std::vector<Digest> keys = {KeyOf(1)};
  const GrantSpec spec{.slot = others.slot, .epoch = others.epoch, .keys = keys, .device = 1};
  ASSERT_TRUE(of.world.engine->Grant(other.given.id, spec, &granted).ok());
  EXPECT_TRUE(granted.empty()) << "memory is on its way";
  of.Settle();
  const auto& wanted = of.world.events.unmap_wanted[client.given.id];
  ASSERT_THAT(wanted, SizeIs(1));
  ASSERT_THAT(wanted[0].arenas, SizeIs(1));
  EXPECT_FALSE(wanted[0].lost);
  EXPECT_EQ(Device().bytes.leaving, DeviceWorld::kSlab);
  of.world.engine->LetGoArenas(client.given.id, wanted[0].arenas);
  of.Settle();
  EXPECT_TRUE(other.PutHere(others, 1).has_value());
  for (uint64_t i = 0; i < 16; ++i) {
    EXPECT_TRUE(client.ReadsAt(space, i, 0) || client.ReadsAt(space, i, 1)) << i;
  }
}

TEST_F(DevicePagesTest, WhoHasNothingThereDoesNotWaitForTheCopiesOfOthers) {
  Fill();
  std::vector<GrantGiven> granted;
  const std::vector<Digest> keys = {KeyOf(100)};
  const GrantSpec spec{.slot = space.slot, .epoch = space.epoch, .keys = keys, .device = 1};
  ASSERT_TRUE(of.world.engine->Grant(client.given.id, spec, &granted).ok());
  ASSERT_GT(tier().pending(), 0u) << "pages go down, for another one of this tenant";
  DeviceClient other(of, "u");
  const SpaceGiven others = other.Open();
  const GrantSpec theirs{.slot = others.slot, .epoch = others.epoch, .keys = keys, .device = 1};
  ASSERT_TRUE(of.world.engine->Grant(other.given.id, theirs, &granted).ok());
  EXPECT_TRUE(granted.empty());
  std::set<ArenaId> closed;
  for (uint64_t i = 0; i < 16; ++i) {
    const ArenaId arena = shm::ArenaOf(client.FindAt(space, i, 1).value());
    if (!of.world.engine->FindArena(client.given.id, arena)) closed.insert(arena);
  }
  EXPECT_THAT(closed, SizeIs(1)) << "a slab is given up for it";
}

TEST_F(DevicePagesTest, WhereReadersKeepASlabAnotherOneIsGivenUp) {
  Fill();
  DeviceClient other(of, "u");
  const SpaceGiven others = other.Open();
  std::vector<GrantGiven> granted;
  const std::vector<Digest> keys = {KeyOf(1)};
  const GrantSpec spec{.slot = others.slot, .epoch = others.epoch, .keys = keys, .device = 1};
  ASSERT_TRUE(of.world.engine->Grant(other.given.id, spec, &granted).ok());
  std::optional<uint64_t> kept;
  for (uint64_t i = 0; i < 16; ++i) {
    const shm::Handle handle = client.FindAt(space, i, 1).value();
    if (of.world.engine->FindArena(client.given.id, shm::ArenaOf(handle))) continue;
    client.channel.Pin(handle);
    kept = i;
    break;
  }
  ASSERT_TRUE(kept.has_value());
  EXPECT_TRUE(other.PutHere(others, 1).has_value());
  EXPECT_TRUE(client.ReadsAt(space, *kept, 1));
  EXPECT_EQ(Device().lost_pages, 0u);
}

TEST_F(DevicePagesTest, APinOfWhatWasThereKeepsItsSlabAndNoOther) {
  Fill();
  const shm::Handle old = client.FindAt(space, 0, 1).value();
  client.Drop(space, 0);
  of.Settle();
  client.channel.Pin(old);
  for (uint64_t i = 1; i < 4; ++i)
    client.Drop(space, i);
  of.Settle();
  DeviceClient other(of, "u");
  const SpaceGiven others = other.Open();
  EXPECT_TRUE(other.PutHere(others, 1).has_value());
  EXPECT_EQ(Device().bytes.used(), 4 * DeviceWorld::kSlab);
}

TEST(DeviceSaves, PagesOfASlabThatIsGivenUpWaitForAPlaceAmongTheCopies) {
  EngineOptions options = EngineWorld::SmallOptions();
  options.host_capacity_bytes = 1024 * uint64_t{kPage};
  options.max_pinned_bytes = options.host_capacity_bytes;
  DeviceWorld of(options, DeviceWorld::Slabs(100));
  DeviceClient client(of);
  const SpaceGiven space = client.Open();
  // All at once, so that no reserve is kept and each slab has four pages that follow each other.
  std::vector<uint64_t> numbers(400);
  std::iota(numbers.begin(), numbers.end(), 0);
  const std::vector<GrantGiven> all = client.GrantHere(space, numbers);
  ASSERT_THAT(all, SizeIs(400));
  for (const uint64_t i : numbers) {
    client.Write(space, all[i].handle, i);
    ASSERT_EQ(client.Commit(all[i].grant), Code::kOk) << i;
  }
  of.world.engine->DemoteDevice(1, 0, {}, [](const Result<Demoted>&) {});
  (void)of.world.engine->Turn();
  ASSERT_EQ(of.Device().linked_pages, 400u);
  // Slabs of which pages go down stay, so that one without copies is given up.
  std::set<ArenaId> pinned;
  for (uint64_t i = 0; i < 300; ++i) {
    const shm::Handle handle = client.FindAt(space, i, 1).value();
    if (pinned.insert(shm::ArenaOf(handle)).second) client.channel.Pin(handle);
  }
  DeviceClient other(of, "u");
  const SpaceGiven others = other.Open();
  std::vector<GrantGiven> granted;
  const std::vector<Digest> keys = {KeyOf(1)};
  const GrantSpec spec{.slot = others.slot, .epoch = others.epoch, .keys = keys, .device = 1};
  ASSERT_TRUE(of.world.engine->Grant(other.given.id, spec, &granted).ok());
  (void)of.world.engine->Turn();
  EXPECT_EQ(of.Device().linked_pages, 400u) << "they wait";
  EXPECT_TRUE(other.PutHere(others, 1).has_value());
  for (const uint64_t i : numbers)
    EXPECT_TRUE(client.ReadsAt(space, i, 0) || client.ReadsAt(space, i, 1)) << i;
  EXPECT_EQ(of.world.engine->CheckInvariants(), Status());
}

TEST_F(DevicePagesTest, ASlabThatIsLostWhileItIsAskedBackIsFree) {
  Fill();
  for (uint64_t i = 0; i < 16; ++i) {
    const ArenaId arena = shm::ArenaOf(client.FindAt(space, i, 1).value());
    ASSERT_TRUE(of.world.engine->GiveDeviceArena(client.given.id, arena).has_value());
  }
  DeviceClient other(of, "u");
  const SpaceGiven others = other.Open();
  std::vector<GrantGiven> granted;
  const std::vector<Digest> keys = {KeyOf(1)};
  const GrantSpec spec{.slot = others.slot, .epoch = others.epoch, .keys = keys, .device = 1};
  ASSERT_TRUE(of.world.engine->Grant(other.given.id, spec, &granted).ok());
  of.Settle();
  ASSERT_EQ(Device().bytes.leaving, DeviceWorld::kSlab);
  of.Lose();
  Check();
  of.Settle();
  EXPECT_EQ(Device().bytes.used(), 0u);
}

TEST_F(DevicePagesTest, WhoMapsALostSlabIsToldUntilItLetsGo) {
  const ArenaId arena = shm::ArenaOf(client.PutHere(space, 1).value());
  ASSERT_TRUE(of.world.engine->GiveDeviceArena(client.given.id, arena).has_value());
  of.Lose();
  of.Settle();
  // Its connection broke, so that it may not have heard of it.
  const std::vector<UnmapRequest> told = of.world.engine->UnmapWantedOf(client.given.id);
  ASSERT_THAT(told, SizeIs(1));
  EXPECT_EQ(told[0].device, 1u);
  EXPECT_TRUE(told[0].lost);
  EXPECT_THAT(told[0].arenas, ElementsAre(arena));
  of.world.engine->LetGoArenas(client.given.id, told[0].arenas);
  EXPECT_THAT(of.world.engine->UnmapWantedOf(client.given.id), SizeIs(0));
}

TEST_F(DevicePagesTest, SlabsWithoutPagesAreGivenBackAfterAWhile) {
  ASSERT_TRUE(client.PutHere(space, 1).has_value());
  client.Drop(space, 1);
  of.Settle();
  EXPECT_EQ(Device().bytes.pages, DeviceWorld::kSlab);
  of.world.clock.Advance(60 * kNsPerSecond);
  of.Settle();
  EXPECT_EQ(Device().bytes.used(), 0u);
}

TEST_F(DevicePagesTest, ARestartFindsNothingOfTheDevice) {
  ASSERT_TRUE(client.PutHere(space, 1).has_value());
  of.world.Restart();
  EXPECT_EQ(Device().bytes.used(), 0u);
  DeviceClient again(of);
  const SpaceGiven same = again.Open();
  EXPECT_FALSE(again.FindAt(same, 1, 1).has_value());
  EXPECT_TRUE(again.PutHere(same, 1).has_value());
}

// ---- To the device

class DeviceFetchTest : public DevicePagesTest {
 protected:
  // In host memory, with bytes of its own.
  void PutBelow(uint64_t number) {
    const GrantGiven grant = client.Grant(space, number);
    ASSERT_EQ(grant.code, Code::kOk);
    client.Write(space, grant.handle, number);
    ASSERT_EQ(client.Commit(grant.grant), Code::kOk);
  }
  std::vector<Code> CodesOf(const std::shared_ptr<DeviceClient::Fetch>& fetch) {
    of.Settle();
    if (!fetch->answer.has_value() || !fetch->answer->has_value()) return {};
    return (*fetch->answer)->codes;
  }
  // As far as the copy, which waits.
  std::shared_ptr<DeviceClient::Fetch> FetchUntilTheCopy(uint64_t number) {
    auto fetch = client.FetchHere(space, {number});
    for (int i = 0; i < 10 && tier().copy_calls == 0; ++i) {
      tier().RunPending(1);
      (void)of.world.engine->Turn();
    }
    EXPECT_EQ(tier().copy_calls, 1u);
    EXPECT_EQ(tier().pending(), 1u);
    return fetch;
  }
};

TEST_F(DeviceFetchTest, PagesComeOutOfHostMemoryAndStayThere) {
  for (uint64_t i = 0; i < 3; ++i)
    PutBelow(i);
  ASSERT_TRUE(client.PutHere(space, 3).has_value());
  EXPECT_THAT(CodesOf(client.FetchHere(space, {0, 1, 2, 3})),
              ElementsAre(Code::kOk, Code::kOk, Code::kOk, Code::kOk));
  for (uint64_t i = 0; i < 3; ++i) {
    EXPECT_TRUE(client.ReadsAt(space, i, 1));
    EXPECT_TRUE(client.ReadsAt(space, i, 0));
  }
  EXPECT_EQ(Device().promoted_pages, 3u);
  EXPECT_EQ(Device().demoted_pages, 0u);
}

TEST_F(DeviceFetchTest, NothingBehindAGapIsFetched) {
  PutBelow(0);
  PutBelow(2);
  const auto fetch = client.FetchHere(space, {0, 1, 2});
  EXPECT_THAT(CodesOf(fetch), ElementsAre(Code::kOk, Code::kNotFound, Code::kNotFound));
  EXPECT_EQ((*fetch->answer)->worth, 1u);
  EXPECT_FALSE(client.FindAt(space, 2, 1).has_value());
}

TEST_F(DeviceFetchTest, ManyWhoWaitForAPageCostOneCopy) {
  PutBelow(1);
  std::vector<std::shared_ptr<DeviceClient::Fetch>> fetches;
  fetches.push_back(FetchUntilTheCopy(1));
  for (int i = 0; i < 4; ++i)
    fetches.push_back(client.FetchHere(space, {1, 1}));
  for (const auto& fetch : fetches)
    EXPECT_THAT(CodesOf(fetch), testing::Each(Code::kOk));
  EXPECT_EQ(tier().copied_bytes, kPage);
}

TEST_F(DeviceFetchTest, WhatWasFetchedStaysUntilItIsLookedUp) {
  PutBelow(1);
  const auto fetch = client.FetchHere(space, {1}, 10'000);
  EXPECT_THAT(CodesOf(fetch), ElementsAre(Code::kOk));
  for (uint64_t i = 10; i < 40; ++i)
    ASSERT_TRUE(client.PutHere(space, i).has_value());
  ASSERT_TRUE(client.ReadsAt(space, 1, 1));
  client.channel.Touch(client.FindAt(space, 1, 1).value());
  for (uint64_t i = 40; i < 80; ++i)
    ASSERT_TRUE(client.PutHere(space, i).has_value());
  EXPECT_FALSE(client.FindAt(space, 1, 1).has_value()) << "held no more";
}

TEST_F(DeviceFetchTest, WhatWasLookedUpBeforeItWasFetchedIsHeld) {
  client.channel.Touch(client.PutHere(space, 1).value());
  EXPECT_THAT(CodesOf(client.FetchHere(space, {1}, 10'000)), ElementsAre(Code::kOk));
  for (uint64_t i = 10; i < 40; ++i)
    ASSERT_TRUE(client.PutHere(space, i).has_value());
  EXPECT_TRUE(client.ReadsAt(space, 1, 1));
}

TEST_F(DeviceFetchTest, WhatIsDroppedOnItsWayIsNotFound) {
  PutBelow(1);
  const auto fetch = FetchUntilTheCopy(1);
  EXPECT_EQ(client.Drop(space, 1), 1u);
  Check();
  EXPECT_THAT(CodesOf(fetch), ElementsAre(Code::kNotFound));
  EXPECT_FALSE(client.FindAt(space, 1, 1).has_value());
}

TEST_F(DeviceFetchTest, WhatIsInvalidatedOnItsWayIsStale) {
  PutBelow(1);
  const auto fetch = FetchUntilTheCopy(1);
  EndGeneration();
  EXPECT_THAT(CodesOf(fetch), ElementsAre(Code::kStale));
  EXPECT_FALSE(client.FindAt(space, 1, 1).has_value());
}

TEST_F(DeviceFetchTest, WhoeverCommitsItMeanwhileWins) {
  PutBelow(1);
  const GrantGiven grant = client.GrantHere(space, {1})[0];
  client.Write(space, grant.handle, 1);
  const auto fetch = FetchUntilTheCopy(1);
  EXPECT_EQ(client.Commit(grant.grant), Code::kOk);
  EXPECT_THAT(CodesOf(fetch), ElementsAre(Code::kOk));
  EXPECT_EQ(client.FindAt(space, 1, 1).value() >> shm::kSequenceBits,
            grant.handle >> shm::kSequenceBits);
}

TEST_F(DeviceFetchTest, ADeviceLostOnTheWayIsUnavailable) {
  PutBelow(1);
  const auto fetch = FetchUntilTheCopy(1);
  of.Lose();
  Check();
  EXPECT_THAT(CodesOf(fetch), ElementsAre(Code::kUnavailable));
  EXPECT_TRUE(client.ReadsAt(space, 1, 0));
  EXPECT_EQ(Device().bytes.used(), 0u);
}

TEST_F(DeviceFetchTest, ACopyThatFailsIsToldAndLeavesThePageBelow) {
  PutBelow(1);
  tier().copy_faults.FailAfter(0, Status(Code::kUnavailable, "no"));
  EXPECT_THAT(CodesOf(client.FetchHere(space, {1})), ElementsAre(Code::kUnavailable));
  EXPECT_TRUE(client.ReadsAt(space, 1, 0));
  EXPECT_THAT(CodesOf(client.FetchHere(space, {1})), ElementsAre(Code::kOk));
  EXPECT_TRUE(client.ReadsAt(space, 1, 1));
}

TEST_F(DeviceFetchTest, AFetchEndsAtItsDeadline) {
  PutBelow(1);
  tier().serving = false;
  const auto fetch = client.FetchHere(space, {1}, 100);
  of.world.clock.Advance(200 * kNsPerMs);
  EXPECT_THAT(CodesOf(fetch), ElementsAre(Code::kDeadlineExceeded));
  tier().serving = true;
  of.Settle();
}

TEST_F(DeviceFetchTest, AClientThatIsGoneIsAnsweredAndHoldsNothing) {
  PutBelow(1);
  const auto fetch = FetchUntilTheCopy(1);
  of.world.engine->ClientGone(client.given.id);
  EXPECT_TRUE(fetch->answer.has_value());
  of.Settle();
}

TEST(DeviceAndStore, StoredPagesComeByWayOfHostMemory) {
  SimPageStore store{SimPageStoreOptions()};
  EngineOptions options = EngineWorld::SmallOptions();
  options.store.sketch_counters = 4096;
  DeviceWorld of(options, DeviceWorld::Slabs(4), &store);
  DeviceClient client(of);
  const SpaceGiven space = client.Open();
  ASSERT_TRUE(client.PutHere(space, 1).has_value());
  of.world.engine->DemoteDevice(1, 0, {}, [](const Result<Demoted>&) {});
  of.Settle();
  ASSERT_TRUE(client.ReadsAt(space, 1, 0));
  (void)of.world.engine->Evict(0, UINT64_MAX);
  ASSERT_FALSE(client.FindAt(space, 1, 0).has_value());
  const auto late = client.FetchHere(space, {1}, 100);
  of.world.clock.Advance(200 * kNsPerMs);
  (void)of.world.engine->Turn();
  ASSERT_TRUE(late->answer.has_value() && late->answer->has_value());
  EXPECT_THAT((*late->answer)->codes, ElementsAre(Code::kDeadlineExceeded)) << "it is being read";
  const auto fetch = client.FetchHere(space, {1});
  of.Settle();
  ASSERT_TRUE(fetch->answer.has_value() && fetch->answer->has_value());
  EXPECT_THAT((*fetch->answer)->codes, ElementsAre(Code::kOk));
  EXPECT_TRUE(client.ReadsAt(space, 1, 1));
  EXPECT_EQ(of.world.engine->CheckInvariants(), Status());
}

// Whatever is asked for in whatever order, and whatever fails: the books agree, budgets hold, and
// no page has other bytes than its own.
class RandomVerbs : public testing::TestWithParam<uint64_t> {};

TEST_P(RandomVerbs, KeepThePromises) {
  std::mt19937_64 random(GetParam());
  const auto below = [&](uint64_t bound) { return random() % bound; };
  DeviceWorld of;
  std::vector<std::unique_ptr<DeviceClient>> clients;
  std::vector<SpaceGiven> spaces;
  for (const char* tenant : {"t", "u"}) {
    clients.push_back(std::make_unique<DeviceClient>(of, tenant));
    spaces.push_back(clients.back()->Open());
  }
  struct Held {
    size_t who;
    uint64_t number;
    GrantGiven grant;
  };
  std::vector<Held> held;
  std::vector<std::pair<size_t, uint32_t>> pins;
  for (int step = 0; step < 600; ++step) {
    const size_t who = below(2);
    DeviceClient& client = *clients[who];
    const SpaceGiven& space = spaces[who];
    const uint64_t number = below(30);
    switch (below(12)) {
      case 0:
      case 1:
      case 2: {
        const std::vector<Digest> keys = {KeyOf(number)};
        std::vector<GrantGiven> granted;
        const GrantSpec spec{.slot = space.slot,
                             .epoch = space.epoch,
                             .deadline_ms = static_cast<uint32_t>(1 + below(300)),
                             .keys = keys,
                             .device = 1};
        ASSERT_TRUE(of.world.engine->Grant(client.given.id, spec, &granted).ok());
        if (granted.size() == 1 && granted[0].code == Code::kOk) {
          held.push_back({who, number, granted[0]});
        }
        break;
      }
      case 3:
      case 4:
      case 5: {
        if (held.empty()) break;
        const size_t at = below(held.size());
        const Held one = held[at];
        held.erase(held.begin() + static_cast<ptrdiff_t>(at));
        DeviceClient& writer = *clients[one.who];
        if (!of.tiers[0]->Bytes(shm::ArenaOf(one.grant.handle)).empty()) {
          writer.Write(spaces[one.who], one.grant.handle, one.number);
        }
        if (writer.Commit(one.grant.grant) == Code::kDeadlineExceeded) {
          writer.Abort(one.grant.grant);
        }
        break;
      }
      case 6:
        client.Drop(space, number);
        break;
      case 7: {
        const auto handle = client.FindAt(space, number, static_cast<uint32_t>(below(2)));
        if (handle && pins.size() < 8) pins.emplace_back(who, client.channel.Pin(*handle));
        if (handle) client.channel.Touch(*handle);
        break;
      }
      case 8:
        if (pins.empty()) break;
        clients[pins.back().first]->channel.Unpin(pins.back().second);
        pins.pop_back();
        break;
      case 9:
        of.world.engine->DemoteDevice(1, below(4) * kPage, {}, [](const Result<Demoted>&) {});
        (void)client.FetchHere(space, {number, below(30)}, 100);
        break;
      case 10:
        if (below(4) == 0) of.tiers[0]->copy_faults.FailAfter(0, Status(Code::kUnavailable, "no"));
        if (below(4) == 0) of.tiers[0]->create_faults.FailAfter(0, Status(Code::kExhausted, "no"));
        if (below(4) == 0) of.tiers[0]->host_faults.FailAfter(0, Status(Code::kExhausted, "no"));
        if (below(16) == 0) of.Lose();
        if (below(8) == 0) of.world.clock.Advance(40 * kNsPerSecond);
        break;
      default:
        of.world.clock.Advance(below(50) * kNsPerMs);
        of.tiers[0]->RunPending(below(4));
        (void)of.world.engine->Turn();
    }
    ASSERT_EQ(of.world.engine->CheckInvariants(), Status()) << "step " << step;
    const GpuReport device = of.Device();
    ASSERT_LE(device.bytes.used(), of.device_options.capacity_bytes);
    for (uint64_t i = 0; i < 30; ++i) {
      (void)client.ReadsAt(space, i, 0);
      (void)client.ReadsAt(space, i, 1);
    }
  }
}
INSTANTIATE_TEST_SUITE_P(Seeds, RandomVerbs, testing::Range<uint64_t>(1, 41));

}  // namespace
}  // namespace terrace
