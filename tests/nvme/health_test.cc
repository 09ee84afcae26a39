// A device that stops answering, or takes no writes, is set aside and taken back, and holds up
// nobody else.
#include <gmock/gmock.h>
#include <sys/mount.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>

#include "base/mutex.h"
#include "tests/nvme/store_fixture.h"
#include "tiers/nvme/format.h"

namespace terrace {
namespace {

using testing::HasSubstr;

// Keeps requests for the files of one directory to itself, until it is told how they end.
class HangingDiskIo final : public DiskIo {
 public:
  explicit HangingDiskIo(std::unique_ptr<DiskIo> real) : real_(std::move(real)) {}

  Result<IoFileId> AddFile(int fd) override {
    auto added = real_->AddFile(fd);
    MutexLock lock(mu_);
    if (added) fds_[*added] = fd;
    return added;
  }
  void RemoveFile(IoFileId file) override { real_->RemoveFile(file); }
  Status Submit(std::vector<IoRequest> requests) override {
    {
      MutexLock lock(mu_);
      while (blocked_)
        unblocked_.wait(mu_);
    }
    std::vector<IoRequest> now;
    for (IoRequest& request : requests) {
      MutexLock lock(mu_);
      if (!hanging_path_.empty() && PathOf(fds_[request.file]).starts_with(hanging_path_)) {
        held_.push_back(std::move(request));
      } else {
        now.push_back(std::move(request));
      }
    }
    return now.empty() ? Status() : real_->Submit(std::move(now));
  }
  void RegisterMemory(std::span<uint8_t>) override {}
  void UnregisterMemory(std::span<uint8_t>) override {}
  IoReport Report() const override { return real_->Report(); }

  // What is sent to files below `path` from now on has no answer; empty: everything has again.
  void Hang(const std::string& path) {
    MutexLock lock(mu_);
    hanging_path_ = path;
  }
  // Whoever submits hangs until it is unblocked.
  void Block(bool blocked) {
    MutexLock lock(mu_);
    blocked_ = blocked;
    unblocked_.notify_all();
  }
  size_t held() {
    MutexLock lock(mu_);
    return held_.size();
  }
  // The deadlines of what is held pass.
  void Expire() {
    std::vector<IoRequest> now = Take();
    for (IoRequest& request : now)
      request.done(Status(Code::kDeadlineExceeded, "no answer"));
    MutexLock lock(mu_);
    for (IoRequest& request : now)
      overdue_.push_back(std::move(request));
  }
  // And end after all.
  void End() {
    std::vector<IoRequest> now;
    {
      MutexLock lock(mu_);
      now.swap(overdue_);
    }
    for (IoRequest& request : now)
      request.ended();
  }
  // Answers what is held with an error.
  void Fail(const Status& why) {
    for (IoRequest& request : Take()) {
      request.done(why);
      request.ended();
    }
  }

 private:
  static std::string PathOf(int fd) {
    char path[4096];
    const ssize_t bytes =
        ::readlink(("/proc/self/fd/" + std::to_string(fd)).c_str(), path, sizeof path);
    return {path, bytes > 0 ? static_cast<size_t>(bytes) : 0};
  }
  std::vector<IoRequest> Take() {
    MutexLock lock(mu_);
    return std::exchange(held_, {});
  }

  const std::unique_ptr<DiskIo> real_;
  Mutex mu_;
  CondVar unblocked_;
  bool blocked_ GUARDED_BY(mu_) = false;
  std::string hanging_path_ GUARDED_BY(mu_);
  std::map<IoFileId, int> fds_ GUARDED_BY(mu_);
  std::vector<IoRequest> held_ GUARDED_BY(mu_);
  std::vector<IoRequest> overdue_ GUARDED_BY(mu_);
};

class NvmeHealthTest : public testing::Test {
 protected:
  void Open() {
    open = std::make_unique<OpenStore>(options, clock, [this](std::unique_ptr<DiskIo> real) {
      auto hanging = std::make_unique<HangingDiskIo>(std::move(real));
      io = hanging.get();
      return hanging;
    });
    ASSERT_TRUE(open->status.ok()) << open->status.ToString();
  }
  DeviceReport Device(size_t i) { return open->store->Report().devices[i]; }
  StoredPage PageOn(uint8_t device, uint64_t id) {
    for (;;) {
      const auto written = open->Write(PageOf(id, 4096), 1);
      if (nvme::FromPlaceId(written.page.place).device == device) return written.page;
    }
  }
  struct Asked {
    bool done = false;
    bool ended = false;
    ReadFault fault = ReadFault::kNone;
    nvme::AlignedBuffer memory{4096};
  };
  void Ask(const StoredPage& page, Asked& asked, MonotonicNs within = kLong) {
    open->store->Read(
        {{page, asked.memory.bytes()}}, clock.Now() + within,
        [&asked](size_t, ReadFault fault, const Status&) {
          asked.done = true;
          asked.fault = fault;
        },
        [&asked](size_t) { asked.ended = true; });
  }

  TempFolder folder;
  SystemClock clock;
  const std::string a = folder.Make("a");
  const std::string b = folder.Make("b");
  NvmeStoreOptions options{.directories = {{a, 8u << 20}, {b, 8u << 20}},
                           .quarantine_after = 3,
                           .probe_every_ns = 0,
                           .retry_ns = 0};
  HangingDiskIo* io = nullptr;
  std::unique_ptr<OpenStore> open;
};

TEST_F(NvmeHealthTest, ADeviceThatHangsIsSetAsideAndTakenBack) {
  Open();
  const StoredPage on_a = PageOn(0, 1);
  const StoredPage on_b = PageOn(1, 2);
  io->Hang(b);
  std::vector<Asked> asked(5);
  for (Asked& one : asked)
    Ask(on_b, one);
  ASSERT_TRUE(open->Run([&] { return io->held() == asked.size(); }));
  // The other one answers meanwhile.
  EXPECT_EQ(open->Read(on_a).fault, ReadFault::kNone);
  io->Expire();
  ASSERT_TRUE(open->Run([&] { return asked.back().done; }));
  for (const Asked& one : asked) {
    EXPECT_EQ(one.fault, ReadFault::kOverdue);
    EXPECT_FALSE(one.ended);
  }
  EXPECT_EQ(Device(1).state, DeviceState::kQuarantined);
  EXPECT_EQ(Device(1).overdue, 5U);
  EXPECT_FALSE(open->store->Readable(on_b.place));
  EXPECT_EQ(open->Read(on_b).fault, ReadFault::kRefused);
  for (const PlaceId place : open->store->Allocate(4096, 8))
    EXPECT_EQ(nvme::FromPlaceId(place).device, 0);

  // A probe that hangs as well changes nothing.
  open->Turn();
  ASSERT_EQ(io->held(), 1U);
  io->Expire();
  // And has no other one beside it: each would keep a place of those that all devices share.
  for (int turn = 0; turn < 5; ++turn)
    open->Turn();
  EXPECT_EQ(io->held(), 0U);
  EXPECT_EQ(Device(1).state, DeviceState::kQuarantined);
  io->Hang("");
  io->End();
  ASSERT_TRUE(open->Run([&] {
    open->store->Turn();
    return Device(1).state == DeviceState::kServing;
  }));
  for (const Asked& one : asked)
    EXPECT_TRUE(one.ended);
  EXPECT_EQ(open->Read(on_b).bytes, BytesOf(on_b, 1));
  EXPECT_EQ(Device(1).in_flight, 0U);
}

TEST_F(NvmeHealthTest, WhatACheckCannotReadIsNotHeldAgainstTheDevice) {
  Open();
  const StoredPage on_b = PageOn(1, 2);
  const std::vector<StoredPage> pages(8, on_b);
  std::vector<ReadFault> faults;
  const auto check = [&](Looks looks) {
    faults.clear();
    io->Hang(b);
    open->store->Check(pages, looks, clock.Now() + kLong,
                       [&](size_t, ReadFault fault, const Status&) { faults.push_back(fault); });
    ASSERT_TRUE(open->Run([&] { return io->held() == pages.size(); }));
    io->Hang("");
  };
  check(Looks::kFirst);
  io->Fail(Status(Code::kUnavailable, "bad sector"));
  ASSERT_TRUE(open->Run([&] { return faults.size() == pages.size(); }));
  EXPECT_THAT(faults, testing::Each(ReadFault::kIo));
  EXPECT_EQ(Device(1).state, DeviceState::kServing);
  EXPECT_EQ(open->Read(on_b).bytes, BytesOf(on_b, 1));
  // No answer at all is another matter.
  check(Looks::kFirst);
  io->Expire();
  ASSERT_TRUE(open->Run([&] { return faults.size() == pages.size(); }));
  EXPECT_EQ(Device(1).state, DeviceState::kQuarantined);
  io->End();
  ASSERT_TRUE(open->Run([&] { return Device(1).in_flight == 0; }));
}

// What cannot be read twice is erased, if the device is one that can be read at all.
TEST_F(NvmeHealthTest, WhatACheckCannotReadTwiceIsHeldAgainstTheDevice) {
  Open();
  const StoredPage on_b = PageOn(1, 2);
  std::vector<ReadFault> faults;
  io->Hang(b);
  open->store->Check(std::vector<StoredPage>(8, on_b), Looks::kAgain, clock.Now() + kLong,
                     [&](size_t, ReadFault fault, const Status&) { faults.push_back(fault); });
  ASSERT_TRUE(open->Run([&] { return io->held() == 8; }));
  io->Hang("");
  io->Fail(Status(Code::kUnavailable, "bad sector"));
  ASSERT_TRUE(open->Run([&] { return faults.size() == 8; }));
  EXPECT_EQ(Device(1).state, DeviceState::kQuarantined);
  EXPECT_FALSE(open->store->Readable(on_b.place));
}

TEST_F(NvmeHealthTest, ADeviceThatHangsTakesNoMoreThanItsShare) {
  options.in_flight_per_device = 8;
  options.waiting_reads_per_device = 10;
  Open();
  const StoredPage on_b = PageOn(1, 2);
  io->Hang(b);
  std::vector<Asked> asked(40);
  for (Asked& one : asked)
    Ask(on_b, one);
  open->owner.RunAll();
  EXPECT_EQ(io->held(), 6U);  // Three quarters of 8.
  size_t refused = 0;
  for (const Asked& one : asked)
    refused += one.done && one.fault == ReadFault::kRefused ? 1 : 0;
  EXPECT_EQ(refused, asked.size() - 6 - 10);
  io->Hang("");
  io->Expire();
  // Those that waited are refused with the quarantine.
  ASSERT_TRUE(open->Run([&] { return open->faults(ReadFault::kRefused) == 34; }));
  io->End();
  ASSERT_TRUE(open->Run([&] { return Device(1).in_flight == 0; }));
}

TEST_F(NvmeHealthTest, ReadsAndWritesTogetherTakeNoMoreThanTheirShare) {
  options.in_flight_per_device = 8;
  Open();
  const StoredPage on_b = PageOn(1, 2);
  io->Hang(b);
  std::vector<Asked> asked(20);
  for (Asked& one : asked)
    Ask(on_b, one);
  std::vector<PageStore::PageWrite> writes;
  nvme::AlignedBuffer memory(4096);
  for (const PlaceId place : open->store->Allocate(4096, 40)) {
    if (nvme::FromPlaceId(place).device == 0) continue;
    StoredPage page = PageOf(100 + writes.size(), 4096);
    page.place = place;
    writes.push_back({page, memory.bytes()});
  }
  size_t ended = 0;
  const size_t count = writes.size();
  open->store->Write(
      std::move(writes), clock.Now() + kLong, [](size_t, const Result<uint64_t>&) {},
      [&](size_t) { ++ended; });
  ASSERT_TRUE(open->Run([&] { return io->held() == 8; }));
  open->Turn();
  EXPECT_EQ(Device(1).in_flight, 8U);
  io->Hang("");
  io->Expire();
  io->End();
  ASSERT_TRUE(open->Run([&] { return ended == count && asked.back().ended; }));
}

TEST_F(NvmeHealthTest, WhatWasLateBeforeItWasSentSaysNothingAboutTheDevice) {
  Open();
  const StoredPage on_b = PageOn(1, 2);
  io->Hang(b);
  std::vector<Asked> expired(10);
  for (Asked& one : expired)
    Ask(on_b, one, -1);
  ASSERT_TRUE(open->Run([&] { return expired.back().ended; }));
  for (const Asked& one : expired)
    EXPECT_EQ(one.fault, ReadFault::kOverdue);
  EXPECT_EQ(io->held(), 0U);
  EXPECT_EQ(Device(1).overdue, 10U);
  EXPECT_EQ(Device(1).state, DeviceState::kServing);
  // Nor does what had next to no time there.
  std::vector<Asked> short_lived(10);
  for (Asked& one : short_lived)
    Ask(on_b, one, 50 * kNsPerMs);
  io->Hang("");
  io->Expire();
  io->End();
  ASSERT_TRUE(open->Run([&] { return short_lived.back().ended; }));
  EXPECT_EQ(Device(1).state, DeviceState::kServing);
}

TEST_F(NvmeHealthTest, TheSlotOfALateWriteIsNotGivenAwayBeforeItEnds) {
  Open();
  (void)PageOn(0, 1);
  (void)PageOn(1, 2);
  const uint64_t before = open->allocated();
  const auto places = open->store->Allocate(4096, 2);
  ASSERT_EQ(places.size(), 2U);
  const PlaceId place = nvme::FromPlaceId(places[0]).device == 1 ? places[0] : places[1];
  open->store->Release(place == places[0] ? places[1] : places[0]);
  io->Hang(b);
  StoredPage page = PageOf(3, 4096);
  page.place = place;
  nvme::AlignedBuffer memory(4096);
  Status answer;
  bool done = false;
  bool ended = false;
  open->store->Write(
      {{page, memory.bytes()}}, clock.Now() + kLong,
      [&](size_t, const Result<uint64_t>& serial) {
        answer = serial.status();
        done = true;
      },
      [&](size_t) { ended = true; });
  ASSERT_TRUE(open->Run([&] { return io->held() == 1; }));
  io->Expire();
  ASSERT_TRUE(open->Run([&] { return done; }));
  EXPECT_EQ(answer.code(), Code::kDeadlineExceeded);
  EXPECT_FALSE(ended);
  EXPECT_GT(open->allocated(), before);
  io->End();
  ASSERT_TRUE(open->Run([&] { return ended; }));
  EXPECT_EQ(open->allocated(), before);
}

TEST_F(NvmeHealthTest, AWriteThatTheDevicesThreadHangsOnIsAnsweredAtItsDeadline) {
  Open();
  (void)PageOn(0, 1);
  (void)PageOn(1, 2);
  const uint64_t before = open->allocated();
  std::vector<PageStore::PageWrite> writes;
  nvme::AlignedBuffer memory(4096);
  for (const PlaceId place : open->store->Allocate(4096, 6)) {
    if (nvme::FromPlaceId(place).device == 0) {
      open->store->Release(place);
      continue;
    }
    StoredPage page = PageOf(100 + writes.size(), 4096);
    page.place = place;
    writes.push_back({page, memory.bytes()});
  }
  const size_t count = writes.size();
  ASSERT_EQ(count, 3U);
  io->Block(true);
  size_t done = 0;
  size_t ended = 0;
  open->store->Write(
      std::move(writes), clock.Now() + 200 * kNsPerMs,
      [&](size_t, const Result<uint64_t>& serial) {
        EXPECT_EQ(serial.status().code(), Code::kDeadlineExceeded);
        ++done;
      },
      [&](size_t) { ++ended; });
  EXPECT_EQ(open->store->Report().waiting, count);
  ASSERT_TRUE(open->Run([&] {
    if (done == 0) {
      EXPECT_GT(open->store->Report().oldest_write_ns, 0);
    }
    open->store->Turn();
    return done == count;
  }));
  EXPECT_EQ(ended, 0U);
  EXPECT_EQ(Device(1).overdue, count);
  EXPECT_EQ(Device(1).state, DeviceState::kQuarantined);
  EXPECT_GT(open->allocated(), before);
  io->Block(false);
  ASSERT_TRUE(open->Run([&] { return ended == count; }));
  EXPECT_EQ(Device(1).overdue, count);  // Each once.
  EXPECT_EQ(open->allocated(), before);
}

TEST_F(NvmeHealthTest, ADeviceThatTakesNoWritesIsReadOnlyForAWhile) {
  options.retry_ns = kLong;
  Open();
  const StoredPage on_b = PageOn(1, 2);
  io->Hang(b);
  auto places = open->store->Allocate(4096, 2);
  for (const PlaceId place : places)
    open->store->Release(place);
  StoredPage page = PageOf(3, 4096);
  page.place = nvme::FromPlaceId(places[0]).device == 1 ? places[0] : places[1];
  places = open->store->Allocate(4096, 2);
  nvme::AlignedBuffer memory(4096);
  Status answer;
  bool ended = false;
  open->store->Write(
      {{page, memory.bytes()}}, clock.Now() + kLong,
      [&](size_t, const Result<uint64_t>& serial) { answer = serial.status(); },
      [&](size_t) { ended = true; });
  ASSERT_TRUE(open->Run([&] { return io->held() == 1; }));
  io->Fail(SystemError("write", EIO));
  ASSERT_TRUE(open->Run([&] { return ended; }));
  EXPECT_FALSE(answer.ok());
  io->Hang("");
  EXPECT_EQ(Device(1).state, DeviceState::kReadOnly);
  EXPECT_EQ(Device(1).write_errors, 1U);
  EXPECT_EQ(open->Read(on_b).bytes, BytesOf(on_b, 1));
  for (const PlaceId place : open->store->Allocate(4096, 8))
    EXPECT_EQ(nvme::FromPlaceId(place).device, 0);
  open->Turn();
  EXPECT_EQ(Device(1).state, DeviceState::kReadOnly);
}

TEST_F(NvmeHealthTest, TheEndDoesNotWaitForADeviceThatHangs) {
  options.stop_ns = 50 * kNsPerMs;
  Open();
  const StoredPage on_b = PageOn(1, 2);
  io->Hang(b);
  Asked asked;
  Ask(on_b, asked);
  ASSERT_TRUE(open->Run([&] { return io->held() == 1; }));
  open->store.reset();
  // What comes then finds nobody.
  io->Expire();
  io->End();
  open->owner.RunAll();
  EXPECT_FALSE(asked.done);
}

TEST_F(NvmeHealthTest, AFileThatTheIoHasNoRoomForIsNotLeftBehind) {
  options.retry_ns = 0;
  // Two markers, and one slot file.
  open = std::make_unique<OpenStore>(options, clock, DiskIoOptions{.files = 3});
  ASSERT_TRUE(open->status.ok()) << open->status.ToString();
  size_t refused = 0;
  for (uint64_t id = 0; id < 20; ++id) {
    refused += open->Write(PageOf(id, 4096), 1).status.ok() ? 0 : 1;
    open->Turn();
  }
  EXPECT_GT(refused, 0U);
  open.reset();
  size_t files = 0;
  for (const std::string& directory : {a, b}) {
    for (const auto& entry : std::filesystem::directory_iterator(directory))
      files += entry.path().filename().string().starts_with("slots-") ? 1 : 0;
  }
  EXPECT_EQ(files, 1U);
}

TEST_F(NvmeHealthTest, TheIoTakesWhatItsStoreMayHaveInFlightAndOpen) {
  const DiskIoOptions few = NvmeIoOptions(options);
  EXPECT_EQ(few.depth, 2 * (options.in_flight_per_device + 1));
  EXPECT_GT(few.files, 2 * 512U);
  NvmeStoreOptions most = options;
  most.directories.resize(64);
  EXPECT_TRUE(StartDiskIo(NvmeIoOptions(most), clock));
}

// A small file system of its own, where this may be mounted.
class SmallFileSystem {
 public:
  SmallFileSystem(const std::string& path, const std::string& options) : path_(path) {
    mounted_ = ::mount("tmpfs", path.c_str(), "tmpfs", 0, ("mode=0700," + options).c_str()) == 0;
  }
  ~SmallFileSystem() {
    if (mounted_) (void)::umount2(path_.c_str(), MNT_DETACH);
  }
  explicit operator bool() const { return mounted_; }
  bool ReadOnly() { return ::mount("", path_.c_str(), "", MS_REMOUNT | MS_RDONLY, "") == 0; }

 private:
  const std::string path_;
  bool mounted_ = false;
};

TEST_F(NvmeHealthTest, AFileSystemWithoutRoomTakesNothing) {
  const SmallFileSystem small(b, "size=2m");
  if (!small) GTEST_SKIP() << "cannot mount: " << std::strerror(errno);
  options.directories[1].capacity_bytes = 64u << 20;  // More than there is.
  options.retry_ns = kLong;
  Open();
  std::vector<StoredPage> pages;
  for (uint64_t id = 0; id < 100; ++id) {
    const auto written = open->Write(PageOf(id, 40'000), 1);
    if (written.status.ok()) pages.push_back(written.page);
  }
  EXPECT_EQ(Device(1).state, DeviceState::kReadOnly);
  EXPECT_THAT(Device(1).why, HasSubstr(b));
  EXPECT_GT(pages.size(), 90U);  // The other takes them.
  for (const StoredPage& page : pages)
    ASSERT_EQ(open->Read(page).bytes, BytesOf(page, 1));
  open.reset();
}

TEST_F(NvmeHealthTest, AFullFileSystemServesWhatItHasAndTakesWhatFits) {
  const SmallFileSystem small(b, "size=12m");
  if (!small) GTEST_SKIP() << "cannot mount: " << std::strerror(errno);
  options.directories[1].capacity_bytes = 64u << 20;  // More than there is.
  options.retry_ns = kLong;
  Open();
  std::vector<StoredPage> there;
  for (uint64_t id = 0; id < 400 && Device(1).why.empty(); ++id) {
    const auto written = open->Write(PageOf(id, 40'000), 1);
    const bool is_there = written.status.ok() && nvme::FromPlaceId(written.page.place).device == 1;
    if (is_there) there.push_back(written.page);
  }
  EXPECT_THAT(Device(1).why, HasSubstr(b));
  EXPECT_EQ(Device(1).state, DeviceState::kServing);
  ASSERT_FALSE(there.empty());
  for (const StoredPage& page : there)
    ASSERT_EQ(open->Read(page).bytes, BytesOf(page, 1));
  // What leaves makes room for others.
  EXPECT_TRUE(open->Erase({there.front()}).ok());
  const uint64_t allocated = Device(1).allocated_bytes;
  for (uint64_t id = 1000; id < 1400 && Device(1).allocated_bytes == allocated; ++id)
    EXPECT_TRUE(open->Write(PageOf(id, 40'000), 1).status.ok());
  EXPECT_GT(Device(1).allocated_bytes, allocated);
  open.reset();
}

TEST_F(NvmeHealthTest, APageThatTheIndexDidNotTakeLeavesNothing) {
  const SmallFileSystem small(a, "size=24m");
  if (!small) GTEST_SKIP() << "cannot mount: " << std::strerror(errno);
  options.directories[0].capacity_bytes = 1u << 20;
  Open();
  const StoredPage before = PageOn(1, 1);
  const uint64_t allocated = open->allocated();
  {
    std::ofstream filler(a + "/filler", std::ios::binary);
    const std::string zeros(1u << 20, 'x');
    while (filler.write(zeros.data(), static_cast<std::streamsize>(zeros.size())).flush()) {
    }
  }
  // RocksDB may have room left in what it has preallocated: until it has not.
  std::vector<StoredPage> left;
  bool full = false;
  for (uint64_t id = 10; id < 60'000 && !full; ++id) {
    const auto written = open->Write(PageOf(id, 1), 1);
    full = !written.status.ok();
    if (full) break;
    left.push_back(written.page);
    full = !open->Erase(left).ok();  // Then they are still there.
    if (!full) left.clear();
  }
  ASSERT_TRUE(full);
  // Opened anew, the index may have found a little room again.
  const auto more = open->Write(PageOf(70'000, 1), 1);
  if (more.status.ok()) left.push_back(more.page);
  std::filesystem::remove(a + "/filler");
  EXPECT_EQ(open->Read(before).bytes, BytesOf(before, 1));
  // Its slot comes back when its entry is known to be gone.
  EXPECT_TRUE(open->Run([&] {
    open->store->Turn();
    if (!left.empty() && open->Erase(left).ok()) left.clear();
    return open->allocated() == allocated;
  }));
  const Status after = open->Write(PageOf(70'001, 4096), 1).status;
  EXPECT_TRUE(after.ok()) << after.ToString();
  open.reset();
}

TEST_F(NvmeHealthTest, NothingIsFreeWhileTheIndexTakesNoWrite) {
  options.retry_ns = kLong;
  Open();
  const StoredPage page = PageOn(0, 1);
  EXPECT_GT(open->store->free_bytes(), 0U);
  EXPECT_TRUE(open->store->writable());
  {
    const NoFileGrows full;
    EXPECT_FALSE(open->Erase({page}).ok());
  }
  EXPECT_EQ(open->store->free_bytes(), 0U);
  EXPECT_FALSE(open->store->writable());
  EXPECT_TRUE(open->store->Allocate(4096, 1).empty());
  EXPECT_EQ(open->Read(page).bytes, BytesOf(page, 1));
}

TEST_F(NvmeHealthTest, AFileSystemThatBecomesReadOnlyIsServedFrom) {
  SmallFileSystem small(b, "size=16m");
  if (!small) GTEST_SKIP() << "cannot mount: " << std::strerror(errno);
  Open();
  const StoredPage before = PageOn(1, 1);
  open.reset();
  ASSERT_TRUE(small.ReadOnly());
  Open();
  EXPECT_EQ(open->Read(before).bytes, BytesOf(before, 1));
  for (uint64_t id = 10; id < 20; ++id)
    (void)open->Write(PageOf(id, 4096), 1);
  EXPECT_GT(Device(1).write_errors, 0U);
  EXPECT_EQ(open->Read(before).bytes, BytesOf(before, 1));
  open.reset();
}

}  // namespace
}  // namespace terrace
