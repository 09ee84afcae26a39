// Headers that are wrong by chance: whatever is accepted must still be a consistent header.
#include <algorithm>

#include "base/random.h"
#include "tests/source/files.h"
#include "tiers/source/safetensors.h"
#include "tiers/source/shard_index.h"

namespace terrace {
namespace {

constexpr uint64_t kDataBytes = 96;

std::string ValidHeader() {
  return R"({"__metadata__":{"format":"pt","note":"\u00e4"},)" +
         Entry("model.layers.0.w", "BF16", "[4,4]", 0, 32) + "," +
         Entry("model.layers.1.w", "F32", "[8]", 32, 64) + "," +
         Entry("\xe6\xa8\xa1", "U8", "[2,0]", 64, 64) + "," +
         Entry("model.norm", "F64", "[4,1,1]", 64, 96) + "}";
}

// Changes a few bytes, cuts, repeats or splices pieces of `text`.
std::string Mutate(std::string text, Random& random) {
  static constexpr char kTokens[] = "{}[]\",:0189-.eE\\u\x00\xff\xc3nft ";
  for (uint64_t changes = 1 + random.Below(4); changes > 0 && !text.empty(); --changes) {
    const size_t at = random.Below(text.size());
    const size_t bytes = std::min<size_t>(1 + random.Below(24), text.size() - at);
    switch (random.Below(6)) {
      case 0:
        text[at] = static_cast<char>(random.Below(256));
        break;
      case 1:
        text[at] = kTokens[random.Below(sizeof kTokens - 1)];
        break;
      case 2:
        text.erase(at, bytes);
        break;
      case 3:
        text.insert(random.Below(text.size()), text.substr(at, bytes));
        break;
      case 4:
        text.insert(at, std::to_string(random() >> random.Below(64)));
        break;
      default:
        text.resize(at);
        break;
    }
  }
  return text;
}

TEST(HeaderMutation, AcceptedHeadersCoverTheDataExactly) {
  const std::string valid = ValidHeader();
  ASSERT_TRUE(ParseSafetensorsHeader(valid, kDataBytes, 0).has_value());
  uint64_t accepted = 0;
  uint64_t refused = 0;
  for (uint64_t seed = 1; seed <= 20'000; ++seed) {
    Random random(seed);
    const std::string header = Mutate(valid, random);
    const auto parsed = ParseSafetensorsHeader(header, kDataBytes, 0);
    if (!parsed) {
      ++refused;
      ASSERT_FALSE(parsed.error().message().empty()) << "seed " << seed;
      continue;
    }
    ++accepted;
    uint64_t at = 8 + header.size();
    for (const TensorSpec& tensor : *parsed) {
      ASSERT_EQ(tensor.file_offset, at) << "seed " << seed;
      at += tensor.bytes;
      uint64_t bytes = DtypeBytes(tensor.dtype);
      for (const uint64_t n : tensor.shape)
        bytes *= n;
      ASSERT_EQ(tensor.bytes, bytes) << "seed " << seed;
    }
    ASSERT_EQ(at, 8 + header.size() + kDataBytes) << "seed " << seed;
  }
  // Both kinds were seen: else the mutations are too wild or too tame.
  EXPECT_GT(accepted, 100u);
  EXPECT_GT(refused, 10'000u);
}

TEST(HeaderMutation, WholeFilesNeverHarm) {
  const TemporaryDirectory directory;
  SourceOpener opener;
  const std::string valid = FileOf(ValidHeader(), std::string(kDataBytes, 'd'));
  for (uint64_t seed = 1; seed <= 500; ++seed) {
    Random random(seed);
    const std::string path = directory.Write("m.safetensors", Mutate(valid, random));
    const auto opened = opener.OpenPaths({path});
    if (!opened) {
      ASSERT_NE(opened.error().code(), Code::kInternal) << "seed " << seed;
      continue;
    }
    for (const TensorSpec& tensor : (*opened)->tensors())
      ASSERT_LE(tensor.file_offset + tensor.bytes, (*opened)->files()[0].bytes) << "seed " << seed;
  }
}

TEST(HeaderMutation, IndexesNeverHarm) {
  const std::string valid =
      R"({"metadata":{"total_size":8,"x":[1,{"y":null}]},"weight_map":{"a":"s1","b":"s2"}})";
  ASSERT_TRUE(ParseShardIndex(valid).has_value());
  uint64_t accepted = 0;
  for (uint64_t seed = 1; seed <= 20'000; ++seed) {
    Random random(seed);
    const auto parsed = ParseShardIndex(Mutate(valid, random));
    if (!parsed) continue;
    ++accepted;
    for (const ShardedTensor& entry : *parsed)
      ASSERT_EQ(entry.shard.find('/'), std::string::npos) << "seed " << seed;
  }
  EXPECT_GT(accepted, 100u);
}

}  // namespace
}  // namespace terrace
