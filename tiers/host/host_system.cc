#include "tiers/host/host_system.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <fstream>

namespace terrace {
namespace {

constexpr char kHugetlbFolder[] = "/sys/kernel/mm/hugepages/hugepages-2048kB/";
constexpr char kShmemHugePages[] = "/sys/kernel/mm/transparent_hugepage/shmem_enabled";

int ErrnoUnless(bool succeeded) {
  return succeeded ? 0 : errno;
}

size_t ReadCount(const std::string& path) {
  size_t count = 0;
  std::ifstream(path) >> count;
  return count;
}

}  // namespace

Result<UniqueFd> HostSystem::CreateMemfd(const char* name, unsigned flags) {
  UniqueFd fd(::memfd_create(name, flags));
  if (!fd) return SystemError("memfd_create", errno);
  return fd;
}

int HostSystem::ChangeMode(int fd, unsigned mode) {
  return ErrnoUnless(::fchmod(fd, mode) == 0);
}

int HostSystem::Truncate(int fd, size_t bytes) {
  return ErrnoUnless(::ftruncate(fd, static_cast<off_t>(bytes)) == 0);
}

int HostSystem::AddSeals(int fd, unsigned seals) {
  return ErrnoUnless(::fcntl(fd, F_ADD_SEALS, seals) == 0);
}

int HostSystem::Punch(int fd, size_t offset, size_t bytes) {
  return ErrnoUnless(::fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                                 static_cast<off_t>(offset), static_cast<off_t>(bytes)) == 0);
}

Result<UniqueFd> HostSystem::Duplicate(int fd) {
  UniqueFd copy(::fcntl(fd, F_DUPFD_CLOEXEC, 3));
  if (!copy) return SystemError("duplicate a descriptor", errno);
  return copy;
}

Result<UniqueFd> HostSystem::ReopenReadOnly(int fd) {
  const std::string path = "/proc/self/fd/" + std::to_string(fd);
  UniqueFd reopened(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!reopened) return SystemError("open " + path, errno);
  return reopened;
}

Result<uint8_t*> HostSystem::Map(int fd, size_t bytes, size_t alignment) {
  // Addresses are taken with slack, and what of it is not needed is given back.
  const size_t slack = bytes + alignment;
  void* reserved =
      ::mmap(nullptr, slack, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (reserved == MAP_FAILED) return SystemError("mmap", errno);
  auto* const start = static_cast<uint8_t*>(reserved);
  const size_t skip = (alignment - reinterpret_cast<uintptr_t>(start) % alignment) % alignment;
  uint8_t* const wanted = start + skip;
  void* mapped = ::mmap(wanted, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0);
  if (mapped == MAP_FAILED) {
    const int error = errno;
    (void)::munmap(reserved, slack);
    return SystemError("mmap", error);
  }
  if (skip > 0) (void)::munmap(start, skip);
  (void)::munmap(wanted + bytes, alignment - skip);
  return wanted;
}

void HostSystem::Unmap(uint8_t* at, size_t bytes) {
  (void)::munmap(at, bytes);
}

int HostSystem::Advise(uint8_t* at, size_t bytes, int advice) {
  int error = 0;
  do {
    error = ErrnoUnless(::madvise(at, bytes, advice) == 0);
  } while (error == EINTR);
  return error;
}

int HostSystem::ProtectReadOnly(uint8_t* at, size_t bytes) {
  return ErrnoUnless(::mprotect(at, bytes, PROT_READ) == 0);
}

int HostSystem::LockOnFault(uint8_t* at, size_t bytes) {
  return ErrnoUnless(::mlock2(at, bytes, MLOCK_ONFAULT) == 0);
}

size_t HostSystem::FreeHugetlbPages() {
  const std::string folder = kHugetlbFolder;
  const size_t free_pages = ReadCount(folder + "free_hugepages");
  const size_t promised = ReadCount(folder + "resv_hugepages");
  return free_pages > promised ? free_pages - promised : 0;
}

std::string HostSystem::ShmemHugePages() {
  // "always within_size advise [never] deny force": the word in brackets is in force.
  std::ifstream file(kShmemHugePages);
  std::string word;
  while (file >> word) {
    if (word.size() > 2 && word.front() == '[' && word.back() == ']') {
      return word.substr(1, word.size() - 2);
    }
  }
  return "unknown";
}

HostSystem& KernelHostSystem() {
  static HostSystem system;
  return system;
}

}  // namespace terrace
