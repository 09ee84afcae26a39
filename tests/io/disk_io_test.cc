// The contract of DiskIo, by every way to the kernel.
#include "tiers/io/disk_io.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <memory>

#include "tests/io/io_fixture.h"

namespace terrace {
namespace {

using testing::HasSubstr;
using testing::StartsWith;

constexpr MonotonicNs kAMinute = 60 * kNsPerSecond;

class DiskIoTest : public testing::TestWithParam<bool> {
 protected:
  void Start(DiskIoOptions options = {}) {
    options.allow_io_uring = GetParam();
    auto io = StartDiskIo(options, clock_);
    ASSERT_TRUE(io.has_value()) << io.error().ToString();
    io_ = *std::move(io);
    if (GetParam() && io_->Report().engine != "io_uring") GTEST_SKIP() << io_->Report().engine;
  }
  // A file of O_DIRECT where the file system takes it.
  void AddFile(int flags = O_RDWR | O_DIRECT) {
    fd_ = OpenTestFile(flags);
    if (!fd_) GTEST_SKIP() << TestFolder() << " takes no O_DIRECT";
    auto file = io_->AddFile(fd_.get());
    ASSERT_TRUE(file.has_value()) << file.error().ToString();
    file_ = *file;
  }
  MonotonicNs Soon() const { return clock_.Now() + kAMinute; }
  Status Do(IoRequest request) {
    Account account;
    std::vector<IoRequest> batch;
    batch.push_back(account.Watch(std::move(request), Soon()));
    RETURN_IF_ERROR(io_->Submit(std::move(batch)));
    account.WaitForEnds(1);
    return account.Answer(0);
  }

  SystemClock clock_;
  UniqueFd fd_;
  IoFileId file_ = 0;
  std::unique_ptr<DiskIo> io_;
};

TEST_P(DiskIoTest, WhatIsWrittenIsRead) {
  Start();
  if (IsSkipped()) return;
  AddFile();
  if (IsSkipped()) return;
  uint64_t offset = 0;
  for (size_t bytes = 4096; bytes <= 4u << 20; bytes *= 4) {
    const Memory from = Memory::Random(bytes, bytes);
    const Memory into(bytes);
    ASSERT_EQ(Do(WriteFrom(file_, offset, {from.all()})), Status());
    ASSERT_EQ(Do(SyncOf(file_)), Status());
    ASSERT_EQ(Do(ReadInto(file_, offset, {into.all()})), Status());
    EXPECT_TRUE(std::ranges::equal(from.bytes(), into.bytes())) << bytes;
    offset += bytes;
  }
}

INSTANTIATE_TEST_SUITE_P(Engines, DiskIoTest, testing::Bool(), [](const auto& engine) {
  return std::string(engine.param ? "Ring" : "Threads");
});

}  // namespace
}  // namespace terrace
