#include "base/hex.h"

#include <gtest/gtest.h>

#include <array>

namespace terrace {
namespace {

TEST(Hex, EncodesLowerCaseAndDecodesEitherCase) {
  const std::array<uint8_t, 4> bytes{0x00, 0x0f, 0xa5, 0xff};
  EXPECT_EQ(HexEncode(bytes), "000fa5ff");
  std::array<uint8_t, 4> decoded{};
  EXPECT_TRUE(HexDecode("000Fa5fF", decoded));
  EXPECT_EQ(decoded, bytes);
}

TEST(Hex, RefusesWrongLengthsAndDigits) {
  std::array<uint8_t, 2> out{};
  EXPECT_FALSE(HexDecode("abc", out));
  EXPECT_FALSE(HexDecode("abcdef", out));
  EXPECT_FALSE(HexDecode("", out));
  for (const char* wrong : {"ab/d", "ab:d", "ab@d", "abGd", "ab`d", "abgd", "ab d"}) {
    EXPECT_FALSE(HexDecode(wrong, out)) << wrong;
  }
}

}  // namespace
}  // namespace terrace
