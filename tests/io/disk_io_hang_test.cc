// Deadlines hold, and others go on, while the kernel keeps a request.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <memory>
#include <vector>

#include "tests/io/hanging_memory.h"
#include "tests/io/io_fixture.h"
#include "tiers/io/disk_io.h"

namespace terrace {
namespace {

// Also how often the thread of deadlines looks at a clock that stands still.
constexpr MonotonicNs kShort = 5 * kNsPerMs;

// A file that the kernel does not read without waiting, so that io_uring, too, reads it on a
// thread of its own; and memory that it waits for.
class DiskIoHangTest : public DiskIoTest {
 protected:
  static constexpr size_t kBytes = 64;

  void SetUp() override {
    DiskIoTest::SetUp();
    if (IsSkipped()) return;
    if (!HangingMemory().works()) GTEST_SKIP() << "no userfaultfd for the kernel's own faults";
    slow_fd_.Reset(::open("/proc/self/auxv", O_RDONLY | O_CLOEXEC));
    ASSERT_TRUE(slow_fd_);
  }
  void Restart(DiskIoOptions options) {
    DiskIoTest::Restart(options);
    slow_ = Add(slow_fd_.get());
  }
  const Clock& clock() const override { return manual_; }
  MonotonicNs Deadline() const { return manual_.Now() + kShort; }
  // Past every Deadline() up to now.
  void PassDeadlines() { manual_.Advance(kShort); }
  IoRequest Hanging(const HangingMemory& memory) const {
    return ReadInto(slow_, 0, {memory.piece(kBytes)});
  }

  ManualClock manual_;
  UniqueFd slow_fd_;
  IoFileId slow_ = 0;
};

TEST_P(DiskIoHangTest, ADeadlineIsAnsweredWhileTheKernelHangs) {
  Restart({});
  HangingMemory memory;
  Account account;
  ASSERT_EQ(io_->Submit(Batch(account.Watch(Hanging(memory), Deadline()))), Status());
  memory.WaitUntilTouched();
  EXPECT_TRUE(account.entries()[0].answers.empty());
  PassDeadlines();
  const Status status = account.Answer(0);
  EXPECT_EQ(status.code(), Code::kDeadlineExceeded) << status.ToString();
  EXPECT_EQ(account.entries()[0].ended, 0);
  EXPECT_EQ(io_->Report().in_flight, 1u);
  EXPECT_EQ(io_->Report().overdue, 1u);
  EXPECT_EQ(io_->Report().errors, 1u);

  memory.Release();
  account.WaitForEnds(1);
  io_.reset();
  EXPECT_EQ(account.entries()[0].answers.size(), 1u);
  EXPECT_EQ(account.entries()[0].ended, 1);
}

TEST_P(DiskIoHangTest, OthersGoOn) {
  Restart({.threads = 2});
  HangingMemory memory;
  Account hanging;
  ASSERT_EQ(io_->Submit(Batch(hanging.Watch(Hanging(memory), Soon()))), Status());
  memory.WaitUntilTouched();
  const Memory from = Memory::Random(65'536, 1);
  const Memory into(65'536);
  for (int i = 0; i < 50; ++i) {
    ASSERT_EQ(Do(WriteFrom(file_, 0, {from.all()})), Status());
    ASSERT_EQ(Do(ReadInto(file_, 0, {into.all()})), Status());
    ASSERT_EQ(Do(SyncOf(file_)), Status());
  }
  EXPECT_TRUE(hanging.entries()[0].answers.empty());
  memory.Release();
  EXPECT_EQ(hanging.Answer(0), Status());
  hanging.WaitForEnds(1);
}

TEST_P(DiskIoHangTest, WhatNeverEndsCountsAgainstTheDepth) {
  Restart({.depth = 4});
  std::vector<std::unique_ptr<HangingMemory>> memories;
  Account account;
  const Memory page(4096);
  std::vector<IoRequest> batch;
  for (int i = 0; i < 4; ++i) {
    memories.push_back(std::make_unique<HangingMemory>());
    batch.push_back(account.Watch(Hanging(*memories.back()), Deadline()));
  }
  // All or none: five are too many, and none of them is started.
  std::vector<IoRequest> five = batch;
  five.push_back(batch[0]);
  EXPECT_EQ(io_->Submit(std::move(five)).code(), Code::kExhausted);
  ASSERT_EQ(io_->Submit(std::move(batch)), Status());
  for (const auto& memory : memories)
    memory->WaitUntilTouched();
  PassDeadlines();
  for (size_t i = 0; i < 4; ++i)
    EXPECT_EQ(account.Answer(i).code(), Code::kDeadlineExceeded);
  EXPECT_EQ(Do(WriteFrom(file_, 0, {page.all()})).code(), Code::kExhausted);

  memories[2]->Release();
  account.WaitForEnds(1);
  EXPECT_EQ(Do(WriteFrom(file_, 0, {page.all()})), Status());
  memories.clear();
  account.WaitForEnds(4);
  EXPECT_EQ(io_->Report().in_flight, 0u);
  EXPECT_EQ(io_->Report().overdue, 0u);
}

TEST_P(DiskIoHangTest, TheEndForgetsWhatTheKernelKeeps) {
  Restart({.stop_ns = kShort});
  HangingMemory overdue;
  HangingMemory waiting;
  Account account;
  ASSERT_EQ(io_->Submit(Batch(account.Watch(Hanging(overdue), Deadline()))), Status());
  ASSERT_EQ(io_->Submit(Batch(account.Watch(Hanging(waiting), Soon()))), Status());
  overdue.WaitUntilTouched();
  waiting.WaitUntilTouched();
  PassDeadlines();
  EXPECT_EQ(account.Answer(0).code(), Code::kDeadlineExceeded);
  io_.reset();
  EXPECT_EQ(account.Answer(1).code(), Code::kUnavailable);
  overdue.Release();
  waiting.Release();
  // Nothing is called any more, not even for what comes back now: a service of the same kind that
  // starts after it has ended its own.
  Restart({});
  EXPECT_EQ(Do(SyncOf(file_)), Status());
  for (const Account::Entry& entry : account.entries()) {
    EXPECT_EQ(entry.answers.size(), 1u);
    EXPECT_EQ(entry.ended, 0);
  }
}

TEST_P(DiskIoHangTest, TheEndWaitsForWhatComesBackInTime) {
  Restart({.stop_ns = kAMinute});
  HangingMemory memory;
  Account account;
  IoRequest request = account.Watch(Hanging(memory), Deadline());
  request.done = [&, done = std::move(request.done)](const Status& status) {
    done(status);
    memory.Release();
  };
  ASSERT_EQ(io_->Submit(Batch(std::move(request))), Status());
  memory.WaitUntilTouched();
  PassDeadlines();
  io_.reset();
  EXPECT_EQ(account.entries()[0].answers[0].code(), Code::kDeadlineExceeded);
  EXPECT_EQ(account.entries()[0].ended, 1);
}

TEST_P(DiskIoHangTest, ADeadlineThatIsPastIsAnswered) {
  Restart({});
  const Memory page(4096);
  Account account;
  ASSERT_EQ(io_->Submit(Batch(account.Watch(WriteFrom(file_, 0, {page.all()}), 1))), Status());
  account.WaitForEnds(1);
  const Code code = account.Answer(0).code();
  EXPECT_TRUE(code == Code::kDeadlineExceeded || code == Code::kOk);
  EXPECT_EQ(io_->Report().in_flight, 0u);
}

class DiskIoRaceTest : public DiskIoTest {};

TEST_P(DiskIoRaceTest, DeadlinesAndCompletionsMeetWithoutLoss) {
  Restart({.threads = 2});
  constexpr size_t kRounds = 300;
  const Memory memory(kRounds * 4096);
  Account account;
  for (size_t i = 0; i < kRounds; ++i) {
    // About as long as a write takes: some are answered by one, some by the other.
    IoRequest request = account.Watch(WriteFrom(file_, i * 4096, {memory.piece(i * 4096, 4096)}),
                                      clock_.Now() + static_cast<MonotonicNs>(i % 16) * 20'000);
    while (!io_->Submit(Batch(request)).ok()) {
    }
  }
  account.WaitForEnds(kRounds);
  io_.reset();
  for (const Account::Entry& entry : account.entries()) {
    EXPECT_EQ(entry.answers.size(), 1u);
    EXPECT_EQ(entry.ended, 1);
    EXPECT_FALSE(entry.ended_first);
  }
}

INSTANTIATE_TEST_SUITE_P(Engines, DiskIoHangTest, testing::Bool(), EngineName);
INSTANTIATE_TEST_SUITE_P(Engines, DiskIoRaceTest, testing::Bool(), EngineName);

class DiskIoThreadsTest : public DiskIoHangTest {};

TEST_P(DiskIoThreadsTest, AThreadThatHangsIsReplaced) {
  Restart({.threads = 1});
  HangingMemory memory;
  Account account;
  ASSERT_EQ(io_->Submit(Batch(account.Watch(Hanging(memory), Deadline()))), Status());
  memory.WaitUntilTouched();
  PassDeadlines();
  EXPECT_EQ(account.Answer(0).code(), Code::kDeadlineExceeded);
  const Memory page(4096);
  EXPECT_EQ(Do(WriteFrom(file_, 0, {page.all()})), Status());
  memory.Release();
  account.WaitForEnds(1);
}

TEST_P(DiskIoThreadsTest, WhenAllHangTheRestEndsAtItsDeadline) {
  Restart({.threads = 1});
  HangingMemory first;
  HangingMemory second;
  HangingMemory third;
  Account hanging;
  for (const HangingMemory* memory : {&first, &second}) {
    const size_t i = hanging.entries().size();
    ASSERT_EQ(io_->Submit(Batch(hanging.Watch(Hanging(*memory), Deadline()))), Status());
    memory->WaitUntilTouched();
    PassDeadlines();
    EXPECT_EQ(hanging.Answer(i).code(), Code::kDeadlineExceeded);
  }
  Account waiting;
  ASSERT_EQ(io_->Submit(Batch(waiting.Watch(Hanging(third), Deadline()))), Status());
  PassDeadlines();
  waiting.WaitForEnds(1);  // Though its memory hangs: no thread came to it.
  EXPECT_EQ(waiting.Answer(0).code(), Code::kDeadlineExceeded);
  first.Release();
  second.Release();
  hanging.WaitForEnds(2);
  EXPECT_EQ(Do(SyncOf(file_)), Status());
}

INSTANTIATE_TEST_SUITE_P(Engines, DiskIoThreadsTest, testing::Values(false), EngineName);

class DiskIoRingTest : public DiskIoHangTest {};

TEST_P(DiskIoRingTest, WhatIsOverdueIsCancelledWhereTheKernelCan) {
  Restart({});
  int ends[2];
  ASSERT_EQ(::pipe2(ends, O_CLOEXEC), 0);
  const UniqueFd read_end(ends[0]);
  const UniqueFd write_end(ends[1]);
  const IoFileId pipe = Add(read_end.get());
  const Memory page(4096);
  Account account;
  ASSERT_EQ(io_->Submit(Batch(account.Watch(ReadInto(pipe, 0, {page.all()}), Deadline()))),
            Status());
  PassDeadlines();
  EXPECT_EQ(account.Answer(0).code(), Code::kDeadlineExceeded);
  account.WaitForEnds(1);  // Though nobody wrote into the pipe.
  io_->RemoveFile(pipe);
}

// The ring's own thread hangs: it copies from the page cache without a thread of the kernel.
TEST_P(DiskIoRingTest, DeadlinesHoldThoughTheRingHangs) {
  Restart({});
  const UniqueFd fd = OpenTestFile(O_RDWR);
  ASSERT_EQ(::ftruncate(fd.get(), HangingMemory::kBytes), 0);
  ASSERT_EQ(::pwrite(fd.get(), "cached", 6, 0), 6);
  const IoFileId cached = Add(fd.get());
  HangingMemory memory;
  const Memory page(4096);
  Account account;
  ASSERT_EQ(io_->Submit(Batch(account.Watch(ReadInto(cached, 0, {memory.piece()}), Deadline()))),
            Status());
  memory.WaitUntilTouched();
  PassDeadlines();
  EXPECT_EQ(account.Answer(0).code(), Code::kDeadlineExceeded);
  // What comes now is not seen by the ring's thread: it is answered, and ends, at its deadline.
  ASSERT_EQ(io_->Submit(Batch(account.Watch(ReadInto(file_, 0, {page.all()}), Deadline()))),
            Status());
  PassDeadlines();
  account.WaitForEnds(1);
  EXPECT_EQ(account.Answer(1).code(), Code::kDeadlineExceeded);
  memory.Release();
  account.WaitForEnds(2);
  EXPECT_EQ(Do(SyncOf(file_)), Status());
}

INSTANTIATE_TEST_SUITE_P(Engines, DiskIoRingTest, testing::Values(true), EngineName);

}  // namespace
}  // namespace terrace
