#include "tiers/host/residency.h"

#include <gtest/gtest.h>

#include <vector>

#include "base/random.h"

namespace terrace {
namespace {

TEST(Residency, RangesRoundOutwardsAndInwards) {
  const PageRange touched = PageRange::Touched(4095, 2);
  EXPECT_EQ(touched.first, 0u);
  EXPECT_EQ(touched.end, 2u);
  EXPECT_TRUE(PageRange::Inside(1, 8190).empty());
  const PageRange inside = PageRange::Inside(1, 8191);
  EXPECT_EQ(inside.first, 1u);
  EXPECT_EQ(inside.end, 2u);
}

TEST(Residency, HugeChunkIsPresentAsAWholeUntilAPartIsCleared) {
  Residency residency(3 * kHugePageBytes);
  residency.SetSmall({600, 610});
  EXPECT_EQ(residency.small_bytes(), 10 * kSmallPageBytes);
  residency.SetHuge(1);
  EXPECT_EQ(residency.huge_bytes(), kHugePageBytes);
  EXPECT_EQ(residency.small_bytes(), 0u);
  EXPECT_TRUE(residency.Present(PageRange::OfChunk(1)));
  residency.Clear({600, 610});
  EXPECT_EQ(residency.huge_bytes(), 0u);
  EXPECT_EQ(residency.small_bytes(), kHugePageBytes - 10 * kSmallPageBytes);
  EXPECT_FALSE(residency.Present({599, 601}));
  EXPECT_TRUE(residency.Present({610, 1024}));
}

TEST(Residency, ClaimsAreCountedByChunk) {
  Residency residency(2 * kHugePageBytes);
  residency.Claim({500, 520});
  EXPECT_EQ(residency.ClaimsWithout(0, {510, 512}), 10u);
  EXPECT_EQ(residency.ClaimsWith(1, {512, 600}), 88u);
  EXPECT_TRUE(residency.Claimed(500));
  EXPECT_FALSE(residency.Claimed(499));
  residency.Unclaim({0, 512});
  EXPECT_FALSE(residency.Claimed(511));
  EXPECT_TRUE(residency.Claimed(512));
}

TEST(Residency, ShortLastChunkIsNotWholeAndTruncatingForgetsTheEnd) {
  Residency residency(kHugePageBytes + kSmallPageBytes);
  EXPECT_TRUE(residency.Whole(0));
  EXPECT_FALSE(residency.Whole(1));
  residency.SetHuge(0);
  residency.SetSmall({512, 513});
  residency.Truncate(kHugePageBytes - kSmallPageBytes);
  EXPECT_EQ(residency.pages(), 511u);
  EXPECT_EQ(residency.huge_bytes(), 0u);
  EXPECT_EQ(residency.small_bytes(), 511 * kSmallPageBytes);
}

TEST(Residency, AgreesWithOneFlagAPageOverRandomUse) {
  constexpr size_t kPages = 5 * kChunkPages + 77;
  for (uint64_t seed = 1; seed <= 10; ++seed) {
    SCOPED_TRACE(seed);
    Random random(seed);
    Residency residency(kPages * kSmallPageBytes);
    std::vector<bool> present(kPages);
    std::vector<bool> claimed(kPages);
    for (int step = 0; step < 300; ++step) {
      const size_t first = random.Below(kPages);
      const PageRange range{first, first + 1 + random.Below(kPages - first)};
      const uint64_t verb = random.Below(4);
      for (size_t page = range.first; page < range.end; ++page) {
        if (verb == 0) claimed[page] = true;
        if (verb == 1) present[page] = true;
        if (verb == 2) present[page] = claimed[page] = false;
      }
      if (verb == 0) residency.Claim(range);
      if (verb == 1) residency.SetSmall(range);
      if (verb == 2) residency.Clear(range);
      if (verb == 3) {
        const size_t chunk = random.Below(5);
        residency.SetHuge(chunk);
        for (size_t page = 0; page < kChunkPages; ++page)
          present[chunk * kChunkPages + page] = true;
      }
      size_t present_pages = 0;
      for (size_t page = 0; page < kPages; ++page) {
        present_pages += present[page];
        ASSERT_EQ(residency.Present({page, page + 1}), present[page]);
        ASSERT_EQ(residency.Claimed(page), claimed[page]);
      }
      ASSERT_EQ(residency.present_bytes(), present_pages * kSmallPageBytes);
    }
  }
}

}  // namespace
}  // namespace terrace
