#include "daemon/service/size_text.h"

#include <gtest/gtest.h>

namespace terrace {
namespace {

TEST(SizeText, ReadsNumbersWithBinaryUnits) {
  EXPECT_EQ(ParseSize("4096"), 4096u);
  EXPECT_EQ(ParseSize("16GiB"), 16ull << 30);
  EXPECT_EQ(ParseSize("1.5 MiB"), 1536u << 10);
  EXPECT_EQ(ParseSize("0"), 0u);
  EXPECT_EQ(ParseSize("0.5KiB"), 512u);
  EXPECT_EQ(ParseSize("1TiB"), 1ull << 40);
}

TEST(SizeText, RefusesEverythingElse) {
  for (const char* text :
       {"", "GiB", "-1", "-1GiB", "+1", "1e3", "0x10", "nan", "inf", "1.5", "16GB", "16G", "16gib",
        "1 GiB ", " 1GiB", "9000000TiB", "99999999999999999999999", "1,5GiB", "1GiBx"}) {
    EXPECT_EQ(ParseSize(text), std::nullopt) << text;
  }
}

TEST(SizeText, WritesTheShortestExactForm) {
  EXPECT_EQ(SizeText(0), "0");
  EXPECT_EQ(SizeText(4097), "4097B");
  EXPECT_EQ(SizeText(16ull << 30), "16GiB");
  EXPECT_EQ(SizeText(1536u << 20), "1536MiB");
  for (const uint64_t bytes : {uint64_t{1}, uint64_t{4096}, uint64_t{3} << 29, uint64_t{12345}}) {
    EXPECT_EQ(ParseSize(SizeText(bytes)), bytes);
  }
}

TEST(DurationText, NeedsAUnit) {
  EXPECT_EQ(ParseDurationMs("500ms"), 500u);
  EXPECT_EQ(ParseDurationMs("1.5s"), 1500u);
  EXPECT_EQ(ParseDurationMs("10 min"), 600'000u);
  for (const char* text : {"", "5", "5h", "-1s", "0.5ms", "99999999999s", "s"}) {
    EXPECT_EQ(ParseDurationMs(text), std::nullopt) << text;
  }
  EXPECT_EQ(DurationText(30'000), "30s");
  EXPECT_EQ(DurationText(1500), "1500ms");
  EXPECT_EQ(DurationText(600'000), "10min");
}

}  // namespace
}  // namespace terrace
