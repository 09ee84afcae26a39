#include "daemon/engine/weights/weights.h"

#include <algorithm>
#include <utility>

#include "base/check.h"
#include "daemon/engine/weights/load.h"
#include "daemon/engine/weights/record.h"
#include "daemon/engine/weights/version.h"

namespace terrace {

using weights::Version;
using weights::Waiter;

namespace {

ModelAdded AddedOf(const Version& version, uint32_t blocks) {
  return {.tensors = version.tensors,
          .bytes = version.tensor_bytes,
          .blocks = blocks,
          .durable = version.durable,
          .why_not = version.why_not,
          .imported = false,
          .why_not_imported = ""};
}

bool SameFiles(const std::vector<SourceFile>& a, const std::vector<SourceFile>& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(),
                    [](const SourceFile& x, const SourceFile& y) {
                      return x.path == y.path && x.bytes == y.bytes;
                    });
}

Status Removed(const Version& version) {
  return {Code::kNotFound, version.Label() + " was removed"};
}

}  // namespace

Weights::Weights(const WeightsOptions& options, const WeightsParts& parts)
    : options_(options), parts_(parts) {
  TERRACE_CHECK(options.block_bytes > 0 && options.block_bytes <= weights::kMaxBlockBytes &&
                options.block_bytes % weights::kBlockGranularity == 0);
}

Weights::~Weights() = default;

// ---- Registration -------------------------------------------------------------------------------

Status Weights::Restore(std::vector<std::string>* problems) {
  ASSIGN_OR_RETURN(const std::vector<Journal::Record> records,
                   parts_.journal->Load(weights::kRecordPrefix));
  std::set<std::string> known;
  std::set<std::string> unreadable;
  for (const Journal::Record& stored : records) {
    const std::string label = stored.key.substr(weights::kRecordPrefix.size());
    known.insert(label);
    auto record = weights::DecodeRecord(stored.key, stored.value);
    if (!record) {
      problems->push_back(record.error().ToString());
      unreadable.insert(label);
      continue;
    }
    if (versions_.size() == kMaxVersions) {
      problems->push_back("journal record '" + stored.key + "': more than " +
                          std::to_string(kMaxVersions) + " model versions");
      unreadable.insert(label);
      continue;
    }
    auto version = std::make_shared<Version>();
    version->name = std::move(record->name);
    version->version = std::move(record->version);
    version->ordinal = record->ordinal;
    version->tensors = record->tensors;
    version->tensor_bytes = record->tensor_bytes;
    version->image_bytes = record->image_bytes;
    version->listing = record->listing;
    version->digest = record->digest;
    for (weights::RecordFile& file : record->files)
      version->files.push_back({.path = std::move(file.path),
                                .bytes = file.bytes,
                                .reopenable = true,
                                .why_not = "",
                                .published = {}});
    version->recorded = true;
    version->durable = true;
    last_ordinal_ = std::max(last_ordinal_, version->ordinal);
    versions_.push_back(std::move(version));
  }
  std::sort(versions_.begin(), versions_.end(),
            [](const VersionPtr& a, const VersionPtr& b) { return a->ordinal < b->ordinal; });
  RestoreChecks(known, unreadable, problems);
  return {};
}

Result<Weights::VersionPtr> Weights::Find(const std::string& name,
                                          const std::string& version) const {
  bool known_name = false;
  for (auto it = versions_.rbegin(); it != versions_.rend(); ++it) {
    if ((*it)->name != name) continue;
    known_name = true;
    if (version.empty() || (*it)->version == version) return *it;
  }
  if (known_name) {
    return Status(Code::kNotFound, "model '" + name + "' has no version '" + version + "'");
  }
  return Status(Code::kNotFound, "model '" + name + "' is not registered");
}

Result<Weights::Registration> Weights::RegistrationOf(const std::string& name,
                                                      const std::string& version) const {
  ASSIGN_OR_RETURN(const VersionPtr found, Find(name, version));
  return Registration{
      .version = found->version, .ordinal = found->ordinal, .bytes = found->image_bytes};
}

bool Weights::Knows(const std::string& name) const {
  return std::any_of(versions_.begin(), versions_.end(),
                     [&name](const VersionPtr& version) { return version->name == name; });
}

void Weights::AddModel(ModelSpec spec, std::function<void(Result<ModelAdded>)> done) {
  Status allowed = weights::CheckName("name", spec.name);
  if (allowed.ok()) allowed = weights::CheckName("version", spec.version);
  if (allowed.ok() && versions_.size() + opening_ >= kMaxVersions) {
    allowed = {Code::kExhausted,
               "more than " + std::to_string(kMaxVersions) + " model versions; remove some"};
  }
  if (allowed.ok() && opening_ >= kMaxOpening) {
    allowed = {Code::kExhausted,
               std::to_string(kMaxOpening) + " models are being added already; retry"};
  }
  if (!allowed.ok()) return done(std::move(allowed));

  ++opening_;
  parts_.sources->Open(
      std::move(spec.source), [this, alive = std::weak_ptr(alive_), name = std::move(spec.name),
                               version = std::move(spec.version), done = std::move(done)](
                                  Result<std::shared_ptr<WeightSource>> source) {
        if (alive.expired()) return;
        if (!source) {
          --opening_;
          return done(std::move(source).error());
        }
        weights::PlanOf(
            *source, options_.block_bytes,
            [this, alive, name, version, source = *source, done](Result<weights::Plan> plan) {
              if (alive.expired()) return;
              --opening_;
              SourcePlanned(name, version, source, std::move(plan), done);
            });
      });
}

void Weights::SourcePlanned(const std::string& name, const std::string& version,
                            std::shared_ptr<WeightSource> source, Result<weights::Plan> plan,
                            std::function<void(Result<ModelAdded>)> done) {
  if (!plan) return done(std::move(plan).error());
  weights::Image& image = plan->image;
  auto added = std::make_shared<Version>();
  added->name = name;
  added->version = version;
  added->tensors = static_cast<uint32_t>(image.tensors.size());
  added->tensor_bytes = image.tensor_bytes;
  added->image_bytes = image.bytes;
  added->listing = plan->listing;
  added->files = source->files();
  const uint32_t blocks = image.blocks();
  added->blocks.resize(blocks);
  added->image = std::make_shared<const weights::Image>(std::move(image));
  added->source = std::move(source);

  if (const auto present = Find(name, version)) {
    if ((*present)->listing != added->listing || !SameFiles((*present)->files, added->files)) {
      return done(Status(Code::kAlreadyExists,
                         (*present)->Label() + " is registered with other files; remove it first "
                                               "or choose another version"));
    }
    // What the version was registered with may have kept it from the journal; these files need not.
    const bool reopenable = std::all_of(added->files.begin(), added->files.end(),
                                        [](const SourceFile& file) { return file.reopenable; });
    if (!(*present)->durable && reopenable) (*present)->files = std::move(added->files);
    return MakeDurable(*present, blocks, std::move(done));
  }
  added->ordinal = ++last_ordinal_;
  versions_.push_back(added);
  MakeDurable(std::move(added), blocks, std::move(done));
}

void Weights::MakeDurable(const VersionPtr& version, uint32_t blocks,
                          std::function<void(Result<ModelAdded>)> done) {
  if (version->durable) return done(AddedOf(*version, blocks));
  for (const SourceFile& file : version->files) {
    if (file.reopenable) continue;
    version->why_not = file.why_not;
    return done(AddedOf(*version, blocks));
  }
  version->recorded = true;
  Save(version, [version, blocks, done = std::move(done)](const Status& saved) {
    if (!version->durable) version->why_not = saved.ok() ? "" : "the journal: " + saved.message();
    version->durable = version->durable || saved.ok();
    done(AddedOf(*version, blocks));
  });
}

void Weights::Save(const VersionPtr& version, std::function<void(Status)> done) {
  weights::Record record;
  record.name = version->name;
  record.version = version->version;
  record.ordinal = version->ordinal;
  record.tensors = version->tensors;
  record.tensor_bytes = version->tensor_bytes;
  record.image_bytes = version->image_bytes;
  record.listing = version->listing;
  record.digest = version->digest;
  for (const SourceFile& file : version->files)
    record.files.push_back({.path = file.path, .bytes = file.bytes});
  parts_.journal->Put(weights::RecordKey(version->name, version->version),
                      weights::EncodeRecord(record),
                      [alive = std::weak_ptr(alive_), done = std::move(done)](Status saved) {
                        if (!alive.expired()) done(std::move(saved));
                      });
}

void Weights::RemoveModel(const std::string& name, const std::string& version,
                          std::function<void(Status)> done) {
  if (auto found = Find(name, version); !found) return done(std::move(found).error());
  std::vector<VersionPtr> removed;
  for (const VersionPtr& candidate : versions_) {
    if (candidate->name == name && (version.empty() || candidate->version == version)) {
      removed.push_back(candidate);
    }
  }
  std::erase_if(versions_, [&](const VersionPtr& candidate) {
    return std::find(removed.begin(), removed.end(), candidate) != removed.end();
  });
  // What was never durable may have a record all the same: its writing may be under way.
  struct Deleting {
    size_t left;
    Status first_error;
    std::function<void(Status)> done;
  };
  auto deleting = std::make_shared<Deleting>(Deleting{removed.size(), Status(), std::move(done)});
  const auto deleted = [alive = std::weak_ptr(alive_), deleting](Status status) {
    if (alive.expired()) return;
    if (deleting->first_error.ok()) deleting->first_error = std::move(status);
    if (--deleting->left == 0) deleting->done(std::move(deleting->first_error));
  };
  const auto delete_record = [this, deleted](std::string key) {
    parts_.journal->Delete(std::move(key), [deleted](Status status) {
      deleted(std::move(status).WithContext("the journal"));
    });
  };
  for (const VersionPtr& gone : removed) {
    delete_record(weights::RecordKey(gone->name, gone->version));
    if (gone->checks == nullptr) continue;
    ++deleting->left;
    delete_record(weights::ChecksKey(gone->name, gone->version));
    if (!gone->checks->imported || parts_.images == nullptr) continue;
    ++deleting->left;
    parts_.images->Remove(gone->ImageLabel(), [deleted](Status status) {
      deleted(std::move(status).WithContext("its image"));
    });
  }
  for (const VersionPtr& gone : removed) {
    gone->removed = true;
    LetGo(gone);
    const std::vector<LoadPtr> loads = loads_;  // The end of a load takes it out.
    for (const LoadPtr& load : loads) {
      if (load->version() == gone) load->Cancel(Removed(*gone));
    }
  }
}

// ---- Loading ------------------------------------------------------------------------------------

void Weights::Load(ClientId client, const std::string& name, const std::string& version,
                   Progress progress, std::function<void(Result<ModelLoaded>)> done) {
  auto found = Find(name, version);
  if (!found) return done(std::move(found).error());
  const VersionPtr target = *found;
  auto finish = [target, done](const Status& status) {
    if (!status.ok()) return done(status);
    done(ModelLoaded{
        .version = target->version, .bytes = target->tensor_bytes, .digest = target->digest});
  };
  if (target->Complete()) {
    target->let_go = false;
    return finish(Status());
  }
  Waiter waiter;
  waiter.client = client;
  if (progress) {
    // Copies of a function would each have what it remembers; there shall be one.
    waiter.progress = [shared = std::make_shared<Progress>(std::move(progress))](
                          uint64_t done_bytes, uint64_t total_bytes) {
      (*shared)(done_bytes, total_bytes);
    };
  }
  waiter.done = std::move(finish);
  if (Status status = Await(target, std::move(waiter)); !status.ok()) done(std::move(status));
}

Status Weights::CheckShare(size_t theirs, size_t all) {
  if (all >= kMaxWaiters) {
    return {Code::kExhausted, std::to_string(kMaxWaiters) + " wait already; retry"};
  }
  if (theirs + 1 > kMaxWaiters - all - 1) {
    return {Code::kExhausted, std::to_string(theirs) + " of this tenant wait already, and the " +
                                  std::to_string(kMaxWaiters - all) +
                                  " places left are for others too; retry"};
  }
  return {};
}

Status Weights::Await(const VersionPtr& version, Waiter waiter) {
  waiter.tenant = parts_.tenant_of(waiter.client);
  LoadPtr load;
  int64_t theirs = 0;
  for (const LoadPtr& running : loads_) {
    if (running->version() == version) load = running;
    theirs += std::count_if(running->waiters().begin(), running->waiters().end(),
                            [&](const Waiter& other) { return other.client == waiter.client; });
  }
  if (static_cast<size_t>(theirs) >= kMaxClientWaiters) {
    return {Code::kExhausted,
            "this client waits for loads " + std::to_string(kMaxClientWaiters) + " times already"};
  }
  if (load != nullptr) {
    const auto of_tenant =
        std::count_if(load->waiters().begin(), load->waiters().end(),
                      [&](const Waiter& other) { return other.tenant == waiter.tenant; });
    RETURN_IF_ERROR(CheckShare(static_cast<size_t>(of_tenant), load->waiters().size())
                        .WithContext("the load of " + version->Label()));
    load->waiters().push_back(waiter);
    load->ReportProgress(waiter);
    if (waiter.early) load->drafted() ? LoadDrafted(*load) : load->Draft();
    return {};
  }
  weights::Load::Events events;
  events.ended = [this](const LoadPtr& ended, Status status) {
    LoadEnded(ended, std::move(status));
  };
  events.let_go = [this, alive = std::weak_ptr(alive_)](ArenaId arena) {
    if (!alive.expired()) DeviceLetGo(arena);
  };
  events.drafted = [this](weights::Load& drafted) { LoadDrafted(drafted); };
  events.came = [this](const weights::Load& came) { BlocksCame(came); };
  load = std::make_shared<weights::Load>(options_, parts_, version, std::move(events));
  for (uint32_t block = 0; block < version->blocks.size(); ++block) {
    if (version->blocks[block].arena == 0) continue;
    Hold(*version, block);
    load->held.push_back(block);
  }
  version->loading = true;
  loads_.push_back(load);
  load->waiters().push_back(std::move(waiter));
  load->Start();
  return {};
}

void Weights::LoadEnded(const LoadPtr& load, Status status) {
  const VersionPtr version = load->version();
  std::erase(loads_, load);
  read_bytes_ += load->read_bytes();
  read_times_ += load->read_times();
  version->loading = false;
  version->failure = status.ok() ? "" : status.ToString();
  version->loaded = load->loaded();
  // That some blocks are right does not say that the one is that was not.
  if (!load->image_problem().empty() || (status.ok() && load->from_image())) {
    version->image_problem = load->image_problem();
  }
  if (status.ok()) {
    Publish(version, *load);
  } else {
    status = std::move(status).WithContext(version->Label());
  }
  const std::vector<BlockWaiter> arrived = EndArrivals(load, status);
  if (!status.ok()) {
    for (const weights::Load::Fresh& fresh : load->fresh()) {
      const uint64_t bytes = version->image->BlockMemory(fresh.block);
      if (IsGiven(fresh.arena)) continue;
      if (load->with_device().contains(fresh.arena)) {
        overdue_.emplace(fresh.arena, bytes);
      } else {
        orphans_.push_back({fresh.arena, bytes});
      }
    }
    if (load->manifest() != 0) {
      orphans_.push_back(
          {load->manifest(), weights::RoundUpToBlockGranularity(load->manifest_bytes())});
    }
    load->HandOver();
  }
  // The load holds everything until the last waiter was told: those who attach must find it all.
  const std::vector<Waiter> waiters = std::move(load->waiters());
  for (const Waiter& waiter : waiters)
    waiter.done(version->removed && status.ok() ? Removed(*version) : status);
  TellArrived(arrived, *version, status);
  for (const uint32_t block : load->held)
    Unhold(version, block);
  ReleaseLeaving();
  ReleaseManifestIfIdle(*version);
}

void Weights::Publish(const VersionPtr& version, weights::Load& load) {
  for (const weights::Load::Fresh& fresh : load.fresh()) {
    version->blocks[fresh.block].arena = fresh.arena;
    ++version->resident_blocks;
    places_[fresh.arena] = {.version = version.get(), .block = fresh.block};
    parts_.memory->BlockReady(fresh.arena);
    Hold(*version, fresh.block);
    load.held.push_back(fresh.block);
  }
  PublishManifest(version, load);
  load.HandOver();
  version->tensor_digests = std::move(load.digests());
  version->let_go = false;
  const auto saved_as = [version](const char* what) {
    return [version, what](const Status& saved) {
      version->why_not =
          saved.ok() ? "" : std::string("the journal lacks ") + what + saved.message();
      version->durable = version->durable || saved.ok();
    };
  };
  if (version->digest != load.content()) {
    version->digest = load.content();
    if (version->recorded) Save(version, saved_as("its digest: "));
  }
  // After the digest that they are of: without that on record they count for nothing.
  if (auto checks = load.NewChecks()) {
    std::function<void(Status)> saved = saved_as("its checks: ");
    if (!version->recorded) saved = [](const Status&) {};
    SetChecks(version, *std::move(checks), std::move(saved));
  }
}

void Weights::PublishManifest(const VersionPtr& version, weights::Load& load) {
  if (load.manifest() == 0) return;
  version->manifest = load.manifest();
  version->manifest_bytes = load.manifest_bytes();
  places_[version->manifest] = {.version = version.get(), .block = kManifest};
  load.HandOverManifest();
}

Result<Unloaded> Weights::Unload(const std::string& name, const std::string& version) {
  ASSIGN_OR_RETURN(const VersionPtr target, Find(name, version));
  if (target->loading) {
    return Status(Code::kUnavailable, target->Label() + " is being loaded; retry when it is done");
  }
  return LetGo(target);
}

Unloaded Weights::LetGo(const VersionPtr& version) {
  version->let_go = true;
  Unloaded unloaded;
  for (uint32_t block = 0; block < version->blocks.size(); ++block) {
    if (version->blocks[block].arena == 0) continue;
    const uint64_t bytes = version->image->BlockMemory(block);
    (version->blocks[block].holds == 0 ? unloaded.freed_bytes : unloaded.held_bytes) += bytes;
  }
  Leave(version);
  ReleaseLeaving();
  ReleaseManifestIfIdle(*version);
  return unloaded;
}

void Weights::Leave(const VersionPtr& version) {
  if (std::find(leaving_.begin(), leaving_.end(), version) == leaving_.end()) {
    leaving_.push_back(version);
  }
}

bool Weights::ReleaseLeaving() {
  uint64_t released = 0;
  while (!orphans_.empty() && released < kReleaseStepBytes) {
    parts_.memory->ReleaseBlock(orphans_.back().arena);
    released += orphans_.back().bytes;
    orphans_.pop_back();
  }
  while (!leaving_.empty() && released < kReleaseStepBytes) {
    const VersionPtr version = leaving_.front();
    for (uint32_t block = 0; block < version->blocks.size() && version->let_go; ++block) {
      if (version->blocks[block].arena == 0 || version->blocks[block].holds > 0) continue;
      if (released >= kReleaseStepBytes) return true;
      released += ReleaseBlock(*version, block);
    }
    leaving_.erase(leaving_.begin());
    ReleaseManifestIfIdle(*version);
  }
  return !leaving_.empty() || !orphans_.empty();
}

// ---- Time and departures ------------------------------------------------------------------------

void Weights::ClientGone(ClientId client) {
  if (const auto holder = holders_.extract(client); !holder.empty()) {
    for (const auto& [id, attachment] : holder.mapped().attachments)
      EndAttachment(attachment);
  }
  const std::vector<BlockWaiter> for_blocks =
      TakeBlockWaiters([client](const BlockWaiter& waiter) { return waiter.client == client; });
  ReleaseLeaving();  // Once, however many there were: it is what one call may free.
  std::vector<Waiter> gone;
  for (const LoadPtr& load : loads_) {
    std::vector<Waiter>& waiters = load->waiters();
    const auto theirs = std::stable_partition(
        waiters.begin(), waiters.end(), [client](const Waiter& w) { return w.client != client; });
    std::move(theirs, waiters.end(), std::back_inserter(gone));
    waiters.erase(theirs, waiters.end());
  }
  for (const Waiter& waiter : gone)
    waiter.done({Code::kUnavailable, "the client has gone"});
  for (const BlockWaiter& waiter : for_blocks)
    waiter.done(Status(Code::kUnavailable, "the client has gone"));
}

bool Weights::Turn() {
  const MonotonicNs now = parts_.clock->Now();
  std::vector<std::pair<Waiter, VersionPtr>> late;
  for (const LoadPtr& load : loads_) {
    std::vector<Waiter>& waiters = load->waiters();
    const auto passed = std::stable_partition(waiters.begin(), waiters.end(),
                                              [now](const Waiter& w) { return w.deadline > now; });
    for (auto it = passed; it != waiters.end(); ++it)
      late.emplace_back(std::move(*it), load->version());
    waiters.erase(passed, waiters.end());
  }
  for (const auto& [waiter, version] : late) {
    waiter.done(
        {Code::kDeadlineExceeded, version->Label() + " is still being loaded; the load goes on"});
  }
  for (const BlockWaiter& waiter :
       TakeBlockWaiters([now](const BlockWaiter& waiter) { return waiter.deadline <= now; })) {
    waiter.done(Status(Code::kDeadlineExceeded, "its blocks have not come; the load goes on"));
  }
  uint64_t budget = kPopulateStepBytes;
  bool more = ReleaseLeaving();
  const std::vector<LoadPtr> loads = loads_;  // The end of a load takes it out.
  for (const LoadPtr& load : loads)
    more = load->Populate(budget) || more;
  return more;
}

// ---- Blocks -------------------------------------------------------------------------------------

void Weights::Hold(Version& version, uint32_t block) {
  TERRACE_CHECK(version.blocks[block].arena != 0);
  ++version.blocks[block].holds;
}

void Weights::Unhold(const VersionPtr& version, uint32_t block) {
  TERRACE_CHECK(version->blocks[block].holds > 0);
  if (--version->blocks[block].holds == 0 && version->let_go) Leave(version);
}

uint64_t Weights::ReleaseBlock(Version& version, uint32_t block) {
  const ArenaId arena = std::exchange(version.blocks[block].arena, 0);
  TERRACE_CHECK(arena != 0 && version.blocks[block].holds == 0);
  --version.resident_blocks;
  places_.erase(arena);
  parts_.memory->ReleaseBlock(arena);
  return version.image->BlockMemory(block);
}

void Weights::ReleaseManifestIfIdle(Version& version) {
  if (version.manifest == 0 || version.resident_blocks > 0 || version.attachments > 0 ||
      version.loading) {
    return;
  }
  places_.erase(version.manifest);
  parts_.memory->ReleaseBlock(std::exchange(version.manifest, 0));
  version.manifest_bytes = 0;
}

bool Weights::Held(ArenaId arena) const {
  const auto place = places_.find(arena);
  TERRACE_CHECK(place != places_.end());
  const auto& [version, block] = place->second;
  return block == kManifest || version->blocks[block].holds > 0;
}

void Weights::Evict(ArenaId arena) {
  TERRACE_CHECK(!Held(arena));
  const Place place = places_.at(arena);
  ++evicted_blocks_;
  ReleaseBlock(*place.version, place.block);
  ReleaseManifestIfIdle(*place.version);
}

}  // namespace terrace
