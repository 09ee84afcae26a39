// The journal's record of a space with stored pages: what was written is read back, and nothing
// else.
#include "daemon/engine/store/space_record.h"

#include <gtest/gtest.h>

#include "tests/engine/engine_world.h"

namespace terrace {
namespace {

SpaceRecord Example() {
  SpaceRecord record;
  record.tenant = "team";
  record.spec.weights = KeyOf(1);
  record.spec.adapter = KeyOf(2);
  record.spec.salt = {1, 2, 3};
  record.spec.layout = LayoutOf(16384);
  record.spec.model = "llama";
  record.id = SpaceIdOf(record.tenant, record.spec);
  return record;
}

TEST(SpaceRecord, IsReadBack) {
  const SpaceRecord record = Example();
  const Result<SpaceRecord> read =
      DecodeSpaceRecord(SpaceRecordKey(record.id), EncodeSpaceRecord(record));
  ASSERT_TRUE(read) << read.error().ToString();
  EXPECT_EQ(read->id, record.id);
  EXPECT_EQ(read->tenant, "team");
  EXPECT_EQ(read->spec.model, "llama");
  EXPECT_EQ(read->spec.salt, record.spec.salt);
  EXPECT_EQ(read->spec.layout, record.spec.layout);
  EXPECT_EQ(read->spec.weights, record.spec.weights);
}

TEST(SpaceRecord, EveryOtherLengthIsRefused) {
  const SpaceRecord record = Example();
  const std::string value = EncodeSpaceRecord(record);
  for (size_t bytes = 0; bytes < value.size(); ++bytes)
    EXPECT_FALSE(DecodeSpaceRecord(SpaceRecordKey(record.id), value.substr(0, bytes))) << bytes;
  EXPECT_FALSE(DecodeSpaceRecord(SpaceRecordKey(record.id), value + "x"));
}

TEST(SpaceRecord, AnotherSpacesRecordIsRefused) {
  const SpaceRecord record = Example();
  for (size_t at = 0; at < EncodeSpaceRecord(record).size(); ++at) {
    std::string value = EncodeSpaceRecord(record);
    value[at] = static_cast<char>(value[at] ^ 1);
    const Result<SpaceRecord> read = DecodeSpaceRecord(SpaceRecordKey(record.id), value);
    // The model alone is no part of the id.
    if (!read) continue;
    EXPECT_EQ(read->spec.model.size(), record.spec.model.size());
    EXPECT_NE(read->spec.model, record.spec.model);
  }
  EXPECT_FALSE(DecodeSpaceRecord(SpaceRecordKey(KeyOf(3)), EncodeSpaceRecord(record)));
}

TEST(SpaceRecord, FingerprintsDifferWithTheLayout) {
  KvLayout layout = LayoutOf(16384);
  const uint64_t one = LayoutFingerprint(layout);
  EXPECT_EQ(one, LayoutFingerprint(layout));
  layout.order = "plane,layer,token,head,dim";
  EXPECT_NE(one, LayoutFingerprint(layout));
}

}  // namespace
}  // namespace terrace
