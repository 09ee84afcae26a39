// ArenaMap: where the arenas of one daemon life are mapped in this process.
//
// A hit finds its page by two loads without a lock. Arenas are added by whoever meets one first and
// removed when the daemon says that they are gone; ids are not reused in a life. Those of devices
// are let go of before, when the daemon asks for them back: it gives them to nobody again, so that
// a reply from before comes too late to map them. Thread-safe. The arenas go with the map.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <functional>
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

// An arena at its addresses, which are those of its device if it lies on one. Unmapped with the
// last holder of `held`.
struct MappedArena {
  uint8_t* base = nullptr;
  std::shared_ptr<const void> held;
};

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
    // After the pin in the total order: either LetGo sees the pin, or this sees what LetGo did.
    const uint8_t* base = place.base.load(std::memory_order_seq_cst);
    if (base == nullptr) [[unlikely]]
      base = Settled(place);
    if (base == nullptr || shm::SlotOf(handle) >= place.slots) return nullptr;
    return base + uint64_t{shm::SlotOf(handle)} * place.page_bytes;
  }
  // Whether the arena is mapped for reading.
  bool Has(uint32_t arena) const;
  // 0: not mapped.
  uint32_t PageBytes(uint32_t arena) const;
  // The same page for writing; nullptr: not mapped so. Until Return the arena is not let go of.
  uint8_t* Borrow(shm::Handle handle) EXCLUDES(mu_);
  void Return(shm::Handle handle) EXCLUDES(mu_);

  // Maps an arena of host memory as the daemon described it; nothing happens if it is mapped
  // already.
  Status Add(const messages::Arena& arena, const UniqueFd& fd) EXCLUDES(mu_);
  Status AddWritable(const messages::Arena& arena, const UniqueFd& fd) EXCLUDES(mu_);
  // The same for what `map` maps, which is called if it is needed.
  using Map = std::function<Result<MappedArena>()>;
  Status AddBy(const messages::Arena& arena, bool writable, const Map& map) EXCLUDES(mu_);

  // ---- Memory of devices that is asked back
  // Unmaps the arena for good, unless it is written or `pinned` says that somebody reads it: then
  // false.
  // `pinned` is asked once more when nobody finds the arena any more.
  bool LetGo(uint32_t arena, const std::function<bool()>& pinned) EXCLUDES(mu_);
  // Whether it was let go of, or lost.
  bool Gone(uint32_t arena) const EXCLUDES(mu_);
  // Its memory is gone: it is found no more, nor mapped again. Its addresses stay until LetGo.
  void Lose(uint32_t arena) EXCLUDES(mu_);
  // Arenas that are gone in the daemon. Those that `pinned` names stay until a later call: the
  // daemon frees no arena with pins, so this only guards against its errors.
  void Remove(std::span<const uint32_t> arenas, const std::set<uint32_t>& pinned) EXCLUDES(mu_);

 private:
  static constexpr uint32_t kChunk = 1024;
  struct Place {
    std::atomic<const uint8_t*> base = nullptr;  // Written last.
    uint32_t page_bytes = 0;
    uint32_t slots = 0;
    bool gone = false;  // Lost, or let go of: never to be mapped again.
    std::shared_ptr<const void> held;
  };
  using Chunk = std::array<Place, kChunk>;
  struct Writable {
    MappedArena mapped;
    uint64_t bytes = 0;
    uint32_t page_bytes = 0;
    uint32_t borrowed = 0;
  };

  Place* PlaceOf(uint32_t arena) const;
  Place& MakePlace(uint32_t arena) REQUIRES(mu_);
  // The base once nobody is in the middle of LetGo.
  [[gnu::noinline, gnu::cold]] const uint8_t* Settled(const Place& place) const EXCLUDES(mu_);

  const std::shared_ptr<PageRanges> ranges_;
  const uint64_t capacity_bytes_;
  std::array<std::atomic<Chunk*>, shm::kMaxArenas / kChunk> chunks_ = {};

  mutable Mutex mu_;
  std::map<uint32_t, Writable> writable_ GUARDED_BY(mu_);
  std::vector<uint32_t> gone_ GUARDED_BY(mu_);  // Removed by the daemon and still mapped.
};

}  // namespace terrace::client
