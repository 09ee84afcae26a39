#include "base/unique_fd.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

namespace terrace {
namespace {

bool IsOpen(int fd) {
  return ::fcntl(fd, F_GETFD) >= 0;
}

TEST(UniqueFd, ClosesExactlyWhatItOwns) {
  int number = -1;
  int released = -1;
  {
    UniqueFd fd = *CreateMemfd("test", 4096);
    number = fd.get();
    UniqueFd moved = std::move(fd);
    EXPECT_EQ(moved.get(), number);
    EXPECT_TRUE(IsOpen(number));
    UniqueFd other = *CreateMemfd("test", 4096);
    released = other.Release();
    EXPECT_FALSE(other);
  }
  EXPECT_FALSE(IsOpen(number));
  EXPECT_TRUE(IsOpen(released));
  UniqueFd(released).Reset();
  EXPECT_FALSE(IsOpen(released));
}

TEST(UniqueFd, AssignmentClosesTheOldOne) {
  UniqueFd fd = *CreateMemfd("test", 4096);
  const int old = fd.get();
  UniqueFd replacement = *CreateMemfd("test", 4096);
  const int kept = replacement.get();
  fd = std::move(replacement);
  EXPECT_FALSE(IsOpen(old));
  EXPECT_EQ(fd.get(), kept);
  EXPECT_TRUE(IsOpen(kept));
}

TEST(UniqueFd, DuplicateIsItsOwnAndClosesOnExec) {
  UniqueFd fd = *CreateMemfd("test", 4096);
  const UniqueFd copy = *fd.Duplicate();
  fd.Reset();
  EXPECT_TRUE(::fcntl(copy.get(), F_GETFD) & FD_CLOEXEC);
  EXPECT_FALSE(UniqueFd().Duplicate().has_value());
}

TEST(Memfd, OnlyItsOwnerMayOpenItAndItHasItsSize) {
  const UniqueFd fd = *CreateMemfd("test", 12288);
  struct stat facts {};
  ASSERT_EQ(::fstat(fd.get(), &facts), 0);
  EXPECT_EQ(facts.st_mode & 0777, 0600u);
  EXPECT_EQ(facts.st_size, 12288);
  EXPECT_EQ(::fcntl(fd.get(), F_ADD_SEALS, F_SEAL_SHRINK), 0);
  EXPECT_TRUE(::fcntl(fd.get(), F_GETFD) & FD_CLOEXEC);
}

TEST(Mapping, SharesMemoryAndOutlivesTheDescriptor) {
  UniqueFd fd = *CreateMemfd("test", 8192);
  const Mapping writer = *Mapping::Of(fd.get(), 0, 8192, Protection::kReadWrite);
  Mapping reader = *Mapping::Of(fd.get(), 4096, 4096, Protection::kRead);
  fd.Reset();
  writer.data()[4096] = 42;
  EXPECT_EQ(reader.bytes()[0], 42);
  const Mapping moved = std::move(reader);
  EXPECT_EQ(moved.data()[0], 42);
  EXPECT_EQ(moved.size(), 4096u);
}

TEST(Mapping, ReportsWhatCannotBeMapped) {
  EXPECT_FALSE(Mapping::Of(-1, 0, 4096, Protection::kRead).has_value());
  const UniqueFd fd = *CreateMemfd("test", 4096);
  EXPECT_EQ(Mapping::Of(fd.get(), 1, 4096, Protection::kRead).error().code(),
            Code::kInvalidArgument);
}

}  // namespace
}  // namespace terrace
