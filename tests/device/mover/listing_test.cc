// The list of devices: as it is printed, as it is read, and of what is none.
#include "tiers/device/mover/listing.h"

#include <gtest/gtest.h>

namespace terrace {
namespace {

GpuFacts Facts(uint32_t index, std::string name, bool slabs) {
  GpuFacts facts;
  facts.uuid = HostGpuUuid(index);
  facts.name = std::move(name);
  facts.driver = "CUDA driver 13.0";
  facts.total_bytes = uint64_t{80} << 30;
  facts.granularity = 2u << 20;
  facts.slabs = slabs;
  return facts;
}

TEST(Listing, IsReadAsItWasPrinted) {
  const std::vector<GpuFacts> devices = {Facts(0, "H100 80GB", true), Facts(1, "\tx\n\xff", false)};
  const auto listed = ParseGpuList(GpuListText(devices));
  ASSERT_TRUE(listed) << listed.error().ToString();
  const std::vector<ListedGpu> wanted = {{.uuid = HostGpuUuid(0),
                                          .total_bytes = uint64_t{80} << 30,
                                          .granularity = 2u << 20,
                                          .slabs = true,
                                          .driver = "CUDA driver 13.0",
                                          .name = "H100 80GB"},
                                         {.uuid = HostGpuUuid(1),
                                          .total_bytes = uint64_t{80} << 30,
                                          .granularity = 2u << 20,
                                          .slabs = false,
                                          .driver = "CUDA driver 13.0",
                                          .name = "?x??"}};
  EXPECT_EQ(*listed, wanted);
  EXPECT_TRUE(ParseGpuList("")->empty());
}

TEST(Listing, WhatIsNoListIsRefusedByItsLine) {
  const std::string good = GpuListText(std::vector<GpuFacts>{Facts(0, "a", true)});
  for (const std::string& bad : {std::string("GPU\n"), good.substr(0, good.size() - 1), "x" + good,
                                 good.substr(0, good.size() - 1) + "\tmore\n", std::string("\n"),
                                 HostGpuUuid(0).Text() + "\t-1\t1\tslabs\td\tn\n",
                                 HostGpuUuid(0).Text() + "\t1\t1\tboth\td\tn\n"}) {
    const auto listed = ParseGpuList(good + bad);
    ASSERT_FALSE(listed) << bad;
    EXPECT_EQ(listed.error().code(), Code::kMismatch);
    EXPECT_EQ(listed.error().message().substr(0, 7), "line 2 ") << bad;
  }
}

}  // namespace
}  // namespace terrace
