// The rivals of suite `cold-load`: what reads the same files into memory without knowing what they
// are. Their buffers are pre-touched, on huge pages where the system gives them, as the daemon's
// blocks are.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/status.h"

namespace terrace::bench {

// The files' pages leave the page cache; `internal` when some stay.
Status DropFromCache(const std::vector<std::string>& files);

// Memory for all of the files, one behind the other, each at a multiple of 2 MiB.
class ReadBuffer {
 public:
  static Result<ReadBuffer> For(const std::vector<std::string>& files);
  ReadBuffer(ReadBuffer&& other) noexcept;
  ReadBuffer& operator=(ReadBuffer&&) = delete;
  ~ReadBuffer();

  std::span<uint8_t> bytes() const { return bytes_; }

 private:
  ReadBuffer() = default;
  std::span<uint8_t> bytes_;
};

struct RawReads {
  uint64_t request_bytes = 2u << 20;
  uint32_t depth = 8;
};
// Seconds each. Past the page cache by io_uring, so many requests at a time.
Result<double> ReadRaw(const std::vector<std::string>& files, const ReadBuffer& into,
                       const RawReads& how);
// Copied out of a mapping, by one thread, with MADV_SEQUENTIAL.
Result<double> ReadMapped(const std::vector<std::string>& files, const ReadBuffer& into);
// pread through the page cache by so many threads, 16 MiB at a time.
Result<double> ReadBuffered(const std::vector<std::string>& files, const ReadBuffer& into,
                            int threads);

}  // namespace terrace::bench
