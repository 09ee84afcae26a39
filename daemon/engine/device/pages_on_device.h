// PagesOnDevice: KV pages in the memory of one device: its slabs and classes, who gets slots, and
// the way down to host memory.
//
// A slab is one arena of one tenant and page size, made by the tier, all zeros, and released whole.
// What is granted, linked and pinned is as in host memory, by the same parts. Memory comes and goes
// slowly here: nothing waits for it, whoever wants a slot is told that some are on their way and
// asks again. A page that leaves is first copied to host memory, unless that or the store has it;
// it goes in a later pass, when the copy is linked there. Where host memory takes nothing, or the
// tier does not copy, pages are evicted all the same.
//
// A slab is closed when it is to be given up or was lost: no slot of it is handed out, its pages
// leave, and when nothing of it is in use it goes back to DeviceArenas, which has the clients unmap
// it. Owned by the engine; owner thread only.
//
// Limits: kMaxClasses page sizes a tenant; kMostSaving pages on their way down.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <vector>

#include "base/clock.h"
#include "base/status.h"
#include "daemon/engine/catalog.h"
#include "daemon/engine/device/device_arenas.h"
#include "daemon/engine/device/host_slabs.h"
#include "daemon/engine/device/item_numbers.h"
#include "daemon/engine/placement/evictor.h"
#include "daemon/engine/placement/host_memory.h"
#include "daemon/engine/placement/pins.h"
#include "daemon/engine/placement/placement.h"
#include "daemon/engine/placement/residents.h"
#include "daemon/engine/placement/slabs.h"
#include "daemon/engine/store/store_tier.h"

namespace terrace {

class PagesOnDevice final : public StoredCopies, public PageWatcher {
 public:
  static constexpr uint32_t kMaxClasses = 256;
  static constexpr size_t kMostSaving = 256;
  static constexpr uint64_t kMostSavingBytes = 256u << 20;

  struct Parts {
    Catalog& catalog;
    Slabs& slabs;
    HostMemory& host_memory;
    HostTier& host;
    Residents& host_residents;
    Placement& host_placement;
    Pins& pins;
    std::unique_ptr<StoreTier>& store;  // Null: there is none.
    Policy& policy;
    ItemNumbers& items;
    DeviceArenas& arenas;
    const Clock& clock;
  };
  explicit PagesOnDevice(const Parts& parts);

  uint32_t device() const { return parts_.arenas.device(); }
  Residents& residents() { return residents_; }

  // ---- Slots
  // `unavailable` before the tier has said what it is, `invalid_argument` for pages that are larger
  // than the budget, `exhausted` beyond kMaxClasses.
  Result<SlabClass*> ClassOf(TenantId tenant, uint32_t page_bytes);
  struct Slots {
    std::vector<SlotRef> slots;  // In state kGranted.
    bool more = false;           // Some of those that are missing are on their way.
  };
  Slots Allocate(SlabClass& of, uint64_t count);
  // Has slabs of `bytes` leave for weights, in the course of time, beside what has left already.
  // False, and none is closed for it: there is not so much above the floor, or not so much can
  // leave. To be called again until there is room.
  bool MakeRoom(uint64_t bytes);

  // ---- Leaving
  // As Engine::DemoteDevice.
  void Demote(uint64_t bytes, Progress progress, std::function<void(Result<Demoted>)> done);
  // Its memory is gone, and DeviceArenas knows: no page of it is found any more. False: no slab of
  // this device, or not any more.
  bool Lost(ArenaId arena);
  void HostSlabGone(ArenaId slab) { host_slabs_.Gone(slab); }
  HostSlabs& host_slabs() { return host_slabs_; }
  // True if more could be done.
  bool Turn();

  // ---- PageWatcher
  void Scanned(const Client&) override {}
  void Told(TenantId tenant, const TenantIndex::RingVisit& visit) override {
    if (visit.kind == shm::RingKind::kTouch) residents_.Touch(tenant, visit.handle);
  }

  // ---- StoredCopies: what is below the device.
  bool Has(SlotRef slot) const override;
  Saving Save(SlotRef slot, bool regardless) override;
  void Lost(SlotRef slot) override;
  uint64_t ended_writes() const override { return ended_saves_; }

  // ---- Figures
  void AddFigures(GpuReport* report) const;
  const SlabBooks& books() const { return books_; }
  // Host slots that are written from the device.
  uint64_t transfers() const { return saves_under_way_; }
  Status CheckInvariants() const;

 private:
  // A page on its way down.
  struct Saved {
    SlotRef from;
    SlotRef to;
    uint32_t sequence = 0;  // Of the page's stay there: another one is another page.
  };
  struct SaveBatch {
    std::vector<Saved> pages;
    size_t waits = 0;  // For slabs of the host.
    Status status;
  };
  struct Demotion {
    uint64_t wanted = 0;  // 0: all.
    uint64_t total = 0;   // About, for the progress.
    Progress told;
    Demoted so_far;
    MonotonicNs moved_at = 0;
    std::function<void(Result<Demoted>)> done;
  };
  // The device's blocks of weights are no items of these residents.
  struct NoBlocks final : BlockOwner {
    bool Held(ArenaId) const override { return true; }
    void Evict(ArenaId) override {}
  };

  // Gets slots of the class, or has some come; whether there are any, or will be.
  bool Provide(SlabClass& of, uint64_t slots, EvictionReason reason);
  // False: there is no room, or the device had none a moment ago.
  bool CreateSlab(SlabClass& of);
  void Came(ArenaId arena, SlabClass& of, const Status& status);
  uint64_t ComingSlots(const SlabClass& of) const;
  // A pass, and the copies that it wants.
  EvictionDone Pass(const EvictionGoal& goal);
  void SendSaves();
  void Copy(const std::shared_ptr<SaveBatch>& batch);
  void SaveEnded(const Saved& page, const Status& status);
  // Whether the page was linked in host memory.
  bool Land(const Saved& page);
  bool SamePage(const Saved& page) const;
  // No page more is copied down before some that are have come.
  bool SavesFull() const {
    return saves_under_way_ + to_save_.size() >= kMostSaving || saving_bytes_ >= kMostSavingBytes;
  }
  // Closes the slab of another class whose pages were used last the longest ago; false: none can
  // go.
  bool GiveUpOne(const SlabClass* spare);
  // Slabs of `bytes` that can leave, of other classes than `spare`: those without pages, then those
  // whose pages were used last the longest ago. Fewer if there are not so many, or `looks` pages
  // show no more.
  std::vector<Slab*> Leavers(const SlabClass* spare, uint64_t bytes, uint64_t looks);
  bool CanLeave(Slab& slab, std::set<TenantId>* scanned);
  // Of closed slabs, but for those that were lost, or have waited long for their readers.
  uint64_t GoingBytes() const;
  void Close(Slab& slab);
  void EmptyClosed();
  void GiveBackIdle();
  bool StepDemotion();
  bool KeepReserve();

  const Parts parts_;
  SlabBooks books_;
  Slabs::Classes classes_;
  std::map<ArenaId, SlabClass*> coming_;
  // Since when readers alone keep them; 0: something else does.
  std::map<ArenaId, MonotonicNs> closed_;
  std::set<ArenaId> lost_;  // Of those.
  Residents residents_;
  NoBlocks no_blocks_;
  Evictor evictor_;
  HostSlabs host_slabs_;

  std::vector<SlotRef> to_save_;  // Wanted by the pass that is running.
  uint64_t saves_under_way_ = 0;
  std::map<const SlabClass*, uint64_t> saves_of_;  // Those, by class.
  uint64_t saving_bytes_ = 0;                      // Those wanted included.
  uint64_t ended_saves_ = 0;
  MonotonicNs no_saves_until_ = 0;  // Host memory or the tier took none a moment ago.
  MonotonicNs no_slabs_until_ = 0;
  MonotonicNs decayed_at_ = 0;
  MonotonicNs idle_looked_at_ = 0;
  MonotonicNs reserve_futile_until_ = 0;
  std::unique_ptr<Demotion> demotion_;

  Amount demoted_;
  uint64_t lost_pages_ = 0;
  std::shared_ptr<char> alive_ = std::make_shared<char>();  // Completions hold it weakly.
};

}  // namespace terrace
