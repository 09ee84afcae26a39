// HostMemory: the host tier's one budget, and the slabs and blocks that it pays for.
//
// It hands out slots, gives memory to slabs and takes it back, and keeps the books: what is
// resident never exceeds the capacity, together with the tier's reserve of blanks. It knows nothing
// of directories, pins and policies: whoever sets a slot to kEmpty has made sure that nobody reads
// or writes it. Owned by the engine; owner thread only.
//
// Limits: kMaxClasses page sizes a tenant; arenas as many as the tier creates.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <unordered_map>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "base/status.h"
#include "daemon/engine/placement/slab.h"
#include "tiers/tier.h"

namespace terrace {

struct HostMemoryOptions {
  uint64_t capacity_bytes = 0;
  uint64_t slab_bytes = 0;
  uint64_t huge_page_bytes = 0;
  uint64_t pretouch_bytes = 0;
};

// All slabs of one tenant and page size.
struct SlabClass {
  SlabClass(uint32_t its_tenant, const SlabShape& its_shape)
      : tenant(its_tenant), shape(its_shape) {}

  const uint32_t tenant;
  const SlabShape shape;
  SlabSet with_ready{SlabTrait::kReady};
  SlabSet with_hollow{SlabTrait::kHollow};
  SlabSet with_idle{SlabTrait::kIdle};
  uint32_t slabs = 0;
  uint64_t ready_slots = 0;
  uint64_t slots[kSlotStates] = {};  // By state, as in HostBooks.
  uint64_t resident_bytes = 0;
  // Demand, for the reserve that is kept ahead of it (Placement).
  uint64_t recent_slots = 0;  // Granted lately, decaying.
  MonotonicNs last_demand = 0;
};

struct HostBooks {
  uint64_t slots[kSlotStates] = {};  // By state; empty ones whether they have memory or not.
  uint64_t bytes[kSlotStates] = {};
  uint64_t slab_bytes = 0;   // Resident, of slabs.
  uint64_t block_bytes = 0;  // Of blocks, whole.
  uint64_t used() const { return slab_bytes + block_bytes; }
};

class HostMemory {
 public:
  static constexpr uint32_t kMaxClasses = 256;

  HostMemory(const HostMemoryOptions& options, HostTier& tier);

  // ---- Classes and slabs
  // `exhausted` beyond kMaxClasses of the tenant.
  Result<SlabClass*> ClassOf(uint32_t tenant, uint32_t page_bytes);
  using ClassKey = std::pair<uint32_t, uint32_t>;  // Tenant, page bytes.
  const std::map<ClassKey, std::unique_ptr<SlabClass>>& classes() const { return classes_; }
  // Null when there is no such slab (any more).
  Slab* Find(ArenaId arena) const {
    return arena < by_arena_.size() ? by_arena_[arena].get() : nullptr;
  }
  // The slot that an extent of a pin names, or null for anything else than a slot of the tenant.
  std::optional<SlotRef> FindSlot(uint32_t tenant, uint64_t extent) const;
  const std::vector<std::unique_ptr<Slab>>& slabs_by_arena() const { return by_arena_; }

  // ---- Slots
  // A slot with memory, now granted; nullopt when the class has none ready.
  std::optional<SlotRef> Take(SlabClass& of);
  void SetState(SlotRef slot, SlotState state);
  // Empty, or retired if its sequence numbers are used up.
  void Free(SlotRef slot);

  // ---- Memory
  // Gives the class more memory, within the budget: populates a window or a grain, of a new slab if
  // need be. False when the budget or the tier has no more.
  bool Extend(SlabClass& of);
  // Takes memory of grains without pages back until `bytes` of it came together; returns how much.
  // Whole windows first.
  uint64_t Punch(SlabClass& of, uint64_t bytes);
  // Slabs without a busy slot and without memory.
  std::vector<Slab*> VacantSlabs() const;
  // Of a vacant slab.
  void ReleaseSlab(Slab* slab);
  // A block that the budget has room for; it is charged whole.
  Result<HostTier::Created> CreateBlock(size_t bytes);
  void ReleaseBlock(ArenaId arena);
  std::optional<uint64_t> BlockBytes(ArenaId arena) const;

  // ---- Budget
  uint64_t capacity() const { return options_.capacity_bytes; }
  void SetCapacity(uint64_t bytes);
  uint64_t room() const { return books_.used() < capacity() ? capacity() - books_.used() : 0; }
  // What is missing for `bytes` of room; more than `bytes` while the capacity is exceeded.
  uint64_t MissingFor(uint64_t bytes) const {
    const uint64_t wanted = books_.used() + bytes;
    return wanted > capacity() ? wanted - capacity() : 0;
  }
  // Lets the tier keep blanks for what is unused. Cheap when nothing much changed.
  void RaiseReserve();
  // Tells the tier again what it shall keep: it stops after a failure until it is told.
  void RepeatReserve();
  const HostBooks& books() const { return books_; }
  Status CheckInvariants() const;

 private:
  // Keeps blanks + used + `coming` within the capacity.
  void TrimReserve(uint64_t coming);
  Result<Slab*> CreateSlab(SlabClass& of);
  Status PopulateGrains(Slab& slab, uint32_t first, uint32_t end);
  void BookLost(Slab& slab, uint32_t first, uint32_t end);
  uint64_t PunchSlab(Slab& slab, uint64_t bytes, uint32_t unit_grains);
  uint64_t PunchGrains(Slab& slab, uint32_t first, uint32_t end);
  void SetResident(Slab& slab, uint32_t grain, bool resident);
  void UpdateSets(Slab& slab);

  HostMemoryOptions options_;
  HostTier& tier_;
  std::map<ClassKey, std::unique_ptr<SlabClass>> classes_;
  std::vector<std::unique_ptr<Slab>> by_arena_;
  std::unordered_map<ArenaId, uint64_t> blocks_;
  HostBooks books_;
  uint64_t reserve_bytes_ = 0;  // What the tier was told last.
};

}  // namespace terrace
