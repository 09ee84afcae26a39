// PinPool: what the lanes of one client share: its pin lines, and its budget of pinned bytes.
//
// A lane leases a line of eight pin words before it pins with it and returns it when all are zero.
// The marks that tell the daemon where to look are set and cleared here, under one mutex, because
// 64 lines share a word of them: a clear of the upper mark must not cross another lane's set. Lanes
// come here once for many pins, so the mutex is hardly ever contended.
//
// A lane that falls idle does not come here any more, and must not keep the budget from the others.
// So when something is short, the pool helps itself, while the idle lane's thread may wake up at
// any step:
//
//   Bytes. What was released since the lane last looked is in its account, not in its hands. Lane
//   and pool take from there by the same exchange, so each byte goes to one of them (Collect).
//   Only what a lane has drawn and not pinned yet, some two chunks, is out of reach.
//
//   Lines. Without a line that nobody leases, a lane gets one of another's with a zero word in it,
//   and both lease it. Neither need know: a pin is stored by an exchange that fails if the word is
//   not zero. A line's marks are cleared when none of its lessees is left and all words are zero,
//   under the mutex. Every store of a pin was made by a lessee before it returned the line, so the
//   words read as zero here are zero for good, and no lessee ever pins where no mark is.
//
// Thread-safe. One pool a channel; the channel outlives it.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <cstdint>
#include <optional>

#include "base/mutex.h"
#include "proto/shared_memory.h"

namespace terrace {

// A bit a line.
using LineSet = std::array<uint64_t, shm::kSummaryWords>;

// Pins (high 20 bits) and bytes (low 44) in one word, so that a release is one locked add. Sums of
// them wrap; their differences do not, for a client has fewer pins and bytes than that.
using Claims = uint64_t;
inline constexpr int kClaimByteBits = 44;
constexpr Claims ClaimOf(uint64_t bytes) {
  return (uint64_t{1} << kClaimByteBits) + bytes;
}
constexpr uint64_t PinsOf(Claims claims) {
  return claims >> kClaimByteBits;
}
constexpr uint64_t BytesOf(Claims claims) {
  return claims & ((uint64_t{1} << kClaimByteBits) - 1);
}

// What one lane took, what of that was given back, and what of that is in use again: sums.
class PinAccount {
 public:
  // Owner of the lane only, so that it needs no locked add.
  void Acquire(Claims claims) {
    acquired_.store(acquired_.load(std::memory_order_relaxed) + claims, std::memory_order_relaxed);
  }
  // Any thread.
  void Release(Claims claims) { released_.fetch_add(claims, std::memory_order_release); }

  // Any thread. Never less than what is pinned: a release that is not seen yet still counts.
  Claims Outstanding() const {
    const Claims released = released_.load(std::memory_order_acquire);
    return acquired_.load(std::memory_order_relaxed) - released;
  }

  // Any thread: the bytes that were released and that no call has returned yet. `collected_` is
  // read first: who stored it had read as much of `released_`, so that the difference is not
  // negative, and the exchange fails if another call was faster.
  uint64_t Collect() {
    Claims collected = collected_.load(std::memory_order_acquire);
    Claims released = 0;
    do
      released = released_.load(std::memory_order_acquire);
    while (!collected_.compare_exchange_weak(collected, released, std::memory_order_acq_rel));
    return BytesOf(released - collected);
  }

 private:
  std::atomic<Claims> acquired_ = 0;
  // Anybody's, on a line of their own.
  alignas(shm::kLineBytes) std::atomic<Claims> released_ = 0;
  std::atomic<Claims> collected_ = 0;
};

template <class Atomics = shm::StdAtomics>
class PinPool {
 public:
  // The channel as the daemon handed it out. Budgets are dealt to lanes in chunks, so that a hit
  // touches no word of another thread.
  PinPool(shm::Channel& channel, uint64_t max_pinned_bytes)
      : channel_(channel),
        lines_(static_cast<uint32_t>(std::min<uint64_t>(
            Atomics::Load(channel.pin_lines, std::memory_order_acquire), shm::kMaxPinLines))),
        chunk_bytes_(max_pinned_bytes / 1024),
        bytes_left_(max_pinned_bytes) {
    for (uint32_t line = 0; line < lines_; ++line)
      free_[line / 64] |= uint64_t{1} << line % 64;
  }
  PinPool(const PinPool&) = delete;
  PinPool& operator=(const PinPool&) = delete;

  shm::Channel& channel() { return channel_; }
  uint64_t chunk_bytes() const { return chunk_bytes_; }

  // A lane comes with its account and leaves with the lines that it leases and the bytes that it
  // drew and did not pin. Lines with pins that nobody released stay marked.
  void Join(uint32_t lane, PinAccount& account) {
    typename Atomics::MutexLock lock(mutex_);
    accounts_[lane] = &account;
  }
  void Leave(uint32_t lane, const LineSet& leased, uint64_t bytes) {
    typename Atomics::MutexLock lock(mutex_);
    bytes_left_ += bytes + accounts_[lane]->Collect();
    accounts_[lane] = nullptr;
    for (uint32_t word = 0; word < shm::kSummaryWords; ++word) {
      for (uint64_t bits = leased[word]; bits != 0; bits &= bits - 1)
        Return(word * 64 + static_cast<uint32_t>(std::countr_zero(bits)));
    }
  }

  // A line that was nobody's, all of whose words are zero; its marks are set. nullopt: there is
  // none.
  std::optional<uint32_t> LeaseLine() {
    typename Atomics::MutexLock lock(mutex_);
    for (uint32_t step = 0; step < shm::kSummaryWords; ++step) {
      const uint32_t word = (search_from_ + step) % shm::kSummaryWords;
      if (free_[word] == 0) continue;
      search_from_ = word;
      const auto bit = static_cast<uint32_t>(std::countr_zero(free_[word]));
      free_[word] &= ~(uint64_t{1} << bit);
      lessees_[word * 64 + bit] = 1;
      Mark(word, bit);
      return word * 64 + bit;
    }
    return std::nullopt;
  }

  // To be called when LeaseLine has none: a line besides those `held` that has a zero word; other
  // lanes may lease it too. nullopt: there is none.
  std::optional<uint32_t> ShareLine(const LineSet& held) {
    typename Atomics::MutexLock lock(mutex_);
    // A client at its limit is told so without a search.
    if (PinsHeld() >= uint64_t{lines_} * shm::kPinsPerLine) return std::nullopt;
    for (uint32_t step = 0; step < lines_; ++step) {
      share_from_ = (share_from_ + 1) % lines_;
      const uint64_t bit = uint64_t{1} << share_from_ % 64;
      if (((held[share_from_ / 64] | free_[share_from_ / 64]) & bit) != 0) continue;
      if (ZeroWords(share_from_) == 0) continue;
      ++lessees_[share_from_];
      return share_from_;
    }
    return std::nullopt;
  }

  // To be called by a lane that leases it and has no pin in it.
  void ReturnLine(uint32_t line) {
    typename Atomics::MutexLock lock(mutex_);
    Return(line);
  }

  // A bit for each zero word of a line. With acquire: who released the word has read its page, and
  // what this client does with the word next tells the daemon so.
  uint8_t ZeroWords(uint32_t line) const {
    uint8_t zero = 0;
    for (uint32_t word = 0; word < shm::kPinsPerLine; ++word) {
      const bool is_zero =
          Atomics::Load(channel_.lines[line].pins[word], std::memory_order_acquire) == 0;
      zero |= static_cast<uint8_t>(is_zero << word);
    }
    return zero;
  }

  // Deals at least `needed` bytes of the budget and up to a chunk, or 0 if so much is not left,
  // also not with what was released.
  uint64_t DrawBytes(uint64_t needed) {
    typename Atomics::MutexLock lock(mutex_);
    if (bytes_left_ < needed) {
      for (PinAccount* account : accounts_) {
        if (account != nullptr) bytes_left_ += account->Collect();
      }
    }
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
  void Return(uint32_t line) REQUIRES(mutex_) {
    // Words that are not zero are pins that outlive their lane: the line may still be shared.
    if (--lessees_[line] > 0 || ZeroWords(line) != 0xff) return;
    free_[line / 64] |= uint64_t{1} << line % 64;
    ClearMark(line / 64, line % 64);
  }
  uint64_t PinsHeld() const REQUIRES(mutex_) {
    uint64_t pins = 0;
    for (const PinAccount* account : accounts_) {
      if (account != nullptr) pins += PinsOf(account->Outstanding());
    }
    return pins;
  }

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
  std::array<PinAccount*, shm::kMaxLanes> accounts_ GUARDED_BY(mutex_) = {};
  LineSet free_ GUARDED_BY(mutex_) = {};                                    // Lines without a mark.
  std::array<uint8_t, shm::kMaxPinLines> lessees_ GUARDED_BY(mutex_) = {};  // A count a line.
  std::array<uint8_t, shm::kSummaryWords> leased_in_ GUARDED_BY(mutex_) = {};  // Marks a word.
  uint32_t search_from_ GUARDED_BY(mutex_) = 0;
  uint32_t share_from_ GUARDED_BY(mutex_) = 0;
  uint64_t bytes_left_ GUARDED_BY(mutex_);
};

}  // namespace terrace
