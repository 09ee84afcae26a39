// Placement: gets slots and memory, in the order from cheap to dear.
//
// A slot: one that is ready; memory that the budget still has; memory that other page sizes have
// without using it; then eviction, whatever is oldest, of whichever tenant, class or size. What is
// pinned, granted or in transfer stays, so an allocation fails only when nothing else is left
// (promise 4). Each turn keeps a reserve of ready slots ahead of recent demand, gives memory of
// classes without demand back, and shrinks towards a lower capacity, all in bounded steps. Owned by
// the engine; owner thread only.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "base/clock.h"
#include "daemon/engine/catalog.h"
#include "daemon/engine/placement/evictor.h"
#include "daemon/engine/placement/host_memory.h"
#include "daemon/engine/placement/pins.h"
#include "daemon/engine/placement/residents.h"

namespace terrace {

class Placement {
 public:
  Placement(Catalog& catalog, HostMemory& memory, Residents& residents, Pins& pins,
            Evictor& evictor, const Clock& clock)
      : catalog_(catalog),
        memory_(memory),
        residents_(residents),
        pins_(pins),
        evictor_(evictor),
        clock_(clock) {}

  void AddWatcher(PageWatcher& watcher) { watchers_.push_back(&watcher); }
  void RemoveWatcher(PageWatcher& watcher) { std::erase(watchers_, &watcher); }

  // Up to `count` slots, in state kGranted; fewer when no more can be had.
  std::vector<SlotRef> Allocate(SlabClass& of, uint64_t count);
  // A slot in state kGranted that costs nobody anything, neither a page nor the reserve; nullopt:
  // no memory is free.
  std::optional<SlotRef> TakeFree(SlabClass& of);
  // Makes the budget have `bytes` of room; false if that cannot be.
  bool MakeRoom(uint64_t bytes);
  // Evicts pages and blocks until `bytes` of them are gone; 0: all that nobody holds.
  EvictionDone Evict(uint64_t bytes, uint64_t limit);
  // One pass over pages that lets go of up to `limit` of them, and `bytes` (0: all), which are in
  // the store; others are written first and go in a later pass. What the store does not take stays,
  // and where it takes no more for now the pass ends. One pass looks at a part of what is resident.
  EvictionDone Demote(uint64_t bytes, uint64_t limit);

  // A bounded amount of background work; true if more is waiting. Arenas that were released since
  // the last call are in `gone`.
  struct Gone {
    TenantId tenant;
    ArenaId arena;
  };
  bool Turn(std::vector<Gone>* gone);
  // Tells the policy what clients have read, at most `limit` records.
  uint64_t DrainRings(uint64_t limit);
  // The same of all that one client has written by now.
  void DrainRingsOf(TenantId tenant, ClientId client);

 private:
  void NoteRead(Tenant& tenant, const TenantIndex::RingVisit& visit);
  // Gets `of` slots or room for slots; false when nothing is left to take.
  bool Reclaim(SlabClass& of, uint64_t slots, bool tier_refuses, EvictionReason reason);
  // Memory without pages: that of classes whose last demand is long ago, what classes have beyond
  // their reserve, or all.
  enum class Take : uint8_t { kIdle, kSpare, kAll };
  // Takes up to about `bytes` of it from classes other than `spare`, the longest idle first.
  uint64_t PunchOthers(const SlabClass* spare, uint64_t bytes, Take take);
  uint64_t Takeable(const SlabClass& of, Take take) const;
  uint64_t IdleBytes(const SlabClass* spare) const;
  // How many pages are worth evicting at once, for the two scans that it costs.
  uint64_t Batch(const SlabClass& of) const;
  void DecayDemand(MonotonicNs now);
  bool KeepReserve();
  uint64_t ReserveOf(const SlabClass& of) const;
  bool GiveBack();
  void ReleaseVacant(MonotonicNs now, std::vector<Gone>* gone);
  bool Shrink();

  Catalog& catalog_;
  HostMemory& memory_;
  Residents& residents_;
  Pins& pins_;
  Evictor& evictor_;
  const Clock& clock_;
  std::vector<PageWatcher*> watchers_;
  MonotonicNs decayed_at_ = 0;
  MonotonicNs vacant_looked_at_ = 0;
  MonotonicNs reserve_futile_until_ = 0;  // Or
  uint64_t reserve_awaits_writes_ = 0;    // until so many have ended.
  MonotonicNs reserve_repeated_at_ = 0;
  size_t drain_from_ = 0;  // The tenant whose rings were drained last.
};

}  // namespace terrace
