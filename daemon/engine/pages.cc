// The verbs of HostEngine on pages: grant, commit, abort, drop, evict.
#include <algorithm>

#include "base/check.h"
#include "daemon/engine/host_engine.h"

namespace terrace {
namespace {

Status CheckBatch(size_t count) {
  if (count <= kMaxBatch) return {};
  return Status(Code::kInvalidArgument, "a batch of " + std::to_string(count) + " pages, at most " +
                                            std::to_string(kMaxBatch) + " are allowed");
}

uint32_t PositionOf(const GrantSpec& spec, size_t index) {
  return spec.chain ? spec.position + static_cast<uint32_t>(index) : 0;
}

// The key that the `index`-th extends.
Digest ParentOf(const GrantSpec& spec, size_t index) {
  if (!spec.chain) return {};
  return index == 0 ? spec.parent : spec.keys[index - 1];
}

}  // namespace

Status HostEngine::Grant(ClientId id, const GrantSpec& spec, std::vector<GrantGiven>* given) {
  given->clear();
  ASSIGN_OR_RETURN(Client * client, clients_.Writing(id));
  RETURN_IF_ERROR(CheckBatch(spec.keys.size()));
  ASSIGN_OR_RETURN(const Space* space, OpenedSpace(*client, spec.slot, spec.epoch));
  ASSIGN_OR_RETURN(const uint32_t bytes, PartBytes(space->spec.layout, spec.part));
  if (spec.device != 0) RETURN_IF_ERROR(CheckDeviceAccess(client->spec.tenant, spec.device));
  TenantIndex& index = *catalog_.At(client->spec.tenant).index;

  // Keys that are there already need no slot; the client's budget bounds the others.
  given->resize(std::min<size_t>(spec.keys.size(), std::max<uint64_t>(1, kGrantStepBytes / bytes)));
  std::vector<size_t> wanting;
  const uint32_t budget = client->given.max_grants - client->grants;
  for (size_t i = 0; i < given->size(); ++i) {
    const PageName name{spec.slot, spec.epoch, spec.part, spec.keys[i], spec.device};
    if (index.Find(name)) {
      (*given)[i].code = Code::kAlreadyExists;
    } else if (wanting.size() == budget) {
      (*given)[i].code = Code::kExhausted;
    } else {
      wanting.push_back(i);
    }
  }

  const uint32_t asked_ms = spec.deadline_ms == 0 ? options_.grant_deadline_ms : spec.deadline_ms;
  const MonotonicNs deadline =
      clock_.Now() + std::min(asked_ms, options_.grant_deadline_max_ms) * kNsPerMs;
  Result<PagesOnDevice::Slots> got =
      SlotsFor(client->spec.tenant, spec.device, bytes, wanting.size());
  if (!got) {
    given->clear();
    return std::move(got).error();
  }
  const std::vector<SlotRef>& slots = got->slots;
  // Memory for the others is on its way: they are asked for again.
  if (got->more) given->resize(wanting[slots.size()]);
  for (size_t n = 0; n < wanting.size(); ++n) {
    if (wanting[n] >= given->size()) break;
    GrantGiven& answer = (*given)[wanting[n]];
    if (n >= slots.size()) {
      answer.code = Code::kExhausted;
      ++CountsOf(*client).failed_allocations;
      continue;
    }
    answer.grant =
        grants_.Add({.client = id,
                     .slot = slots[n],
                     .name = {spec.slot, spec.epoch, spec.part, spec.keys[wanting[n]], spec.device},
                     .page_tokens = space->spec.layout.page_tokens,
                     .position = PositionOf(spec, wanting[n]),
                     .parent = ParentOf(spec, wanting[n]),
                     .generation_index = space->generation_index,
                     .generation = index.generation(space->generation_index),
                     .deadline = deadline});
    answer.handle = shm::MakeHandle(slots[n].slab->arena(), slots[n].index, 0);
    ++client->grants;
    client->granted_bytes += bytes;
    CountsOf(*client).granted.Add(bytes);
  }
  return {};
}

Status HostEngine::Commit(ClientId id, std::span<const uint64_t> grants,
                          std::span<const uint32_t> valid_tokens, std::vector<Code>* codes) {
  codes->clear();
  ASSIGN_OR_RETURN(Client * client, clients_.Writing(id));
  RETURN_IF_ERROR(CheckBatch(grants.size()));
  if (!valid_tokens.empty() && valid_tokens.size() != grants.size()) {
    return Status(Code::kInvalidArgument,
                  "valid_tokens has " + std::to_string(valid_tokens.size()) + " elements for " +
                      std::to_string(grants.size()) + " grants");
  }
  codes->reserve(grants.size());
  for (size_t i = 0; i < grants.size(); ++i) {
    const Code code = CommitOne(*client, grants[i], valid_tokens.empty() ? 0 : valid_tokens[i]);
    codes->push_back(code);
    PageCounts& counts = CountsOf(*client);
    if (code == Code::kAlreadyExists) {
      ++counts.duplicate_commits;
    } else if (code == Code::kStale) {
      ++counts.stale_commits;
    } else if (code != Code::kOk) {
      ++counts.refused_commits;
    }
  }
  return {};
}

Code HostEngine::CommitOne(Client& client, uint64_t id, uint32_t valid_tokens) {
  GrantRecord* grant = grants_.Find(client.given.id, id);
  if (grant == nullptr) return Code::kNotFound;
  if (!grant->expired && clock_.Now() > grant->deadline) ExpireGrant(client, id);
  if (grant->expired) return Code::kDeadlineExceeded;
  if (valid_tokens > grant->page_tokens) return Code::kInvalidArgument;
  Tenant& tenant = catalog_.At(client.spec.tenant);
  const PageName name = grant->name;
  const bool stale = tenant.FindSpace(name.space_slot, name.space_epoch) == nullptr ||
                     tenant.index->generation(grant->generation_index) != grant->generation ||
                     // Only a slab that was lost is closed while somebody writes it.
                     grant->slot.slab->closed();
  const PageFacts facts = {.valid_tokens = valid_tokens == 0 ? grant->page_tokens : valid_tokens,
                           .position = grant->position,
                           .generation = grant->generation,
                           .committed_ms = clock_.WallMs(),
                           .parent = grant->parent};
  // The writer has said that it is done: whatever becomes of the page, the grant ends here.
  const SlotRef slot = EndGrant(client, id);
  const Code code = stale ? Code::kStale : ResidentsOf(slot).Link(slot, name, facts).code();
  if (code == Code::kOk) {
    tenant.counts.committed.Add(slot.slab->shape().page_bytes);
    // From a device it comes to the store by way of host memory.
    if (store_ != nullptr && name.place == 0) store_->Committed(slot);
    return code;
  }
  slabs_.Free(slot);
  return code;
}

Status HostEngine::Abort(ClientId id, std::span<const uint64_t> grants) {
  Client* client = clients_.Find(id);
  if (client == nullptr) {
    return Status(Code::kNotFound, "client " + std::to_string(id) + " is not known");
  }
  RETURN_IF_ERROR(CheckBatch(grants.size()));
  for (const uint64_t grant : grants) {
    if (grants_.Find(id, grant) != nullptr) slabs_.Free(EndGrant(*client, grant));
  }
  return {};
}

SlotRef HostEngine::EndGrant(Client& client, uint64_t id) {
  const GrantRecord* grant = grants_.Find(client.given.id, id);
  TERRACE_CHECK(grant != nullptr);
  const SlotRef slot = grant->slot;
  if (grant->expired) --abandoned_grants_;
  --client.grants;
  client.granted_bytes -= slot.slab->shape().page_bytes;
  grants_.Remove(client.given.id, id);
  return slot;
}

void HostEngine::ExpireGrant(Client& client, uint64_t id) {
  grants_.Expire(client.given.id, id);
  slabs_.SetState(grants_.Find(client.given.id, id)->slot, SlotState::kAbandoned);
  ++CountsOf(client).expired_grants;
  ++abandoned_grants_;
}

void HostEngine::AbandonGrants(ClientId id) {
  Client* client = clients_.Find(id);
  if (client == nullptr) return;
  for (const uint64_t grant : grants_.IdsOf(id)) {
    if (!grants_.Find(id, grant)->expired) ExpireGrant(*client, grant);
  }
}

Result<uint32_t> HostEngine::Drop(ClientId id, uint32_t slot, uint32_t epoch, uint32_t part,
                                  std::span<const Digest> keys) {
  ASSIGN_OR_RETURN(const Client* client, clients_.Writing(id));
  RETURN_IF_ERROR(CheckBatch(keys.size()));
  ASSIGN_OR_RETURN(const Space* space, OpenedSpace(*client, slot, epoch));
  const TenantId tenant = client->spec.tenant;
  uint32_t dropped = 0;
  for (const Digest& key : keys) {
    bool any = store_ != nullptr && store_->Drop(*space, part, key);
    for (uint32_t place = 0; place <= devices_.size(); ++place)
      DropFrom(tenant, {slot, epoch, part, key, place}, &any);
    if (any) ++dropped;
  }
  CountsOf(*client).dropped += dropped;
  return dropped;
}

void HostEngine::DropFrom(TenantId tenant, const PageName& name, bool* dropped) {
  const std::optional<LinkedPage> page = catalog_.At(tenant).index->Find(name);
  if (!page) return;
  *dropped = true;
  const std::optional<SlotRef> slot = slabs_.FindSlot(tenant, shm::ExtentOf(page->handle));
  TERRACE_CHECK(slot.has_value());
  ResidentsOf(*slot).Unlink(*slot);
  // Freed by the next scan, of which a turn or an eviction makes one, unless somebody reads it.
  pins_.AddLimbo(*slot);
  if (name.place != 0) return devices_[name.place - 1]->fetch->Dropped(*slot);
  if (store_ != nullptr) store_->DroppedFromMemory(*slot);
}

Evicted HostEngine::Evict(uint64_t bytes, uint64_t limit) {
  const EvictionDone done = placement_.Evict(bytes, limit);
  return {.pages = done.pages, .blocks = done.blocks, .bytes = done.bytes};
}

std::optional<ArenaFacts> HostEngine::FindArena(ClientId id, ArenaId arena) const {
  const auto client = clients_.all().find(id);
  const Slab* slab = slabs_.Find(arena);
  if (client == clients_.all().end() || slab == nullptr ||
      slab->tenant() != client->second.spec.tenant || slab->closed()) {
    return std::nullopt;
  }
  return ArenaFacts{.id = arena,
                    .bytes = slab->shape().arena_bytes,
                    .page_bytes = slab->shape().page_bytes,
                    .device = slab->owner()->place};
}

}  // namespace terrace
