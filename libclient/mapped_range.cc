#include "libclient/mapped_range.h"

#include <sys/mman.h>
#include <sys/stat.h>

#include <cerrno>
#include <string>
#include <utility>

namespace terrace::client {
namespace {

constexpr uint64_t kHugePage = 2 << 20;
constexpr uint64_t kSmallPage = 4096;
constexpr int kReserveFlags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;

// Keeps it out of forked children and core dumps.
Status MakePrivate(void* data, uint64_t bytes) {
  if (::madvise(data, bytes, MADV_DONTFORK) != 0) return SystemError("MADV_DONTFORK", errno);
  if (::madvise(data, bytes, MADV_DONTDUMP) != 0) return SystemError("MADV_DONTDUMP", errno);
  return {};
}

}  // namespace

Result<uint64_t> FileBytes(int fd) {
  struct stat facts;
  if (::fstat(fd, &facts) != 0) return SystemError("fstat", errno);
  return static_cast<uint64_t>(facts.st_size);
}

Result<MappedRange> MappedRange::Reserve(uint64_t bytes) {
  const uint64_t needed = (bytes + kSmallPage - 1) / kSmallPage * kSmallPage;
  void* place = ::mmap(nullptr, needed + kHugePage, PROT_NONE, kReserveFlags, -1, 0);
  if (place == MAP_FAILED) return SystemError("reserve addresses", errno);
  auto* first = static_cast<uint8_t*>(place);
  const uint64_t skip = (kHugePage - reinterpret_cast<uintptr_t>(first) % kHugePage) % kHugePage;
  if (skip > 0) ::munmap(first, skip);
  ::munmap(first + skip + needed, kHugePage - skip);
  MappedRange range;
  range.data_ = first + skip;
  range.size_ = bytes;
  RETURN_IF_ERROR(MakePrivate(range.data_, range.size_));
  return range;
}

Result<MappedRange> MappedRange::Of(int fd, uint64_t bytes, Protection protection) {
  if (bytes == 0) return Status(Code::kDataLoss, "the daemon's memory is empty");
  ASSIGN_OR_RETURN(MappedRange range, Reserve(bytes));
  RETURN_IF_ERROR(range.MapAt(0, fd, bytes, protection));
  return range;
}

MappedRange::MappedRange(MappedRange&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

MappedRange& MappedRange::operator=(MappedRange&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

MappedRange::~MappedRange() {
  if (data_ != nullptr) ::munmap(data_, size_);
}

Status MappedRange::MapAt(uint64_t offset, int fd, uint64_t bytes, Protection protection) {
  ASSIGN_OR_RETURN(const uint64_t there, FileBytes(fd));
  if (offset > size_ || bytes > size_ - offset || there < bytes) {
    return {Code::kDataLoss, "the daemon's memory has " + std::to_string(there) +
                                 " bytes where it should have " + std::to_string(bytes)};
  }
  const int flags = protection == Protection::kRead ? PROT_READ : PROT_READ | PROT_WRITE;
  void* place = ::mmap(data_ + offset, bytes, flags, MAP_SHARED | MAP_FIXED, fd, 0);
  if (place == MAP_FAILED) return SystemError("map the daemon's memory", errno);
  return MakePrivate(place, bytes);
}

void MappedRange::UnmapAt(uint64_t offset, uint64_t bytes) {
  void* place = ::mmap(data_ + offset, bytes, PROT_NONE, kReserveFlags | MAP_FIXED, -1, 0);
  if (place != MAP_FAILED) static_cast<void>(MakePrivate(place, bytes));
}

}  // namespace terrace::client
