// UniqueFd and Mapping: descriptors and memory mappings as values that close themselves.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>

#include "base/status.h"

namespace terrace {

class UniqueFd {
 public:
  UniqueFd() = default;
  explicit UniqueFd(int fd) : fd_(fd) {}  // Takes ownership; negative means none.
  UniqueFd(UniqueFd&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  UniqueFd& operator=(UniqueFd&& other) noexcept {
    if (this != &other) Reset(std::exchange(other.fd_, -1));
    return *this;
  }
  ~UniqueFd() { Reset(); }

  int get() const { return fd_; }
  explicit operator bool() const { return fd_ >= 0; }
  int Release() { return std::exchange(fd_, -1); }
  void Reset(int fd = -1);
  // A second descriptor of the same open file, close-on-exec.
  Result<UniqueFd> Duplicate() const;

 private:
  int fd_ = -1;
};

enum class Protection : uint8_t { kRead, kReadWrite };

// A shared mapping of a descriptor.
class Mapping {
 public:
  Mapping() = default;
  // Maps [offset, offset + bytes) of fd, MAP_SHARED. The descriptor may be closed afterwards.
  static Result<Mapping> Of(int fd, size_t offset, size_t bytes, Protection protection);
  Mapping(Mapping&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
  Mapping& operator=(Mapping&& other) noexcept {
    if (this != &other) {
      Unmap();
      data_ = std::exchange(other.data_, nullptr);
      size_ = std::exchange(other.size_, 0);
    }
    return *this;
  }
  ~Mapping() { Unmap(); }

  uint8_t* data() const { return data_; }
  size_t size() const { return size_; }
  std::span<uint8_t> bytes() const { return {data_, size_}; }
  explicit operator bool() const { return data_ != nullptr; }

 private:
  void Unmap();
  uint8_t* data_ = nullptr;
  size_t size_ = 0;
};

// An anonymous file of `bytes`: close-on-exec, mode 0600, no name in any file system, open to
// seals. `name` shows in /proc/self/maps only.
Result<UniqueFd> CreateMemfd(const char* name, size_t bytes, unsigned extra_flags = 0);

}  // namespace terrace
