// The shared-memory layout is a format: another client is written from docs/shared_memory.md, so
// what that page says is pinned down here in numbers.
#include <gtest/gtest.h>

#include <cstddef>
#include <set>
#include <string>

#include "proto/shared_memory.h"

namespace terrace::shm {
namespace {

TEST(Layout, HandlePacksArenaSlotAndSequence) {
  const Handle handle = MakeHandle(0xabcde, 0x12345, 0xfedcba);
  EXPECT_EQ(handle, 0xabcde12345fedcbau);
  EXPECT_EQ(ArenaOf(handle), 0xabcdeu);
  EXPECT_EQ(SlotOf(handle), 0x12345u);
  EXPECT_EQ(SequenceOf(handle), 0xfedcbau);
  EXPECT_EQ(kSequenceBits + kSlotBits + kArenaBits, 64);
}

TEST(Layout, ExtentIgnoresTheSequence) {
  EXPECT_EQ(ExtentOf(MakeHandle(3, 4, 1)), ExtentOf(MakeHandle(3, 4, 2)));
  EXPECT_NE(ExtentOf(MakeHandle(3, 4, 1)), ExtentOf(MakeHandle(3, 5, 1)));
  EXPECT_NE(ExtentOf(MakeHandle(3, 4, 1)), ExtentOf(MakeHandle(4, 4, 1)));
}

TEST(Layout, EntryWordsLieAsDocumented) {
  EXPECT_EQ(offsetof(Entry, handle), 0u);
  EXPECT_EQ(offsetof(Entry, key), 8u);
  EXPECT_EQ(offsetof(Entry, space), 40u);
  EXPECT_EQ(offsetof(Entry, part_bytes), 48u);
  EXPECT_EQ(offsetof(Entry, tokens_passed), 56u);
}

TEST(Layout, DirectoryLiesAsDocumented) {
  EXPECT_EQ(offsetof(DirectoryHeader, magic), 0u);
  EXPECT_EQ(offsetof(DirectoryHeader, version), 8u);
  EXPECT_EQ(offsetof(DirectoryHeader, directory_id), 16u);
  EXPECT_EQ(offsetof(DirectoryHeader, capacity), 24u);
  EXPECT_EQ(offsetof(DirectoryHeader, bytes), 32u);
  EXPECT_EQ(offsetof(DirectoryHeader, superseded), 64u);
  EXPECT_EQ(offsetof(DirectoryHeader, generations), 128u);
  EXPECT_EQ(offsetof(DirectoryHeader, spaces), 128u + 8 * 1024);
  EXPECT_EQ(kEntriesOffset, 270336u + 4096);
  EXPECT_EQ(DirectoryBytes(1024), kEntriesOffset + 65536);
}

TEST(Layout, ChannelLiesAsDocumented) {
  EXPECT_EQ(offsetof(Channel, magic), 0u);
  EXPECT_EQ(offsetof(Channel, pin_lines), 24u);
  EXPECT_EQ(offsetof(Channel, lanes), 64u);
  EXPECT_EQ(offsetof(Channel, upper_summary), 128u);
  EXPECT_EQ(offsetof(Channel, summary), 192u);
  EXPECT_EQ(offsetof(Channel, lines), 192u + 1024);
  EXPECT_EQ(offsetof(Channel, counters), 1216u + 8192 * 64);
  EXPECT_EQ(offsetof(Channel, rings), 525504u + 64 * 128);
  EXPECT_EQ(offsetof(Channel, times), 533696u + 64 * 32896);
  EXPECT_EQ(offsetof(LaneTimes, buckets), 8u);
  EXPECT_EQ(HitTimeBoundNs(0), 32u);
  EXPECT_EQ(HitTimeBoundNs(kHitTimeBuckets - 2), 262'144u);
  EXPECT_EQ(sizeof(Ring), 128u + 1024 * 32);
  EXPECT_EQ(offsetof(Ring, tail), 64u);
  EXPECT_EQ(offsetof(Ring, records), 128u);
}

TEST(Layout, MagicsReadAsTextInMemoryOrder) {
  EXPECT_EQ(std::string(reinterpret_cast<const char*>(&kDirectoryMagic), 8), "TRRCDIR1");
  EXPECT_EQ(std::string(reinterpret_cast<const char*>(&kChannelMagic), 8), "TRRCHNN1");
}

TEST(Layout, TokensAndTierShareAWord) {
  const uint32_t packed = PackTokens(512, Tier::kRemote);
  EXPECT_EQ(packed, 512u | 3u << 24);
  EXPECT_EQ(TokensOf(packed), 512u);
  EXPECT_EQ(TierOf(packed), Tier::kRemote);
}

TEST(Layout, HomeLinesOfOneKeyDifferBySpaceEpochAndPart) {
  constexpr uint64_t kCapacity = 1u << 20;
  std::set<uint64_t> homes;
  for (uint32_t part = 0; part < 8; ++part) {
    // tp_rank | tp_size << 8, as the ranks of one engine use them.
    homes.insert(HomeLine(12345, PackPair(0, 1), part | 8u << 8, kCapacity));
  }
  for (uint32_t slot = 1; slot < 9; ++slot) {
    homes.insert(HomeLine(12345, PackPair(slot, 1), 0, kCapacity));
  }
  for (uint32_t epoch = 2; epoch < 10; ++epoch) {
    homes.insert(HomeLine(12345, PackPair(0, epoch), 0, kCapacity));
  }
  EXPECT_EQ(homes.size(), 24u);
}

TEST(Layout, HomeLineHasTheDocumentedValue) {
  EXPECT_EQ(HomeLine(0x0123456789abcdef, PackPair(7, 3), 0x0802, 1u << 20), 0x32244u);
}

TEST(Layout, SizesAreAsDocumented) {
  EXPECT_EQ(kEntriesOffset, 274'432u);
  EXPECT_EQ(kChannelBytes, 2'650'112u);
}

}  // namespace
}  // namespace terrace::shm
