// ArenaMap: where the arenas of one daemon life are mapped in this process.
//
// A hit finds its page by two loads without a lock. Arenas are added by whoever meets one first and
// removed when the daemon says that they are gone; ids are not reused in a life, so an id is added
// at most once. Thread-safe. The arenas go with the map.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <span>
#include <vector>

#include "base/mutex.h"
#include "base/status.h"
#include "base/unique_fd.h"
#include "libclient/messages.h"
#include "libclient/page_range.h"
#include "proto/shared_memory.h"

namespace terrace::client {

class ArenaMap {
 public:
  ArenaMap(std::shared_ptr<PageRanges> ranges, uint64_t capacity_bytes)
      : ranges_(std::move(ranges)), capacity_bytes_(capacity_bytes) {}
  ~ArenaMap();
  ArenaMap(const ArenaMap&) = delete;
  ArenaMap& operator=(const ArenaMap&) = delete;

  // The page that a pinned handle names; nullptr: its arena is not mapped, or has no such page.
  const uint8_t* PageAt(shm::Handle handle) const {
    const Chunk* chunk = chunks_[shm::ArenaOf(handle) / kChunk].load(std::memory_order_acquire);
    if (chunk == nullptr) return nullptr;
    const Place& place = (*chunk)[shm::ArenaOf(handle) % kChunk];
    const uint8_t* base = place.base.load(std::memory_order_acquire);
    if (base == nullptr || shm::SlotOf(handle) >= place.slots) return nullptr;
    return base + uint64_t{shm::SlotOf(handle)} * place.page_bytes;
  }
  // Whether the arena is mapped for reading.
  bool Has(uint32_t arena) const;
  // 0: not mapped.
  uint32_t PageBytes(uint32_t arena) const;
  // The same page for writing; nullptr: not mapped so.
  uint8_t* WritableAt(shm::Handle handle) const EXCLUDES(mu_);

  // Maps an arena as the daemon described it; nothing happens if it is mapped already.
  Status Add(const messages::Arena& arena, const UniqueFd& fd) EXCLUDES(mu_);
  Status AddWritable(const messages::Arena& arena, const UniqueFd& fd) EXCLUDES(mu_);
  // Arenas that are gone in the daemon. Those that `pinned` names stay until a later call: the
  // daemon frees no arena with pins, so this only guards against its errors.
  void Remove(std::span<const uint32_t> arenas, const std::set<uint32_t>& pinned) EXCLUDES(mu_);

 private:
  static constexpr uint32_t kChunk = 1024;
  struct Place {
    std::atomic<const uint8_t*> base = nullptr;  // Written last.
    uint32_t page_bytes = 0;
    uint32_t slots = 0;
    PageRange* range = nullptr;
  };
  using Chunk = std::array<Place, kChunk>;
  struct Writable {
    MappedRange mapping;
    uint32_t page_bytes = 0;
  };

  Place* PlaceOf(uint32_t arena) const;

  const std::shared_ptr<PageRanges> ranges_;
  const uint64_t capacity_bytes_;
  std::array<std::atomic<Chunk*>, shm::kMaxArenas / kChunk> chunks_ = {};

  mutable Mutex mu_;
  std::map<uint32_t, Writable> writable_ GUARDED_BY(mu_);
  std::vector<uint32_t> gone_ GUARDED_BY(mu_);  // Removed by the daemon and still mapped.
};

}  // namespace terrace::client
