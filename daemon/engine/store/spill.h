// Spill: how pages come from memory into the store.
//
// A committed page is offered; what admission takes waits in a queue and is written a batch at a
// time, neighbours in the queue to places that are neighbours, so that the pages of one commit are
// read together later. While the device reads a page's bytes its slot is in transfer, and stays
// whatever happens to the page: what was dropped meanwhile is erased as soon as it is written, and
// so is what is of an old generation by then. Owned by the engine; owner thread only.
//
// A page that cannot be written yet is parked by what it waits for, its space's journal record or
// another page of its name that is being erased, and looked at again when that is over. So is one
// that somebody waits for and that has no place, while pages of its size are erased to make some;
// and once in kPlacesAgainNs, for devices come to have places in other ways.
//
// Limits, in StoreOptions: pages that wait, pages and bytes being written. At the first a page is
// not written, and counted; at the others it waits. Who waits for a page to be durable is answered
// by the write deadline, and nothing is held for it afterwards. Writes that are answered but whose
// memory the device still has count apart, up to kOverdueShare times the pages being written, so
// that a device that hangs does not stop the others.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <list>
#include <map>
#include <memory>
#include <set>
#include <unordered_map>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "base/status.h"
#include "daemon/engine/catalog.h"
#include "daemon/engine/durations.h"
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

class Spill final : public StoredCopies, public StoredWaiter {
 public:
  static constexpr uint64_t kOverdueShare = 4;
  static constexpr MonotonicNs kPlacesAgainNs = kNsPerSecond;

  Spill(const StoreOptions& options, const StoreParts& parts);

  // A page was linked that a client wrote. O(1).
  void Offer(SlotRef slot);
  // Has a linked page written whatever admission says, if the budget pays for it; one that is about
  // to be written already is paid for. `saved` gets kOk when it is durable. It may be called from
  // within.
  using Saved = std::function<void(Code)>;
  void Persist(ClientId client, SlotRef slot, Saved saved);
  // Who waits there is answered.
  void ClientGone(ClientId client);
  // Deadlines, and what can be started; true if more could have been.
  bool Turn();
  // Starts what can be started; true if more could have been.
  bool Pump();

  // ---- StoredCopies
  bool Has(SlotRef slot) const override;
  Saving Save(SlotRef slot, bool regardless) override;
  void Lost(SlotRef slot) override;
  uint64_t ended_writes() const override { return ended_writes_; }

  // ---- StoredWaiter
  void RecordAnswered(SpaceNo space) override { Unpark(OfSpace(space)); }
  void PageGone(ItemId id) override { Unpark(OfPage(id)); }
  void PlacesMade(uint32_t page_bytes) override { Unpark(OfPlaces(page_bytes)); }
  void GoOn() override { (void)Pump(); }

  Stored::Watermarks watermarks() const;
  // ---- Figures
  const Amount& spilled() const { return spilled_; }
  const Durations& times() const { return times_; }
  // Pages, each by the first reason that it met.
  const std::array<uint64_t, kUnspilled>& unspilled() const { return unspilled_; }
  uint64_t queued_pages() const { return queued_pages_; }
  uint64_t writing_pages() const { return writing_pages_; }
  uint64_t writing_bytes() const { return writing_bytes_; }
  uint64_t overdue_pages() const { return overdue_pages_; }
  uint64_t budget_left() { return budget_.Left(parts_.clock.Now()); }

 private:
  struct Waiter {
    ClientId client = 0;
    Saved saved;
  };
  using Waiters = std::vector<Waiter>;
  // A page that waits, by name and place: it may have left memory when its turn comes.
  struct Item;
  using Queue = std::list<Item>;
  using Place = Queue::iterator;
  struct Item {
    TenantId tenant = 0;
    uint64_t extent = 0;
    PageName name;
    uint64_t charged_bytes = 0;  // Of the budget.
    Waiters waiters;             // While there are some the slot is held.
    MonotonicNs deadline = 0;
    uint64_t serial = 0;     // Its own, among those of one deadline.
    bool late = false;       // The deadline is over.
    bool placeless = false;  // There was no place for it.
    Queue* in = nullptr;     // The queue, or where it is parked.
  };
  // A page in the catalogue that gets a place next.
  struct Ready {
    ItemId id = 0;
    SlotRef slot;
    uint32_t bytes = 0;
    uint64_t charged_bytes = 0;
  };
  // One call of the store.
  struct Batch {
    std::vector<Ready> pages;
    MonotonicNs began = 0;
    size_t left = 0;
  };
  // A page that is being written.
  struct Writing {
    TenantId tenant = 0;
    PageName name;
    Waiters waiters;
    MonotonicNs deadline = 0;  // In the queue.
  };
  // What a parked page waits for.
  using Cause = uint64_t;
  static Cause OfSpace(SpaceNo space) { return uint64_t{1} << 32 | space; }
  static Cause OfPage(ItemId id) { return id; }
  static Cause OfPlaces(uint32_t page_bytes) { return uint64_t{2} << 32 | page_bytes; }

  const Space* SpaceOf(TenantId tenant, const PageName& name) const;
  uint64_t PlaceBytes(SlotRef slot) const {
    return parts_.store.PlaceBytes(slot.slab->shape().page_bytes);
  }
  Unspilled Judge(SlotRef slot);
  void Count(SlotRef slot, Unspilled why);
  // Pays for the page, and puts it at the head of the queue.
  Place Add(SlotRef slot);
  Place Enqueue(SlotRef slot);
  void SetDeadline(Place item, MonotonicNs deadline);
  MonotonicNs NextDeadline() const {
    return parts_.clock.Now() + options_.write_deadline_ms * kNsPerMs;
  }
  void Wait(Place item, SlotRef slot, Waiter waiter);
  // The waiters' hold on the item's slot ends; they are not told yet.
  Waiters TakeWaiters(Place item);
  static void Tell(const Waiters& waiters, Code code);
  void Move(Place item, Queue* to);
  void Unpark(Cause cause);
  void RetryPlaces(MonotonicNs now);
  // A write of the slot's page that is under way; null: there is none.
  Writing* WritingOf(SlotRef slot);
  bool HasRoom(size_t pages, uint64_t bytes) const;
  // Whether the item can be written now; what it came to otherwise is done here.
  enum class Turned : uint8_t { kReady, kParked, kOver };
  Turned Prepare(Place item, Ready* ready);
  Turned PrepareCopy(Place item, const PageFacts& facts, ItemId id);
  Turned PrepareSpace(Place item, const Space& space, SpaceNo* number);
  // The item leaves the queue, its page written or not.
  Waiters End(Place item);
  Turned Refuse(Place item, Unspilled why, Code code);
  Turned Park(Place item, Cause cause);
  void Start(const std::vector<Ready>& ready);
  // The store had no room for the page, whose record is gone.
  void NoPlace(const Ready& ready, Writing writing);
  void WaitForPlace(const Ready& ready, Writing writing);
  void Written(const Batch& batch, const Ready& page, const Result<uint64_t>& serial);
  void Ended(Batch* batch, SlotRef slot);
  bool StillRight(const Writing& writing, uint64_t generation) const;

  const StoreOptions options_;
  const StoreParts parts_;
  WriteBudget budget_;
  Queue queue_;
  std::unordered_map<Cause, Queue> parked_;
  std::unordered_map<uint64_t, Place> by_extent_;  // The latest item of each slot.
  // Of items that are not late.
  std::map<std::pair<MonotonicNs, uint64_t>, Place> deadlines_;
  uint64_t last_serial_ = 0;
  uint64_t queued_pages_ = 0;                   // In the queue or parked.
  std::unordered_map<ItemId, Writing> writes_;  // Until they are answered.
  uint64_t writing_pages_ = 0;                  // Likewise.
  uint64_t writing_bytes_ = 0;
  uint64_t overdue_pages_ = 0;          // Answered, and not ended.
  uint64_t ended_writes_ = 0;           // Pages, since the start.
  std::set<uint32_t> placeless_sizes_;  // Of pages that are parked for places, or were.
  MonotonicNs places_again_ = 0;        // When they are looked at anyway.
  Amount spilled_;
  Durations times_;
  std::array<uint64_t, kUnspilled> unspilled_ = {};
};

}  // namespace terrace
