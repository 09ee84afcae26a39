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
  DevicePagesOverTheWire()
      : tier_(4 * kSlab, kSlab, [](ArenaId) { return std::span<uint8_t>(); }),
        world_(Options(), 65536, true, Devices()) {
    tier_.slabs = false;  // What has no descriptor is told by its handle.
  }
  static EngineOptions Options() {
    EngineOptions options;
    options.host_capacity_bytes = 64u << 20;
    return options;
  }
  std::vector<DevicePart> Devices() {
    DeviceOptions options;
    options.capacity_bytes = 4 * kSlab;
    options.slab_bytes = kSlab;
    std::vector<DevicePart> devices;
    devices.push_back({.options = options, .tier = &tier_, .policy = MakeLru()});
    return devices;
  }
  Result<wire::HelloReply> Hello(WireClient& client, uint64_t capabilities) {
    wire::Hello hello;
    hello.set_version_min(wire::kProtocolVersion);
    hello.set_version_max(wire::kProtocolVersion);
    hello.set_name("engine");
    hello.set_writer(true);
    hello.set_capabilities(capabilities);
    return client.Call<wire::HelloReply>(wire::Type::kHello, hello);
  }
  wire::Grant GrantMessage(WireClient& client, uint32_t device) {
    wire::OpenSpace open;
    wire::Layout* layout = open.mutable_layout();
    layout->set_dtype("i8");
    layout->set_layers(1);
    layout->set_kv_heads(1);
    layout->set_head_size(kPage / 16);
    layout->set_page_tokens(16);
    layout->set_planes(1);
    layout->set_order("layer,plane,token,head,dim");
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

}  // namespace
}  // namespace terrace
