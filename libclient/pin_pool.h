// PinPool: what the lanes of one client share: its pin lines, and its budget of pinned bytes.
//
// A lane leases a line of eight pin words before it pins with it and returns it when all are zero.
// The marks that tell the daemon where to look are set and cleared here, under one mutex, because
// 64 lines share a word of them: a clear of the upper mark must not cross another lane's set. Lanes
// come here once for many pins, so the mutex is hardly ever contended.
//
// Thread-safe. One pool a channel; the channel outlives it.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>
#include <optional>

#include "base/mutex.h"
#include "proto/shared_memory.h"

namespace terrace {

template <class Atomics = shm::StdAtomics>
class PinPool {
 public:
  // The channel as the daemon handed it out. Budgets are dealt to lanes in chunks, so that a hit
  // touches no word of another thread.
  PinPool(shm::Channel& channel, uint64_t max_pinned_bytes)
      : channel_(channel),
        lines_(static_cast<uint32_t>(std::min<uint64_t>(
            Atomics::Load(channel.pin_lines, std::memory_order_acquire), shm::kMaxPinLines))),
        chunk_bytes_(max_pinned_bytes / 256),
        bytes_left_(max_pinned_bytes) {
    for (uint32_t line = 0; line < lines_; ++line)
      free_[line / 64] |= uint64_t{1} << line % 64;
  }
  PinPool(const PinPool&) = delete;
  PinPool& operator=(const PinPool&) = delete;

  shm::Channel& channel() { return channel_; }
  uint64_t chunk_bytes() const { return chunk_bytes_; }

  // A line whose words are all zero and whose marks are set; nullopt: all are leased.
  std::optional<uint32_t> LeaseLine() {
    typename Atomics::MutexLock lock(mutex_);
    for (uint32_t step = 0; step < shm::kSummaryWords; ++step) {
      const uint32_t word = (search_from_ + step) % shm::kSummaryWords;
      if (free_[word] == 0) continue;
      search_from_ = word;
      const auto bit = static_cast<uint32_t>(std::countr_zero(free_[word]));
      free_[word] &= ~(uint64_t{1} << bit);
      Mark(word, bit);
      return word * 64 + bit;
    }
    return std::nullopt;
  }

  // To be called by the lane that leased it, after it read all eight words as zero.
  void ReturnLine(uint32_t line) {
    typename Atomics::MutexLock lock(mutex_);
    const uint32_t word = line / 64;
    free_[word] |= uint64_t{1} << line % 64;
    ClearMark(word, line % 64);
  }

  // Deals at least `needed` bytes of the budget and up to a chunk, or 0 if so much is not left.
  uint64_t DrawBytes(uint64_t needed) {
    typename Atomics::MutexLock lock(mutex_);
    if (bytes_left_ < needed) return 0;
    const uint64_t dealt = std::min(bytes_left_, std::max(needed, chunk_bytes_));
    bytes_left_ -= dealt;
    return dealt;
  }
  void ReturnBytes(uint64_t bytes) {
    typename Atomics::MutexLock lock(mutex_);
    bytes_left_ += bytes;
  }

 private:
  // Before the first pin of the line, in the total order: whoever scans after that pin finds it.
  void Mark(uint32_t word, uint32_t bit) REQUIRES(mutex_) {
    if (leased_in_[word]++ == 0) {
      Atomics::FetchOr(channel_.upper_summary[word / 64], uint64_t{1} << word % 64,
                       std::memory_order_seq_cst);
    }
    Atomics::FetchOr(channel_.summary[word], uint64_t{1} << bit, std::memory_order_seq_cst);
  }
  void ClearMark(uint32_t word, uint32_t bit) REQUIRES(mutex_) {
    Atomics::FetchAnd(channel_.summary[word], ~(uint64_t{1} << bit), std::memory_order_seq_cst);
    if (--leased_in_[word] == 0) {
      Atomics::FetchAnd(channel_.upper_summary[word / 64], ~(uint64_t{1} << word % 64),
                        std::memory_order_seq_cst);
    }
  }

  // Constant after construction.
  shm::Channel& channel_;
  const uint32_t lines_;
  const uint64_t chunk_bytes_;

  typename Atomics::Mutex mutex_;
  std::array<uint64_t, shm::kSummaryWords> free_ GUARDED_BY(mutex_) = {};  // A bit a line.
  std::array<uint8_t, shm::kSummaryWords> leased_in_ GUARDED_BY(mutex_) = {};
  uint32_t search_from_ GUARDED_BY(mutex_) = 0;
  uint64_t bytes_left_ GUARDED_BY(mutex_);
};

}  // namespace terrace
