#include "daemon/engine/placement/evictor.h"

#include <algorithm>

namespace terrace {

using Verdict = Policy::Verdict;

namespace {

// So many pages that the store does not have are passed over for some that it has: enough to find
// some among pages of one age, and a tenth of a millisecond at most.
constexpr size_t kPassedOver = 256;

}  // namespace

void Evictor::Begin(const EvictionGoal& goal) {
  goal_ = goal;
  chosen_pages_.clear();
  chosen_blocks_.clear();
  scanned_.clear();
  own_slots_ = 0;
  freed_bytes_ = 0;
  passed_over_.clear();
  passing_over_ = goal.unstored == Unstored::kLast;
  deferred_pages_ = 0;
  deferred_slots_ = 0;
  deferred_bytes_ = 0;
  looked_ = 0;
  refused_ = false;
}

EvictionDone Evictor::Empty(Slab& slab, EvictionReason reason, Unstored unstored) {
  Begin({.wanted = UINT64_MAX, .any_page = true, .reason = reason, .unstored = unstored});
  for (uint32_t i = 0; i < slab.shape().slots; ++i) {
    if (slab.slot(i).state != SlotState::kLinked) continue;
    if (OfferPage({&slab, i}) == Verdict::kStop) break;
  }
  return CarryOut();
}

EvictionDone Evictor::Pass(const EvictionGoal& goal) {
  Begin(goal);
  if (Satisfied()) return {};
  // Each item is offered at most once, so the walk is bounded by what is resident; what is in use
  // goes to the newest end, so that the next walk meets others first.
  residents_.policy().Victims(goal.looks, clock_.Now(), [this](ItemId id) { return Offer(id); });
  TakePassedOver();
  if (Useful()) return CarryOut();
  for (const SlotRef& slot : chosen_pages_)
    slot->victim = false;
  return {.looked = looked_, .refused = refused_};
}

bool Evictor::Satisfied() const {
  if (goal_.of == nullptr) {
    return freed_bytes_ + deferred_bytes_ >= goal_.wanted ||
           chosen_pages_.size() + chosen_blocks_.size() + deferred_pages_ >= goal_.limit;
  }
  const SlabShape& shape = goal_.of->shape;
  return own_slots_ + deferred_slots_ +
             (Elsewhere() + deferred_bytes_) / shape.BytesOf(0, 1) * shape.grain_slots >=
         goal_.wanted;
}

uint64_t Evictor::Elsewhere() const {
  const int64_t bytes = goal_.have_bytes + static_cast<int64_t>(freed_bytes_);
  return goal_.own_only || bytes < 0 ? 0 : static_cast<uint64_t>(bytes);
}

bool Evictor::Useful() const {
  if (goal_.of == nullptr) return !goal_.all_or_nothing || Satisfied();
  return own_slots_ > 0 || Elsewhere() >= goal_.of->shape.BytesOf(0, 1);
}

Verdict Evictor::Offer(ItemId id) {
  if (Satisfied()) return Verdict::kStop;
  ++looked_;
  const Residents::Item* item = residents_.item(id);
  if (item == nullptr) return Verdict::kSkip;
  return item->slot.slab == nullptr ? OfferBlock(item->block) : OfferPage(item->slot);
}

Verdict Evictor::OfferBlock(ArenaId arena) {
  if (blocks_.Held(arena)) return Verdict::kInUse;
  if (goal_.own_only || goal_.unstored == Unstored::kKeep) return Verdict::kSkip;
  chosen_blocks_.push_back(arena);
  freed_bytes_ += residents_.BlockBytes(arena);
  return Verdict::kTake;
}

Verdict Evictor::OfferPage(SlotRef slot) {
  if (slot->victim) return Verdict::kTake;
  if (slot->transfers > 0) {
    // To be written is no use of a page: it keeps its place in the policy's order.
    // Nobody knows when the device will let go of what is overdue.
    const bool saves = goal_.unstored == Unstored::kWriteFirst || goal_.unstored == Unstored::kKeep;
    const bool of_use = !goal_.own_only || slot.slab->owner() == goal_.of;
    if (saves && of_use && !slot->overdue) Defer(slot);
    return Verdict::kSkip;
  }
  if (!Evictable(slot)) return Verdict::kInUse;
  // Nothing of others is of use.
  if (goal_.own_only && slot.slab->owner() != goal_.of) return Verdict::kSkip;
  if (store_ != nullptr && goal_.unstored != Unstored::kAsOthers && !store_->Has(slot)) {
    if (const std::optional<Verdict> decided = DecideUnstored(slot)) return *decided;
  }
  return TakeForGoal(slot);
}

std::optional<Verdict> Evictor::DecideUnstored(SlotRef slot) {
  if (goal_.unstored == Unstored::kLast) {
    if (!passing_over_) return std::nullopt;
    if (passed_over_.size() < kPassedOver) {
      passed_over_.push_back(slot);
      return Verdict::kSkip;
    }
    TakePassedOver();
    if (Satisfied()) return Verdict::kStop;
    return std::nullopt;
  }
  const bool keep = goal_.unstored == Unstored::kKeep;
  const Saving saving = store_->Save(slot, /*regardless=*/keep);
  if (saving == Saving::kUnderWay) {
    Defer(slot);
    return Verdict::kSkip;
  }
  if (!keep) return std::nullopt;
  refused_ = saving == Saving::kNoneNow;
  return refused_ ? Verdict::kStop : Verdict::kSkip;
}

void Evictor::Defer(SlotRef slot) {
  ++deferred_pages_;
  if (slot.slab->owner() == goal_.of) {
    ++deferred_slots_;
  } else {
    deferred_bytes_ += slot.slab->shape().page_bytes;
  }
}

void Evictor::TakePassedOver() {
  passing_over_ = false;
  for (const SlotRef& slot : passed_over_) {
    if (Satisfied()) break;
    if (!slot->victim) (void)TakeForGoal(slot);
  }
  passed_over_.clear();
}

Verdict Evictor::TakeForGoal(SlotRef slot) {
  if (slot.slab->owner() == goal_.of) {
    TakePage(slot);
    ++own_slots_;
    return Verdict::kTake;
  }
  if (goal_.any_page) {
    TakePage(slot);
    freed_bytes_ += slot.slab->shape().page_bytes;
    return Verdict::kTake;
  }
  return TakeGrain(slot) ? Verdict::kTake : Verdict::kSkip;
}

bool Evictor::Evictable(SlotRef slot) {
  const TenantId tenant = slot.slab->tenant();
  if (scanned_.insert(tenant).second) pins_.Scan(tenant);
  return slot->state == SlotState::kLinked && slot->transfers == 0 && slot->holds == 0 &&
         !pins_.Pinned(slot);
}

bool Evictor::GrainEvictable(Slab& slab, uint32_t grain) {
  for (uint32_t i = grain * slab.shape().grain_slots; i < slab.SlotsEnd(grain); ++i) {
    const Slot& slot = slab.slot(i);
    if (IsBusy(slot.state) && !Evictable({&slab, i})) return false;
    // It goes in a later pass, without loss.
    if (goal_.unstored == Unstored::kWriteFirst && slot.queued && IsBusy(slot.state)) return false;
  }
  return true;
}

bool Evictor::TakeGrain(SlotRef slot) {
  Slab& slab = *slot.slab;
  const SlabShape& shape = slab.shape();
  const uint32_t own = slab.GrainOf(slot.index);
  if (!GrainEvictable(slab, own)) return false;
  TakePagesOf(slab, own);
  const uint32_t first = own - own % shape.window_grains;
  const uint32_t end = std::min(first + shape.window_grains, shape.grains());
  for (uint32_t grain = first; grain < end; ++grain) {
    if (!GrainEvictable(slab, grain)) return true;
  }
  for (uint32_t grain = first; grain < end; ++grain)
    TakePagesOf(slab, grain);
  return true;
}

void Evictor::TakePagesOf(Slab& slab, uint32_t grain) {
  bool any = false;
  for (uint32_t i = grain * slab.shape().grain_slots; i < slab.SlotsEnd(grain); ++i) {
    if (slab.slot(i).state != SlotState::kLinked || slab.slot(i).victim) continue;
    TakePage({&slab, i});
    any = true;
  }
  // An idle grain is part of what could be had without evicting.
  if (any) freed_bytes_ += slab.shape().BytesOf(grain, 1);
}

void Evictor::TakePage(SlotRef slot) {
  slot->victim = true;
  chosen_pages_.push_back(slot);
}

EvictionDone Evictor::CarryOut() {
  EvictionDone done{.looked = looked_, .refused = refused_};
  const auto reason = static_cast<size_t>(goal_.reason);
  std::set<TenantId> tenants;
  for (const SlotRef& slot : chosen_pages_) {
    slot->victim = false;
    tenants.insert(slot.slab->tenant());
    residents_.Unlink(slot);
  }
  for (const TenantId tenant : tenants)
    pins_.Scan(tenant);
  if (!tenants.empty() && *tenants.rbegin() >= evicted_of_.size()) {
    evicted_of_.resize(*tenants.rbegin() + 1);
  }
  for (const SlotRef& slot : chosen_pages_) {
    if (pins_.Pinned(slot)) {
      ++found_pinned_;
      // Without a place in the directory it is lost, but stays as long as it is read.
      if (!residents_.Relink(slot).ok()) pins_.AddLimbo(slot);
      continue;
    }
    if (store_ != nullptr && !store_->Has(slot)) store_->Lost(slot);
    slabs_.Free(slot);
    ++done.pages;
    done.bytes += slot.slab->shape().page_bytes;
    evicted_of_[slot.slab->tenant()][reason].Add(slot.slab->shape().page_bytes);
  }
  evicted_pages_ += done.pages;
  for (const ArenaId arena : chosen_blocks_) {
    const uint64_t bytes = residents_.BlockBytes(arena);
    blocks_.Evict(arena);
    ++done.blocks;
    done.bytes += bytes;
    evicted_blocks_[reason].Add(bytes);
  }
  return done;
}

}  // namespace terrace
