#include "base/worker_pool.h"

#include <pthread.h>
#include <sched.h>
#include <sys/resource.h>
#include <unistd.h>

#include <system_error>
#include <utility>

namespace terrace {
namespace {

constexpr int kLowPriorityNice = 10;

// Best effort: a pool that may not lower itself works all the same.
void LowerThisThread() {
  const sched_param none{};
  (void)::sched_setscheduler(0, SCHED_BATCH, &none);
  (void)::setpriority(PRIO_PROCESS, static_cast<id_t>(::gettid()), kLowPriorityNice);
}

}  // namespace

Result<std::unique_ptr<WorkerPool>> WorkerPool::Start(WorkerPoolOptions options) {
  if (options.threads < 1) {
    return Status(Code::kInvalidArgument,
                  "worker pool '" + options.name + "': threads must be at least 1");
  }
  std::unique_ptr<WorkerPool> pool(new WorkerPool(std::move(options)));
  try {
    for (int i = 0; i < pool->options_.threads; ++i) {
      pool->threads_.emplace_back([self = pool.get(), i] { self->Serve(i); });
    }
  } catch (const std::system_error& error) {
    // The destructor ends the threads that did start.
    return SystemError("start a thread of pool '" + pool->options_.name + "'", error.code().value())
        .WithContext("worker pool");
  }
  return pool;
}

WorkerPool::~WorkerPool() {
  std::deque<std::function<void()>> dropped;
  {
    MutexLock lock(mu_);
    stopping_ = true;
    dropped.swap(queue_);
  }
  changed_.notify_all();
  for (std::thread& thread : threads_)
    thread.join();
  // What the dropped tasks own goes here, outside the mutex and after the last running task.
}

Status WorkerPool::Submit(std::function<void()> work) {
  {
    MutexLock lock(mu_);
    // A running task may submit while the pool stops: its work is dropped like what is queued.
    if (stopping_) return {};
    if (queue_.size() >= options_.queue_limit) {
      return {Code::kExhausted, "worker pool '" + options_.name + "': " +
                                    std::to_string(options_.queue_limit) + " tasks are waiting"};
    }
    queue_.push_back(std::move(work));
  }
  changed_.notify_one();
  return {};
}

size_t WorkerPool::queued() {
  MutexLock lock(mu_);
  return queue_.size();
}

Status WorkerPool::Submit(std::function<void()> work, Executor& owner, std::function<void()> done) {
  return Submit([work = std::move(work), &owner, done = std::move(done)]() mutable {
    work();
    owner.Post(std::move(done));
  });
}

void WorkerPool::Serve(int index) {
  const std::string name = options_.name.substr(0, 12) + "-" + std::to_string(index);
  (void)::pthread_setname_np(::pthread_self(), name.c_str());
  if (options_.low_priority) LowerThisThread();
  for (;;) {
    std::function<void()> work;
    {
      MutexLock lock(mu_);
      while (queue_.empty() && !stopping_)
        changed_.wait(mu_);
      if (stopping_) return;
      work = std::move(queue_.front());
      queue_.pop_front();
    }
    work();
  }
}

}  // namespace terrace
