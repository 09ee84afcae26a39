#include "tiers/source/direct_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <string>
#include <utility>
#include <vector>

namespace terrace {
namespace {

// linux/mman.h and unistd.h of Linux 6.5.
constexpr long kCachestatCall = 451;
struct CachestatRange {
  uint64_t offset;
  uint64_t bytes;
};
struct Cachestat {
  uint64_t cached;
  uint64_t dirty;
  uint64_t writeback;
  uint64_t evicted;
  uint64_t recently_evicted;
};

// What the file asks of addresses and offsets, where the kernel tells (Linux 6.1).
Status CheckAlignment(int fd) {
#ifdef STATX_DIOALIGN
  struct statx facts {};
  if (statx(fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &facts) != 0 ||
      (facts.stx_mask & STATX_DIOALIGN) == 0) {
    return {};
  }
  if (facts.stx_dio_mem_align == 0) {
    return {Code::kUnavailable, "the file system has no O_DIRECT for this file"};
  }
  if (facts.stx_dio_mem_align > kIoAlignment || facts.stx_dio_offset_align > kIoAlignment) {
    return {Code::kUnavailable, "its device has blocks of more than 4096 bytes"};
  }
#else
  (void)fd;
#endif
  return {};
}

}  // namespace

void DiskDoor::Close() {
  MutexLock lock(mu_);
  disk_ = nullptr;
  closed_.store(true, std::memory_order_release);
}

Status DiskDoor::Submit(IoRequest request) {
  MutexLock lock(mu_);
  if (disk_ == nullptr) return {Code::kUnavailable, "file I/O: it has ended"};
  std::vector<IoRequest> requests;
  requests.push_back(std::move(request));
  return disk_->Submit(std::move(requests));
}

Result<IoFileId> DiskDoor::AddFile(int fd) {
  MutexLock lock(mu_);
  if (disk_ == nullptr) return Status(Code::kUnavailable, "file I/O: there is none");
  return disk_->AddFile(fd);
}

void DiskDoor::RemoveFile(IoFileId file) {
  MutexLock lock(mu_);
  if (disk_ != nullptr) disk_->RemoveFile(file);
}

void DiskDoor::Register(std::span<uint8_t> memory) {
  MutexLock lock(mu_);
  if (disk_ != nullptr) disk_->RegisterMemory(memory);
}

void DiskDoor::Unregister(std::span<uint8_t> memory) {
  MutexLock lock(mu_);
  if (disk_ != nullptr) disk_->UnregisterMemory(memory);
}

Result<std::shared_ptr<DirectFile>> DirectFile::Reopen(const std::shared_ptr<DiskDoor>& door,
                                                       int fd, int access) {
  const std::string name = "/proc/self/fd/" + std::to_string(fd);
  UniqueFd direct(open(name.c_str(), access | O_CLOEXEC | O_NONBLOCK | O_NOCTTY | O_DIRECT));
  if (!direct) return SystemError("opening it with O_DIRECT", errno);
  return Of(door, std::move(direct));
}

Result<std::shared_ptr<DirectFile>> DirectFile::Of(const std::shared_ptr<DiskDoor>& door,
                                                   UniqueFd fd) {
  RETURN_IF_ERROR(CheckAlignment(fd.get()));
  ASSIGN_OR_RETURN(const IoFileId id, door->AddFile(fd.get()));
  return std::make_shared<DirectFile>(door, std::move(fd), id);
}

bool IsCached(int fd, uint64_t offset, uint64_t bytes) {
  const uint64_t page = static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
  CachestatRange range{.offset = offset, .bytes = bytes};
  Cachestat found{};
  if (bytes == 0 || syscall(kCachestatCall, fd, &range, &found, 0) != 0) return false;
  return found.cached == (offset + bytes - 1) / page - offset / page + 1;
}

}  // namespace terrace
