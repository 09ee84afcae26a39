#include "tiers/sim/sim_host_tier.h"

#include <sys/eventfd.h>

#include <algorithm>
#include <cstring>
#include <string>

#include "base/check.h"

namespace terrace {
namespace {

constexpr size_t kPage = 4096;

}  // namespace

SimArena::SimArena(size_t bytes, ArenaUse use)
    : size_(bytes),
      use_(use),
      // calloc, so that large arenas cost what is touched of them only.
      memory_(static_cast<uint8_t*>(std::calloc(bytes, 1))),
      resident_(bytes / kPage) {
  TERRACE_CHECK(memory_ != nullptr);
}

bool SimArena::Resident(size_t offset, size_t bytes) const {
  for (size_t page = offset / kPage; page * kPage < offset + bytes; ++page) {
    if (!resident_[page]) return false;
  }
  return true;
}

void SimArena::SetResident(size_t first_page, size_t end_page, bool resident) {
  for (size_t page = first_page; page < end_page; ++page) {
    if (resident_[page] == resident) continue;
    resident_[page] = resident;
    resident ? ++resident_pages_ : --resident_pages_;
  }
}

Result<HostTier::Created> SimHostTier::Create(size_t bytes, ArenaUse use) {
  TERRACE_CHECK(bytes > 0 && bytes % kPage == 0);
  RETURN_IF_ERROR(create_faults.Next());
  if (bytes > options_.capacity_bytes - std::min(options_.capacity_bytes, arena_bytes_)) {
    return Status(Code::kExhausted,
                  "host tier: no memory for an arena of " + std::to_string(bytes) + " bytes");
  }
  auto arena = std::make_shared<SimArena>(bytes, use);
  const bool from_reserve = bytes <= options_.blank_bytes && blanks_ > 0;
  if (from_reserve) {
    --blanks_;
    arena->SetResident(0, bytes / kPage, true);
  }
  arena_bytes_ += bytes;
  ArenaId& last_id = use == ArenaUse::kSlab ? last_slab_id_ : last_block_id_;
  arenas_.emplace(++last_id, std::move(arena));
  return Created{.id = last_id, .resident = from_reserve};
}

std::span<uint8_t> SimHostTier::Bytes(ArenaId arena) {
  return Find(arena).bytes();
}

Status SimHostTier::Populate(const Extent& extent) {
  SimArena& arena = Find(extent);
  RETURN_IF_ERROR(populate_faults.Next());
  arena.SetResident(extent.offset / kPage, (extent.offset + extent.bytes + kPage - 1) / kPage,
                    true);
  return {};
}

Status SimHostTier::Punch(const Extent& extent) {
  SimArena& arena = Find(extent);
  TERRACE_CHECK(arena.use() == ArenaUse::kSlab);
  RETURN_IF_ERROR(punch_faults.Next());
  std::memset(arena.bytes().data() + extent.offset, 0, extent.bytes);
  const size_t first = (extent.offset + kPage - 1) / kPage;
  const size_t end = (extent.offset + extent.bytes) / kPage;
  if (first < end) arena.SetResident(first, end, false);
  return {};
}

Status SimHostTier::Seal(ArenaId id) {
  SimArena& arena = Find(id);
  TERRACE_CHECK(arena.use() == ArenaUse::kBlock && !arena.sealed());
  RETURN_IF_ERROR(seal_faults.Next());
  arena.Seal();
  return {};
}

void SimHostTier::Release(ArenaId id) {
  SimArena& arena = Find(id);
  arena.MarkReleased();
  arena_bytes_ -= arena.bytes().size();
  arenas_.erase(id);
}

Result<UniqueFd> SimHostTier::Descriptor(ArenaId arena, Protection) {
  if (options_.descriptors) {
    Find(arena);
    UniqueFd stand_in(::eventfd(0, EFD_CLOEXEC));
    if (stand_in) return stand_in;
  }
  return Status(Code::kUnavailable,
                "simulated arena " + std::to_string(arena) + " has no descriptor");
}

void SimHostTier::SetReserve(size_t bytes) {
  blank_target_ = bytes / options_.blank_bytes;
  blanks_ = std::min(blanks_, blank_target_);
  blanks_stopped_ = false;
}

size_t SimHostTier::MakeBlanks() {
  if (blank_target_ > blanks_ && !blanks_stopped_) blanks_stopped_ = !blank_faults.Next().ok();
  if (blanks_stopped_) return 0;
  const size_t made = std::min(options_.blanks_per_step, blank_target_ - blanks_);
  blanks_ += made;
  return made;
}

HostReport SimHostTier::Report() const {
  HostReport report;
  report.arena_bytes = arena_bytes_;
  report.blank_bytes = blanks_ * options_.blank_bytes;
  report.blank_target_bytes = blank_target_ * options_.blank_bytes;
  report.small_page_bytes = report.blank_bytes;
  for (const auto& [id, arena] : arenas_)
    report.small_page_bytes += arena->resident_bytes();
  report.huge_pages = "none: simulated memory";
  report.locking = "none: simulated memory";
  return report;
}

std::shared_ptr<const SimArena> SimHostTier::Map(ArenaId arena) const {
  const auto found = arenas_.find(arena);
  return found == arenas_.end() ? nullptr : found->second;
}

SimArena& SimHostTier::Find(ArenaId arena) const {
  const auto found = arenas_.find(arena);
  TERRACE_CHECK(found != arenas_.end());
  return *found->second;
}

SimArena& SimHostTier::Find(const Extent& extent) const {
  SimArena& arena = Find(extent.arena);
  TERRACE_CHECK(extent.offset <= arena.bytes().size() &&
                extent.bytes <= arena.bytes().size() - extent.offset);
  return arena;
}

}  // namespace terrace
