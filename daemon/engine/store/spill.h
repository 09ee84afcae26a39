// Spill: how pages come from memory into the store.
//
// A committed page is offered; what admission takes waits in a queue and is written a batch at a
// time, neighbours in the queue to places that are neighbours, so that the pages of one commit are
// read together later. While the device reads a page's bytes its slot is in transfer, and stays
// whatever happens to the page: what was dropped meanwhile is erased as soon as it is written, and
// so is what is of an old generation by then. Owned by the engine; owner thread only.
//
// Limits, in StoreOptions: pages that wait, pages and bytes being written. At the first a page is
// not written, and counted; at the others it waits.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <unordered_map>
#include <vector>

#include "base/clock.h"
#include "base/status.h"
#include "daemon/engine/catalog.h"
#include "daemon/engine/placement/evictor.h"
#include "daemon/engine/placement/host_memory.h"
#include "daemon/engine/store/admission.h"
#include "daemon/engine/store/stored.h"
#include "daemon/policy/sketch.h"
#include "tiers/page_store.h"

namespace terrace {

struct StoreParts {
  Stored& stored;
  Catalog& catalog;
  HostMemory& memory;
  HostTier& host;
  PageStore& store;
  FrequencySketch& sketch;
  const Clock& clock;
};

// Of a page's key, for the sketch.
inline uint64_t SketchItem(uint64_t key_word, uint32_t part) {
  return key_word ^ part * 0x9e3779b97f4a7c15;
}

class Spill final : public StoredCopies {
 public:
  Spill(const StoreOptions& options, const StoreParts& parts);

  // A page was linked that a client wrote. O(1).
  void Offer(SlotRef slot);
  // Has a linked page written whatever admission says, if the budget pays for it. `saved` gets kOk
  // when it is durable. It may be called from within.
  using Saved = std::function<void(Code)>;
  void Persist(SlotRef slot, Saved saved);
  // Starts what can be started; true if more could have been.
  bool Pump();

  // ---- StoredCopies
  bool Has(SlotRef slot) const override;
  bool Save(SlotRef slot, bool regardless) override;
  void Lost(SlotRef slot) override;

  Stored::Watermarks watermarks() const;
  // ---- Figures
  const Amount& spilled() const { return spilled_; }
  const std::array<uint64_t, kUnspilled>& unspilled() const { return unspilled_; }
  uint64_t queued_pages() const { return queue_.size(); }
  uint64_t writing_pages() const { return writing_pages_; }
  uint64_t writing_bytes() const { return writing_bytes_; }
  uint64_t budget_left() { return budget_.Left(parts_.clock.Now()); }

 private:
  // A page that waits, by name and place: it may have left memory when its turn comes.
  struct Item {
    TenantId tenant = 0;
    uint64_t extent = 0;
    PageName name;
    uint64_t charged_bytes = 0;  // Of the budget.
    Saved saved;                 // If somebody waits for it;
    bool held = false;           // then the slot is held.
  };
  // A page in the catalogue that gets a place next.
  struct Ready {
    ItemId id = 0;
    SlotRef slot;
    uint32_t bytes = 0;
    uint64_t charged_bytes = 0;
  };
  // A page that is being written.
  struct Writing {
    TenantId tenant = 0;
    PageName name;
    std::vector<Saved> saved;
  };

  const Space* SpaceOf(TenantId tenant, const PageName& name) const;
  uint64_t PlaceBytes(SlotRef slot) const {
    return parts_.store.PlaceBytes(slot.slab->shape().page_bytes);
  }
  Unspilled Judge(SlotRef slot);
  Item ItemOf(SlotRef slot);
  bool Paid(SlotRef slot) const;
  // Whether the item can be written now; what it came to otherwise is done here.
  enum class Turned : uint8_t { kReady, kWaits, kOver };
  Turned Prepare(Item* item, Ready* ready);
  Turned PrepareSpace(const Space& space, TenantId tenant, Item* item, SpaceNo* number);
  // The item leaves the queue, its page written or not.
  void EndItem(Item* item);
  Turned Refuse(Item* item, Unspilled why, Code code);
  void Start(const std::vector<Ready>& ready);
  void NoPlace(const Ready& ready);
  void Written(ItemId id, const Result<uint64_t>& serial);
  void Ended(SlotRef slot);
  bool StillRight(const Writing& writing, uint64_t generation) const;

  const StoreOptions options_;
  const StoreParts parts_;
  WriteBudget budget_;
  std::deque<Item> queue_;
  std::unordered_map<ItemId, Writing> writes_;  // Until they are answered.
  uint64_t writing_pages_ = 0;                  // Until they have ended.
  uint64_t writing_bytes_ = 0;
  Amount spilled_;
  std::array<uint64_t, kUnspilled> unspilled_ = {};
};

}  // namespace terrace
