// HostEngine: the Engine, joined from its parts.
//
// Each part owns one concept and knows those above it in this list only through their headers:
//   Catalog     tenants, their directories, spaces
//   Clients     who is served, budgets
//   GrantTable  slots being written
//   Slabs       the slots of every tier, and their books
//   HostMemory  the budget of host memory, its slabs and blocks
//   Residents   what is linked or loaded, in the policy's order
//   Pins        scans, limbo, clients over budget
//   Evictor     one pass of eviction
//   Placement   how a slot or room is got; reserve, give-back
//   Weights     models and their blocks
//   OfDevices   what is in memory of GPUs, and the ways there and back; where there are any
//   StoreTier   what is stored below memory, and the ways there and back; where there is a store
#pragma once

#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "daemon/engine/catalog.h"
#include "daemon/engine/clients.h"
#include "daemon/engine/device/of_device.h"
#include "daemon/engine/engine.h"
#include "daemon/engine/grants.h"
#include "daemon/engine/placement/blocks.h"
#include "daemon/engine/placement/evictor.h"
#include "daemon/engine/placement/host_memory.h"
#include "daemon/engine/placement/pins.h"
#include "daemon/engine/placement/placement.h"
#include "daemon/engine/placement/residents.h"
#include "daemon/engine/store/store_tier.h"
#include "daemon/engine/weights/access.h"
#include "daemon/engine/weights/weights.h"

namespace terrace {

class HostEngine final : public Engine {
 public:
  HostEngine(const EngineOptions& options, EngineParts parts, EngineEvents& events);
  ~HostEngine() override;

  // Registered models, from the journal.
  Status Restore();

  Result<TenantId> AddTenant(const std::string& name) override;
  Status SetClientLimits(const ClientLimits& limits) override;
  Result<ClientGiven> ClientArrived(const ClientSpec& spec, std::span<uint8_t> channel) override;
  void ClientGone(ClientId client) override;
  TenantIndex& index(TenantId tenant) override { return *catalog_.At(tenant).index; }

  Result<SpaceGiven> OpenSpace(ClientId client, const SpaceSpec& spec) override;
  Result<SpaceGiven> OpenSpaceById(ClientId client, const Digest& id) override;
  Status CloseSpace(ClientId client, uint32_t slot, uint32_t epoch) override;

  Status Grant(ClientId client, const GrantSpec& spec, std::vector<GrantGiven>* given) override;
  Status Commit(ClientId client, std::span<const uint64_t> grants,
                std::span<const uint32_t> valid_tokens, std::vector<Code>* codes) override;
  Status Abort(ClientId client, std::span<const uint64_t> grants) override;
  Result<uint32_t> Drop(ClientId client, uint32_t slot, uint32_t epoch, uint32_t part,
                        std::span<const Digest> keys) override;
  Evicted Evict(uint64_t bytes, uint64_t limit) override;
  void Prefetch(ClientId client, const PrefetchSpec& spec,
                std::function<void(Result<Prefetched>)> done) override;
  void Persist(ClientId client, const PersistSpec& spec,
               std::function<void(Result<std::vector<Code>>)> done) override;
  void Demote(uint64_t bytes, Progress progress,
              std::function<void(Result<Demoted>)> done) override;
  void Promote(const PromoteSpec& spec, Progress progress,
               std::function<void(Result<Promoted>)> done) override;
  void CheckStore(ClientId client, const StoreCheckSpec& spec, Progress progress,
                  std::function<void(Result<StoreCheckReport>)> done) override;
  void Flush(Progress progress, std::function<void(Status)> done) override;
  std::optional<ArenaFacts> FindArena(ClientId client, ArenaId arena) const override;

  void AddModel(ModelSpec spec, std::function<void(Result<ModelAdded>)> done) override;
  void RemoveModel(const std::string& name, const std::string& version,
                   std::function<void(Status)> done) override;
  void Load(ClientId id, const std::string& name, const std::string& version, Progress progress,
            std::function<void(Result<ModelLoaded>)> done) override;
  Result<Unloaded> Unload(const std::string& name, const std::string& version) override;
  void SetModelAccess(const std::string& name, const std::string& tenant, bool granted,
                      std::function<void(Status)> done) override;
  Status CheckModelAccess(TenantId tenant, const std::string& name) const override;
  Status CheckDeviceAccess(TenantId tenant, uint32_t device) const override;
  void Attach(ClientId client, const std::string& name, const std::string& version, bool load,
              uint32_t deadline_ms, std::function<void(Result<Attached>)> done) override;
  void AttachEarly(ClientId client, const std::string& name, const std::string& version,
                   uint32_t deadline_ms, std::function<void(Result<Attached>)> done) override;
  void AwaitBlocks(ClientId client, uint64_t attachment, std::span<const uint32_t> blocks,
                   uint32_t deadline_ms, std::function<void(Result<Arrival>)> done) override;
  Result<std::vector<ArenaId>> BlocksOf(ClientId client, uint64_t attachment,
                                        std::span<const uint32_t> blocks) override;
  Status Detach(ClientId client, uint64_t attachment) override;

  void LoadToDevice(ClientId client, uint32_t device, const std::string& name,
                    const std::string& version, Progress progress,
                    std::function<void(Result<ModelLoaded>)> done) override;
  Result<Unloaded> UnloadFromDevice(uint32_t device, const std::string& name,
                                    const std::string& version) override;
  void AttachOnDevice(ClientId client, uint32_t device, const std::string& name,
                      const std::string& version, bool load, uint32_t deadline_ms,
                      std::function<void(Result<Attached>)> done) override;
  Result<DeviceMemory> GiveDeviceArena(ClientId client, ArenaId arena) override;
  std::vector<UnmapRequest> UnmapWantedOf(ClientId client) const override;
  void LetGoArenas(ClientId client, std::span<const ArenaId> arenas) override;
  void CountGivenOnce(ClientId client) override;
  void DemoteDevice(uint32_t device, uint64_t bytes, Progress progress,
                    std::function<void(Result<Demoted>)> done) override;
  void AddPool(ClientId client, PoolSpec spec, std::function<void(Result<uint64_t>)> done) override;
  void RemovePool(ClientId client, uint64_t pool, std::function<void(Status)> done) override;
  void StoreFromPool(ClientId client, const PoolPages& pages,
                     std::function<void(Result<std::vector<Code>>)> done) override;
  void FetchIntoPool(ClientId client, const PoolPages& pages,
                     std::function<void(Result<std::vector<Code>>)> done) override;
  void DeviceArenaLost(ArenaId arena) override;

  bool Turn() override;
  void SetHostCapacity(uint64_t bytes) override;
  uint64_t host_capacity_bytes() const override { return memory_.capacity(); }

  StatusReport Summary() const override;
  std::vector<GpuReport> Devices() const override;
  std::vector<ModelReport> Models() const override;
  std::vector<SpaceReport> Spaces() const override;
  std::vector<ClientReport> Clients() override;
  std::vector<PageReport> Pages(const std::string& space_hex, uint32_t limit,
                                TenantId only) const override;
  bool RereadChannels(FiguresCursor* cursor, size_t lines) override;
  EngineFigures Figures() const override;
  Status CheckInvariants() const override;

 private:
  TenantId TenantOf(ClientId client);  // 0: there is no such client.
  // The space, if the client has it open.
  Result<Space*> OpenedSpace(const Client& client, uint32_t slot, uint32_t epoch);
  SpaceGiven GivenOf(const Tenant& tenant, const Space& space) const;
  // What a prefetch comes to where there is no store.
  static Prefetched FoundInMemory(const Tenant& tenant, const PrefetchSpec& spec);
  // For an attachment that was waited for: its model may have been taken from the tenant meanwhile.
  std::function<void(Result<Attached>)> IfStillAllowed(ClientId id, TenantId tenant,
                                                       const std::string& name,
                                                       std::function<void(Result<Attached>)> done);
  void MakeStore(EngineParts& parts);
  void MakeDevices(EngineParts& parts);
  Result<OfDevice*> DeviceOf(uint32_t device) const;
  // The same for a tenant that uses it.
  Result<OfDevice*> DeviceFor(TenantId tenant, uint32_t device) const;
  // The device that a model's weights are brought to: `device`, or the best for them.
  Result<OfDevice*> DeviceForModel(const std::string& name, const std::string& version,
                                   uint32_t device) const;
  void MakeDevicePages(OfDevice& device);
  // Slots for a grant; `more`: of those that are missing some are on their way.
  Result<PagesOnDevice::Slots> SlotsFor(TenantId tenant, uint32_t device, uint32_t page_bytes,
                                        uint64_t count);
  Residents& ResidentsOf(SlotRef slot);
  void DropFrom(TenantId tenant, const PageName& name, bool* dropped);
  bool TurnDevices(std::span<const Placement::Gone> gone);
  void TellUnmapWanted();
  void TellUnmapWanted(OfDevice& device);
  OfDevice* HasArena(ArenaId arena) const;                // Null: none has.
  MonotonicNs PrefetchDeadline(uint32_t asked_ms) const;  // 0: the default.
  // pools.cc
  Result<Pools*> PoolsWith(ClientId client, uint64_t pool);
  Result<Pools::Work> WorkOf(const Client& client, const PoolPages& pages);
  void PrefetchToDevice(const Client& client, const PrefetchSpec& spec,
                        std::function<void(Result<Prefetched>)> done);
  // What it waits for there is answered, and it holds nothing there.
  void DeviceClientGone(ClientId client);
  // weights_on_devices.cc
  void MakeDeviceWeights(OfDevice& device);
  // The device where the client has the attachment; null: it is in host memory, or none.
  OfDevice* AttachedOn(ClientId client, uint64_t attachment) const;
  Code CommitOne(Client& client, uint64_t id, uint32_t valid_tokens);
  PageCounts& CountsOf(const Client& client) { return catalog_.At(client.spec.tenant).counts; }
  void AddPageFigures(std::vector<TenantFigures>* tenants) const;
  void AddClientFigures(std::vector<TenantFigures>* tenants) const;
  // Takes the grant out of the table and off its writer; its slot is the caller's.
  SlotRef EndGrant(Client& client, uint64_t id);
  void ExpireGrant(Client& client, uint64_t id);
  // All of them, for a client that was cut: it may still be writing.
  void AbandonGrants(ClientId id);
  bool ExpireDue();
  Status CheckGrants() const;
  Status CheckFigures() const;
  Status CheckDirectories() const;
  Status CheckTransfers() const;
  Status CheckDevices() const;

  EngineOptions options_;
  const Clock& clock_;
  HostTier& host_;
  EngineEvents& events_;
  const std::unique_ptr<Policy> policy_;

  Catalog catalog_;
  terrace::Clients clients_;
  GrantTable grants_;
  Slabs slabs_;
  HostMemory memory_;
  Residents residents_;
  Pins pins_;
  WeightBlocks weight_blocks_;
  Evictor evictor_;
  Placement placement_;
  Blocks blocks_;
  Weights weights_;
  AccessLists access_;
  std::vector<std::unique_ptr<OfDevice>> devices_;  // Number 1 comes first.
  DeviceArenaNumbers device_numbers_;
  // Slabs that were lost, to be told to clients that were given them: by client and device.
  std::map<std::pair<ClientId, uint32_t>, std::vector<ArenaId>> lost_slabs_;
  // And what they have not let go of: for those whose connection broke meanwhile.
  std::map<std::pair<ClientId, uint32_t>, std::set<ArenaId>> lost_and_mapped_;
  std::unique_ptr<StoreTier> store_;  // Null: there is none.
  uint64_t abandoned_grants_ = 0;     // Now.
  std::vector<std::string> restore_problems_;
};

}  // namespace terrace
