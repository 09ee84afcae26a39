// The DiskIo of faults makes those that it is told, and keeps the contract with them.
#include "tiers/sim/faulty_disk_io.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <memory>

#include "tests/io/io_fixture.h"

namespace terrace {
namespace {

using testing::HasSubstr;

class FaultyDiskIoTest : public DiskIoTest {
 protected:
  static constexpr size_t kBytes = 16'384;

  void SetUp() override {
    DiskIoTest::SetUp();
    if (!IsSkipped()) Wrap({});
  }
  void Wrap(DiskIoOptions options, bool keep_undo = false) {
    Restart(options);
    if (HasFatalFailure()) return;
    io_->RemoveFile(file_);
    auto faulty = std::make_unique<FaultyDiskIo>(
        std::move(io_), FaultyDiskIo::Options{.io = options, .keep_undo = keep_undo}, clock_);
    faulty_ = faulty.get();
    io_ = std::move(faulty);
    file_ = Add(fd_.get());
  }
  Status Write(const Memory& from, uint64_t offset = 0) {
    return Do(WriteFrom(file_, offset, {from.all()}));
  }
  // What is in the file, past all faults.
  std::vector<uint8_t> Stored(uint64_t offset = 0) {
    const Memory into(kBytes);
    EXPECT_EQ(::pread(fd_.get(), into.bytes().data(), kBytes, static_cast<off_t>(offset)),
              static_cast<ssize_t>(kBytes));
    return {into.bytes().begin(), into.bytes().end()};
  }
  static std::vector<uint8_t> BytesOf(const Memory& memory) {
    return {memory.bytes().begin(), memory.bytes().end()};
  }

  FaultyDiskIo* faulty_ = nullptr;  // Is io_.
};

TEST_P(FaultyDiskIoTest, WithoutRulesItIsAsTheOneBelow) {
  const Memory from = Memory::Random(kBytes, 1);
  const Memory into(kBytes);
  ASSERT_EQ(Write(from), Status());
  ASSERT_EQ(Do(SyncOf(file_)), Status());
  ASSERT_EQ(Do(ReadInto(file_, 0, {into.piece(0, 4096), into.piece(4096, kBytes - 4096)})),
            Status());
  EXPECT_EQ(BytesOf(into), BytesOf(from));
  EXPECT_EQ(Do(ReadInto(file_, 0, {into.piece(1, 4096)})).code(), Code::kInvalidArgument);
  EXPECT_EQ(io_->Report().reads, 1u);
  EXPECT_EQ(io_->Report().written_bytes, kBytes);
}

TEST_P(FaultyDiskIoTest, ErrorsComeForWhatTheRuleNames) {
  const Memory from = Memory::Random(kBytes, 2);
  faulty_->Add({.verb = IoVerb::kWrite, .skip = 1, .times = 2, .error = ENOSPC});
  faulty_->Add({.verb = IoVerb::kRead, .offset_begin = kBytes, .offset_end = 2 * kBytes});
  faulty_->Add({.verb = IoVerb::kSync, .error = EROFS});
  faulty_->Add({.file = file_ + 1});
  EXPECT_EQ(Write(from), Status());
  EXPECT_EQ(Write(from).code(), Code::kExhausted);
  EXPECT_EQ(Write(from).code(), Code::kExhausted);
  EXPECT_EQ(Write(from, kBytes), Status());
  EXPECT_EQ(Do(ReadInto(file_, 0, {from.all()})), Status());
  EXPECT_EQ(Do(ReadInto(file_, kBytes, {from.all()})).code(), Code::kDataLoss);
  EXPECT_EQ(Do(SyncOf(file_)).code(), Code::kPermissionDenied);
  EXPECT_EQ(faulty_->made(IoFault::kError), 4u);
  EXPECT_EQ(io_->Report().errors, 4u);
  faulty_->ClearRules();
  EXPECT_EQ(Do(SyncOf(file_)), Status());
}

TEST_P(FaultyDiskIoTest, ATornWriteLeavesItsFirstPart) {
  const Memory first = Memory::Random(kBytes, 3);
  const Memory second = Memory::Random(kBytes, 4);
  for (const bool quiet : {false, true}) {
    faulty_->ClearRules();
    ASSERT_EQ(Write(first), Status());
    faulty_->Add({.fault = quiet ? IoFault::kTornQuiet : IoFault::kTorn, .bytes = 8192});
    EXPECT_EQ(Write(second).code(), quiet ? Code::kOk : Code::kDataLoss);
    std::vector<uint8_t> torn = BytesOf(second);
    std::copy_n(first.bytes().begin() + 8192, kBytes - 8192, torn.begin() + 8192);
    EXPECT_EQ(Stored(), torn);
  }
  faulty_->ClearRules();
  faulty_->Add({.fault = IoFault::kTornQuiet});
  const std::vector<uint8_t> before = Stored();
  EXPECT_EQ(Write(first), Status());
  EXPECT_EQ(Stored(), before);
  EXPECT_EQ(faulty_->made(IoFault::kTorn), 1u);
  EXPECT_EQ(faulty_->made(IoFault::kTornQuiet), 2u);
}

TEST_P(FaultyDiskIoTest, ABitFlipsOnItsWay) {
  const Memory from = Memory::Random(kBytes, 5);
  const Memory into(kBytes);
  std::vector<uint8_t> flipped = BytesOf(from);
  flipped[5000] ^= 4;
  faulty_->Add({.fault = IoFault::kFlip, .times = 1, .bit = 5000 * 8 + 2});
  const std::vector<uint8_t> before = BytesOf(from);
  ASSERT_EQ(Write(from), Status());
  EXPECT_EQ(BytesOf(from), before);  // The caller's bytes stay.
  EXPECT_EQ(Stored(), flipped);
  ASSERT_EQ(Write(from), Status());
  faulty_->Add({.fault = IoFault::kFlip, .times = 1, .bit = 5000 * 8 + 2});
  ASSERT_EQ(Do(ReadInto(file_, 0, {into.piece(0, 4096), into.piece(4096, kBytes - 4096)})),
            Status());
  EXPECT_EQ(BytesOf(into), flipped);
  EXPECT_EQ(Stored(), before);
  EXPECT_EQ(faulty_->made(IoFault::kFlip), 2u);
}

TEST_P(FaultyDiskIoTest, WhatHangsIsAnsweredAtItsDeadlineAndDoneLate) {
  const Memory first = Memory::Random(kBytes, 6);
  const Memory late = Memory::Random(kBytes, 7);
  ASSERT_EQ(Write(first), Status());
  faulty_->Add({.fault = IoFault::kHang, .times = 1});
  Account account;
  ASSERT_EQ(io_->Submit(Batch(
                account.Watch(WriteFrom(file_, 0, {late.all()}), clock_.Now() + 5 * kNsPerMs))),
            Status());
  EXPECT_EQ(account.Answer(0).code(), Code::kDeadlineExceeded);
  EXPECT_EQ(account.entries()[0].ended, 0);
  EXPECT_EQ(io_->Report().overdue, 1u);
  EXPECT_EQ(Stored(), BytesOf(first));
  faulty_->Release();
  account.WaitForEnds(1);
  EXPECT_EQ(Stored(), BytesOf(late));
  EXPECT_EQ(account.entries()[0].answers.size(), 1u);
  EXPECT_EQ(io_->Report().in_flight, 0u);
}

TEST_P(FaultyDiskIoTest, WhatHangsAtTheEndIsAnsweredAndNeverEnds) {
  Wrap({.stop_ns = 5 * kNsPerMs});
  const Memory memory(kBytes);
  faulty_->Add({.fault = IoFault::kHang});
  Account account;
  ASSERT_EQ(io_->Submit(Batch(account.Watch(ReadInto(file_, 0, {memory.all()}), Soon()))),
            Status());
  io_.reset();
  EXPECT_EQ(account.Answer(0).code(), Code::kUnavailable);
  EXPECT_EQ(account.entries()[0].ended, 0);
}

TEST_P(FaultyDiskIoTest, WhatIsSlowComesLate) {
  const Memory memory(kBytes);
  ASSERT_EQ(Write(memory), Status());
  faulty_->Add(
      {.fault = IoFault::kSlow, .verb = IoVerb::kRead, .times = 1, .slow_ns = 20 * kNsPerMs});
  const MonotonicNs begun = clock_.Now();
  Account account;
  ASSERT_EQ(io_->Submit(Batch(account.Watch(ReadInto(file_, 0, {memory.all()}), Soon()))),
            Status());
  account.WaitForEnds(1);
  EXPECT_EQ(account.Answer(0), Status());
  EXPECT_GE(clock_.Now() - begun, 20 * kNsPerMs);
  EXPECT_EQ(faulty_->made(IoFault::kSlow), 1u);
}

TEST_P(FaultyDiskIoTest, ACrashTakesBackWhatWasNotSynced) {
  Wrap({}, true);
  const Memory synced = Memory::Random(kBytes, 8);
  const Memory over = Memory::Random(kBytes, 9);
  const Memory beyond = Memory::Random(kBytes, 10);
  ASSERT_EQ(Write(synced), Status());
  ASSERT_EQ(Do(SyncOf(file_)), Status());
  ASSERT_EQ(Write(over), Status());
  ASSERT_EQ(Write(beyond, kBytes), Status());
  ASSERT_EQ(Write(beyond), Status());
  EXPECT_EQ(faulty_->Crash(), 3u);
  EXPECT_EQ(Stored(), BytesOf(synced));
  EXPECT_EQ(::lseek(fd_.get(), 0, SEEK_END), static_cast<off_t>(kBytes));
  EXPECT_EQ(faulty_->Crash(), 0u);

  ASSERT_EQ(Write(over), Status());
  ASSERT_EQ(Do(SyncOf(file_)), Status());
  EXPECT_EQ(faulty_->Crash(), 0u);
  EXPECT_EQ(Stored(), BytesOf(over));

  // A sync that failed made nothing durable.
  ASSERT_EQ(Write(synced), Status());
  faulty_->Add({.verb = IoVerb::kSync});
  EXPECT_FALSE(Do(SyncOf(file_)).ok());
  EXPECT_EQ(faulty_->Crash(), 1u);
  EXPECT_EQ(Stored(), BytesOf(over));
}

TEST_P(FaultyDiskIoTest, ACrashWithOddsKeepsSome) {
  Wrap({}, true);
  const Memory zeros(64 * 4096);
  ASSERT_EQ(Write(zeros), Status());
  ASSERT_EQ(Do(SyncOf(file_)), Status());
  const Memory page = Memory::Random(4096, 11);
  for (uint64_t i = 0; i < 64; ++i)
    ASSERT_EQ(Write(page, i * 4096), Status());
  Random odds(1);
  const uint64_t lost = faulty_->Crash(&odds);
  EXPECT_GT(lost, 0u);
  EXPECT_LT(lost, 64u);
  uint64_t kept = 0;
  for (uint64_t i = 0; i < 64; ++i) {
    const Memory into(4096);
    ASSERT_EQ(Do(ReadInto(file_, i * 4096, {into.all()})), Status());
    kept += std::ranges::equal(into.bytes(), page.bytes()) ? 1 : 0;
  }
  EXPECT_EQ(kept, 64 - lost);
}

INSTANTIATE_TEST_SUITE_P(Engines, FaultyDiskIoTest, testing::Bool(), EngineName);

}  // namespace
}  // namespace terrace
