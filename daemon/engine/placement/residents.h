// Residents: what is in the memory of one tier and can be evicted: linked pages and finished
// blocks.
//
// The one place where a slot becomes a linked page or stops being one, so that directory, policy,
// slot state and the space's totals always agree. It also numbers the items that the policy orders.
// Owned by the engine; owner thread only.
#pragma once

#include <cstdint>
#include <unordered_map>
#include <vector>

#include "base/clock.h"
#include "base/status.h"
#include "daemon/engine/catalog.h"
#include "daemon/engine/device/item_numbers.h"
#include "daemon/engine/placement/slabs.h"
#include "daemon/policy/policy.h"

namespace terrace {

class Residents {
 public:
  // `place`: 0 for host memory, n for that of device n. `numbers`: where others too have items in
  // the policy.
  Residents(Catalog& catalog, Slabs& slabs, Policy& policy, const Clock& clock, uint32_t place = 0,
            ItemNumbers* numbers = nullptr)
      : catalog_(catalog),
        slabs_(slabs),
        policy_(policy),
        clock_(clock),
        place_(place),
        numbers_(numbers == nullptr ? own_numbers_ : *numbers) {}

  // An item is a page (slot.slab is not null) or a block.
  struct Item {
    SlotRef slot;
    ArenaId block = 0;
    uint64_t block_bytes = 0;
  };
  // Null for an item of somebody else.
  const Item* item(ItemId id) const {
    if (id >= items_.size()) return nullptr;
    const Item& item = items_[id];
    return item.slot.slab == nullptr && item.block == 0 ? nullptr : &item;
  }
  uint64_t count() const { return count_; }
  Policy& policy() { return policy_; }

  // Puts a busy slot into the directory under its next sequence. On failure the slot is as it was:
  // kAlreadyExists, or kExhausted when the directory or the slot's sequence numbers are full.
  Status Link(SlotRef slot, const PageName& name, const PageFacts& facts);
  // Likewise, of a page that nobody asked for: it leaves before those that somebody did.
  Status LinkUnasked(SlotRef slot, const PageName& name, const PageFacts& facts);
  // A page taken out a moment ago, whose bytes nobody touched: under its old name again.
  Status Relink(SlotRef slot);
  // Out of the directory, into kLimbo.
  void Unlink(SlotRef slot);
  // What a client's ring says was read. Hostile: anything but a linked page of the tenant, in this
  // tier, is ignored.
  void Touch(TenantId tenant, shm::Handle handle);

  void AddBlock(ArenaId arena, uint64_t bytes);
  void TouchBlock(ArenaId arena);
  // Nothing if it is no item.
  void RemoveBlock(ArenaId arena);

  uint64_t BlockBytes(ArenaId arena) const { return items_[blocks_.at(arena)].block_bytes; }

  // The policy's items are exactly the linked slots and `blocks_`; directories agree with those.
  Status CheckInvariants() const;

 private:
  Status LinkAs(SlotRef slot, const PageName& name, const PageFacts& facts, bool asked_for);
  ItemId NewItem(const Item& item, const ItemTraits& traits);
  void EraseItem(ItemId id);

  Catalog& catalog_;
  Slabs& slabs_;
  Policy& policy_;
  const Clock& clock_;
  const uint32_t place_;
  std::vector<Item> items_;
  uint64_t count_ = 0;
  ItemNumbers own_numbers_;
  ItemNumbers& numbers_;
  std::unordered_map<ArenaId, ItemId> blocks_;
};

}  // namespace terrace
