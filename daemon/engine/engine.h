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

#include "base/clock.h"
#include "base/digest.h"
#include "base/status.h"
#include "daemon/engine/figures.h"
#include "daemon/engine/layout.h"
#include "daemon/engine/report.h"
#include "daemon/engine/tenant_index.h"
#include "daemon/policy/policy.h"
#include "proto/shared_memory.h"
#include "tiers/page_store.h"
#include "tiers/tier.h"

namespace terrace {

// What one client may have, and for how long.
struct ClientLimits {
  uint32_t max_pins = 65536;      // At most; shm::kMaxPinLines * 8 is the ceiling.
  uint64_t max_pinned_bytes = 0;  // 0: half the host capacity.
  uint32_t max_grants = 4096;
  uint32_t max_spaces = 1024;           // Open at a time.
  uint32_t grant_deadline_ms = 30'000;  // Where a request names none.
  uint32_t grant_deadline_max_ms = 600'000;
};

// How the store is used. Percentages are of its capacity.
struct StoreOptions {
  uint64_t write_bytes_per_day = 0;  // 0: no limit.
  uint64_t write_burst_bytes = uint64_t{64} << 30;
  uint32_t high_percent = 95;  // Above it pages leave the store until it is below the other.
  uint32_t low_percent = 90;
  uint32_t max_queued_pages = 8192;   // That wait to be written,
  uint32_t max_writing_pages = 1024;  // that are written,
  uint64_t max_writing_bytes = 256u << 20;
  uint32_t max_reading_pages = 4096;  // and that are read.
  uint64_t max_reading_bytes = uint64_t{1} << 30;
  uint32_t write_deadline_ms = 10'000;
  uint32_t read_deadline_ms = 2'000;
  // At what rate stored pages are read for no other reason than to see whether they are still what
  // they were; 0: never.
  uint64_t scrub_bytes_per_second = 0;
  uint32_t prefetch_deadline_ms = 1'000;  // Where a request names none.
  uint32_t prefetch_deadline_max_ms = 60'000;
  uint64_t sketch_counters = 1u << 20;  // Two bytes each.
};

struct EngineOptions : ClientLimits {
  uint64_t host_capacity_bytes = 0;
  uint64_t slab_bytes = 64u << 20;  // Aimed at; a slab holds whole pages, at least one.
  uint64_t block_bytes =
      64u << 20;  // Of weights; doubled, up to 512 MiB, for sets of over 253 blocks.
  uint64_t huge_page_bytes = 2u << 20;   // The unit in which memory is best taken and given back.
  uint64_t pretouch_bytes = UINT64_MAX;  // How much unused capacity is kept as pre-touched blanks.
  StoreOptions store;
};

struct EngineParts {
  const Clock* clock = nullptr;
  HostTier* host = nullptr;
  WeightSources* sources = nullptr;
  WeightImages* images = nullptr;  // Null: nothing can be imported.
  Journal* journal = nullptr;
  DirectoryMemory* directory_memory = nullptr;
  PageStore* page_store = nullptr;  // Null: pages live in memory alone.
  std::unique_ptr<Policy> host_policy;
  // Makes a tenant's index; empty: MakeTenantIndex(*directory_memory).
  std::function<Result<std::unique_ptr<TenantIndex>>()> make_index;
};

inline constexpr uint32_t kMaxBatch = 512;  // Pages of one verb.
// Memory that one call of Grant gets for its pages; of larger ones at least one page's.
inline constexpr uint64_t kGrantStepBytes = 32u << 20;

using TenantId = uint32_t;

// Told now and then by what takes long, before its completion.
using Progress = std::function<void(uint64_t done_bytes, uint64_t total_bytes)>;

struct ClientSpec {
  TenantId tenant = 0;
  std::string name;
  int64_t pid = 0;
  uint32_t uid = 0;
  bool writer = false;
  uint32_t max_pins = 0;  // Wanted; 0: the default.
};
struct ClientGiven {
  ClientId id = 0;
  uint32_t max_pins = 0;
  uint64_t max_pinned_bytes = 0;
  uint32_t max_grants = 0;
};

struct SpaceSpec {
  Digest weights;
  Digest adapter;
  std::vector<uint8_t> salt;
  KvLayout layout;
  std::string model;  // Empty: fenced by no model.
};
struct SpaceGiven {
  Digest id;
  uint32_t slot = 0;
  uint32_t epoch = 0;
  uint32_t generation_index = 0;
  uint64_t generation = 0;
  uint32_t page_bytes = 0;
  KvLayout layout;
};

struct GrantSpec {
  uint32_t slot = 0;
  uint32_t epoch = 0;
  uint32_t part = 0;
  uint32_t deadline_ms = 0;
  std::span<const Digest> keys;
  // The keys are a chain, each extending the one before it, the first `parent` (zero: none), with
  // `position` pages before it. Kept with the pages that go to the store; nothing depends on it.
  bool chain = false;
  Digest parent = {};
  uint32_t position = 0;
};
struct GrantGiven {
  Code code = Code::kOk;
  uint64_t grant = 0;
  shm::Handle handle = 0;  // Arena and slot.
};
struct ArenaFacts {
  ArenaId id = 0;
  uint64_t bytes = 0;
  uint32_t page_bytes = 0;
};

struct PrefetchSpec {
  uint32_t slot = 0;
  uint32_t epoch = 0;
  uint32_t part = 0;
  std::span<const Digest> keys =
      {};                    // A chain from its first page on: nothing behind a gap is of use.
  uint32_t deadline_ms = 0;  // 0: the default.
  // If less than this fraction of the keys is there, in memory or stored, nothing is fetched.
  double min_fraction = 0;
  // What computing a page takes the client: no more is fetched than comes sooner. 0: not told.
  uint32_t recompute_us_per_page = 0;
};
struct Prefetched {
  // One a key. kOk: in memory, and held for the client (Holds) until the deadline. kNotFound:
  // nowhere, behind a gap, or not worth it. kDataLoss: it was stored and did not check out.
  // kDeadlineExceeded; kExhausted: no memory, or more than the client's pin budget; kUnavailable:
  // the device does not answer; kStale: space or generation ended meanwhile.
  std::vector<Code> codes;
  uint32_t worth = 0;  // Keys from the first on that were worth having.
};
struct PersistSpec {
  uint32_t slot = 0;
  uint32_t epoch = 0;
  uint32_t part = 0;
  std::span<const Digest> keys;
};
struct Demoted {
  uint64_t pages = 0;
  uint64_t bytes = 0;
};
struct PromoteSpec {
  std::string tenant;  // Empty: of all.
  Digest space;        // Zero: of all.
  uint64_t bytes = 0;  // 0: as much as there is room for.
};
struct Promoted {
  uint64_t pages = 0;
  uint64_t bytes = 0;
};

struct StoreCheckSpec {
  bool read_data = false;  // Every page's header and bytes.
  bool repair = false;
};
// What a check of the store found.
struct StoreCheckReport {
  // Entries are of the index, pages of the catalogue in memory, slots of the devices' books.
  uint64_t entries = 0;
  uint64_t pages = 0;
  uint64_t read_pages = 0;
  uint64_t read_bytes = 0;
  uint64_t not_read = 0;  // No answer, or the device is not read from.
  // Findings.
  uint64_t unreadable_records = 0;  // Of the index.
  uint64_t unknown_entries = 0;     // Of no page that is known.
  uint64_t missing_entries = 0;     // Pages that the next start would not find.
  uint64_t unknown_slots = 0;       // Allocated, and of no page.
  uint64_t faults[kReadFaults] = {};
  std::vector<std::string> examples;  // A sentence each, of some of them.
  uint64_t repaired = 0;

  uint64_t findings() const {
    uint64_t sum = unreadable_records + unknown_entries + missing_entries + unknown_slots;
    for (const uint64_t count : faults)
      sum += count;
    return sum;
  }
};

struct ModelSpec {
  std::string name;
  std::string version;
  TenantId tenant = 0;  // Who adds it: may attach it from then on, others when granted. 0: nobody.
  SourceRequest source;
  bool import_image = false;  // Load it, and write its image to a file that later loads read.
  Progress progress = {};     // Of that.
};
struct ModelAdded {
  uint32_t tensors = 0;
  uint64_t bytes = 0;
  uint32_t blocks = 0;
  bool durable = false;
  std::string why_not;
  bool imported = false;
  std::string why_not_imported;  // Empty also where nobody asked for it.
};
struct ModelLoaded {
  std::string version;
  uint64_t bytes = 0;
  Digest digest;
};
struct Attached {
  uint64_t attachment = 0;
  std::string version;
  Digest digest;
  uint64_t manifest_bytes = 0;
  ArenaId manifest = 0;   // Sealed; of manifest_bytes, rounded up to 4096. Lasts until Detach.
  bool arriving = false;  // The load runs; `digest` is what is on record, or zeros.
};
// What an arriving attachment has come to.
struct Arrival {
  bool arriving = false;  // The load runs on.
  Digest digest;          // Likewise.
};
struct Unloaded {
  uint64_t freed_bytes = 0;
  uint64_t held_bytes = 0;
};
struct Evicted {
  uint64_t pages = 0;
  uint64_t blocks = 0;
  uint64_t bytes = 0;
};

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

  // ---- Time. To be called about every 10 ms: a bounded amount of background work (rings,
  // deadlines, reserve, limbo). Returns whether more is waiting.
  virtual bool Turn() = 0;
  virtual void SetHostCapacity(uint64_t bytes) = 0;
  virtual uint64_t host_capacity_bytes() const = 0;

  // ---- Reports
  virtual StatusReport Summary() const = 0;
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
