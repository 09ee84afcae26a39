// Mappings of the daemon's memory, as this library makes them: absent in forked children and in
// core dumps. Thread safety: like a std::vector.
#pragma once

#include <cstdint>
#include <span>

#include "base/status.h"
#include "base/unique_fd.h"

namespace terrace::client {

// How long the file is.
Result<uint64_t> FileBytes(int fd);

// A range of addresses in which files are mapped, given back with the object. It starts at a
// multiple of 2 MiB: where the daemon has huge pages, they are mapped as such.
class MappedRange {
 public:
  MappedRange() = default;
  // Addresses without memory.
  static Result<MappedRange> Reserve(uint64_t bytes);
  // The first `bytes` of fd.
  static Result<MappedRange> Of(int fd, uint64_t bytes, Protection protection);
  MappedRange(MappedRange&& other) noexcept;
  MappedRange& operator=(MappedRange&& other) noexcept;
  ~MappedRange();

  uint8_t* data() const { return data_; }
  uint64_t size() const { return size_; }
  std::span<uint8_t> bytes() const { return {data_, size_}; }
  // Maps the first `bytes` of fd at data() + offset, in place of what is there. kDataLoss if the
  // file is shorter, for reading beyond its end would kill the process.
  Status MapAt(uint64_t offset, int fd, uint64_t bytes, Protection protection);
  // Makes it a range without memory again.
  void UnmapAt(uint64_t offset, uint64_t bytes);

 private:
  uint8_t* data_ = nullptr;
  uint64_t size_ = 0;
};

}  // namespace terrace::client
