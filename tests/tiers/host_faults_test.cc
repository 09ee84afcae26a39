// Every call that the host tier makes fails here once, and has one defined outcome.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>

#include <cerrno>
#include <cstring>
#include <fstream>

#include "tests/tiers/host_fixture.h"

namespace terrace {
namespace {

using ::testing::HasSubstr;

const std::string kPopulate = "advise 23";
const std::string kCollapse = "advise 25";

class HostFaults : public HostTierTest {
 protected:
  static size_t OpenDescriptors() {
    size_t count = 0;
    for (int fd = 0; fd < 1024; ++fd)
      count += ::fcntl(fd, F_GETFD) >= 0;
    return count;
  }
};

class HostCreateFaults : public HostFaults,
                         public ::testing::WithParamInterface<std::pair<const char*, int>> {};

TEST_P(HostCreateFaults, CreateFailsLeaksNothingAndWorksAfterwards) {
  const auto [call, error] = GetParam();
  const size_t descriptors = OpenDescriptors();
  system_.Fail(call, error);
  const auto failed = tier_->Create(4 * kMiB, ArenaUse::kSlab);
  ASSERT_FALSE(failed.has_value());
  EXPECT_EQ(failed.error().code(), SystemError("", error).code());
  EXPECT_EQ(OpenDescriptors(), descriptors);
  EXPECT_EQ(tier_->Report().arena_bytes, 0u);
  system_.Heal();
  EXPECT_EQ(Create(4 * kMiB), 1u);
}

INSTANTIATE_TEST_SUITE_P(EveryCall, HostCreateFaults,
                         ::testing::Values(std::pair{"memfd_create", EMFILE},
                                           std::pair{"fchmod", EPERM},
                                           std::pair{"ftruncate", ENOSPC},
                                           std::pair{"mmap", ENOMEM},
                                           std::pair{"advise 10", EINVAL},  // MADV_DONTFORK
                                           std::pair{"advise 16", EINVAL},  // MADV_DONTDUMP
                                           std::pair{"seal", EPERM}));

TEST_F(HostFaults, WithoutCollapsingMemoryStandsOnSmallPagesAndTheReportSaysWhy) {
  system_.Fail(kCollapse, EINVAL);
  const ArenaId slab = Create(4 * kMiB);
  ASSERT_TRUE(tier_->Populate({slab, 0, 4 * kMiB}).ok());
  EXPECT_EQ(ResidentPages(tier_->Bytes(slab)), 1024u);
  // Where the kernel gives shared memory huge pages by itself, they are there but not counted.
  const HostReport report = tier_->Report();
  EXPECT_EQ(report.thp_bytes, 0u);
  EXPECT_EQ(report.small_page_bytes, 4 * kMiB);
  EXPECT_THAT(report.huge_pages, HasSubstr("0 MiB of 4 MiB on huge pages"));
  EXPECT_THAT(report.huge_pages, HasSubstr("Invalid argument"));
}

TEST_F(HostFaults, OneChunkThatDoesNotCollapseLeavesTheOthersHuge) {
  const ArenaId slab = Create(8 * kMiB);
  // The attempt for all fails, then that for the second of four chunks.
  system_.Fail(kCollapse, EAGAIN, 1);
  ASSERT_TRUE(tier_->Populate({slab, 0, 2 * kMiB}).ok());
  const size_t works = tier_->Report().thp_bytes;  // Whether this machine has huge pages at all.
  system_.Fail(kCollapse, ENOMEM, 2);
  ASSERT_TRUE(tier_->Populate({slab, 2 * kMiB, 6 * kMiB}).ok());
  EXPECT_EQ(tier_->Report().thp_bytes, 3 * works);
  EXPECT_EQ(ResidentPages(tier_->Bytes(slab)), 2048u);
}

TEST_F(HostFaults, PopulateThatFailsGivesBackWhatItGot) {
  const ArenaId slab = Create(8 * kMiB);
  const UniqueFd fd = Open(slab, Protection::kRead);
  ASSERT_TRUE(tier_->Populate({slab, 0, kMiB}).ok());
  std::memset(tier_->Bytes(slab).data(), 5, kMiB);
  system_.Fail(kCollapse, ENOMEM);
  system_.Fail(kPopulate, ENOMEM, 1, 4);  // Three first touches and one chunk of small pages pass.
  EXPECT_EQ(tier_->Populate({slab, 0, 8 * kMiB}).code(), Code::kExhausted);
  const HostReport report = tier_->Report();
  EXPECT_EQ(report.thp_bytes + report.small_page_bytes, AllocatedBytes(fd.get()));
  EXPECT_LE(AllocatedBytes(fd.get()), kHuge);
  EXPECT_EQ(tier_->Bytes(slab)[kMiB - 1], 5);
  system_.Heal();
  EXPECT_TRUE(tier_->Populate({slab, 0, 8 * kMiB}).ok());
  EXPECT_EQ(tier_->Bytes(slab)[kMiB - 1], 5);
}

TEST_F(HostFaults, PunchThatFailsLeavesTheRangeAsItWas) {
  const ArenaId slab = Create(4 * kMiB);
  ASSERT_TRUE(tier_->Populate({slab, 0, 4 * kMiB}).ok());
  tier_->Bytes(slab)[0] = 1;
  system_.Fail("punch", EPERM, 1);
  EXPECT_EQ(tier_->Punch({slab, 0, kMiB}).code(), Code::kPermissionDenied);
  EXPECT_EQ(tier_->Bytes(slab)[0], 1);
  const HostReport report = tier_->Report();
  EXPECT_EQ(report.thp_bytes + report.small_page_bytes, 4 * kMiB);
  EXPECT_TRUE(tier_->Punch({slab, 0, kMiB}).ok());
}

TEST_F(HostFaults, WithoutTheRightToLockMemoryWorksAndTheReportSaysWhy) {
  system_.Fail("mlock", EPERM);
  const ArenaId slab = Create(2 * kMiB);
  ASSERT_TRUE(tier_->Populate({slab, 0, 2 * kMiB}).ok());
  EXPECT_EQ(tier_->Report().locked_bytes, 0u);
  EXPECT_THAT(tier_->Report().locking, HasSubstr("0 MiB of 2 MiB locked"));
  EXPECT_THAT(tier_->Report().locking, HasSubstr("Operation not permitted"));
  Restart({.blank_bytes = 4 * kMiB, .lock_memory = false});
  EXPECT_EQ(tier_->Report().locking, "none: switched off by the configuration");
}

TEST_F(HostFaults, BlockThatCannotBeSealedIsNotHandedOut) {
  const ArenaId block = Create(kMiB, ArenaUse::kBlock);
  system_.Fail("seal", EBUSY, 1);
  EXPECT_EQ(tier_->Seal(block).code(), Code::kUnavailable);
  EXPECT_FALSE(tier_->Descriptor(block, Protection::kRead).has_value());
  EXPECT_TRUE(tier_->Seal(block).ok());
}

TEST_F(HostFaults, BlockIsSealedAlsoWhenTheDaemonsMappingStaysWritable) {
  const ArenaId block = Create(kMiB, ArenaUse::kBlock);
  system_.Fail("mprotect", EACCES, 1);
  EXPECT_TRUE(tier_->Seal(block).ok());
  EXPECT_TRUE(tier_->Descriptor(block, Protection::kRead).has_value());
}

TEST_F(HostFaults, DescriptorsThatCannotBeMadeAreReported) {
  const ArenaId slab = Create(kMiB);
  system_.Fail("duplicate", EMFILE, 1);
  EXPECT_EQ(tier_->Descriptor(slab, Protection::kReadWrite).error().code(), Code::kExhausted);
  system_.Fail("reopen", ENOENT, 1);
  EXPECT_EQ(tier_->Descriptor(slab, Protection::kRead).error().code(), Code::kNotFound);
  EXPECT_TRUE(tier_->Descriptor(slab, Protection::kRead).has_value());
}

TEST_F(HostFaults, ReserveThatCannotBeFilledStopsSaysSoAndTriesAgainWhenAsked) {
  system_.Fail("mmap", ENOMEM);
  tier_->SetReserve(16 * kMiB);
  ASSERT_TRUE(owner_.RunUntil([&] { return tier_->Report().reserve.starts_with("stopped"); }));
  EXPECT_THAT(tier_->Report().reserve, HasSubstr("Cannot allocate memory"));
  EXPECT_EQ(tier_->Report().blank_bytes, 0u);
  system_.Heal();
  EXPECT_TRUE(FillReserve(16 * kMiB));
  EXPECT_EQ(tier_->Report().reserve, "complete");
}

TEST_F(HostFaults, BlankThatCannotBePopulatedIsNoBlank) {
  system_.Fail(kPopulate, ENOMEM);
  tier_->SetReserve(8 * kMiB);
  ASSERT_TRUE(owner_.RunUntil([&] { return tier_->Report().reserve.starts_with("stopped"); }));
  EXPECT_EQ(tier_->Report().blank_bytes, 0u);
}

TEST_F(HostFaults, BlankThatCannotBeCutIsReplacedByAFreshArena) {
  ASSERT_TRUE(FillReserve(4 * kMiB));
  system_.Fail("ftruncate", EPERM, 1);
  const auto created = tier_->Create(2 * kMiB, ArenaUse::kSlab);
  ASSERT_TRUE(created.has_value());
  EXPECT_FALSE(created->resident);
  EXPECT_EQ(tier_->Report().blank_bytes, 0u);
}

TEST_F(HostFaults, FullPoolStopsTheReserveUntilItIsAskedForAgain) {
  auto narrow = *WorkerPool::Start({.name = "narrow", .threads = 1, .queue_limit = 0});
  auto tier = *MakeHostTier({.blank_bytes = kMiB, .system = &system_}, owner_, *narrow);
  tier->SetReserve(kMiB);
  EXPECT_THAT(tier->Report().reserve, HasSubstr("stopped: exhausted"));
  EXPECT_TRUE(tier->Create(kMiB, ArenaUse::kSlab).has_value());
}

TEST_F(HostFaults, HugePagesThatAreGoneWhenAskedForAreNoError) {
  // Claimed free, taken by somebody else before the memory was mapped.
  system_.free_hugetlb_pages = 1000;
  system_.Fail("mmap", ENOMEM, 1);
  const ArenaId slab = Create(4 * kMiB);
  ASSERT_TRUE(tier_->Populate({slab, 0, 4 * kMiB}).ok());
  EXPECT_EQ(tier_->Report().hugetlb_bytes, 0u);
  EXPECT_EQ(ResidentPages(tier_->Bytes(slab)), 1024u);
}

// ---- Reserved huge pages: only where the machine has free ones (vm.nr_hugepages).
class HostHugetlb : public HostTierTest {
 protected:
  void SetUp() override {
    if (HostSystem().FreeHugetlbPages() < 8) GTEST_SKIP() << "needs 8 free huge pages of 2 MiB";
    system_.free_hugetlb_pages = FaultyHostSystem::kTrueCount;
  }
};

TEST_F(HostHugetlb, ArenaOfWholeHugePagesTakesReservedOnes) {
  const ArenaId slab = Create(4 * kMiB);
  const UniqueFd read_fd = Open(slab, Protection::kRead);
  EXPECT_EQ(AllocatedBytes(read_fd.get()), 0u);
  ASSERT_TRUE(tier_->Populate({slab, 0, kMiB}).ok());
  EXPECT_EQ(AllocatedBytes(read_fd.get()), kHuge);
  EXPECT_EQ(tier_->Report().hugetlb_bytes, kHuge);
  EXPECT_EQ(tier_->Report().locked_bytes, kHuge);
  EXPECT_EQ(::mmap(nullptr, 4 * kMiB, PROT_READ | PROT_WRITE, MAP_SHARED, read_fd.get(), 0),
            MAP_FAILED);
  EXPECT_EQ(errno, EACCES);
  tier_->Bytes(slab)[7] = 7;
  const Mapping reader = *Mapping::Of(read_fd.get(), 0, 4 * kMiB, Protection::kRead);
  EXPECT_EQ(reader.data()[7], 7);
}

TEST_F(HostHugetlb, PunchZeroesPartsAndFreesThePageWithItsLastClaim) {
  const ArenaId slab = Create(4 * kMiB);
  ASSERT_TRUE(tier_->Populate({slab, 0, 4 * kMiB}).ok());
  const UniqueFd fd = Open(slab, Protection::kRead);
  const auto bytes = tier_->Bytes(slab);
  std::memset(bytes.data(), 1, bytes.size());
  ASSERT_EQ(AllocatedBytes(fd.get()), 4 * kMiB);
  ASSERT_TRUE(tier_->Punch({slab, 0, kMiB}).ok());
  EXPECT_TRUE(AllZero(bytes.first(kMiB)));
  EXPECT_EQ(bytes[kMiB], 1);
  EXPECT_EQ(tier_->Report().hugetlb_bytes, 4 * kMiB);
  ASSERT_TRUE(tier_->Punch({slab, kMiB, kMiB}).ok());
  EXPECT_EQ(tier_->Report().hugetlb_bytes, 2 * kMiB);
  EXPECT_EQ(AllocatedBytes(fd.get()), 2 * kMiB);
  EXPECT_TRUE(AllZero(bytes.first(kHuge)));
}

TEST_F(HostHugetlb, BlankServesWholeHugePagesOnly) {
  ASSERT_TRUE(FillReserve(4 * kMiB));
  EXPECT_EQ(tier_->Report().hugetlb_bytes, 4 * kMiB);
  EXPECT_FALSE(tier_->Create(3 * kMiB, ArenaUse::kSlab)->resident);
  const auto created = tier_->Create(2 * kMiB, ArenaUse::kBlock);
  EXPECT_TRUE(created->resident);
  ASSERT_TRUE(tier_->Seal(created->id).ok());
  EXPECT_EQ(tier_->Report().hugetlb_bytes, 2 * kMiB);
}

}  // namespace
}  // namespace terrace
