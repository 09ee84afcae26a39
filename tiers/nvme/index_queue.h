// IndexQueue: the index on a thread of its own. What is asked for while a batch is being written
// goes into the next one together: many pages share one write of the log, and one sync where it is
// synced.
//
// Owner thread, as the callbacks. The order is that of the calls: of one batch, what is erased goes
// before what is put, and an erase only ever takes the writing it names.
#pragma once

#include <cstdint>
#include <functional>
#include <limits>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "base/worker_pool.h"
#include "tiers/nvme/index.h"
#include "tiers/nvme/mailbox.h"

namespace terrace::nvme {

class IndexQueue {
 public:
  using Done = std::function<void(const Status&)>;
  struct Options {
    bool sync = false;  // Every batch is on the device before it is answered.
    MonotonicNs retry_ns = 5 * kNsPerSecond;
  };

  IndexQueue(const Options& options, std::unique_ptr<Index> index, const Clock& clock,
             std::shared_ptr<Mailbox> box)
      : options_(options), clock_(clock), box_(std::move(box)), index_(std::move(index)) {}

  // Before Start only, on the thread that calls it.
  Index& index() { return *index_; }
  Status Start();
  // Drops what waits; blocks for the batch that is being written.
  void Stop() { thread_.reset(); }

  void Put(const IndexEntry& entry, Done done);
  void Erase(std::vector<StoredPage> pages, Done done);
  // What was answered before is on the device.
  void Sync(Done done);
  // Reads it, after all that was asked for before. `read` runs on the thread of the index, for some
  // milliseconds at most: writes wait.
  void Read(std::function<void(Index&)> read, std::function<void()> done);

  // It has kept somebody waiting for too long: it counts as broken until it answers.
  void GiveUp(std::string why) {
    broken_until_ = std::numeric_limits<MonotonicNs>::max();
    why_ = std::move(why);
  }

  // False for a while after it could not be written.
  bool healthy() const { return clock_.Now() >= broken_until_; }
  const std::string& why() const { return why_; }
  uint64_t bytes_on_disk() const { return bytes_on_disk_; }
  uint64_t syncs() const { return syncs_; }

 private:
  struct Batch {
    bool resume = false;  // The one before failed.
    bool measure = false;
    std::vector<StoredPage> erases;
    std::vector<Done> erased;
    std::vector<IndexEntry> puts;
    std::vector<Done> put;
    std::vector<Done> synced;
    std::vector<std::function<void(Index&)>> reads;
    std::vector<std::function<void()>> have_read;

    Status erase_status;
    Status put_status;
    Status sync_status;
    uint64_t bytes_on_disk = 0;
    uint64_t syncs = 0;

    bool writes() const { return !erased.empty() || !put.empty() || !synced.empty(); }
    bool empty() const { return !writes() && reads.empty(); }
  };

  void Pump();
  void Write(Batch& batch);  // On its thread.
  void Finish(const Batch& batch);

  const Options options_;
  const Clock& clock_;
  const std::shared_ptr<Mailbox> box_;
  const std::unique_ptr<Index> index_;

  Batch next_;
  bool writing_ = false;
  bool failed_ = false;  // The last batch.
  MonotonicNs broken_until_ = std::numeric_limits<MonotonicNs>::min();
  std::string why_;
  uint64_t batches_ = 0;
  uint64_t bytes_on_disk_ = 0;
  uint64_t syncs_ = 0;
  std::unique_ptr<WorkerPool> thread_;  // Last: it stops before the index closes.
};

}  // namespace terrace::nvme
