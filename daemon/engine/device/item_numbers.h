// ItemNumbers: the numbers by which one policy knows its items, small and dense, where more than
// one part of the engine has items in it. Owner thread only.
#pragma once

#include <vector>

#include "daemon/policy/policy.h"

namespace terrace {

class ItemNumbers {
 public:
  ItemId Take() {
    if (free_.empty()) return next_++;
    const ItemId item = free_.back();
    free_.pop_back();
    return item;
  }
  // After the policy has erased it.
  void GiveBack(ItemId item) { free_.push_back(item); }

 private:
  ItemId next_ = 0;
  std::vector<ItemId> free_;
};

}  // namespace terrace
