// The operator's verbs on devices, from a daemon that has some, or is too old to.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <kvclient/admin.h>

#include <string>
#include <vector>

#include "base/mutex.h"
#include "libclient/admin_messages.h"
#include "tests/libclient/scripted_peer.h"

namespace terrace::client {
namespace {

using testing::HasSubstr;
using wire::Type;
using Act = ScriptedPeer::Act;

class DeviceAdminTest : public testing::Test {
 protected:
  void Open(uint64_t capabilities, std::vector<std::string> uuids) {
    peer_.SetCapabilities(capabilities);
    peer_.SetScript([this, uuids](ScriptedPeer& peer, const Frame& frame) {
      return Answer(peer, frame, uuids);
    });
    kvc_client_options options{};
    options.struct_size = sizeof options;
    options.socket_path = peer_.socket().c_str();
    options.timeout_ms = 60'000;
    ASSERT_EQ(kvc_connect(&options, &client_, &error_), KVC_OK) << error_.message;
  }
  void TearDown() override { kvc_close(client_); }

  Act Answer(ScriptedPeer& peer, const Frame& frame, const std::vector<std::string>& uuids) {
    if (frame.header.type == Type::kDevices) {
      wire::DevicesReply reply;
      for (const std::string& uuid : uuids) {
        wire::Device& device = *reply.add_devices();
        device.set_number(static_cast<uint32_t>(reply.devices_size()));
        device.set_uuid(uuid);
      }
      peer.Send(Type::kDevicesReply, frame.header.request, reply);
      return Act::kHandled;
    }
    if (frame.header.type == Type::kLoad) {
      wire::Load load;
      load.ParseFromString(frame.body);
      Note(load.device());
      wire::LoadReply reply;
      reply.set_version("v");
      reply.set_bytes(7);
      reply.set_device(load.device() == messages::kAnyDevice ? 2 : load.device());
      peer.Send(Type::kLoadReply, frame.header.request, reply);
      return Act::kHandled;
    }
    if (frame.header.type == Type::kUnload) {
      wire::Unload unload;
      unload.ParseFromString(frame.body);
      Note(unload.device());
      wire::UnloadReply reply;
      reply.set_freed_bytes(5);
      reply.set_held_bytes(2);
      peer.Send(Type::kUnloadReply, frame.header.request, reply);
      return Act::kHandled;
    }
    return Act::kDefault;
  }
  void Note(uint32_t device) EXCLUDES(mu_) {
    MutexLock lock(mu_);
    device_ = device;
  }
  uint32_t device() EXCLUDES(mu_) {
    MutexLock lock(mu_);
    return device_;
  }
  kvc_code Load(const char* device) {
    const kvc_device_choice choice = {.struct_size = sizeof choice, .device = device};
    loaded_ = {};
    loaded_.struct_size = sizeof loaded_;
    return kvc_load_to_device(client_, "m", nullptr, &choice, nullptr, nullptr, 0, &loaded_,
                              &error_);
  }

  ScriptedPeer peer_;
  kvc_client* client_ = nullptr;
  kvc_error error_{};
  kvc_loaded loaded_{};
  Mutex mu_;
  uint32_t device_ GUARDED_BY(mu_) = 0;
};

TEST_F(DeviceAdminTest, TheOnlyDeviceNeedsNoName) {
  Open(wire::kCapabilities, {"GPU-a"});
  ASSERT_EQ(Load(nullptr), KVC_OK) << error_.message;
  EXPECT_EQ(device(), 1u);
  EXPECT_EQ(loaded_.bytes, 7u);
  EXPECT_STREQ(loaded_.version, "v");
  kvc_unloaded unloaded{};
  unloaded.struct_size = sizeof unloaded;
  ASSERT_EQ(kvc_unload_from_device(client_, "m", nullptr, nullptr, 0, &unloaded, &error_), KVC_OK);
  EXPECT_EQ(device(), 1u);
  EXPECT_EQ(unloaded.freed_bytes, 5u);
  EXPECT_EQ(unloaded.held_bytes, 2u);
}

TEST_F(DeviceAdminTest, OneOfSeveralIsChosenByNumberOrUuid) {
  Open(wire::kCapabilities, {"GPU-a", "GPU-b"});
  ASSERT_EQ(Load("2"), KVC_OK) << error_.message;
  EXPECT_EQ(device(), 2u);
  ASSERT_EQ(Load("GPU-a"), KVC_OK) << error_.message;
  EXPECT_EQ(device(), 1u);
  EXPECT_EQ(Load("3"), KVC_NOT_FOUND);
  EXPECT_THAT(error_.message, HasSubstr("no '3', but 1 (GPU-a), 2 (GPU-b)"));
  EXPECT_EQ(peer_.CountOf(Type::kLoad), 2u);
}

TEST_F(DeviceAdminTest, OfSeveralTheDaemonChoosesWhereToLoadAndTheCallerWhereToUnload) {
  Open(wire::kCapabilities, {"GPU-a", "GPU-b"});
  ASSERT_EQ(Load(nullptr), KVC_OK) << error_.message;
  EXPECT_EQ(device(), messages::kAnyDevice);
  EXPECT_EQ(loaded_.device, 2u) << "as the daemon says";
  EXPECT_EQ(kvc_unload_from_device(client_, "m", nullptr, nullptr, 0, nullptr, &error_),
            KVC_INVALID_ARGUMENT);
  EXPECT_THAT(error_.message, HasSubstr("1 (GPU-a), 2 (GPU-b)"));
}

TEST_F(DeviceAdminTest, ADaemonWithoutDevicesSaysSo) {
  Open(wire::kCapabilities, {});
  EXPECT_EQ(Load(nullptr), KVC_NOT_FOUND);
  EXPECT_THAT(error_.message, HasSubstr("no device"));
}

TEST_F(DeviceAdminTest, ADaemonThatIsTooOldIsNotAsked) {
  Open(0, {"GPU-a"});
  EXPECT_EQ(Load(nullptr), KVC_MISMATCH);
  EXPECT_EQ(peer_.CountOf(Type::kDevices), 0u);
  EXPECT_EQ(peer_.CountOf(Type::kLoad), 0u);
}

}  // namespace
}  // namespace terrace::client
