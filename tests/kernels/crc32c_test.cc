#include "kernels/crc32c.h"

#include <gtest/gtest.h>

#include <numeric>
#include <string_view>
#include <vector>

#include "base/random.h"

namespace terrace {
namespace {

// The definition, bit by bit: the polynomial 0x1EDC6F41 reflected.
uint32_t ByDefinition(std::span<const uint8_t> bytes) {
  uint32_t crc = 0xffffffff;
  for (const uint8_t byte : bytes) {
    crc ^= byte;
    for (int bit = 0; bit < 8; ++bit)
      crc = (crc >> 1) ^ ((crc & 1) != 0 ? 0x82f63b78U : 0U);
  }
  return ~crc;
}

std::vector<uint8_t> Noise(size_t bytes, uint64_t seed) {
  Random random(seed);
  std::vector<uint8_t> noise(bytes);
  for (uint8_t& byte : noise)
    byte = static_cast<uint8_t>(random());
  return noise;
}

TEST(Crc32c, IsThatOfThePublishedVectors) {
  const std::string_view digits = "123456789";
  EXPECT_EQ(Crc32c({reinterpret_cast<const uint8_t*>(digits.data()), digits.size()}), 0xe3069283U);
  EXPECT_EQ(Crc32c(std::vector<uint8_t>(32, 0)), 0x8a9136aaU);  // RFC 3720, B.4.
  EXPECT_EQ(Crc32c(std::vector<uint8_t>(32, 0xff)), 0x62a8ab43U);
  std::vector<uint8_t> rising(32);
  std::iota(rising.begin(), rising.end(), uint8_t{0});
  EXPECT_EQ(Crc32c(rising), 0x46dd794eU);
  EXPECT_EQ(Crc32c({}), 0U);
}

TEST(Crc32c, IsTheDefinitionAtEveryLengthAndAlignment) {
  const std::vector<uint8_t> noise = Noise(70'000, 1);
  const std::span<const uint8_t> all(noise);
  for (size_t bytes = 0; bytes < 300; ++bytes) {
    for (size_t offset = 0; offset < 16; ++offset)
      ASSERT_EQ(Crc32c(all.subspan(offset, bytes)), ByDefinition(all.subspan(offset, bytes)));
  }
  EXPECT_EQ(Crc32c(all), ByDefinition(all));
}

TEST(Crc32c, ContinuesWhereItStopped) {
  const std::vector<uint8_t> noise = Noise(10'000, 2);
  const std::span<const uint8_t> all(noise);
  for (size_t cut = 0; cut <= all.size(); cut += 997)
    EXPECT_EQ(Crc32c(all.subspan(cut), Crc32c(all.first(cut))), Crc32c(all));
}

}  // namespace
}  // namespace terrace
