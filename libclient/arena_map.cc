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
  for (std::atomic<Chunk*>& slot : chunks_)
    delete slot.load(std::memory_order_relaxed);
}

ArenaMap::Place* ArenaMap::PlaceOf(uint32_t arena) const {
  Chunk* chunk = chunks_[arena / kChunk].load(std::memory_order_acquire);
  return chunk == nullptr ? nullptr : &(*chunk)[arena % kChunk];
}

ArenaMap::Place& ArenaMap::MakePlace(uint32_t arena) {
  if (PlaceOf(arena) == nullptr) {
    chunks_[arena / kChunk].store(new Chunk, std::memory_order_release);
  }
  return *PlaceOf(arena);
}

bool ArenaMap::Has(uint32_t arena) const {
  const Place* place = arena < shm::kMaxArenas ? PlaceOf(arena) : nullptr;
  return place != nullptr && place->base.load(std::memory_order_acquire) != nullptr;
}

uint32_t ArenaMap::PageBytes(uint32_t arena) const {
  return Has(arena) ? PlaceOf(arena)->page_bytes : 0;
}

const uint8_t* ArenaMap::Settled(const Place& place) const {
  MutexLock lock(mu_);
  return place.base.load(std::memory_order_relaxed);
}

Status ArenaMap::Add(const messages::Arena& arena, const UniqueFd& fd) {
  return AddBy(arena, /*writable=*/false, [&]() -> Result<MappedArena> {
    ASSIGN_OR_RETURN(PageRange * range, ranges_->Of(arena.page_bytes, capacity_bytes_));
    ASSIGN_OR_RETURN(const uint8_t* base, range->Map(fd.get(), arena.bytes));
    const auto unmap = [ranges = ranges_, range](const uint8_t* data) { range->Unmap(data); };
    return MappedArena{const_cast<uint8_t*>(base), std::shared_ptr<const uint8_t>(base, unmap)};
  });
}

Status ArenaMap::AddWritable(const messages::Arena& arena, const UniqueFd& fd) {
  return AddBy(arena, /*writable=*/true, [&]() -> Result<MappedArena> {
    ASSIGN_OR_RETURN(MappedRange mapping,
                     MappedRange::Of(fd.get(), arena.bytes, Protection::kReadWrite));
    auto held = std::make_shared<const MappedRange>(std::move(mapping));
    uint8_t* base = held->data();
    return MappedArena{base, std::move(held)};
  });
}

Status ArenaMap::AddBy(const messages::Arena& arena, bool writable, const Map& map) {
  RETURN_IF_ERROR(Check(arena));
  MutexLock lock(mu_);
  Place& place = MakePlace(arena.id);
  if (place.gone) {
    return {Code::kUnavailable,
            "the memory of arena " + std::to_string(arena.id) + " was lost, or given back"};
  }
  if (writable) {
    if (writable_.contains(arena.id)) return {};
    ASSIGN_OR_RETURN(MappedArena mapped, map());
    writable_.emplace(arena.id, Writable{std::move(mapped), arena.bytes, arena.page_bytes});
    return {};
  }
  if (place.base.load(std::memory_order_relaxed) != nullptr) return {};
  ASSIGN_OR_RETURN(MappedArena mapped, map());
  place.page_bytes = arena.page_bytes;
  place.slots = static_cast<uint32_t>(arena.bytes / arena.page_bytes);
  place.held = std::move(mapped.held);
  place.base.store(mapped.base, std::memory_order_release);
  return {};
}

uint8_t* ArenaMap::Borrow(shm::Handle handle) {
  MutexLock lock(mu_);
  const auto it = writable_.find(shm::ArenaOf(handle));
  if (it == writable_.end()) return nullptr;
  Writable& arena = it->second;
  const uint64_t offset = uint64_t{shm::SlotOf(handle)} * arena.page_bytes;
  if (offset + arena.page_bytes > arena.bytes) return nullptr;
  ++arena.borrowed;
  return arena.mapped.base + offset;
}

void ArenaMap::Return(shm::Handle handle) {
  MutexLock lock(mu_);
  const auto it = writable_.find(shm::ArenaOf(handle));
  if (it != writable_.end()) --it->second.borrowed;
}

bool ArenaMap::LetGo(uint32_t arena, const std::function<bool()>& pinned) {
  std::shared_ptr<const void> read;     // Unmapped when the lock is free again.
  std::shared_ptr<const void> written;  // Likewise.
  MutexLock lock(mu_);
  const auto writable = writable_.find(arena);
  if (writable != writable_.end() && writable->second.borrowed > 0) return false;
  // Whoever holds a page of it shall not lose its address for a moment.
  if (pinned()) return false;
  if (arena < shm::kMaxArenas) {
    Place& place = MakePlace(arena);
    const uint8_t* base = place.base.exchange(nullptr, std::memory_order_seq_cst);
    if (pinned()) {
      place.base.store(base, std::memory_order_release);
      return false;
    }
    place.gone = true;
    read.swap(place.held);
  }
  if (writable != writable_.end()) {
    written.swap(writable->second.mapped.held);
    writable_.erase(writable);
  }
  return true;
}

bool ArenaMap::Gone(uint32_t arena) const {
  MutexLock lock(mu_);
  const Place* place = arena < shm::kMaxArenas ? PlaceOf(arena) : nullptr;
  return place != nullptr && place->gone;
}

void ArenaMap::Lose(uint32_t arena) {
  if (arena >= shm::kMaxArenas) return;
  MutexLock lock(mu_);
  Place& place = MakePlace(arena);
  place.gone = true;
  place.base.store(nullptr, std::memory_order_seq_cst);
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
    place->base.store(nullptr, std::memory_order_release);
    place->held.reset();
  }
  gone_ = std::move(kept);
}

}  // namespace terrace::client
