// Evictor: takes pages and blocks out of the memory of one tier that nobody holds.
//
// One pass: read the pins; let the policy name victims, of which pinned ones are in use; unlink the
// victims; read the pins again; what was pinned meanwhile is linked again under its slot's next
// sequence, the rest is free. A reader that pinned before the second reading is seen by it, one
// that pins after it finds the page gone (docs/shared_memory.md). The two readings serve the whole
// pass, so passes are worth making large where there are many pins. Owned by the engine; owner
// thread only.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <set>
#include <vector>

#include "base/clock.h"
#include "daemon/engine/placement/pins.h"
#include "daemon/engine/placement/residents.h"
#include "daemon/engine/placement/slabs.h"

namespace terrace {

// Who can give up blocks of weights.
class BlockOwner {
 public:
  virtual ~BlockOwner() = default;
  virtual bool Held(ArenaId arena) const = 0;
  // It is not held. Its memory's owner and Residents know nothing of it afterwards.
  virtual void Evict(ArenaId arena) = 0;
};

// What comes of having a page written.
enum class Saving : uint8_t {
  kUnderWay,    // It will leave memory without loss later.
  kNotThisOne,  // It is not worth it, or has waited for too long.
  kNoneNow,     // Nor would any other be taken: no device, no budget, too much that waits.
};

// What the store has of pages in memory, and whether it may take them.
class StoredCopies {
 public:
  virtual ~StoredCopies() = default;
  // Of a linked page, or of one unlinked a moment ago.
  virtual bool Has(SlotRef slot) const = 0;
  // Has the page written, whatever it is worth with `regardless`, or is about it already.
  virtual Saving Save(SlotRef slot, bool regardless) = 0;
  // The page left memory and the store does not have it.
  virtual void Lost(SlotRef slot) = 0;
  // Pages whose writes have ended since the start: others may leave by now.
  virtual uint64_t ended_writes() const = 0;
};

// What becomes of pages that the store does not have. Without a store all are alike.
enum class Unstored : uint8_t {
  kAsOthers,
  kLast,        // They go after those that it has, among the few next in the policy's order.
  kWriteFirst,  // They are written and go in a later pass; at once if they are not worth it.
  kKeep,        // Likewise, and stay if they cannot be written.
};

struct EvictionGoal {
  // Slots of this class: its own pages, or memory for them from others, whichever is older.
  // Null: memory.
  SlabClass* of = nullptr;
  // Of the class; or bytes of whole grains and blocks.
  uint64_t wanted = 0;
  // What it has without evicting: memory that can be turned into slots. Negative while the capacity
  // is exceeded by more.
  int64_t have_bytes = 0;
  // Memory of others is of no use (the tier refuses to populate).
  bool own_only = false;
  // Without `of`: nothing is evicted unless all that is wanted can be.
  bool all_or_nothing = false;
  // Without `of`: bytes of pages count even where their grain keeps others.
  bool any_page = false;
  EvictionReason reason = EvictionReason::kPages;  // For the count.
  // Without `of`: no more pages and blocks than this.
  uint64_t limit = UINT64_MAX;
  // Pages and blocks looked at. What is in use is not looked at again soon.
  uint64_t looks = UINT64_MAX;
  Unstored unstored = Unstored::kAsOthers;
};

struct EvictionDone {
  uint64_t pages = 0;
  uint64_t blocks = 0;
  uint64_t bytes = 0;  // Of these.
  uint64_t looked = 0;
  bool refused = false;  // The walk ended early: the store took no more.
};

class Evictor {
 public:
  Evictor(Slabs& slabs, Residents& residents, Pins& pins, BlockOwner& blocks, const Clock& clock)
      : slabs_(slabs), residents_(residents), pins_(pins), blocks_(blocks), clock_(clock) {}
  // Null: there is no store.
  void SetStore(StoredCopies* store) { store_ = store; }

  EvictionDone Pass(const EvictionGoal& goal);
  // Likewise, over the pages of one slab.
  EvictionDone Empty(Slab& slab, EvictionReason reason, Unstored unstored);

  // Pages that the last pass left for a later one because they are being written to the store.
  uint64_t deferred_pages() const { return deferred_pages_; }
  // Of the store, since the start.
  uint64_t ended_writes() const { return store_ == nullptr ? 0 : store_->ended_writes(); }
  uint64_t evicted_pages() const { return evicted_pages_; }
  uint64_t found_pinned() const { return found_pinned_; }
  // Since the start, by EvictionReason.
  using ByReason = std::array<Amount, kEvictionReasons>;
  ByReason evicted_of(TenantId tenant) const {
    return tenant < evicted_of_.size() ? evicted_of_[tenant] : ByReason{};
  }
  const ByReason& evicted_blocks() const { return evicted_blocks_; }

 private:
  void Begin(const EvictionGoal& goal);
  Policy::Verdict Offer(ItemId id);
  Policy::Verdict OfferBlock(ArenaId arena);
  Policy::Verdict OfferPage(SlotRef slot);
  Policy::Verdict TakeForGoal(SlotRef slot);
  // What to do about a page that can be evicted but is not in the store; nullopt: evict it.
  std::optional<Policy::Verdict> DecideUnstored(SlotRef slot);
  void Defer(SlotRef slot);
  // Evicts after all what was passed over, as far as it takes.
  void TakePassedOver();
  bool Satisfied() const;
  // Memory that `of` can get from elsewhere once the choice is carried out.
  uint64_t Elsewhere() const;
  // Whether carrying the choice out brings anything.
  bool Useful() const;
  bool Evictable(SlotRef slot);
  // Chooses every page of the grain, and of its window where that is possible too, so that their
  // memory can be taken back. False, and nothing chosen, if a page of the grain has to stay.
  bool TakeGrain(SlotRef slot);
  bool GrainEvictable(Slab& slab, uint32_t grain);
  void TakePagesOf(Slab& slab, uint32_t grain);
  void TakePage(SlotRef slot);
  EvictionDone CarryOut();

  Slabs& slabs_;
  Residents& residents_;
  Pins& pins_;
  BlockOwner& blocks_;
  const Clock& clock_;
  StoredCopies* store_ = nullptr;

  // Of the pass that is running.
  EvictionGoal goal_;
  std::vector<SlotRef> chosen_pages_;
  std::vector<ArenaId> chosen_blocks_;
  std::set<TenantId> scanned_;
  uint64_t own_slots_ = 0;
  uint64_t freed_bytes_ = 0;          // Memory that can be taken back.
  std::vector<SlotRef> passed_over_;  // In the policy's order.
  bool passing_over_ = false;
  uint64_t looked_ = 0;
  bool refused_ = false;
  uint64_t deferred_pages_ = 0;
  uint64_t deferred_slots_ = 0;  // Of those: of the class,
  uint64_t deferred_bytes_ = 0;  // and of others.

  uint64_t evicted_pages_ = 0;
  std::vector<ByReason> evicted_of_;  // By tenant.
  ByReason evicted_blocks_ = {};
  uint64_t found_pinned_ = 0;
};

}  // namespace terrace
