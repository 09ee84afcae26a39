// HostSystem: the system calls that the host tier makes, one method a call.
//
// The methods are the kernel's own; a test derives from it and lets calls of its choice fail. They
// are called from the owner thread and from threads of the worker pool, at once.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "base/status.h"
#include "base/unique_fd.h"

namespace terrace {

class HostSystem {
 public:
  virtual ~HostSystem() = default;

  // ---- Descriptors. Calls without a result answer 0 or an errno value.
  virtual Result<UniqueFd> CreateMemfd(const char* name, unsigned flags);
  virtual int ChangeMode(int fd, unsigned mode);
  virtual int Truncate(int fd, size_t bytes);
  virtual int AddSeals(int fd, unsigned seals);
  // fallocate(PUNCH_HOLE | KEEP_SIZE).
  virtual int Punch(int fd, size_t offset, size_t bytes);
  virtual Result<UniqueFd> Duplicate(int fd);
  // A new opening of the same file for reading only, by its name in /proc/self/fd.
  virtual Result<UniqueFd> ReopenReadOnly(int fd);

  // ---- Mappings.
  // `bytes` of the file from its start, shared and writable, at an address that is a multiple of
  // `alignment`.
  virtual Result<uint8_t*> Map(int fd, size_t bytes, size_t alignment);
  virtual void Unmap(uint8_t* at, size_t bytes);
  virtual int Advise(uint8_t* at, size_t bytes, int advice);  // madvise
  virtual int ProtectReadOnly(uint8_t* at, size_t bytes);
  // mlock2(MLOCK_ONFAULT): what is or becomes resident stays.
  virtual int LockOnFault(uint8_t* at, size_t bytes);

  // ---- What the machine offers.
  // Huge pages of 2 MiB that are reserved, free and not promised to a mapping; 0 when unknown.
  virtual size_t FreeHugetlbPages();
  // The chosen word of /sys/kernel/mm/transparent_hugepage/shmem_enabled; "unknown" without it.
  virtual std::string ShmemHugePages();
};

// The one that makes the calls. Lives as long as the process.
HostSystem& KernelHostSystem();

}  // namespace terrace
