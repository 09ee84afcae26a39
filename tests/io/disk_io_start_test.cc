// Which way to the kernel is chosen at start, and that it is said.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <seccomp.h>
#include <sys/prctl.h>

#include <cerrno>
#include <string>
#include <thread>

#include "tests/io/io_fixture.h"
#include "tiers/io/disk_io.h"

namespace terrace {
namespace {

using testing::HasSubstr;
using testing::StartsWith;

// Of the calling thread and the threads that it starts.
bool RefuseCall(const char* name, int error) {
  const scmp_filter_ctx filter = seccomp_init(SCMP_ACT_ALLOW);
  if (filter == nullptr) return false;
  const bool good = seccomp_rule_add(filter, SCMP_ACT_ERRNO(static_cast<uint16_t>(error)),
                                     seccomp_syscall_resolve_name(name), 0) == 0 &&
                    ::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 && seccomp_load(filter) == 0;
  seccomp_release(filter);
  return good;
}

// A DiskIo where `call` is refused: what it says of itself, once it has written and read.
std::string EngineWithout(const char* call, int error) {
  std::string engine;
  std::thread confined([&] {
    ASSERT_TRUE(RefuseCall(call, error));
    const SystemClock clock;
    auto io = StartDiskIo({}, clock);
    ASSERT_TRUE(io.has_value()) << io.error().ToString();
    const UniqueFd fd = OpenTestFile(O_RDWR);
    auto file = (*io)->AddFile(fd.get());
    ASSERT_TRUE(file.has_value());
    const Memory from = Memory::Random(65'536, 1);
    const Memory into(65'536);
    Account account;
    const MonotonicNs deadline = clock.Now() + kAMinute;
    ASSERT_EQ((*io)->Submit(Batch(account.Watch(WriteFrom(*file, 0, {from.all()}), deadline))),
              Status());
    account.WaitForEnds(1);
    ASSERT_EQ((*io)->Submit(Batch(account.Watch(ReadInto(*file, 0, {into.all()}), deadline))),
              Status());
    account.WaitForEnds(2);
    EXPECT_TRUE(std::ranges::equal(from.bytes(), into.bytes()));
    engine = (*io)->Report().engine;
  });
  confined.join();
  return engine;
}

TEST(DiskIoStart, ARingThatMayNotBeSetUpIsReplacedAndSaidSo) {
  EXPECT_EQ(EngineWithout("io_uring_setup", EPERM),
            "threads: io_uring_setup: Operation not permitted");
  EXPECT_EQ(EngineWithout("io_uring_setup", ENOSYS),
            "threads: io_uring_setup: Function not implemented");
  EXPECT_EQ(EngineWithout("io_uring_setup", ENOMEM),
            "threads: io_uring_setup: Cannot allocate memory");
}

TEST(DiskIoStart, ARingThatMayNotBeUsedIsReplacedAndSaidSo) {
  EXPECT_THAT(EngineWithout("io_uring_enter", EPERM), StartsWith("threads: io_uring_"));
  EXPECT_THAT(EngineWithout("io_uring_register", EPERM), StartsWith("threads: io_uring_"));
}

TEST(DiskIoStart, ThreadsAreChosenByTheOptions) {
  const SystemClock clock;
  auto io = StartDiskIo({.allow_io_uring = false}, clock);
  ASSERT_TRUE(io.has_value());
  EXPECT_EQ((*io)->Report().engine, "threads: io_uring is not allowed by the options");
}

TEST(DiskIoStart, OptionsOutOfRangeAreRefusedByName) {
  const SystemClock clock;
  const auto message = [&](const DiskIoOptions& options) {
    return StartDiskIo(options, clock).status().ToString();
  };
  EXPECT_THAT(message({.depth = 0}), HasSubstr("invalid_argument: file I/O: depth is 0"));
  EXPECT_THAT(message({.depth = 1u << 20}), HasSubstr("depth"));
  EXPECT_THAT(message({.files = 0}), HasSubstr("files"));
  EXPECT_THAT(message({.regions = 1u << 20}), HasSubstr("regions"));
  EXPECT_THAT(message({.threads = 0}), HasSubstr("threads"));
}

TEST(DiskIoStart, TheLargestAndTheSmallestWork) {
  const SystemClock clock;
  const Memory page(4096);
  for (const uint32_t size : {1u, 8192u}) {
    auto io = StartDiskIo({.depth = size, .files = std::min(size, 1024u), .regions = size}, clock);
    ASSERT_TRUE(io.has_value()) << io.error().ToString();
    const UniqueFd fd = OpenTestFile(O_RDWR);
    auto file = (*io)->AddFile(fd.get());
    ASSERT_TRUE(file.has_value());
    Account account;
    std::vector<IoRequest> batch;
    for (uint32_t i = 0; i < size; ++i)
      batch.push_back(
          account.Watch(WriteFrom(*file, i * 4096, {page.all()}), clock.Now() + kAMinute));
    ASSERT_EQ((*io)->Submit(std::move(batch)), Status());
    account.WaitForEnds(size);
    EXPECT_EQ((*io)->Report().writes, size) << (*io)->Report().engine;
  }
}

}  // namespace
}  // namespace terrace
