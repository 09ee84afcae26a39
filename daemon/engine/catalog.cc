#include "daemon/engine/catalog.h"

#include <algorithm>

#include "base/check.h"

namespace terrace {
namespace {

Tenant::Identity IdentityOf(const SpaceSpec& spec) {
  return {spec.weights, spec.adapter, spec.salt};
}

std::string_view AsText(const std::vector<uint8_t>& bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

}  // namespace

Space* Tenant::FindSpace(uint32_t slot, uint32_t epoch) {
  const auto found = spaces.find(slot);
  return found != spaces.end() && found->second.epoch == epoch ? &found->second : nullptr;
}

Result<TenantId> Catalog::AddTenant(const std::string& name) {
  for (const auto& tenant : tenants_) {
    if (tenant->name == name) return tenant->id;
  }
  if (tenants_.size() >= kMaxTenants) {
    return Status(Code::kExhausted,
                  "there are " + std::to_string(kMaxTenants) + " tenants already");
  }
  ASSIGN_OR_RETURN(std::unique_ptr<TenantIndex> index, make_index_());
  auto tenant = std::make_unique<Tenant>();
  tenant->id = static_cast<TenantId>(tenants_.size() + 1);
  tenant->name = name;
  tenant->index = std::move(index);
  tenants_.push_back(std::move(tenant));
  return tenants_.back()->id;
}

const Tenant* Catalog::Find(const std::string& name) const {
  for (const auto& tenant : tenants_) {
    if (tenant->name == name) return tenant.get();
  }
  return nullptr;
}

Tenant* Catalog::Find(TenantId id) const {
  return id >= 1 && id <= tenants_.size() ? tenants_[id - 1].get() : nullptr;
}

Tenant& Catalog::At(TenantId id) const {
  Tenant* tenant = Find(id);
  TERRACE_CHECK(tenant != nullptr);
  return *tenant;
}

Result<Space*> Catalog::Open(Tenant& tenant, ClientId client, const SpaceSpec& spec,
                             const std::function<bool(const std::string&)>& model_known) {
  RETURN_IF_ERROR(ValidateLayout(spec.layout));
  if (spec.salt.size() > kMaxSaltBytes) {
    return Status(Code::kInvalidArgument, "salt has " + std::to_string(spec.salt.size()) +
                                              " bytes, at most " + std::to_string(kMaxSaltBytes) +
                                              " are allowed");
  }
  const auto same = tenant.slot_of_identity.find(IdentityOf(spec));
  if (same != tenant.slot_of_identity.end()) {
    Space& space = tenant.spaces.at(same->second);
    const std::string difference = FirstDifference(spec.layout, space.spec.layout);
    if (difference.empty() && spec.model == space.spec.model) {
      RETURN_IF_ERROR(CheckRoom(tenant, client, &space));
      AddOpener(tenant, client, space);
      return &space;
    }
    if (tenant.Present(space)) {
      return Status(Code::kMismatch, !difference.empty()
                                         ? "layout: " + difference
                                         : "model is '" + spec.model + "' here and '" +
                                               space.spec.model + "' in the open space");
    }
    Retire(tenant, space.slot);
  }
  RETURN_IF_ERROR(CheckRoom(tenant, client, nullptr));
  const Digest id =
      SpaceId(tenant.name, spec.weights, spec.adapter, AsText(spec.salt), spec.layout);
  ASSIGN_OR_RETURN(Space * space, Add(tenant, spec, id, model_known));
  AddOpener(tenant, client, *space);
  return space;
}

Status Catalog::CheckRoom(const Tenant& tenant, ClientId client, const Space* space) const {
  if (space != nullptr && space->openers.contains(client)) return {};
  const auto open = tenant.open_spaces.find(client);
  if (open == tenant.open_spaces.end() || open->second < max_spaces_) return {};
  return {Code::kExhausted, "limits.spaces: the client has " + std::to_string(open->second) +
                                " spaces open; close some"};
}

void Catalog::AddOpener(Tenant& tenant, ClientId client, Space& space) {
  if (++space.openers[client] == 1) ++tenant.open_spaces[client];
}

Result<Space*> Catalog::OpenById(Tenant& tenant, ClientId client, const Digest& id) {
  const auto found = tenant.slot_of_id.find(id);
  if (found == tenant.slot_of_id.end() || !tenant.Present(tenant.spaces.at(found->second))) {
    return Status(Code::kNotFound, "space " + id.Hex() + " is not open and has no pages");
  }
  Space& space = tenant.spaces.at(found->second);
  RETURN_IF_ERROR(CheckRoom(tenant, client, &space));
  AddOpener(tenant, client, space);
  return &space;
}

Status Catalog::Close(Tenant& tenant, ClientId client, uint32_t slot, uint32_t epoch) {
  Space* space = tenant.FindSpace(slot, epoch);
  if (space == nullptr) {
    return Status(Code::kStale, "space slot " + std::to_string(slot) + " has another epoch by now");
  }
  const auto opener = space->openers.find(client);
  if (opener == space->openers.end()) {
    return Status(Code::kNotFound, "the client does not have this space open");
  }
  if (--opener->second > 0) return {};
  space->openers.erase(opener);
  if (--tenant.open_spaces.at(client) == 0) tenant.open_spaces.erase(client);
  return {};
}

void Catalog::ClientGone(Tenant& tenant, ClientId client) {
  for (auto& [slot, space] : tenant.spaces)
    space.openers.erase(client);
  tenant.open_spaces.erase(client);
}

Result<Space*> Catalog::Add(Tenant& tenant, const SpaceSpec& spec, const Digest& id,
                            const std::function<bool(const std::string&)>& model_known) {
  ASSIGN_OR_RETURN(const uint32_t generation, GenerationOf(tenant, spec.model, model_known));
  ASSIGN_OR_RETURN(const uint32_t page_bytes, PartBytes(spec.layout, 0));
  uint32_t epoch = 0;
  Result<uint32_t> slot = tenant.index->AddSpace(id, generation, page_bytes, &epoch);
  if (!slot && slot.error().code() == Code::kExhausted && RetireUnused(tenant)) {
    slot = tenant.index->AddSpace(id, generation, page_bytes, &epoch);
  }
  if (!slot) return std::move(slot).error();
  Space& space = tenant.spaces[*slot];
  space.id = id;
  space.spec = spec;
  space.slot = *slot;
  space.epoch = epoch;
  space.generation_index = generation;
  space.page_bytes = page_bytes;
  if (*slot >= tenant.reads.size()) tenant.reads.resize(*slot + 1);
  tenant.reads[*slot] = {};
  tenant.slot_of_id[id] = *slot;
  tenant.slot_of_identity[IdentityOf(spec)] = *slot;
  return &space;
}

Result<uint32_t> Catalog::GenerationOf(Tenant& tenant, const std::string& model,
                                       const std::function<bool(const std::string&)>& model_known) {
  if (model.empty()) return 0u;
  if (!model_known(model)) {
    return Status(Code::kNotFound, "model '" + model.substr(0, 128) + "' is not registered");
  }
  const auto found = tenant.generation_of_model.find(model);
  if (found != tenant.generation_of_model.end()) return found->second;
  // Word 0 never moves; words are not taken back, since clients may hold their index for long.
  const auto index = static_cast<uint32_t>(tenant.generation_of_model.size() + 1);
  if (index >= shm::kMaxGenerations) {
    return Status(
        Code::kExhausted,
        "the tenant's spaces name " + std::to_string(shm::kMaxGenerations - 1) + " models already");
  }
  tenant.generation_of_model.emplace(model, index);
  tenant.index->SetGeneration(index, 1);
  return index;
}

void Catalog::Retire(Tenant& tenant, uint32_t slot) {
  const auto found = tenant.spaces.find(slot);
  TERRACE_CHECK(found != tenant.spaces.end());
  tenant.slot_of_id.erase(found->second.id);
  tenant.slot_of_identity.erase(IdentityOf(found->second.spec));
  tenant.spaces.erase(found);
  tenant.index->RetireSpace(slot);
}

bool Catalog::RetireUnused(Tenant& tenant) {
  std::vector<uint32_t> unused;
  for (const auto& [slot, space] : tenant.spaces) {
    if (!tenant.Present(space)) unused.push_back(slot);
  }
  for (const uint32_t slot : unused)
    Retire(tenant, slot);
  return !unused.empty();
}

}  // namespace terrace
