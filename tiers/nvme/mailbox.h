// Mailbox: the way of completions to the owner thread, many with one Post.
//
// Whatever runs elsewhere holds the mailbox, not the store: after Close nothing of it runs any
// more, so what a device that hangs answers years later finds nobody and harms nobody.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include "base/executor.h"
#include "base/mutex.h"

namespace terrace::nvme {

class Mailbox : public std::enable_shared_from_this<Mailbox> {
 public:
  explicit Mailbox(Executor& owner) : owner_(owner) {}

  // Any thread: `message` runs on the owner thread, in the order of the calls. After Close it is
  // dropped.
  void Push(std::function<void()> message) EXCLUDES(mu_) {
    {
      MutexLock lock(mu_);
      if (closed_) return;
      messages_.push_back(std::move(message));
      if (std::exchange(posted_, true)) return;
    }
    owner_.Post([self = shared_from_this()] { self->Drain(); });
  }

  // Transfers begun and not ended: Close waits for them.
  void Began() EXCLUDES(mu_) {
    MutexLock lock(mu_);
    ++transfers_;
  }
  void Ended() EXCLUDES(mu_) {
    MutexLock lock(mu_);
    if (--transfers_ == 0) idle_.notify_all();
  }

  // Owner thread. Nothing is delivered any more; waits for transfers for at most `limit`. False:
  // some go on.
  bool Close(std::chrono::nanoseconds limit) EXCLUDES(mu_) {
    const auto deadline = std::chrono::steady_clock::now() + limit;
    std::vector<std::function<void()>> dropped;
    MutexLock lock(mu_);
    closed_ = true;
    dropped.swap(messages_);
    while (transfers_ > 0) {
      if (idle_.wait_until(mu_, deadline) == std::cv_status::timeout) return transfers_ == 0;
    }
    return true;
  }

 private:
  void Drain() EXCLUDES(mu_) {
    std::vector<std::function<void()>> now;
    {
      MutexLock lock(mu_);
      posted_ = false;
      now.swap(messages_);
    }
    for (const std::function<void()>& message : now) {
      if (IsClosed()) return;  // By a message before it.
      message();
    }
  }
  bool IsClosed() EXCLUDES(mu_) {
    MutexLock lock(mu_);
    return closed_;
  }

  Executor& owner_;
  Mutex mu_;
  CondVar idle_;
  std::vector<std::function<void()>> messages_ GUARDED_BY(mu_);
  bool posted_ GUARDED_BY(mu_) = false;
  bool closed_ GUARDED_BY(mu_) = false;
  uint64_t transfers_ GUARDED_BY(mu_) = 0;
};

}  // namespace terrace::nvme
