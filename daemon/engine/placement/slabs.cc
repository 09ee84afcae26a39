#include "daemon/engine/placement/slabs.h"

#include <algorithm>
#include <string>

#include "base/check.h"

namespace terrace {
namespace {

// Adds all slots of the slab, in the states that they have, to books and class; or takes them off.
void Count(const Slab& slab, bool added) {
  SlabClass& of = *slab.owner();
  const uint64_t one = added ? 1 : UINT64_MAX;
  for (uint32_t i = 0; i < slab.shape().slots; ++i) {
    const int state = static_cast<int>(slab.slot(i).state);
    of.books.slots[state] += one;
    of.books.bytes[state] += one * of.shape.page_bytes;
    of.slots[state] += one;
  }
  of.books.slab_bytes += one * slab.resident_bytes();
  of.resident_bytes += one * slab.resident_bytes();
  of.ready_slots += one * slab.ready();
  of.slabs += static_cast<uint32_t>(one);
}

}  // namespace

// ---- Slabs

Slab* Slabs::Add(ArenaId arena, SlabClass& of, bool resident) {
  auto& slabs = arena < kFirstDeviceSlabId ? of_host_ : of_devices_;
  const ArenaId at = arena < kFirstDeviceSlabId ? arena : arena - kFirstDeviceSlabId;
  if (at >= slabs.size()) slabs.resize(at + 1);
  slabs[at] = std::make_unique<Slab>(arena, of.tenant, &of, of.shape, resident);
  Slab* slab = slabs[at].get();
  Count(*slab, true);
  UpdateSets(*slab);
  return slab;
}

void Slabs::Remove(Slab* slab) {
  SlabClass& of = *slab->owner();
  of.with_ready.Remove(slab);
  of.with_hollow.Remove(slab);
  of.with_idle.Remove(slab);
  Count(*slab, false);
  const ArenaId arena = slab->arena();
  if (arena < kFirstDeviceSlabId) {
    of_host_[arena].reset();
  } else {
    of_devices_[arena - kFirstDeviceSlabId].reset();
  }
}

std::optional<SlotRef> Slabs::FindSlot(uint32_t tenant, uint64_t extent) const {
  const auto arena = static_cast<ArenaId>(extent >> shm::kSlotBits);
  const auto index = static_cast<uint32_t>(extent & (shm::kMaxSlots - 1));
  Slab* slab = Find(arena);
  if (slab == nullptr || slab->tenant() != tenant || index >= slab->shape().slots) {
    return std::nullopt;
  }
  return SlotRef{slab, index};
}

void Slabs::Visit(uint32_t place, const std::function<void(Slab&)>& visitor) const {
  for (const auto& slab : place == 0 ? of_host_ : of_devices_) {
    if (slab != nullptr && slab->owner()->place == place) visitor(*slab);
  }
}

// ---- Slots

std::optional<SlotRef> Slabs::Take(SlabClass& of) {
  if (of.with_ready.empty()) return std::nullopt;
  Slab* slab = of.with_ready.slabs().back();
  const std::optional<uint32_t> index = slab->FindReady();
  TERRACE_CHECK(index.has_value());
  const SlotRef slot{slab, *index};
  SetState(slot, SlotState::kGranted);
  return slot;
}

void Slabs::SetState(SlotRef slot, SlotState state) {
  Slab& slab = *slot.slab;
  SlabClass& of = *slab.owner();
  const auto count = [&](SlotState of_state, int sign) {
    of.books.slots[static_cast<int>(of_state)] += sign;
    of.slots[static_cast<int>(of_state)] += sign;
    of.books.bytes[static_cast<int>(of_state)] += sign * int64_t{of.shape.page_bytes};
  };
  count(slot->state, -1);
  count(state, 1);
  const uint32_t ready = slab.ready();
  slab.SetState(slot.index, state);
  of.ready_slots += slab.ready() - uint64_t{ready};
  UpdateSets(slab);
}

void Slabs::Free(SlotRef slot) {
  TERRACE_CHECK(slot->transfers == 0 && slot->holds == 0);
  SetState(slot, slot->sequence == shm::kMaxSequence ? SlotState::kRetired : SlotState::kEmpty);
}

void Slabs::Close(Slab& slab) {
  slab.owner()->ready_slots -= slab.ready();
  slab.Close();
  UpdateSets(slab);
}

void Slabs::SetResident(Slab& slab, uint32_t grain, bool resident) {
  SlabClass& of = *slab.owner();
  const uint64_t ready = slab.ready();
  slab.SetResident(grain, resident);
  of.ready_slots += slab.ready() - ready;
  const uint64_t bytes = slab.shape().BytesOf(grain, 1);
  of.books.slab_bytes += resident ? bytes : -bytes;
  of.resident_bytes += resident ? bytes : -bytes;
  UpdateSets(slab);
}

void Slabs::UpdateSets(Slab& slab) {
  SlabClass& of = *slab.owner();
  of.with_ready.Update(&slab);
  of.with_hollow.Update(&slab);
  of.with_idle.Update(&slab);
}

// ---- Books

Status Slabs::CheckBooks(uint32_t place, const SlabBooks& books, const Classes& classes) const {
  SlabBooks sum;
  struct OfClass {
    uint64_t ready = 0;
    uint64_t slots[kSlotStates] = {};
    uint64_t resident_bytes = 0;
    uint32_t slabs = 0;
  };
  std::map<const SlabClass*, OfClass> of_class;
  const char* wrong = nullptr;
  Visit(place, [&](Slab& slab) {
    uint32_t slab_ready = 0;
    OfClass& own = of_class[slab.owner()];
    for (uint32_t i = 0; i < slab.shape().slots; ++i) {
      const Slot& slot = slab.slot(i);
      const bool resident = slab.resident(slab.GrainOf(i));
      ++sum.slots[static_cast<int>(slot.state)];
      ++own.slots[static_cast<int>(slot.state)];
      sum.bytes[static_cast<int>(slot.state)] += slab.shape().page_bytes;
      if (slot.state == SlotState::kEmpty && resident && !slab.closed()) ++slab_ready;
      if (IsBusy(slot.state) && !resident) wrong = "a slot with a page has no memory";
      if (slot.victim) wrong = "a slot is still marked as a victim";
    }
    if (slab_ready != slab.ready()) wrong = "a slab's ready slots differ";
    own.ready += slab_ready;
    own.resident_bytes += slab.resident_bytes();
    ++own.slabs;
    sum.slab_bytes += slab.resident_bytes();
  });
  if (wrong != nullptr) return Status(Code::kInternal, wrong);
  for (int state = 0; state < kSlotStates; ++state) {
    if (sum.slots[state] != books.slots[state] || sum.bytes[state] != books.bytes[state]) {
      return Status(Code::kInternal, "slots of state " + std::to_string(state) + ": " +
                                         std::to_string(sum.slots[state]) + " counted, " +
                                         std::to_string(books.slots[state]) + " in the books");
    }
  }
  if (sum.slab_bytes != books.slab_bytes) {
    return Status(Code::kInternal, "resident bytes of slabs differ from the books");
  }
  for (const auto& [key, of] : classes) {
    const OfClass& counted = of_class[of.get()];
    if (counted.ready != of->ready_slots || counted.resident_bytes != of->resident_bytes ||
        counted.slabs != of->slabs ||
        !std::equal(std::begin(counted.slots), std::end(counted.slots), std::begin(of->slots))) {
      return Status(Code::kInternal, "a class's slots or resident bytes differ");
    }
  }
  return {};
}

}  // namespace terrace
