// ForkWord: tells a forked child from its parent without a system call.
#pragma once

#include <sys/mman.h>

#include <atomic>
#include <cerrno>
#include <cstddef>
#include <memory>
#include <new>

#include "base/status.h"

namespace terrace::client {

// A word in a page that the kernel hands to a forked child zeroed. Thread-safe.
class ForkWord {
 public:
  static Result<std::shared_ptr<ForkWord>> Make() {
    void* page =
        ::mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (page == MAP_FAILED) return SystemError("mmap", errno);
    std::shared_ptr<ForkWord> word(new ForkWord(page));
    if (::madvise(page, kBytes, MADV_WIPEONFORK) != 0) {
      return SystemError("MADV_WIPEONFORK", errno);
    }
    return word;
  }
  ~ForkWord() { ::munmap(static_cast<void*>(word_), kBytes); }
  ForkWord(const ForkWord&) = delete;
  ForkWord& operator=(const ForkWord&) = delete;

  bool in_child() const { return word_->load(std::memory_order_relaxed) == 0; }

 private:
  static constexpr size_t kBytes = 4096;
  explicit ForkWord(void* page) : word_(new(page) std::atomic<int>(1)) {}
  std::atomic<int>* const word_;
};

}  // namespace terrace::client
