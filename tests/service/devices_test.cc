// Which devices are used, by configuration and by what a host has.
#include "daemon/service/devices.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace terrace {
namespace {

using testing::EndsWith;
using testing::HasSubstr;

constexpr uint64_t kGiB = uint64_t{1} << 30;

GpuUuid Uuid(uint8_t last) {
  GpuUuid uuid;
  uuid.bytes[15] = last;
  return uuid;
}

using Listed = Result<std::vector<ListedGpu>>;
std::vector<ListedGpu> TwoGpus() {
  return {{.uuid = Uuid(1), .total_bytes = 80 * kGiB, .granularity = 2u << 20, .slabs = true},
          {.uuid = Uuid(2), .total_bytes = 40 * kGiB, .granularity = 2u << 20, .slabs = true}};
}
const Listed kNoDriver = Status(Code::kNotFound, "no CUDA driver: libcuda.so.1: not there");

Result<ChosenDevices> Choose(DeviceChoice choice, const Listed& listed,
                             std::vector<DeviceConfig> tables = {}) {
  Config config;
  config.device = choice;
  config.devices = std::move(tables);
  EXPECT_TRUE(CheckConfig(config).ok());
  return ChooseDevices(config, [&](MonotonicNs) { return listed; });
}

TEST(ChooseDevices, EveryDeviceThatIsFoundIsUsedWithoutTables) {
  for (const DeviceChoice choice : {DeviceChoice::kAuto, DeviceChoice::kCuda}) {
    const auto chosen = Choose(choice, TwoGpus());
    ASSERT_TRUE(chosen);
    ASSERT_EQ(chosen->devices.size(), 2u);
    EXPECT_EQ(chosen->devices[1].uuid, Uuid(2));
    EXPECT_EQ(chosen->devices[1].kind, MoverKind::kCuda);
    EXPECT_EQ(chosen->devices[1].options.capacity_bytes, 20 * kGiB) << "half of it";
    EXPECT_EQ(chosen->devices[1].options.slab_bytes, 64u << 20);
    EXPECT_EQ(chosen->why, "");
    EXPECT_EQ(KindName(*chosen), "cuda");
  }
}

TEST(ChooseDevices, NoMoreThanTheEngineTakes) {
  std::vector<ListedGpu> gpus(kMaxDevices + 1, TwoGpus().front());
  for (size_t i = 0; i < gpus.size(); ++i)
    gpus[i].uuid = Uuid(static_cast<uint8_t>(i));
  const auto chosen = Choose(DeviceChoice::kAuto, gpus);
  ASSERT_TRUE(chosen);
  EXPECT_EQ(chosen->devices.size(), kMaxDevices);
  EXPECT_EQ(chosen->why, "65 devices were found, the first 64 are used");
}

TEST(ChooseDevices, WhatIsMissingIsSaidOrAnError) {
  const auto none = Choose(DeviceChoice::kAuto, kNoDriver);
  ASSERT_TRUE(none);
  EXPECT_TRUE(none->devices.empty());
  EXPECT_EQ(none->why, "no CUDA driver: libcuda.so.1: not there");
  EXPECT_FALSE(none->wanted) << "a host without GPUs is no fault";
  EXPECT_EQ(KindName(*none), "none");
  const auto wanted = Choose(DeviceChoice::kCuda, kNoDriver);
  ASSERT_FALSE(wanted);
  EXPECT_EQ(wanted.error().code(), Code::kNotFound);
  EXPECT_THAT(wanted.error().message(), HasSubstr("devices.device is \"cuda\": no CUDA driver"));
  const auto empty = Choose(DeviceChoice::kCuda, std::vector<ListedGpu>());
  ASSERT_FALSE(empty);
  EXPECT_THAT(empty.error().message(), HasSubstr("finds no GPU"));
}

TEST(ChooseDevices, TablesNameWhatIsUsedAndHowMuch) {
  const DeviceConfig table = {.uuid = Uuid(2).Text(),
                              .capacity = {.bytes = 0, .fraction = 0.25},
                              .weights_floor_bytes = 4 * kGiB,
                              .pages_floor_bytes = 2 * kGiB,
                              .slab_bytes = 128u << 20,
                              .unmap_deadline_ms = 5};
  const auto chosen = Choose(DeviceChoice::kCuda, TwoGpus(), {table});
  ASSERT_TRUE(chosen);
  ASSERT_EQ(chosen->devices.size(), 1u);
  const DeviceOptions& options = chosen->devices[0].options;
  EXPECT_EQ(chosen->devices[0].uuid, Uuid(2));
  EXPECT_EQ(options.capacity_bytes, 10 * kGiB);
  EXPECT_EQ(options.weights_floor_bytes, 4 * kGiB);
  EXPECT_EQ(options.pages_floor_bytes, 2 * kGiB);
  EXPECT_EQ(options.slab_bytes, 128u << 20);
  EXPECT_EQ(options.unmap_deadline_ms, 5u);
}

TEST(ChooseDevices, ATableOfNoDeviceIsAnErrorOnlyWhereDevicesAreDemanded) {
  const std::vector<DeviceConfig> tables = {{.uuid = Uuid(9).Text()}, {.uuid = Uuid(1).Text()}};
  const auto chosen = Choose(DeviceChoice::kAuto, TwoGpus(), tables);
  ASSERT_TRUE(chosen);
  EXPECT_EQ(chosen->devices.size(), 1u);
  EXPECT_TRUE(chosen->wanted);
  EXPECT_EQ(chosen->why, "device.uuid: the driver has no " + Uuid(9).Text());
  const auto refused = Choose(DeviceChoice::kCuda, TwoGpus(), tables);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code(), Code::kNotFound);
}

TEST(ChooseDevices, WhatIsMissingThoughItIsThereOrNamedIsToBeLookedAt) {
  const Listed refused = Status(Code::kPermissionDenied, "/dev/nvidiactl: no");
  const auto kept_out = Choose(DeviceChoice::kAuto, refused);
  ASSERT_TRUE(kept_out);
  EXPECT_TRUE(kept_out->wanted);
  const auto named = Choose(DeviceChoice::kAuto, kNoDriver, {{.uuid = Uuid(1).Text()}});
  ASSERT_TRUE(named);
  EXPECT_TRUE(named->wanted);
  EXPECT_FALSE(Choose(DeviceChoice::kAuto, TwoGpus())->wanted);
}

TEST(ChooseDevices, AStartWaitsLongOnlyForDevicesThatAreDemanded) {
  const auto within = [](DeviceChoice choice) {
    Config config;
    config.device = choice;
    MonotonicNs asked = 0;
    (void)ChooseDevices(config, [&](MonotonicNs given) -> Listed {
      asked = given;
      return TwoGpus();
    });
    return asked;
  };
  EXPECT_EQ(within(DeviceChoice::kCuda), 60 * kNsPerSecond);
  EXPECT_EQ(within(DeviceChoice::kAuto), 10 * kNsPerSecond);
}

TEST(ChooseDevices, ATableThatWantsMoreThanItsDeviceHasIsLeftOutOrRefused) {
  const DeviceConfig large = {.uuid = Uuid(2).Text(), .capacity = {.bytes = 41 * kGiB}};
  const std::string why = "device.capacity: " + Uuid(2).Text() + " has 40GiB, not 41GiB";
  const auto refused = Choose(DeviceChoice::kCuda, TwoGpus(), {large});
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code(), Code::kInvalidArgument);
  EXPECT_EQ(refused.error().message(), why);
  const auto rest = Choose(DeviceChoice::kAuto, TwoGpus(), {large, {.uuid = Uuid(1).Text()}});
  ASSERT_TRUE(rest);
  ASSERT_EQ(rest->devices.size(), 1u);
  EXPECT_EQ(rest->devices[0].uuid, Uuid(1));
  EXPECT_EQ(rest->why, why);
  EXPECT_TRUE(rest->wanted);
  const auto floors = Choose(DeviceChoice::kCuda, TwoGpus(),
                             {{.uuid = Uuid(2).Text(), .weights_floor_bytes = 30 * kGiB}});
  ASSERT_FALSE(floors);
  EXPECT_THAT(floors.error().message(), HasSubstr("device.weights_floor: "));
}

TEST(ChooseDevices, HostMemoryStandsForADeviceWithoutAskingForGpus) {
  Config config;
  config.device = DeviceChoice::kHost;
  config.devices = {{.uuid = "host:2", .capacity = {.bytes = (33u << 20) + 4096}}};
  const auto chosen = ChooseDevices(config, [](MonotonicNs) -> Listed {
    ADD_FAILURE() << "nobody is to be asked";
    return kNoDriver;
  });
  ASSERT_TRUE(chosen);
  ASSERT_EQ(chosen->devices.size(), 1u);
  EXPECT_EQ(chosen->devices[0].kind, MoverKind::kHost);
  EXPECT_EQ(chosen->devices[0].uuid, HostGpuUuid(2));
  EXPECT_EQ(chosen->devices[0].options.capacity_bytes, (33u << 20) + 4096);
  EXPECT_EQ(chosen->devices[0].host_bytes, 34u << 20) << "whole granules";
  EXPECT_LT(chosen->devices[0].options.slab_bytes, 8u << 20) << "several fit";
  const auto usual = Choose(DeviceChoice::kHost, kNoDriver);
  ASSERT_TRUE(usual);
  ASSERT_EQ(usual->devices.size(), 1u);
  EXPECT_EQ(usual->devices[0].uuid, HostGpuUuid(0));
  EXPECT_EQ(usual->devices[0].options.capacity_bytes, kGiB / 2);
}

TEST(ChooseDevices, NoneIsNoneAndSaysWhy) {
  const auto chosen = Choose(DeviceChoice::kNone, TwoGpus());
  ASSERT_TRUE(chosen);
  EXPECT_TRUE(chosen->devices.empty());
  EXPECT_EQ(chosen->why, "devices.device is \"none\"");
}

TEST(MoverPath, IsBesideThisProgramUnlessItIsNamed) {
  Config config;
  EXPECT_THAT(MoverPath(config), EndsWith("/tests/service/terrace-mover"));
  config.mover = "/opt/m";
  EXPECT_EQ(MoverPath(config), "/opt/m");
}

}  // namespace
}  // namespace terrace
