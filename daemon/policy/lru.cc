// Least recently used: a doubly linked list through an array indexed by item, oldest at the head.
#include <algorithm>
#include <vector>

#include "base/check.h"
#include "daemon/policy/policy.h"

namespace terrace {
namespace {

constexpr ItemId kNone = kNoItem;

class Lru final : public Policy {
 public:
  const char* name() const override { return "lru"; }

  void Insert(ItemId item, const ItemTraits& traits, MonotonicNs) override {
    if (item >= links_.size()) links_.resize(std::max<size_t>(item + 1, 2 * links_.size()));
    TERRACE_CHECK(!links_[item].present);
    links_[item].present = true;
    traits.asked_for ? Append(item) : Prepend(item);
    ++size_;
  }

  void Touch(ItemId item, MonotonicNs) override {
    TERRACE_CHECK(item < links_.size() && links_[item].present);
    if (item == newest_) return;
    Remove(item);
    Append(item);
  }

  void Erase(ItemId item) override {
    TERRACE_CHECK(item < links_.size() && links_[item].present);
    Remove(item);
    links_[item].present = false;
    --size_;
  }

  void Victims(uint64_t limit, MonotonicNs, const std::function<Verdict(ItemId)>& offer) override {
    // Items in use move to the newest end, beyond what this walk may reach: each is offered once.
    uint64_t left = std::min(limit, size_);
    ItemId item = oldest_;
    while (item != kNone && left-- > 0) {
      const ItemId next = links_[item].newer;
      const Verdict verdict = offer(item);
      if (verdict == Verdict::kStop) return;
      if (verdict == Verdict::kInUse && item != newest_) {
        Remove(item);
        Append(item);
      }
      item = next;
    }
  }

  ItemId Best(ItemId after, uint64_t limit,
              const std::function<bool(ItemId)>& offer) const override {
    const bool there = after < links_.size() && links_[after].present;
    ItemId item = there ? links_[after].older : newest_;
    for (; item != kNone && limit > 0; --limit) {
      const ItemId next = links_[item].older;
      if (!offer(item)) return item;
      if (limit == 1 && next != kNone) return item;
      item = next;
    }
    return kNone;
  }

 private:
  struct Link {
    ItemId older = kNone;
    ItemId newer = kNone;
    bool present = false;
  };

  void Append(ItemId item) {
    links_[item].older = newest_;
    links_[item].newer = kNone;
    (newest_ == kNone ? oldest_ : links_[newest_].newer) = item;
    newest_ = item;
  }

  void Prepend(ItemId item) {
    links_[item].older = kNone;
    links_[item].newer = oldest_;
    (oldest_ == kNone ? newest_ : links_[oldest_].older) = item;
    oldest_ = item;
  }

  void Remove(ItemId item) {
    const Link link = links_[item];
    (link.older == kNone ? oldest_ : links_[link.older].newer) = link.newer;
    (link.newer == kNone ? newest_ : links_[link.newer].older) = link.older;
  }

  std::vector<Link> links_;
  ItemId oldest_ = kNone;
  ItemId newest_ = kNone;
  uint64_t size_ = 0;
};

}  // namespace

std::unique_ptr<Policy> MakeLru() {
  return std::make_unique<Lru>();
}

}  // namespace terrace
