#include "daemon/engine/placement/slab.h"

#include <algorithm>
#include <bit>
#include <numeric>

#include "base/check.h"

namespace terrace {
namespace {

constexpr uint64_t kPage = 4096;

uint64_t RoundUp(uint64_t value, uint64_t unit) {
  return (value + unit - 1) / unit * unit;
}

}  // namespace

SlabShape SlabShape::Of(uint32_t page_bytes, uint64_t slab_bytes, uint64_t window_bytes) {
  SlabShape shape;
  shape.page_bytes = page_bytes;
  uint64_t slots = std::clamp<uint64_t>(slab_bytes / page_bytes, 1, shm::kMaxSlots);
  // Slots fill whole grains. Where even one grain is more than a slab (large pages of an odd size),
  // the slab is one grain, and rounding its end up to 4096 is its only waste.
  const uint64_t grain_slots = std::lcm(uint64_t{page_bytes}, kPage) / page_bytes;
  shape.grain_slots = static_cast<uint32_t>(std::min(grain_slots, slots));
  if (grain_slots <= slots) slots -= slots % grain_slots;
  // And whole windows, unless that would cost more than a quarter of the slab.
  const uint64_t grain_bytes = shape.grain_bytes();
  const uint64_t window_grains = std::lcm(grain_bytes, window_bytes) / grain_bytes;
  const uint64_t window_slots = window_grains * shape.grain_slots;
  shape.window_grains = 1;
  if (grain_slots <= slots && window_slots <= slots && slots % window_slots <= slots / 4) {
    shape.window_grains = static_cast<uint32_t>(window_grains);
    slots -= slots % window_slots;
  }
  shape.slots = static_cast<uint32_t>(slots);
  shape.arena_bytes = RoundUp(slots * page_bytes, kPage);
  return shape;
}

uint64_t SlabShape::BytesOf(uint32_t first, uint32_t count) const {
  const uint64_t begin = first * grain_bytes();
  const uint64_t end = first + count == grains() ? arena_bytes : begin + count * grain_bytes();
  return end - begin;
}

Slab::Slab(ArenaId arena, uint32_t tenant, SlabClass* owner, const SlabShape& shape, bool resident)
    : arena_(arena),
      tenant_(tenant),
      owner_(owner),
      shape_(shape),
      slots_(shape.slots),
      stamps_(shape.slots),
      ready_bits_((shape.slots + 63) / 64),
      busy_(shape.grains()),
      resident_(shape.grains()) {
  if (!resident) return;
  for (uint32_t grain = 0; grain < shape_.grains(); ++grain)
    SetResident(grain, true);
}

void Slab::SetState(uint32_t index, SlotState state) {
  Slot& slot = slots_[index];
  const bool was_busy = IsBusy(slot.state);
  slot.state = state;
  const uint32_t grain = GrainOf(index);
  TERRACE_CHECK(resident_[grain] || !IsBusy(state));
  if (IsBusy(state) && !was_busy && busy_[grain]++ == 0) --idle_grains_;
  if (!IsBusy(state) && was_busy && --busy_[grain] == 0) ++idle_grains_;
  UpdateReady(index);
}

void Slab::SetResident(uint32_t grain, bool resident) {
  if (resident_[grain] == resident) return;
  TERRACE_CHECK(busy_[grain] == 0);
  resident_[grain] = resident;
  resident_grains_ += resident ? 1 : -1;
  idle_grains_ += resident ? 1 : -1;
  for (uint32_t slot = grain * shape_.grain_slots; slot < SlotsEnd(grain); ++slot)
    UpdateReady(slot);
}

void Slab::UpdateReady(uint32_t slot) {
  uint64_t& word = ready_bits_[slot / 64];
  const uint64_t bit = uint64_t{1} << slot % 64;
  const bool ready =
      slots_[slot].state == SlotState::kEmpty && resident_[GrainOf(slot)] && !closed_;
  if (ready == ((word & bit) != 0)) return;
  word ^= bit;
  ready_ += ready ? 1 : -1;
}

void Slab::Close() {
  closed_ = true;
  for (uint32_t slot = 0; slot < shape_.slots; ++slot)
    UpdateReady(slot);
}

std::optional<uint32_t> Slab::FindReady() {
  if (ready_ == 0) return std::nullopt;
  while (ready_bits_[ready_cursor_] == 0)
    ready_cursor_ = (ready_cursor_ + 1) % ready_bits_.size();
  return ready_cursor_ * 64 + std::countr_zero(ready_bits_[ready_cursor_]);
}

std::optional<uint32_t> Slab::FindHollowGrain() {
  if (resident_grains_ == shape_.grains()) return std::nullopt;
  while (resident_[hollow_cursor_])
    hollow_cursor_ = (hollow_cursor_ + 1) % shape_.grains();
  return hollow_cursor_;
}

uint64_t Slab::resident_bytes() const {
  const uint32_t last = shape_.grains() - 1;
  if (resident_grains_ == 0) return 0;
  const uint64_t whole = (resident_grains_ - (resident_[last] ? 1 : 0)) * shape_.grain_bytes();
  return whole + (resident_[last] ? shape_.BytesOf(last, 1) : 0);
}

Extent Slab::ExtentOf(uint32_t first_grain, uint32_t count) const {
  return {.arena = arena_,
          .offset = first_grain * shape_.grain_bytes(),
          .bytes = shape_.BytesOf(first_grain, count)};
}

bool Slab::Has(SlabTrait trait) const {
  switch (trait) {
    case SlabTrait::kReady:
      return ready_ > 0;
    case SlabTrait::kHollow:
      return resident_grains_ < shape_.grains();
    case SlabTrait::kIdle:
      return idle_grains_ > 0;
  }
  return false;
}

void SlabSet::Update(Slab* slab) {
  uint32_t& place = slab->place(trait_);
  if (slab->Has(trait_) == (place != kNowhere)) return;
  if (place != kNowhere) return Remove(slab);
  place = static_cast<uint32_t>(slabs_.size());
  slabs_.push_back(slab);
}

void SlabSet::Remove(Slab* slab) {
  uint32_t& place = slab->place(trait_);
  if (place == kNowhere) return;
  slabs_.back()->place(trait_) = place;
  slabs_[place] = slabs_.back();
  slabs_.pop_back();
  place = kNowhere;
}

}  // namespace terrace
