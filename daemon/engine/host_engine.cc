// Tenants, clients and spaces; the verbs of weights; the turn. Pages are in pages.cc, reports in
// reports.cc.
#include "daemon/engine/host_engine.h"

#include <map>

#include "base/check.h"

namespace terrace {
namespace {

constexpr uint64_t kRingRecordsATurn = 16384;
constexpr size_t kExpiredATurn = 256;
constexpr uint64_t kMaxBlockBytes = 512u << 20;

Status CheckLimits(const ClientLimits& limits) {
  const auto refuse = [](const std::string& what) { return Status(Code::kInvalidArgument, what); };
  if (limits.max_pins == 0 || limits.max_pins > shm::kMaxPinLines * shm::kPinsPerLine) {
    return refuse("max_pins is not between 1 and " +
                  std::to_string(shm::kMaxPinLines * shm::kPinsPerLine));
  }
  if (limits.max_grants == 0) return refuse("max_grants is 0");
  if (limits.grant_deadline_ms == 0 || limits.grant_deadline_ms > limits.grant_deadline_max_ms) {
    return refuse("grant_deadline_ms is not between 1 and grant_deadline_max_ms");
  }
  return {};
}

Status CheckOptions(const EngineOptions& options) {
  const auto refuse = [](const std::string& what) { return Status(Code::kInvalidArgument, what); };
  if (options.host_capacity_bytes < 4096) return refuse("host_capacity_bytes is below 4096");
  if (options.slab_bytes < 4096) return refuse("slab_bytes is below 4096");
  if (options.block_bytes < 4096 || options.block_bytes > kMaxBlockBytes ||
      options.block_bytes % 4096 != 0) {
    return refuse("block_bytes is not a multiple of 4096 up to 512 MiB");
  }
  if (options.huge_page_bytes < 4096 || options.huge_page_bytes % 4096 != 0) {
    return refuse("huge_page_bytes is not a multiple of 4096");
  }
  const StoreOptions& store = options.store;
  if (store.low_percent > store.high_percent || store.high_percent > 100) {
    return refuse("store.low_percent is above store.high_percent, or that above 100");
  }
  if (store.prefetch_deadline_ms == 0 ||
      store.prefetch_deadline_ms > store.prefetch_deadline_max_ms) {
    return refuse("store.prefetch_deadline_ms is not between 1 and its maximum");
  }
  return CheckLimits(options);
}

}  // namespace

Result<std::unique_ptr<Engine>> MakeEngine(const EngineOptions& options, EngineParts parts,
                                           EngineEvents& events) {
  RETURN_IF_ERROR(CheckOptions(options));
  auto engine = std::make_unique<HostEngine>(options, std::move(parts), events);
  RETURN_IF_ERROR(engine->Restore());
  return std::unique_ptr<Engine>(std::move(engine));
}

HostEngine::HostEngine(const EngineOptions& options, EngineParts parts, EngineEvents& events)
    : options_(options),
      clock_(*parts.clock),
      host_(*parts.host),
      events_(events),
      policy_(std::move(parts.host_policy)),
      catalog_(
          parts.make_index ? parts.make_index
                           : [memory = parts.directory_memory] { return MakeTenantIndex(*memory); },
          options.max_spaces),
      memory_({.capacity_bytes = options.host_capacity_bytes,
               .slab_bytes = options.slab_bytes,
               .huge_page_bytes = options.huge_page_bytes,
               .pretouch_bytes = options.pretouch_bytes},
              host_, slabs_),
      residents_(catalog_, slabs_, *policy_, clock_),
      pins_(catalog_, slabs_, clients_, clock_),
      evictor_(slabs_, residents_, pins_, weight_blocks_, clock_),
      placement_(catalog_, memory_, residents_, pins_, evictor_, clock_),
      blocks_(memory_, residents_, placement_),
      weights_({.block_bytes = options.block_bytes},
               {.clock = parts.clock,
                .host = parts.host,
                .sources = parts.sources,
                .images = parts.images,
                .journal = parts.journal,
                .memory = &blocks_,
                .tenant_of = [this](ClientId id) { return TenantOf(id); }}),
      access_(*parts.journal) {
  weight_blocks_.SetWeights(&weights_);
  if (parts.page_store != nullptr) MakeStore(parts);
  MakeDevices(parts);
  memory_.RaiseReserve();
}

HostEngine::~HostEngine() = default;

void HostEngine::MakeStore(EngineParts& parts) {
  store_ = std::make_unique<StoreTier>(options_.store, StoreTier::Parts{.store = *parts.page_store,
                                                                        .journal = *parts.journal,
                                                                        .catalog = catalog_,
                                                                        .clients = clients_,
                                                                        .memory = memory_,
                                                                        .host = host_,
                                                                        .residents = residents_,
                                                                        .pins = pins_,
                                                                        .placement = placement_,
                                                                        .evictor = evictor_,
                                                                        .clock = clock_});
  evictor_.SetStore(&store_->copies());
  pins_.AddWatcher(*store_);
  placement_.AddWatcher(*store_);
}

// ---- Tenants and clients

Result<TenantId> HostEngine::AddTenant(const std::string& name) {
  return catalog_.AddTenant(name);
}

Status HostEngine::SetClientLimits(const ClientLimits& limits) {
  RETURN_IF_ERROR(CheckLimits(limits));
  static_cast<ClientLimits&>(options_) = limits;
  catalog_.SetMaxSpaces(limits.max_spaces);
  return {};
}

Result<ClientGiven> HostEngine::ClientArrived(const ClientSpec& spec, std::span<uint8_t> channel) {
  Tenant* tenant = catalog_.Find(spec.tenant);
  if (tenant == nullptr) {
    return Status(Code::kNotFound, "tenant " + std::to_string(spec.tenant) + " is not known");
  }
  if (channel.size() < shm::kChannelBytes) {
    return Status(Code::kInvalidArgument,
                  "a channel has " + std::to_string(shm::kChannelBytes) + " bytes");
  }
  ASSIGN_OR_RETURN(const Client* client, clients_.Add(spec, options_, memory_.capacity()));
  tenant->index->AddChannel(client->given.id, channel, client->given.max_pins / shm::kPinsPerLine);
  return client->given;
}

void HostEngine::ClientGone(ClientId id) {
  Client* client = clients_.Find(id);
  if (client == nullptr) return;
  Tenant& tenant = catalog_.At(client->spec.tenant);
  tenant.index->RemoveChannel(id);
  for (const uint64_t grant : grants_.IdsOf(id))
    slabs_.Free(EndGrant(*client, grant));
  catalog_.ClientGone(tenant, id);
  clients_.Remove(id);
  DeviceClientGone(id);
  weights_.ClientGone(id);
  for (const std::unique_ptr<OfDevice>& device : devices_) {
    device->weights->ClientGone(id);
    device->arenas.ClientGone(id);
    lost_and_mapped_.erase({id, device->arenas.device()});
  }
  if (store_ != nullptr) store_->ClientGone(id);
}

// ---- Spaces

Result<SpaceGiven> HostEngine::OpenSpace(ClientId id, const SpaceSpec& spec) {
  ASSIGN_OR_RETURN(const Client* client, clients_.Serving(id));
  Tenant& tenant = catalog_.At(client->spec.tenant);
  ASSIGN_OR_RETURN(const Space* space,
                   catalog_.Open(tenant, id, spec,
                                 [this](const std::string& name) { return weights_.Knows(name); }));
  if (store_ != nullptr) store_->SpaceOpened(*space);
  return GivenOf(tenant, *space);
}

Result<SpaceGiven> HostEngine::OpenSpaceById(ClientId id, const Digest& space_id) {
  ASSIGN_OR_RETURN(const Client* client, clients_.Serving(id));
  Tenant& tenant = catalog_.At(client->spec.tenant);
  const Result<Space*> space = catalog_.OpenById(tenant, id, space_id);
  if (space) return GivenOf(tenant, **space);
  const bool absent = space.error().code() == Code::kNotFound && store_ != nullptr;
  const SpaceSpec* stored = absent ? store_->SpecOf(tenant.name, space_id) : nullptr;
  if (stored == nullptr) return space.error();
  return OpenSpace(id, SpaceSpec(*stored));
}

Status HostEngine::CloseSpace(ClientId id, uint32_t slot, uint32_t epoch) {
  ASSIGN_OR_RETURN(const Client* client, clients_.Serving(id));
  return catalog_.Close(catalog_.At(client->spec.tenant), id, slot, epoch);
}

SpaceGiven HostEngine::GivenOf(const Tenant& tenant, const Space& space) const {
  return {.id = space.id,
          .slot = space.slot,
          .epoch = space.epoch,
          .generation_index = space.generation_index,
          .generation = tenant.index->generation(space.generation_index),
          .page_bytes = space.page_bytes,
          .layout = space.spec.layout};
}

Result<Space*> HostEngine::OpenedSpace(const Client& client, uint32_t slot, uint32_t epoch) {
  Space* space = catalog_.At(client.spec.tenant).FindSpace(slot, epoch);
  if (space == nullptr) {
    return Status(Code::kStale, "space slot " + std::to_string(slot) + " has another epoch by now");
  }
  if (!space->openers.contains(client.given.id)) {
    return Status(Code::kPermissionDenied, "the client does not have this space open");
  }
  return space;
}

// ---- Weights

TenantId HostEngine::TenantOf(ClientId id) {
  const Client* client = clients_.Find(id);
  return client == nullptr ? 0 : client->spec.tenant;
}

Status HostEngine::Restore() {
  RETURN_IF_ERROR(weights_.Restore(&restore_problems_));
  std::vector<std::string> names;
  for (const ModelReport& model : weights_.Models())
    names.push_back(model.name);
  RETURN_IF_ERROR(access_.Restore(names, &restore_problems_));
  if (store_ == nullptr) return {};
  // Without it the daemon serves from memory: what is stored is not needed for that.
  const Status restored = store_->Restore(&restore_problems_);
  if (!restored.ok()) {
    restore_problems_.push_back("the store is not used: " + restored.message());
    evictor_.SetStore(nullptr);
    pins_.RemoveWatcher(*store_);
    placement_.RemoveWatcher(*store_);
    store_.reset();
  }
  return {};
}

void HostEngine::AddModel(ModelSpec spec, std::function<void(Result<ModelAdded>)> done) {
  const Tenant* tenant = catalog_.Find(spec.tenant);
  auto added = [this, name = spec.name, version = spec.version, import = spec.import_image,
                progress = spec.progress, who = tenant == nullptr ? "" : tenant->name,
                done = std::move(done)](Result<ModelAdded> result) {
    // It may have been removed while its record was written.
    if (!result || !weights_.Knows(name)) return done(std::move(result));
    // Before an import, which takes long: the model can be attached meanwhile, and is known with
    // who may do that should the daemon end.
    access_.Registered(name, who, [=, this, result = *result](const Status& saved) {
      ModelAdded told = result;
      if (!saved.ok() && told.why_not.empty())
        told.why_not = "who may attach it: " + saved.message();
      told.durable = told.durable && saved.ok();
      if (import) return weights_.Import(name, version, std::move(told), progress, done);
      done(std::move(told));
    });
  };
  weights_.AddModel(std::move(spec), std::move(added));
}

void HostEngine::RemoveModel(const std::string& name, const std::string& version,
                             std::function<void(Status)> done) {
  weights_.RemoveModel(name, version, std::move(done));
  for (const std::unique_ptr<OfDevice>& device : devices_)
    device->weights->ModelsRemoved();
  if (!weights_.Knows(name)) access_.Removed(name);
}

void HostEngine::SetModelAccess(const std::string& name, const std::string& tenant, bool granted,
                                std::function<void(Status)> done) {
  // A name that nobody has is a slip of the pen; to revoke it is harmless.
  if (granted && catalog_.Find(tenant) == nullptr) {
    return done(Status(Code::kNotFound, "tenant '" + tenant + "' is not in the configuration"));
  }
  access_.Set(name, tenant, granted, std::move(done));
}

Status HostEngine::CheckModelAccess(TenantId id, const std::string& name) const {
  const std::string& tenant = catalog_.At(id).name;
  if (!weights_.Knows(name) || access_.Allows(name, tenant)) return {};
  return {Code::kPermissionDenied,
          "model '" + name + "' is not granted to tenant '" + tenant + "'"};
}

void HostEngine::Load(ClientId id, const std::string& name, const std::string& version,
                      Progress progress, std::function<void(Result<ModelLoaded>)> done) {
  if (const auto client = clients_.Serving(id); !client) return done(client.error());
  weights_.Load(id, name, version, std::move(progress), std::move(done));
}

Result<Unloaded> HostEngine::Unload(const std::string& name, const std::string& version) {
  return weights_.Unload(name, version);
}

std::function<void(Result<Attached>)> HostEngine::IfStillAllowed(
    ClientId id, TenantId tenant, const std::string& name,
    std::function<void(Result<Attached>)> done) {
  return [this, id, tenant, name, done = std::move(done)](Result<Attached> attached) {
    const Status allowed = CheckModelAccess(tenant, name);
    if (!attached || allowed.ok()) return done(std::move(attached));
    (void)Detach(id, attached->attachment);
    done(allowed);
  };
}

void HostEngine::Attach(ClientId id, const std::string& name, const std::string& version, bool load,
                        uint32_t deadline_ms, std::function<void(Result<Attached>)> done) {
  const Result<Client*> client = clients_.Serving(id);
  if (!client) return done(client.error());
  const TenantId tenant = (*client)->spec.tenant;
  if (Status allowed = CheckModelAccess(tenant, name); !allowed.ok()) return done(allowed);
  weights_.Attach(id, name, version, load, deadline_ms,
                  IfStillAllowed(id, tenant, name, std::move(done)));
}

void HostEngine::AttachEarly(ClientId id, const std::string& name, const std::string& version,
                             uint32_t deadline_ms, std::function<void(Result<Attached>)> done) {
  const Result<Client*> client = clients_.Serving(id);
  if (!client) return done(client.error());
  const TenantId tenant = (*client)->spec.tenant;
  if (Status allowed = CheckModelAccess(tenant, name); !allowed.ok()) return done(allowed);
  weights_.AttachEarly(id, name, version, deadline_ms,
                       IfStillAllowed(id, tenant, name, std::move(done)));
}

void HostEngine::AwaitBlocks(ClientId id, uint64_t attachment, std::span<const uint32_t> blocks,
                             uint32_t deadline_ms, std::function<void(Result<Arrival>)> done) {
  if (const Result<Client*> client = clients_.Serving(id); !client) return done(client.error());
  if (const OfDevice* device = AttachedOn(id, attachment)) {
    return done(device->weights->ArrivalOf(id, attachment));
  }
  weights_.AwaitBlocks(id, attachment, blocks, deadline_ms, std::move(done));
}

Result<std::vector<ArenaId>> HostEngine::BlocksOf(ClientId id, uint64_t attachment,
                                                  std::span<const uint32_t> blocks) {
  ASSIGN_OR_RETURN(const Client* client, clients_.Serving(id));
  // Also of a model that was removed meanwhile, whose list went with it: who was revoked before
  // must not gain by that.
  const OfDevice* device = AttachedOn(id, attachment);
  const std::string* model = device != nullptr ? device->weights->ModelOf(id, attachment)
                                               : weights_.ModelOf(id, attachment);
  const std::string& tenant = catalog_.At(client->spec.tenant).name;
  if (model != nullptr && !access_.Allows(*model, tenant)) {
    return Status(
        Code::kPermissionDenied,
        "model '" + *model + "' was removed, or is not granted to tenant '" + tenant + "'");
  }
  if (device != nullptr) return device->weights->BlocksOf(id, attachment, blocks);
  return weights_.BlocksOf(id, attachment, blocks);
}

Status HostEngine::Detach(ClientId id, uint64_t attachment) {
  if (OfDevice* device = AttachedOn(id, attachment)) return device->weights->Detach(id, attachment);
  return weights_.Detach(id, attachment);
}

// ---- Time

bool HostEngine::Turn() {
  bool more = placement_.DrainRings(kRingRecordsATurn) == kRingRecordsATurn;
  pins_.TurnLimbo();
  std::vector<Placement::Gone> gone;
  more |= placement_.Turn(&gone);
  more |= weights_.Turn();
  more |= TurnDevices(gone);
  if (store_ != nullptr) more |= store_->Turn();
  std::map<TenantId, std::vector<ArenaId>> gone_of;
  for (const Placement::Gone& arena : gone)
    gone_of[arena.tenant].push_back(arena.arena);
  // Events last: whoever gets them may call verbs.
  more |= ExpireDue();
  for (const auto& [tenant, arenas] : gone_of)
    events_.ArenasGone(tenant, arenas);
  TellUnmapWanted();
  for (const auto& [client, why] : pins_.TakeCut()) {
    AbandonGrants(client);
    if (store_ != nullptr) store_->ClientGone(client);
    DeviceClientGone(client);
    events_.ClientCut(client, why);
  }
  return more;
}

bool HostEngine::ExpireDue() {
  const std::vector<GrantTable::Key> due = grants_.Due(clock_.Now(), kExpiredATurn);
  std::map<ClientId, std::vector<uint64_t>> expired;
  for (const auto& [id, grant] : due) {
    Client* client = clients_.Find(id);
    TERRACE_CHECK(client != nullptr);
    ExpireGrant(*client, grant);
    expired[id].push_back(grant);
  }
  for (const auto& [client, ids] : expired)
    events_.GrantsExpired(client, ids);
  return due.size() == kExpiredATurn;
}

void HostEngine::SetHostCapacity(uint64_t bytes) {
  memory_.SetCapacity(bytes);
}

}  // namespace terrace
