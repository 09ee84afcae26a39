// A real daemon with a device that is memory of the host, and daemons whose devices cannot be.
#include <gmock/gmock.h>
#include <signal.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>

#include "tests/integration/integration_test.h"

namespace terrace {
namespace {

using testing::HasSubstr;

constexpr const char* kOneDevice =
    "[devices]\ndevice = \"host\"\n[[device]]\nuuid = \"host:0\"\ncapacity = \"64MiB\"\n"
    "slab = \"2MiB\"\n";

class DevicesTest : public IntegrationTest {
 protected:
  void StartWith(const std::string& devices) {
    DaemonProcessOptions options;
    options.store = devices;
    StartDaemon(options);
  }
  bool AwaitState(const std::string& state) {
    return Await([&] { return Device()["state"] == state; });
  }
  Json Device() {
    const Json devices = Report("status")["devices"];
    return devices.is_array() && !devices.empty() ? devices[0] : Json();
  }
};

std::string WhyNotStarted(const std::string& devices) {
  const auto daemon = DaemonProcess::Start({.store = devices});
  EXPECT_FALSE(daemon) << devices;
  return daemon ? "" : daemon.error().message();
}

TEST_F(DevicesTest, AHostDeviceServesAndIsReported) {
  StartWith(kOneDevice);
  ASSERT_TRUE(AwaitState("serving")) << Device();
  const Json device = Device();
  EXPECT_EQ(device["device"], 1);
  EXPECT_THAT(std::string(device["uuid"]), HasSubstr("GPU-"));
  EXPECT_EQ(device["driver"], "host memory");
  EXPECT_EQ(device["mode"], "slabs");
  EXPECT_EQ(device["capacity_bytes"], 64u << 20);
  EXPECT_EQ(device["mover"]["starts"], 1);
  EXPECT_EQ(device["mover"]["crashes"], 0);
  EXPECT_EQ(Report("status")["devices_by"]["kind"], "host");
  EXPECT_EQ(Report("tiers")["devices"][0]["uuid"], device["uuid"]);
}

TEST_F(DevicesTest, AMoverThatIsKilledIsStartedAgain) {
  StartWith(kOneDevice);
  ASSERT_TRUE(AwaitState("serving"));
  const pid_t first = Device()["mover"]["pid"];
  ASSERT_GT(first, 0);
  ASSERT_EQ(::kill(first, SIGKILL), 0);
  ASSERT_TRUE(Await([&] {
    const Json mover = Device()["mover"];
    return mover["crashes"] == 1 && mover["pid"] > 0 && mover["pid"] != first;
  }));
  ASSERT_TRUE(AwaitState("serving"));
  EXPECT_EQ(Device()["mover"]["starts"], 2);
  EXPECT_THAT(std::string(Device()["why"]), HasSubstr("signal 9"));
}

TEST_F(DevicesTest, TheMoverEndsWithTheDaemon) {
  StartWith(kOneDevice);
  ASSERT_TRUE(AwaitState("serving"));
  const pid_t mover = Device()["mover"]["pid"];
  const auto gone = [&] { return ::kill(mover, 0) != 0; };
  const Result<int> code = daemon().Stop();
  ASSERT_TRUE(code);
  EXPECT_EQ(*code, 0);
  EXPECT_TRUE(Await(gone));
}

TEST_F(DevicesTest, WithoutDevicesTheStatusSaysWhy) {
  StartWith("[devices]\ndevice = \"none\"\n");
  const Json status = Report("status");
  EXPECT_EQ(status["devices"], Json::array());
  EXPECT_EQ(status["devices_by"]["choice"], "none");
  EXPECT_EQ(status["devices_by"]["kind"], "none");
  EXPECT_EQ(status["devices_by"]["why"], "devices.device is \"none\"");
}

TEST_F(DevicesTest, AutoServesWithoutWhatItDoesNotFind) {
  StartWith("[devices]\nmover = \"/does/not/exist\"\n");
  const Json by = Report("status")["devices_by"];
  EXPECT_EQ(by["choice"], "auto");
  EXPECT_THAT(std::string(by["why"]), HasSubstr("/does/not/exist"));
  EXPECT_THAT(daemon().Log(), HasSubstr("devices-missing"));
}

TEST_F(DevicesTest, AMoverThatCannotStartLeavesADeviceThatRests) {
  StartWith(std::string("[devices]\nmover = \"/bin/false\"\n") +
            std::string(kOneDevice).substr(sizeof "[devices]"));
  ASSERT_TRUE(Await([&] { return Device()["mover"]["crashes"] > 0; })) << Device();
  EXPECT_NE(Device()["state"], "serving");
  EXPECT_THAT(std::string(Device()["why"]), HasSubstr("exit code 1"));
}

TEST_F(DevicesTest, AReloadNamesDevicesAsWhatNeedsARestart) {
  StartWith(kOneDevice);
  ASSERT_TRUE(AwaitState("serving"));
  std::ifstream file(daemon().config_file());
  std::string text((std::istreambuf_iterator<char>(file)), {});
  const std::string device = "uuid = \"host:0\"\ncapacity = \"64MiB\"";
  ASSERT_NE(text.find(device), std::string::npos);
  text.replace(text.find(device), device.size(), "uuid = \"host:0\"\ncapacity = \"32MiB\"");
  std::ofstream(daemon().config_file()) << text;
  ASSERT_EQ(::kill(daemon().pid(), SIGHUP), 0);
  ASSERT_TRUE(Await([&] { return daemon().Log().find("reloaded") != std::string::npos; }));
  EXPECT_THAT(daemon().Log(), HasSubstr("field=device "));
  EXPECT_EQ(Device()["capacity_bytes"], 64u << 20);
}

TEST(DevicesRefused, WhatCannotBeIsNamed) {
  EXPECT_THAT(WhyNotStarted("[devices]\ndevice = \"cuda\"\nmover = \"/does/not/exist\"\n"),
              HasSubstr("devices.device is \"cuda\": start /does/not/exist"));
  EXPECT_THAT(WhyNotStarted("[devices]\ndevice = \"gpu\"\n"),
              HasSubstr("devices.device: expected"));
  EXPECT_THAT(WhyNotStarted("[devices]\ndevice = \"host\"\n[[device]]\ncapacity = \"64MiB\"\n"),
              HasSubstr("device.uuid: every [[device]] needs one"));
}

#ifdef FAKE_LIBCUDA
TEST_F(DevicesTest, CudasDevicesAreFoundByThemselves) {
  const TemporaryFolder folder;
  std::filesystem::create_symlink(FAKE_LIBCUDA, folder.path() + "/libcuda.so.1");
  ::setenv("LD_LIBRARY_PATH", folder.path().c_str(), 1);
  StartWith("[devices]\ndevice = \"cuda\"\n");
  ::unsetenv("LD_LIBRARY_PATH");
  ASSERT_TRUE(AwaitState("serving")) << Device();
  EXPECT_EQ(Report("status")["devices_by"]["kind"], "cuda");
  EXPECT_THAT(std::string(Device()["driver"]), HasSubstr("CUDA driver"));
  EXPECT_EQ(Device()["mode"], "slabs");
}
#endif

}  // namespace
}  // namespace terrace
