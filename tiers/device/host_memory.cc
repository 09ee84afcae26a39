#include "tiers/device/host_memory.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <string>
#include <utility>

namespace terrace {
namespace {

constexpr int kRubbish = 0xdb;

void* Pointer(GpuAddress at) {
  return reinterpret_cast<void*>(at);
}

// MAP_FIXED replaces what is there in one step, so nobody else can take the addresses meanwhile.
Status Replace(GpuAddress at, uint64_t bytes, int flags, int fd) {
  void* placed = ::mmap(Pointer(at), bytes, PROT_NONE, flags | MAP_FIXED, fd, 0);
  if (placed == MAP_FAILED) return SystemError("mmap at a reserved address", errno);
  // As a GPU's: a forked child has none of it.
  if (::madvise(placed, bytes, MADV_DONTFORK) != 0) return SystemError("MADV_DONTFORK", errno);
  return {};
}

}  // namespace

bool HostDevice::Take(uint64_t bytes) {
  MutexLock lock(mu_);
  if (bytes > facts_.total_bytes - taken_) return false;
  taken_ += bytes;
  return true;
}

void HostDevice::GiveBack(uint64_t bytes) {
  MutexLock lock(mu_);
  taken_ -= bytes;
}

GpuMemory HostDevice::memory() const {
  MutexLock lock(mu_);
  return {.free_bytes = facts_.total_bytes - taken_, .total_bytes = facts_.total_bytes};
}

Result<std::shared_ptr<HostMemory>> HostMemory::Create(std::shared_ptr<HostDevice> device,
                                                       uint64_t bytes, bool dirty) {
  if (!device->Take(bytes)) {
    return Status(Code::kExhausted, "device memory: " + std::to_string(bytes) +
                                        " bytes asked for, " +
                                        std::to_string(device->memory().free_bytes) + " are free");
  }
  Result<UniqueFd> fd = CreateMemfd("terrace-gpu", bytes);
  if (!fd) {
    device->GiveBack(bytes);
    return std::move(fd).error();
  }
  std::shared_ptr<HostMemory> memory(new HostMemory(*std::move(fd), bytes));
  memory->charged_ = std::move(device);
  if (dirty) {
    ASSIGN_OR_RETURN(const Mapping whole,
                     Mapping::Of(memory->fd(), 0, bytes, Protection::kReadWrite));
    std::ranges::fill(whole.bytes(), static_cast<uint8_t>(kRubbish));
  }
  return memory;
}

Result<std::shared_ptr<HostMemory>> HostMemory::Import(UniqueFd fd, uint64_t bytes) {
  struct stat file {};
  if (::fstat(fd.get(), &file) != 0) return SystemError("fd: fstat", errno);
  // Seals tell a memfd from every other file.
  if (::fcntl(fd.get(), F_GET_SEALS) < 0) {
    return Status(Code::kInvalidArgument, "fd: not of a slab");
  }
  if (static_cast<uint64_t>(file.st_size) != bytes) {
    return Status(Code::kInvalidArgument, "bytes: " + std::to_string(bytes) + ", and it has " +
                                              std::to_string(file.st_size));
  }
  return std::shared_ptr<HostMemory>(new HostMemory(std::move(fd), bytes));
}

HostMemory::~HostMemory() {
  if (charged_ != nullptr) charged_->GiveBack(bytes_);
}

Result<std::unique_ptr<HostRange>> HostRange::Reserve(uint64_t bytes, uint64_t alignment) {
  const uint64_t room = bytes + alignment;
  void* place =
      ::mmap(nullptr, room, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (place == MAP_FAILED) return SystemError("reserve addresses", errno);
  const auto begin = reinterpret_cast<GpuAddress>(place);
  const GpuAddress aligned = (begin + alignment - 1) / alignment * alignment;
  if (aligned > begin) ::munmap(place, aligned - begin);
  if (begin + room > aligned + bytes)
    ::munmap(Pointer(aligned + bytes), begin + room - aligned - bytes);
  return std::unique_ptr<HostRange>(new HostRange(aligned, bytes));
}

HostRange::~HostRange() {
  ::munmap(Pointer(address_), bytes_);
}

Status MapAt(GpuAddress at, const HostMemory& memory) {
  return Replace(at, memory.bytes(), MAP_SHARED, memory.fd());
}

Status UnmapAt(GpuAddress at, uint64_t bytes) {
  return Replace(at, bytes, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1);
}

Status ProtectAt(GpuAddress at, uint64_t bytes, GpuAccess access) {
  int protection = PROT_NONE;
  if (access != GpuAccess::kNone) protection |= PROT_READ;
  if (access == GpuAccess::kReadWrite) protection |= PROT_WRITE;
  if (::mprotect(Pointer(at), bytes, protection) != 0) return SystemError("mprotect", errno);
  return {};
}

}  // namespace terrace
