// The verbs on memory of devices, over a simulated device.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/service/service_world.h"

namespace terrace {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::SizeIs;

class DeviceVerbsTest : public testing::Test {
 protected:
  explicit DeviceVerbsTest(bool slabs = true, uint64_t descriptors = 65536)
      : world(Options(), descriptors, slabs), client(world.Connect()) {
    const Result<wire::HelloReply> said = Hello(client, wire::kCapabilities);
    EXPECT_EQ(said.status(), Status());
    if (said) hello = *said;
    wire::ModelAdd add;
    add.set_name("m");
    add.set_version("1");
    add.add_files("/large");
    EXPECT_EQ(Late<wire::ModelAddReply>(client, wire::Type::kModelAdd, add).status(), Status());
  }
  // 2 MiB are 8 blocks.
  static EngineOptions Options() {
    EngineOptions options;
    options.host_capacity_bytes = 64u << 20;
    options.slab_bytes = 4096;
    options.block_bytes = 256u << 10;
    options.huge_page_bytes = 4096;
    return options;
  }
  static Result<wire::HelloReply> Hello(WireClient& of, uint64_t capabilities,
                                        const wire::HelloReply& resume = {}) {
    wire::Hello said;
    said.set_version_min(wire::kProtocolVersion);
    said.set_version_max(wire::kProtocolVersion);
    said.set_writer(true);
    said.set_capabilities(capabilities);
    said.set_resume_client(resume.client());
    said.set_resume_token(resume.token());
    return of.Call<wire::HelloReply>(wire::Type::kHello, said);
  }
  // What is answered when the tiers have done their part.
  template <typename Reply>
  Result<Reply> Late(WireClient& of, wire::Type type, const google::protobuf::MessageLite& message,
                     std::vector<UniqueFd>* fds = nullptr) {
    constexpr uint64_t kRequest = 1'000'000;
    if (!of.Send(type, kRequest, message)) return Status(Code::kUnavailable, "not sent");
    // It is handled before a ping that follows it.
    EXPECT_EQ(of.Ask(wire::Type::kPing, wire::Ping()).has_value(), true);
    world.RunFiles();
    for (;;) {
      for (auto event = of.events.begin(); event != of.events.end(); ++event) {
        if (event->header.request != kRequest || event->header.type == wire::Type::kProgressEvent) {
          continue;
        }
        ReceivedFrame frame = std::move(*event);
        of.events.erase(event);
        return WireClient::Parse<Reply>(std::move(frame), fds);
      }
      std::optional<ReceivedFrame> frame = of.Receive();
      if (!frame) return Status(Code::kUnavailable, "no reply");
      of.events.push_back(*std::move(frame));
    }
  }
  Result<wire::LoadReply> Load(uint32_t device = 1) {
    wire::Load load;
    load.set_name("m");
    load.set_device(device);
    return Late<wire::LoadReply>(client, wire::Type::kLoad, load);
  }
  Result<wire::AttachReply> Attach(WireClient& of, std::vector<UniqueFd>* fds = nullptr) {
    wire::Attach attach;
    attach.set_name("m");
    attach.set_device(1);
    return of.Call<wire::AttachReply>(wire::Type::kAttach, attach, fds);
  }
  Result<wire::AttachBlocksReply> Blocks(uint64_t attachment,
                                         std::vector<UniqueFd>* fds = nullptr) {
    wire::AttachBlocks blocks;
    blocks.set_attachment(attachment);
    return client.Call<wire::AttachBlocksReply>(wire::Type::kAttachBlocks, blocks, fds);
  }
  Result<wire::UnloadReply> Unload() {
    wire::Unload unload;
    unload.set_name("m");
    unload.set_device(1);
    return client.Call<wire::UnloadReply>(wire::Type::kUnload, unload);
  }
  Status Detach(uint64_t attachment) {
    wire::Detach detach;
    detach.set_attachment(attachment);
    return client.Call<wire::DetachReply>(wire::Type::kDetach, detach).status();
  }
  // The events of that type that have come, others left.
  std::vector<wire::UnmapWantedEvent> UnmapWanted(WireClient& of) {
    world.RunFiles();
    EXPECT_TRUE(of.Ask(wire::Type::kPing, wire::Ping()).has_value());
    std::vector<wire::UnmapWantedEvent> wanted;
    for (ReceivedFrame& event : of.events) {
      if (event.header.type != wire::Type::kUnmapWantedEvent) continue;
      const auto parsed = WireClient::Parse<wire::UnmapWantedEvent>(std::move(event));
      if (parsed) wanted.push_back(*parsed);
    }
    of.events.clear();
    return wanted;
  }

  ServiceWorld world;
  WireClient client;
  wire::HelloReply hello;
};

TEST_F(DeviceVerbsTest, DevicesAreNamed) {
  const auto devices = client.Call<wire::DevicesReply>(wire::Type::kDevices, wire::Devices());
  ASSERT_EQ(devices.status(), Status());
  ASSERT_EQ(devices->devices_size(), 1);
  const wire::Device& device = devices->devices(0);
  EXPECT_EQ(device.number(), 1u);
  EXPECT_THAT(device.uuid(), HasSubstr("GPU-"));
  EXPECT_EQ(device.kind(), "host");
  EXPECT_TRUE(device.slabs());
  EXPECT_TRUE(device.serving());
  EXPECT_EQ(device.granularity(), 4096u);
  EXPECT_EQ(device.capacity_bytes(), 64u << 20);
}

TEST_F(DeviceVerbsTest, AModelIsLoadedAttachedMappedUnloadedAndDetached) {
  const Result<wire::LoadReply> loaded = Load();
  ASSERT_EQ(loaded.status(), Status());
  EXPECT_EQ(loaded->version(), "1");
  std::vector<UniqueFd> manifest;
  const Result<wire::AttachReply> attached = Attach(client, &manifest);
  ASSERT_EQ(attached.status(), Status());
  EXPECT_EQ(attached->device(), 1u);
  EXPECT_EQ(attached->digest(), loaded->digest());
  EXPECT_THAT(manifest, SizeIs(1));
  std::vector<UniqueFd> slabs;
  const Result<wire::AttachBlocksReply> blocks = Blocks(attached->attachment(), &slabs);
  ASSERT_EQ(blocks.status(), Status());
  EXPECT_THAT(blocks->blocks(), ElementsAre(0, 1, 2, 3, 4, 5, 6, 7));
  EXPECT_TRUE(blocks->last());
  EXPECT_THAT(slabs, SizeIs(8));
  EXPECT_THAT(blocks->handles(), IsEmpty());

  const Result<wire::UnloadReply> unloaded = Unload();
  ASSERT_EQ(unloaded.status(), Status());
  EXPECT_EQ(unloaded->held_bytes(), 2u << 20) << "what was handed out counts as mapped";
  const std::vector<wire::UnmapWantedEvent> wanted = UnmapWanted(client);
  ASSERT_THAT(wanted, SizeIs(1));
  EXPECT_EQ(wanted[0].device(), 1u);
  EXPECT_THAT(wanted[0].attachments(), ElementsAre(attached->attachment()));
  EXPECT_GT(wanted[0].deadline_ms(), 0u);
  EXPECT_FALSE(wanted[0].lost());
  EXPECT_EQ(Blocks(attached->attachment()).status().code(), Code::kStale);
  EXPECT_EQ(Detach(attached->attachment()), Status());
  EXPECT_EQ(Attach(client).status().code(), Code::kNotFound);
}

TEST_F(DeviceVerbsTest, WhoIsAwayIsAskedAgainWhenItComesBack) {
  ASSERT_EQ(Load().status(), Status());
  const Result<wire::AttachReply> attached = Attach(client);
  ASSERT_EQ(attached.status(), Status());
  ASSERT_EQ(Blocks(attached->attachment()).status(), Status());
  ASSERT_EQ(Unload().status(), Status());
  client.Close();
  world.RunFiles();
  client = world.Connect();
  const Result<wire::HelloReply> back = Hello(client, wire::kCapabilities, hello);
  ASSERT_EQ(back.status(), Status());
  EXPECT_TRUE(back->resumed());
  std::vector<wire::UnmapWantedEvent> wanted = UnmapWanted(client);
  ASSERT_THAT(wanted, SizeIs(1));
  EXPECT_THAT(wanted[0].attachments(), ElementsAre(attached->attachment()));
  EXPECT_EQ(Detach(attached->attachment()), Status());
}

TEST_F(DeviceVerbsTest, WhatWasLostIsToldAsLost) {
  ASSERT_EQ(Load().status(), Status());
  const Result<wire::AttachReply> attached = Attach(client);
  ASSERT_EQ(Blocks(attached->attachment()).status(), Status());
  world.LoseDevice();
  const std::vector<wire::UnmapWantedEvent> wanted = UnmapWanted(client);
  ASSERT_THAT(wanted, SizeIs(1));
  EXPECT_TRUE(wanted[0].lost());
  EXPECT_THAT(wanted[0].attachments(), ElementsAre(attached->attachment()));
  EXPECT_EQ(Blocks(attached->attachment()).status().code(), Code::kStale);
  EXPECT_EQ(Detach(attached->attachment()), Status());
}

TEST_F(DeviceVerbsTest, FieldsOutOfTheirBoundsAreNamed) {
  const Status no_device = Load(2).status();
  EXPECT_EQ(no_device.code(), Code::kInvalidArgument);
  EXPECT_THAT(no_device.message(), HasSubstr("device 2"));
  wire::Attach attach;
  attach.set_name("m");
  attach.set_device(1);
  attach.set_load(true);
  attach.set_early(true);
  const Status early = client.Call<wire::AttachReply>(wire::Type::kAttach, attach).status();
  EXPECT_EQ(early.code(), Code::kInvalidArgument);
  EXPECT_THAT(early.message(), HasSubstr("early"));
  wire::LetGo let_go;
  for (uint32_t arena = 0; arena <= kMaxLetGo; ++arena)
    let_go.add_arenas(arena);
  EXPECT_THAT(client.Call<wire::LetGoReply>(wire::Type::kLetGo, let_go).status().message(),
              HasSubstr("arenas"));
  let_go.mutable_arenas()->Truncate(3);
  EXPECT_EQ(client.Call<wire::LetGoReply>(wire::Type::kLetGo, let_go).status(), Status());
}

TEST_F(DeviceVerbsTest, WhoDidNotAnnounceTheCapabilityNamesNoDevice) {
  WireClient old = world.Connect();
  ASSERT_EQ(Hello(old, 0).status(), Status());
  EXPECT_EQ(Attach(old).status().code(), Code::kMismatch);
  wire::Load load;
  load.set_name("m");
  load.set_device(1);
  EXPECT_EQ(old.Call<wire::LoadReply>(wire::Type::kLoad, load).status().code(), Code::kMismatch);
  wire::Unload unload;
  unload.set_name("m");
  unload.set_device(1);
  EXPECT_EQ(old.Call<wire::UnloadReply>(wire::Type::kUnload, unload).status().code(),
            Code::kMismatch);
}

class DeviceHandlesTest : public DeviceVerbsTest {
 protected:
  DeviceHandlesTest() : DeviceVerbsTest(false) {}
};

TEST_F(DeviceHandlesTest, WhereADeviceHasNoSlabsItsBlocksComeByHandles) {
  ASSERT_EQ(Load().status(), Status());
  const Result<wire::AttachReply> attached = Attach(client);
  std::vector<UniqueFd> fds;
  const Result<wire::AttachBlocksReply> blocks = Blocks(attached->attachment(), &fds);
  ASSERT_EQ(blocks.status(), Status());
  EXPECT_THAT(fds, IsEmpty());
  ASSERT_EQ(blocks->handles_size(), 8);
  EXPECT_EQ(blocks->blocks_size(), 8);
  EXPECT_EQ(blocks->handles(0).size(), kDeviceHandleBytes);
  EXPECT_NE(blocks->handles(0), blocks->handles(1));
  EXPECT_EQ(Unload()->held_bytes(), 2u << 20);
}

}  // namespace
}  // namespace terrace
