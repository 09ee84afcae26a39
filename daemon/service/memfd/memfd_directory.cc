#include "daemon/service/memfd/memfd_directory.h"

#include <fcntl.h>
#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "base/check.h"

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25  // Linux 6.1; an older kernel refuses it and keeps small pages.
#endif

namespace terrace {
namespace {

constexpr size_t kHugeBytes = 2u << 20;

size_t RoundUp(size_t bytes, size_t unit) {
  return (bytes + unit - 1) / unit * unit;
}

// Maps the whole file at an address where huge pages fit.
Result<std::span<uint8_t>> MapAligned(int fd, size_t bytes) {
  const size_t reserved = bytes + kHugeBytes;
  void* room =
      ::mmap(nullptr, reserved, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (room == MAP_FAILED) return SystemError("reserving addresses of a directory", errno);
  auto* const start = static_cast<uint8_t*>(room);
  auto* const aligned = start + (RoundUp(reinterpret_cast<uintptr_t>(start), kHugeBytes) -
                                 reinterpret_cast<uintptr_t>(start));
  if (::mmap(aligned, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0) == MAP_FAILED) {
    const int error = errno;
    ::munmap(room, reserved);
    return SystemError("mapping a directory", error);
  }
  if (aligned != start) ::munmap(start, static_cast<size_t>(aligned - start));
  uint8_t* const end = aligned + bytes;
  if (end != start + reserved) ::munmap(end, static_cast<size_t>(start + reserved - end));
  return std::span<uint8_t>(aligned, bytes);
}

}  // namespace

MemfdDirectory::~MemfdDirectory() {
  for (auto& [token, region] : regions_)
    ::munmap(region.bytes.data(), region.bytes.size());
}

Result<DirectoryMemory::Region> MemfdDirectory::Allocate(size_t bytes) {
  // Small ones are not worth a huge page.
  bytes = RoundUp(bytes, bytes < kHugeBytes ? 4096 : kHugeBytes);
  ASSIGN_OR_RETURN(UniqueFd fd, CreateMemfd("terrace-directory", bytes));
  ASSIGN_OR_RETURN(const std::span<uint8_t> mapped, MapAligned(fd.get(), bytes));
  // The mapping made above stays writable, and can still fault pages in; no other can be made.
  if (::fcntl(fd.get(), F_ADD_SEALS,
              F_SEAL_FUTURE_WRITE | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0) {
    const int error = errno;
    ::munmap(mapped.data(), mapped.size());
    return SystemError("sealing a directory", error);
  }
  const uint64_t token = ++last_token_;
  regions_.emplace(token, Sealed{std::move(fd), mapped});
  return Region{mapped, token};
}

void MemfdDirectory::Populate(uint64_t token, size_t offset) {
  const auto region = regions_.find(token);
  TERRACE_CHECK(region != regions_.end());
  const std::span<uint8_t> bytes = region->second.bytes;
  if (offset >= bytes.size()) return;
  uint8_t* const start = bytes.data() + offset;
  const size_t step = std::min(kStepBytes, bytes.size() - offset);
  if (step == kHugeBytes) {
    // One touched byte is what MADV_COLLAPSE needs to find something to collapse; a read and a
    // write of the same value, for the table may be in use.
    volatile uint8_t* const first = start;
    *first = *first;
    if (::madvise(start, step, MADV_COLLAPSE) == 0) return;
  }
  // A page at a time then; an error shows when the memory is touched, like any lack of memory.
  (void)::madvise(start, step, MADV_POPULATE_WRITE);
}

void MemfdDirectory::Free(uint64_t token) {
  const auto region = regions_.find(token);
  TERRACE_CHECK(region != regions_.end());
  ::munmap(region->second.bytes.data(), region->second.bytes.size());
  regions_.erase(region);
}

Result<UniqueFd> MemfdDirectory::Descriptor(uint64_t token) {
  const auto region = regions_.find(token);
  if (region == regions_.end()) return Status(Code::kNotFound, "no directory of that token");
  return region->second.fd.Duplicate();
}

}  // namespace terrace
