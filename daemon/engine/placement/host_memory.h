// HostMemory: the host tier's one budget, and the slabs and blocks that it pays for.
//
// It gives memory to slabs and takes it back, and keeps the books: what is resident never exceeds
// the capacity, together with the tier's reserve of blanks. It knows nothing of directories, pins
// and policies. Owned by the engine; owner thread only.
//
// Limits: kMaxClasses page sizes a tenant; arenas as many as the tier creates.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <unordered_map>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "base/status.h"
#include "daemon/engine/placement/slabs.h"
#include "tiers/tier.h"

namespace terrace {

struct HostMemoryOptions {
  uint64_t capacity_bytes = 0;
  uint64_t slab_bytes = 0;
  uint64_t huge_page_bytes = 0;
  uint64_t pretouch_bytes = 0;
};

struct HostBooks : SlabBooks {
  uint64_t block_bytes = 0;  // Of blocks, whole.
  uint64_t used() const { return slab_bytes + block_bytes; }
};

class HostMemory {
 public:
  static constexpr uint32_t kMaxClasses = 256;

  // `slabs` outlives it.
  HostMemory(const HostMemoryOptions& options, HostTier& tier, Slabs& slabs);

  Slabs& slabs() const { return slabs_; }
  // `exhausted` beyond kMaxClasses of the tenant.
  Result<SlabClass*> ClassOf(uint32_t tenant, uint32_t page_bytes);
  const Slabs::Classes& classes() const { return classes_; }

  // ---- Memory
  // Gives the class more memory, within the budget: populates a window or a grain, of a new slab if
  // need be. False when the budget or the tier has no more.
  bool Extend(SlabClass& of);
  // Takes memory of grains without pages back until `bytes` of it came together; returns how much.
  // Whole windows first.
  uint64_t Punch(SlabClass& of, uint64_t bytes);
  // Slabs without a busy slot and without memory.
  std::vector<Slab*> VacantSlabs() const;
  // Of a vacant slab.
  void ReleaseSlab(Slab* slab);
  // A block that the budget has room for; it is charged whole.
  Result<HostTier::Created> CreateBlock(size_t bytes);
  void ReleaseBlock(ArenaId arena);
  std::optional<uint64_t> BlockBytes(ArenaId arena) const;

  // ---- Budget
  uint64_t capacity() const { return options_.capacity_bytes; }
  void SetCapacity(uint64_t bytes);
  uint64_t room() const { return books_.used() < capacity() ? capacity() - books_.used() : 0; }
  // What is missing for `bytes` of room; more than `bytes` while the capacity is exceeded.
  uint64_t MissingFor(uint64_t bytes) const {
    const uint64_t wanted = books_.used() + bytes;
    return wanted > capacity() ? wanted - capacity() : 0;
  }
  // Lets the tier keep blanks for what is unused. Cheap when nothing much changed.
  void RaiseReserve();
  // Tells the tier again what it shall keep: it stops after a failure until it is told.
  void RepeatReserve();
  const HostBooks& books() const { return books_; }
  Status CheckInvariants() const;

 private:
  // Keeps blanks + used + `coming` within the capacity.
  void TrimReserve(uint64_t coming);
  Result<Slab*> CreateSlab(SlabClass& of);
  Status PopulateGrains(Slab& slab, uint32_t first, uint32_t end);
  void BookLost(Slab& slab, uint32_t first, uint32_t end);
  uint64_t PunchSlab(Slab& slab, uint64_t bytes, uint32_t unit_grains);
  uint64_t PunchGrains(Slab& slab, uint32_t first, uint32_t end);

  HostMemoryOptions options_;
  HostTier& tier_;
  Slabs& slabs_;
  Slabs::Classes classes_;
  std::unordered_map<ArenaId, uint64_t> blocks_;
  HostBooks books_;
  uint64_t reserve_bytes_ = 0;  // What the tier was told last.
};

}  // namespace terrace
