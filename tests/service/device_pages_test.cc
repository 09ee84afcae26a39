// Pages in memory of devices, over the wire.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <future>

#include "tests/service/service_world.h"
#include "tiers/sim/sim_device_tier.h"

namespace terrace {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::SizeIs;

constexpr uint32_t kPage = 16384;
constexpr uint64_t kSlab = 4 * kPage;

class DevicePagesOverTheWire : public testing::Test {
 protected:
  explicit DevicePagesOverTheWire(uint64_t budget = 4 * kSlab)
      : tier_(4 * kSlab, kSlab, [this](ArenaId arena) { return world_.HostBytes(arena); }),
        world_(Options(), 65536, true, Devices(budget)) {
    tier_.slabs = false;  // What has no descriptor is told by its handle.
  }
  static EngineOptions Options() {
    EngineOptions options;
    options.host_capacity_bytes = 64u << 20;
    return options;
  }
  std::vector<DevicePart> Devices(uint64_t budget) {
    DeviceOptions options;
    options.capacity_bytes = budget;
    options.slab_bytes = kSlab;
    std::vector<DevicePart> devices;
    devices.push_back({.options = options, .tier = &tier_, .policy = MakeLru()});
    return devices;
  }
  Result<wire::HelloReply> Hello(WireClient& client, uint64_t capabilities,
                                 const wire::HelloReply& resume = {}) {
    wire::Hello hello;
    hello.set_version_min(wire::kProtocolVersion);
    hello.set_version_max(wire::kProtocolVersion);
    hello.set_name("engine");
    hello.set_writer(true);
    hello.set_capabilities(capabilities);
    hello.set_resume_client(resume.client());
    hello.set_resume_token(resume.token());
    return client.Call<wire::HelloReply>(wire::Type::kHello, hello);
  }
  wire::Grant GrantMessage(WireClient& client, uint32_t device, uint32_t page = kPage) {
    wire::OpenSpace open;
    wire::Layout* layout = open.mutable_layout();
    layout->set_dtype("i8");
    layout->set_layers(1);
    layout->set_kv_heads(1);
    layout->set_head_size(page / 16);
    layout->set_page_tokens(16);
    layout->set_planes(1);
    layout->set_order("layer,plane,token,head,dim");
    open.set_salt(std::to_string(page));  // A space has pages of one size.
    const auto space = client.Call<wire::OpenSpaceReply>(wire::Type::kOpenSpace, open);
    EXPECT_EQ(space.status(), Status());
    wire::Grant grant;
    grant.set_slot(space->slot());
    grant.set_epoch(space->epoch());
    grant.set_keys(std::string(32, 'a') + std::string(32, 'b'));
    grant.set_device(device);
    return grant;
  }
  // The device works, and time passes by `step` at a time, until there is an answer.
  Result<wire::GrantReply> Grant(WireClient& client, const wire::Grant& grant, MonotonicNs step) {
    auto answer = std::async(std::launch::async, [&] {
      return client.Call<wire::GrantReply>(wire::Type::kGrant, grant);
    });
    while (answer.wait_for(std::chrono::milliseconds(1)) != std::future_status::ready) {
      world_.Advance(step);
      world_.OnLoop([&] { tier_.RunPending(); });
    }
    return answer.get();
  }

  // Grants and commits a page of the device.
  wire::GrantReply Publish(WireClient& client) {
    wire::Grant grant = GrantMessage(client, 1);
    grant.set_keys(std::string(32, 'a'));
    const auto granted = Grant(client, grant, 0);
    EXPECT_EQ(granted.status(), Status());
    if (!granted) return {};
    wire::Commit commit;
    *commit.mutable_grants() = granted->grants();
    EXPECT_EQ(client.Call<wire::CommitReply>(wire::Type::kCommit, commit).status(), Status());
    return *granted;
  }
  // Descriptions of arenas.
  Result<wire::ArenasReply> Describe(WireClient& client, ArenaId arena) {
    wire::Arenas ask;
    ask.add_ids(arena);
    ask.set_writable(true);
    return client.Call<wire::ArenasReply>(wire::Type::kArenas, ask);
  }

  SimDeviceTier tier_;
  ServiceWorld world_;
};

TEST_F(DevicePagesOverTheWire, AGrantIsAnsweredWhenThereIsMemoryWithWhatItIsMappedBy) {
  WireClient client = world_.Connect();
  ASSERT_EQ(Hello(client, wire::kDeviceCapability).status(), Status());
  const auto granted = Grant(client, GrantMessage(client, 1), 0);
  ASSERT_EQ(granted.status(), Status());
  EXPECT_THAT(granted->codes(), ElementsAre(0u, 0u));
  ASSERT_THAT(granted->arenas(), SizeIs(1));
  const wire::Arena& arena = granted->arenas(0);
  EXPECT_EQ(arena.device(), 1u);
  EXPECT_EQ(arena.tier(), static_cast<uint32_t>(shm::Tier::kDevice));
  EXPECT_EQ(arena.bytes(), kSlab);
  EXPECT_THAT(arena.handle(), SizeIs(kDeviceHandleBytes));
  EXPECT_EQ(arena.id(), shm::ArenaOf(granted->handles(0)));

  wire::Arenas ask;
  ask.add_ids(arena.id());
  ask.set_writable(true);
  const auto again = client.Call<wire::ArenasReply>(wire::Type::kArenas, ask);
  ASSERT_EQ(again.status(), Status());
  ASSERT_THAT(again->arenas(), SizeIs(1));
  EXPECT_EQ(again->arenas(0).handle(), arena.handle());
  EXPECT_TRUE(again->arenas(0).writable());

  wire::Commit commit;
  *commit.mutable_grants() = granted->grants();
  const auto committed = client.Call<wire::CommitReply>(wire::Type::kCommit, commit);
  ASSERT_EQ(committed.status(), Status());
  EXPECT_THAT(committed->codes(), ElementsAre(0u, 0u));
}

TEST_F(DevicePagesOverTheWire, WhoDoesNotKnowOfDevicesIsRefusedAndGivenNothing) {
  WireClient knows = world_.Connect();
  ASSERT_EQ(Hello(knows, wire::kDeviceCapability).status(), Status());
  const auto granted = Grant(knows, GrantMessage(knows, 1), 0);
  ASSERT_EQ(granted.status(), Status());
  WireClient client = world_.Connect();
  ASSERT_EQ(Hello(client, 0).status(), Status());
  const wire::Grant grant = GrantMessage(client, 1);
  const Status refused = client.Call<wire::GrantReply>(wire::Type::kGrant, grant).status();
  EXPECT_EQ(refused.code(), Code::kMismatch);
  EXPECT_THAT(refused.message(), HasSubstr("device"));
  wire::Arenas ask;
  ask.add_ids(granted->arenas(0).id());
  const auto arenas = client.Call<wire::ArenasReply>(wire::Type::kArenas, ask);
  ASSERT_EQ(arenas.status(), Status());
  EXPECT_THAT(arenas->arenas(), SizeIs(0));
}

TEST_F(DevicePagesOverTheWire, AGrantThatGetsNoMemoryInTimeIsExhausted) {
  world_.OnLoop([&] { tier_.serving = false; });
  WireClient client = world_.Connect();
  ASSERT_EQ(Hello(client, wire::kDeviceCapability).status(), Status());
  const auto granted = Grant(client, GrantMessage(client, 1), kNsPerSecond);
  ASSERT_EQ(granted.status(), Status());
  EXPECT_THAT(granted->codes(), testing::Each(static_cast<uint32_t>(Code::kExhausted)));
  world_.OnLoop([&] {
    tier_.serving = true;
    tier_.RunPending();
  });
}

TEST_F(DevicePagesOverTheWire, WhatATenantHasOnADeviceIsReported) {
  WireClient client = world_.Connect();
  const Result<wire::HelloReply> hello = Hello(client, wire::kDeviceCapability);
  ASSERT_EQ(hello.status(), Status());
  const wire::GrantReply granted = Publish(client);
  ASSERT_THAT(granted.arenas(), SizeIs(1));
  std::map<std::string, uint64_t> bytes;
  world_.OnLoop([&] { bytes = world_.engine().Devices().at(0).tenant_bytes; });
  EXPECT_THAT(bytes, ElementsAre(testing::Pair(hello->tenant(), kSlab)));
}

TEST_F(DevicePagesOverTheWire, SlabsThatAClientLostWhileItWasAwayAreToldUntilItLetsGo) {
  WireClient client = world_.Connect();
  const Result<wire::HelloReply> hello = Hello(client, wire::kDeviceCapability);
  ASSERT_EQ(hello.status(), Status());
  const wire::GrantReply granted = Publish(client);
  ASSERT_THAT(granted.arenas(), SizeIs(1));
  const ArenaId arena = granted.arenas(0).id();
  client.Close();
  world_.OnLoop([] {});
  world_.OnLoop([&] {
    tier_.LoseDevice([&](ArenaId lost) { world_.engine().DeviceArenaLost(lost); });
    (void)world_.engine().Turn();
  });
  const auto told = [&] {
    client = world_.Connect();
    EXPECT_EQ(Hello(client, wire::kDeviceCapability, *hello).status(), Status());
    EXPECT_TRUE(client.Ask(wire::Type::kPing, wire::Ping()).has_value());
    std::vector<wire::UnmapWantedEvent> events;
    for (ReceivedFrame& event : client.events) {
      if (event.header.type != wire::Type::kUnmapWantedEvent) continue;
      const auto parsed = WireClient::Parse<wire::UnmapWantedEvent>(std::move(event));
      if (parsed) events.push_back(*parsed);
    }
    client.events.clear();
    return events;
  };
  for (int times = 0; times < 2; ++times) {
    const std::vector<wire::UnmapWantedEvent> events = told();
    ASSERT_THAT(events, SizeIs(1)) << "the event before may have been lost with its connection";
    EXPECT_TRUE(events[0].lost());
    EXPECT_EQ(events[0].device(), 1u);
    EXPECT_THAT(events[0].arenas(), ElementsAre(arena));
  }
  wire::LetGo let_go;
  let_go.add_arenas(arena);
  ASSERT_EQ(client.Call<wire::LetGoReply>(wire::Type::kLetGo, let_go).status(), Status());
  EXPECT_THAT(told(), SizeIs(0));
}

// A device with room for one slab, which pages of another size get when who maps it lets go.
class OneSlabOverTheWire : public DevicePagesOverTheWire {
 protected:
  OneSlabOverTheWire() : DevicePagesOverTheWire(kSlab) {}

  struct Answer {
    Result<wire::GrantReply> reply = Status(Code::kUnavailable, "no reply");
    std::vector<ArenaId> asked_back;
  };
  // The client lets go of what it is asked for, once, while it waits for the grant.
  Answer GrantLarge(WireClient& client) {
    constexpr uint64_t kRequest = 1'000'000;
    const wire::Grant grant = GrantMessage(client, 1, 2 * kPage);
    auto answer = std::async(std::launch::async, [&] {
      Answer got;
      if (!client.Send(wire::Type::kGrant, kRequest, grant)) return got;
      while (std::optional<ReceivedFrame> frame = client.Receive()) {
        if (frame->header.request == kRequest) {
          got.reply = WireClient::Parse<wire::GrantReply>(*std::move(frame));
          break;
        }
        if (frame->header.type != wire::Type::kUnmapWantedEvent) continue;
        const auto event = WireClient::Parse<wire::UnmapWantedEvent>(*std::move(frame));
        if (!event) break;
        wire::LetGo let_go;
        *let_go.mutable_arenas() = event->arenas();
        got.asked_back.assign(event->arenas().begin(), event->arenas().end());
        client.Send(wire::Type::kLetGo, kRequest + 1, let_go);
      }
      return got;
    });
    while (answer.wait_for(std::chrono::milliseconds(1)) != std::future_status::ready)
      world_.OnLoop([&] { tier_.RunPending(); });
    return answer.get();
  }
};

TEST_F(OneSlabOverTheWire, AGrantGetsWhatItsOwnClientLetsGoOfMeanwhile) {
  WireClient client = world_.Connect();
  ASSERT_EQ(Hello(client, wire::kDeviceCapability).status(), Status());
  const wire::GrantReply small = Publish(client);
  ASSERT_THAT(small.arenas(), SizeIs(1));
  const Answer large = GrantLarge(client);
  EXPECT_THAT(large.asked_back, ElementsAre(small.arenas(0).id()));
  ASSERT_EQ(large.reply.status(), Status());
  EXPECT_THAT(large.reply->codes(), ElementsAre(0u, 0u));
}

TEST_F(OneSlabOverTheWire, WhatWasDescribedOftenIsLetGoOfOnceAfterResuming) {
  WireClient client = world_.Connect();
  const Result<wire::HelloReply> hello = Hello(client, wire::kDeviceCapability);
  ASSERT_EQ(hello.status(), Status());
  const wire::GrantReply small = Publish(client);
  ASSERT_THAT(small.arenas(), SizeIs(1));
  ASSERT_EQ(Describe(client, small.arenas(0).id()).status(), Status());
  client = world_.Connect();
  ASSERT_EQ(Hello(client, wire::kDeviceCapability, *hello).status(), Status());
  const Answer large = GrantLarge(client);
  EXPECT_THAT(large.asked_back, ElementsAre(small.arenas(0).id()));
  ASSERT_EQ(large.reply.status(), Status());
  EXPECT_THAT(large.reply->codes(), ElementsAre(0u, 0u));
}

TEST_F(OneSlabOverTheWire, WhatCouldNotBeDescribedDoesNotCountAsMapped) {
  tier_.slabs = true;  // Their descriptors cannot be duplicated: there are none.
  WireClient client = world_.Connect();
  ASSERT_EQ(Hello(client, wire::kDeviceCapability).status(), Status());
  const wire::GrantReply small = Publish(client);
  EXPECT_THAT(small.arenas(), SizeIs(0));
  const ArenaId arena = shm::ArenaOf(small.handles(0));
  EXPECT_FALSE(Describe(client, arena).has_value());
  const Answer large = GrantLarge(client);
  EXPECT_THAT(large.asked_back, SizeIs(0)) << "it has nothing to let go of";
  ASSERT_EQ(large.reply.status(), Status());
  EXPECT_THAT(large.reply->codes(), ElementsAre(0u, 0u));
}

}  // namespace
}  // namespace terrace
