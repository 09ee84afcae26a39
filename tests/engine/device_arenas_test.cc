// DeviceArenas: the budget of a device, and who keeps memory of it from being free.
#include "daemon/engine/device/device_arenas.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <optional>

#include "tiers/sim/sim_device_tier.h"

namespace terrace {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;
using testing::Pair;
using Use = DeviceArenas::Use;

constexpr uint64_t kGranule = 64u << 10;

class DeviceArenasTest : public testing::Test {
 protected:
  static DeviceOptions Options() {
    DeviceOptions options;
    options.capacity_bytes = 16 * kGranule;
    options.unmap_deadline_ms = 100;
    return options;
  }
  explicit DeviceArenasTest(const DeviceOptions& options = Options())
      : tier(64 * kGranule, kGranule, [](ArenaId) { return std::span<uint8_t>(); }),
        arenas(options, {.device = 3, .tier = &tier, .clock = &clock, .numbers = &numbers}) {}
  ~DeviceArenasTest() override { EXPECT_EQ(arenas.CheckInvariants(), Status()); }

  ArenaId Make(uint64_t bytes, Use use = Use::kWeights) {
    const Result<ArenaId> id =
        arenas.Create(bytes, 0, use, [this](Status status) { came = std::move(status); });
    EXPECT_TRUE(id.has_value());
    tier.RunPending();
    return id ? *id : 0;
  }
  void Pass(uint32_t ms) {
    clock.Advance(ms * kNsPerMs);
    (void)arenas.Turn();
  }

  ManualClock clock;
  DeviceArenaNumbers numbers;
  SimDeviceTier tier;
  DeviceArenas arenas;
  std::optional<Status> came;
};

TEST_F(DeviceArenasTest, MemoryIsChargedFromTheAskingForIt) {
  const Result<ArenaId> id =
      arenas.Create(kGranule + 1, 0, Use::kWeights, [this](Status status) { came = status; });
  ASSERT_TRUE(id.has_value());
  EXPECT_GE(*id, kFirstDeviceBlockId);
  EXPECT_EQ(arenas.bytes().weights, 2 * kGranule) << "rounded up to the granularity";
  EXPECT_FALSE(arenas.Ready(*id));
  EXPECT_EQ(arenas.MemoryOf(*id), nullptr);
  tier.RunPending();
  EXPECT_EQ(came, Status());
  EXPECT_TRUE(arenas.Ready(*id));
  ASSERT_NE(arenas.MemoryOf(*id), nullptr);
  EXPECT_NE(arenas.MemoryOf(*id)->slab, nullptr);
}

TEST_F(DeviceArenasTest, NumbersOfPagesAndOfWeightsAreApart) {
  const ArenaId pages = Make(kGranule, Use::kPages);
  EXPECT_GE(pages, kFirstDeviceSlabId);
  EXPECT_LE(pages, kLastDeviceSlabId);
  EXPECT_NE(Make(kGranule), Make(kGranule));
  EXPECT_EQ(arenas.bytes().pages, kGranule);
  EXPECT_EQ(arenas.bytes().weights, 2 * kGranule);
}

TEST_F(DeviceArenasTest, WhatCouldNotBeHadIsChargedNoMore) {
  tier.create_faults.FailAfter(0, {Code::kExhausted, "none"});
  const ArenaId id = Make(kGranule);
  EXPECT_EQ(came->code(), Code::kExhausted);
  EXPECT_EQ(arenas.bytes().used(), 0u);
  EXPECT_EQ(arenas.BytesOf(id), 0u);
}

TEST_F(DeviceArenasTest, TheBudgetIsKept) {
  Make(16 * kGranule);
  EXPECT_EQ(arenas.Create(1, 0, Use::kWeights, {}).status().code(), Code::kExhausted);
  EXPECT_EQ(arenas.room(), 0u);
}

TEST_F(DeviceArenasTest, WhatIsGivenUpWhileItComesIsGivenBackWhenItHasCome) {
  const Result<ArenaId> id =
      arenas.Create(kGranule, 0, Use::kWeights, [this](Status status) { came = status; });
  arenas.Release(*id);
  EXPECT_EQ(arenas.OnItsWay(), kGranule);
  tier.RunPending();
  EXPECT_EQ(came, std::nullopt) << "who gave it up waits for it no more";
  EXPECT_EQ(arenas.bytes().used(), 0u);
  EXPECT_EQ(tier.arena_count(), 0u);
}

TEST_F(DeviceArenasTest, WhatNobodyMapsIsFreeWhenTheTierHasReleasedIt) {
  const ArenaId id = Make(kGranule);
  arenas.Release(id);
  EXPECT_THAT(arenas.TakeWanted(), IsEmpty());
  EXPECT_EQ(arenas.bytes().used(), kGranule);
  EXPECT_EQ(arenas.OnItsWay(), kGranule);
  tier.RunPending();
  EXPECT_EQ(arenas.bytes().used(), 0u);
  EXPECT_EQ(arenas.OnItsWay(), 0u);
}

TEST_F(DeviceArenasTest, WhoMapsItIsAskedOnceAndMemoryIsFreeWhenTheLastLetGo) {
  const ArenaId id = Make(kGranule, Use::kPages);
  EXPECT_TRUE(arenas.Give(id, 1));
  EXPECT_TRUE(arenas.Give(id, 1));
  EXPECT_TRUE(arenas.Give(id, 2));
  arenas.Release(id);
  EXPECT_THAT(arenas.TakeWanted(), ElementsAre(Pair(1, ElementsAre(id)), Pair(2, ElementsAre(id))));
  EXPECT_THAT(arenas.TakeWanted(), IsEmpty());
  EXPECT_EQ(arenas.unmap_requests(), 2u);
  EXPECT_FALSE(arenas.Give(id, 3)) << "it was asked back";
  EXPECT_EQ(arenas.bytes().leaving, kGranule);
  arenas.LetGo(id, 2);
  arenas.LetGo(id, 1);
  tier.RunPending();
  EXPECT_EQ(arenas.bytes().leaving, kGranule) << "it was given twice";
  arenas.LetGo(id, 1);
  arenas.LetGo(id, 1);
  tier.RunPending();
  EXPECT_EQ(arenas.bytes().used(), 0u);
}

TEST_F(DeviceArenasTest, WhoLetGoBeforeItIsAskedIsNotAsked) {
  const ArenaId id = Make(kGranule, Use::kPages);
  arenas.Give(id, 1);
  arenas.Give(id, 2);
  arenas.Release(id);
  arenas.LetGo(id, 1);
  EXPECT_THAT(arenas.TakeWanted(), ElementsAre(Pair(2, ElementsAre(id))));
}

TEST_F(DeviceArenasTest, WeightsAreAskedForByTheirAttachments) {
  const ArenaId id = Make(kGranule, Use::kWeights);
  arenas.Give(id, 1);
  arenas.Release(id);
  EXPECT_THAT(arenas.TakeWanted(), IsEmpty());
  EXPECT_EQ(arenas.unmap_requests(), 1u);
  EXPECT_THAT(arenas.LeavingOf(1).arenas, ElementsAre(id));
  EXPECT_THAT(arenas.LeavingOf(2).arenas, IsEmpty());
  arenas.LetGo(id, 1);
  EXPECT_THAT(arenas.LeavingOf(1).arenas, IsEmpty());
}

TEST_F(DeviceArenasTest, PastTheDeadlineItIsAZombieUntilTheClientIsGone) {
  const ArenaId id = Make(kGranule);
  arenas.Give(id, 1);
  arenas.Give(id, 1);
  arenas.Release(id);
  Pass(99);
  EXPECT_EQ(arenas.zombie_arenas(), 0u);
  EXPECT_EQ(arenas.OnItsWay(), kGranule);
  Pass(1);
  EXPECT_EQ(arenas.zombie_arenas(), 1u);
  EXPECT_EQ(arenas.bytes().zombies, kGranule);
  EXPECT_EQ(arenas.OnItsWay(), 0u) << "nobody knows when it comes back";
  EXPECT_EQ(arenas.CheckInvariants(), Status());
  arenas.ClientGone(1);
  EXPECT_EQ(arenas.zombie_arenas(), 0u);
  tier.RunPending();
  EXPECT_EQ(arenas.bytes().used(), 0u);
}

TEST_F(DeviceArenasTest, AReleaseThatFailsIsTriedAgain) {
  const ArenaId id = Make(kGranule);
  tier.release_faults.FailAfter(0, {Code::kUnavailable, "no process"});
  arenas.Release(id);
  tier.RunPending();
  EXPECT_EQ(arenas.bytes().used(), kGranule);
  Pass(10);
  tier.RunPending();
  EXPECT_EQ(arenas.bytes().used(), 0u);
}

TEST_F(DeviceArenasTest, WhatWasLostIsAskedOfNobody) {
  const ArenaId id = Make(kGranule);
  arenas.Give(id, 1);
  tier.LoseDevice([this](ArenaId lost) { arenas.Lost(lost); });
  EXPECT_FALSE(arenas.Give(id, 2));
  EXPECT_EQ(arenas.bytes().weights, kGranule) << "until it is released";
  arenas.Release(id);
  EXPECT_THAT(arenas.TakeWanted(), IsEmpty());
  tier.RunPending();
  EXPECT_EQ(arenas.bytes().used(), 0u);
  arenas.LetGo(id, 1);
}

TEST_F(DeviceArenasTest, WhatIsLostWhileItLeavesOrAfterItsDeadlineWaitsForNobody) {
  const ArenaId leaving = Make(kGranule);
  const ArenaId zombie = Make(kGranule);
  arenas.Give(zombie, 1);
  arenas.Release(zombie);
  Pass(100);
  arenas.Give(leaving, 1);
  arenas.Release(leaving);
  ASSERT_EQ(arenas.bytes().zombies, kGranule);
  ASSERT_EQ(arenas.bytes().leaving, kGranule);
  tier.LoseDevice([this](ArenaId lost) { arenas.Lost(lost); });
  EXPECT_EQ(arenas.CheckInvariants(), Status());
  tier.RunPending();
  EXPECT_EQ(arenas.bytes().used(), 0u);
  EXPECT_EQ(arenas.zombie_arenas(), 0u);
  Pass(200);
}

class DeviceFloorsTest : public DeviceArenasTest {
 protected:
  static DeviceOptions WithFloors() {
    DeviceOptions options = Options();
    options.pages_floor_bytes = 4 * kGranule;
    options.weights_floor_bytes = 6 * kGranule;
    return options;
  }
  DeviceFloorsTest() : DeviceArenasTest(WithFloors()) {}
};

TEST_F(DeviceFloorsTest, AFloorIsKeptFromTheOther) {
  EXPECT_EQ(arenas.MostFor(Use::kWeights), 12 * kGranule);
  EXPECT_EQ(arenas.RoomFor(Use::kWeights), 12 * kGranule);
  EXPECT_EQ(arenas.RoomFor(Use::kPages), 10 * kGranule);
  Make(12 * kGranule);
  EXPECT_EQ(arenas.RoomFor(Use::kWeights), 0u);
  EXPECT_EQ(arenas.RoomFor(Use::kPages), 4 * kGranule);
  Make(4 * kGranule, Use::kPages);
  EXPECT_EQ(arenas.room(), 0u);
}

TEST_F(DeviceArenasTest, ADeviceThatHasNotSaidItsGranularityIsNotReady) {
  SimDeviceTier silent(kGranule, 0, [](ArenaId) { return std::span<uint8_t>(); });
  DeviceArenas of(Options(), {.device = 1, .tier = &silent, .clock = &clock, .numbers = &numbers});
  EXPECT_EQ(of.Create(1, 0, Use::kPages, {}).status().code(), Code::kUnavailable);
}

TEST_F(DeviceArenasTest, CompletionsThatComeAfterItsEndTouchNothing) {
  {
    DeviceArenas gone(Options(),
                      {.device = 1, .tier = &tier, .clock = &clock, .numbers = &numbers});
    ASSERT_TRUE(gone.Create(kGranule, 0, Use::kPages, [](const Status&) { FAIL(); }).has_value());
  }
  EXPECT_EQ(tier.RunPending(), 1u);
}

}  // namespace
}  // namespace terrace
