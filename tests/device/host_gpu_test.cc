#include "tiers/device/host_gpu.h"

#include <gtest/gtest.h>

#include "tiers/device/gpu.h"

namespace terrace {
namespace {

TEST(GpuUuid, TextIsThatOfTheDriversTools) {
  GpuUuid uuid;
  for (size_t i = 0; i < uuid.bytes.size(); ++i)
    uuid.bytes[i] = static_cast<uint8_t>(0x10 + i);
  EXPECT_EQ(uuid.Text(), "GPU-10111213-1415-1617-1819-1a1b1c1d1e1f");
  EXPECT_EQ(ParseGpuUuid(uuid.Text()), uuid);
  EXPECT_EQ(ParseGpuUuid("MIG-10111213-1415-1617-1819-1A1B1C1D1E1F"), uuid);
}

TEST(GpuUuid, AnyOtherTextIsNone) {
  for (const char* text :
       {"", "GPU-", "10111213-1415-1617-1819-1a1b1c1d1e1f",
        "GPU-10111213141516171819-1a1b1c1d1e1f1234", "GPU-10111213-1415-1617-1819-1a1b1c1d1e1g",
        "GPU-10111213-1415-1617-1819-1a1b1c1d1e1", "GPU-10111213-1415-1617-1819-1a1b1c1d1e1f0",
        "GPU-10111213-1415-1617-18191-a1b1c1d1e1f"}) {
    EXPECT_EQ(ParseGpuUuid(text), std::nullopt) << text;
  }
}

TEST(HostGpus, HaveTheUuidsAndMemoryOfTheOptions) {
  EXPECT_EQ(HostGpuUuid(0), HostGpuUuid(0));
  EXPECT_NE(HostGpuUuid(0), HostGpuUuid(256));
  const auto gpus = OpenHostGpus({.devices = {{.uuid = HostGpuUuid(3), .bytes = 4u << 20},
                                              {.uuid = HostGpuUuid(5), .bytes = 8u << 20}}});
  ASSERT_TRUE(gpus);
  ASSERT_EQ((*gpus)->devices().size(), 2u);
  EXPECT_EQ((*gpus)->devices()[1].uuid, HostGpuUuid(5));
  // What one has taken the other still has.
  const auto first = (*gpus)->Open(HostGpuUuid(3));
  const auto second = (*gpus)->Open(HostGpuUuid(5));
  ASSERT_TRUE(first && second);
  const auto slab = (*first)->CreateSlab(4u << 20);
  EXPECT_TRUE(slab);
  EXPECT_EQ((*first)->Memory()->free_bytes, 0u);
  EXPECT_EQ((*first)->CreateSlab(2u << 20).status().code(), Code::kExhausted);
  EXPECT_TRUE((*second)->CreateSlab(8u << 20));
  EXPECT_EQ((*first)->ReleaseSlab(*slab), Status());
  EXPECT_TRUE((*first)->CreateSlab(4u << 20));
}

TEST(HostGpus, OptionsThatCannotBeAreRefused) {
  const auto code = [](const HostGpuOptions& options) {
    return OpenHostGpus(options).status().code();
  };
  EXPECT_EQ(code({.granularity = 3u << 20}), Code::kInvalidArgument);
  EXPECT_EQ(code({.granularity = 1024}), Code::kInvalidArgument);
  EXPECT_EQ(code({.registration_bytes = 0}), Code::kInvalidArgument);
  EXPECT_EQ(code({.devices = {{.uuid = HostGpuUuid(1)}, {.uuid = HostGpuUuid(1)}}}),
            Code::kInvalidArgument);
  EXPECT_EQ(code({.devices = {}}), Code::kOk);
}

TEST(HostGpus, WithoutSlabsThereAreAllocations) {
  const auto gpus = OpenHostGpus({.slabs = false});
  ASSERT_TRUE(gpus);
  const auto gpu = (*gpus)->Open(HostGpuUuid(0));
  ASSERT_TRUE(gpu);
  EXPECT_FALSE((*gpu)->facts().slabs);
  EXPECT_EQ((*gpu)->CreateSlab(2u << 20).status().code(), Code::kMismatch);
  EXPECT_EQ((*gpu)->ReserveRange(2u << 20).status().code(), Code::kMismatch);
  EXPECT_EQ((*gpu)->ImportSlab(0, 2u << 20).status().code(), Code::kMismatch);
  EXPECT_TRUE((*gpu)->Allocate(2u << 20));
}

}  // namespace
}  // namespace terrace
