#include "daemon/engine/placement/host_memory.h"

#include <algorithm>
#include <string>

#include "base/check.h"

namespace terrace {

HostMemory::HostMemory(const HostMemoryOptions& options, HostTier& tier, Slabs& slabs)
    : options_(options), tier_(tier), slabs_(slabs) {}

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
      tenant, SlabShape::Of(page_bytes, options_.slab_bytes, options_.huge_page_bytes), books_);
  return classes_.emplace(Slabs::ClassKey{tenant, page_bytes}, std::move(made)).first->second.get();
}

Result<Slab*> HostMemory::CreateSlab(SlabClass& of) {
  const uint64_t bytes = of.shape.arena_bytes;
  // A blank comes whole: only when the budget can pay for all of it.
  if (room() < bytes && reserve_bytes_ > 0) {
    reserve_bytes_ = 0;
    tier_.SetReserve(0);
  }
  ASSIGN_OR_RETURN(const HostTier::Created created, tier_.Create(bytes, ArenaUse::kSlab));
  if (created.id > kLastSlabId) {
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
  Slab* slab = slabs_.Add(created.id, of, resident);
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
  const ArenaId arena = slab->arena();
  slabs_.Remove(slab);
  tier_.Release(arena);
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
    slabs_.SetResident(slab, grain, true);
  return {};
}

// The grains may have memory, wholly or in part, so the budget pays for them. But the tier has
// promised none for their slots, which therefore are not given out before a punch that works has
// taken the memory back.
void HostMemory::BookLost(Slab& slab, uint32_t first, uint32_t end) {
  for (uint32_t grain = first; grain < end; ++grain) {
    for (uint32_t i = grain * slab.shape().grain_slots; i < slab.SlotsEnd(grain); ++i)
      slabs_.SetState({&slab, i}, SlotState::kRetired);
    slabs_.SetResident(slab, grain, true);
  }
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
  return punched;
}

uint64_t HostMemory::PunchGrains(Slab& slab, uint32_t first, uint32_t end) {
  const Extent extent = slab.ExtentOf(first, end - first);
  // On failure the memory stays where it is and in the books.
  if (!tier_.Punch(extent).ok()) return 0;
  for (uint32_t grain = first; grain < end; ++grain) {
    slabs_.SetResident(slab, grain, false);
    for (uint32_t i = grain * slab.shape().grain_slots; i < slab.SlotsEnd(grain); ++i) {
      if (slab.slot(i).state == SlotState::kRetired) slabs_.Free({&slab, i});  // Of BookLost.
    }
  }
  return extent.bytes;
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
  RETURN_IF_ERROR(slabs_.CheckBooks(0, books_, classes_));
  uint64_t block_bytes = 0;
  for (const auto& [arena, bytes] : blocks_)
    block_bytes += bytes;
  if (block_bytes != books_.block_bytes) {
    return Status(Code::kInternal, "bytes of blocks differ from the books");
  }
  return {};
}

}  // namespace terrace
