// Slab: one arena carved into slots of one page size, and what each slot holds.
//
// Owned by HostMemory, which keeps the books; owner thread only. A slab knows nothing of budgets,
// directories or policies.
//
// Memory comes and goes in *grains*, the smallest runs of slots that fill whole 4096-byte pages,
// and preferably in *windows*, runs of grains that fill whole huge pages: punching less splits one.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <vector>

#include "daemon/engine/tenant_index.h"
#include "daemon/policy/policy.h"
#include "proto/shared_memory.h"
#include "tiers/extent.h"

namespace terrace {

struct SlabShape {
  uint32_t page_bytes = 0;
  uint32_t slots = 0;
  uint32_t grain_slots = 0;
  uint32_t window_grains = 0;
  uint64_t arena_bytes = 0;  // slots * page_bytes, rounded up to 4096.

  // `slab_bytes` is aimed at; a slab has at least one slot. `window_bytes` is the size of a huge
  // page.
  static SlabShape Of(uint32_t page_bytes, uint64_t slab_bytes, uint64_t window_bytes);
  uint32_t grains() const { return (slots + grain_slots - 1) / grain_slots; }
  uint64_t grain_bytes() const { return uint64_t{grain_slots} * page_bytes; }
  // Of `count` grains from `first`; what rounding added at the arena's end belongs to its last
  // grain.
  uint64_t BytesOf(uint32_t first, uint32_t count) const;
};

enum class SlotState : uint8_t {
  kEmpty,      // No page. Has memory if its grain is resident.
  kGranted,    // A client writes it.
  kAbandoned,  // The grant's deadline passed, but its writer may still write.
  kFilling,    // A page is being read into it from the store.
  kLinked,     // In the directory.
  kLimbo,      // Out of the directory, but somebody may have it pinned.
  kRetired,    // Its sequence numbers are used up: never given out again.
};
inline constexpr int kSlotStates = 7;
constexpr bool IsBusy(SlotState state) {
  return state != SlotState::kEmpty && state != SlotState::kRetired;
}

// What is told of a page beside its name, and goes with it to the store and back.
struct PageFacts {
  uint32_t valid_tokens = 0;
  uint32_t position = 0;  // Pages before it in its chain.
  uint64_t generation = 0;
  int64_t committed_ms = 0;  // Unix time.
  Digest parent;             // The key that it extends; zero: none, or not told.
};

struct Slot {
  PageName name;           // While linked, and after it until the slot is free.
  PageFacts facts;         // Likewise.
  uint32_t sequence = 0;   // Of its last stay in the directory.
  ItemId item = 0;         // While linked.
  uint16_t transfers = 0;  // Of the store, out of its memory or into it, that have not ended.
  uint16_t holds = 0;      // Somebody waits for the page, or it waits to be written: it stays.
  SlotState state = SlotState::kEmpty;
  bool victim = false;     // Chosen by the eviction that is running.
  bool read = false;       // Since it was committed, as far as rings tell.
  bool queued = false;     // To be written to the store.
  bool unspilled = false;  // Counted as not written to it.
  bool overdue = false;    // Its transfer is answered, and the device still has the memory.
};

struct SlabClass;

// Which sets of its class a slab is in; it remembers its place in each (SlabSet).
enum class SlabTrait : uint8_t {
  kReady,   // Has an empty slot with memory.
  kHollow,  // Has a grain without memory.
  kIdle,    // Has a grain with memory but without a page.
};
inline constexpr int kSlabTraits = 3;
inline constexpr uint32_t kNowhere = ~uint32_t{0};

class Slab {
 public:
  Slab(ArenaId arena, uint32_t tenant, SlabClass* owner, const SlabShape& shape, bool resident);

  ArenaId arena() const { return arena_; }
  uint32_t tenant() const { return tenant_; }
  SlabClass* owner() const { return owner_; }
  const SlabShape& shape() const { return shape_; }

  Slot& slot(uint32_t index) { return slots_[index]; }
  const Slot& slot(uint32_t index) const { return slots_[index]; }
  shm::Handle HandleOf(uint32_t index) const {
    return shm::MakeHandle(arena_, index, slots_[index].sequence);
  }
  void SetState(uint32_t index, SlotState state);
  // From here on none of its slots is ready.
  void Close();
  bool closed() const { return closed_; }
  // An empty slot with memory; it stays so until SetState.
  std::optional<uint32_t> FindReady();
  uint32_t ready() const { return ready_; }
  std::optional<uint32_t> FindHollowGrain();

  uint32_t GrainOf(uint32_t slot) const { return slot / shape_.grain_slots; }
  uint32_t SlotsEnd(uint32_t grain) const {
    return std::min(shape_.slots, (grain + 1) * shape_.grain_slots);
  }
  bool resident(uint32_t grain) const { return resident_[grain]; }
  uint32_t busy(uint32_t grain) const { return busy_[grain]; }
  // Only of a grain without busy slots.
  void SetResident(uint32_t grain, bool resident);
  bool Idle(uint32_t grain) const { return resident_[grain] && busy_[grain] == 0; }
  uint32_t resident_grains() const { return resident_grains_; }
  uint32_t idle_grains() const { return idle_grains_; }
  uint64_t resident_bytes() const;
  Extent ExtentOf(uint32_t first_grain, uint32_t count) const;

  // ---- Pins. A scan stamps what it finds, each client with a number of its own, higher than all
  // before. Returns whether this stamp is new to the slot.
  bool Stamp(uint32_t slot, uint64_t stamp) {
    last_stamp_ = stamp;
    if (stamps_[slot] == stamp) return false;
    stamps_[slot] = stamp;
    return true;
  }
  void PrefetchStamp(uint32_t slot) const { __builtin_prefetch(&stamps_[slot], 1); }
  uint64_t stamp(uint32_t slot) const { return stamps_[slot]; }
  uint64_t last_stamp() const { return last_stamp_; }

  bool Has(SlabTrait trait) const;
  uint32_t& place(SlabTrait trait) { return places_[static_cast<int>(trait)]; }

 private:
  void UpdateReady(uint32_t slot);

  const ArenaId arena_;
  const uint32_t tenant_;
  SlabClass* const owner_;
  const SlabShape shape_;
  std::vector<Slot> slots_;
  std::vector<uint64_t> stamps_;
  std::vector<uint64_t> ready_bits_;
  std::vector<uint32_t> busy_;  // Busy slots of each grain.
  std::vector<bool> resident_;  // Of each grain.
  bool closed_ = false;
  uint32_t ready_ = 0;
  uint32_t ready_cursor_ = 0;   // The word of ready_bits_ where the last search ended.
  uint32_t hollow_cursor_ = 0;  // The grain where the last search ended.
  uint32_t resident_grains_ = 0;
  uint32_t idle_grains_ = 0;
  uint64_t last_stamp_ = 0;
  uint32_t places_[kSlabTraits] = {kNowhere, kNowhere, kNowhere};
};

// A place in a slab.
struct SlotRef {
  Slab* slab = nullptr;
  uint32_t index = 0;
  Slot& operator*() const { return slab->slot(index); }
  Slot* operator->() const { return &slab->slot(index); }
};

// The slabs of a class that have a trait; each change O(1).
class SlabSet {
 public:
  explicit SlabSet(SlabTrait trait) : trait_(trait) {}
  // Adds or removes the slab as it has the trait now.
  void Update(Slab* slab);
  void Remove(Slab* slab);
  const std::vector<Slab*>& slabs() const { return slabs_; }
  bool empty() const { return slabs_.empty(); }

 private:
  const SlabTrait trait_;
  std::vector<Slab*> slabs_;
};

}  // namespace terrace
