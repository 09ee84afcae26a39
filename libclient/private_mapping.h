// Mappings of the daemon's memory, as this library makes them: absent in forked children and in
// core dumps.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/status.h"
#include "base/unique_fd.h"

namespace terrace::client {

// Keeps [data, data + bytes) out of forks and dumps.
Status MakePrivate(void* data, size_t bytes);
// A mapping of the first `bytes` of fd that is kept out of them; kDataLoss if the file is shorter
// (reading beyond its end would kill the process).
Result<Mapping> MapPrivate(int fd, size_t bytes, Protection protection);
// How long the file is.
Result<size_t> FileBytes(int fd);

// A range of addresses without memory behind it, given back with the object.
class Reservation {
 public:
  Reservation() = default;
  // Starts at a multiple of 2 MiB, so that huge pages of a file can be mapped as such.
  static Result<Reservation> Of(uint64_t bytes);
  Reservation(Reservation&& other) noexcept;
  Reservation& operator=(Reservation&& other) noexcept;
  ~Reservation();

  uint8_t* data() const { return data_; }
  uint64_t size() const { return size_; }
  // Maps the first `bytes` of fd read-only at data() + offset, in place of what is there.
  Status MapAt(uint64_t offset, int fd, uint64_t bytes);
  // Makes it a range without memory again.
  void UnmapAt(uint64_t offset, uint64_t bytes);

 private:
  uint8_t* data_ = nullptr;
  uint64_t size_ = 0;
};

}  // namespace terrace::client
