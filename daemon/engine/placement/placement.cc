#include "daemon/engine/placement/placement.h"

#include <algorithm>

namespace terrace {
namespace {

// Passes of one verb, each of which may walk over all that is resident. One that brings nothing is
// the last, so where nothing can be evicted a verb walks once. Another follows only where the tier
// refused what the one before made room for, where limbo pages became free, or where some of its
// victims were pinned meanwhile; who has them pinned anew each time is refused after the last.
constexpr int kMaxPasses = 4;
// A pass evicts one page for this many pins that its scans read, so that the scans cost a page some
// microseconds, but not more than a part of what is resident for a single page.
constexpr uint64_t kBatchPages = 16;
constexpr uint64_t kPinsAPage = 256;
constexpr uint64_t kBatchShare = 16;
// The reserve is what was granted in about the last 200 ms, a few turns' worth, and at most a
// sixteenth of the capacity.
constexpr MonotonicNs kDecayNs = 100 * kNsPerMs;
constexpr uint64_t kMaxReserveSlots = 4096;
constexpr uint64_t kReserveShare = 16;
// Where all is pinned, granted or to be written first the reserve cannot be filled; looking costs
// two scans and a walk.
constexpr MonotonicNs kFutileNs = 100 * kNsPerMs;
// Populated a turn: without huge pages 4 MiB take some 3 ms.
constexpr uint64_t kPopulateStepBytes = 4u << 20;
constexpr uint64_t kShrinkStepBytes = 64u << 20;
// Long enough that a lull between requests does not cost the huge pages, short enough that an
// engine's end gives others its memory within a minute.
constexpr MonotonicNs kIdleNs = 30 * kNsPerSecond;
constexpr uint64_t kGiveBackStepBytes = 32u << 20;
constexpr MonotonicNs kVacantNs = kNsPerSecond;
// What kept the tier from making blanks may be over.
constexpr MonotonicNs kRepeatReserveNs = 5 * kNsPerSecond;
// Of one step of a demotion: more than can wait to be written, which is met again by each.
constexpr uint64_t kDemotedLooks = 16384;
constexpr uint64_t kRingRecordsAPass = 65536;

}  // namespace

std::vector<SlotRef> Placement::Allocate(SlabClass& of, uint64_t count) {
  std::vector<SlotRef> slots;
  slots.reserve(count);
  of.last_demand = clock_.Now();
  of.recent_slots += count;
  // No eviction makes room for a page that is larger than everything.
  const bool fits = of.shape.BytesOf(0, 1) <= memory_.capacity();
  for (int passes = 0; slots.size() < count;) {
    if (const std::optional<SlotRef> slot = memory_.slabs().Take(of)) {
      slots.push_back(*slot);
      continue;
    }
    if (memory_.Extend(of)) continue;
    const bool tier_refuses = memory_.room() >= of.shape.BytesOf(0, 1);
    if (!fits || ++passes > kMaxPasses ||
        !Reclaim(of, count - slots.size(), tier_refuses, EvictionReason::kPages)) {
      break;
    }
  }
  return slots;
}

std::optional<SlotRef> Placement::TakeFree(SlabClass& of) {
  if (of.ready_slots > ReserveOf(of)) return memory_.slabs().Take(of);
  // What is taken of the reserve is made up for by eviction, so there has to be room for that too.
  uint64_t kept = of.shape.BytesOf(0, 1);
  for (const auto& [key, each] : memory_.classes()) {
    const uint64_t reserve = ReserveOf(*each);
    kept += (reserve - std::min(reserve, each->ready_slots)) * each->shape.page_bytes;
  }
  if (memory_.room() < kept || !memory_.Extend(of)) return std::nullopt;
  return memory_.slabs().Take(of);
}

bool Placement::Reclaim(SlabClass& of, uint64_t slots, bool tier_refuses, EvictionReason reason) {
  const uint64_t least = of.shape.BytesOf(0, 1);
  const uint64_t all = (slots + of.shape.grain_slots - 1) / of.shape.grain_slots * least;
  const auto got = [&] { return of.ready_slots > 0 || (!tier_refuses && memory_.room() >= least); };
  // Nobody loses memory for less than a grain of it.
  const auto punch = [&](Take take) {
    if (tier_refuses || IdleBytes(&of) < memory_.MissingFor(least)) return;
    PunchOthers(&of, memory_.MissingFor(all), take);
  };
  punch(Take::kSpare);
  if (got()) return true;
  const uint64_t limbo = pins_.limbo_pages();
  DrainRings(kRingRecordsAPass);
  evictor_.Pass(
      {.of = &of,
       .wanted = std::max(slots, Batch(of)),
       .have_bytes = static_cast<int64_t>(memory_.capacity() + IdleBytes(&of)) -
                     static_cast<int64_t>(memory_.books().used()),
       .own_only = tier_refuses,
       .reason = reason,
       .unstored = reason == EvictionReason::kReserve ? Unstored::kWriteFirst : Unstored::kLast});
  if (of.ready_slots == 0) {
    punch(Take::kAll);
    // Own grains that are idle although no slot is ready hold memory that the tier would neither
    // fill nor take back before.
    if (!tier_refuses) memory_.Punch(of, memory_.MissingFor(least));
  }
  if (got()) return true;
  // What was dropped may be read no more: the pass found that, after it had counted what there was,
  // or did not look.
  pins_.SettleLimbo();
  return pins_.limbo_pages() < limbo;
}

bool Placement::MakeRoom(uint64_t bytes) {
  if (bytes > memory_.capacity()) return false;
  for (int pass = 0; pass < kMaxPasses && memory_.MissingFor(bytes) > 0; ++pass) {
    PunchOthers(nullptr, memory_.MissingFor(bytes), Take::kSpare);
    const uint64_t missing = memory_.MissingFor(bytes);
    const uint64_t idle = IdleBytes(nullptr);
    if (missing > idle) {
      const uint64_t limbo = pins_.limbo_pages();
      DrainRings(kRingRecordsAPass);
      const EvictionDone done = evictor_.Pass({.wanted = missing - idle,
                                               .all_or_nothing = true,
                                               .reason = EvictionReason::kWeights,
                                               .unstored = Unstored::kLast});
      if (done.pages + done.blocks == 0) {
        pins_.SettleLimbo();
        if (pins_.limbo_pages() == limbo) return false;
      }
    }
    PunchOthers(nullptr, memory_.MissingFor(bytes), Take::kAll);
  }
  return memory_.MissingFor(bytes) == 0;
}

EvictionDone Placement::Evict(uint64_t bytes, uint64_t limit) {
  DrainRings(kRingRecordsAPass);
  EvictionDone done;
  for (int pass = 0; pass < kMaxPasses && (bytes == 0 || done.bytes < bytes); ++pass) {
    if (done.pages + done.blocks >= limit) break;
    const uint64_t wanted = bytes == 0 ? UINT64_MAX : bytes - done.bytes;
    const EvictionDone more = evictor_.Pass({.wanted = wanted,
                                             .any_page = true,
                                             .reason = EvictionReason::kOperator,
                                             .limit = limit - done.pages - done.blocks});
    if (more.pages + more.blocks == 0) break;
    done.pages += more.pages;
    done.blocks += more.blocks;
    done.bytes += more.bytes;
  }
  return done;
}

EvictionDone Placement::Demote(uint64_t bytes, uint64_t limit) {
  DrainRings(kRingRecordsAPass);
  return evictor_.Pass({.wanted = bytes == 0 ? UINT64_MAX : bytes,
                        .any_page = true,
                        .reason = EvictionReason::kOperator,
                        .limit = limit,
                        .looks = kDemotedLooks,
                        .unstored = Unstored::kKeep});
}

uint64_t Placement::PunchOthers(const SlabClass* spare, uint64_t bytes, Take take) {
  if (bytes == 0) return 0;
  std::vector<SlabClass*> classes;
  for (const auto& [key, of] : memory_.classes()) {
    if (of.get() != spare && !of->with_idle.empty()) classes.push_back(of.get());
  }
  std::stable_sort(classes.begin(), classes.end(), [](const SlabClass* a, const SlabClass* b) {
    return a->last_demand < b->last_demand;
  });
  uint64_t punched = 0;
  for (SlabClass* of : classes) {
    if (punched >= bytes) break;
    punched += memory_.Punch(*of, std::min(bytes - punched, Takeable(*of, take)));
  }
  return punched;
}

uint64_t Placement::Takeable(const SlabClass& of, Take take) const {
  switch (take) {
    case Take::kIdle:
      return of.last_demand < clock_.Now() - kIdleNs ? UINT64_MAX : 0;
    case Take::kSpare: {
      const uint64_t reserve = ReserveOf(of);
      return of.ready_slots > reserve ? (of.ready_slots - reserve) * of.shape.page_bytes : 0;
    }
    case Take::kAll:
      break;
  }
  return UINT64_MAX;
}

uint64_t Placement::IdleBytes(const SlabClass* spare) const {
  uint64_t bytes = 0;
  for (const auto& [key, of] : memory_.classes()) {
    if (of.get() == spare) continue;
    for (const Slab* slab : of->with_idle.slabs())
      bytes += slab->idle_grains() * of->shape.BytesOf(0, 1);
  }
  return bytes;
}

uint64_t Placement::Batch(const SlabClass& of) const {
  const uint64_t wanted = kBatchPages + pins_.total() / kPinsAPage;
  return std::min({wanted, residents_.count() / kBatchShare + 1,
                   memory_.capacity() / kBatchShare / of.shape.page_bytes + 1});
}

uint64_t Placement::DrainRings(uint64_t limit) {
  uint64_t drained = 0;
  const auto& tenants = catalog_.tenants();
  // Starts with the tenant after the last one, so that a busy one does not keep others waiting.
  for (size_t step = 0; step < tenants.size() && drained < limit; ++step) {
    drain_from_ = (drain_from_ + 1) % tenants.size();
    const auto& tenant = tenants[drain_from_];
    drained += tenant->index->DrainRings(
        limit - drained, [&](const TenantIndex::RingVisit& visit) { NoteRead(*tenant, visit); });
  }
  return drained;
}

void Placement::DrainRingsOf(TenantId id, ClientId client) {
  Tenant& tenant = catalog_.At(id);
  tenant.index->DrainRingsOf(client,
                             [&](const TenantIndex::RingVisit& visit) { NoteRead(tenant, visit); });
}

void Placement::NoteRead(Tenant& tenant, const TenantIndex::RingVisit& visit) {
  const bool hit = visit.kind == shm::RingKind::kTouch;
  if (hit) residents_.Touch(tenant.id, visit.handle);
  for (PageWatcher* watcher : watchers_)
    watcher->Told(tenant.id, visit);
  if (visit.space_slot >= tenant.reads.size()) return;
  SpaceReads& reads = tenant.reads[visit.space_slot];
  ++(hit ? reads.hits : reads.misses);
}

// ---- Turn

bool Placement::Turn(std::vector<Gone>* gone) {
  const MonotonicNs now = clock_.Now();
  DecayDemand(now);
  bool more = Shrink();
  more |= KeepReserve();
  more |= GiveBack();
  ReleaseVacant(now, gone);
  memory_.RaiseReserve();
  if (now >= reserve_repeated_at_ + kRepeatReserveNs) {
    reserve_repeated_at_ = now;
    memory_.RepeatReserve();
  }
  return more;
}

void Placement::DecayDemand(MonotonicNs now) {
  const MonotonicNs periods = (now - decayed_at_) / kDecayNs;
  if (periods <= 0) return;
  decayed_at_ += periods * kDecayNs;
  for (const auto& [key, of] : memory_.classes())
    of->recent_slots = periods < 64 ? of->recent_slots >> periods : 0;
}

uint64_t Placement::ReserveOf(const SlabClass& of) const {
  return std::min({of.recent_slots, kMaxReserveSlots,
                   memory_.capacity() / kReserveShare / of.shape.page_bytes});
}

// One class a call is evicted for: its victims may be another's.
bool Placement::KeepReserve() {
  uint64_t populated = 0;
  for (const auto& [key, of] : memory_.classes()) {
    const uint64_t reserve = ReserveOf(*of);
    // Filled up when half empty, so that scans serve many pages.
    if (of->ready_slots * 2 >= reserve) continue;
    while (of->ready_slots < reserve) {
      if (populated >= kPopulateStepBytes) return true;
      const uint64_t room = memory_.room();
      if (!memory_.Extend(*of)) break;
      populated += room - memory_.room();
    }
    if (of->ready_slots * 2 >= reserve) continue;
    if (clock_.Now() < reserve_futile_until_ && evictor_.ended_writes() < reserve_awaits_writes_) {
      return false;
    }
    const bool tier_refuses = memory_.room() >= of->shape.BytesOf(0, 1);
    if (Reclaim(*of, reserve - of->ready_slots, tier_refuses, EvictionReason::kReserve))
      return true;
    reserve_futile_until_ = clock_.Now() + kFutileNs;
    // What is being written first is written before others, and then it is there.
    const uint64_t deferred = evictor_.deferred_pages();
    reserve_awaits_writes_ = deferred == 0 ? UINT64_MAX : evictor_.ended_writes() + deferred;
    return false;
  }
  return false;
}

bool Placement::GiveBack() {
  return PunchOthers(nullptr, kGiveBackStepBytes, Take::kIdle) >= kGiveBackStepBytes;
}

void Placement::ReleaseVacant(MonotonicNs now, std::vector<Gone>* gone) {
  if (now < vacant_looked_at_ + kVacantNs) return;
  vacant_looked_at_ = now;
  std::set<TenantId> scanned;
  for (Slab* slab : memory_.VacantSlabs()) {
    if (slab->owner()->last_demand >= now - kIdleNs) continue;
    // A reader may be about to look at an old handle: the arena stays as long as a pin names it.
    if (scanned.insert(slab->tenant()).second) pins_.Scan(slab->tenant());
    if (pins_.AnyPinned(*slab)) continue;
    gone->push_back({.tenant = slab->tenant(), .arena = slab->arena()});
    memory_.ReleaseSlab(slab);
  }
}

bool Placement::Shrink() {
  const uint64_t used = memory_.books().used();
  if (used <= memory_.capacity()) return false;
  const uint64_t step = std::min(used - memory_.capacity(), kShrinkStepBytes);
  uint64_t punched = PunchOthers(nullptr, step, Take::kAll);
  if (punched < step) {
    DrainRings(kRingRecordsAPass);
    evictor_.Pass({.wanted = step - punched,
                   .reason = EvictionReason::kCapacity,
                   .unstored = Unstored::kLast});
    punched += PunchOthers(nullptr, step - punched, Take::kAll);
  }
  return memory_.books().used() < used && memory_.books().used() > memory_.capacity();
}

}  // namespace terrace
