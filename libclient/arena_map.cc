#include "libclient/arena_map.h"

#include <string>
#include <utility>

namespace terrace::client {
namespace {

Status Check(const messages::Arena& arena) {
  if (arena.id < shm::kMaxArenas && arena.page_bytes != 0 && arena.bytes >= arena.page_bytes &&
      arena.bytes / arena.page_bytes <= shm::kMaxSlots) {
    return {};
  }
  return {Code::kDataLoss, "arena " + std::to_string(arena.id) + " is described wrongly"};
}

}  // namespace

ArenaMap::~ArenaMap() {
  for (std::atomic<Chunk*>& slot : chunks_) {
    const std::unique_ptr<Chunk> chunk(slot.load(std::memory_order_relaxed));
    if (chunk == nullptr) continue;
    for (Place& place : *chunk) {
      const uint8_t* base = place.base.load(std::memory_order_relaxed);
      if (base != nullptr) place.range->Unmap(base);
    }
  }
}

ArenaMap::Place* ArenaMap::PlaceOf(uint32_t arena) const {
  Chunk* chunk = chunks_[arena / kChunk].load(std::memory_order_acquire);
  return chunk == nullptr ? nullptr : &(*chunk)[arena % kChunk];
}

bool ArenaMap::Has(uint32_t arena) const {
  const Place* place = arena < shm::kMaxArenas ? PlaceOf(arena) : nullptr;
  return place != nullptr && place->base.load(std::memory_order_acquire) != nullptr;
}

uint32_t ArenaMap::PageBytes(uint32_t arena) const {
  return Has(arena) ? PlaceOf(arena)->page_bytes : 0;
}

Status ArenaMap::Add(const messages::Arena& arena, const UniqueFd& fd) {
  RETURN_IF_ERROR(Check(arena));
  ASSIGN_OR_RETURN(PageRange * range, ranges_->Of(arena.page_bytes, capacity_bytes_));
  MutexLock lock(mu_);
  if (PlaceOf(arena.id) == nullptr) {
    chunks_[arena.id / kChunk].store(new Chunk, std::memory_order_release);
  }
  Place& place = *PlaceOf(arena.id);
  if (place.base.load(std::memory_order_relaxed) != nullptr) return {};
  ASSIGN_OR_RETURN(const uint8_t* base, range->Map(fd.get(), arena.bytes));
  place.page_bytes = arena.page_bytes;
  place.slots = static_cast<uint32_t>(arena.bytes / arena.page_bytes);
  place.range = range;
  place.base.store(base, std::memory_order_release);
  return {};
}

Status ArenaMap::AddWritable(const messages::Arena& arena, const UniqueFd& fd) {
  RETURN_IF_ERROR(Check(arena));
  MutexLock lock(mu_);
  if (writable_.contains(arena.id)) return {};
  ASSIGN_OR_RETURN(MappedRange mapping,
                   MappedRange::Of(fd.get(), arena.bytes, Protection::kReadWrite));
  writable_.emplace(arena.id, Writable{std::move(mapping), arena.page_bytes});
  return {};
}

uint8_t* ArenaMap::WritableAt(shm::Handle handle) const {
  MutexLock lock(mu_);
  const auto it = writable_.find(shm::ArenaOf(handle));
  if (it == writable_.end()) return nullptr;
  const Writable& arena = it->second;
  const uint64_t offset = uint64_t{shm::SlotOf(handle)} * arena.page_bytes;
  if (offset + arena.page_bytes > arena.mapping.size()) return nullptr;
  return arena.mapping.data() + offset;
}

void ArenaMap::Remove(std::span<const uint32_t> arenas, const std::set<uint32_t>& pinned) {
  MutexLock lock(mu_);
  gone_.insert(gone_.end(), arenas.begin(), arenas.end());
  std::vector<uint32_t> kept;
  for (const uint32_t arena : gone_) {
    if (arena >= shm::kMaxArenas) continue;
    if (pinned.contains(arena)) {
      kept.push_back(arena);
      continue;
    }
    writable_.erase(arena);
    Place* place = PlaceOf(arena);
    if (place == nullptr) continue;
    const uint8_t* base = place->base.exchange(nullptr, std::memory_order_acq_rel);
    if (base != nullptr) place->range->Unmap(base);
  }
  gone_ = std::move(kept);
}

}  // namespace terrace::client
