#include "daemon/engine/device/pages_on_device.h"

#include <algorithm>
#include <string>
#include <utility>

#include "base/check.h"

namespace terrace {
namespace {

// Long enough that who asks in a loop does not make a failing tier busy.
constexpr MonotonicNs kAfterFailureNs = 100 * kNsPerMs;
constexpr MonotonicNs kDecayNs = 100 * kNsPerMs;
constexpr MonotonicNs kIdleLookNs = kNsPerSecond;
constexpr MonotonicNs kIdleNs = 30 * kNsPerSecond;
constexpr MonotonicNs kDemotionStallNs = 30 * kNsPerSecond;
constexpr uint64_t kDemotedAStep = 256;
constexpr uint64_t kDemotedLooks = 16384;
// A slab whose readers keep it for so long is not waited for any more: another one is given up.
constexpr MonotonicNs kReadersNs = kNsPerSecond;
// Evicted at once, for the two scans that a pass costs, but not more than a part of what is there.
constexpr uint64_t kBatchPages = 16;
constexpr uint64_t kBatchShare = 16;
// Of what a class has, kept ready ahead of demand.
constexpr uint64_t kReserveShare = 8;

}  // namespace

PagesOnDevice::PagesOnDevice(const Parts& parts)
    : parts_(parts),
      residents_(parts.catalog, parts.slabs, parts.policy, parts.clock, parts.arenas.device(),
                 &parts.items),
      evictor_(parts.slabs, residents_, parts.pins, no_blocks_, parts.clock),
      host_slabs_(parts.arenas, parts.host) {
  evictor_.SetStore(this);
}

// ---- Slots

Result<SlabClass*> PagesOnDevice::ClassOf(TenantId tenant, uint32_t page_bytes) {
  const auto found = classes_.find({tenant, page_bytes});
  if (found != classes_.end()) return found->second.get();
  const std::string label = "device " + std::to_string(device()) + ": ";
  const uint64_t bytes =
      parts_.arenas.Rounded(std::max<uint64_t>(parts_.arenas.options().slab_bytes, page_bytes));
  if (bytes == 0) {
    return Status(Code::kUnavailable,
                  label + "it is not ready: " + parts_.arenas.tier().Report().why);
  }
  if (bytes > parts_.arenas.capacity()) {
    return Status(Code::kInvalidArgument,
                  label + "a slab of " + std::to_string(bytes) + " bytes is more than its budget");
  }
  const auto first = classes_.lower_bound({tenant, 0});
  const auto last = classes_.lower_bound({tenant + 1, 0});
  if (std::distance(first, last) >= kMaxClasses) {
    return Status(Code::kExhausted,
                  label + "the tenant uses " + std::to_string(kMaxClasses) + " page sizes already");
  }
  const auto slots = static_cast<uint32_t>(std::min<uint64_t>(bytes / page_bytes, shm::kMaxSlots));
  const SlabShape shape{.page_bytes = page_bytes,
                        .slots = slots,
                        .grain_slots = slots,
                        .window_grains = 1,
                        .arena_bytes = bytes};
  auto made = std::make_unique<SlabClass>(tenant, shape, books_, device());
  return classes_.emplace(Slabs::ClassKey{tenant, page_bytes}, std::move(made)).first->second.get();
}

PagesOnDevice::Slots PagesOnDevice::Allocate(SlabClass& of, uint64_t count) {
  Slots got;
  of.last_demand = parts_.clock.Now();
  for (bool provided = false; got.slots.size() < count;) {
    if (const std::optional<SlotRef> slot = parts_.slabs.Take(of)) {
      got.slots.push_back(*slot);
      continue;
    }
    if (std::exchange(provided, true)) break;
    got.more = Provide(of, count - got.slots.size(), EvictionReason::kPages);
  }
  of.recent_slots += got.slots.size();
  got.more &= got.slots.size() < count;
  return got;
}

uint64_t PagesOnDevice::ComingSlots(const SlabClass& of) const {
  uint64_t slots = 0;
  for (const auto& [arena, coming] : coming_)
    slots += coming == &of ? of.shape.slots : 0;
  return slots;
}

bool PagesOnDevice::Provide(SlabClass& of, uint64_t slots, EvictionReason reason) {
  while (ComingSlots(of) < slots && CreateSlab(of)) {
  }
  if (ComingSlots(of) >= slots) return true;
  const uint64_t missing = slots - ComingSlots(of);
  const uint64_t share = of.slots[static_cast<size_t>(SlotState::kLinked)] / kBatchShare + 1;
  EvictionGoal goal{.of = &of,
                    .wanted = std::max(missing, std::min(kBatchPages, share)),
                    .own_only = true,
                    .reason = reason,
                    .unstored = Unstored::kKeep};
  const EvictionDone done = Pass(goal);
  // Copies of other classes bring this one nothing.
  if (of.ready_slots > 0 || saves_of_.contains(&of)) return true;
  if (done.refused && SavesFull()) return true;
  parts_.pins.SettleLimbo();
  if (of.ready_slots > 0) return true;
  if (reason == EvictionReason::kReserve) return false;
  if (GiveUpOne(&of)) return true;
  // Nothing below takes its pages.
  goal.unstored = Unstored::kAsOthers;
  Pass(goal);
  return of.ready_slots > 0 || ComingSlots(of) > 0;
}

bool PagesOnDevice::CreateSlab(SlabClass& of) {
  if (parts_.clock.Now() < no_slabs_until_) return false;
  const std::weak_ptr<char> alive = alive_;
  const auto id = std::make_shared<ArenaId>(0);
  const Result<ArenaId> arena =
      parts_.arenas.Create(of.shape.arena_bytes, of.tenant, DeviceArenas::Use::kPages,
                           [this, alive, id, of = &of](const Status& status) {
                             if (!alive.expired()) Came(*id, *of, status);
                           });
  if (!arena) return false;
  *id = *arena;
  coming_.emplace(*arena, &of);
  return true;
}

void PagesOnDevice::Came(ArenaId arena, SlabClass& of, const Status& status) {
  coming_.erase(arena);
  if (status.ok()) {
    parts_.slabs.Add(arena, of, /*resident=*/true);
    return;
  }
  no_slabs_until_ = parts_.clock.Now() + kAfterFailureNs;
}

// ---- Eviction, and the way down

bool PagesOnDevice::Has(SlotRef slot) const {
  PageName below = slot->name;
  below.place = 0;
  if (parts_.catalog.At(slot.slab->tenant()).index->Find(below)) return true;
  return parts_.store != nullptr && parts_.store->copies().Has(slot);
}

Saving PagesOnDevice::Save(SlotRef slot, bool) {
  if (SavesFull() || parts_.clock.Now() < no_saves_until_) return Saving::kNoneNow;
  // Memory for it is got after the pass: getting it tells policies what was read, which may not
  // happen while this one is asked for victims.
  ++slot->transfers;
  saving_bytes_ += slot.slab->shape().page_bytes;
  to_save_.push_back(slot);
  return Saving::kUnderWay;
}

void PagesOnDevice::Lost(SlotRef) {
  ++lost_pages_;
}

EvictionDone PagesOnDevice::Pass(const EvictionGoal& goal) {
  const EvictionDone done = evictor_.Pass(goal);
  SendSaves();
  return done;
}

void PagesOnDevice::SendSaves() {
  if (to_save_.empty()) return;
  std::map<SlabClass*, std::vector<SlotRef>> by_class;
  for (const SlotRef& slot : std::exchange(to_save_, {}))
    by_class[slot.slab->owner()].push_back(slot);
  const auto batch = std::make_shared<SaveBatch>();
  for (const auto& [of, pages] : by_class) {
    const Result<SlabClass*> below = parts_.host_memory.ClassOf(of->tenant, of->shape.page_bytes);
    std::vector<SlotRef> slots;
    if (below) slots = parts_.host_placement.Allocate(**below, pages.size());
    for (size_t i = 0; i < pages.size(); ++i) {
      if (i >= slots.size()) {
        --pages[i]->transfers;
        saving_bytes_ -= of->shape.page_bytes;
        no_saves_until_ = parts_.clock.Now() + kAfterFailureNs;
        continue;
      }
      parts_.slabs.SetState(slots[i], SlotState::kFilling);
      ++slots[i]->transfers;
      ++saves_under_way_;
      ++saves_of_[of];
      batch->pages.push_back({.from = pages[i], .to = slots[i], .sequence = pages[i]->sequence});
    }
  }
  std::map<ArenaId, uint64_t> slabs;
  for (const Saved& page : batch->pages)
    slabs[page.to.slab->arena()] = page.to.slab->shape().arena_bytes;
  batch->waits = slabs.size();
  for (const auto& [slab, bytes] : slabs) {
    host_slabs_.Use(slab, bytes, [this, batch](const Status& status) {
      if (!status.ok()) batch->status = status;
      if (--batch->waits == 0) Copy(batch);
    });
  }
}

void PagesOnDevice::Copy(const std::shared_ptr<SaveBatch>& batch) {
  const auto end = [this, batch](const Status& status) {
    for (const Saved& page : batch->pages)
      SaveEnded(page, status);
  };
  if (!batch->status.ok()) return end(batch->status);
  std::vector<DeviceCopy> copies;
  for (const Saved& page : batch->pages) {
    const uint64_t bytes = page.from.slab->shape().page_bytes;
    copies.push_back({.dst = {page.to.slab->arena(), page.to.index * bytes},
                      .src = {page.from.slab->arena(), page.from.index * bytes},
                      .bytes = bytes});
  }
  parts_.arenas.tier().Copy(std::move(copies), /*complete=*/true, parts_.arenas.Deadline(),
                            [end, alive = std::weak_ptr(alive_)](const Status& status) {
                              if (!alive.expired()) end(status);
                            });
}

bool PagesOnDevice::SamePage(const Saved& page) const {
  return page.from->state == SlotState::kLinked && page.from->sequence == page.sequence;
}

void PagesOnDevice::SaveEnded(const Saved& page, const Status& status) {
  --page.from->transfers;
  --page.to->transfers;
  --saves_under_way_;
  const auto of = saves_of_.find(page.from.slab->owner());
  if (--of->second == 0) saves_of_.erase(of);
  ++ended_saves_;
  saving_bytes_ -= page.from.slab->shape().page_bytes;
  if (!status.ok()) no_saves_until_ = parts_.clock.Now() + kAfterFailureNs;
  if (!status.ok() || !Land(page)) parts_.slabs.Free(page.to);
}

// Everything is compared again: while it was copied it may have been dropped or invalidated, and
// what was dropped must not come back.
bool PagesOnDevice::Land(const Saved& page) {
  if (!SamePage(page)) return false;
  const Tenant& tenant = parts_.catalog.At(page.from.slab->tenant());
  PageName name = page.from->name;
  const Space* space = parts_.catalog.At(tenant.id).FindSpace(name.space_slot, name.space_epoch);
  if (space == nullptr ||
      tenant.index->generation(space->generation_index) != page.from->facts.generation) {
    return false;
  }
  name.place = 0;
  if (!parts_.host_residents.Link(page.to, name, page.from->facts).ok()) return false;
  demoted_.Add(page.from.slab->shape().page_bytes);
  if (parts_.store != nullptr) parts_.store->Committed(page.to);
  return true;
}

// ---- Slabs that are given up

bool PagesOnDevice::CanLeave(Slab& slab, std::set<TenantId>* scanned) {
  if (slab.closed()) return false;
  if (scanned->insert(slab.tenant()).second) parts_.pins.Scan(slab.tenant());
  for (uint32_t i = 0; i < slab.shape().slots; ++i) {
    const Slot& slot = slab.slot(i);
    if (!IsBusy(slot.state)) continue;
    if (slot.state != SlotState::kLinked || slot.holds > 0 || parts_.pins.Pinned({&slab, i})) {
      return false;
    }
  }
  return true;
}

std::vector<Slab*> PagesOnDevice::Leavers(const SlabClass* spare, uint64_t bytes, uint64_t looks) {
  std::vector<Slab*> chosen;
  uint64_t chosen_bytes = 0;
  std::set<TenantId> scanned;
  std::set<const Slab*> known;
  const auto look = [&](Slab& slab) {
    if (chosen_bytes >= bytes || !known.insert(&slab).second || !CanLeave(slab, &scanned)) return;
    chosen.push_back(&slab);
    chosen_bytes += slab.shape().arena_bytes;
  };
  for (const auto& [key, of] : classes_) {
    if (of.get() == spare) continue;
    for (Slab* slab : of->with_idle.slabs())
      look(*slab);
  }
  if (chosen_bytes >= bytes) return chosen;
  parts_.policy.Victims(looks, parts_.clock.Now(), [&](ItemId id) {
    const Residents::Item* item = residents_.item(id);
    if (item != nullptr && item->slot.slab->owner() != spare) look(*item->slot.slab);
    return chosen_bytes >= bytes ? Policy::Verdict::kStop : Policy::Verdict::kSkip;
  });
  return chosen;
}

uint64_t PagesOnDevice::GoingBytes() const {
  uint64_t bytes = 0;
  for (const auto& [arena, readers_since] : closed_) {
    const bool kept = readers_since != 0 && parts_.clock.Now() >= readers_since + kReadersNs;
    if (!kept && !lost_.contains(arena)) bytes += parts_.arenas.BytesOf(arena);
  }
  return bytes;
}

bool PagesOnDevice::GiveUpOne(const SlabClass* spare) {
  // One at a time: what it brings is seen first.
  if (GoingBytes() > 0 || parts_.arenas.OnItsWay() > 0) return true;
  const std::vector<Slab*> chosen = Leavers(spare, 1, kDemotedLooks);
  if (chosen.empty()) return false;
  Close(*chosen.front());
  return true;
}

bool PagesOnDevice::MakeRoom(uint64_t bytes) {
  const uint64_t going = GoingBytes();
  if (going >= bytes) return true;
  const uint64_t missing = bytes - going;
  // What would stay: slabs that are closed, and those released, are none of the floor.
  uint64_t staying = books_.slab_bytes;
  for (const auto& [arena, of] : coming_)
    staying += of->shape.arena_bytes;
  for (const auto& [arena, readers_since] : closed_)
    staying -= parts_.arenas.BytesOf(arena);
  if (staying < parts_.arenas.options().pages_floor_bytes + missing) return false;
  const std::vector<Slab*> chosen = Leavers(nullptr, missing, UINT64_MAX);
  uint64_t found = 0;
  for (const Slab* slab : chosen)
    found += slab->shape().arena_bytes;
  if (found < missing) return false;
  for (Slab* slab : chosen)
    Close(*slab);
  return true;
}

void PagesOnDevice::Close(Slab& slab) {
  parts_.slabs.Close(slab);
  closed_.emplace(slab.arena(), 0);
}

void PagesOnDevice::EmptyClosed() {
  const MonotonicNs now = parts_.clock.Now();
  bool saves_full = false;
  std::vector<Slab*> empty;
  for (auto& [arena, readers_since] : closed_) {
    Slab& slab = *parts_.slabs.Find(arena);
    if (slab.idle_grains() == 0) {
      if (saves_full || lost_.contains(arena)) continue;
      const EvictionDone done = evictor_.Empty(slab, EvictionReason::kPages, Unstored::kKeep);
      bool waits = evictor_.deferred_pages() > 0;
      SendSaves();
      // What finds no place among the copies waits for one.
      saves_full = done.refused && SavesFull();
      waits |= saves_full;
      if (!waits) evictor_.Empty(slab, EvictionReason::kPages, Unstored::kAsOthers);
      if (waits) readers_since = 0;
      if (!waits && slab.idle_grains() == 0 && readers_since == 0) readers_since = now;
    }
    if (slab.idle_grains() > 0) empty.push_back(&slab);
  }
  std::set<TenantId> scanned;
  for (Slab* slab : empty) {
    // A reader may be about to look at an old handle: the arena stays as long as a pin names it.
    if (scanned.insert(slab->tenant()).second) parts_.pins.Scan(slab->tenant());
    const ArenaId arena = slab->arena();
    if (parts_.pins.AnyPinned(*slab)) {
      MonotonicNs& readers_since = closed_.at(arena);
      if (readers_since == 0) readers_since = now;
      continue;
    }
    closed_.erase(arena);
    lost_.erase(arena);
    parts_.slabs.Remove(slab);
    parts_.arenas.Release(arena);
  }
}

void PagesOnDevice::GiveBackIdle() {
  const MonotonicNs now = parts_.clock.Now();
  if (now < idle_looked_at_ + kIdleLookNs) return;
  idle_looked_at_ = now;
  for (const auto& [key, of] : classes_) {
    if (of->last_demand > now - kIdleNs) continue;
    for (Slab* slab : std::vector<Slab*>(of->with_idle.slabs())) {
      if (!slab->closed()) Close(*slab);
    }
  }
}

bool PagesOnDevice::Lost(ArenaId arena) {
  Slab* slab = parts_.slabs.Find(arena);
  if (slab == nullptr || slab->owner()->place != device()) return false;
  if (!slab->closed()) Close(*slab);
  lost_.insert(arena);
  for (uint32_t i = 0; i < slab->shape().slots; ++i) {
    if (slab->slot(i).state != SlotState::kLinked) continue;
    residents_.Unlink({slab, i});
    parts_.pins.AddLimbo({slab, i});
    ++lost_pages_;
  }
  return true;
}

// ---- Demotion by hand

void PagesOnDevice::Demote(uint64_t bytes, Progress progress,
                           std::function<void(Result<Demoted>)> done) {
  if (demotion_ != nullptr) {
    return done(Status(Code::kExhausted, "pages are being demoted from it already"));
  }
  demotion_ = std::make_unique<Demotion>();
  demotion_->wanted = bytes;
  const uint64_t linked = books_.bytes[static_cast<size_t>(SlotState::kLinked)];
  demotion_->total = bytes == 0 ? linked : std::min(bytes, linked);
  demotion_->told = std::move(progress);
  demotion_->moved_at = parts_.clock.Now();
  demotion_->done = std::move(done);
}

bool PagesOnDevice::StepDemotion() {
  if (demotion_ == nullptr) return false;
  Demotion& under_way = *demotion_;
  const uint64_t left =
      under_way.wanted == 0 ? UINT64_MAX : under_way.wanted - under_way.so_far.bytes;
  const EvictionDone done = Pass({.wanted = left,
                                  .any_page = true,
                                  .reason = EvictionReason::kOperator,
                                  .limit = kDemotedAStep,
                                  .looks = kDemotedLooks,
                                  .unstored = Unstored::kKeep});
  under_way.so_far.pages += done.pages;
  under_way.so_far.bytes += done.bytes;
  const MonotonicNs now = parts_.clock.Now();
  if (done.pages > 0) {
    under_way.moved_at = now;
    if (under_way.told) {
      under_way.told(under_way.so_far.bytes, std::max(under_way.total, under_way.so_far.bytes));
    }
  }
  const bool enough = under_way.wanted != 0 && under_way.so_far.bytes >= under_way.wanted;
  const bool nothing = done.pages == 0 && saves_under_way_ == 0;
  if (!enough && !nothing && now < under_way.moved_at + kDemotionStallNs) return done.pages > 0;
  const std::unique_ptr<Demotion> over = std::move(demotion_);
  over->done(over->so_far);
  return false;
}

// ---- Time

bool PagesOnDevice::KeepReserve() {
  const MonotonicNs now = parts_.clock.Now();
  if (now >= decayed_at_ + kDecayNs) {
    decayed_at_ = now;
    for (const auto& [key, of] : classes_)
      of->recent_slots /= 2;
  }
  if (now < reserve_futile_until_) return false;
  for (const auto& [key, of] : classes_) {
    const uint64_t all = uint64_t{of->slabs} * of->shape.slots;
    const uint64_t reserve = std::min(of->recent_slots, all / kReserveShare);
    if (of->ready_slots * 2 >= reserve) continue;
    if (Provide(*of, reserve - of->ready_slots, EvictionReason::kReserve)) continue;
    reserve_futile_until_ = now + kAfterFailureNs;
  }
  return false;
}

bool PagesOnDevice::Turn() {
  host_slabs_.Turn();
  (void)KeepReserve();
  GiveBackIdle();
  EmptyClosed();
  return StepDemotion();
}

// ---- Figures

void PagesOnDevice::AddFigures(GpuReport* report) const {
  const auto bytes = [&](SlotState state) { return books_.bytes[static_cast<size_t>(state)]; };
  report->linked_pages = books_.slots[static_cast<size_t>(SlotState::kLinked)];
  report->linked_bytes = bytes(SlotState::kLinked);
  report->granted_bytes = bytes(SlotState::kGranted) + bytes(SlotState::kAbandoned);
  report->limbo_bytes = bytes(SlotState::kLimbo);
  report->filling_bytes = bytes(SlotState::kFilling);
  report->free_bytes = books_.slab_bytes - report->linked_bytes - report->granted_bytes -
                       report->limbo_bytes - report->filling_bytes;
  report->demoted_pages = demoted_.extents;
  report->demoted_bytes = demoted_.bytes;
  report->evicted_pages = evictor_.evicted_pages();
  report->lost_pages = lost_pages_;
}

Status PagesOnDevice::CheckInvariants() const {
  RETURN_IF_ERROR(parts_.slabs.CheckBooks(device(), books_, classes_));
  RETURN_IF_ERROR(residents_.CheckInvariants());
  uint64_t bytes = books_.slab_bytes;
  for (const auto& [arena, of] : coming_)
    bytes += of->shape.arena_bytes;
  // Slabs that were released are on their way out of the budget.
  if (bytes > parts_.arenas.bytes().pages) {
    return Status(Code::kInternal, "a device's slabs have more bytes than its budget is charged");
  }
  const char* wrong = nullptr;
  uint64_t moving = 0;
  parts_.slabs.Visit(device(), [&](Slab& slab) {
    if (!parts_.arenas.Ready(slab.arena())) wrong = "a device's slab has no memory";
    if (slab.closed() != closed_.contains(slab.arena())) wrong = "a closed slab is not known";
    for (uint32_t i = 0; i < slab.shape().slots; ++i) {
      const Slot& slot = slab.slot(i);
      const bool leaves = slot.state == SlotState::kLinked || slot.state == SlotState::kLimbo;
      if (leaves) moving += slot.transfers;
    }
  });
  if (wrong == nullptr && moving != saves_under_way_) wrong = "a page on its way down is not there";
  if (wrong != nullptr) return Status(Code::kInternal, wrong);
  return {};
}

}  // namespace terrace
