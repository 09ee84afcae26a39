// BlockReader: brings bytes of files into blocks of memory, and out of them into image files, at
// the speed of the device.
//
// Chunks of a file that the page cache has are copied from there. Others go past it: into buffers
// of huge pages that the DiskIo has registered, from which workers copy each tensor to its aligned
// place while the next reads are on their way (O_DIRECT cannot shift bytes), or, from an image,
// straight to their place. CRC32C is computed of every unit as soon as its last byte is there,
// while it is in the processor's cache. Where there is no DiskIo, or a file takes no O_DIRECT,
// workers read through the page cache.
//
// A request that the device does not answer within its deadline fails its job. Its buffer is out of
// use, and the memory of a straight read its owner's to keep, until the device lets go; when that
// has all buffers, jobs fail at once with `unavailable`.
//
// Limits: options().buffers requests with the device, for all jobs together; a worker a thread of
// the pool. Jobs wait for these in the order in which they were started.
// Thread safety: any thread starts jobs. Results are posted to the executor.
#pragma once

#include <memory>

#include "base/clock.h"
#include "base/executor.h"
#include "base/worker_pool.h"
#include "tiers/io/disk_io.h"
#include "tiers/source/block_job.h"

namespace terrace {

struct BlockReaderOptions {
  size_t buffers = 32;  // Of kChunkBytes each, made when the first of them is needed.
  MonotonicNs deadline_ns = 30 * kNsPerSecond;  // Of one request to the device.
  MonotonicNs stop_ns = 2 * kNsPerSecond;       // What the end waits for requests.
};

struct BlockReaderParts {
  WorkerPool* pool = nullptr;
  Executor* executor = nullptr;
  const Clock* clock = nullptr;  // Of the DiskIo.
  DiskIo* disk = nullptr;        // Null: everything is read through the page cache.
};

class BlockReader {
 public:
  // The parts outlive it.
  explicit BlockReader(const BlockReaderParts& parts, const BlockReaderOptions& options = {});
  // Jobs that are not done never are. Waits for workers and, at most stop_ns, for the device.
  ~BlockReader();
  BlockReader(const BlockReader&) = delete;
  BlockReader& operator=(const BlockReader&) = delete;

  // `exhausted` to the job's `done` when the pool is full.
  void Start(std::shared_ptr<BlockJob> job);

  const std::shared_ptr<DiskDoor>& door() const;
  WorkerPool& pool() const;
  Executor& executor() const;
  const Clock& clock() const;
  const BlockReaderOptions& options() const;

 private:
  class Core;
  const std::shared_ptr<Core> core_;
};

}  // namespace terrace
