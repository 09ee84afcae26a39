// DiskIo: reads and writes of files past the page cache, many at a time, each with a deadline. The
// one door to io_uring; where the kernel or a container refuses it, threads with preadv and pwritev
// do the same.
//
// Any thread submits. Callbacks run on threads of the DiskIo, one at a time: they check what came
// and post it to where it belongs, and do not block. They may submit, and may not destroy it. A
// request ends twice. `done` is the answer: all of the bytes, or why not. `ended` says that nothing
// touches the memory any more. They come together but for a request whose deadline passed: it is
// answered then, and ends when the kernel lets go, which for a device that stopped answering may be
// never.
#pragma once

#include <sys/uio.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/status.h"

namespace terrace {

using IoFileId = uint32_t;

enum class IoVerb : uint8_t {
  kRead,   // Past the end of the file: data_loss.
  kWrite,  // A write that the file system took only a part of is continued.
  kSync,   // fdatasync: writes that were answered before it was submitted are durable. No memory.
};

struct IoRequest {
  IoVerb verb = IoVerb::kRead;
  IoFileId file = 0;
  uint64_t offset = 0;
  // Consecutive in the file. Of files opened with O_DIRECT, addresses and lengths are multiples of
  // kIoAlignment, as `offset` is. At most kMaxIoPieces, and 1 GiB.
  std::vector<iovec> memory;
  MonotonicNs deadline = 0;  // Of Clock::Now; it must have one.
  std::function<void(const Status&)> done;
  std::function<void()> ended;  // May be empty. After `done`.
};

inline constexpr size_t kIoAlignment = 4096;
inline constexpr size_t kMaxIoPieces = 64;

struct IoReport {
  std::string engine;      // "io_uring", or "threads: " and why not io_uring.
  uint32_t in_flight = 0;  // Accepted and not ended.
  uint32_t overdue = 0;    // Of these, answered with deadline_exceeded.
  uint64_t registered_bytes = 0;
  uint64_t reads = 0;  // Answered ok, as are all up to written_bytes.
  uint64_t writes = 0;
  uint64_t syncs = 0;
  uint64_t read_bytes = 0;
  uint64_t written_bytes = 0;
  uint64_t errors = 0;  // Answers other than ok, deadlines included.
};

class DiskIo {
 public:
  // Waits for what is in flight, at most DiskIoOptions::stop_ns. What has no answer then gets one,
  // `unavailable`; what has not ended never does: its memory must not be used again, it keeps its
  // file, and the thread or ring that it is in stays until the kernel lets go.
  virtual ~DiskIo() = default;

  // `fd` stays the caller's and open until RemoveFile. `exhausted` beyond DiskIoOptions::files.
  virtual Result<IoFileId> AddFile(int fd) = 0;
  // Nothing of it is in flight.
  virtual void RemoveFile(IoFileId file) = 0;

  // All or none of them. `exhausted`: more than DiskIoOptions::depth would be in flight.
  // `invalid_argument`, naming the field, for one that can never work. `unavailable`: it is being
  // destroyed. Neighbours in the file that
  // are neighbours in `requests` reach the device as one where it can merge them.
  virtual Status Submit(std::vector<IoRequest> requests) = 0;

  // Memory that many requests will use: requests that lie within one registered region cost the
  // kernel less. Best effort: where it is refused, requests work all the same. The memory must be
  // resident, and be unregistered before any of it is given back.
  virtual void RegisterMemory(std::span<uint8_t> memory) = 0;
  // Returns once the kernel holds no reference to it but that of requests in flight.
  virtual void UnregisterMemory(std::span<uint8_t> memory) = 0;

  virtual IoReport Report() const = 0;
};

inline constexpr uint32_t kMostIoFiles = 32'768;  // What the kernel's table takes.

struct DiskIoOptions {
  uint32_t depth = 256;  // Requests accepted and not ended.
  uint32_t files = 1024;
  uint32_t regions = 1024;     // Of registered memory.
  bool allow_io_uring = true;  // False: threads, said so in the report.
  int threads = 8;             // Where threads do it.
  MonotonicNs stop_ns = 2 * kNsPerSecond;
};

// `clock` outlives it.
Result<std::unique_ptr<DiskIo>> StartDiskIo(const DiskIoOptions& options, const Clock& clock);

}  // namespace terrace
