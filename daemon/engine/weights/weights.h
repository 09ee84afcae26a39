// Weights: the models of the host, and which of their blocks are in memory.
//
// A version of a model is registered (its files are known, journalled if the daemon can open them
// again), loaded into sealed blocks by whoever asks first, and attached by clients. A block is held
// while a load or an attachment needs it, and may be evicted when nobody does; a later load reads
// only what is missing. Contents are published only after their digest was checked.
//
// A part of the engine: owner thread only, deterministic, no system calls. The engine gives it
// memory (BlockMemory), calls its verbs, forwards departures and turns, and evicts through it.
//
// Completions are called on the owner thread exactly once, possibly before the verb returns, and
// may call verbs themselves. They are dropped when Weights is destroyed; WeightSources must have no
// reads running by then, for they write into blocks.
//
// Limits: the kMax constants below; a verb beyond one answers `exhausted`.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "base/clock.h"
#include "base/status.h"
#include "daemon/engine/durations.h"
#include "daemon/engine/engine.h"
#include "daemon/engine/report.h"
#include "tiers/tier.h"

namespace terrace {

// Host memory for blocks and manifests, under the engine's one budget.
class BlockMemory {
 public:
  virtual ~BlockMemory() = default;
  // A new arena of `bytes` (a multiple of 4096), charged to the budget; evicts pages and blocks for
  // it if needed, which may come back as Weights::Evict. `exhausted` when too little can be
  // evicted.
  virtual Result<HostTier::Created> CreateBlock(size_t bytes) = 0;
  // The block is complete: from now on it may be evicted when Weights::Held says that nobody holds
  // it. Never called for a manifest.
  virtual void BlockReady(ArenaId arena) = 0;
  // The block was used.
  virtual void TouchBlock(ArenaId arena) = 0;
  // What the budget could give if nothing else were there: a load of more is refused at once,
  // before it evicts what others use.
  virtual uint64_t capacity_bytes() const = 0;
  // The arena is needed no more: takes it off the budget (and out of the policy if it was ready)
  // and releases it to the tier.
  virtual void ReleaseBlock(ArenaId arena) = 0;
};

struct WeightsOptions {
  uint64_t block_bytes = 64u << 20;  // A multiple of 4096, at most 512 MiB.
};

struct WeightsParts {
  const Clock* clock = nullptr;
  HostTier* host = nullptr;  // Bytes, Populate and Seal of arenas that `memory` created.
  WeightSources* sources = nullptr;
  WeightImages* images = nullptr;  // Null: nothing can be imported.
  Journal* journal = nullptr;
  BlockMemory* memory = nullptr;
  std::function<TenantId(ClientId)> tenant_of;
};

struct WeightsTotals {
  uint64_t resident_bytes = 0;  // Of blocks and manifests, those being loaded included.
  uint64_t held_bytes = 0;      // Of the former: blocks that a client or a load holds.
  uint64_t let_go_bytes = 0;  // Of the former: unloaded or removed blocks that clients still hold.
  uint64_t evicted_blocks = 0;  // Since the start.
};

namespace weights {
struct Checks;
struct Image;
class Load;
struct Plan;
struct Version;
struct Waiter;
}  // namespace weights

class Weights {
 public:
  static constexpr size_t kMaxVersions = 4096;
  static constexpr size_t kMaxOpening = 64;  // AddModel calls that wait for their files.
  // Of one load; for blocks, of all. A tenant has at most as many as it leaves free, which alone is
  // half, so that none keeps others from waiting.
  static constexpr size_t kMaxWaiters = 8192;
  static constexpr size_t kMaxClientWaiters = 64;  // Of one client: for loads; for blocks.
  static constexpr size_t kMaxAttachments = 1024;  // Of one client.
  static constexpr size_t kMaxNameBytes = 128;
  static constexpr size_t kMaxImporting = 4;                 // Images that are being written.
  static constexpr uint64_t kPopulateStepBytes = 16u << 20;  // A turn.
  static constexpr uint64_t kReleaseStepBytes = 64u << 20;   // A verb, or a turn; at least a block.

  Weights(const WeightsOptions& options, const WeightsParts& parts);
  ~Weights();
  Weights(const Weights&) = delete;
  Weights& operator=(const Weights&) = delete;

  // Reads the registered versions from the journal. A record that cannot be read is left where it
  // is and described in `problems`.
  Status Restore(std::vector<std::string>* problems);

  // ---- The verbs of Engine.
  // Registers it, whatever it says of an image.
  void AddModel(ModelSpec spec, std::function<void(Result<ModelAdded>)> done);
  // Loads the version that was added and writes its image; `done` gets `added` and what came of it.
  void Import(const std::string& name, const std::string& version, ModelAdded added,
              Progress progress, std::function<void(Result<ModelAdded>)> done);
  void RemoveModel(const std::string& name, const std::string& version,
                   std::function<void(Status)> done);
  void Load(ClientId client, const std::string& name, const std::string& version, Progress progress,
            std::function<void(Result<ModelLoaded>)> done);
  // Blocks that clients hold stay until they let go; a load before that takes them up again. Of the
  // others kReleaseStepBytes go at once and the rest in the next turns: giving up memory takes
  // time.
  Result<Unloaded> Unload(const std::string& name, const std::string& version);
  // deadline_ms 0: waits as long as the load takes. The attachment holds every block until the
  // first BlocksOf that names blocks, and from then on those that were ever named.
  void Attach(ClientId client, const std::string& name, const std::string& version, bool load,
              uint32_t deadline_ms, std::function<void(Result<Attached>)> done);
  // As Attach with `load`, but done once the manifest is there. While the load runs the attachment
  // is arriving: it holds nothing but what BlocksOf gave it, and when the load is done what Attach
  // would have it hold. If the load fails, the attachment has failed: every verb but Detach answers
  // why, and the blocks that it was given stay charged until then, for they are mapped.
  void AttachEarly(ClientId client, const std::string& name, const std::string& version,
                   uint32_t deadline_ms, std::function<void(Result<Attached>)> done);
  // Until the attachment's blocks of these numbers have come; none: until its load is done.
  void AwaitBlocks(ClientId client, uint64_t attachment, std::span<const uint32_t> blocks,
                   uint32_t deadline_ms, std::function<void(Result<Arrival>)> done);
  // `unavailable` for a block that the attachment did not hold and that was evicted since. 0 for
  // one that has not come, where the attachment is arriving.
  Result<std::vector<ArenaId>> BlocksOf(ClientId client, uint64_t attachment,
                                        std::span<const uint32_t> blocks);
  // The name of what is attached; null if it is not one of this client.
  const std::string* ModelOf(ClientId client, uint64_t attachment) const;
  Status Detach(ClientId client, uint64_t attachment);
  // One of them holds a block no longer, which it was given; nothing if it does not. The manifest
  // it has until Detach.
  void LetGoBlock(ClientId client, uint64_t attachment, uint32_t block);
  // Its attachments end; what it waits for completes with `unavailable`.
  void ClientGone(ClientId client);
  // Deadlines of waiters, and the population and the release of blocks, a bounded piece at a time.
  // True if more of that is waiting.
  bool Turn();

  // ---- For the engine's eviction. `arena` was made ready and not released.
  bool Held(ArenaId arena) const;
  // Gives the block up: ReleaseBlock comes back. It must not be held.
  void Evict(ArenaId arena);

  // ---- For what keeps weights in other memory than that of the host.
  // Who is registered by that name: `ordinal` is of this registration alone.
  struct Registration {
    std::string version;
    uint64_t ordinal = 0;
    uint64_t bytes = 0;  // Of its image.
  };
  Result<Registration> RegistrationOf(const std::string& name, const std::string& version) const;
  // Null if it is not one of this client.
  std::shared_ptr<const weights::Image> ImageOf(ClientId client, uint64_t attachment) const;
  // A number for an attachment, from the same sequence as those made here.
  uint64_t NewAttachment() { return ++last_attachment_; }
  // Whether a tenant that has so many of all waiters may have one more.
  static Status CheckShare(size_t theirs, size_t all);

  // ---- Reports
  bool Knows(const std::string& name) const;  // A version of it is registered.
  std::vector<ModelReport> Models() const;
  struct Holdings {
    uint64_t attachments = 0;
    uint64_t bytes = 0;  // Of blocks, each once.
  };
  Holdings HoldingsOf(ClientId client) const;
  WeightsTotals totals() const;
  // Evictions apart, whose reasons the evictor knows.
  WeightsFigures Figures() const;
  // Recounts what the counters say; an error names the first difference.
  Status CheckInvariants() const;

 private:
  using VersionPtr = std::shared_ptr<weights::Version>;
  using LoadPtr = std::shared_ptr<weights::Load>;
  struct Attachment {
    VersionPtr version;
    std::vector<bool> holds;  // By block of the version.
    bool chosen = false;      // A BlocksOf has named blocks.

    LoadPtr arriving;          // Null: it is complete, or has failed.
    std::vector<bool> wanted;  // While it is arriving: what it holds afterwards.
    // Blocks of its load that it was given, while that runs and after it failed.
    std::map<uint32_t, ArenaId> given;
    Status failure;  // Of the load.
  };
  // Who waits for blocks of an arriving attachment.
  struct BlockWaiter {
    ClientId client = 0;
    TenantId tenant = 0;
    uint64_t attachment = 0;
    MonotonicNs deadline = 0;
    std::vector<uint32_t> blocks;  // Empty: all of the load.
    size_t come = 0;               // The first so many of `blocks` have.
    std::function<void(Result<Arrival>)> done;
  };
  // A client that has attached something. What it holds in all is counted along the way: a report
  // of all clients looks at no attachment.
  struct Holder {
    std::map<uint64_t, Attachment> attachments;
    std::unordered_map<ArenaId, uint32_t> holds;  // How many of them hold the block; not 0.
    uint64_t bytes = 0;                           // Of these blocks.

    void Take(ArenaId block, uint64_t block_bytes);
    void Drop(ArenaId block, uint64_t block_bytes);
  };
  static constexpr uint32_t kManifest = 0xffffffff;
  struct Place {
    weights::Version* version = nullptr;
    uint32_t block = 0;  // Or kManifest.
  };

  Result<VersionPtr> Find(const std::string& name, const std::string& version) const;
  void SourcePlanned(const std::string& name, const std::string& version,
                     std::shared_ptr<WeightSource> source, Result<weights::Plan> plan,
                     std::function<void(Result<ModelAdded>)> done);
  // Journals the version if it is not yet and all its files can be opened again.
  void MakeDurable(const VersionPtr& version, uint32_t blocks,
                   std::function<void(Result<ModelAdded>)> done);
  void Save(const VersionPtr& version, std::function<void(Status)> done);

  // import.cc
  // `known`: the labels of all records of models, those that are `unreadable` among them.
  void RestoreChecks(const std::set<std::string>& known, const std::set<std::string>& unreadable,
                     std::vector<std::string>* problems);
  // `checks` are the version's from now on, and durable when `done` says ok.
  void SetChecks(const VersionPtr& version, weights::Checks checks,
                 std::function<void(Status)> done);
  // Unless it is there already, whole and of these weights.
  void WriteImage(const VersionPtr& version, std::function<void(Status)> done);
  void ImageFound(const VersionPtr& version, const Status& status);
  void PutImage(const VersionPtr& version);
  void ImageWritten(const VersionPtr& version, Status written);
  // Lets go of what it held; returns how to answer those who wait for it.
  std::function<void(const Status&)> ImportEnded(const VersionPtr& version);
  // A device that was overdue does not write into the arena any more.
  void DeviceLetGo(ArenaId arena);

  // Waits for the version's load, which is started if none runs.
  Status Await(const VersionPtr& version, weights::Waiter waiter);
  void LoadEnded(const LoadPtr& load, Status status);
  void Publish(const VersionPtr& version, weights::Load& load);
  Result<Attached> AttachNow(ClientId client, const VersionPtr& version);
  // Makes room for one more, or says that there is none.
  Result<Holder*> HolderOf(ClientId client);
  void PublishManifest(const VersionPtr& version, weights::Load& load);

  void Hold(weights::Version& version, uint32_t block);
  // Without a holder, the block of a version that was let go leaves.
  void Unhold(const VersionPtr& version, uint32_t block);
  // The version's unheld blocks leave, the others when they are held no more. Says how much each
  // are.
  Unloaded LetGo(const VersionPtr& version);
  void Leave(const VersionPtr& version);
  // Releases orphans and blocks of `leaving_`. True if there are more.
  bool ReleaseLeaving();
  uint64_t ReleaseBlock(weights::Version& version, uint32_t block);
  void ReleaseManifestIfIdle(weights::Version& version);
  // arrivals.cc
  // Attaches who waited for the manifest only.
  void LoadDrafted(weights::Load& load);
  Result<Attached> AttachArriving(ClientId client, const LoadPtr& load);
  std::vector<ArenaId> ArrivedOf(Holder& holder, Attachment& attached,
                                 std::span<const uint32_t> blocks);
  void BlocksCame(const weights::Load& load);
  // The load has ended: its attachments are as others, or have failed. Returns who waited for that.
  std::vector<BlockWaiter> EndArrivals(const LoadPtr& load, const Status& status);
  static void TellArrived(const std::vector<BlockWaiter>& waiters, const weights::Version& version,
                          const Status& status);
  void Complete(Holder& holder, Attachment& attached);
  void FailArrival(Attachment& attached, const Status& status);
  // Those that `ended` chooses leave the list.
  std::vector<BlockWaiter> TakeBlockWaiters(const std::function<bool(const BlockWaiter&)>& ended);
  bool HaveCome(const Attachment& attached, BlockWaiter& waiter) const;
  // Of a failed attachment that has ended: what nobody else was given goes.
  void ReleaseGiven(const Attachment& ended);
  // The load failed, and its arena was given to clients: it goes with the last of these.
  bool IsGiven(ArenaId arena) const { return given_.count(arena) > 0; }

  // Null: it is not one of this client.
  const Attachment* FindAttachment(ClientId client, uint64_t attachment) const;
  // It was taken from its holder.
  void EndAttachment(const Attachment& ended);

  const WeightsOptions options_;
  const WeightsParts parts_;
  std::vector<VersionPtr> versions_;           // Registered ones, in the order they were added.
  std::unordered_map<ArenaId, Place> places_;  // Published arenas, manifests included.
  std::map<ClientId, Holder> holders_;
  std::vector<LoadPtr> loads_;  // Running, or cancelled and not yet quiet.
  // Versions that were let go, with blocks that nobody holds. Until these are released they count
  // as resident, and a load or an attachment takes them up again.
  std::vector<VersionPtr> leaving_;
  // Arenas of loads that failed, to be released.
  struct Orphan {
    ArenaId arena = 0;
    uint64_t bytes = 0;
  };
  std::vector<Orphan> orphans_;
  // Likewise, but a device that did not answer in time may still write into them: their bytes.
  std::unordered_map<ArenaId, uint64_t> overdue_;
  // Likewise, but attachments of the load have them.
  struct Given {
    uint64_t bytes = 0;
    uint32_t attachments = 0;
  };
  std::unordered_map<ArenaId, Given> given_;
  std::vector<BlockWaiter> block_waiters_;
  // An image that is looked for or being written; every block of the version is held.
  struct Importing {
    VersionPtr version;
    std::vector<std::function<void(Status)>> waiters;  // More than one may ask.
  };
  std::vector<Importing> importing_;
  uint64_t last_attachment_ = 0;
  uint64_t last_ordinal_ = 0;
  size_t opening_ = 0;
  uint64_t evicted_blocks_ = 0;
  uint64_t read_bytes_ = 0;  // Of loads that ended.
  Durations read_times_;
  std::shared_ptr<char> alive_ = std::make_shared<char>();  // Completions of tiers hold it weakly.
};

}  // namespace terrace
