// ManualExecutor: an owner thread that runs tasks only when told, for tests and the simulation.
//
// Post is thread-safe. The thread that calls Run* is the owner thread while it does.
#pragma once

#include <chrono>
#include <cstddef>
#include <deque>
#include <functional>
#include <utility>

#include "base/executor.h"
#include "base/mutex.h"

namespace terrace {

class ManualExecutor final : public Executor {
 public:
  void Post(std::function<void()> task) override EXCLUDES(mu_) {
    {
      MutexLock lock(mu_);
      queue_.push_back(std::move(task));
    }
    posted_.notify_one();
  }

  // False when nothing is queued.
  bool RunOne() EXCLUDES(mu_) {
    std::function<void()> task;
    {
      MutexLock lock(mu_);
      if (queue_.empty()) return false;
      task = std::move(queue_.front());
      queue_.pop_front();
    }
    task();
    return true;
  }

  // Until the queue is empty, tasks that tasks post included, or `limit` ran. Returns how many.
  size_t RunAll(size_t limit = 1'000'000) {
    size_t ran = 0;
    while (ran < limit && RunOne())
      ++ran;
    return ran;
  }

  // For tests with real threads behind the executor: runs what is posted until `reached` is true.
  // Asks it after every task, and every few milliseconds in between. False when `limit` passed
  // first.
  bool RunUntil(const std::function<bool()>& reached,
                std::chrono::milliseconds limit = std::chrono::minutes(10)) EXCLUDES(mu_) {
    const auto deadline = std::chrono::steady_clock::now() + limit;
    while (!reached()) {
      if (RunOne()) continue;
      if (std::chrono::steady_clock::now() >= deadline) return false;
      MutexLock lock(mu_);
      if (queue_.empty()) posted_.wait_for(mu_, std::chrono::milliseconds(2));
    }
    return true;
  }

  size_t queued() const EXCLUDES(mu_) {
    MutexLock lock(mu_);
    return queue_.size();
  }

 private:
  mutable Mutex mu_;
  CondVar posted_;
  std::deque<std::function<void()>> queue_ GUARDED_BY(mu_);
};

}  // namespace terrace
