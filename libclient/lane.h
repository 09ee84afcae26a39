// Lane: one reader thread's part of a channel: its pin words, its counters and its ring.
//
// A lane is used by one thread at a time (its owner; the role may pass on under the caller's own
// lock). Only the release of pins may come from any thread. A pin and its release cost one exchange
// in the total order, one plain store and one locked add; nothing here allocates, makes a system
// call or waits, except that lines and bytes, drawn once for many pins, take the pool's mutex.
//
// Bounds: a client's pin lines and its byte budget (PinPool), kRingRecords records in the ring.
// A lane outlives the pins that were taken from it.
#pragma once

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
        index_(index),
        counters_(pool.channel().counters[index]),
        ring_(pool.channel().rings[index]) {
    head_ = Atomics::Load(ring_.head, std::memory_order_relaxed);
    tail_ = Atomics::Load(ring_.tail, std::memory_order_acquire);
    Atomics::FetchOr(channel_.lanes, uint64_t{1} << index, std::memory_order_release);
    pool_.Join(index_, account_);
  }
  ~Lane() { pool_.Leave(index_, leased_, slack_bytes_); }
  Lane(const Lane&) = delete;
  Lane& operator=(const Lane&) = delete;

  // ---- Pins
  // Stores `handle` in a pin word, after which the caller confirms that it was still linked.
  // nullptr: over the budget of pins or bytes.
  shm::Word* Pin(shm::Handle handle, uint32_t bytes) {
    if (bytes > slack_bytes_ && !Refill(bytes)) return nullptr;
    shm::Word* pin = nullptr;
    do {
      if (free_ == 0 && !FindFree()) return nullptr;
      pin = &channel_.lines[current_].pins[std::countr_zero(free_)];
      free_ &= static_cast<uint8_t>(free_ - 1);
      // Fails only if another lane that shares the line has pinned with this word meanwhile.
    } while (!Atomics::CompareExchange(*pin, 0, handle, std::memory_order_seq_cst));
    slack_bytes_ -= bytes;
    account_.Acquire(ClaimOf(bytes));
    return pin;
  }

  // Takes back a pin that was not confirmed. Owner only; the last one taken.
  void Unpin(shm::Word* pin, uint32_t bytes) {
    Atomics::Store(*pin, 0, std::memory_order_release);
    slack_bytes_ += bytes;
    account_.Acquire(uint64_t{0} - ClaimOf(bytes));
    free_ |= static_cast<uint8_t>(1u << (pin - channel_.lines[current_].pins));
  }

  // Any thread. Every read of the pages' bytes comes before. Elements without a pin are skipped.
  void Release(std::span<const Pinned> pages) {
    Claims claims = 0;
    for (const Pinned& page : pages) {
      if (page.pin == nullptr) continue;
      Atomics::Store(*page.pin, 0, std::memory_order_release);
      claims += ClaimOf(page.bytes);
    }
    // The last access to the lane: whoever sees with it that no pin is left may end the lane.
    account_.Release(claims);
  }

  // Now; from another thread than the owner a figure of some moment ago.
  uint64_t pins() const { return PinsOf(account_.Outstanding()); }
  uint64_t pinned_bytes() const { return BytesOf(account_.Outstanding()); }

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

  // ---- Hit times. Owner only.
  // Whether the lookup of `keys` pages that is about to begin is one to be timed. What every hit
  // pays for the times is this: a subtraction from a word that is the owner's own.
  bool TimesNext(size_t keys) {
    until_timed_ -= static_cast<int64_t>(keys);
    if (until_timed_ > 0) [[likely]]
      return false;
    until_timed_ = shm::kTimedEvery;
    return true;
  }
  void CountHitTime(uint64_t ns) {
    // Bucket i ends at 2^(i + kFirstBits).
    constexpr int kFirstBits = std::bit_width(shm::HitTimeBoundNs(0)) - 1;
    const int bucket = std::clamp(static_cast<int>(std::bit_width(ns)) - kFirstBits, 0,
                                  static_cast<int>(shm::kHitTimeBuckets) - 1);
    shm::LaneTimes& times = channel_.times[index_];
    Add(times.buckets[bucket], 1);
    Add(times.total_ns, ns);
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
  static void Add(shm::Word& word, uint64_t count) {
    Atomics::Store(word, Atomics::Load(word, std::memory_order_relaxed) + count,
                   std::memory_order_relaxed);
  }

  // Makes slack_bytes_ at least `bytes`, from what was released since or from the pool. Keeps no
  // more than two chunks beyond: what lies here no other lane can get.
  bool Refill(uint64_t bytes) {
    slack_bytes_ += account_.Collect();
    const uint64_t chunk = pool_.chunk_bytes();
    if (slack_bytes_ < bytes) slack_bytes_ += pool_.DrawBytes(bytes - slack_bytes_);
    if (slack_bytes_ > bytes + 2 * chunk) {
      pool_.ReturnBytes(slack_bytes_ - bytes - chunk);
      slack_bytes_ = bytes + chunk;
    }
    return slack_bytes_ >= bytes;
  }

  // Finds a line with free words and makes it current. Amortised over the words found it looks at
  // few: a walk starts only when a quarter of the leased words is free, or no line is left. (While
  // lines are shared `free` counts words too that others use, and walks may be longer.)
  bool FindFree() {
    if (leased_count_ > 0 && (free_ = pool_.ZeroWords(current_)) != 0) {
      if (free_ == 0xff) ReturnEmpty();
      return true;
    }
    const uint64_t free = Capacity() - PinsOf(account_.Outstanding());
    if (free * 4 <= Capacity() && Take(pool_.LeaseLine())) return true;
    return (free > 0 && Walk()) || Take(pool_.LeaseLine()) || Take(pool_.ShareLine(leased_));
  }

  uint64_t Capacity() const { return uint64_t{leased_count_} * shm::kPinsPerLine; }

  bool Take(std::optional<uint32_t> line) {
    if (!line) return false;
    leased_[*line / 64] |= uint64_t{1} << *line % 64;
    ++leased_count_;
    current_ = *line;
    // Not zero even if the line is shared and full by now, so that the next step is a try.
    free_ = 0xff;
    return true;
  }

  bool Walk() {
    uint32_t line = current_;
    for (uint32_t step = 0; step < leased_count_; ++step) {
      line = NextLeased(line);
      if ((free_ = pool_.ZeroWords(line)) != 0) {
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

  // Looks at two further lines and returns those wholly free, as long as more than half of the
  // words remain free; not the current one.
  void ReturnEmpty() {
    const uint64_t spare = Capacity() / 2;
    uint64_t free = Capacity() - PinsOf(account_.Outstanding());
    for (int looks = 0; looks < 2 && free >= spare + shm::kPinsPerLine; ++looks) {
      return_cursor_ = NextLeased(return_cursor_);
      if (return_cursor_ == current_ || pool_.ZeroWords(return_cursor_) != 0xff) continue;
      leased_[return_cursor_ / 64] &= ~(uint64_t{1} << return_cursor_ % 64);
      --leased_count_;
      free -= shm::kPinsPerLine;
      pool_.ReturnLine(return_cursor_);
    }
  }

  // Constant after construction.
  PinPool<Atomics>& pool_;
  shm::Channel& channel_;
  const uint32_t index_;
  shm::LaneCounters& counters_;
  shm::Ring& ring_;

  // The owner's.
  uint32_t current_ = 0;      // The line that pins are taken from; leased if any line is.
  uint8_t free_ = 0;          // Its words known to be zero.
  uint64_t slack_bytes_ = 0;  // May be pinned without asking anybody.
  uint64_t head_ = 0;
  uint64_t tail_ = 0;  // Of the ring, as last seen.
  uint32_t leased_count_ = 0;
  uint32_t return_cursor_ = 0;
  int64_t until_timed_ = shm::kTimedEvery;  // Pages to be asked for.
  LineSet leased_ = {};

  PinAccount account_;
};

}  // namespace terrace
