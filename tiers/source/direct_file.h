// DirectFile: a file as the DiskIo knows it, opened past the page cache; and what the page cache
// has of a file.
//
// Thread safety: any thread; its end may wait for the thread of the DiskIo, so not the owner
// thread. Nothing of it is in flight then, or the DiskIo has been let go of.
#pragma once

#include <fcntl.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <span>

#include "base/mutex.h"
#include "base/status.h"
#include "base/unique_fd.h"
#include "tiers/io/disk_io.h"

namespace terrace {

// The DiskIo for as long as it may be used.
class DiskDoor {
 public:
  explicit DiskDoor(DiskIo* disk) : disk_(disk) {}

  // From here on nothing is asked of the DiskIo.
  void Close() EXCLUDES(mu_);
  bool closed() const { return closed_.load(std::memory_order_acquire); }
  Status Submit(IoRequest request) EXCLUDES(mu_);
  Result<IoFileId> AddFile(int fd) EXCLUDES(mu_);
  void RemoveFile(IoFileId file) EXCLUDES(mu_);
  void Register(std::span<uint8_t> memory) EXCLUDES(mu_);
  void Unregister(std::span<uint8_t> memory) EXCLUDES(mu_);

 private:
  std::atomic<bool> closed_ = false;
  Mutex mu_;
  DiskIo* disk_ GUARDED_BY(mu_);  // Null: there is none, or none any more.
};

class DirectFile {
 public:
  // Opens the file behind `fd` again, with O_DIRECT. The descriptor may be a client's: its own
  // flags are not touched, for they are the client's too. The error says what refuses.
  static Result<std::shared_ptr<DirectFile>> Reopen(const std::shared_ptr<DiskDoor>& door, int fd,
                                                    int access = O_RDONLY);
  // `fd` is open with O_DIRECT.
  static Result<std::shared_ptr<DirectFile>> Of(const std::shared_ptr<DiskDoor>& door, UniqueFd fd);

  DirectFile(std::shared_ptr<DiskDoor> door, UniqueFd fd, IoFileId id)
      : door_(std::move(door)), fd_(std::move(fd)), id_(id) {}
  ~DirectFile() { door_->RemoveFile(id_); }
  DirectFile(const DirectFile&) = delete;
  DirectFile& operator=(const DirectFile&) = delete;

  IoFileId id() const { return id_; }
  int fd() const { return fd_.get(); }

 private:
  const std::shared_ptr<DiskDoor> door_;
  const UniqueFd fd_;
  const IoFileId id_;
};

// Whether the page cache has every page of the range. False also where the kernel does not tell
// (cachestat is of Linux 6.5): reading past the page cache what is in it costs one read of the
// device, and reading through it what is not costs the copy that makes it slow.
bool IsCached(int fd, uint64_t offset, uint64_t bytes);

}  // namespace terrace
