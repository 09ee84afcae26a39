#include "libclient/private_mapping.h"

#include <sys/mman.h>
#include <sys/stat.h>

#include <cerrno>
#include <string>
#include <utility>

namespace terrace::client {
namespace {

constexpr uint64_t kHugePage = 2 << 20;
constexpr int kReserveFlags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;

}  // namespace

Status MakePrivate(void* data, size_t bytes) {
  if (::madvise(data, bytes, MADV_DONTFORK) != 0) return SystemError("MADV_DONTFORK", errno);
  if (::madvise(data, bytes, MADV_DONTDUMP) != 0) return SystemError("MADV_DONTDUMP", errno);
  return {};
}

Result<size_t> FileBytes(int fd) {
  struct stat facts;
  if (::fstat(fd, &facts) != 0) return SystemError("fstat", errno);
  return static_cast<size_t>(facts.st_size);
}

Result<Mapping> MapPrivate(int fd, size_t bytes, Protection protection) {
  ASSIGN_OR_RETURN(const size_t there, FileBytes(fd));
  if (bytes == 0 || there < bytes) {
    return Status(Code::kDataLoss, "the daemon's memory has " + std::to_string(there) +
                                       " bytes where it should have " + std::to_string(bytes));
  }
  ASSIGN_OR_RETURN(Mapping mapping, Mapping::Of(fd, 0, bytes, protection));
  RETURN_IF_ERROR(MakePrivate(mapping.data(), mapping.size()));
  return mapping;
}

Result<Reservation> Reservation::Of(uint64_t bytes) {
  bytes = (bytes + kHugePage - 1) / kHugePage * kHugePage;
  void* place = ::mmap(nullptr, bytes + kHugePage, PROT_NONE, kReserveFlags, -1, 0);
  if (place == MAP_FAILED) return SystemError("reserve addresses", errno);
  auto* first = static_cast<uint8_t*>(place);
  const uint64_t skip = (kHugePage - reinterpret_cast<uintptr_t>(first) % kHugePage) % kHugePage;
  if (skip > 0) ::munmap(first, skip);
  ::munmap(first + skip + bytes, kHugePage - skip);
  Reservation reservation;
  reservation.data_ = first + skip;
  reservation.size_ = bytes;
  RETURN_IF_ERROR(MakePrivate(reservation.data_, reservation.size_));
  return reservation;
}

Reservation::Reservation(Reservation&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

Reservation& Reservation::operator=(Reservation&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

Reservation::~Reservation() {
  if (data_ != nullptr) ::munmap(data_, size_);
}

Status Reservation::MapAt(uint64_t offset, int fd, uint64_t bytes) {
  ASSIGN_OR_RETURN(const size_t there, FileBytes(fd));
  if (offset > size_ || bytes > size_ - offset || there < bytes) {
    return {Code::kDataLoss, "the daemon's memory does not have the size that it announced"};
  }
  void* place = ::mmap(data_ + offset, bytes, PROT_READ, MAP_SHARED | MAP_FIXED, fd, 0);
  if (place == MAP_FAILED) return SystemError("map the daemon's memory", errno);
  return MakePrivate(place, bytes);
}

void Reservation::UnmapAt(uint64_t offset, uint64_t bytes) {
  void* place = ::mmap(data_ + offset, bytes, PROT_NONE, kReserveFlags | MAP_FIXED, -1, 0);
  if (place != MAP_FAILED) static_cast<void>(MakePrivate(place, bytes));
}

}  // namespace terrace::client
