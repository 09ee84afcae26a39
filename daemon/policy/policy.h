// Policy: who leaves a tier first.
//
// A policy orders items (pages, blocks) by what it is told of their use, and names victims. It
// knows an item by a small dense number that the engine chooses and reuses, and nothing of tiers,
// pins or directories. One policy a file. Called on the owner thread only.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>

#include "base/clock.h"

namespace terrace {

using ItemId = uint32_t;
inline constexpr ItemId kNoItem = ~ItemId{0};

enum class ItemClass : uint8_t { kWeights, kKv, kObject };
inline constexpr int kItemClasses = 3;

struct ItemTraits {
  ItemClass item_class = ItemClass::kKv;
  uint64_t bytes = 0;
  bool asked_for = true;  // False: it was brought up for nobody.
};

class Policy {
 public:
  virtual ~Policy() = default;
  virtual const char* name() const = 0;

  // The item becomes resident. Inserting counts as one use; what nobody asked for is the one least
  // worth keeping until it is touched.
  virtual void Insert(ItemId item, const ItemTraits& traits, MonotonicNs now) = 0;
  virtual void Touch(ItemId item, MonotonicNs now) = 0;
  // The item is gone, evicted or otherwise. Must be called once for each Insert.
  virtual void Erase(ItemId item) = 0;

  enum class Verdict : uint8_t {
    kTake,   // The caller will evict it.
    kInUse,  // Held by someone: a use, which the policy records as if touched.
    kSkip,   // Not useful to this caller now; leave it where it is.
    kStop,   // The caller has enough.
  };
  // Offers items from the least worth keeping upwards until the answer is kStop, every item was
  // offered, or `limit` were. The caller erases what it took after the walk, not during it.
  virtual void Victims(uint64_t limit, MonotonicNs now,
                       const std::function<Verdict(ItemId)>& offer) = 0;
  // Offers items from the most worth keeping downwards until the answer is false or `limit` were
  // offered, beginning after `after` (kNoItem: with the first). Where that one was used meanwhile,
  // or is gone, it begins anew. Returns the last one offered; kNoItem: none comes after it.
  virtual ItemId Best(ItemId after, uint64_t limit,
                      const std::function<bool(ItemId)>& offer) const = 0;
};

// Least recently used first. O(1) a call.
std::unique_ptr<Policy> MakeLru();

}  // namespace terrace
