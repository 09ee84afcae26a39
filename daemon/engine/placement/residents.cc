#include "daemon/engine/placement/residents.h"

#include <map>
#include <string>

#include "base/check.h"

namespace terrace {

ItemId Residents::NewItem(const Item& item, const ItemTraits& traits) {
  const ItemId id = numbers_.Take();
  if (id >= items_.size()) items_.resize(id + 1);
  items_[id] = item;
  ++count_;
  policy_.Insert(id, traits, clock_.Now());
  return id;
}

void Residents::EraseItem(ItemId id) {
  policy_.Erase(id);
  items_[id] = {};
  numbers_.GiveBack(id);
  --count_;
}

Status Residents::Link(SlotRef slot, const PageName& name, const PageFacts& facts) {
  return LinkAs(slot, name, facts, true);
}

Status Residents::LinkUnasked(SlotRef slot, const PageName& name, const PageFacts& facts) {
  return LinkAs(slot, name, facts, false);
}

Status Residents::LinkAs(SlotRef slot, const PageName& name, const PageFacts& facts,
                         bool asked_for) {
  TERRACE_CHECK(IsBusy(slot->state) && slot->state != SlotState::kLinked);
  if (slot->sequence == shm::kMaxSequence) {
    return Status(Code::kExhausted, "the slot's sequence numbers are used up");
  }
  Tenant& tenant = catalog_.At(slot.slab->tenant());
  const uint32_t bytes = slot.slab->shape().page_bytes;
  // The number is used up even if linking fails: no handle may ever appear twice.
  ++slot->sequence;
  RETURN_IF_ERROR(
      tenant.index->Link({.name = name,
                          .handle = slot.slab->HandleOf(slot.index),
                          .bytes = bytes,
                          .valid_tokens = facts.valid_tokens,
                          .tier = place_ == 0 ? shm::Tier::kHost : shm::Tier::kDevice}));
  slot->name = name;
  slot->facts = facts;
  slot->read = false;
  slot->queued = false;
  slot->unspilled = false;
  slabs_.SetState(slot, SlotState::kLinked);
  slot->item = NewItem({.slot = slot},
                       {.item_class = ItemClass::kKv, .bytes = bytes, .asked_for = asked_for});
  if (Space* space = tenant.FindSpace(name.space_slot, name.space_epoch)) {
    space->linked_bytes += bytes;
  }
  return {};
}

Status Residents::Relink(SlotRef slot) {
  const Slot before = *slot;
  RETURN_IF_ERROR(Link(slot, before.name, before.facts));
  slot->read = before.read;
  slot->queued = before.queued;
  slot->unspilled = before.unspilled;
  return {};
}

void Residents::Unlink(SlotRef slot) {
  TERRACE_CHECK(slot->state == SlotState::kLinked);
  Tenant& tenant = catalog_.At(slot.slab->tenant());
  TERRACE_CHECK(tenant.index->Unlink(slot->name, slot.slab->HandleOf(slot.index)));
  slabs_.SetState(slot, SlotState::kLimbo);
  EraseItem(slot->item);
  if (Space* space = tenant.FindSpace(slot->name.space_slot, slot->name.space_epoch)) {
    space->linked_bytes -= slot.slab->shape().page_bytes;
  }
}

void Residents::Touch(TenantId tenant, shm::Handle handle) {
  const std::optional<SlotRef> slot = slabs_.FindSlot(tenant, shm::ExtentOf(handle));
  if (!slot || slot->slab->owner()->place != place_ || (*slot)->state != SlotState::kLinked ||
      (*slot)->sequence != shm::SequenceOf(handle)) {
    return;
  }
  policy_.Touch((*slot)->item, clock_.Now());
  if ((*slot)->read) return;
  (*slot)->read = true;
  ++catalog_.At(tenant).counts.reused;
}

void Residents::AddBlock(ArenaId arena, uint64_t bytes) {
  TERRACE_CHECK(!blocks_.contains(arena));
  blocks_[arena] = NewItem({.slot = {}, .block = arena, .block_bytes = bytes},
                           {.item_class = ItemClass::kWeights, .bytes = bytes});
}

void Residents::TouchBlock(ArenaId arena) {
  const auto found = blocks_.find(arena);
  if (found != blocks_.end()) policy_.Touch(found->second, clock_.Now());
}

void Residents::RemoveBlock(ArenaId arena) {
  const auto found = blocks_.find(arena);
  if (found == blocks_.end()) return;
  EraseItem(found->second);
  blocks_.erase(found);
}

Status Residents::CheckInvariants() const {
  uint64_t pages = 0;
  const char* wrong = nullptr;
  slabs_.Visit(place_, [&](Slab& slab) {
    for (uint32_t i = 0; i < slab.shape().slots; ++i) {
      const Slot& slot = slab.slot(i);
      if (slot.state != SlotState::kLinked) continue;
      ++pages;
      const std::optional<LinkedPage> page = catalog_.At(slab.tenant()).index->Find(slot.name);
      if (slot.name.place != place_ || !page || page->handle != slab.HandleOf(i)) {
        wrong = "a linked slot is not in the directory";
      }
      if (items_[slot.item].slot.slab != &slab || items_[slot.item].slot.index != i) {
        wrong = "a linked slot's item is another's";
      }
    }
  });
  if (wrong != nullptr) return Status(Code::kInternal, wrong);
  if (pages + blocks_.size() != count()) {
    return Status(Code::kInternal, "policy items are not the pages and blocks");
  }
  return {};
}

}  // namespace terrace
