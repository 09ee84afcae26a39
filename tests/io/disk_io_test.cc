// The contract of DiskIo, by every way to the kernel.
#include "tiers/io/disk_io.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mount.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <memory>
#include <set>
#include <thread>

#include "tests/io/io_fixture.h"

namespace terrace {
namespace {

using testing::HasSubstr;

TEST_P(DiskIoTest, WhatIsWrittenIsRead) {
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
  const IoReport report = io_->Report();
  EXPECT_EQ(report.reads, 6u);
  EXPECT_EQ(report.writes, 6u);
  EXPECT_EQ(report.syncs, 6u);
  EXPECT_EQ(report.read_bytes, offset);
  EXPECT_EQ(report.written_bytes, offset);
  EXPECT_EQ(report.errors, 0u);
  EXPECT_EQ(report.in_flight, 0u);
}

TEST_P(DiskIoTest, PiecesAreConsecutiveInTheFile) {
  const size_t bytes = kMaxIoPieces * 8192;
  const Memory from = Memory::Random(bytes, 1);
  const Memory into(bytes);
  // Memory from its end to its start, in pieces of one and of three pages.
  std::vector<iovec> backwards;
  for (size_t end = bytes; end > 0;) {
    const size_t length = backwards.size() % 2 == 0 ? 4096 : 12'288;
    end -= length;
    backwards.push_back(from.piece(end, length));
  }
  ASSERT_EQ(backwards.size(), kMaxIoPieces);
  ASSERT_EQ(Do(WriteFrom(file_, 8192, backwards)), Status());
  ASSERT_EQ(Do(ReadInto(file_, 8192, {into.all()})), Status());
  size_t at = 0;
  for (const iovec& piece : backwards) {
    EXPECT_EQ(std::memcmp(into.bytes().data() + at, piece.iov_base, piece.iov_len), 0) << at;
    at += piece.iov_len;
  }
}

TEST_P(DiskIoTest, ReadingPastTheEndOfTheFileIsDataLoss) {
  const Memory memory(32'768);
  ASSERT_EQ(::ftruncate(fd_.get(), 16'384 + 1000), 0);  // Ends within a sector.
  EXPECT_EQ(Do(ReadInto(file_, 0, {memory.piece(0, 16'384)})), Status());
  for (const uint64_t offset : {0ull, 12'288ull, 16'384ull, 20'480ull, 1ull << 40}) {
    const Status status = Do(ReadInto(file_, offset, {memory.all()}));
    EXPECT_EQ(status.code(), Code::kDataLoss) << offset << status.ToString();
    EXPECT_THAT(status.message(), HasSubstr("the file ends before"));
  }
  EXPECT_EQ(io_->Report().errors, 5u);
  EXPECT_EQ(io_->Report().reads, 1u);
}

TEST_P(DiskIoTest, FilesOfThePageCacheNeedNoAlignment) {
  const UniqueFd fd = OpenTestFile(O_RDWR);
  const IoFileId file = Add(fd.get());
  const Memory from = Memory::Random(8192, 2);
  const Memory into(8192);
  ASSERT_EQ(Do(WriteFrom(file, 3, {from.piece(1, 4000), from.piece(5000, 7)})), Status());
  ASSERT_EQ(Do(ReadInto(file, 3, {into.piece(1, 4000), into.piece(5000, 7)})), Status());
  EXPECT_EQ(std::memcmp(into.bytes().data() + 1, from.bytes().data() + 1, 4000), 0);
  EXPECT_EQ(std::memcmp(into.bytes().data() + 5000, from.bytes().data() + 5000, 7), 0);
  EXPECT_EQ(Do(ReadInto(file, 3, {into.piece(0, 4008)})).code(), Code::kDataLoss);
}

TEST_P(DiskIoTest, WhatCanNeverWorkIsRefusedByName) {
  const Memory memory(kMaxIoPieces * 8192);
  const auto refused = [&](IoRequest request, const char* words) {
    Account account;
    request = account.Watch(std::move(request), Soon());
    // Behind one that could work: nothing is started.
    std::vector<IoRequest> batch =
        Batch(account.Watch(WriteFrom(file_, 0, {memory.piece(0, 4096)}), Soon()));
    batch.push_back(std::move(request));
    const Status status = io_->Submit(std::move(batch));
    EXPECT_EQ(status.code(), Code::kInvalidArgument) << status.ToString();
    EXPECT_THAT(status.message(), HasSubstr("requests[1]: "));
    EXPECT_THAT(status.message(), HasSubstr(words));
  };
  const iovec page = memory.piece(0, 4096);
  refused(ReadInto(file_, 512, {page}), "offset: 512");
  refused(ReadInto(file_, 1ull << 63, {page}), "offset");
  refused(ReadInto(file_, 0, {memory.piece(512, 4096)}), "memory: an address");
  refused(WriteFrom(file_, 0, {page, memory.piece(4096, 512)}), "memory: the length 512");
  refused(ReadInto(file_, 0, {}), "memory: there is none");
  refused(ReadInto(file_, 0, {memory.piece(0, 0)}), "memory: an empty piece");
  refused(ReadInto(file_, 0, {page, {.iov_base = nullptr, .iov_len = 4096}}), "memory: an empty");
  refused(ReadInto(file_, 0, std::vector<iovec>(kMaxIoPieces + 1, page)), "memory: 65 pieces");
  refused(ReadInto(file_, 0, {{.iov_base = page.iov_base, .iov_len = (1u << 30) + 4096}}),
          "memory: more than");
  refused(ReadInto(file_ + 1, 0, {page}), "file: 1 was not added");
  refused(ReadInto(1u << 31, 0, {page}), "file: ");
  IoRequest sync = SyncOf(file_);
  sync.memory = {page};
  refused(std::move(sync), "memory: a sync has none");
}

TEST_P(DiskIoTest, ARequestNeedsAnAnswerAndADeadline) {
  IoRequest request = SyncOf(file_);
  request.deadline = Soon();
  EXPECT_THAT(io_->Submit(Batch(request)).message(), HasSubstr("done"));
  request.done = [](const Status&) { FAIL(); };
  request.deadline = 0;
  EXPECT_THAT(io_->Submit(Batch(request)).message(), HasSubstr("deadline"));
}

TEST_P(DiskIoTest, AFileForReadingIsNotWritten) {
  const UniqueFd fd = OpenTestFile(O_RDWR | O_DIRECT);
  const std::string name = "/proc/self/fd/" + std::to_string(fd.get());
  const UniqueFd reads(::open(name.c_str(), O_RDONLY | O_DIRECT | O_CLOEXEC));
  const IoFileId file = Add(reads.get());
  const Memory memory(4096);
  EXPECT_FALSE(Do(WriteFrom(file, 0, {memory.all()})).ok());
  EXPECT_EQ(io_->Report().errors, 1u);
  EXPECT_EQ(io_->Report().writes, 0u);
}

TEST_P(DiskIoTest, AFullFileSystemIsExhausted) {
  std::string folder = TestFolder() + "/io-full-XXXXXX";
  ASSERT_NE(::mkdtemp(folder.data()), nullptr);
  const bool mounted = ::mount("tmpfs", folder.c_str(), "tmpfs", 0, "size=1m") == 0;
  const int error = errno;
  const UniqueFd fd = mounted ? OpenTestFile(O_RDWR, folder) : UniqueFd();
  if (mounted) ::umount2(folder.c_str(), MNT_DETACH);
  ::rmdir(folder.c_str());
  if (!mounted) GTEST_SKIP() << "mounting a tmpfs: " << std::strerror(error);
  const IoFileId file = Add(fd.get());
  const Memory memory(4u << 20);
  const Status status = Do(WriteFrom(file, 0, {memory.all()}));
  EXPECT_EQ(status.code(), Code::kExhausted) << status.ToString();
  EXPECT_EQ(Do(WriteFrom(file, 0, {memory.piece(0, 65'536)})), Status());
}

TEST_P(DiskIoTest, FilesHaveABound) {
  Restart({.files = 3});
  EXPECT_EQ(Add(fd_.get()), 1u);
  EXPECT_EQ(Add(fd_.get()), 2u);
  EXPECT_EQ(io_->AddFile(fd_.get()).status().code(), Code::kExhausted);
  io_->RemoveFile(1);
  EXPECT_EQ(Add(fd_.get()), 1u);
  EXPECT_EQ(io_->AddFile(-1).status().code(), Code::kInvalidArgument);
}

TEST_P(DiskIoTest, AFileThatTakesTheIdOfAnotherIsItself) {
  const Memory from = Memory::Random(4096, 4);
  const Memory into(4096);
  ASSERT_EQ(Do(WriteFrom(file_, 0, {from.all()})), Status());
  io_->RemoveFile(file_);
  const UniqueFd other = OpenTestFile(O_RDWR | O_DIRECT);
  ASSERT_EQ(Add(other.get()), file_);
  EXPECT_EQ(Do(ReadInto(file_, 0, {into.all()})).code(), Code::kDataLoss);
}

TEST_P(DiskIoTest, AnAnswerMaySubmitAndRemoveItsFile) {
  Restart({.depth = 1});
  const Memory memory(4096);
  Account account;
  std::atomic<int> left = 200;
  IoRequest last = account.Watch(SyncOf(file_), Soon());
  std::function<void(const Status&)> next = [&](const Status& status) {
    ASSERT_EQ(status, Status());
    IoRequest request = WriteFrom(file_, 0, {memory.all()});
    request.deadline = Soon();
    request.done = next;
    if (--left == 0) {
      io_->RemoveFile(file_);
      file_ = Add(fd_.get());
      request = std::move(last);
    }
    ASSERT_EQ(io_->Submit(Batch(std::move(request))), Status());
  };
  next({});
  EXPECT_EQ(account.Answer(0), Status());
  account.WaitForEnds(1);
  EXPECT_EQ(io_->Report().writes, 199u);
}

TEST_P(DiskIoTest, ManyThreadsSubmitAndEachGetsItsOwn) {
  constexpr size_t kThreads = 6;
  constexpr size_t kRounds = 40;
  constexpr size_t kBytes = 16'384;
  Restart({.depth = 16});
  std::atomic<size_t> refused = 0;
  const auto work = [&](size_t thread) {
    for (size_t round = 0; round < kRounds; ++round) {
      const Memory from = Memory::Random(kBytes, thread << 32 | round);
      const Memory into(kBytes);
      const uint64_t offset = (thread * kRounds + round) * kBytes;
      Account account;
      const auto halves = [&](bool write) {
        std::vector<IoRequest> batch;
        for (size_t at = 0; at < kBytes; at += kBytes / 2) {
          batch.push_back(
              account.Watch(write ? WriteFrom(file_, offset + at, {from.piece(at, kBytes / 2)})
                                  : ReadInto(file_, offset + at, {into.piece(at, kBytes / 2)}),
                            Soon()));
        }
        return batch;
      };
      std::vector<IoRequest> writes = halves(true);
      while (!io_->Submit(writes).ok())
        ++refused;
      account.WaitForEnds(2);
      std::vector<IoRequest> reads = halves(false);
      while (!io_->Submit(reads).ok())
        ++refused;
      account.WaitForEnds(4);
      for (const Account::Entry& entry : account.entries())
        ASSERT_EQ(entry.answers, std::vector<Status>{Status()});
      ASSERT_TRUE(std::ranges::equal(from.bytes(), into.bytes()));
    }
  };
  std::vector<std::thread> threads;
  for (size_t thread = 0; thread < kThreads; ++thread)
    threads.emplace_back(work, thread);
  for (std::thread& thread : threads)
    thread.join();
  EXPECT_EQ(io_->Report().reads, kThreads * kRounds * 2);
  EXPECT_EQ(io_->Report().writes, kThreads * kRounds * 2);
  EXPECT_EQ(io_->Report().in_flight, 0u);
}

TEST_P(DiskIoTest, CallbacksComeOneAtATime) {
  const Memory memory(64 * 4096);
  int calls = 0;  // Without a lock of its own: ThreadSanitizer would tell.
  Account account;
  std::vector<IoRequest> batch;
  for (size_t i = 0; i < 64; ++i) {
    IoRequest request =
        account.Watch(WriteFrom(file_, i * 4096, {memory.piece(i * 4096, 4096)}), Soon());
    request.done = [&calls, done = std::move(request.done)](const Status& status) {
      ++calls;
      done(status);
    };
    batch.push_back(std::move(request));
  }
  ASSERT_EQ(io_->Submit(std::move(batch)), Status());
  account.WaitForEnds(64);
  io_.reset();
  EXPECT_EQ(calls, 64);
}

TEST_P(DiskIoTest, TheEndWaitsForWhatIsInFlight) {
  const Memory memory = Memory::Random(16u << 20, 5);
  Account account;
  std::vector<IoRequest> batch;
  for (size_t at = 0; at < memory.bytes().size(); at += 1u << 20)
    batch.push_back(account.Watch(WriteFrom(file_, at, {memory.piece(at, 1u << 20)}), Soon()));
  ASSERT_EQ(io_->Submit(std::move(batch)), Status());
  io_.reset();
  for (const Account::Entry& entry : account.entries()) {
    EXPECT_EQ(entry.answers, std::vector<Status>{Status()});
    EXPECT_EQ(entry.ended, 1);
    EXPECT_FALSE(entry.ended_first);
  }
}

TEST_P(DiskIoTest, AnAnswerAtTheEndMaySubmitAndIsRefusedOrServed) {
  const Memory memory(4096);
  for (int round = 0; round < 20; ++round) {
    DiskIo* const io = io_.get();  // Which reset() forgets before it is gone.
    std::function<void(const Status&)> again = [&](const Status& status) {
      if (!status.ok()) return;
      IoRequest request = WriteFrom(file_, 0, {memory.all()});
      request.deadline = Soon();
      request.done = again;
      const Status submitted = io->Submit(Batch(std::move(request)));
      EXPECT_TRUE(submitted.ok() || submitted.code() == Code::kUnavailable);
    };
    again({});
    io_.reset();
    Restart({});
  }
}

INSTANTIATE_TEST_SUITE_P(Engines, DiskIoTest, testing::Bool(), EngineName);

}  // namespace
}  // namespace terrace
