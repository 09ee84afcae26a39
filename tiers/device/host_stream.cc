#include "tiers/device/host_stream.h"

#include <pthread.h>

#include <system_error>
#include <utility>

namespace terrace {

void HostMark::Reach() {
  MutexLock lock(mu_);
  reached_ = true;
  changed_.notify_all();
}

void HostMark::Wait() {
  MutexLock lock(mu_);
  while (!reached_)
    changed_.wait(mu_);
}

bool HostMark::reached() const {
  MutexLock lock(mu_);
  return reached_;
}

Result<std::shared_ptr<HostStream>> HostStream::Start() {
  auto stream = std::make_shared<HostStream>();
  try {
    MutexLock lock(stream->stop_mu_);
    stream->thread_ = std::thread([self = stream.get()] { self->Serve(); });
  } catch (const std::system_error& error) {
    return SystemError("start the thread of a stream", error.code().value());
  }
  return stream;
}

bool HostStream::Push(std::function<void()> work) {
  MutexLock lock(mu_);
  while (queue_.size() >= kMostQueued && !stopping_)
    changed_.wait(mu_);
  if (stopping_) return false;
  queue_.push_back(std::move(work));
  changed_.notify_all();
  return true;
}

void HostStream::Stop() {
  {
    MutexLock lock(mu_);
    stopping_ = true;
    changed_.notify_all();
  }
  MutexLock lock(stop_mu_);
  if (thread_.joinable()) thread_.join();
}

void HostStream::Serve() {
  (void)::pthread_setname_np(::pthread_self(), "gpu-stream");
  for (;;) {
    std::function<void()> work;
    {
      MutexLock lock(mu_);
      while (queue_.empty() && !stopping_)
        changed_.wait(mu_);
      if (queue_.empty()) return;
      work = std::move(queue_.front());
      queue_.pop_front();
      changed_.notify_all();
    }
    work();
  }
}

}  // namespace terrace
