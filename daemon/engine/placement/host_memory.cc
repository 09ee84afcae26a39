#include "daemon/engine/placement/host_memory.h"

#include <algorithm>
#include <string>

#include "base/check.h"

namespace terrace {

HostMemory::HostMemory(const HostMemoryOptions& options, HostTier& tier)
    : options_(options), tier_(tier) {}

// ---- Classes and slabs

Result<SlabClass*> HostMemory::ClassOf(uint32_t tenant, uint32_t page_bytes) {
  const auto found = classes_.find({tenant, page_bytes});
  if (found != classes_.end()) return found->second.get();
  const auto first = classes_.lower_bound({tenant, 0});
  const auto last = classes_.lower_bound({tenant + 1, 0});
  if (std::distance(first, last) >= kMaxClasses) {
    const auto unused =
        std::find_if(first, last, [](const auto& entry) { return entry.second->slabs == 0; });
    if (unused == last) {
      return Status(Code::kExhausted, "host memory: the tenant uses " +
                                          std::to_string(kMaxClasses) + " page sizes already");
    }
    classes_.erase(unused);
  }
  auto made = std::make_unique<SlabClass>(
      tenant, SlabShape::Of(page_bytes, options_.slab_bytes, options_.huge_page_bytes));
  return classes_.emplace(ClassKey{tenant, page_bytes}, std::move(made)).first->second.get();
}

std::optional<SlotRef> HostMemory::FindSlot(uint32_t tenant, uint64_t extent) const {
  const auto arena = static_cast<ArenaId>(extent >> shm::kSlotBits);
  const auto index = static_cast<uint32_t>(extent & (shm::kMaxSlots - 1));
  Slab* slab = Find(arena);
  if (slab == nullptr || slab->tenant() != tenant || index >= slab->shape().slots) {
    return std::nullopt;
  }
  return SlotRef{slab, index};
}

Result<Slab*> HostMemory::CreateSlab(SlabClass& of) {
  const uint64_t bytes = of.shape.arena_bytes;
  // A blank comes whole: only when the budget can pay for all of it.
  if (room() < bytes && reserve_bytes_ > 0) {
    reserve_bytes_ = 0;
    tier_.SetReserve(0);
  }
  ASSIGN_OR_RETURN(const HostTier::Created created, tier_.Create(bytes, ArenaUse::kSlab));
  if (created.id >= shm::kMaxArenas) {
    tier_.Release(created.id);
    return Status(Code::kExhausted, "host memory: arena ids are used up; restart the daemon");
  }
  bool resident = created.resident;
  if (resident && room() < bytes) {
    if (Status punched = tier_.Punch({.arena = created.id, .offset = 0, .bytes = bytes});
        !punched.ok()) {
      tier_.Release(created.id);
      return punched;
    }
    resident = false;
  }
  if (created.id >= by_arena_.size()) by_arena_.resize(created.id + 1);
  by_arena_[created.id] = std::make_unique<Slab>(created.id, of.tenant, &of, of.shape, resident);
  Slab* slab = by_arena_[created.id].get();
  ++of.slabs;
  of.ready_slots += slab->ready();
  books_.slots[static_cast<int>(SlotState::kEmpty)] += of.shape.slots;
  books_.bytes[static_cast<int>(SlotState::kEmpty)] +=
      uint64_t{of.shape.slots} * of.shape.page_bytes;
  books_.slab_bytes += slab->resident_bytes();
  of.slots[static_cast<int>(SlotState::kEmpty)] += of.shape.slots;
  of.resident_bytes += slab->resident_bytes();
  UpdateSets(*slab);
  TrimReserve(0);
  return slab;
}

std::vector<Slab*> HostMemory::VacantSlabs() const {
  std::vector<Slab*> vacant;
  for (const auto& [key, of] : classes_) {
    for (Slab* slab : of->with_hollow.slabs()) {
      if (slab->resident_grains() == 0) vacant.push_back(slab);
    }
  }
  return vacant;
}

void HostMemory::ReleaseSlab(Slab* slab) {
  TERRACE_CHECK(slab->resident_grains() == 0);
  SlabClass& of = *slab->owner();
  of.with_ready.Remove(slab);
  of.with_hollow.Remove(slab);
  of.with_idle.Remove(slab);
  --of.slabs;
  for (uint32_t i = 0; i < slab->shape().slots; ++i) {
    const int state = static_cast<int>(slab->slot(i).state);
    --books_.slots[state];
    --of.slots[state];
    books_.bytes[state] -= of.shape.page_bytes;
  }
  const ArenaId arena = slab->arena();
  by_arena_[arena].reset();
  tier_.Release(arena);
}

// ---- Slots

std::optional<SlotRef> HostMemory::Take(SlabClass& of) {
  if (of.with_ready.empty()) return std::nullopt;
  Slab* slab = of.with_ready.slabs().back();
  const std::optional<uint32_t> index = slab->FindReady();
  TERRACE_CHECK(index.has_value());
  const SlotRef slot{slab, *index};
  SetState(slot, SlotState::kGranted);
  return slot;
}

void HostMemory::SetState(SlotRef slot, SlotState state) {
  Slab& slab = *slot.slab;
  SlabClass& of = *slab.owner();
  const auto count = [&](SlotState of_state, int sign) {
    books_.slots[static_cast<int>(of_state)] += sign;
    of.slots[static_cast<int>(of_state)] += sign;
    books_.bytes[static_cast<int>(of_state)] += sign * int64_t{of.shape.page_bytes};
  };
  count(slot->state, -1);
  count(state, 1);
  const uint32_t ready = slab.ready();
  slab.SetState(slot.index, state);
  of.ready_slots += slab.ready() - uint64_t{ready};
  UpdateSets(slab);
}

void HostMemory::Free(SlotRef slot) {
  TERRACE_CHECK(slot->transfers == 0 && slot->holds == 0);
  SetState(slot, slot->sequence == shm::kMaxSequence ? SlotState::kRetired : SlotState::kEmpty);
}

// ---- Memory

bool HostMemory::Extend(SlabClass& of) {
  if (room() < of.shape.BytesOf(0, 1)) return false;
  if (of.with_hollow.empty()) {
    const uint64_t ready = of.ready_slots;
    if (!CreateSlab(of)) return false;
    if (of.ready_slots > ready) return true;
  }
  Slab& slab = *of.with_hollow.slabs().back();
  const std::optional<uint32_t> hollow = slab.FindHollowGrain();
  TERRACE_CHECK(hollow.has_value());
  // As much of the window as has no memory, if the budget allows, else one grain of it.
  const uint32_t window = *hollow - *hollow % of.shape.window_grains;
  const uint32_t window_end = std::min(window + of.shape.window_grains, of.shape.grains());
  uint32_t end = *hollow + 1;
  while (end < window_end && !slab.resident(end))
    ++end;
  if (room() < of.shape.BytesOf(*hollow, end - *hollow)) end = *hollow + 1;
  if (room() < of.shape.BytesOf(*hollow, end - *hollow)) return false;
  return PopulateGrains(slab, *hollow, end).ok();
}

Status HostMemory::PopulateGrains(Slab& slab, uint32_t first, uint32_t end) {
  const Extent extent = slab.ExtentOf(first, end - first);
  TrimReserve(extent.bytes);
  if (Status populated = tier_.Populate(extent); !populated.ok()) {
    // Part of it may have become resident: it must not stay so without being in the books.
    if (!tier_.Punch(extent).ok()) BookLost(slab, first, end);
    return populated;
  }
  for (uint32_t grain = first; grain < end; ++grain)
    SetResident(slab, grain, true);
  UpdateSets(slab);
  return {};
}

// The grains may have memory, wholly or in part, so the budget pays for them. But the tier has
// promised none for their slots, which therefore are not given out before a punch that works has
// taken the memory back.
void HostMemory::BookLost(Slab& slab, uint32_t first, uint32_t end) {
  for (uint32_t grain = first; grain < end; ++grain) {
    for (uint32_t i = grain * slab.shape().grain_slots; i < slab.SlotsEnd(grain); ++i)
      SetState({&slab, i}, SlotState::kRetired);
    SetResident(slab, grain, true);
  }
  UpdateSets(slab);
}

uint64_t HostMemory::Punch(SlabClass& of, uint64_t bytes) {
  uint64_t punched = 0;
  for (const uint32_t unit : {of.shape.window_grains, 1u}) {
    // A copy: the set changes as its slabs lose their idle grains.
    const std::vector<Slab*> idle = of.with_idle.slabs();
    for (Slab* slab : idle) {
      if (punched >= bytes) return punched;
      punched += PunchSlab(*slab, bytes - punched, unit);
    }
  }
  return punched;
}

// Punches runs of units (aligned runs of `unit_grains` grains) in which every grain is without
// pages.
uint64_t HostMemory::PunchSlab(Slab& slab, uint64_t bytes, uint32_t unit_grains) {
  const uint32_t grains = slab.shape().grains();
  uint64_t punched = 0;
  for (uint32_t unit = 0; unit < grains && slab.idle_grains() > 0 && punched < bytes;
       unit += unit_grains) {
    const uint32_t end = std::min(unit + unit_grains, grains);
    bool free = true;
    for (uint32_t grain = unit; grain < end && free; ++grain)
      free = slab.busy(grain) == 0;
    if (!free) continue;
    for (uint32_t first = unit; first < end;) {
      uint32_t stop = first;
      while (stop < end && slab.resident(stop))
        ++stop;
      if (stop > first) punched += PunchGrains(slab, first, stop);
      first = stop + 1;
    }
  }
  UpdateSets(slab);
  return punched;
}

uint64_t HostMemory::PunchGrains(Slab& slab, uint32_t first, uint32_t end) {
  const Extent extent = slab.ExtentOf(first, end - first);
  // On failure the memory stays where it is and in the books.
  if (!tier_.Punch(extent).ok()) return 0;
  for (uint32_t grain = first; grain < end; ++grain) {
    SetResident(slab, grain, false);
    for (uint32_t i = grain * slab.shape().grain_slots; i < slab.SlotsEnd(grain); ++i) {
      if (slab.slot(i).state == SlotState::kRetired) Free({&slab, i});  // Of BookLost.
    }
  }
  return extent.bytes;
}

void HostMemory::SetResident(Slab& slab, uint32_t grain, bool resident) {
  const uint64_t ready = slab.ready();
  slab.SetResident(grain, resident);
  slab.owner()->ready_slots += slab.ready() - ready;
  const uint64_t bytes = slab.shape().BytesOf(grain, 1);
  books_.slab_bytes += resident ? bytes : -bytes;
  slab.owner()->resident_bytes += resident ? bytes : -bytes;
}

void HostMemory::UpdateSets(Slab& slab) {
  SlabClass& of = *slab.owner();
  of.with_ready.Update(&slab);
  of.with_hollow.Update(&slab);
  of.with_idle.Update(&slab);
}

Result<HostTier::Created> HostMemory::CreateBlock(size_t bytes) {
  if (room() < bytes) {
    return Status(Code::kExhausted,
                  "host memory: no room for a block of " + std::to_string(bytes) + " bytes");
  }
  // A block that cannot come from the reserve is populated later: make the reserve smaller first.
  if (bytes > tier_.blank_bytes()) TrimReserve(bytes);
  ASSIGN_OR_RETURN(const HostTier::Created created, tier_.Create(bytes, ArenaUse::kBlock));
  blocks_.emplace(created.id, bytes);
  books_.block_bytes += bytes;
  TrimReserve(0);
  return created;
}

void HostMemory::ReleaseBlock(ArenaId arena) {
  const auto found = blocks_.find(arena);
  TERRACE_CHECK(found != blocks_.end());
  books_.block_bytes -= found->second;
  blocks_.erase(found);
  tier_.Release(arena);
}

std::optional<uint64_t> HostMemory::BlockBytes(ArenaId arena) const {
  const auto found = blocks_.find(arena);
  if (found == blocks_.end()) return std::nullopt;
  return found->second;
}

// ---- Budget

void HostMemory::SetCapacity(uint64_t bytes) {
  options_.capacity_bytes = bytes;
  TrimReserve(0);
}

void HostMemory::TrimReserve(uint64_t coming) {
  const uint64_t left = room() > coming ? room() - coming : 0;
  if (reserve_bytes_ <= left) return;
  reserve_bytes_ = left;
  tier_.SetReserve(left);
}

void HostMemory::RaiseReserve() {
  const uint64_t target = std::min(options_.pretouch_bytes, room());
  // Less than one blank more changes nothing.
  if (target < reserve_bytes_ + tier_.blank_bytes()) return;
  reserve_bytes_ = target;
  tier_.SetReserve(target);
}

void HostMemory::RepeatReserve() {
  if (reserve_bytes_ > 0) tier_.SetReserve(reserve_bytes_);
}

Status HostMemory::CheckInvariants() const {
  HostBooks sum;
  struct OfClass {
    uint64_t ready = 0;
    uint64_t slots[kSlotStates] = {};
    uint64_t resident_bytes = 0;
  };
  std::map<const SlabClass*, OfClass> of_class;
  for (const auto& slab : by_arena_) {
    if (slab == nullptr) continue;
    uint32_t slab_ready = 0;
    OfClass& own = of_class[slab->owner()];
    for (uint32_t i = 0; i < slab->shape().slots; ++i) {
      const Slot& slot = slab->slot(i);
      const bool resident = slab->resident(slab->GrainOf(i));
      ++sum.slots[static_cast<int>(slot.state)];
      ++own.slots[static_cast<int>(slot.state)];
      sum.bytes[static_cast<int>(slot.state)] += slab->shape().page_bytes;
      if (slot.state == SlotState::kEmpty && resident) ++slab_ready;
      if (IsBusy(slot.state) && !resident) {
        return Status(Code::kInternal, "a slot with a page has no memory");
      }
      if (slot.victim) return Status(Code::kInternal, "a slot is still marked as a victim");
    }
    if (slab_ready != slab->ready()) return Status(Code::kInternal, "a slab's ready slots differ");
    own.ready += slab_ready;
    own.resident_bytes += slab->resident_bytes();
    sum.slab_bytes += slab->resident_bytes();
  }
  for (const auto& [arena, bytes] : blocks_)
    sum.block_bytes += bytes;
  for (int state = 0; state < kSlotStates; ++state) {
    if (sum.slots[state] != books_.slots[state] || sum.bytes[state] != books_.bytes[state]) {
      return Status(Code::kInternal, "slots of state " + std::to_string(state) + ": " +
                                         std::to_string(sum.slots[state]) + " counted, " +
                                         std::to_string(books_.slots[state]) + " in the books");
    }
  }
  if (sum.slab_bytes != books_.slab_bytes) {
    return Status(Code::kInternal, "resident bytes of slabs differ from the books");
  }
  if (sum.block_bytes != books_.block_bytes) {
    return Status(Code::kInternal, "bytes of blocks differ from the books");
  }
  for (const auto& [key, of] : classes_) {
    const OfClass& counted = of_class[of.get()];
    if (counted.ready != of->ready_slots || counted.resident_bytes != of->resident_bytes ||
        !std::equal(std::begin(counted.slots), std::end(counted.slots), std::begin(of->slots))) {
      return Status(Code::kInternal, "a class's slots or resident bytes differ");
    }
  }
  return {};
}

}  // namespace terrace
