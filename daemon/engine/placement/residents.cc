#include "daemon/engine/placement/residents.h"

#include <map>
#include <string>

#include "base/check.h"

namespace terrace {

ItemId Residents::NewItem(const Item& item, const ItemTraits& traits) {
  ItemId id = static_cast<ItemId>(items_.size());
  if (free_.empty()) {
    items_.push_back(item);
  } else {
    id = free_.back();
    free_.pop_back();
    items_[id] = item;
  }
  policy_.Insert(id, traits, clock_.Now());
  return id;
}

void Residents::EraseItem(ItemId id) {
  policy_.Erase(id);
  items_[id] = {};
  free_.push_back(id);
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
  RETURN_IF_ERROR(tenant.index->Link({.name = name,
                                      .handle = slot.slab->HandleOf(slot.index),
                                      .bytes = bytes,
                                      .valid_tokens = facts.valid_tokens,
                                      .tier = shm::Tier::kHost}));
  slot->name = name;
  slot->facts = facts;
  slot->read = false;
  slot->queued = false;
  slot->unspilled = false;
  memory_.SetState(slot, SlotState::kLinked);
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
  memory_.SetState(slot, SlotState::kLimbo);
  EraseItem(slot->item);
  if (Space* space = tenant.FindSpace(slot->name.space_slot, slot->name.space_epoch)) {
    space->linked_bytes -= slot.slab->shape().page_bytes;
  }
}

void Residents::Touch(TenantId tenant, shm::Handle handle) {
  const std::optional<SlotRef> slot = memory_.FindSlot(tenant, shm::ExtentOf(handle));
  if (!slot || (*slot)->state != SlotState::kLinked ||
      (*slot)->sequence != shm::SequenceOf(handle)) {
    return;
  }
  policy_.Touch((*slot)->item, clock_.Now());
  if ((*slot)->read) return;
  (*slot)->read = true;
  ++catalog_.At(tenant).counts.reused;
}

void Residents::AddBlock(ArenaId arena) {
  const std::optional<uint64_t> bytes = memory_.BlockBytes(arena);
  TERRACE_CHECK(bytes.has_value() && !blocks_.contains(arena));
  blocks_[arena] =
      NewItem({.slot = {}, .block = arena}, {.item_class = ItemClass::kWeights, .bytes = *bytes});
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
  std::map<TenantId, uint64_t> linked;
  uint64_t pages = 0;
  for (const auto& slab : memory_.slabs_by_arena()) {
    if (slab == nullptr) continue;
    for (uint32_t i = 0; i < slab->shape().slots; ++i) {
      const Slot& slot = slab->slot(i);
      if (slot.state != SlotState::kLinked) continue;
      ++pages;
      ++linked[slab->tenant()];
      const std::optional<LinkedPage> page = catalog_.At(slab->tenant()).index->Find(slot.name);
      if (!page || page->handle != slab->HandleOf(i)) {
        return Status(Code::kInternal, "a linked slot is not in the directory");
      }
      if (items_[slot.item].slot.slab != slab.get() || items_[slot.item].slot.index != i) {
        return Status(Code::kInternal, "a linked slot's item is another's");
      }
    }
  }
  for (const auto& tenant : catalog_.tenants()) {
    uint64_t in_spaces = 0;
    for (const auto& [slot, space] : tenant->spaces)
      in_spaces += tenant->index->linked_in_space(slot);
    if (tenant->index->linked() != linked[tenant->id] || in_spaces != linked[tenant->id]) {
      return Status(Code::kInternal, "tenant " + tenant->name + ": directory has " +
                                         std::to_string(tenant->index->linked()) +
                                         " pages, its spaces " + std::to_string(in_spaces) +
                                         ", slots " + std::to_string(linked[tenant->id]));
    }
  }
  if (pages + blocks_.size() != count()) {
    return Status(Code::kInternal, "policy items are not the pages and blocks");
  }
  return {};
}

}  // namespace terrace
