#include "tiers/host/host_tier.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cerrno>
#include <cstring>
#include <set>

#include "base/random.h"
#include "tests/tiers/host_fixture.h"

namespace terrace {
namespace {

using ::testing::HasSubstr;

class HostArenas : public HostTierTest {};
class HostReserve : public HostTierTest {};

// ---- Arenas and descriptors
TEST_F(HostArenas, NewArenaHasItsSizeIsZeroAndNotResident) {
  const auto created = tier_->Create(3 * kMiB, ArenaUse::kSlab);
  ASSERT_TRUE(created.has_value());
  EXPECT_FALSE(created->resident);
  const auto bytes = tier_->Bytes(created->id);
  EXPECT_EQ(bytes.size(), 3 * kMiB);
  EXPECT_EQ(ResidentPages(bytes), 0u);
  EXPECT_TRUE(AllZero(bytes));
  const UniqueFd fd = Open(created->id, Protection::kReadWrite);
  struct stat facts {};
  ASSERT_EQ(::fstat(fd.get(), &facts), 0);
  EXPECT_EQ(static_cast<size_t>(facts.st_size), 3 * kMiB);
  EXPECT_EQ(facts.st_mode & 0777, 0600u);
  EXPECT_EQ(tier_->Report().arena_bytes, 3 * kMiB);
}

TEST_F(HostArenas, IdsAreNotReusedAndEndAtTheirLimit) {
  Restart({.blank_bytes = kMiB, .max_slab_id = 3});
  EXPECT_EQ(Create(kMiB), 1u);
  tier_->Release(1);
  EXPECT_EQ(Create(kMiB), 2u);
  EXPECT_EQ(Create(kMiB), 3u);
  EXPECT_EQ(tier_->Create(kMiB, ArenaUse::kSlab).error().code(), Code::kExhausted);
  // Blocks have numbers of their own: no handle names them.
  EXPECT_EQ(tier_->Create(kMiB, ArenaUse::kBlock)->id, kFirstBlockId);
}

TEST_F(HostArenas, SizesThatAreNoPagesAreRefused) {
  EXPECT_EQ(tier_->Create(0, ArenaUse::kSlab).error().code(), Code::kInvalidArgument);
  EXPECT_EQ(tier_->Create(kMiB + 1, ArenaUse::kSlab).error().code(), Code::kInvalidArgument);
  EXPECT_EQ(MakeHostTier({.blank_bytes = 5000}, owner_, *pool_).error().code(),
            Code::kInvalidArgument);
}

TEST_F(HostArenas, WriterAndReaderOfASlabSeeTheDaemonsBytes) {
  const ArenaId slab = Create(kMiB);
  ASSERT_TRUE(tier_->Populate({slab, 0, kMiB}).ok());
  const UniqueFd write_fd = Open(slab, Protection::kReadWrite);
  const UniqueFd read_fd = Open(slab, Protection::kRead);
  const Mapping writer = *Mapping::Of(write_fd.get(), 0, kMiB, Protection::kReadWrite);
  const Mapping reader = *Mapping::Of(read_fd.get(), 0, kMiB, Protection::kRead);
  writer.data()[5] = 55;
  tier_->Bytes(slab)[6] = 66;
  EXPECT_EQ(tier_->Bytes(slab)[5], 55);
  EXPECT_EQ(reader.data()[5], 55);
  EXPECT_EQ(reader.data()[6], 66);
}

TEST_F(HostArenas, ReaderOfASlabCannotWriteItNorPunchIt) {
  const ArenaId slab = Create(kMiB);
  const UniqueFd fd = Open(slab, Protection::kRead);
  EXPECT_EQ(::mmap(nullptr, kMiB, PROT_READ | PROT_WRITE, MAP_SHARED, fd.get(), 0), MAP_FAILED);
  EXPECT_EQ(errno, EACCES);
  const Mapping reader = *Mapping::Of(fd.get(), 0, kMiB, Protection::kRead);
  EXPECT_NE(::mprotect(reader.data(), kMiB, PROT_READ | PROT_WRITE), 0);
  EXPECT_EQ(errno, EACCES);
  EXPECT_NE(::fallocate(fd.get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, kPage), 0);
  EXPECT_EQ(errno, EBADF);
}

TEST_F(HostArenas, NobodyResizesOrSealsASlab) {
  const ArenaId slab = Create(kMiB);
  const UniqueFd fd = Open(slab, Protection::kReadWrite);
  EXPECT_NE(::ftruncate(fd.get(), kPage), 0);
  EXPECT_EQ(errno, EPERM);
  EXPECT_NE(::ftruncate(fd.get(), 2 * kMiB), 0);
  EXPECT_EQ(errno, EPERM);
  EXPECT_NE(::fcntl(fd.get(), F_ADD_SEALS, F_SEAL_FUTURE_WRITE), 0);
  EXPECT_EQ(errno, EPERM);
}

TEST_F(HostArenas, NobodyWritesASealedBlockWhateverDescriptorItHas) {
  const ArenaId block = Create(kMiB, ArenaUse::kBlock);
  ASSERT_TRUE(tier_->Populate({block, 0, kMiB}).ok());
  std::memset(tier_->Bytes(block).data(), 7, kMiB);
  ASSERT_TRUE(tier_->Seal(block).ok());
  EXPECT_EQ(tier_->Descriptor(block, Protection::kReadWrite).error().code(),
            Code::kPermissionDenied);
  const UniqueFd read_fd = Open(block, Protection::kRead);
  // This test runs with the daemon's uid, so it may even reopen the file for writing.
  const std::string path = "/proc/self/fd/" + std::to_string(read_fd.get());
  const UniqueFd reopened(::open(path.c_str(), O_RDWR | O_CLOEXEC));
  ASSERT_TRUE(reopened);
  EXPECT_EQ(::mmap(nullptr, kMiB, PROT_READ | PROT_WRITE, MAP_SHARED, reopened.get(), 0),
            MAP_FAILED);
  EXPECT_EQ(errno, EPERM);
  EXPECT_EQ(::write(reopened.get(), "x", 1), -1);
  EXPECT_EQ(errno, EPERM);
  EXPECT_NE(::ftruncate(reopened.get(), 0), 0);
  EXPECT_EQ(errno, EPERM);
  EXPECT_NE(::fallocate(reopened.get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, kPage), 0);
  EXPECT_EQ(errno, EPERM);
  const Mapping reader = *Mapping::Of(read_fd.get(), 0, kMiB, Protection::kRead);
  EXPECT_EQ(reader.data()[kMiB - 1], 7);
  EXPECT_EQ(tier_->Bytes(block)[kMiB - 1], 7);
}

TEST_F(HostArenas, BlockIsNotHandedOutBeforeItIsSealed) {
  const ArenaId block = Create(kMiB, ArenaUse::kBlock);
  EXPECT_EQ(tier_->Descriptor(block, Protection::kRead).error().code(), Code::kUnavailable);
  ASSERT_TRUE(tier_->Seal(block).ok());
  EXPECT_TRUE(tier_->Descriptor(block, Protection::kRead).has_value());
}

TEST_F(HostArenas, ReleasedArenaStaysReadableForWhoMapsIt) {
  const ArenaId slab = Create(kMiB);
  ASSERT_TRUE(tier_->Populate({slab, 0, kMiB}).ok());
  tier_->Bytes(slab)[100] = 9;
  const UniqueFd fd = Open(slab, Protection::kRead);
  const Mapping reader = *Mapping::Of(fd.get(), 0, kMiB, Protection::kRead);
  tier_->Release(slab);
  EXPECT_EQ(reader.data()[100], 9);
  EXPECT_EQ(tier_->Report().arena_bytes, 0u);
}

TEST_F(HostArenas, MappingIsLeftOutOfCoreDumpsAndForks) {
  const ArenaId slab = Create(kMiB);
  std::ifstream file("/proc/self/smaps");
  std::ostringstream start;
  start << std::hex << reinterpret_cast<uintptr_t>(tier_->Bytes(slab).data()) << "-";
  std::string line;
  while (std::getline(file, line) && !line.starts_with(start.str())) {
  }
  while (std::getline(file, line) && !line.starts_with("VmFlags:")) {
  }
  EXPECT_THAT(line, HasSubstr(" dd"));
  EXPECT_THAT(line, HasSubstr(" dc"));
}

// ---- Populating and punching
TEST_F(HostArenas, PopulateMakesTheRangeResident) {
  const ArenaId slab = Create(8 * kMiB + 12 * kPage);
  const auto bytes = tier_->Bytes(slab);
  // Across two chunks, into the short last one, and not at page borders.
  const size_t offset = 6 * kMiB + 100;
  const size_t length = 2 * kMiB + 9 * kPage;
  ASSERT_TRUE(tier_->Populate({slab, offset, length}).ok());
  EXPECT_EQ(ResidentPages(bytes.subspan(6 * kMiB, 2 * kMiB + 10 * kPage)), 522u);
  EXPECT_EQ(ResidentPages(bytes.first(6 * kMiB)), 0u);
  EXPECT_TRUE(AllZero(bytes));
}

TEST_F(HostArenas, PopulateOfWhatIsResidentCallsNothing) {
  const ArenaId slab = Create(4 * kMiB);
  ASSERT_TRUE(tier_->Populate({slab, 0, 3 * kMiB}).ok());
  const int collapses = system_.calls("advise 25");
  const int populates = system_.calls("advise 23");
  EXPECT_GT(populates, 0);
  ASSERT_TRUE(tier_->Populate({slab, 0, 3 * kMiB}).ok());
  ASSERT_TRUE(tier_->Populate({slab, kMiB + 77, 1000}).ok());
  EXPECT_EQ(system_.calls("advise 25"), collapses);
  EXPECT_EQ(system_.calls("advise 23"), populates);
}

TEST_F(HostArenas, PopulateKeepsWhatIsWritten) {
  const ArenaId slab = Create(4 * kMiB);
  ASSERT_TRUE(tier_->Populate({slab, kMiB, kMiB / 2}).ok());
  const auto bytes = tier_->Bytes(slab);
  std::memset(bytes.data() + kMiB, 3, kMiB / 2);
  ASSERT_TRUE(tier_->Populate({slab, 0, 4 * kMiB}).ok());
  for (size_t at = 0; at < bytes.size(); ++at) {
    ASSERT_EQ(bytes[at], at >= kMiB && at < kMiB + kMiB / 2 ? 3 : 0) << at;
  }
}

TEST_F(HostArenas, ReportAgreesWithTheKernelAboutHugePages) {
  const ArenaId slab = Create(8 * kMiB + 3 * kPage);
  ASSERT_TRUE(tier_->Populate({slab, 0, 8 * kMiB + 3 * kPage}).ok());
  const auto bytes = tier_->Bytes(slab);
  // The kernel shows as mapped what was touched after it was collapsed.
  for (size_t at = 0; at < bytes.size(); at += kPage)
    bytes[at] = 0;
  const HostReport report = tier_->Report();
  EXPECT_EQ(report.thp_bytes, SmapsBytes(bytes, "ShmemPmdMapped"));
  EXPECT_EQ(report.thp_bytes + report.small_page_bytes, SmapsBytes(bytes, "Rss"));
  EXPECT_EQ(report.locked_bytes, SmapsBytes(bytes, "Locked"));
  EXPECT_EQ(report.hugetlb_bytes, 0u);
  if (report.thp_bytes == 8 * kMiB) {
    EXPECT_THAT(report.huge_pages, HasSubstr("8 MiB of 8 MiB on huge pages"));
  }
}

TEST_F(HostArenas, SmallPagesAreUsedWhereHugeOnesAreNotWanted) {
  if (HostSystem().ShmemHugePages() == "force") GTEST_SKIP() << "the kernel is told to ignore it";
  Restart({.blank_bytes = 4 * kMiB, .huge_pages = false});
  const ArenaId slab = Create(4 * kMiB);
  ASSERT_TRUE(tier_->Populate({slab, 0, kMiB}).ok());
  EXPECT_EQ(ResidentPages(tier_->Bytes(slab)), 256u);
  EXPECT_EQ(tier_->Report().small_page_bytes, kMiB);
  EXPECT_EQ(tier_->Report().huge_pages, "none: switched off by the configuration");
  EXPECT_EQ(system_.calls("advise 25"), 0);
}

TEST_F(HostArenas, PunchFreesThePagesAndReadsAsZeros) {
  const ArenaId slab = Create(8 * kMiB);
  ASSERT_TRUE(tier_->Populate({slab, 0, 8 * kMiB}).ok());
  const auto bytes = tier_->Bytes(slab);
  std::memset(bytes.data(), 0xee, bytes.size());
  const UniqueFd fd = Open(slab, Protection::kRead);
  ASSERT_EQ(AllocatedBytes(fd.get()), 8 * kMiB);
  // From the middle of a page to the middle of a page, over a whole chunk.
  const size_t begin = kMiB + 100;
  const size_t end = 5 * kMiB - 100;
  ASSERT_TRUE(tier_->Punch({slab, begin, end - begin}).ok());
  EXPECT_EQ(AllocatedBytes(fd.get()), 4 * kMiB + 2 * kPage);
  const HostReport report = tier_->Report();
  EXPECT_EQ(report.thp_bytes + report.small_page_bytes, 4 * kMiB + 2 * kPage);
  EXPECT_TRUE(AllZero(bytes.subspan(begin, end - begin)));
  EXPECT_EQ(bytes[begin - 1], 0xee);
  EXPECT_EQ(bytes[end], 0xee);
}

TEST_F(HostArenas, PunchedRangeCanBePopulatedAgain) {
  const ArenaId slab = Create(4 * kMiB);
  const UniqueFd fd = Open(slab, Protection::kRead);
  const auto bytes = tier_->Bytes(slab);
  for (int round = 0; round < 3; ++round) {
    ASSERT_TRUE(tier_->Populate({slab, 0, 4 * kMiB}).ok());
    ASSERT_TRUE(AllZero(bytes.subspan(kMiB, kMiB)));
    std::memset(bytes.data(), 1, bytes.size());
    ASSERT_TRUE(tier_->Punch({slab, kMiB, kMiB}).ok());
    EXPECT_EQ(AllocatedBytes(fd.get()), 3 * kMiB);
  }
  EXPECT_EQ(bytes[0], 1);
}

TEST_F(HostArenas, LastClaimOfAChunkFreesWhatTheHugePageBroughtAlong) {
  const ArenaId slab = Create(4 * kMiB);
  const UniqueFd fd = Open(slab, Protection::kRead);
  ASSERT_TRUE(tier_->Populate({slab, 0, 64 * 1024}).ok());
  ASSERT_TRUE(tier_->Populate({slab, kMiB, 64 * 1024}).ok());
  EXPECT_GE(AllocatedBytes(fd.get()), 128u * 1024);
  ASSERT_TRUE(tier_->Punch({slab, 0, 64 * 1024}).ok());
  tier_->Bytes(slab)[kMiB] = 4;
  EXPECT_EQ(tier_->Bytes(slab)[kMiB], 4);
  ASSERT_TRUE(tier_->Punch({slab, kMiB, 64 * 1024}).ok());
  EXPECT_EQ(AllocatedBytes(fd.get()), 0u);
  const HostReport report = tier_->Report();
  EXPECT_EQ(report.thp_bytes + report.small_page_bytes, 0u);
}

TEST_F(HostArenas, OnlyAChunkThatIsWhollyUsedGoesOnAHugePage) {
  const ArenaId slab = Create(4 * kMiB);
  ASSERT_TRUE(tier_->Populate({slab, 0, 64 * 1024}).ok());
  EXPECT_EQ(system_.calls("advise 25"), 0);
  EXPECT_EQ(tier_->Report().small_page_bytes, 64u * 1024);
  tier_->Bytes(slab)[5] = 5;
  ASSERT_TRUE(tier_->Populate({slab, 64 * 1024, kHuge - 64 * 1024}).ok());
  EXPECT_EQ(system_.calls("advise 25"), 1);
  EXPECT_EQ(tier_->Bytes(slab)[5], 5);
}

TEST_F(HostArenas, RangesOutsideTheArenaAreRefused) {
  const ArenaId slab = Create(kMiB);
  EXPECT_EQ(tier_->Populate({slab, 0, kMiB + 1}).code(), Code::kInvalidArgument);
  EXPECT_EQ(tier_->Populate({slab, SIZE_MAX, 2}).code(), Code::kInvalidArgument);
  EXPECT_EQ(tier_->Punch({slab, kMiB, 1}).code(), Code::kInvalidArgument);
}

TEST_F(HostArenas, RandomPopulatingAndPunchingAgreesWithTheKernel) {
  for (uint64_t seed = 1; seed <= 5; ++seed) {
    SCOPED_TRACE(seed);
    Random random(seed);
    constexpr size_t kSlot = 192 * 1024;  // Slots cross the borders of huge pages.
    constexpr size_t kSlots = 40;
    const ArenaId slab = Create(kSlot * kSlots);
    const UniqueFd fd = Open(slab, Protection::kRead);
    const auto bytes = tier_->Bytes(slab);
    std::vector<uint8_t> written(kSlots);  // 0: not claimed.
    for (int step = 0; step < 200; ++step) {
      const size_t slot = random.Below(kSlots);
      const Extent extent{slab, slot * kSlot, kSlot};
      const auto here = bytes.subspan(extent.offset, kSlot);
      if (written[slot] == 0) {
        ASSERT_TRUE(tier_->Populate(extent).ok());
        ASSERT_TRUE(AllZero(here));
        written[slot] = static_cast<uint8_t>(1 + random.Below(255));
        std::memset(here.data(), written[slot], kSlot);
      } else {
        ASSERT_TRUE(tier_->Punch(extent).ok());
        written[slot] = 0;
      }
      const HostReport report = tier_->Report();
      ASSERT_EQ(report.thp_bytes + report.small_page_bytes, AllocatedBytes(fd.get())) << step;
    }
    for (size_t slot = 0; slot < kSlots; ++slot) {
      if (written[slot] == 0) continue;  // Reading a hole would fill it.
      const auto here = bytes.subspan(slot * kSlot, kSlot);
      ASSERT_TRUE(
          std::all_of(here.begin(), here.end(), [&](uint8_t b) { return b == written[slot]; }));
      ASSERT_TRUE(tier_->Punch({slab, slot * kSlot, kSlot}).ok());
    }
    EXPECT_EQ(AllocatedBytes(fd.get()), 0u);
    tier_->Release(slab);
  }
}

// ---- The reserve
TEST_F(HostReserve, BlanksAreResidentZerosAndServeSmallerArenas) {
  ASSERT_TRUE(FillReserve(12 * kMiB));
  EXPECT_EQ(tier_->Report().blank_target_bytes, 12 * kMiB);
  EXPECT_EQ(tier_->Report().reserve, "complete");
  for (const size_t bytes : {4 * kMiB, 3 * kMiB + kPage, 2 * kMiB}) {
    const auto created = tier_->Create(bytes, ArenaUse::kBlock);
    ASSERT_TRUE(created.has_value());
    EXPECT_TRUE(created->resident);
    const auto memory = tier_->Bytes(created->id);
    EXPECT_EQ(memory.size(), bytes);
    EXPECT_EQ(ResidentPages(memory), bytes / kPage);
    EXPECT_TRUE(AllZero(memory));
    ASSERT_TRUE(tier_->Seal(created->id).ok());
    const UniqueFd fd = Open(created->id, Protection::kRead);
    EXPECT_EQ(AllocatedBytes(fd.get()), bytes);
  }
  EXPECT_EQ(tier_->Report().blank_bytes, 0u);
  EXPECT_EQ(tier_->Report().arena_bytes, 9 * kMiB + kPage);
}

TEST_F(HostReserve, TooLargeOrOneTooManyIsMadeFresh) {
  ASSERT_TRUE(FillReserve(4 * kMiB));
  EXPECT_FALSE(tier_->Create(8 * kMiB, ArenaUse::kSlab)->resident);
  EXPECT_TRUE(tier_->Create(4 * kMiB, ArenaUse::kSlab)->resident);
  EXPECT_FALSE(tier_->Create(4 * kMiB, ArenaUse::kSlab)->resident);
}

TEST_F(HostReserve, BlankArenasNeverHoldOldBytes) {
  ASSERT_TRUE(FillReserve(8 * kMiB));
  for (int round = 0; round < 6; ++round) {
    const auto created = tier_->Create(4 * kMiB, ArenaUse::kSlab);
    ASSERT_TRUE(created.has_value());
    const auto bytes = tier_->Bytes(created->id);
    ASSERT_TRUE(AllZero(bytes));
    std::memset(bytes.data(), 0xab, bytes.size());
    tier_->Release(created->id);
    ASSERT_TRUE(FillReserve(8 * kMiB));
  }
}

TEST_F(HostReserve, SurplusIsGivenUpAtOnce) {
  ASSERT_TRUE(FillReserve(16 * kMiB));
  tier_->SetReserve(5 * kMiB);  // Rounded down to whole blanks.
  EXPECT_EQ(tier_->Report().blank_bytes, 4 * kMiB);
  EXPECT_EQ(tier_->Report().blank_target_bytes, 4 * kMiB);
  const HostReport report = tier_->Report();
  EXPECT_EQ(report.thp_bytes + report.small_page_bytes + report.hugetlb_bytes, 4 * kMiB);
}

TEST_F(HostReserve, LoweredTargetHoldsForBlanksOnTheirWay) {
  tier_->SetReserve(64 * kMiB);
  EXPECT_EQ(tier_->Report().reserve, "being filled");
  tier_->SetReserve(4 * kMiB);
  ASSERT_TRUE(owner_.RunUntil([&] { return tier_->Report().blank_bytes == 4 * kMiB; }));
  EXPECT_TRUE(FillReserve(8 * kMiB));
  EXPECT_TRUE(FillReserve(0));
}

TEST_F(HostReserve, TierMayGoWhileBlanksAreMade) {
  for (int round = 0; round < 20; ++round) {
    tier_->SetReserve(64 * kMiB);
    Restart({.blank_bytes = 4 * kMiB});
    owner_.RunAll();
  }
  EXPECT_TRUE(FillReserve(4 * kMiB));
}

TEST_F(HostReserve, PunchedBlankArenaGivesItsMemoryBack) {
  ASSERT_TRUE(FillReserve(4 * kMiB));
  const ArenaId slab = Create(3 * kMiB);
  const UniqueFd fd = Open(slab, Protection::kRead);
  EXPECT_EQ(AllocatedBytes(fd.get()), 3 * kMiB);
  ASSERT_TRUE(tier_->Punch({slab, 0, kMiB}).ok());
  EXPECT_EQ(AllocatedBytes(fd.get()), 2 * kMiB);
  ASSERT_TRUE(tier_->Punch({slab, kMiB, 2 * kMiB}).ok());
  EXPECT_EQ(AllocatedBytes(fd.get()), 0u);
}

}  // namespace
}  // namespace terrace
