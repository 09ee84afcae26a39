// StoreTier: what the engine has of the store, when it is given one: the catalogue of what is
// stored, the way there (Spill), the way back (Promote; Promotion by hand) and the pages held on it
// (Holds); and whether what is stored is still right (Scrub, StoreCheck).
//
// Owned by the engine; owner thread only. The parts know each other as in this list, the later the
// earlier. Limits: kMaxPersists requests to make pages durable wait at a time.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/status.h"
#include "daemon/engine/clients.h"
#include "daemon/engine/placement/pins.h"
#include "daemon/engine/placement/placement.h"
#include "daemon/engine/placement/residents.h"
#include "daemon/engine/store/holds.h"
#include "daemon/engine/store/promote.h"
#include "daemon/engine/store/promotion.h"
#include "daemon/engine/store/scrub.h"
#include "daemon/engine/store/spill.h"
#include "daemon/engine/store/store_check.h"
#include "daemon/engine/store/stored.h"
#include "daemon/policy/sketch.h"
#include "tiers/page_store.h"

namespace terrace {

class StoreTier final : public PageWatcher {
 public:
  static constexpr size_t kMaxPersists = 4096;

  struct Parts {
    PageStore& store;
    Journal& journal;
    Catalog& catalog;
    const Clients& clients;
    HostMemory& memory;
    HostTier& host;
    Residents& residents;
    Pins& pins;
    Placement& placement;
    Evictor& evictor;
    const Clock& clock;
  };
  StoreTier(const StoreOptions& options, const Parts& parts);

  // Once and before anything else.
  Status Restore(std::vector<std::string>* problems) { return stored_.Restore(problems); }
  // Its copies there are of another model: nothing of them is served.
  void SpaceOpened(const Space& space);
  // What it is, if it is the tenant's and has stored pages.
  const SpaceSpec* SpecOf(const std::string& tenant, const Digest& space) const;

  StoredCopies& copies() { return spill_; }
  void Committed(SlotRef slot) { spill_.Offer(slot); }
  // The page leaves the store, and if it is in memory nobody waits for it there. Whether it was
  // stored, or about to be.
  bool Drop(const Space& space, uint32_t part, const Digest& key);
  void DroppedFromMemory(SlotRef slot) { holds_.Forget(slot); }
  void Prefetch(const Client& client, const Space& space, const PrefetchSpec& spec,
                Promote::Done done);
  using Persisted = std::function<void(Result<std::vector<Code>>)>;
  void Persist(const Client& client, const Space& space, const PersistSpec& spec, Persisted done);
  void Demote(uint64_t bytes, Progress progress, std::function<void(Result<Demoted>)> done);
  void PromoteByHand(const PromoteSpec& spec, Promotion::KnowsModel knows_model, Progress progress,
                     Promotion::Done done) {
    promotion_.Start(spec, std::move(knows_model), std::move(progress), std::move(done));
  }
  void Check(ClientId client, const StoreCheckSpec& spec, Progress progress,
             StoreCheck::Done done) {
    check_.Start(client, spec, std::move(progress), std::move(done));
  }
  void Flush(Progress progress, std::function<void(Status)> done) {
    parts_.store.Flush(std::move(progress), std::move(done));
  }
  void ClientGone(ClientId client);
  bool Turn();

  // ---- PageWatcher
  void Scanned(const Client& client) override { holds_.GiveWay(client); }
  void Told(TenantId tenant, const TenantIndex::RingVisit& visit) override;

  // ---- Figures
  StoreFigures Figures();
  // What the tenant's pages take of the store, by class.
  const std::array<Amount, kItemClasses>* TotalsOf(const std::string& tenant) const;
  // Pages that it reads or writes: of each a slot is in transfer.
  uint64_t transfers() const {
    return spill_.writing_pages() + spill_.overdue_pages() + promote_.reading_pages();
  }
  Status CheckInvariants() const;

 private:
  struct Demotion {
    uint64_t wanted = 0;  // 0: all.
    uint64_t total = 0;   // About, for the progress.
    Progress told;
    Demoted so_far;
    uint64_t in_vain = 0;     // Pages looked at since the last one that left or was to be written.
    MonotonicNs left_at = 0;  // When the last page left.
    std::function<void(Result<Demoted>)> done;
  };
  StoreParts PartsOfAll();
  CheckParts PartsOfChecks(const StoreOptions& options);
  bool StepDemotion();

  const Parts parts_;
  FrequencySketch sketch_;
  Stored stored_;
  Spill spill_;
  Holds holds_;
  Promote promote_;
  Promotion promotion_;
  StoreCheck check_;
  Scrub scrub_;
  std::unique_ptr<Demotion> demotion_;  // While one is under way.
  size_t persists_ = 0;                 // That are not answered.
  MonotonicNs turned_at_ = 0;           // When the store had its last turn.
};

}  // namespace terrace
