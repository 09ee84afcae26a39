// SimAtomics: the atomics policy of the step simulation. Every access of shared memory goes to one
// observer, which may let somebody else act first, and may falsify it.
#pragma once

#include <atomic>
#include <cstdint>

#include "base/mutex.h"
#include "proto/shared_memory.h"

namespace terrace {

class SharedAccess {
 public:
  virtual ~SharedAccess() = default;
  virtual uint64_t Load(const shm::Word& word, std::memory_order order) = 0;
  virtual void Store(shm::Word& word, uint64_t value, std::memory_order order) = 0;
  virtual uint64_t FetchOr(shm::Word& word, uint64_t bits) = 0;
  virtual uint64_t FetchAnd(shm::Word& word, uint64_t bits) = 0;
  virtual bool CompareExchange(shm::Word& word, uint64_t expected, uint64_t wanted) = 0;
  // While the lock of another fiber is waited for.
  virtual void GiveWay() = 0;
};

struct SimAtomics {
  // One simulation at a time.
  static inline SharedAccess* access = nullptr;

  static uint64_t Load(const shm::Word& word, std::memory_order order) {
    return access->Load(word, order);
  }
  static void Store(shm::Word& word, uint64_t value, std::memory_order order) {
    access->Store(word, value, order);
  }
  static uint64_t FetchOr(shm::Word& word, uint64_t bits, std::memory_order) {
    return access->FetchOr(word, bits);
  }
  static uint64_t FetchAnd(shm::Word& word, uint64_t bits, std::memory_order) {
    return access->FetchAnd(word, bits);
  }
  static bool CompareExchange(shm::Word& word, uint64_t expected, uint64_t wanted,
                              std::memory_order) {
    return access->CompareExchange(word, expected, wanted);
  }

  // All fibers are one thread: a lock that is taken is waited for by letting others go on.
  class TERRACE_TSA(capability("mutex")) Mutex {
   public:
    void lock() TERRACE_TSA(acquire_capability()) {
      while (taken_)
        access->GiveWay();
      taken_ = true;
    }
    void unlock() TERRACE_TSA(release_capability()) { taken_ = false; }

   private:
    bool taken_ = false;
  };
  class TERRACE_TSA(scoped_lockable) MutexLock {
   public:
    explicit MutexLock(Mutex& mutex) TERRACE_TSA(acquire_capability(mutex)) : mutex_(mutex) {
      mutex_.lock();
    }
    ~MutexLock() TERRACE_TSA(release_capability()) { mutex_.unlock(); }
    MutexLock(const MutexLock&) = delete;
    MutexLock& operator=(const MutexLock&) = delete;

   private:
    Mutex& mutex_;
  };
};

}  // namespace terrace
