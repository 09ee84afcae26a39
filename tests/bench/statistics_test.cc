#include "bench/statistics.h"

#include <gmock/gmock.h>

#include <nlohmann/json.hpp>

#include "bench/content.h"
#include "bench/figures.h"

namespace terrace::bench {
namespace {

TEST(Statistics, PercentilesAreValuesOfTheSample) {
  const std::vector<double> values = {5, 1, 4, 2, 3};
  EXPECT_EQ(Percentile(values, 0), 1);
  EXPECT_EQ(Percentile(values, 0.2), 1);
  EXPECT_EQ(Percentile(values, 0.5), 3);
  EXPECT_EQ(Percentile(values, 0.81), 5);
  EXPECT_EQ(Percentile(values, 1), 5);
  EXPECT_EQ(Percentile({}, 0.5), 0);
  EXPECT_EQ(Median({7, 8}), 7);
}

TEST(Statistics, TheNinetyNinthOfAHundredLeavesOneOut) {
  std::vector<double> values(100, 1.0);
  values[3] = 1000;
  EXPECT_EQ(Percentile(values, 0.99), 1);
  values[50] = 500;
  EXPECT_EQ(Percentile(values, 0.99), 500);
}

TEST(Statistics, MeanOfNothingIsZero) {
  EXPECT_EQ(Mean(std::vector<double>{}), 0);
  EXPECT_EQ(Mean(std::vector<double>{1, 2, 6}), 3);
}

TEST(Figures, JsonHasSuiteMachineFiguresAndUnits) {
  const auto json = FiguresJson("demo", {{"count_of_x", 3, "count"}, {"ratio", 1.25, "ratio"}});
  EXPECT_EQ(json["suite"], "demo");
  EXPECT_EQ(json["figures"]["count_of_x"].dump(), "3");
  EXPECT_EQ(json["figures"]["ratio"], 1.25);
  EXPECT_EQ(json["units"]["ratio"], "ratio");
  EXPECT_GT(json["machine"]["processors"], 0);
  EXPECT_GT(json["machine"]["memory_bytes"], 0);
}

TEST(Content, EveryWrongByteIsCounted) {
  const kvc_key key = SyntheticKey(42);
  std::vector<uint8_t> page(4096);
  FillContent(key, page);
  EXPECT_EQ(WrongBytes(key, page), 0u);
  EXPECT_GT(WrongBytes(SyntheticKey(43), page), 4000u);
  for (const size_t at : {size_t{0}, size_t{7}, size_t{2048}, page.size() - 1}) {
    page[at] ^= 1;
    EXPECT_EQ(WrongBytes(key, page), 1u) << at;
    page[at] ^= 1;
  }
}

TEST(Content, TableBitsOfKeysHaveNoCollisions) {
  std::vector<bool> taken(1u << 12);
  for (uint64_t i = 0; i < taken.size(); ++i) {
    uint64_t word;
    const kvc_key key = SyntheticKey(i);
    std::memcpy(&word, key.bytes + 8, sizeof word);
    ASSERT_FALSE(taken[word & (taken.size() - 1)]) << i;
    taken[word & (taken.size() - 1)] = true;
  }
}

}  // namespace
}  // namespace terrace::bench
