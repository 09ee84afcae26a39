// What the tests of DiskIo share: a file without a name, memory at the right addresses, and an
// account of what was answered.
#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "base/check.h"
#include "base/clock.h"
#include "base/random.h"
#include "base/status.h"
#include "base/unique_fd.h"
#include "tiers/io/disk_io.h"

namespace terrace {

inline std::string TestFolder() {
  const char* folder = std::getenv("TMPDIR");
  return folder != nullptr ? folder : "/tmp";
}

// A file that nobody else sees; none where the file system refuses the flags.
inline UniqueFd OpenTestFile(int flags, const std::string& folder = TestFolder()) {
  return UniqueFd(::open(folder.c_str(), O_TMPFILE | O_CLOEXEC | flags, 0600));
}

// A memfd, mapped: aligned to pages, zeros.
class Memory {
 public:
  explicit Memory(size_t bytes) {
    auto fd = CreateMemfd("io-test", bytes);
    TERRACE_CHECK(fd.has_value());
    fd_ = *std::move(fd);
    auto mapping = Mapping::Of(fd_.get(), 0, bytes, Protection::kReadWrite);
    TERRACE_CHECK(mapping.has_value());
    mapping_ = *std::move(mapping);
  }
  static Memory Random(size_t bytes, uint64_t seed) {
    Memory memory(bytes);
    terrace::Random random(seed);
    for (size_t i = 0; i + 8 <= bytes; i += 8) {
      const uint64_t word = random();
      std::copy_n(reinterpret_cast<const uint8_t*>(&word), 8, memory.bytes().data() + i);
    }
    return memory;
  }
  int fd() const { return fd_.get(); }
  std::span<uint8_t> bytes() const { return mapping_.bytes(); }
  iovec piece(size_t offset, size_t length) const {
    return {.iov_base = mapping_.data() + offset, .iov_len = length};
  }
  iovec all() const { return piece(0, mapping_.size()); }

 private:
  UniqueFd fd_;
  Mapping mapping_;
};

// The answers and ends of requests, in the order of requests.
class Account {
 public:
  struct Entry {
    std::vector<Status> answers;
    int ended = 0;
    bool ended_first = false;
  };

  // `request` with callbacks that are put down here; its number is that of the calls before.
  IoRequest Watch(IoRequest request, MonotonicNs deadline) {
    std::lock_guard lock(mu_);
    const size_t i = entries_.size();
    entries_.emplace_back();
    request.deadline = deadline;
    request.done = [this, i](const Status& status) {
      std::lock_guard guard(mu_);
      entries_[i].answers.push_back(status);
      changed_.notify_all();
    };
    request.ended = [this, i] {
      std::lock_guard guard(mu_);
      if (entries_[i].answers.empty()) entries_[i].ended_first = true;
      ++entries_[i].ended;
      changed_.notify_all();
    };
    return request;
  }

  // Returns when request `i` is answered; the test's own limit ends what hangs.
  Status Answer(size_t i) {
    std::unique_lock lock(mu_);
    changed_.wait(lock, [&] { return !entries_[i].answers.empty(); });
    return entries_[i].answers.front();
  }
  void WaitForEnds(size_t count) {
    std::unique_lock lock(mu_);
    changed_.wait(lock, [&] {
      size_t ends = 0;
      for (const Entry& entry : entries_)
        ends += entry.ended > 0 ? 1 : 0;
      return ends >= count;
    });
  }
  std::vector<Entry> entries() const {
    std::lock_guard lock(mu_);
    return entries_;
  }

 private:
  mutable std::mutex mu_;
  std::condition_variable changed_;
  std::vector<Entry> entries_;
};

inline IoRequest ReadInto(IoFileId file, uint64_t offset, std::vector<iovec> memory) {
  IoRequest request;
  request.verb = IoVerb::kRead;
  request.file = file;
  request.offset = offset;
  request.memory = std::move(memory);
  return request;
}
inline IoRequest WriteFrom(IoFileId file, uint64_t offset, std::vector<iovec> memory) {
  IoRequest request = ReadInto(file, offset, std::move(memory));
  request.verb = IoVerb::kWrite;
  return request;
}
inline IoRequest SyncOf(IoFileId file) {
  IoRequest request;
  request.verb = IoVerb::kSync;
  request.file = file;
  return request;
}

template <typename... Requests>
std::vector<IoRequest> Batch(Requests... requests) {
  std::vector<IoRequest> batch;
  (batch.push_back(std::move(requests)), ...);
  return batch;
}

inline constexpr MonotonicNs kAMinute = 60 * kNsPerSecond;

// A DiskIo by the parameter's engine, with a file that is opened with O_DIRECT.
class DiskIoTest : public testing::TestWithParam<bool> {
 protected:
  void SetUp() override {
    fd_ = OpenTestFile(O_RDWR | O_DIRECT);
    if (!fd_) GTEST_SKIP() << TestFolder() << " takes no O_DIRECT";
    Restart({});
    if (GetParam() && io_->Report().engine != "io_uring") GTEST_SKIP() << io_->Report().engine;
  }
  void Restart(DiskIoOptions options) {
    options.allow_io_uring = GetParam();
    io_.reset();
    auto io = StartDiskIo(options, clock_);
    ASSERT_TRUE(io.has_value()) << io.error().ToString();
    io_ = *std::move(io);
    file_ = Add(fd_.get());
  }
  IoFileId Add(int fd) {
    auto file = io_->AddFile(fd);
    TERRACE_CHECK(file.has_value());
    return *file;
  }
  MonotonicNs Soon() const { return clock_.Now() + kAMinute; }
  Status Do(IoRequest request) {
    Account account;
    RETURN_IF_ERROR(io_->Submit(Batch(account.Watch(std::move(request), Soon()))));
    account.WaitForEnds(1);
    return account.Answer(0);
  }

  SystemClock clock_;
  UniqueFd fd_;
  IoFileId file_ = 0;
  std::unique_ptr<DiskIo> io_;
};

inline std::string EngineName(const testing::TestParamInfo<bool>& engine) {
  return engine.param ? "Ring" : "Threads";
}

}  // namespace terrace
