#include "cli/text.h"

#include <gmock/gmock.h>

namespace terrace::cli {
namespace {

using ::testing::ElementsAre;
using ::testing::Eq;
using ::testing::Optional;

TEST(Text, BytesHaveThreeDigitsAndTheirUnit) {
  EXPECT_EQ(HumanBytes(0), "0 B");
  EXPECT_EQ(HumanBytes(1023), "1023 B");
  EXPECT_EQ(HumanBytes(1024), "1.00 KiB");
  EXPECT_EQ(HumanBytes(1536), "1.50 KiB");
  EXPECT_EQ(HumanBytes(10 * 1024), "10.0 KiB");
  EXPECT_EQ(HumanBytes(100ull << 20), "100 MiB");
  EXPECT_EQ(HumanBytes(2'500'000'000), "2.33 GiB");
  EXPECT_EQ(HumanBytes((1ull << 30) - 1), "1.00 GiB");
  EXPECT_EQ(HumanBytes(UINT64_MAX), "16384 PiB");
}

TEST(Text, CountsAreGroupedByThousands) {
  EXPECT_EQ(HumanCount(0), "0");
  EXPECT_EQ(HumanCount(999), "999");
  EXPECT_EQ(HumanCount(1000), "1,000");
  EXPECT_EQ(HumanCount(12'345'678), "12,345,678");
}

TEST(Text, TimesNameTheirTwoLargestUnits) {
  EXPECT_EQ(HumanSeconds(59), "59 s");
  EXPECT_EQ(HumanSeconds(60), "1 min 0 s");
  EXPECT_EQ(HumanSeconds(3600 + 60), "1 h 1 min");
  EXPECT_EQ(HumanSeconds(2 * 86'400 + 3 * 3600 + 59), "2 d 3 h");
}

TEST(Text, ShareOfNothingIsNoNumber) {
  EXPECT_EQ(HumanShare(0, 0), "-");
  EXPECT_EQ(HumanShare(1, 3), "33.3 %");
}

TEST(Text, SizesAreReadWithAndWithoutUnits) {
  EXPECT_THAT(ParseSize("4096"), Optional(4096u));
  EXPECT_THAT(ParseSize("64K"), Optional(65536u));
  EXPECT_THAT(ParseSize("1.5GiB"), Optional(3ull << 29));
  EXPECT_THAT(ParseSize("1.5 GiB"), Optional(3ull << 29));
  EXPECT_THAT(ParseSize("10MB"), Optional(10'000'000u));
  EXPECT_THAT(ParseSize("7B"), Optional(7u));
  EXPECT_THAT(ParseSize("2k"), Optional(2048u));
}

TEST(Text, WhatIsNoSizeIsRefused) {
  for (const char* text : {"", "K", "-1", "1.5", "0.3B", "12X", "1e3", "1KB2", "99999999999T",
                           "nan", "inf", "0x10", "1  K"}) {
    EXPECT_THAT(ParseSize(text), Eq(std::nullopt)) << text;
  }
}

TEST(Text, TokenListsTakeCommasAndBlanks) {
  EXPECT_THAT(ParseTokens("1,2, 3\n4"), Optional(ElementsAre(1, 2, 3, 4)));
  EXPECT_THAT(ParseTokens("4294967295"), Optional(ElementsAre(4294967295u)));
  EXPECT_THAT(ParseTokens(""), Optional(ElementsAre()));
}

TEST(Text, WhatIsNoTokenIsRefused) {
  for (const char* text : {"1,x", "-1", "4294967296", "1.5", "0x1", "1;2"}) {
    EXPECT_THAT(ParseTokens(text), Eq(std::nullopt)) << text;
  }
}

TEST(Text, KeysComeBackAsTheyWere) {
  const std::string hex = "00ff102030405060708090a0b0c0d0e0f0112233445566778899aabbccddeeff";
  const auto key = ParseKey(hex);
  ASSERT_TRUE(key.has_value());
  EXPECT_EQ(Hex(*key), hex);
  EXPECT_EQ(ParseKey("00FF" + hex.substr(4)), key);
  EXPECT_EQ(ParseKey(hex.substr(2)), std::nullopt);
  EXPECT_EQ(ParseKey(hex + "00"), std::nullopt);
  EXPECT_EQ(ParseKey("zz" + hex.substr(2)), std::nullopt);
}

TEST(Text, NamesFromOutsideCannotDriveTheTerminal) {
  EXPECT_EQ(Printable("a\x1b[2Jb\nc\x7f"), "a?[2Jb?c?");
  EXPECT_EQ(Printable("größe"), "größe");
}

TEST(Text, TableColumnsAreAligned) {
  Table table({"NAME", ">SIZE"});
  table.Add({"a", "1 B"});
  table.Add({"größer", "1000 KiB"});
  EXPECT_EQ(table.Text(),
            "NAME        SIZE\n"
            "a            1 B\n"
            "größer  1000 KiB\n");
}

TEST(Text, TableCellsAreMadePrintable) {
  Table table({"NAME"});
  table.Add({"x\ny"});
  EXPECT_EQ(table.Text(), "NAME\nx?y\n");
}

}  // namespace
}  // namespace terrace::cli
