// Layouts, and the test vectors of docs/keys.md for space ids.
#include "daemon/engine/layout.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>

namespace terrace {
namespace {

using testing::HasSubstr;

const KvLayout kLlama = {.dtype = "bf16",
                         .layers = 16,
                         .kv_heads = 8,
                         .head_size = 64,
                         .page_tokens = 256,
                         .planes = 2,
                         .order = "layer,plane,token,head,dim"};
const KvLayout kLatent = {.dtype = "f8_e4m3",
                          .layers = 61,
                          .kv_heads = 1,
                          .head_size = 576,
                          .page_tokens = 16,
                          .planes = 1,
                          .order = "token,layer,plane,head,dim"};

uint32_t Part(uint32_t rank, uint32_t size, uint32_t stage, uint32_t stages) {
  return rank | size << 8 | stage << 16 | stages << 24;
}

TEST(LayoutTest, PageBytesFollowFromTheFields) {
  EXPECT_EQ(*PartBytes(kLlama, 0), 8u << 20);
  EXPECT_EQ(*PartBytes(kLatent, 0), 61u * 576 * 16);
}

TEST(LayoutTest, ARankHasItsShareOfHeadsAndLayers) {
  EXPECT_EQ(*PartBytes(kLlama, Part(3, 4, 0, 1)), 2u << 20);
  EXPECT_EQ(*PartBytes(kLlama, Part(3, 4, 1, 2)), 1u << 20);
  EXPECT_EQ(*PartBytes(kLatent, Part(1, 2, 0, 1)), 61u * 576 * 16) << "one head is replicated";
}

TEST(LayoutTest, ImpossiblePartsAreRefused) {
  for (const uint32_t part : {Part(4, 4, 0, 1), Part(0, 3, 0, 1), Part(0, 0, 0, 1),
                              Part(0, 1, 0, 0), Part(0, 1, 2, 2), Part(0, 1, 0, 3)}) {
    EXPECT_EQ(PartBytes(kLlama, part).status().code(), Code::kInvalidArgument) << part;
  }
}

TEST(LayoutTest, EveryFieldIsChecked) {
  const auto refusal = [](auto change) {
    KvLayout layout = kLlama;
    change(layout);
    const Status status = ValidateLayout(layout);
    EXPECT_EQ(status.code(), Code::kInvalidArgument);
    return status.message();
  };
  EXPECT_EQ(ValidateLayout(kLlama), Status());
  EXPECT_THAT(refusal([](KvLayout& l) { l.dtype = "f64"; }), HasSubstr("layout.dtype"));
  EXPECT_THAT(refusal([](KvLayout& l) { l.layers = 0; }), HasSubstr("layout.layers"));
  EXPECT_THAT(refusal([](KvLayout& l) { l.kv_heads = 0; }), HasSubstr("layout.kv_heads"));
  EXPECT_THAT(refusal([](KvLayout& l) { l.head_size = UINT32_MAX; }),
              HasSubstr("layout.head_size"));
  EXPECT_THAT(refusal([](KvLayout& l) { l.page_tokens = 15; }), HasSubstr("layout.page_tokens"));
  EXPECT_THAT(refusal([](KvLayout& l) { l.page_tokens = 513; }), HasSubstr("layout.page_tokens"));
  EXPECT_THAT(refusal([](KvLayout& l) { l.planes = 3; }), HasSubstr("layout.planes"));
  for (const std::string order : {"", "layer,plane,token,head", "layer,plane,token,head,head",
                                  "layer,plane,token,head,dim,dim", "layer,plane,token,head,dim,",
                                  "Layer,plane,token,head,dim"}) {
    EXPECT_THAT(refusal([&](KvLayout& l) { l.order = order; }), HasSubstr("layout.order"));
  }
  EXPECT_THAT(refusal([](KvLayout& l) {
                l.dtype = "i8";
                l.layers = 1;
                l.kv_heads = 1;
                l.page_tokens = 17;
                l.head_size = 1;
              }),
              HasSubstr("multiple of 64"));
  EXPECT_THAT(refusal([](KvLayout& l) {
                l.layers = 1u << 16;
                l.kv_heads = 1u << 16;
                l.head_size = 1u << 16;
              }),
              HasSubstr("bytes"));
}

TEST(LayoutTest, TheFirstDifferenceIsNamed) {
  EXPECT_EQ(FirstDifference(kLlama, kLlama), "");
  KvLayout asked = kLlama;
  asked.page_tokens = 16;
  EXPECT_EQ(FirstDifference(asked, kLlama), "page_tokens is 16 here and 256 in the open space");
  asked = kLlama;
  asked.order = "plane,layer,token,head,dim";
  EXPECT_THAT(FirstDifference(asked, kLlama), HasSubstr("order"));
}

TEST(SpaceIdTest, TestVectorsOfTheDocument) {
  Digest weights;
  std::iota(weights.bytes.begin(), weights.bytes.end(), uint8_t{0});
  Digest adapter;
  adapter.bytes.fill(0xff);
  const Digest zero;
  const auto hex = [](const Digest& digest) { return digest.Hex(); };
  EXPECT_EQ(hex(SpaceId("default", zero, zero, "", kLlama)),
            "7c23d99a2fc0724fcb03fa938c853f1d54ddf3db10beadb277823e6abd45b41b");
  EXPECT_EQ(hex(SpaceId("default", weights, zero, "", kLlama)),
            "f1e557f5b6ddd411406058dde75a27860a31537879f744b042e4b3f818129e53");
  EXPECT_EQ(hex(SpaceId("default", weights, adapter, "", kLlama)),
            "9d7c7c3349dc8146c3be0e530cc1da3ccebdb29932f40459b9132bf2a99606bc");
  EXPECT_EQ(hex(SpaceId("default", weights, adapter, "pepper", kLlama)),
            "748f64193b5779c981a8308b5ee29e1203f296dfab6216ecba9a500d569d3e76");
  EXPECT_EQ(hex(SpaceId("b", weights, adapter, "pepper", kLlama)),
            "e5440706b05535e0dc727eaff21e1378befd8efc6aada1d04ab648f83f55a54f");
  EXPECT_EQ(hex(SpaceId("default", zero, zero, "", kLatent)),
            "a0c492338dcf71670b9850195e0f6091bbb8bf9a3f9b635aab90a7a2998813f4");
}

}  // namespace
}  // namespace terrace
