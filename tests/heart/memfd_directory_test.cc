// MemfdDirectory: clients can read a directory and nobody but the daemon can write it.
#include "daemon/service/memfd/memfd_directory.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <string>

namespace terrace {
namespace {

class Memfd : public testing::TestWithParam<size_t> {
 protected:
  void SetUp() override {
    auto region = memory_.Allocate(GetParam());
    ASSERT_TRUE(region.has_value()) << region.status().ToString();
    region_ = *region;
    auto fd = memory_.Descriptor(region_.token);
    ASSERT_TRUE(fd.has_value());
    fd_ = *std::move(fd);
  }

  MemfdDirectory memory_;
  DirectoryMemory::Region region_;
  UniqueFd fd_;
};
// Small, not a multiple of a page, and of several huge pages.
INSTANTIATE_TEST_SUITE_P(Sizes, Memfd, testing::Values(4096, 300'001, (5u << 20) + 1));

TEST_P(Memfd, MemoryIsZeroedAndLargeEnough) {
  ASSERT_GE(region_.bytes.size(), GetParam());
  for (const uint8_t byte : region_.bytes)
    ASSERT_EQ(byte, 0);
}

TEST_P(Memfd, ClientReadsWhatTheDaemonWritesLater) {
  auto mapping = Mapping::Of(fd_.get(), 0, region_.bytes.size(), Protection::kRead);
  ASSERT_TRUE(mapping.has_value());
  region_.bytes.front() = 1;
  region_.bytes.back() = 2;
  EXPECT_EQ((*mapping).bytes().front(), 1);
  EXPECT_EQ((*mapping).bytes().back(), 2);
}

TEST_P(Memfd, NobodyElseCanWriteResizeOrSeal) {
  EXPECT_FALSE(Mapping::Of(fd_.get(), 0, 4096, Protection::kReadWrite).has_value());
  auto mapping = Mapping::Of(fd_.get(), 0, 4096, Protection::kRead);
  ASSERT_TRUE(mapping.has_value());
  EXPECT_NE(::mprotect((*mapping).data(), 4096, PROT_READ | PROT_WRITE), 0);
  EXPECT_LT(::pwrite(fd_.get(), "x", 1, 0), 0);
  EXPECT_NE(::ftruncate(fd_.get(), 0), 0);
  EXPECT_NE(::ftruncate(fd_.get(), 1 << 30), 0);
  EXPECT_NE(::fallocate(fd_.get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 4096), 0);
  EXPECT_NE(::fcntl(fd_.get(), F_ADD_SEALS, F_SEAL_WRITE), 0);
  const std::string path = "/proc/self/fd/" + std::to_string(fd_.get());
  const UniqueFd again(::open(path.c_str(), O_RDWR | O_CLOEXEC));
  if (again) {
    EXPECT_FALSE(Mapping::Of(again.get(), 0, 4096, Protection::kReadWrite).has_value());
  }
}

TEST_P(Memfd, FileIsPrivateToItsOwner) {
  struct stat facts {};
  ASSERT_EQ(::fstat(fd_.get(), &facts), 0);
  EXPECT_EQ(facts.st_mode & 0777u, 0600u);
  EXPECT_NE(::fcntl(fd_.get(), F_GETFD) & FD_CLOEXEC, 0);
}

TEST_P(Memfd, PopulatingInStepsMakesAllOfItResidentAndKeepsContents) {
  region_.bytes.front() = 7;
  region_.bytes.back() = 8;
  for (size_t offset = 0; offset < region_.bytes.size(); offset += DirectoryMemory::kStepBytes) {
    memory_.Populate(region_.token, offset);
  }
  memory_.Populate(region_.token, region_.bytes.size() * 2);  // Beyond the end: nothing to do.
  EXPECT_EQ(region_.bytes.front(), 7);
  EXPECT_EQ(region_.bytes.back(), 8);
  struct stat facts {};
  ASSERT_EQ(::fstat(fd_.get(), &facts), 0);
  EXPECT_EQ(static_cast<size_t>(facts.st_blocks) * 512,
            (region_.bytes.size() + 4095) / 4096 * 4096);
}

TEST_P(Memfd, FreedDirectoryStaysReadableForWhoMapsIt) {
  auto mapping = Mapping::Of(fd_.get(), 0, region_.bytes.size(), Protection::kRead);
  ASSERT_TRUE(mapping.has_value());
  region_.bytes.front() = 9;
  memory_.Free(region_.token);
  EXPECT_EQ((*mapping).bytes().front(), 9);
  EXPECT_EQ(memory_.Descriptor(region_.token).status().code(), Code::kNotFound);
}

}  // namespace
}  // namespace terrace
