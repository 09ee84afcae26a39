// Memory that the kernel hangs on: whoever touches its page waits until Release, a read into it
// too. It stands for a device that stopped answering, which cannot be had here.
#pragma once

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include <cstddef>

#include "base/check.h"
#include "base/unique_fd.h"

namespace terrace {

class HangingMemory {
 public:
  static constexpr size_t kBytes = 4096;

  HangingMemory() : fd_(static_cast<int>(::syscall(SYS_userfaultfd, O_CLOEXEC))) {
    if (!fd_) return;
    uffdio_api api{};
    api.api = UFFD_API;
    TERRACE_CHECK(::ioctl(fd_.get(), UFFDIO_API, &api) == 0);
    memory_ = ::mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    TERRACE_CHECK(memory_ != MAP_FAILED);
    uffdio_register hang{};
    hang.range = {reinterpret_cast<uintptr_t>(memory_), kBytes};
    hang.mode = UFFDIO_REGISTER_MODE_MISSING;
    TERRACE_CHECK(::ioctl(fd_.get(), UFFDIO_REGISTER, &hang) == 0);
  }
  // It stays mapped: a request that never ended may still have it.
  ~HangingMemory() { Release(); }
  HangingMemory(const HangingMemory&) = delete;
  HangingMemory& operator=(const HangingMemory&) = delete;

  // False where the system does not let us catch the kernel's own faults.
  bool works() const { return static_cast<bool>(fd_); }
  iovec piece(size_t length = kBytes) const { return {.iov_base = memory_, .iov_len = length}; }
  // Returns when somebody hangs on it; once.
  void WaitUntilTouched() const {
    uffd_msg message{};
    TERRACE_CHECK(::read(fd_.get(), &message, sizeof message) == sizeof message);
  }
  // What waits goes on.
  void Release() { fd_.Reset(); }

 private:
  UniqueFd fd_;
  void* memory_ = nullptr;
};

}  // namespace terrace
