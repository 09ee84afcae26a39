// Pins: what the clients' pins say at the moment of a scan, and the pages that wait for them.
//
// A scan reads the pin words of all of a tenant's channels. Every slot it finds is stamped, so that
// Pinned costs one comparison and nothing is ever cleared. A scan also charges each client for what
// it has pinned, cuts those that are over their budget, and frees the pages in limbo that nobody
// has pinned: a slot unlinked before the scan and not seen by it can never be read again
// (docs/shared_memory.md has the argument). Owned by the engine; owner thread only.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "base/status.h"
#include "daemon/engine/catalog.h"
#include "daemon/engine/clients.h"
#include "daemon/engine/placement/slabs.h"

namespace terrace {

// Who wants to know what clients do with pages that were fetched for them.
class PageWatcher {
 public:
  virtual ~PageWatcher() = default;
  // A scan has told what the client has pinned.
  virtual void Scanned(const Client& client) = 0;
  // A ring's record, of any client.
  virtual void Told(TenantId tenant, const TenantIndex::RingVisit& visit) = 0;
};

class Pins {
 public:
  Pins(Catalog& catalog, Slabs& slabs, Clients& clients, const Clock& clock)
      : catalog_(catalog), slabs_(slabs), clients_(clients), clock_(clock) {}

  void AddWatcher(PageWatcher& watcher) { watchers_.push_back(&watcher); }
  void RemoveWatcher(PageWatcher& watcher) { std::erase(watchers_, &watcher); }

  void Scan(TenantId tenant);
  // Unless the last scan was so short a time ago that scans would cost too much.
  void ScanIfDue(TenantId tenant);
  // At the last scan of the slot's tenant.
  bool Pinned(SlotRef slot) const {
    return slot.slab->stamp(slot.index) >= FloorOf(slot.slab->tenant());
  }
  // Whether any pin named a slot of the slab then.
  bool AnyPinned(const Slab& slab) const { return slab.last_stamp() >= FloorOf(slab.tenant()); }
  // Pins of all tenants, each at its last scan: what a scan costs.
  uint64_t total() const;

  // A slot in kLimbo, out of the directory: it is freed by the first scan that finds no pin on it
  // and no transfer of it under way, and nobody who holds it.
  void AddLimbo(SlotRef slot);
  // Scans tenants with pages in limbo, each at most as often as keeps the scans cheap.
  void TurnLimbo();
  // Scans them now.
  void SettleLimbo();
  uint64_t limbo_pages() const;

  // Clients cut since the last call, and why.
  std::vector<std::pair<ClientId, Status>> TakeCut() { return std::exchange(cut_, {}); }

 private:
  struct OfTenant {
    uint64_t floor = 1;  // Stamps of the last scan start here.
    uint64_t pins = 0;
    MonotonicNs scanned = 0;
    std::vector<SlotRef> limbo;
  };
  struct Holding {
    uint64_t pins = 0;
    uint64_t bytes = 0;
  };
  uint64_t FloorOf(TenantId tenant) const {
    return tenant < tenants_.size() ? tenants_[tenant].floor : 1;
  }
  OfTenant& At(TenantId tenant);
  std::map<ClientId, Holding> ReadPins(Tenant& tenant);
  // Returns whether anybody was cut.
  bool CutOverBudget(Tenant& tenant, const std::map<ClientId, Holding>& holdings);
  void FreeLimbo(OfTenant& of);

  Catalog& catalog_;
  Slabs& slabs_;
  Clients& clients_;
  const Clock& clock_;
  std::vector<PageWatcher*> watchers_;
  std::vector<OfTenant> tenants_;  // By id.
  uint64_t next_stamp_ = 1;
  std::vector<std::pair<ClientId, Status>> cut_;
};

}  // namespace terrace
