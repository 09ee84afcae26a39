// SimHostTier: host memory for tests and the simulation: plain zeroed memory, no descriptors, no
// threads, the contract of HostTier, and faults by plan.
//
// It is stricter than the real tier where that finds bugs of the engine: a released arena, an
// extent outside its arena, a punch of a block or a second Seal abort the program (TERRACE_CHECK),
// since the engine alone calls it. Owner thread only.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <map>
#include <memory>
#include <span>
#include <vector>

#include "tiers/sim/sim_faults.h"
#include "tiers/tier.h"

namespace terrace {

// The memory of one arena. It lives until the tier has released it and the last client that mapped
// it let go.
class SimArena {
 public:
  SimArena(size_t bytes, ArenaUse use);

  std::span<uint8_t> bytes() const { return {memory_.get(), size_}; }
  ArenaUse use() const { return use_; }
  bool sealed() const { return sealed_; }
  bool released() const { return released_; }
  // Every 4096-byte page that the range touches was populated and not punched since.
  bool Resident(size_t offset, size_t bytes) const;
  size_t resident_bytes() const { return 4096 * resident_pages_; }

  // For the tier; clients see it const.
  void SetResident(size_t first_page, size_t end_page, bool resident);
  void Seal() { sealed_ = true; }
  void MarkReleased() { released_ = true; }

 private:
  struct Free {
    void operator()(uint8_t* memory) const { std::free(memory); }
  };
  const size_t size_;
  const ArenaUse use_;
  const std::unique_ptr<uint8_t, Free> memory_;
  std::vector<bool> resident_;  // One a 4096-byte page.
  size_t resident_pages_ = 0;
  bool sealed_ = false;
  bool released_ = false;
};

struct SimHostTierOptions {
  size_t blank_bytes = 1u << 20;
  // Create is refused (`exhausted`) beyond this sum of arena sizes.
  size_t capacity_bytes = SIZE_MAX;
  // Blanks that SetReserve asks for appear this many at each call of MakeBlanks.
  size_t blanks_per_step = 1;
  // Descriptor gives one that stands for the arena, and by which nothing can be mapped.
  bool descriptors = false;
};

class SimHostTier final : public HostTier {
 public:
  explicit SimHostTier(SimHostTierOptions options = {}) : options_(options) {}

  Result<Created> Create(size_t bytes, ArenaUse use) override;
  std::span<uint8_t> Bytes(ArenaId arena) override;
  Status Populate(const Extent& extent) override;
  Status Punch(const Extent& extent) override;
  Status Seal(ArenaId arena) override;
  void Release(ArenaId arena) override;
  // `unavailable` without options.descriptors: clients of the simulation map by Map.
  Result<UniqueFd> Descriptor(ArenaId arena, Protection protection) override;
  void SetReserve(size_t bytes) override;
  size_t blank_bytes() const override { return options_.blank_bytes; }
  HostReport Report() const override;

  // What the background threads of the real tier do: makes up to blanks_per_step blanks towards the
  // target and returns how many. After a failure none, until the next SetReserve.
  size_t MakeBlanks();
  // What a client does with a descriptor; null when there is no such arena (any more).
  std::shared_ptr<const SimArena> Map(ArenaId arena) const;
  size_t arena_count() const { return arenas_.size(); }

  FaultPlan create_faults;
  FaultPlan blank_faults;
  FaultPlan populate_faults;
  FaultPlan punch_faults;
  FaultPlan seal_faults;

 private:
  SimArena& Find(ArenaId arena) const;
  SimArena& Find(const Extent& extent) const;

  const SimHostTierOptions options_;
  std::map<ArenaId, std::shared_ptr<SimArena>> arenas_;
  ArenaId last_slab_id_ = 0;
  ArenaId last_block_id_ = kFirstBlockId - 1;
  size_t arena_bytes_ = 0;
  size_t blanks_ = 0;  // Only their number: a blank has no contents.
  size_t blank_target_ = 0;
  bool blanks_stopped_ = false;
};

}  // namespace terrace
