// Slabs: every slab of every tier, found by arena, and the slots in them with the books of each
// tier and class. What gives memory to slabs and takes it back, HostMemory and DevicePages, is the
// owner of classes; pins, policies and eviction reach slots through here, whatever their tier.
//
// It knows nothing of budgets, directories, pins and policies: whoever sets a slot to kEmpty has
// made sure that nobody reads or writes it. Owned by the engine; owner thread only.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <vector>

#include "base/clock.h"
#include "base/status.h"
#include "daemon/engine/placement/slab.h"

namespace terrace {

// Of one tier.
struct SlabBooks {
  uint64_t slots[kSlotStates] = {};  // By state; empty ones whether they have memory or not.
  uint64_t bytes[kSlotStates] = {};
  uint64_t slab_bytes = 0;  // Resident, of slabs.
};

// All slabs of one tier, tenant and page size.
struct SlabClass {
  SlabClass(uint32_t its_tenant, const SlabShape& its_shape, SlabBooks& books_of_tier,
            uint32_t its_place = 0)
      : tenant(its_tenant), place(its_place), shape(its_shape), books(books_of_tier) {}

  const uint32_t tenant;
  const uint32_t place;  // As in PageName: 0 is host memory, n device n.
  const SlabShape shape;
  SlabBooks& books;
  SlabSet with_ready{SlabTrait::kReady};
  SlabSet with_hollow{SlabTrait::kHollow};
  SlabSet with_idle{SlabTrait::kIdle};
  uint32_t slabs = 0;
  uint64_t ready_slots = 0;
  uint64_t slots[kSlotStates] = {};  // By state, as in SlabBooks.
  uint64_t resident_bytes = 0;
  // Demand, for the reserve that is kept ahead of it (Placement).
  uint64_t recent_slots = 0;  // Granted lately, decaying.
  MonotonicNs last_demand = 0;
};

class Slabs {
 public:
  // ---- Slabs
  Slab* Add(ArenaId arena, SlabClass& of, bool resident);
  // None of its slots is in use by anybody.
  void Remove(Slab* slab);
  // Null when there is no such slab (any more).
  Slab* Find(ArenaId arena) const {
    const auto& slabs = arena < kFirstDeviceSlabId ? of_host_ : of_devices_;
    const ArenaId at = arena < kFirstDeviceSlabId ? arena : arena - kFirstDeviceSlabId;
    return at < slabs.size() ? slabs[at].get() : nullptr;
  }
  // The slot that an extent of a pin names, or null for anything else than a slot of the tenant.
  std::optional<SlotRef> FindSlot(uint32_t tenant, uint64_t extent) const;
  // Of a place: host memory, or a device.
  void Visit(uint32_t place, const std::function<void(Slab&)>& visitor) const;

  // ---- Slots
  // A slot with memory, now granted; nullopt when the class has none ready.
  std::optional<SlotRef> Take(SlabClass& of);
  void SetState(SlotRef slot, SlotState state);
  // Empty, or retired if its sequence numbers are used up.
  void Free(SlotRef slot);
  // From here on no slot of the slab is handed out.
  void Close(Slab& slab);
  // Only of a grain without busy slots.
  void SetResident(Slab& slab, uint32_t grain, bool resident);

  // Recounts what the books of a tier and of its classes say; an error names the first difference.
  using ClassKey = std::pair<uint32_t, uint32_t>;  // Tenant, page bytes.
  using Classes = std::map<ClassKey, std::unique_ptr<SlabClass>>;
  Status CheckBooks(uint32_t place, const SlabBooks& books, const Classes& classes) const;

 private:
  static void UpdateSets(Slab& slab);

  std::vector<std::unique_ptr<Slab>> of_host_;     // By arena,
  std::vector<std::unique_ptr<Slab>> of_devices_;  // counted from kFirstDeviceSlabId.
};

}  // namespace terrace
