// HostStream: a stream of the host's device, one thread that does work in order. HostMark: a place
// in such work that others can wait for.
//
// Thread safety: all of it. Work waits only for marks that were put on a stream before it was, so
// streams cannot wait for each other in a circle.
#pragma once

#include <cstddef>
#include <deque>
#include <functional>
#include <memory>
#include <thread>

#include "base/mutex.h"
#include "base/status.h"

namespace terrace {

inline constexpr size_t kMostQueued = 1024;

class HostMark {
 public:
  void Reach() EXCLUDES(mu_);
  void Wait() EXCLUDES(mu_);
  bool reached() const EXCLUDES(mu_);

 private:
  mutable Mutex mu_;
  CondVar changed_;
  bool reached_ GUARDED_BY(mu_) = false;
};

class HostStream {
 public:
  static Result<std::shared_ptr<HostStream>> Start();
  HostStream() = default;
  ~HostStream() { Stop(); }
  HostStream(const HostStream&) = delete;
  HostStream& operator=(const HostStream&) = delete;

  // Waits while kMostQueued have not begun. False: it was stopped, and nothing was queued.
  bool Push(std::function<void()> work) EXCLUDES(mu_);
  // Does what is queued, and takes nothing more.
  void Stop() EXCLUDES(mu_);

 private:
  void Serve() EXCLUDES(mu_);

  Mutex stop_mu_;  // One joins, others wait for it.
  std::thread thread_ GUARDED_BY(stop_mu_);

  Mutex mu_;
  CondVar changed_;
  std::deque<std::function<void()>> queue_ GUARDED_BY(mu_);
  bool stopping_ GUARDED_BY(mu_) = false;
};

}  // namespace terrace
