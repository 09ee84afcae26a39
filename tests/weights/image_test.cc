#include "daemon/engine/weights/image.h"

#include <gmock/gmock.h>

#include <algorithm>
#include <cstring>

#include "base/random.h"
#include "proto/manifest.h"

namespace terrace::weights {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

constexpr uint64_t kMiB = 1u << 20;

TensorSpec Spec(const std::string& name, uint64_t bytes) {
  return {
      .name = name, .dtype = "U8", .shape = {bytes}, .file = 0, .file_offset = 0, .bytes = bytes};
}

std::vector<std::string> NamesOf(const std::vector<TensorSpec>& specs, const Image& image) {
  std::vector<std::string> names;
  for (const ImageTensor& tensor : image.tensors)
    names.push_back(specs[tensor.spec].name);
  return names;
}

TEST(Image, LayersAreInTheOrderOfTheirNumbers) {
  const std::vector<TensorSpec> specs = {Spec("model.layers.10.w", 1), Spec("model.norm", 1),
                                         Spec("model.layers.2.w", 1), Spec("model.embed", 1),
                                         Spec("model.layers.2.a", 1)};
  const auto image = PlanImage(specs, kMiB);
  ASSERT_TRUE(image.has_value());
  EXPECT_THAT(NamesOf(specs, *image),
              ElementsAre("model.embed", "model.layers.2.a", "model.layers.2.w",
                          "model.layers.10.w", "model.norm"));
}

TEST(Image, NumbersInNamesCountAsNumbers) {
  const std::vector<std::string> ascending = {"",
                                              ".9",
                                              "/",
                                              "2",
                                              "10",
                                              "a",
                                              "a.w",
                                              "a1",
                                              "a2",
                                              "a2.b",
                                              "a10",
                                              "a99999999999999999999999",
                                              "a100000000000000000000000",
                                              "ab",
                                              "a\xc3\xa4"};
  for (size_t i = 0; i < ascending.size(); ++i) {
    for (size_t j = 0; j < ascending.size(); ++j) {
      EXPECT_EQ(NaturalKey(ascending[i]) < NaturalKey(ascending[j]), i < j)
          << ascending[i] << " " << ascending[j];
    }
  }
  EXPECT_EQ(NaturalKey("a01"), NaturalKey("a1"));
  EXPECT_EQ(NaturalKey("a0"), NaturalKey("a000"));
}

TEST(Image, NamesThatDifferOnlyInLeadingZerosHaveAnOrderToo) {
  std::vector<TensorSpec> specs = {Spec("a1", 1), Spec("a01", 1), Spec("a001", 1)};
  const auto one = PlanImage(specs, kMiB);
  std::reverse(specs.begin(), specs.end());
  const auto other = PlanImage(specs, kMiB);
  ASSERT_TRUE(one.has_value() && other.has_value());
  EXPECT_THAT(NamesOf(specs, *other), ElementsAre("a001", "a01", "a1"));
  std::reverse(specs.begin(), specs.end());
  EXPECT_THAT(NamesOf(specs, *one), ElementsAre("a001", "a01", "a1"));
}

TEST(Image, TensorsAreAlignedDisjointAndCoverTheImage) {
  for (uint64_t seed = 1; seed <= 200; ++seed) {
    Random random(seed);
    std::vector<TensorSpec> specs;
    const uint64_t count = 1 + random.Below(60);
    for (uint64_t i = 0; i < count; ++i) {
      specs.push_back(Spec("layers." + std::to_string(random.Below(20)) + "." + std::to_string(i),
                           random.Chance(1, 5) ? 0 : random.Below(40'000)));
    }
    specs.push_back(Spec("last", 1));
    const auto image = PlanImage(specs, 4096);
    ASSERT_TRUE(image.has_value());
    uint64_t end = 0;
    for (const ImageTensor& tensor : image->tensors) {
      ASSERT_EQ(tensor.offset % manifest::kTensorAlignment, 0u);
      ASSERT_GE(tensor.offset, end);
      ASSERT_LT(tensor.offset - end, manifest::kTensorAlignment);
      end = tensor.offset + tensor.bytes;
    }
    ASSERT_LE(end, image->bytes);
    // The blocks follow each other without gap, and are of the size that the manifest says.
    uint64_t at = 0;
    for (uint32_t block = 0; block < image->blocks(); ++block) {
      ASSERT_EQ(image->BlockBegin(block), at);
      ASSERT_GT(image->BlockEnd(block), at);
      ASSERT_GE(image->BlockMemory(block), image->BlockEnd(block) - at);
      ASSERT_EQ(image->BlockMemory(block) % kBlockGranularity, 0u);
      at = image->BlockEnd(block);
      // The first tensor with a byte in the block is found.
      const size_t first = image->FirstEndingAfter(image->BlockBegin(block));
      for (size_t i = 0; i < first; ++i)
        ASSERT_LE(image->tensors[i].offset + image->tensors[i].bytes, image->BlockBegin(block));
    }
    ASSERT_EQ(at, image->bytes);
  }
}

TEST(Image, BlocksGrowUntilTheyFitAMessage) {
  EXPECT_EQ(ChooseBlockBytes(253 * 64 * kMiB, 64 * kMiB), 64 * kMiB);
  EXPECT_EQ(ChooseBlockBytes(253 * 64 * kMiB + 1, 64 * kMiB), 128 * kMiB);
  EXPECT_EQ(ChooseBlockBytes(253 * 512 * kMiB, 64 * kMiB), 512 * kMiB);
  EXPECT_EQ(ChooseBlockBytes(1000 * 512 * kMiB, 64 * kMiB), 512 * kMiB);
  EXPECT_EQ(ChooseBlockBytes(kMaxImageBytes, 96 * kMiB), 512 * kMiB);
}

TEST(Image, SetsBeyondTheLimitsAreRefused) {
  const auto refused = [](const std::vector<TensorSpec>& specs, const std::string& says) {
    const auto image = PlanImage(specs, kMiB);
    ASSERT_FALSE(image.has_value());
    EXPECT_EQ(image.error().code(), Code::kInvalidArgument);
    EXPECT_THAT(image.error().message(), HasSubstr(says));
  };
  refused({}, "none has a byte");
  refused({Spec("a", 0)}, "none has a byte");
  refused({Spec("a", UINT64_MAX)}, "2^48");
  refused({Spec("a", kMaxImageBytes), Spec("b", 1)}, "2^48");
}

TEST(Image, LayerIsTheNumberAfterItsWord) {
  EXPECT_EQ(LayerOf("model.layers.7.mlp.up_proj.weight"), 7u);
  EXPECT_EQ(LayerOf("transformer.h.0.attn.bias"), 0u);
  EXPECT_EQ(LayerOf("blocks.31"), 31u);
  EXPECT_EQ(LayerOf("layers.layers.4.x"), 4u);
  for (const char* name :
       {"", "model.norm.weight", "lm_head.weight", "model.layers", "layers.", "layers.x.1",
        "xlayers.1.y", "layers.-1", "layers.1x.y", "layers.99999999999.x", "experts.5.w"}) {
    EXPECT_EQ(LayerOf(name), manifest::kNoLayer) << name;
  }
}

TEST(Image, ManifestSaysWhereEachTensorLies) {
  std::vector<TensorSpec> specs = {Spec("model.layers.10.w", 300), Spec("a", 0),
                                   Spec("model.layers.9.w", 5000)};
  specs[0].dtype = "F8_E4M3";
  specs[0].shape = {3, 1, 100};
  const auto image = PlanImage(specs, 4096);
  ASSERT_TRUE(image.has_value());
  Digest digest;
  digest.bytes[0] = 42;
  const std::vector<uint8_t> bytes = BuildManifest(specs, *image, digest);

  manifest::ManifestHeader header;
  ASSERT_GE(bytes.size(), sizeof header);
  std::memcpy(&header, bytes.data(), sizeof header);
  EXPECT_EQ(header.magic, manifest::kManifestMagic);
  EXPECT_EQ(std::string(reinterpret_cast<const char*>(bytes.data()), 8), "TRRCMAN1");
  EXPECT_EQ(header.version, manifest::kManifestVersion);
  ASSERT_EQ(header.tensors, 3u);
  EXPECT_EQ(header.image_bytes, image->bytes);
  EXPECT_EQ(header.block_bytes, 4096u);
  EXPECT_EQ(header.blocks, 2u);
  EXPECT_EQ(header.layers, 11u);
  EXPECT_EQ(header.digest[0], 42);
  ASSERT_EQ(header.strings_offset + header.strings_bytes, bytes.size());

  std::string before;
  for (uint32_t i = 0; i < header.tensors; ++i) {
    manifest::TensorRecord record;
    std::memcpy(&record, bytes.data() + sizeof header + i * sizeof record, sizeof record);
    const std::string name(
        reinterpret_cast<const char*>(bytes.data()) + header.strings_offset + record.name_offset,
        record.name_bytes);
    EXPECT_LE(before, name) << "records are sorted";
    before = name;
    const auto spec = std::find_if(specs.begin(), specs.end(),
                                   [&](const TensorSpec& s) { return s.name == name; });
    ASSERT_NE(spec, specs.end()) << name;
    EXPECT_EQ(record.bytes, spec->bytes);
    EXPECT_LE(record.offset + record.bytes, header.image_bytes);
    ASSERT_EQ(record.rank, spec->shape.size());
    for (uint32_t d = 0; d < manifest::kMaxRank; ++d)
      EXPECT_EQ(record.shape[d], d < record.rank ? spec->shape[d] : 0);
    EXPECT_EQ(std::string(record.dtype), spec->dtype);
    EXPECT_EQ(record.layer, LayerOf(name));
  }
}

// docs/keys.md has these, computed with Python's hashlib.
TEST(Image, ContentDigestIsTheOneOfTheDocument) {
  std::vector<TensorSpec> specs = {
      {.name = "b", .dtype = "U8", .shape = {4}, .file = 0, .file_offset = 0, .bytes = 4},
      {.name = "a.10", .dtype = "BF16", .shape = {2, 1}, .file = 0, .file_offset = 0, .bytes = 4},
      {.name = "a.9", .dtype = "F32", .shape = {}, .file = 0, .file_offset = 0, .bytes = 4}};
  const std::vector<std::string> contents = {"bbbb", "aaaa", "cccc"};
  const auto image = PlanImage(specs, 4096);
  ASSERT_TRUE(image.has_value());
  std::vector<Digest> digests;
  for (const ImageTensor& tensor : image->tensors)
    digests.push_back(Sha256().Update(contents[tensor.spec]).Finish());
  EXPECT_EQ(ContentDigest(specs, *image, digests).Hex(),
            "bea914c472b4957fc5cdf35b875c19ea5a7be4ba41795f67ef5632daf73da2a4");
}

}  // namespace
}  // namespace terrace::weights
