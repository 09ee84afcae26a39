// Lane: one reader thread's part of a channel: its pin words, its counters and its ring.
//
// A lane is used by one thread at a time (its owner; the role may pass on under the caller's own
// lock). Only the release of pins may come from any thread. A pin and its release cost one store in
// the total order, one plain store and one locked add; nothing here allocates, makes a system call
// or waits, except that leasing a line (once for many pins) takes the pool's mutex.
//
// Bounds: a client's pin lines and its byte budget (PinPool), kRingRecords records in the ring.
// A lane outlives the pins that were taken from it.
#pragma once

#include <array>
#include <atomic>
#include <bit>
#include <cstdint>
#include <span>

#include "libclient/pin_pool.h"
#include "proto/shared_memory.h"

namespace terrace {

// A page that cannot move or be reused until it is released.
struct Pinned {
  shm::Handle handle = 0;
  uint32_t bytes = 0;
  uint32_t valid_tokens = 0;
  shm::Tier tier = shm::Tier::kHost;
  shm::Word* pin = nullptr;  // nullptr: not pinned.
};

template <class Atomics = shm::StdAtomics>
class alignas(shm::kLineBytes) Lane {
 public:
  // `index` is below kMaxLanes and not in use by another lane of the channel.
  Lane(PinPool<Atomics>& pool, uint32_t index)
      : pool_(pool),
        channel_(pool.channel()),
        counters_(pool.channel().counters[index]),
        ring_(pool.channel().rings[index]) {
    head_ = Atomics::Load(ring_.head, std::memory_order_relaxed);
    tail_ = Atomics::Load(ring_.tail, std::memory_order_acquire);
    Atomics::FetchOr(channel_.lanes, uint64_t{1} << index, std::memory_order_release);
  }
  // Lines with pins that nobody released stay leased: their marks must not go before them.
  ~Lane() { Trim(); }
  Lane(const Lane&) = delete;
  Lane& operator=(const Lane&) = delete;

  // ---- Pins
  // Stores `handle` in a pin word, after which the caller confirms that it was still linked.
  // nullptr: over the budget of pins or bytes.
  shm::Word* Pin(shm::Handle handle, uint32_t bytes) {
    if (bytes > slack_bytes_ && !Refill(bytes)) return nullptr;
    if (free_ == 0 && !FindFree()) return nullptr;
    const int word = std::countr_zero(free_);
    free_ &= static_cast<uint8_t>(free_ - 1);
    slack_bytes_ -= bytes;
    Acquire(Claim(bytes));
    shm::Word& pin = channel_.lines[current_].pins[word];
    Atomics::Store(pin, handle, std::memory_order_seq_cst);
    return &pin;
  }

  // Takes back a pin that was not confirmed. Owner only; the last one taken.
  void Unpin(shm::Word* pin, uint32_t bytes) {
    Atomics::Store(*pin, 0, std::memory_order_release);
    slack_bytes_ += bytes;
    Acquire(uint64_t{0} - Claim(bytes));
    free_ |= static_cast<uint8_t>(1u << (pin - channel_.lines[current_].pins));
  }

  // Any thread. Every read of the pages' bytes comes before. Elements without a pin are skipped.
  void Release(std::span<const Pinned> pages) {
    uint64_t claims = 0;
    for (const Pinned& page : pages) {
      if (page.pin == nullptr) continue;
      Atomics::Store(*page.pin, 0, std::memory_order_release);
      claims += Claim(page.bytes);
    }
    // The last access to the lane: whoever sees with it that no pin is left may end the lane.
    released_.fetch_add(claims, std::memory_order_release);
  }

  // Gives back every line and byte of the budget that is not in use. Owner only; for lanes that
  // fall idle.
  void Trim() {
    ReturnEmpty(leased_count_, 0);
    const uint64_t held = BytesOf(Outstanding());
    pool_.ReturnBytes(allowance_bytes_ - held);
    allowance_bytes_ = held;
    slack_bytes_ = 0;
  }

  // Now; from another thread than the owner a figure of some moment ago.
  uint64_t pins() const { return PinsOf(Outstanding()); }
  uint64_t pinned_bytes() const { return BytesOf(Outstanding()); }

  // ---- Counters: lookups = hits + misses. Owner only.
  void CountHits(shm::Tier tier, uint64_t count) {
    Add(counters_.lookups, count);
    Add(counters_.hits[static_cast<uint32_t>(tier)], count);
  }
  void CountMisses(shm::Miss reason, uint64_t count) {
    Add(counters_.lookups, count);
    Add(counters_.misses[static_cast<uint32_t>(reason)], count);
  }
  // Pages that were counted as hits and turned out to be of no use.
  void CountLost(shm::Tier tier, shm::Miss reason, uint64_t count) {
    Add(counters_.hits[static_cast<uint32_t>(tier)], uint64_t{0} - count);
    Add(counters_.misses[static_cast<uint32_t>(reason)], count);
  }

  // ---- Ring. Owner only. Records are seen by the daemon after Publish; one that finds the ring
  // full is dropped and counted.
  void Record(uint64_t tag, uint64_t key0, uint64_t key1, shm::Handle handle) {
    constexpr auto kRelaxed = std::memory_order_relaxed;
    if (head_ - tail_ >= shm::kRingRecords) {
      tail_ = Atomics::Load(ring_.tail, std::memory_order_acquire);
      if (head_ - tail_ >= shm::kRingRecords) return Add(counters_.dropped, 1);
    }
    shm::RingRecord& record = ring_.records[head_ % shm::kRingRecords];
    Atomics::Store(record.tag, tag, kRelaxed);
    Atomics::Store(record.key[0], key0, kRelaxed);
    Atomics::Store(record.key[1], key1, kRelaxed);
    Atomics::Store(record.handle, handle, kRelaxed);
    ++head_;
  }
  void Publish() { Atomics::Store(ring_.head, head_, std::memory_order_release); }

 private:
  // Pins (high 20 bits) and bytes (low 44) in one word, so that a release is one locked add. Both
  // sums wrap; their difference does not, for a client has fewer pins and bytes than that.
  static constexpr int kByteBits = 44;
  static constexpr uint64_t Claim(uint64_t bytes) { return (uint64_t{1} << kByteBits) + bytes; }
  static constexpr uint64_t PinsOf(uint64_t claims) { return claims >> kByteBits; }
  static constexpr uint64_t BytesOf(uint64_t claims) {
    return claims & ((uint64_t{1} << kByteBits) - 1);
  }
  // Only the owner writes acquired_, so that it needs no locked add.
  void Acquire(uint64_t claims) {
    acquired_.store(acquired_.load(std::memory_order_relaxed) + claims, std::memory_order_relaxed);
  }
  // Never less than what is pinned: a release that is not seen yet still counts.
  uint64_t Outstanding() const {
    const uint64_t released = released_.load(std::memory_order_acquire);
    return acquired_.load(std::memory_order_relaxed) - released;
  }

  static void Add(shm::Word& word, uint64_t count) {
    Atomics::Store(word, Atomics::Load(word, std::memory_order_relaxed) + count,
                   std::memory_order_relaxed);
  }

  // Makes slack_bytes_ at least `bytes`, from what was released since or from the pool.
  bool Refill(uint64_t bytes) {
    slack_bytes_ = allowance_bytes_ - BytesOf(Outstanding());
    const uint64_t kept = bytes + pool_.chunk_bytes();
    if (slack_bytes_ > 2 * kept) {
      // Other lanes may need it.
      pool_.ReturnBytes(slack_bytes_ - kept);
      allowance_bytes_ -= slack_bytes_ - kept;
      slack_bytes_ = kept;
    }
    if (slack_bytes_ >= bytes) return true;
    const uint64_t dealt = pool_.DrawBytes(bytes - slack_bytes_);
    allowance_bytes_ += dealt;
    slack_bytes_ += dealt;
    return slack_bytes_ >= bytes;
  }

  // A bit for each zero word of a leased line. With acquire: who released the word has read its
  // page, and what this lane does with the word next tells the daemon so.
  uint8_t ZeroWords(uint32_t line) const {
    uint8_t zero = 0;
    for (uint32_t word = 0; word < shm::kPinsPerLine; ++word) {
      const bool is_zero =
          Atomics::Load(channel_.lines[line].pins[word], std::memory_order_acquire) == 0;
      zero |= static_cast<uint8_t>(is_zero << word);
    }
    return zero;
  }

  // Finds a line with free words and makes it current. Amortised over the words found it looks at
  // few: a walk starts only when a quarter of the leased words is free, or no line is left.
  bool FindFree() {
    if (leased_count_ > 0 && (free_ = ZeroWords(current_)) != 0) {
      if (free_ == 0xff) ReturnEmpty(2, leased_count_ * shm::kPinsPerLine / 2);
      return true;
    }
    const uint64_t capacity = leased_count_ * shm::kPinsPerLine;
    const uint64_t free = capacity - PinsOf(Outstanding());
    if (free * 4 <= capacity && LeaseLine()) return true;
    return (free > 0 && Walk()) || LeaseLine();
  }

  bool LeaseLine() {
    const std::optional<uint32_t> line = pool_.LeaseLine();
    if (!line) return false;
    leased_[*line / 64] |= uint64_t{1} << *line % 64;
    ++leased_count_;
    current_ = *line;
    free_ = 0xff;
    return true;
  }

  bool Walk() {
    uint32_t line = current_;
    for (uint32_t step = 0; step < leased_count_; ++step) {
      line = NextLeased(line);
      if ((free_ = ZeroWords(line)) != 0) {
        current_ = line;
        return true;
      }
    }
    return false;
  }

  // The first leased line after `line`, around the end. There is one.
  uint32_t NextLeased(uint32_t line) const {
    uint32_t word = line / 64;
    uint64_t bits = line % 64 == 63 ? 0 : leased_[word] >> (line % 64 + 1) << (line % 64 + 1);
    while (bits == 0) {
      word = (word + 1) % shm::kSummaryWords;
      bits = leased_[word];
    }
    return word * 64 + static_cast<uint32_t>(std::countr_zero(bits));
  }

  // Looks at `lines` further lines and returns those wholly free, as long as more than `spare`
  // words remain free. With no spare even the current one.
  void ReturnEmpty(uint32_t lines, uint64_t spare) {
    uint64_t free = leased_count_ * shm::kPinsPerLine - PinsOf(Outstanding());
    for (; lines > 0 && leased_count_ > 0 && free >= spare + shm::kPinsPerLine; --lines) {
      return_cursor_ = NextLeased(return_cursor_);
      if (return_cursor_ == current_ && spare > 0) continue;
      if (ZeroWords(return_cursor_) != 0xff) continue;
      leased_[return_cursor_ / 64] &= ~(uint64_t{1} << return_cursor_ % 64);
      --leased_count_;
      free -= shm::kPinsPerLine;
      pool_.ReturnLine(return_cursor_);
      if (return_cursor_ == current_) {
        free_ = 0;
        if (leased_count_ > 0) current_ = NextLeased(current_);
      }
    }
  }

  // Constant after construction.
  PinPool<Atomics>& pool_;
  shm::Channel& channel_;
  shm::LaneCounters& counters_;
  shm::Ring& ring_;

  // The owner's.
  uint32_t current_ = 0;                // The line that pins are taken from; leased if any line is.
  uint8_t free_ = 0;                    // Its words known to be zero.
  uint64_t slack_bytes_ = 0;            // May be pinned without asking anybody.
  uint64_t allowance_bytes_ = 0;        // Drawn from the pool.
  std::atomic<uint64_t> acquired_ = 0;  // Claims taken.
  uint64_t head_ = 0;
  uint64_t tail_ = 0;  // Of the ring, as last seen.
  uint32_t leased_count_ = 0;
  uint32_t return_cursor_ = 0;
  std::array<uint64_t, shm::kSummaryWords> leased_ = {};  // A bit a line.

  // Anybody's, on a line of its own.
  alignas(shm::kLineBytes) std::atomic<uint64_t> released_ = 0;  // Claims given back.
};

}  // namespace terrace
