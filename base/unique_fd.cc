#include "base/unique_fd.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>

namespace terrace {

void UniqueFd::Reset(int fd) {
  if (fd_ >= 0) ::close(fd_);
  fd_ = fd;
}

Result<UniqueFd> UniqueFd::Duplicate() const {
  const int copy = ::fcntl(fd_, F_DUPFD_CLOEXEC, 3);
  if (copy < 0) return SystemError("duplicate descriptor", errno);
  return UniqueFd(copy);
}

Result<Mapping> Mapping::Of(int fd, size_t offset, size_t bytes, Protection protection) {
  const int flags = protection == Protection::kRead ? PROT_READ : PROT_READ | PROT_WRITE;
  void* data = ::mmap(nullptr, bytes, flags, MAP_SHARED, fd, static_cast<off_t>(offset));
  if (data == MAP_FAILED) return SystemError("mmap", errno);
  Mapping mapping;
  mapping.data_ = static_cast<uint8_t*>(data);
  mapping.size_ = bytes;
  return mapping;
}

void Mapping::Unmap() {
  if (data_ != nullptr) ::munmap(data_, size_);
  data_ = nullptr;
  size_ = 0;
}

Result<UniqueFd> CreateMemfd(const char* name, size_t bytes, unsigned extra_flags) {
  UniqueFd fd(::memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING | extra_flags));
  if (!fd) return SystemError("memfd_create", errno);
  // memfds are born with mode 0777: whoever can see the descriptor in /proc could reopen it.
  if (::fchmod(fd.get(), 0600) != 0) return SystemError("fchmod of a memfd", errno);
  if (::ftruncate(fd.get(), static_cast<off_t>(bytes)) != 0) {
    return SystemError("ftruncate of a memfd", errno);
  }
  return fd;
}

}  // namespace terrace
