// WorkerPool: a fixed number of named threads for work that would hold up the owner thread:
// touching memory, reading files, hashing.
//
// Any thread may submit. Tasks start in the order they were submitted and run at once on as many
// threads as there are. The queue is bounded: at `queue_limit` waiting tasks Submit refuses with
// `exhausted`, and the caller tries again when one of its tasks completes, or fails what asked for
// the work. Results reach the owner thread through Executor::Post only, and the
// executor must outlive the pool.
//
// Stopping (the destructor) waits for tasks that are running and drops those that are queued: they
// are destroyed without having run, and their `done` is never called. So whoever waits for a
// completion must be gone before, or together with, the pool.
#pragma once

#include <cstddef>
#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "base/executor.h"
#include "base/mutex.h"
#include "base/status.h"

namespace terrace {

struct WorkerPoolOptions {
  std::string name =
      "worker";  // Shown in /proc as name-0, name-1...; the kernel cuts it at 15 bytes.
  int threads = 2;
  size_t queue_limit = 4096;
  // Runs only where others leave the processor idle for long (SCHED_BATCH, nice 10): for work in
  // advance of need.
  bool low_priority = false;
};

class WorkerPool {
 public:
  // `exhausted` when the threads cannot be started, `invalid_argument` for none of them.
  static Result<std::unique_ptr<WorkerPool>> Start(WorkerPoolOptions options);
  ~WorkerPool();
  WorkerPool(const WorkerPool&) = delete;
  WorkerPool& operator=(const WorkerPool&) = delete;

  // Runs `work` on a thread of the pool. `exhausted`: the queue is full and nothing was queued.
  Status Submit(std::function<void()> work) EXCLUDES(mu_);
  // The same, and then `done` on the owner thread.
  Status Submit(std::function<void()> work, Executor& owner, std::function<void()> done);

  // Tasks that wait for a thread.
  size_t queued() EXCLUDES(mu_);

  int threads() const { return static_cast<int>(threads_.size()); }

 private:
  explicit WorkerPool(WorkerPoolOptions options) : options_(std::move(options)) {}
  void Serve(int index) EXCLUDES(mu_);

  const WorkerPoolOptions options_;
  std::vector<std::thread> threads_;  // Constant after Start.

  Mutex mu_;
  CondVar changed_;  // A task was queued, or the pool stops.
  std::deque<std::function<void()>> queue_ GUARDED_BY(mu_);
  bool stopping_ GUARDED_BY(mu_) = false;
};

}  // namespace terrace
