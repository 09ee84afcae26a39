// Engine: all decisions of the daemon, in one deterministic single-threaded object.
//
// It has no sockets, threads, files or clock of its own: it is given Clock, HostTier,
// WeightSources, Journal and the memory of directories, and is called with verbs by the service (or
// by the simulation, or a replay). Every method runs on the owner thread and returns without
// blocking; verbs that may wait for a tier take a completion, which is called on the owner thread
// exactly once, before the verb returns or later, also when the client has gone meanwhile.
//
// Verbs of a client name it by ClientId; the service has established who that is (SO_PEERCRED,
// pidfd) before it calls ClientArrived.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/status.h"
#include "daemon/engine/client_verbs.h"
#include "daemon/engine/device_verbs.h"
#include "daemon/engine/engine_options.h"
#include "daemon/engine/figures.h"
#include "daemon/engine/page_verbs.h"
#include "daemon/engine/report.h"
#include "daemon/engine/tenant_index.h"
#include "daemon/engine/weight_verbs.h"

namespace terrace {

// What the engine tells without being asked: from within Turn, when it is done with its own work.
// Events may call verbs.
class EngineEvents {
 public:
  virtual ~EngineEvents() = default;
  virtual void GrantsExpired(ClientId client, std::span<const uint64_t> grants) = 0;
  virtual void ArenasGone(TenantId tenant, std::span<const ArenaId> arenas) = 0;
  // A client was found over its pin budget: its pins count no more, its verbs are refused, its
  // grants are abandoned. It lives on, so its slots and attachments stay charged until ClientGone.
  virtual void ClientCut(ClientId client, const Status& why) = 0;
  // Memory of a device is asked back from a client that maps it, or was lost.
  virtual void UnmapWanted(ClientId client, const UnmapRequest& request) = 0;
};

class Engine {
 public:
  virtual ~Engine() = default;

  // ---- Tenants and clients
  virtual Result<TenantId> AddTenant(const std::string& name) = 0;  // The same name: the same id.
  virtual Result<ClientGiven> ClientArrived(const ClientSpec& spec, std::span<uint8_t> channel) = 0;
  // Its process is gone, or it said goodbye after unmapping: pins, grants and attachments end.
  virtual void ClientGone(ClientId client) = 0;
  virtual TenantIndex& index(TenantId tenant) = 0;
  // Budgets of clients that arrive from now on, and deadlines of grants that are asked for from now
  // on. An error changes nothing.
  virtual Status SetClientLimits(const ClientLimits& limits) = 0;

  // ---- Spaces
  virtual Result<SpaceGiven> OpenSpace(ClientId client, const SpaceSpec& spec) = 0;
  // A space of the client's tenant that is present: open by somebody, or with pages.
  virtual Result<SpaceGiven> OpenSpaceById(ClientId client, const Digest& id) = 0;
  virtual Status CloseSpace(ClientId client, uint32_t slot, uint32_t epoch) = 0;

  // ---- Pages. Arrays answer element by element.
  // Answers for the first keys only, where all would need more than kGrantStepBytes: getting memory
  // takes time. The caller asks again for the rest.
  virtual Status Grant(ClientId client, const GrantSpec& spec, std::vector<GrantGiven>* given) = 0;
  virtual Status Commit(ClientId client, std::span<const uint64_t> grants,
                        std::span<const uint32_t> valid_tokens, std::vector<Code>* codes) = 0;
  virtual Status Abort(ClientId client, std::span<const uint64_t> grants) = 0;
  virtual Result<uint32_t> Drop(ClientId client, uint32_t slot, uint32_t epoch, uint32_t part,
                                std::span<const Digest> keys) = 0;
  // Takes out what nobody holds: at least `bytes` (0: all), but at most `limit` pages and blocks,
  // so that who wants more can do it in steps. A step that evicts nothing is the last.
  virtual Evicted Evict(uint64_t bytes, uint64_t limit) = 0;

  // ---- Stored pages. Without a store nothing is stored: Prefetch answers by what is in memory,
  // the others `unavailable`.
  // Brings pages into memory. `done` comes when each key has its answer, or at the deadline.
  virtual void Prefetch(ClientId client, const PrefetchSpec& spec,
                        std::function<void(Result<Prefetched>)> done) = 0;
  // Answers when each page is durable as the store promises it, which writes it if need be: kOk;
  // kNotFound: neither in memory nor stored; kExhausted: the store is full, or wrote enough for
  // today; kUnavailable; kStale. `mismatch`: the store promises nothing.
  virtual void Persist(ClientId client, const PersistSpec& spec,
                       std::function<void(Result<std::vector<Code>>)> done) = 0;
  // Takes pages out of memory that nobody holds, the least used first, at least `bytes` (0: all),
  // each when it is stored. What cannot be stored stays. `exhausted` while another is under way.
  virtual void Demote(uint64_t bytes, Progress progress,
                      std::function<void(Result<Demoted>)> done) = 0;
  // Brings pages from the store into memory that is free, those used last first, until it has
  // `bytes` of them or one finds no room: nothing leaves memory for them. Pages of tenants that are
  // not in the configuration stay. `exhausted` while another is under way.
  virtual void Promote(const PromoteSpec& spec, Progress progress,
                       std::function<void(Result<Promoted>)> done) = 0;
  // Compares index, catalogue and slots with each other, and reads every page if asked to, behind
  // all other reads. What is written, replaced or erased meanwhile is no finding. With `repair`
  // entries and slots of no page are freed, and bad pages erased. Ends with its client; `exhausted`
  // while another is under way.
  virtual void CheckStore(ClientId client, const StoreCheckSpec& spec, Progress progress,
                          std::function<void(Result<StoreCheckReport>)> done) = 0;
  // What was acknowledged before survives the loss of power when `done` is called.
  virtual void Flush(Progress progress, std::function<void(Status)> done) = 0;

  // nullopt: not an arena of the client's tenant.
  virtual std::optional<ArenaFacts> FindArena(ClientId client, ArenaId arena) const = 0;

  // ---- Weights
  virtual void AddModel(ModelSpec spec, std::function<void(Result<ModelAdded>)> done) = 0;
  virtual void RemoveModel(const std::string& name, const std::string& version,
                           std::function<void(Status)> done) = 0;
  // Single flight: whoever asks while a load is running waits for it. Who goes while it waits is
  // told so; the load goes on.
  virtual void Load(ClientId client, const std::string& name, const std::string& version,
                    Progress progress, std::function<void(Result<ModelLoaded>)> done) = 0;
  virtual Result<Unloaded> Unload(const std::string& name, const std::string& version) = 0;
  // Which tenants may attach a model. Revoking takes back nothing that is attached, but no further
  // descriptor is given. `not_found`: there is no such model, or to be granted no such tenant.
  virtual void SetModelAccess(const std::string& name, const std::string& tenant, bool granted,
                              std::function<void(Status)> done) = 0;
  // `permission_denied` for a registered model that the tenant may not attach.
  virtual Status CheckModelAccess(TenantId tenant, const std::string& name) const = 0;
  // Fails with not_found when the model is not resident and `load` is false.
  virtual void Attach(ClientId client, const std::string& name, const std::string& version,
                      bool load, uint32_t deadline_ms,
                      std::function<void(Result<Attached>)> done) = 0;
  // Loads, and answers as soon as the manifest is there. If the load fails, so does every later
  // call for the attachment, which stays until Detach: what the client has mapped stays charged.
  virtual void AttachEarly(ClientId client, const std::string& name, const std::string& version,
                           uint32_t deadline_ms, std::function<void(Result<Attached>)> done) = 0;
  // Until all these blocks of the attachment have come; none: until the load is done.
  virtual void AwaitBlocks(ClientId client, uint64_t attachment, std::span<const uint32_t> blocks,
                           uint32_t deadline_ms, std::function<void(Result<Arrival>)> done) = 0;
  // The arenas of blocks, in order; the client holds the model until Detach. Of an attachment that
  // is arriving: 0 for blocks that have not come.
  virtual Result<std::vector<ArenaId>> BlocksOf(ClientId client, uint64_t attachment,
                                                std::span<const uint32_t> blocks) = 0;
  virtual Status Detach(ClientId client, uint64_t attachment) = 0;

  // ---- Memory of devices. `invalid_argument` for a device that there is not; `unavailable` for
  // one that does not serve; `permission_denied` for one that is kept for other tenants.
  virtual Status CheckDeviceAccess(TenantId tenant, uint32_t device) const = 0;
  // Host memory is loaded first where it has to be; both at once, block by block. Single flight.
  // The device is for a tenant that may attach the model; who asks need not be one. kAnyDevice: the
  // one that has them, else of those that serve the one with the most room, or where the most can
  // be made.
  virtual void LoadToDevice(ClientId client, uint32_t device, const std::string& name,
                            const std::string& version, Progress progress,
                            std::function<void(Result<ModelLoaded>)> done) = 0;
  // Whoever has it attached there is asked to let go. Host memory keeps what it has.
  virtual Result<Unloaded> UnloadFromDevice(uint32_t device, const std::string& name,
                                            const std::string& version) = 0;
  // As Attach; BlocksOf then names arenas of the device.
  virtual void AttachOnDevice(ClientId client, uint32_t device, const std::string& name,
                              const std::string& version, bool load, uint32_t deadline_ms,
                              std::function<void(Result<Attached>)> done) = 0;
  // What the client maps an arena of a device by, a slab of its tenant or a block of its
  // attachments: from then on it counts as mapped, until LetGoArenas or Detach.
  virtual Result<DeviceMemory> GiveDeviceArena(ClientId client, ArenaId arena) = 0;
  // What the client was asked to unmap, or told that it lost, and has not let go of: for one whose
  // connection broke meanwhile.
  virtual std::vector<UnmapRequest> UnmapWantedOf(ClientId client) const = 0;
  // Slabs that the client has unmapped, asked to or not.
  virtual void LetGoArenas(ClientId client, std::span<const ArenaId> arenas) = 0;
  // Slabs that were given to the client several times count as given once: it is to let go of each
  // once, whatever of it was lost with a connection.
  virtual void CountGivenOnce(ClientId client) = 0;
  // Takes pages out of the device's memory that nobody holds, the least used first, at least
  // `bytes` (0: all), each when host memory has it. `exhausted` while another is under way.
  virtual void DemoteDevice(uint32_t device, uint64_t bytes, Progress progress,
                            std::function<void(Result<Demoted>)> done) = 0;
  // A client's own memory of a device, in which it has KV; at most kMaxPools of a client.
  virtual void AddPool(ClientId client, PoolSpec spec,
                       std::function<void(Result<uint64_t>)> done) = 0;
  // Done when nothing is copied to or from it any more.
  virtual void RemovePool(ClientId client, uint64_t pool, std::function<void(Status)> done) = 0;
  // Gathers blocks into pages of the pool's device, and publishes those. One code a key, as of
  // Grant and Commit.
  virtual void StoreFromPool(ClientId client, const PoolPages& pages,
                             std::function<void(Result<std::vector<Code>>)> done) = 0;
  // Brings pages to the pool's device if need be, and scatters them into blocks. One code a key,
  // as of Prefetch; blocks of other pages than kOk have any bytes.
  virtual void FetchIntoPool(ClientId client, const PoolPages& pages,
                             std::function<void(Result<std::vector<Code>>)> done) = 0;
  // The tier says that no process can have the arena again.
  virtual void DeviceArenaLost(ArenaId arena) = 0;

  // ---- Time. To be called about every 10 ms: a bounded amount of background work (rings,
  // deadlines, reserve, limbo). Returns whether more is waiting.
  virtual bool Turn() = 0;
  virtual void SetHostCapacity(uint64_t bytes) = 0;
  virtual uint64_t host_capacity_bytes() const = 0;

  // ---- Reports
  virtual StatusReport Summary() const = 0;
  virtual std::vector<GpuReport> Devices() const = 0;
  virtual std::vector<ModelReport> Models() const = 0;
  virtual std::vector<SpaceReport> Spaces() const = 0;
  virtual std::vector<ClientReport> Clients() = 0;
  // only 0: of all tenants.
  virtual std::vector<PageReport> Pages(const std::string& space_hex, uint32_t limit,
                                        TenantId only) const = 0;
  // ---- Figures. Each RereadChannels reads about `lines` lines of clients' channels again; false:
  // it has come round, and Figures tells what was read. Others may have a turn between two calls.
  struct FiguresCursor {
    size_t tenant = 0;
    ClientId client = 0;  // The last one read.
  };
  virtual bool RereadChannels(FiguresCursor* cursor, size_t lines) = 0;
  virtual EngineFigures Figures() const = 0;
  // Recomputes from the extents what the counters say; an error names the first difference. Costs
  // O(extents): for tests and the simulation.
  virtual Status CheckInvariants() const = 0;
};

// Registered models are read from the journal. `events` outlives the engine.
Result<std::unique_ptr<Engine>> MakeEngine(const EngineOptions& options, EngineParts parts,
                                           EngineEvents& events);

}  // namespace terrace