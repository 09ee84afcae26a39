// Mutex and MutexLock: std::mutex with the annotations that clang's -Wthread-safety checks.
//
// A mutex guards named members (GUARDED_BY) and is never held over I/O or a callback. The daemon's
// owner thread has none.
#pragma once

#include <condition_variable>
#include <mutex>

#if defined(__clang__)
#define TERRACE_TSA(x) __attribute__((x))
#else
#define TERRACE_TSA(x)
#endif
#define GUARDED_BY(m) TERRACE_TSA(guarded_by(m))
#define REQUIRES(...) TERRACE_TSA(requires_capability(__VA_ARGS__))
#define EXCLUDES(...) TERRACE_TSA(locks_excluded(__VA_ARGS__))

namespace terrace {

class TERRACE_TSA(capability("mutex")) Mutex {
 public:
  void lock() TERRACE_TSA(acquire_capability()) { mu_.lock(); }
  void unlock() TERRACE_TSA(release_capability()) { mu_.unlock(); }

 private:
  std::mutex mu_;
};

class TERRACE_TSA(scoped_lockable) MutexLock {
 public:
  explicit MutexLock(Mutex& mu) TERRACE_TSA(acquire_capability(mu)) : mu_(mu) { mu_.lock(); }
  ~MutexLock() TERRACE_TSA(release_capability()) { mu_.unlock(); }
  MutexLock(const MutexLock&) = delete;
  MutexLock& operator=(const MutexLock&) = delete;

 private:
  Mutex& mu_;
};

// A condition variable for Mutex: the caller holds it, as with std::condition_variable.
using CondVar = std::condition_variable_any;

}  // namespace terrace
