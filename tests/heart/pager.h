// Test support: an evictor that works without rest.
//
// Pager owns the slots of one arena and follows the evictor's side of docs/shared_memory.md through
// TenantIndex: it publishes, evicts, drops and fences pages as chance will have it. What pages
// consist of is left to `Pages`, which has kPageBytes, Key(number) and Write(slot, content). It is
// no part of the daemon, whose evictor is daemon/engine/placement: it does the same in a few lines,
// so that threads and processes can race against it at full speed, fences included.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <vector>

#include "base/check.h"
#include "base/random.h"
#include "daemon/engine/tenant_index.h"
#include "libclient/directory_view.h"
#include "tests/heart/plain_memory.h"

namespace terrace {

// What a page says about itself.
struct PageContent {
  uint64_t key = 0;
  uint64_t generation = 0;
  uint64_t nonce = 0;  // Of the writing: two writings of one key differ.

  friend bool operator==(const PageContent&, const PageContent&) = default;
};

template <class Pages>
class Pager {
 public:
  static constexpr uint32_t kArena = 1;
  static constexpr uint32_t kGeneration = 7;  // Index of the generation word.

  // Every other page lies on that device; 0: none does.
  Pager(TenantIndex& index, Pages& pages, uint32_t slots, uint64_t seed, uint32_t device = 0)
      : index_(index), pages_(pages), device_(device), random_(seed), slots_(slots) {
    OpenSpace();
  }

  const SpaceRef& space() const { return space_; }
  uint64_t evicted() const { return evicted_; }
  uint64_t linked_again() const { return linked_again_; }
  size_t in_limbo() const { return CountOf(State::kLimbo); }

  // A page of that key, if there is a slot for it or one can be evicted.
  void Publish(uint64_t key) {
    if (index_.Find(NameOf(key))) return;
    uint32_t slot = FreeSlot();
    if (slot == kNone && Evict(4) > 0) slot = FreeSlot();
    if (slot == kNone) return;
    Slot& place = slots_[slot];
    place.content = {key, space_.generation, ++nonce_};
    place.name = NameOf(key);
    pages_.Write(slot, place.content);
    Link(slot);
  }

  // Steps 1 to 3 of the evictor. Returns how many slots became free.
  uint32_t Evict(uint32_t wanted) {
    Scan();
    victims_.clear();
    const auto start = static_cast<uint32_t>(random_.Below(slots_.size()));
    for (uint32_t i = 0; i < slots_.size() && victims_.size() < wanted; ++i) {
      const auto slot = static_cast<uint32_t>((start + i) % slots_.size());
      if (slots_[slot].state == State::kLinked && !pinned(slot)) victims_.push_back(slot);
    }
    if (victims_.empty()) return 0;
    for (const uint32_t slot : victims_) {
      TERRACE_CHECK(index_.Unlink(slots_[slot].name, slots_[slot].handle));
    }
    Scan();
    uint32_t freed = 0;
    for (const uint32_t slot : victims_) {
      if (pinned(slot)) {
        Link(slot);
        ++linked_again_;
      } else {
        slots_[slot].state = State::kFree;
        ++freed;
      }
    }
    evicted_ += freed;
    return freed;
  }

  // The page shall be found no more, pinned or not.
  void Drop(uint64_t key) {
    const auto page = index_.Find(NameOf(key));
    if (!page) return;
    const uint32_t slot = shm::SlotOf(page->handle);
    TERRACE_CHECK(index_.Unlink(page->name, page->handle));
    slots_[slot].state = State::kLimbo;
  }

  // Invalidates all: the generation word moves, the space goes, pages follow.
  void Fence() {
    index_.SetGeneration(kGeneration, space_.generation + 1);
    ++space_.generation;
    Reopen();
  }

  // The space is closed and opened anew; its pages go.
  void Reopen() {
    index_.RetireSpace(space_.slot);
    for (Slot& slot : slots_) {
      if (slot.state != State::kLinked) continue;
      TERRACE_CHECK(index_.Unlink(slot.name, slot.handle));
      slot.state = State::kLimbo;
    }
    OpenSpace();
  }

  void ReapLimbo() {
    if (in_limbo() == 0) return;
    Scan();
    for (uint32_t slot = 0; slot < slots_.size(); ++slot) {
      if (slots_[slot].state == State::kLimbo && !pinned(slot)) {
        slots_[slot].state = State::kFree;
      }
    }
  }

  // Marks the slots that some client reads; answers how many pins there are.
  uint64_t Scan() {
    ++scan_;
    uint64_t pins = 0;
    index_.ScanPins([&](ClientId, std::span<const uint64_t> extents) {
      pins += extents.size();
      for (const uint64_t extent : extents) {
        const shm::Handle handle = extent << shm::kSequenceBits;
        const uint32_t slot = shm::SlotOf(handle);
        if (shm::ArenaOf(handle) == kArena && slot < slots_.size()) slots_[slot].pinned_at = scan_;
      }
    });
    return pins;
  }

 private:
  static constexpr uint32_t kNone = UINT32_MAX;

  enum class State : uint8_t { kFree, kLinked, kLimbo };
  struct Slot {
    State state = State::kFree;
    uint32_t sequence = 1;
    uint64_t pinned_at = 0;  // The last scan that found a pin.
    shm::Handle handle = 0;
    PageName name;
    PageContent content;
  };

  bool pinned(uint32_t slot) const { return slots_[slot].pinned_at == scan_; }
  PageName NameOf(uint64_t key) const {
    return {space_.slot, space_.epoch, 0, Pages::Key(key), key % 2 == 0 ? 0 : device_};
  }

  void OpenSpace() {
    auto slot = index_.AddSpace(KeyOf(space_.generation), kGeneration, 4096, &space_.epoch);
    TERRACE_CHECK(slot.has_value());
    space_.slot = *slot;
    space_.generation_index = kGeneration;
  }

  void Link(uint32_t slot) {
    Slot& place = slots_[slot];
    place.handle = shm::MakeHandle(kArena, slot, ++place.sequence);
    const Status linked = index_.Link({.name = place.name,
                                       .handle = place.handle,
                                       .bytes = Pages::kPageBytes,
                                       .valid_tokens = 16});
    // The table may be full while it waits to grow; the page is lost then.
    place.state = linked.ok() ? State::kLinked : State::kLimbo;
  }

  size_t CountOf(State state) const {
    return static_cast<size_t>(std::count_if(slots_.begin(), slots_.end(),
                                             [&](const Slot& s) { return s.state == state; }));
  }
  uint32_t FreeSlot() {
    const auto start = static_cast<uint32_t>(random_.Below(slots_.size()));
    for (uint32_t i = 0; i < slots_.size(); ++i) {
      const auto slot = static_cast<uint32_t>((start + i) % slots_.size());
      if (slots_[slot].state == State::kFree) return slot;
    }
    return kNone;
  }

  TenantIndex& index_;
  Pages& pages_;
  const uint32_t device_;
  Random random_;
  std::vector<Slot> slots_;
  std::vector<uint32_t> victims_;
  uint64_t scan_ = 0;
  SpaceRef space_;
  uint64_t nonce_ = 0;
  uint64_t evicted_ = 0;
  uint64_t linked_again_ = 0;
};

// Links pages of a space of their own, so that the directory grows: up to `limit` of them.
class Growth {
 public:
  Growth(TenantIndex& index, uint64_t limit) : index_(index), limit_(limit) {
    auto slot = index.AddSpace(KeyOf(1u << 20), 0, 4096, &epoch_);
    TERRACE_CHECK(slot.has_value());
    slot_ = *slot;
  }
  void Link(uint64_t pages) {
    for (; pages > 0 && linked_ < limit_; --pages, ++linked_) {
      const auto slot = static_cast<uint32_t>(linked_ % shm::kMaxSlots);
      (void)index_.Link({.name = {slot_, epoch_, 0, KeyOf(linked_)},
                         .handle = shm::MakeHandle(2, slot, 1),
                         .bytes = 1,
                         .valid_tokens = 1});
    }
  }
  uint64_t linked() const { return linked_; }

 private:
  TenantIndex& index_;
  uint64_t limit_;
  uint32_t slot_ = 0;
  uint32_t epoch_ = 0;
  uint64_t linked_ = 0;
};

}  // namespace terrace
