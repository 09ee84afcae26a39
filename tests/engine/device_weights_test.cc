// Weights in memory of devices, through the verbs of Engine.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <optional>
#include <set>

#include "daemon/engine/weights/weights.h"
#include "tests/engine/engine_world.h"
#include "tiers/sim/sim_device_tier.h"

namespace terrace {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;
using testing::SizeIs;

constexpr uint64_t kGranule = 64u << 10;
constexpr uint64_t kBlock = 2 * kGranule;

struct Room {
  uint64_t host_blocks = 64;
  uint64_t device_blocks = 8;
  uint64_t pages_floor_blocks = 0;
  uint64_t granularity = kGranule;
  uint64_t block_bytes = kBlock;
  std::vector<std::string> tenants_of_two = {};
};

class DeviceWeightsTest : public testing::Test {
 protected:
  explicit DeviceWeightsTest(const Room& room = {})
      : host({.blank_bytes = 1u << 20, .descriptors = true}),
        one(MakeTier(room)),
        two(MakeTier(room)),
        block_bytes(room.block_bytes) {
    EngineOptions options = EngineWorld::SmallOptions();
    options.host_capacity_bytes = room.host_blocks * room.block_bytes;
    options.block_bytes = room.block_bytes;
    EngineParts parts;
    parts.clock = &clock;
    parts.host = &host;
    parts.sources = &sources;
    parts.journal = &journal;
    parts.directory_memory = &directories;
    parts.host_policy = MakeLru();
    for (SimDeviceTier* tier : {&one, &two}) {
      DevicePart part;
      part.options.capacity_bytes = room.device_blocks * room.block_bytes;
      part.options.slab_bytes = room.block_bytes;
      part.options.pages_floor_bytes = room.pages_floor_blocks * room.block_bytes;
      part.options.unmap_deadline_ms = 1'000;
      part.options.call_deadline_ms = 1'000;
      if (tier == &two) part.options.tenants = room.tenants_of_two;
      part.tier = tier;
      part.policy = MakeLru();
      parts.devices.push_back(std::move(part));
    }
    engine = *MakeEngine(options, std::move(parts), events);
    client = Arrive("t");
  }
  ~DeviceWeightsTest() override {
    Settle();
    Check();
  }
  SimDeviceTier MakeTier(const Room& room) {
    return {1u << 30, room.granularity, [this](ArenaId arena) { return host.Bytes(arena); }};
  }
  void Check() const { EXPECT_EQ(engine->CheckInvariants(), Status()); }

  // A step of everything that waits; whether anything was done.
  bool Step() {
    clock.Advance(10 * kNsPerMs);
    const bool more = engine->Turn();
    const size_t ran =
        sources.RunPending() + journal.RunPending() + one.RunPending() + two.RunPending();
    return more || ran > 0;
  }
  void Settle() {
    for (int quiet = 0; quiet < 4;)
      quiet = Step() ? 0 : quiet + 1;
  }
  void Pass(uint32_t ms) {
    for (uint32_t passed = 0; passed < ms; passed += 10)
      (void)Step();
  }
  ClientId Arrive(const std::string& tenant) {
    const TenantId id = *engine->AddTenant(tenant);
    return engine
        ->ClientArrived({.tenant = id, .name = "test", .writer = true},
                        channels.emplace_back().bytes())
        ->id;
  }
  static std::vector<uint8_t> BytesOf(const std::string& name, uint64_t bytes) {
    std::vector<uint8_t> made(bytes);
    for (uint64_t i = 0; i < bytes; ++i)
      made[i] = static_cast<uint8_t>(i * 31 + (i >> 13) + static_cast<uint8_t>(name[0]));
    return made;
  }
  void AddModel(const std::string& name, uint64_t blocks) {
    const uint64_t bytes = blocks * block_bytes;
    sources.AddFile(
        "/" + name,
        {{.name = "w", .dtype = "U8", .shape = {bytes}, .bytes = BytesOf(name, bytes)}});
    ModelSpec spec;
    spec.name = name;
    spec.version = "1";
    spec.tenant = *engine->AddTenant("t");
    spec.source.paths = {"/" + name};
    std::optional<Status> added;
    engine->AddModel(std::move(spec),
                     [&](const Result<ModelAdded>& result) { added = result.status(); });
    Settle();
    ASSERT_EQ(added, Status());
  }
  struct Answer {
    std::optional<Status> status;
    ModelLoaded loaded;
    Attached attached;
    uint64_t done_bytes = 0;
  };
  std::shared_ptr<Answer> StartLoad(const std::string& name, uint32_t device = 1,
                                    ClientId who = 0) {
    auto answer = std::make_shared<Answer>();
    engine->LoadToDevice(
        who == 0 ? client : who, device, name, "",
        [answer](uint64_t done, uint64_t) { answer->done_bytes = done; },
        [answer](const Result<ModelLoaded>& loaded) {
          EXPECT_FALSE(answer->status.has_value()) << "answered twice";
          answer->status = loaded.status();
          if (loaded) answer->loaded = *loaded;
        });
    return answer;
  }
  Status Load(const std::string& name, uint32_t device = 1) {
    const auto answer = StartLoad(name, device);
    Settle();
    return answer->status.value_or(Status(Code::kInternal, "it was not answered"));
  }
  std::shared_ptr<Answer> StartAttach(const std::string& name, bool load, ClientId who = 0,
                                      uint32_t deadline_ms = 0, uint32_t device = 1) {
    auto answer = std::make_shared<Answer>();
    engine->AttachOnDevice(who == 0 ? client : who, device, name, "", load, deadline_ms,
                           [answer](const Result<Attached>& attached) {
                             EXPECT_FALSE(answer->status.has_value()) << "answered twice";
                             answer->status = attached.status();
                             if (attached) answer->attached = *attached;
                           });
    return answer;
  }
  // Of what is there.
  Attached Attach(const std::string& name, ClientId who = 0) {
    const auto answer = StartAttach(name, false, who);
    EXPECT_EQ(answer->status, Status());
    return answer->attached;
  }
  std::vector<ArenaId> Blocks(uint64_t attachment, ClientId who = 0) {
    const auto blocks = engine->BlocksOf(who == 0 ? client : who, attachment, {});
    EXPECT_EQ(blocks.status(), Status());
    return blocks ? *blocks : std::vector<ArenaId>();
  }
  // What a client does that maps the whole of it.
  std::vector<ArenaId> Map(uint64_t attachment, ClientId who = 0) {
    const std::vector<ArenaId> blocks = Blocks(attachment, who);
    for (const ArenaId block : blocks)
      EXPECT_TRUE(engine->GiveDeviceArena(who == 0 ? client : who, block).has_value());
    return blocks;
  }
  static std::vector<uint8_t> BytesIn(SimDeviceTier& tier, const std::vector<ArenaId>& arenas) {
    std::vector<uint8_t> bytes;
    for (const ArenaId arena : arenas) {
      const auto of = tier.Bytes(arena);
      bytes.insert(bytes.end(), of.begin(), of.end());
    }
    return bytes;
  }
  GpuReport Report(uint32_t device = 1) const { return engine->Devices().at(device - 1); }
  uint64_t HostBlocks() const { return engine->Models().at(0).versions.at(0).blocks_resident; }

  ManualClock clock;
  SimHostTier host;
  SimDeviceTier one;
  SimDeviceTier two;
  const uint64_t block_bytes;
  SimWeightSources sources;
  SimJournal journal;
  PlainDirectory directories;
  RecordedEvents events;
  std::deque<ChannelOfTest> channels;
  std::unique_ptr<Engine> engine;
  ClientId client = 0;
};

// ---- Which device

TEST_F(DeviceWeightsTest, TheEngineChoosesTheDeviceWithTheMostRoom) {
  AddModel("a", 2);
  AddModel("b", 3);
  AddModel("c", 4);
  const auto first = StartLoad("a", kAnyDevice);
  Settle();
  EXPECT_EQ(first->loaded.device, 1u) << "both are empty";
  const auto second = StartLoad("b", kAnyDevice);
  Settle();
  EXPECT_EQ(second->loaded.device, 2u);
  const auto third = StartLoad("c", kAnyDevice);
  Settle();
  EXPECT_EQ(third->loaded.device, 1u);
  EXPECT_EQ(Report(1).bytes.weights, 6 * kBlock);
  EXPECT_EQ(Report(2).bytes.weights, 3 * kBlock);
}

TEST_F(DeviceWeightsTest, ADeviceThatHasTheWeightsIsChosenWhateverItsRoom) {
  AddModel("a", 2);
  AddModel("b", 5);
  ASSERT_EQ(Load("a"), Status());
  ASSERT_EQ(Load("b"), Status());
  const auto again = StartLoad("b", kAnyDevice);
  EXPECT_EQ(again->status, Status()) << "at once";
  EXPECT_EQ(again->loaded.device, 1u);
}

TEST_F(DeviceWeightsTest, NothingIsPushedOutWhereAnotherDeviceHasRoom) {
  AddModel("held", 5);
  AddModel("idle", 7);
  AddModel("new", 3);
  ASSERT_EQ(Load("held", 2), Status());
  (void)StartAttach("held", false, 0, 0, 2);
  ASSERT_EQ(Load("idle", 1), Status());
  const auto answer = StartLoad("new", kAnyDevice);
  Settle();
  EXPECT_EQ(answer->loaded.device, 2u);
  EXPECT_EQ(Report(1).bytes.weights, 7 * kBlock);
}

TEST_F(DeviceWeightsTest, WhereNoneHasRoomItIsMadeWhereTheMostCanBe) {
  AddModel("held", 6);
  AddModel("idle", 7);
  AddModel("new", 4);
  ASSERT_EQ(Load("held", 1), Status());
  (void)StartAttach("held", false);
  ASSERT_EQ(Load("idle", 2), Status());
  const auto answer = StartLoad("new", kAnyDevice);
  Settle();
  EXPECT_EQ(answer->status, Status());
  EXPECT_EQ(answer->loaded.device, 2u);
  EXPECT_EQ(Report(2).bytes.weights, 4 * kBlock);
}

class KeptDeviceTest : public DeviceWeightsTest {
 protected:
  KeptDeviceTest() : DeviceWeightsTest({.tenants_of_two = {"kept"}}) {}
};

TEST_F(KeptDeviceTest, OthersGetNoMemoryOfADeviceThatIsKeptForSome) {
  AddModel("m", 2);
  const ClientId kept = Arrive("kept");
  const TenantId theirs = *engine->AddTenant("kept");
  EXPECT_EQ(engine->CheckDeviceAccess(theirs, 2), Status());
  EXPECT_EQ(engine->CheckDeviceAccess(*engine->AddTenant("t"), 2).code(), Code::kPermissionDenied);
  EXPECT_EQ(Load("m", 2).code(), Code::kPermissionDenied) << "nobody there may attach it";
  EXPECT_EQ(StartLoad("m", kAnyDevice)->status, std::nullopt);
  Settle();
  EXPECT_EQ(Report(1).bytes.weights, 2 * kBlock);
  std::optional<Status> granted;
  engine->SetModelAccess("m", "kept", true, [&](const Status& status) { granted = status; });
  Settle();
  ASSERT_EQ(granted, Status());
  EXPECT_EQ(Load("m", 2), Status()) << "whoever asks";
  EXPECT_EQ(StartAttach("m", false, kept, 0, 2)->status, Status());
  EXPECT_EQ(StartAttach("m", false, client, 0, 2)->status->code(), Code::kPermissionDenied);
  EXPECT_EQ(StartAttach("m", true, client, 0, 2)->status->code(), Code::kPermissionDenied);
}

// ---- Loading

TEST_F(DeviceWeightsTest, ALoadBringsTheImageWholeToTheDevice) {
  AddModel("m", 3);
  const auto answer = StartLoad("m");
  EXPECT_EQ(StartAttach("m", false)->status->code(), Code::kNotFound)
      << "before all of it is there";
  Settle();
  ASSERT_EQ(answer->status, Status());
  EXPECT_EQ(answer->loaded.version, "1");
  EXPECT_FALSE(answer->loaded.digest.IsZero());
  EXPECT_EQ(answer->done_bytes, 3 * kBlock);
  const Attached attached = Attach("m");
  EXPECT_EQ(attached.device, 1u);
  EXPECT_EQ(attached.digest, answer->loaded.digest);
  EXPECT_NE(attached.manifest, 0u);
  EXPECT_EQ(BytesIn(one, Blocks(attached.attachment)), BytesOf("m", 3 * kBlock));
  EXPECT_EQ(Report().bytes.weights, 3 * kBlock);
  EXPECT_EQ(Report().loaded_bytes, 3 * kBlock);
  EXPECT_EQ(one.arena_count(), 3u) << "no host arena stays with the tier";
  EXPECT_EQ(Report(2).bytes.used(), 0u);
}

TEST_F(DeviceWeightsTest, WhatIsThereIsLoadedAtOnce) {
  AddModel("m", 2);
  ASSERT_EQ(Load("m"), Status());
  EXPECT_EQ(StartLoad("m")->status, Status());
  EXPECT_EQ(one.copied_bytes, 2 * kBlock);
}

TEST_F(DeviceWeightsTest, ManyWaitForOneLoad) {
  AddModel("m", 3);
  const ClientId other = Arrive("t");
  const auto first = StartLoad("m");
  const auto second = StartLoad("m", 1, other);
  const auto third = StartAttach("m", true, other);
  Settle();
  EXPECT_EQ(first->status, Status());
  EXPECT_EQ(second->status, Status());
  EXPECT_EQ(third->status, Status());
  EXPECT_EQ(one.copied_bytes, 3 * kBlock);
  EXPECT_EQ(sources.reads(), 3u);
}

TEST_F(DeviceWeightsTest, TwoDevicesShareTheReadingOfTheFiles) {
  AddModel("m", 3);
  const auto to_one = StartLoad("m", 1);
  const auto to_two = StartLoad("m", 2);
  Settle();
  EXPECT_EQ(to_one->status, Status());
  EXPECT_EQ(to_two->status, Status());
  EXPECT_EQ(sources.reads(), 3u);
  EXPECT_EQ(two.copied_bytes, 3 * kBlock);
}

TEST_F(DeviceWeightsTest, BlocksAreCopiedWhileOthersAreRead) {
  AddModel("m", 8);
  const auto answer = StartLoad("m");
  bool overlapped = false;
  for (int step = 0; step < 1'000 && !answer->status; ++step) {
    clock.Advance(10 * kNsPerMs);
    (void)engine->Turn();
    (void)journal.RunPending();
    (void)one.RunPending();
    overlapped |= one.copied_bytes > 0 && sources.reads() < 8;
    (void)sources.RunPending(1);
  }
  EXPECT_EQ(answer->status, Status());
  EXPECT_TRUE(overlapped);
}

TEST_F(DeviceWeightsTest, HostMemoryMayForgetWhatTheDeviceHas) {
  AddModel("m", 3);
  ASSERT_EQ(Load("m"), Status());
  const Attached attached = Attach("m");
  EXPECT_EQ(engine->Evict(0, UINT64_MAX).blocks, 3u);
  EXPECT_EQ(BytesIn(one, Blocks(attached.attachment)), BytesOf("m", 3 * kBlock));
  const Attached again = Attach("m");
  EXPECT_EQ(again.manifest, attached.manifest) << "the manifest stays";
  EXPECT_TRUE(host.Map(again.manifest) != nullptr);
}

TEST_F(DeviceWeightsTest, ABlockCanLeaveHostMemoryWhenItsCopyIsDone) {
  AddModel("m", 8);
  std::optional<Status> in_host;
  engine->Load(client, "m", "", {},
               [&](const Result<ModelLoaded>& loaded) { in_host = loaded.status(); });
  Settle();
  ASSERT_EQ(in_host, Status());
  const auto answer = StartLoad("m");
  (void)engine->Turn();
  uint64_t evicted = 0;
  while (!answer->status && one.RunPending(1) > 0)
    evicted += engine->Evict(0, UINT64_MAX).blocks;
  ASSERT_EQ(answer->status, Status());
  EXPECT_GE(evicted, 4u) << "those that were done, while others were not";
  EXPECT_EQ(BytesIn(one, Blocks(Attach("m").attachment)), BytesOf("m", 8 * kBlock));
}

TEST_F(DeviceWeightsTest, AModelThatIsNotThereOrNoDeviceIsRefused) {
  AddModel("m", 1);
  EXPECT_EQ(Load("x").code(), Code::kNotFound);
  EXPECT_EQ(Load("m", 3).code(), Code::kInvalidArgument);
  EXPECT_EQ(Load("m", 0).code(), Code::kInvalidArgument);
  EXPECT_EQ(engine->UnloadFromDevice(9, "m", "").status().code(), Code::kInvalidArgument);
  EXPECT_EQ(StartAttach("m", true, 0, 0, 9)->status->code(), Code::kInvalidArgument);
  EXPECT_EQ(StartAttach("m", true, 999)->status->code(), Code::kNotFound);
}

TEST_F(DeviceWeightsTest, WhatIsMoreThanTheDeviceHasIsRefused) {
  AddModel("m", 9);
  EXPECT_EQ(Load("m").code(), Code::kExhausted);
  EXPECT_EQ(one.arena_count(), 0u);
}

TEST_F(DeviceWeightsTest, WhatIsMoreThanHostMemoryHasIsRefusedWithItsError) {
  AddModel("m", 65);
  EXPECT_EQ(Load("m").code(), Code::kExhausted);
}

TEST_F(DeviceWeightsTest, BytesThatDoNotCheckOutAreNeverSeenOnTheDevice) {
  AddModel("m", 2);
  ASSERT_EQ(Load("m"), Status());
  ASSERT_TRUE(engine->UnloadFromDevice(1, "m", "").has_value());
  Settle();
  engine->Evict(0, UINT64_MAX);
  sources.Change("/m", "w", 5, /*by_rot=*/true);
  EXPECT_EQ(Load("m").code(), Code::kDataLoss);
  EXPECT_EQ(StartAttach("m", false)->status->code(), Code::kNotFound);
  EXPECT_EQ(Report().bytes.used(), 0u);
}

TEST_F(DeviceWeightsTest, WhatIsCopiedIsNotSeenBeforeItsDigestIsKnown) {
  AddModel("m", 2);
  sources.hash_faults.FailAfter(0, {Code::kDataLoss, "planned"});
  const auto answer = StartLoad("m");
  for (int step = 0; step < 1'000 && !answer->status; ++step) {
    clock.Advance(10 * kNsPerMs);
    (void)engine->Turn();
    (void)one.RunPending();
    EXPECT_EQ(StartAttach("m", false)->status->code(), Code::kNotFound);
    (void)sources.RunPending(1);
  }
  EXPECT_EQ(one.copied_bytes, 2 * kBlock) << "it was copied whole";
  EXPECT_EQ(answer->status->code(), Code::kDataLoss);
}

TEST_F(DeviceWeightsTest, AClientThatGoesWaitsNoMoreAndTheLoadGoesOn) {
  AddModel("m", 2);
  const ClientId other = Arrive("t");
  const auto answer = StartLoad("m", 1, other);
  const auto attach = StartAttach("m", true, other);
  engine->ClientGone(other);
  EXPECT_EQ(answer->status->code(), Code::kUnavailable);
  EXPECT_EQ(attach->status->code(), Code::kUnavailable);
  Settle();
  EXPECT_EQ(Report().loaded_bytes, 2 * kBlock);
}

TEST_F(DeviceWeightsTest, AWaitEndsAtItsDeadlineAndTheLoadGoesOn) {
  AddModel("m", 2);
  one.serving = false;
  const auto attach = StartAttach("m", true, 0, 100);
  Pass(90);
  EXPECT_FALSE(attach->status.has_value());
  Pass(20);
  EXPECT_EQ(attach->status->code(), Code::kDeadlineExceeded);
  one.serving = true;
  Settle();
  EXPECT_EQ(StartAttach("m", false)->status, Status());
}

TEST_F(DeviceWeightsTest, OneClientWaitsABoundedNumberOfTimes) {
  AddModel("m", 2);
  std::vector<std::shared_ptr<Answer>> waiting;
  for (size_t i = 0; i < Weights::kMaxClientWaiters; ++i)
    waiting.push_back(StartLoad("m"));
  EXPECT_EQ(StartLoad("m")->status->code(), Code::kExhausted);
  EXPECT_EQ(StartAttach("m", true)->status->code(), Code::kExhausted);
  Settle();
  for (const auto& answer : waiting)
    EXPECT_EQ(answer->status, Status());
}

TEST_F(DeviceWeightsTest, AModelThatIsRemovedWhileItIsLoadedIsNotThere) {
  AddModel("m", 3);
  for (int steps = 0; steps < 12; ++steps) {
    const auto answer = StartLoad("m");
    for (int step = 0; step < steps; ++step) {
      (void)engine->Turn();
      (void)sources.RunPending(1);
      (void)one.RunPending(1);
    }
    engine->RemoveModel("m", "", [](const Status&) {});
    Settle();
    ASSERT_TRUE(answer->status.has_value());
    EXPECT_EQ(answer->status->code(), Code::kNotFound) << steps;
    EXPECT_EQ(Report().bytes.used(), 0u);
    EXPECT_EQ(one.arena_count(), 0u);
    Check();
    AddModel("m", 3);
  }
}

class LargeBlocksTest : public DeviceWeightsTest {
 protected:
  LargeBlocksTest()
      : DeviceWeightsTest({.host_blocks = 4, .device_blocks = 3, .block_bytes = 40u << 20}) {}
};

TEST_F(LargeBlocksTest, ABlockIsCopiedInPieces) {
  AddModel("m", 2);
  ASSERT_EQ(Load("m"), Status());
  EXPECT_EQ(one.copy_calls, 6u) << "16, 16 and 8 MiB of each";
  EXPECT_EQ(BytesIn(one, Blocks(Attach("m").attachment)), BytesOf("m", 80u << 20));
}

class OddGranularityTest : public DeviceWeightsTest {
 protected:
  OddGranularityTest() : DeviceWeightsTest({.granularity = 3 * kGranule}) {}
};

TEST_F(OddGranularityTest, ADeviceWhoseGranularityDividesNoBlockIsRefused) {
  AddModel("m", 2);
  EXPECT_EQ(Load("m").code(), Code::kMismatch);
}

// ---- Room

TEST_F(DeviceWeightsTest, WhatNobodyHasAttachedMakesRoomTheLeastUsedFirst) {
  for (const char* name : {"a", "b", "c", "d"})
    AddModel(name, 3);
  ASSERT_EQ(Load("a"), Status());
  ASSERT_EQ(Load("b"), Status());
  ASSERT_EQ(StartLoad("a")->status, Status()) << "used again";
  ASSERT_EQ(Load("c"), Status());
  EXPECT_EQ(Report().evicted_blocks, 3u);
  EXPECT_EQ(StartAttach("b", false)->status->code(), Code::kNotFound);
  const Attached kept = Attach("a");
  ASSERT_EQ(Load("d"), Status());
  EXPECT_EQ(StartAttach("c", false)->status->code(), Code::kNotFound) << "a is attached";
  EXPECT_EQ(engine->Detach(client, kept.attachment), Status());
}

TEST_F(DeviceWeightsTest, WhatIsAttachedMakesNoRoomAndNothingLeavesInVain) {
  AddModel("a", 3);
  AddModel("b", 3);
  AddModel("c", 6);
  ASSERT_EQ(Load("a"), Status());
  ASSERT_EQ(Load("b"), Status());
  (void)Attach("a");
  EXPECT_EQ(Load("c").code(), Code::kExhausted);
  EXPECT_EQ(StartAttach("b", false)->status, Status()) << "it would not have been enough";
  EXPECT_EQ(Report().evicted_blocks, 0u);
}

class PagesAndWeightsTest : public DeviceWeightsTest {
 protected:
  // So many slabs, which have the size of blocks, full of pages.
  void PutPages(size_t slabs) {
    SpaceSpec spec;
    spec.layout = LayoutOf(EngineWorld::kPage);
    space = *engine->OpenSpace(client, spec);
    pages = slabs * block_bytes / EngineWorld::kPage;
    for (uint64_t number = 0; number < pages; ++number) {
      const Digest key = KeyOf(number);
      std::vector<GrantGiven> given;
      for (int tries = 0; tries < 100 && given.empty(); ++tries) {
        ASSERT_EQ(
            engine->Grant(
                client, {.slot = space.slot, .epoch = space.epoch, .keys = {&key, 1}, .device = 1},
                &given),
            Status());
        Settle();
      }
      ASSERT_EQ(given.size(), 1u);
      std::vector<Code> codes;
      ASSERT_EQ(engine->Commit(client, {&given[0].grant, 1}, {}, &codes), Status());
    }
    ASSERT_EQ(Report().linked_pages, pages);
  }
  std::optional<LinkedPage> Find(uint64_t number, uint32_t place) {
    return engine->index(1).Find({space.slot, space.epoch, 0, KeyOf(number), place});
  }
  std::set<ArenaId> Slabs() {
    std::set<ArenaId> slabs;
    for (uint64_t number = 0; number < pages; ++number)
      slabs.insert(shm::ArenaOf(Find(number, 1)->handle));
    return slabs;
  }

  SpaceGiven space;
  size_t pages = 0;
};

TEST_F(PagesAndWeightsTest, PagesLeaveForWeightsAndAreInHostMemoryThen) {
  AddModel("a", 6);
  PutPages(4);
  EXPECT_EQ(Load("a"), Status());
  EXPECT_EQ(Report().bytes.weights, 6 * block_bytes);
  EXPECT_LE(Report().bytes.pages, 2 * block_bytes);
  for (uint64_t number = 0; number < pages; ++number)
    EXPECT_TRUE(Find(number, 0).has_value() || Find(number, 1).has_value()) << number;
}

TEST_F(PagesAndWeightsTest, AllThatALoadNeedsIsAskedBackAtOnce) {
  AddModel("a", 6);
  PutPages(4);
  const std::set<ArenaId> slabs = Slabs();
  for (const ArenaId slab : slabs)
    ASSERT_TRUE(engine->GiveDeviceArena(client, slab).has_value());
  // Of eight blocks six are needed; slabs without pages go unasked.
  ASSERT_GE(slabs.size(), 4u);
  const auto load = StartLoad("a");
  for (int step = 0; step < 6; ++step)
    (void)Step();
  size_t asked = 0;
  for (const UnmapRequest& request : events.unmap_wanted[client])
    asked += request.arenas.size();
  EXPECT_EQ(asked, slabs.size() - 2);
  EXPECT_EQ(Report().bytes.leaving, (slabs.size() - 2) * block_bytes);
  for (const UnmapRequest& request : events.unmap_wanted[client])
    engine->LetGoArenas(client, request.arenas);
  Settle();
  EXPECT_EQ(load->status, Status());
}

TEST_F(PagesAndWeightsTest, NoPagesLeaveInVain) {
  AddModel("a", 7);
  PutPages(4);
  // Three slabs would have to leave, and two can.
  for (size_t slab = 0; slab < 2; ++slab)
    (void)channels.back().Pin(Find(slab * pages / 4, 1)->handle);
  EXPECT_EQ(Load("a").code(), Code::kExhausted);
  EXPECT_EQ(Report().linked_pages, pages);
}

TEST_F(DeviceWeightsTest, ALoadWaitsForMemoryThatIsAskedBack) {
  AddModel("a", 6);
  AddModel("b", 6);
  ASSERT_EQ(Load("a"), Status());
  const Attached attached = Attach("a");
  Map(attached.attachment);
  ASSERT_EQ(engine->UnloadFromDevice(1, "a", "")->held_bytes, 6 * kBlock);
  const auto answer = StartLoad("b");
  Pass(500);
  EXPECT_FALSE(answer->status.has_value());
  EXPECT_EQ(engine->Detach(client, attached.attachment), Status());
  Settle();
  EXPECT_EQ(answer->status, Status());
}

TEST_F(DeviceWeightsTest, ALoadDoesNotWaitForZombies) {
  AddModel("a", 6);
  AddModel("b", 6);
  ASSERT_EQ(Load("a"), Status());
  const Attached attached = Attach("a");
  Map(attached.attachment);
  ASSERT_TRUE(engine->UnloadFromDevice(1, "a", "").has_value());
  const auto answer = StartLoad("b");
  Pass(1'100);
  EXPECT_EQ(answer->status->code(), Code::kExhausted);
  EXPECT_EQ(Report().bytes.zombies, 6 * kBlock);
  EXPECT_EQ(Report().zombie_arenas, 6u);
  Check();
  EXPECT_EQ(engine->Detach(client, attached.attachment), Status());
  Settle();
  EXPECT_EQ(Load("b"), Status()) << "the zombies are gone";
}

TEST_F(DeviceWeightsTest, TwoLoadsThatDoNotFitTogetherDoNotWaitForEachOther) {
  AddModel("a", 5);
  AddModel("b", 5);
  const auto first = StartLoad("a");
  const auto second = StartLoad("b");
  Settle();
  EXPECT_TRUE(first->status->ok() || second->status->ok());
  EXPECT_TRUE(first->status.has_value() && second->status.has_value());
}

class FloorOfPagesTest : public DeviceWeightsTest {
 protected:
  FloorOfPagesTest() : DeviceWeightsTest({.pages_floor_blocks = 3}) {}
};

TEST_F(FloorOfPagesTest, WeightsTakeNothingOfTheFloorOfPages) {
  AddModel("a", 5);
  AddModel("b", 6);
  EXPECT_EQ(Load("b").code(), Code::kExhausted);
  EXPECT_EQ(Load("a"), Status());
}

// ---- Attachments

TEST_F(DeviceWeightsTest, AttachLoadsWhereItIsAskedTo) {
  AddModel("m", 2);
  EXPECT_EQ(StartAttach("m", false)->status->code(), Code::kNotFound);
  const auto answer = StartAttach("m", true);
  EXPECT_FALSE(answer->status.has_value());
  Settle();
  EXPECT_EQ(answer->status, Status());
  EXPECT_THAT(Blocks(answer->attached.attachment), SizeIs(2));
}

TEST_F(DeviceWeightsTest, BlocksAreNamedByTheirNumbers) {
  AddModel("m", 3);
  ASSERT_EQ(Load("m"), Status());
  const Attached attached = Attach("m");
  const std::vector<ArenaId> all = Blocks(attached.attachment);
  const std::vector<uint32_t> some = {2, 0};
  EXPECT_THAT(*engine->BlocksOf(client, attached.attachment, some), ElementsAre(all[2], all[0]));
  const std::vector<uint32_t> beyond = {3};
  EXPECT_EQ(engine->BlocksOf(client, attached.attachment, beyond).status().code(),
            Code::kInvalidArgument);
  std::optional<Result<Arrival>> arrival;
  engine->AwaitBlocks(client, attached.attachment, some, 0,
                      [&](const Result<Arrival>& result) { arrival = result; });
  ASSERT_TRUE(arrival.has_value() && arrival->has_value());
  EXPECT_FALSE((*arrival)->arriving);
}

TEST_F(DeviceWeightsTest, OnlyWhoHasItAttachedIsGivenItsMemory) {
  AddModel("m", 2);
  ASSERT_EQ(Load("m"), Status());
  const Attached attached = Attach("m");
  const ArenaId block = Blocks(attached.attachment).front();
  const ClientId other = Arrive("t");
  EXPECT_TRUE(engine->GiveDeviceArena(client, block).has_value());
  EXPECT_EQ(engine->GiveDeviceArena(other, block).status().code(), Code::kNotFound);
  EXPECT_EQ(engine->GiveDeviceArena(client, 77).status().code(), Code::kNotFound);
  EXPECT_EQ(engine->BlocksOf(other, attached.attachment, {}).status().code(), Code::kNotFound);
  EXPECT_EQ(engine->Detach(other, attached.attachment).code(), Code::kNotFound);
  EXPECT_EQ(engine->Detach(client, attached.attachment), Status());
  EXPECT_EQ(engine->GiveDeviceArena(client, block).status().code(), Code::kNotFound);
}

TEST_F(DeviceWeightsTest, ATenantAttachesWhatItIsGrantedAndSharesItsMemory) {
  AddModel("m", 2);
  ASSERT_EQ(Load("m"), Status());
  const ClientId other = Arrive("u");
  EXPECT_EQ(StartAttach("m", false, other)->status->code(), Code::kPermissionDenied);
  engine->SetModelAccess("m", "u", true, [](const Status&) {});
  Settle();
  const Attached of_other = Attach("m", other);
  EXPECT_EQ(Blocks(of_other.attachment, other), Blocks(Attach("m").attachment));
  EXPECT_EQ(Report().bytes.weights, 2 * kBlock);
  engine->SetModelAccess("m", "u", false, [](const Status&) {});
  Settle();
  EXPECT_EQ(engine->BlocksOf(other, of_other.attachment, {}).status().code(),
            Code::kPermissionDenied);
}

TEST_F(DeviceWeightsTest, WhoIsRevokedWhileItWaitsIsNotAttached) {
  AddModel("m", 2);
  const ClientId other = Arrive("u");
  engine->SetModelAccess("m", "u", true, [](const Status&) {});
  Settle();
  const auto answer = StartAttach("m", true, other);
  engine->SetModelAccess("m", "u", false, [](const Status&) {});
  Settle();
  EXPECT_EQ(answer->status->code(), Code::kPermissionDenied);
  EXPECT_EQ(engine->UnloadFromDevice(1, "m", "")->held_bytes, 0u);
}

TEST_F(DeviceWeightsTest, AnAttachmentOnADeviceIsNoneInHostMemory) {
  AddModel("m", 2);
  ASSERT_EQ(Load("m"), Status());
  std::optional<Attached> in_host;
  engine->Attach(client, "m", "", false, 0, [&](Result<Attached> result) { in_host = *result; });
  const Attached on_device = Attach("m");
  ASSERT_TRUE(in_host.has_value());
  EXPECT_NE(in_host->attachment, on_device.attachment);
  EXPECT_LT(engine->BlocksOf(client, in_host->attachment, {})->front(), kFirstDeviceBlockId);
  EXPECT_GE(Blocks(on_device.attachment).front(), kFirstDeviceBlockId);
  EXPECT_EQ(engine->Detach(client, in_host->attachment), Status());
  EXPECT_THAT(Blocks(on_device.attachment), SizeIs(2));
}

TEST_F(DeviceWeightsTest, OneClientHasABoundedNumberOfAttachments) {
  AddModel("m", 1);
  ASSERT_EQ(Load("m"), Status());
  for (size_t i = 0; i < Weights::kMaxAttachments; ++i)
    (void)Attach("m");
  EXPECT_EQ(StartAttach("m", false)->status->code(), Code::kExhausted);
  EXPECT_EQ(StartAttach("m", false, Arrive("t"))->status, Status());
}

// ---- Leaving

TEST_F(DeviceWeightsTest, AnUnloadAsksWhoHasItAttachedToLetGo) {
  AddModel("m", 3);
  ASSERT_EQ(Load("m"), Status());
  const ClientId other = Arrive("t");
  const Attached first = Attach("m");
  const Attached second = Attach("m");
  const Attached of_other = Attach("m", other);
  const std::vector<ArenaId> blocks = Map(first.attachment);
  ASSERT_TRUE(engine->GiveDeviceArena(client, blocks[0]).has_value()) << "by the second";
  const Result<Unloaded> unloaded = engine->UnloadFromDevice(1, "m", "");
  ASSERT_TRUE(unloaded.has_value());
  EXPECT_EQ(unloaded->held_bytes, 3 * kBlock);
  (void)engine->Turn();
  (void)engine->Turn();
  ASSERT_THAT(events.unmap_wanted[client], SizeIs(1)) << "once";
  const UnmapRequest& request = events.unmap_wanted[client].front();
  EXPECT_EQ(request.device, 1u);
  EXPECT_THAT(request.attachments, ElementsAre(first.attachment, second.attachment));
  EXPECT_THAT(request.arenas, IsEmpty());
  EXPECT_EQ(request.deadline_ms, 1'000u);
  EXPECT_FALSE(request.lost);
  ASSERT_THAT(events.unmap_wanted[other], SizeIs(1)) << "also who has mapped nothing";
  clock.Advance(400 * kNsPerMs);
  const std::vector<UnmapRequest> again = engine->UnmapWantedOf(client);
  ASSERT_THAT(again, SizeIs(1)) << "for who was away";
  EXPECT_EQ(again.front().attachments, request.attachments);
  EXPECT_THAT(again.front().arenas, IsEmpty());
  EXPECT_EQ(again.front().deadline_ms, 600u);
  EXPECT_EQ(engine->BlocksOf(client, first.attachment, {}).status().code(), Code::kStale);
  EXPECT_FALSE(engine->GiveDeviceArena(client, blocks[1]).has_value());
  EXPECT_TRUE(host.Map(first.manifest) != nullptr) << "until the last has detached";

  EXPECT_EQ(engine->Detach(client, first.attachment), Status());
  Settle();
  EXPECT_EQ(Report().bytes.leaving, 3 * kBlock) << "the second may map it too";
  EXPECT_EQ(engine->Detach(client, second.attachment), Status());
  Settle();
  EXPECT_EQ(Report().bytes.used(), 0u);
  EXPECT_EQ(engine->Detach(other, of_other.attachment), Status());
  EXPECT_EQ(one.arena_count(), 0u);
}

TEST_F(DeviceWeightsTest, AnUnloadFreesAtOnceWhatNobodyMaps) {
  AddModel("m", 3);
  ASSERT_EQ(Load("m"), Status());
  EXPECT_EQ(engine->UnloadFromDevice(1, "m", "")->freed_bytes, 3 * kBlock);
  EXPECT_EQ(engine->UnloadFromDevice(1, "m", "")->freed_bytes, 0u);
  EXPECT_EQ(HostBlocks(), 3u) << "host memory keeps what it has";
  Settle();
  EXPECT_EQ(Report().bytes.used(), 0u);
  EXPECT_EQ(Report().evicted_blocks, 0u);
}

TEST_F(DeviceWeightsTest, WhatIsBeingLoadedIsNotUnloaded) {
  AddModel("m", 3);
  const auto answer = StartLoad("m");
  EXPECT_EQ(engine->UnloadFromDevice(1, "m", "").status().code(), Code::kUnavailable);
  Settle();
  EXPECT_EQ(answer->status, Status());
}

TEST_F(DeviceWeightsTest, WhatLeftIsLoadedAnewBesideWhatIsStillMapped) {
  AddModel("m", 3);
  ASSERT_EQ(Load("m"), Status());
  const Attached old = Attach("m");
  const std::vector<ArenaId> old_blocks = Map(old.attachment);
  ASSERT_TRUE(engine->UnloadFromDevice(1, "m", "").has_value());
  ASSERT_EQ(Load("m"), Status());
  EXPECT_NE(Blocks(Attach("m").attachment), old_blocks);
  EXPECT_EQ(Report().bytes.weights, 3 * kBlock);
  EXPECT_EQ(Report().bytes.leaving, 3 * kBlock);
  EXPECT_EQ(engine->Detach(client, old.attachment), Status());
}

TEST_F(DeviceWeightsTest, TheDeathOfAClientFreesWhatItMapped) {
  AddModel("m", 3);
  ASSERT_EQ(Load("m"), Status());
  const ClientId other = Arrive("t");
  Map(Attach("m", other).attachment, other);
  ASSERT_TRUE(engine->UnloadFromDevice(1, "m", "").has_value());
  Pass(1'100);
  ASSERT_EQ(Report().bytes.zombies, 3 * kBlock);
  engine->ClientGone(other);
  Settle();
  EXPECT_EQ(Report().bytes.used(), 0u);
  EXPECT_EQ(Report().zombie_arenas, 0u);
}

TEST_F(DeviceWeightsTest, ARemovedModelLeavesWithItsLastAttachment) {
  AddModel("m", 2);
  ASSERT_EQ(Load("m"), Status());
  const Attached attached = Attach("m");
  Map(attached.attachment);
  engine->RemoveModel("m", "", [](const Status&) {});
  Settle();
  EXPECT_EQ(Report().bytes.weights, 2 * kBlock);
  EXPECT_THAT(events.unmap_wanted, IsEmpty()) << "who has it may finish";
  EXPECT_EQ(engine->Detach(client, attached.attachment), Status());
  Settle();
  EXPECT_EQ(Report().bytes.used(), 0u);
}

// ---- Loss and faults

TEST_F(DeviceWeightsTest, ALostDeviceIsEmptyAndWhatIsBelowStays) {
  AddModel("m", 3);
  ASSERT_EQ(Load("m"), Status());
  ASSERT_EQ(Load("m", 2), Status());
  const Attached attached = Attach("m");
  Map(attached.attachment);
  one.LoseDevice([this](ArenaId arena) { engine->DeviceArenaLost(arena); });
  EXPECT_EQ(engine->BlocksOf(client, attached.attachment, {}).status().code(), Code::kStale);
  Settle();
  ASSERT_THAT(events.unmap_wanted[client], SizeIs(1));
  EXPECT_TRUE(events.unmap_wanted[client].front().lost);
  EXPECT_THAT(events.unmap_wanted[client].front().attachments, ElementsAre(attached.attachment));
  EXPECT_EQ(Report().bytes.used(), 0u);
  EXPECT_EQ(Report(2).bytes.weights, 3 * kBlock);
  EXPECT_EQ(HostBlocks(), 3u);
  ASSERT_THAT(engine->UnmapWantedOf(client), SizeIs(1));
  EXPECT_TRUE(engine->UnmapWantedOf(client).front().lost);
  Check();
  EXPECT_EQ(engine->Detach(client, attached.attachment), Status());
  EXPECT_THAT(engine->UnmapWantedOf(client), IsEmpty());
  EXPECT_EQ(Load("m"), Status()) << "from host memory again";
}

TEST_F(DeviceWeightsTest, ADeviceLostAtAnyStepOfALoadFailsItAndGivesAllBack) {
  AddModel("m", 3);
  bool finished = false;
  for (size_t steps = 0; !finished && steps < 200; ++steps) {
    const auto answer = StartLoad("m");
    (void)engine->Turn();
    (void)sources.RunPending();
    for (size_t step = 0; step < steps && !answer->status; ++step) {
      (void)engine->Turn();
      (void)one.RunPending(1);
      (void)sources.RunPending();
    }
    finished = answer->status.has_value();
    one.LoseDevice([this](ArenaId arena) { engine->DeviceArenaLost(arena); });
    Settle();
    ASSERT_TRUE(answer->status.has_value()) << steps;
    // What was lost before the load knew of any of its memory it need not notice.
    const Code code = answer->status->code();
    EXPECT_TRUE(code == Code::kOk || code == Code::kStale) << steps;
    Check();
    ASSERT_TRUE(engine->UnloadFromDevice(1, "m", "").has_value());
    Settle();
    ASSERT_EQ(Report().bytes.used(), 0u) << steps;
    ASSERT_EQ(one.arena_count(), 0u) << steps;
    (void)engine->Unload("m", "");
    Settle();
  }
  EXPECT_TRUE(finished);
}

TEST_F(DeviceWeightsTest, AFaultOfTheTierAtAnyCallFailsTheLoadAndGivesAllBack) {
  AddModel("m", 6);
  struct Kind {
    FaultPlan* plan;
    Code code;
  };
  for (const Kind& kind :
       {Kind{&one.create_faults, Code::kExhausted}, Kind{&one.host_faults, Code::kUnavailable},
        Kind{&one.copy_faults, Code::kDeadlineExceeded}}) {
    for (uint64_t skip = 0; skip < 6; ++skip) {
      kind.plan->FailAfter(skip, {kind.code, "planned"});
      const auto answer = StartLoad("m");
      Settle();
      ASSERT_TRUE(answer->status.has_value());
      EXPECT_EQ(answer->status->code(), kind.code) << skip;
      EXPECT_EQ(Report().bytes.used(), 0u);
      EXPECT_EQ(one.arena_count(), 0u);
      EXPECT_EQ(StartAttach("m", false)->status->code(), Code::kNotFound);
      Check();
    }
    kind.plan->Clear();
  }
  EXPECT_EQ(Load("m"), Status());
  EXPECT_EQ(BytesIn(one, Blocks(Attach("m").attachment)), BytesOf("m", 6 * kBlock));
}

TEST_F(DeviceWeightsTest, AHostArenaThatTheTierKeepsIsTakenFromItLater) {
  AddModel("m", 6);
  for (uint64_t skip = 0; skip < 6; ++skip)
    one.release_faults.FailAfter(skip, {Code::kUnavailable, "planned"});
  EXPECT_EQ(Load("m"), Status());
  EXPECT_EQ(one.arena_count(), 6u);
}

TEST_F(DeviceWeightsTest, ALoadThatItsProgressEndsTakesItsHostArenasBack) {
  AddModel("m", 1);
  for (uint64_t skip = 0; skip < 2; ++skip)
    one.release_faults.FailAfter(skip, {Code::kUnavailable, "planned"});
  std::optional<Status> status;
  bool removed = false;
  const auto told = [&](uint64_t done, uint64_t) {
    if (done > 0 && !std::exchange(removed, true)) engine->RemoveModel("m", "1", [](Status) {});
  };
  engine->LoadToDevice(client, 1, "m", "", told, [&](const Result<ModelLoaded>& loaded) {
    EXPECT_FALSE(status.has_value());
    status = loaded.status();
  });
  Settle();
  EXPECT_TRUE(removed);
  EXPECT_EQ(status->code(), Code::kNotFound);
  EXPECT_EQ(one.arena_count(), 0u);
}

TEST_F(DeviceWeightsTest, WhoAsksWhileAFailedLoadIsGivenBackGetsTheNext) {
  AddModel("m", 3);
  one.copy_faults.FailAfter(0, {Code::kUnavailable, "planned"});
  std::shared_ptr<Answer> again;
  std::optional<Status> failed;
  engine->LoadToDevice(client, 1, "m", "", {}, [&](const Result<ModelLoaded>& loaded) {
    failed = loaded.status();
    again = StartLoad("m");
  });
  Settle();
  EXPECT_EQ(failed->code(), Code::kUnavailable);
  ASSERT_NE(again, nullptr);
  EXPECT_EQ(again->status, Status());
}

TEST_F(DeviceWeightsTest, AFaultOfASourceFailsTheLoadWithItsError) {
  AddModel("m", 3);
  for (uint64_t skip = 0; skip < 3; ++skip) {
    sources.read_faults.FailAfter(skip, {Code::kUnavailable, "planned"});
    EXPECT_EQ(Load("m").code(), Code::kUnavailable) << skip;
    EXPECT_EQ(Report().bytes.used(), 0u);
    EXPECT_EQ(one.arena_count(), 0u);
  }
  EXPECT_EQ(Load("m"), Status());
}

}  // namespace
}  // namespace terrace
