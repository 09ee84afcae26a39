// Catalog: the tenants of the host, their directories, and the spaces that are present in each.
//
// A space is present from its first opening until nobody has it open and it has no pages; then it
// may be retired, which happens when its directory slot or its identity is needed by another. Owned
// by the engine; owner thread only.
//
// Limits: kMaxTenants; shm::kMaxSpaces spaces and shm::kMaxGenerations - 1 models' generation words
// a tenant; `max_spaces` that a client has open.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <tuple>
#include <unordered_map>
#include <vector>

#include "base/status.h"
#include "daemon/engine/engine.h"
#include "daemon/engine/tenant_index.h"

namespace terrace {

struct Space {
  Digest id;
  SpaceSpec spec;
  uint32_t slot = 0;
  uint32_t epoch = 0;
  uint32_t generation_index = 0;
  uint32_t page_bytes = 0;               // Of the undivided page.
  uint64_t linked_bytes = 0;             // Of its pages, parts included.
  std::map<ClientId, uint64_t> openers;  // How often each has it open.
};

// What rings told of a space.
struct SpaceReads {
  uint64_t hits = 0;
  uint64_t misses = 0;
};

struct Tenant {
  TenantId id = 0;
  std::string name;
  std::unique_ptr<TenantIndex> index;
  std::map<uint32_t, Space> spaces;  // By slot.
  std::unordered_map<Digest, uint32_t, DigestHash> slot_of_id;
  // A space with the same weights, adapter and salt must have the same layout.
  using Identity = std::tuple<Digest, Digest, std::vector<uint8_t>>;
  std::map<Identity, uint32_t> slot_of_identity;
  std::map<std::string, uint32_t> generation_of_model;
  PageCounts counts;
  std::vector<SpaceReads> reads;             // By slot, of the space that is there now.
  std::map<ClientId, uint32_t> open_spaces;  // How many spaces each has open.

  // Null unless the slot holds a space of that epoch.
  Space* FindSpace(uint32_t slot, uint32_t epoch);
  bool Present(const Space& space) const {
    return !space.openers.empty() || index->linked_in_space(space.slot) > 0;
  }
};

class Catalog {
 public:
  static constexpr uint32_t kMaxTenants = 1024;
  static constexpr size_t kMaxSaltBytes = 64;

  using MakeIndex = std::function<Result<std::unique_ptr<TenantIndex>>()>;
  Catalog(MakeIndex make_index, uint32_t max_spaces)
      : make_index_(std::move(make_index)), max_spaces_(max_spaces) {}

  // Of clients from now on: spaces that are open stay so.
  void SetMaxSpaces(uint32_t max_spaces) { max_spaces_ = max_spaces; }

  Result<TenantId> AddTenant(const std::string& name);
  const Tenant* Find(const std::string& name) const;  // Null if there is none.
  // Null if there is no such tenant.
  Tenant* Find(TenantId id) const;
  Tenant& At(TenantId id) const;
  const std::vector<std::unique_ptr<Tenant>>& tenants() const { return tenants_; }

  // Opens the space for the client, adding it if it is not present. `model_known` answers whether a
  // model of that name is registered.
  Result<Space*> Open(Tenant& tenant, ClientId client, const SpaceSpec& spec,
                      const std::function<bool(const std::string&)>& model_known);
  Result<Space*> OpenById(Tenant& tenant, ClientId client, const Digest& id);
  Status Close(Tenant& tenant, ClientId client, uint32_t slot, uint32_t epoch);
  // All of the client's openings end.
  void ClientGone(Tenant& tenant, ClientId client);

 private:
  // `exhausted`, naming the limit, for a space that the client has not open when it has too many.
  Status CheckRoom(const Tenant& tenant, ClientId client, const Space* space) const;
  static void AddOpener(Tenant& tenant, ClientId client, Space& space);
  Result<Space*> Add(Tenant& tenant, const SpaceSpec& spec, const Digest& id,
                     const std::function<bool(const std::string&)>& model_known);
  Result<uint32_t> GenerationOf(Tenant& tenant, const std::string& model,
                                const std::function<bool(const std::string&)>& model_known);
  void Retire(Tenant& tenant, uint32_t slot);
  // Retires every space that is not present; false if there was none.
  bool RetireUnused(Tenant& tenant);

  const MakeIndex make_index_;
  uint32_t max_spaces_;
  std::vector<std::unique_ptr<Tenant>> tenants_;  // Tenant i + 1.
};

}  // namespace terrace
