#include "daemon/engine/weights/record.h"

#include <gmock/gmock.h>

#include "base/random.h"

namespace terrace::weights {
namespace {

using testing::HasSubstr;

Record Example() {
  Record record;
  record.name = "org/model-1B";
  record.version = "v1.0_a";
  record.ordinal = 77;
  record.tensors = 146;
  record.tensor_bytes = 2'471'628'800;
  record.image_bytes = 2'471'629'056;
  record.listing.bytes[3] = 9;
  record.digest.bytes[31] = 1;
  record.files = {{.path = "/models/a b.safetensors", .bytes = 5},
                  {.path = "/b", .bytes = 1u << 31}};
  return record;
}

TEST(Record, ComesBackAsItWas) {
  const Record record = Example();
  const auto back = DecodeRecord(RecordKey(record.name, record.version), EncodeRecord(record));
  ASSERT_TRUE(back.has_value()) << back.error().ToString();
  EXPECT_EQ(back->name, record.name);
  EXPECT_EQ(back->version, record.version);
  EXPECT_EQ(back->ordinal, record.ordinal);
  EXPECT_EQ(back->tensors, record.tensors);
  EXPECT_EQ(back->tensor_bytes, record.tensor_bytes);
  EXPECT_EQ(back->image_bytes, record.image_bytes);
  EXPECT_EQ(back->listing, record.listing);
  EXPECT_EQ(back->digest, record.digest);
  ASSERT_EQ(back->files.size(), 2u);
  EXPECT_EQ(back->files[0].path, "/models/a b.safetensors");
  EXPECT_EQ(back->files[1].bytes, uint64_t{1} << 31);
}

TEST(Record, OfAnyOtherLengthIsRefused) {
  const std::string value = EncodeRecord(Example());
  const std::string key = RecordKey("m", "1");
  for (size_t bytes = 0; bytes < value.size(); ++bytes) {
    const auto decoded = DecodeRecord(key, value.substr(0, bytes));
    ASSERT_FALSE(decoded.has_value()) << bytes;
    EXPECT_EQ(decoded.error().code(), Code::kDataLoss);
    EXPECT_THAT(decoded.error().message(), HasSubstr(key));
  }
  EXPECT_FALSE(DecodeRecord(key, value + "x").has_value());
}

TEST(Record, OfAnotherFormatIsRefusedWithItsNumber) {
  std::string value = EncodeRecord(Example());
  value[0] = 9;
  const auto decoded = DecodeRecord(RecordKey("m", "1"), value);
  ASSERT_FALSE(decoded.has_value());
  EXPECT_THAT(decoded.error().message(), HasSubstr("format 9"));
}

TEST(Record, WithAnotherKeyIsRefused) {
  const std::string value = EncodeRecord(Example());
  for (const char* key : {"", "model/", "model/m", "model/@1", "model/m@", "other/m@1",
                          "model/m@1@2", "model/m m@1"}) {
    EXPECT_FALSE(DecodeRecord(key, value).has_value()) << key;
  }
}

TEST(Record, DamageIsRefusedOrHarmless) {
  const std::string value = EncodeRecord(Example());
  for (uint64_t seed = 1; seed <= 5000; ++seed) {
    Random random(seed);
    std::string damaged = value;
    for (int i = 0; i < 3; ++i)
      damaged[random.Below(damaged.size())] = static_cast<char>(random());
    const auto decoded = DecodeRecord(RecordKey("m", "1"), damaged);
    if (decoded) {
      EXPECT_EQ(EncodeRecord(*decoded), damaged) << "seed " << seed;
    }
  }
}

TEST(Names, AreOfFewCharacters) {
  for (const char* good : {"a", "meta-llama/Llama-3.2-1B", "v1.0", "A_b"})
    EXPECT_TRUE(CheckName("name", good).ok()) << good;
  for (const char* bad : {"", "a b", "a@b", "a\n", "\xc3\xa4", "a:b"})
    EXPECT_THAT(CheckName("name", bad).message(), HasSubstr("name: must be")) << bad;
  EXPECT_TRUE(CheckName("name", std::string(128, 'x')).ok());
  EXPECT_FALSE(CheckName("name", std::string(129, 'x')).ok());
}

}  // namespace
}  // namespace terrace::weights
