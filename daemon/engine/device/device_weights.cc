#include "daemon/engine/device/device_weights.h"

#include <algorithm>
#include <string>

#include "base/check.h"

namespace terrace {
namespace {

// The clients of Weights that devices are: no client of the engine has such a number.
constexpr ClientId kFirstHolder = ClientId{1} << 63;
constexpr unsigned kDeviceShift = 48;

std::string LabelOf(const std::string& name, const std::string& version, uint32_t device) {
  return "model '" + name + "' version '" + version + "' on device " + std::to_string(device);
}

Status NotTheirs(uint64_t attachment) {
  return {Code::kNotFound,
          "attachment " + std::to_string(attachment) + " is not one of this client"};
}

Status Gone(uint64_t attachment) {
  return {Code::kStale, "attachment " + std::to_string(attachment) +
                            ": its weights left the device; detach, and attach again"};
}

}  // namespace

Status DeviceWeights::CheckServing() const {
  const DeviceTierReport report = parts_.arenas->tier().Report();
  const bool known = report.granularity != 0;
  if (known && report.state != DeviceTierState::kResting) return {};
  return {Code::kUnavailable,
          "device " + std::to_string(parts_.arenas->device()) +
              " does not serve: " + (report.why.empty() ? "it is being started" : report.why)};
}

DeviceWeights::OnDevicePtr DeviceWeights::Resident(uint64_t ordinal) const {
  for (const OnDevicePtr& version : versions_) {
    if (version->of.ordinal == ordinal && !version->leaving) return version;
  }
  return nullptr;
}

DeviceWeights::LoadPtr DeviceWeights::Loading(uint64_t ordinal) const {
  for (const LoadPtr& load : loads_) {
    if (load->of().ordinal == ordinal) return load;
  }
  return nullptr;
}

DeviceWeights::OnDevicePtr DeviceWeights::Attachment(ClientId client, uint64_t attachment) const {
  const auto found = attachments_.find({client, attachment});
  return found != attachments_.end() ? found->second : nullptr;
}

// ---- Loading

void DeviceWeights::Load(ClientId client, const std::string& name, const std::string& version,
                         Progress progress, std::function<void(Result<ModelLoaded>)> done) {
  const Result<Weights::Registration> facts = parts_.weights->RegistrationOf(name, version);
  if (!facts) return done(facts.error());
  if (const OnDevicePtr resident = Resident(facts->ordinal)) {
    parts_.policy->Touch(resident->item, parts_.clock->Now());
    return done(resident->loaded);
  }
  DeviceWaiter waiter;
  waiter.client = client;
  if (progress) {
    // Copies of a function would each have what it remembers; there shall be one.
    waiter.progress = [shared = std::make_shared<Progress>(std::move(progress))](
                          uint64_t done_bytes, uint64_t total_bytes) {
      (*shared)(done_bytes, total_bytes);
    };
  }
  waiter.done = [this, ordinal = facts->ordinal, done](const Status& status) {
    if (!status.ok()) return done(status);
    done(Resident(ordinal)->loaded);
  };
  if (Status status = Await(name, *facts, std::move(waiter)); !status.ok()) done(status);
}

Status DeviceWeights::Await(const std::string& name, const Weights::Registration& facts,
                            DeviceWaiter waiter) {
  RETURN_IF_ERROR(CheckServing());
  waiter.tenant = parts_.tenant_of(waiter.client);
  const LoadPtr load = Loading(facts.ordinal);
  size_t of_client = 0;
  size_t of_tenant = 0;
  for (const LoadPtr& running : loads_) {
    for (const DeviceWaiter& other : running->waiters()) {
      of_client += other.client == waiter.client ? 1 : 0;
      of_tenant += running == load && other.tenant == waiter.tenant ? 1 : 0;
    }
  }
  if (of_client >= Weights::kMaxClientWaiters) {
    return {Code::kExhausted, "this client waits for loads " +
                                  std::to_string(Weights::kMaxClientWaiters) + " times already"};
  }
  if (load != nullptr) {
    RETURN_IF_ERROR(
        Weights::CheckShare(of_tenant, load->waiters().size())
            .WithContext("the load of " + LabelOf(name, facts.version, parts_.arenas->device())));
    load->waiters().push_back(waiter);
    load->ReportProgress(waiter);
    return {};
  }
  std::vector<DeviceWaiter> waiters;
  waiters.push_back(std::move(waiter));
  Start({.name = name, .version = facts.version, .ordinal = facts.ordinal}, std::move(waiters));
  return {};
}

void DeviceWeights::Start(DeviceLoad::Of of, std::vector<DeviceWaiter> waiters) {
  of.holder = kFirstHolder + (ClientId{parts_.arenas->device()} << kDeviceShift) + ++last_holder_;
  const auto load = std::make_shared<DeviceLoad>(
      DeviceLoad::Parts{.weights = parts_.weights,
                        .host = parts_.host,
                        .arenas = parts_.arenas,
                        .clock = parts_.clock},
      std::move(of), [this](const LoadPtr& ended) { LoadEnded(ended); });
  load->waiters() = std::move(waiters);
  loads_.push_back(load);
  load->Start();
  GiveRoom();
}

void DeviceWeights::LoadEnded(const LoadPtr& load) {
  std::erase(loads_, load);
  std::vector<DeviceWaiter> waiters = std::move(load->waiters());
  if (!load->outcome().ok()) {
    // They came when it had failed already.
    if (waiters.empty()) return;
    const auto facts = parts_.weights->RegistrationOf(load->of().name, load->of().version);
    Status again = facts ? CheckServing() : facts.error();
    if (again.ok() && facts->ordinal != load->of().ordinal) again = load->outcome();
    if (again.ok()) return Start(load->of(), std::move(waiters));
    for (const DeviceWaiter& waiter : waiters)
      waiter.done(again);
    return;
  }
  const auto version = std::make_shared<OnDevice>();
  version->of = load->of();
  version->attached = load->attached();
  version->attached.digest = load->loaded().digest;
  version->loaded = load->loaded();
  version->loaded.device = parts_.arenas->device();
  version->arenas = load->Arenas();
  version->bytes = load->bytes();
  version->item = parts_.items->Take();
  parts_.policy->Insert(version->item, {.item_class = ItemClass::kWeights, .bytes = load->bytes()},
                        parts_.clock->Now());
  by_item_[version->item] = version;
  for (const ArenaId arena : version->arenas)
    places_[arena] = version;
  versions_.push_back(version);
  loaded_bytes_ += load->image()->bytes;
  for (const DeviceWaiter& waiter : waiters) {
    // What an earlier one does when told may take the version away.
    waiter.done(version->leaving
                    ? Status(Code::kUnavailable, "it was loaded, and left the device at once")
                    : Status());
  }
}

// ---- Room

void DeviceWeights::GiveRoom() {
  // In their order, none past another: a large load would wait behind small ones for ever.
  for (const LoadPtr& load : std::vector<LoadPtr>(loads_)) {
    if (load->WantsRoom() && !GiveRoomTo(*load)) return;
  }
}

bool DeviceWeights::GiveRoomTo(DeviceLoad& load) {
  DeviceArenas& arenas = *parts_.arenas;
  const uint64_t room = arenas.RoomFor(DeviceArenas::Use::kWeights);
  if (room >= load.bytes()) {
    load.TakeRoom();
    return true;
  }
  const MonotonicNs now = parts_.clock->Now();
  if (load.waits_since == 0) load.waits_since = now;
  // What is on its way out has deadlines of its own: who let them pass holds zombies.
  const MonotonicNs most =
      (arenas.options().unmap_deadline_ms + arenas.options().call_deadline_ms) * kNsPerMs;
  const uint64_t lacks = load.bytes() - room;
  const uint64_t coming = std::min(lacks, arenas.OnItsWay());
  const uint64_t idle = std::min(lacks - coming, IdleBytes());
  const uint64_t of_pages = lacks - coming - idle;
  const bool comes = of_pages == 0 || (page_room_ && page_room_(of_pages));
  if (comes && now - load.waits_since <= most) {
    if (idle > 0) EvictIdle(idle);
    return false;
  }
  load.Cancel({Code::kExhausted, "it needs " + std::to_string(load.bytes()) + " bytes, and finds " +
                                     std::to_string(room) +
                                     " beside what is attached, mapped or kept for pages"});
  return true;
}

uint64_t DeviceWeights::RoomToMake() const {
  const DeviceArenas& arenas = *parts_.arenas;
  const uint64_t floor = arenas.options().pages_floor_bytes;
  const uint64_t pages = arenas.bytes().pages;
  return arenas.RoomFor(DeviceArenas::Use::kWeights) + IdleBytes() + arenas.OnItsWay() +
         (pages > floor ? pages - floor : 0);
}

uint64_t DeviceWeights::IdleBytes() const {
  uint64_t bytes = 0;
  for (const OnDevicePtr& version : versions_) {
    if (!version->leaving && version->holders.empty()) bytes += version->bytes;
  }
  return bytes;
}

uint64_t DeviceWeights::EvictIdle(uint64_t bytes) {
  if (IdleBytes() == 0) return 0;
  std::vector<OnDevicePtr> victims;
  uint64_t found_bytes = 0;
  parts_.policy->Victims(UINT64_MAX, parts_.clock->Now(), [&](ItemId item) {
    if (found_bytes >= bytes) return Policy::Verdict::kStop;
    const auto found = by_item_.find(item);
    if (found == by_item_.end()) return Policy::Verdict::kSkip;
    if (!found->second->holders.empty()) return Policy::Verdict::kInUse;
    victims.push_back(found->second);
    found_bytes += found->second->bytes;
    return Policy::Verdict::kTake;
  });
  for (const OnDevicePtr& victim : victims) {
    evicted_blocks_ += victim->arenas.size();
    Leave(victim, false);
  }
  return found_bytes;
}

// ---- Attachments

void DeviceWeights::Attach(ClientId client, const std::string& name, const std::string& version,
                           bool load, uint32_t deadline_ms,
                           std::function<void(Result<Attached>)> done) {
  const Result<Weights::Registration> facts = parts_.weights->RegistrationOf(name, version);
  if (!facts) return done(facts.error());
  if (const OnDevicePtr resident = Resident(facts->ordinal)) {
    return done(AttachNow(client, *resident));
  }
  if (!load) {
    return done(Status(Code::kNotFound,
                       LabelOf(name, facts->version, parts_.arenas->device()) +
                           (Loading(facts->ordinal) ? " is being loaded" : " is not loaded")));
  }
  DeviceWaiter waiter;
  waiter.client = client;
  if (deadline_ms > 0) waiter.deadline = parts_.clock->Now() + deadline_ms * kNsPerMs;
  waiter.done = [this, client, ordinal = facts->ordinal, done](const Status& status) {
    if (!status.ok()) return done(status);
    done(AttachNow(client, *Resident(ordinal)));
  };
  if (Status status = Await(name, *facts, std::move(waiter)); !status.ok()) done(status);
}

Result<Attached> DeviceWeights::AttachNow(ClientId client, OnDevice& version) {
  const auto first = attachments_.lower_bound({client, 0});
  const auto last = attachments_.lower_bound({client + 1, 0});
  if (std::distance(first, last) >= static_cast<ptrdiff_t>(Weights::kMaxAttachments)) {
    return Status(Code::kExhausted, "more than " + std::to_string(Weights::kMaxAttachments) +
                                        " attachments of one client on a device; detach some");
  }
  Attached attached = version.attached;
  attached.attachment = parts_.weights->NewAttachment();
  attached.device = parts_.arenas->device();
  attached.arriving = false;
  version.holders[client].attachments.push_back(attached.attachment);
  attachments_[{client, attached.attachment}] = places_.at(version.arenas.front());
  parts_.policy->Touch(version.item, parts_.clock->Now());
  return attached;
}

const std::string* DeviceWeights::ModelOf(ClientId client, uint64_t attachment) const {
  const OnDevicePtr version = Attachment(client, attachment);
  return version != nullptr ? &version->of.name : nullptr;
}

Result<std::vector<ArenaId>> DeviceWeights::BlocksOf(ClientId client, uint64_t attachment,
                                                     std::span<const uint32_t> blocks) const {
  const OnDevicePtr version = Attachment(client, attachment);
  if (version == nullptr) return NotTheirs(attachment);
  if (version->leaving) return Gone(attachment);
  if (blocks.empty()) return version->arenas;
  std::vector<ArenaId> arenas;
  for (const uint32_t block : blocks) {
    if (block >= version->arenas.size()) {
      return Status(Code::kInvalidArgument, "blocks: " + std::to_string(block) + " is beyond the " +
                                                std::to_string(version->arenas.size()) +
                                                " blocks of the model");
    }
    arenas.push_back(version->arenas[block]);
  }
  return arenas;
}

Result<Arrival> DeviceWeights::ArrivalOf(ClientId client, uint64_t attachment) const {
  const OnDevicePtr version = Attachment(client, attachment);
  if (version == nullptr) return NotTheirs(attachment);
  if (version->leaving) return Gone(attachment);
  return Arrival{.arriving = false, .digest = version->loaded.digest};
}

Result<DeviceMemory> DeviceWeights::Give(ClientId client, ArenaId arena) {
  const auto place = places_.find(arena);
  const OnDevicePtr version = place != places_.end() ? place->second : nullptr;
  if (version == nullptr || !version->holders.contains(client)) {
    return Status(Code::kNotFound, "arena " + std::to_string(arena) +
                                       " is no block of what this client has attached");
  }
  TERRACE_CHECK(parts_.arenas->Give(arena, client));
  ++version->holders[client].given[arena];
  return *parts_.arenas->MemoryOf(arena);
}

Status DeviceWeights::Detach(ClientId client, uint64_t attachment) {
  const OnDevicePtr version = Attachment(client, attachment);
  if (version == nullptr) return NotTheirs(attachment);
  attachments_.erase({client, attachment});
  Holder& holder = version->holders.at(client);
  std::erase(holder.attachments, attachment);
  if (holder.attachments.empty()) LetGo(version, client);
  return {};
}

void DeviceWeights::LetGo(const OnDevicePtr& version, ClientId client) {
  const Holder ended = std::move(version->holders.extract(client).mapped());
  for (const uint64_t attachment : ended.attachments)
    attachments_.erase({client, attachment});
  for (const auto& [arena, times] : ended.given) {
    for (uint32_t i = 0; i < times; ++i)
      parts_.arenas->LetGo(arena, client);
  }
  if (!version->holders.empty()) return;
  if (version->leaving) {
    std::erase(versions_, version);
    parts_.weights->ClientGone(version->of.holder);
  } else if (version->to_leave) {
    Leave(version, false);
  }
}

// ---- Leaving

Result<Unloaded> DeviceWeights::Unload(const std::string& name, const std::string& version) {
  ASSIGN_OR_RETURN(const Weights::Registration facts,
                   parts_.weights->RegistrationOf(name, version));
  const std::string label = LabelOf(name, facts.version, parts_.arenas->device());
  if (Loading(facts.ordinal) != nullptr) {
    return Status(Code::kUnavailable, label + " is being loaded; retry when it is done");
  }
  const OnDevicePtr resident = Resident(facts.ordinal);
  return resident != nullptr ? Leave(resident, false) : Unloaded();
}

Unloaded DeviceWeights::Leave(const OnDevicePtr& version, bool lost) {
  TERRACE_CHECK(!version->leaving);
  version->leaving = true;
  version->lost = lost;
  parts_.policy->Erase(version->item);
  by_item_.erase(version->item);
  parts_.items->GiveBack(std::exchange(version->item, kNoItem));
  Unloaded unloaded;
  for (const ArenaId arena : version->arenas) {
    const uint64_t bytes = parts_.arenas->BytesOf(arena);
    (parts_.arenas->Mapped(arena) ? unloaded.held_bytes : unloaded.freed_bytes) += bytes;
    places_.erase(arena);
    parts_.arenas->Release(arena);
  }
  for (const auto& [client, holder] : version->holders) {
    std::vector<uint64_t>& told = lost ? wanted_[client].lost : wanted_[client].asked_back;
    told.insert(told.end(), holder.attachments.begin(), holder.attachments.end());
  }
  if (version->holders.empty()) {
    std::erase(versions_, version);
    parts_.weights->ClientGone(version->of.holder);
  }
  return unloaded;
}

DeviceWeights::Wanted DeviceWeights::WantedOf(ClientId client) const {
  Wanted wanted;
  for (const OnDevicePtr& version : versions_) {
    const auto holder = version->holders.find(client);
    if (!version->leaving || holder == version->holders.end()) continue;
    std::vector<uint64_t>& told = version->lost ? wanted.lost : wanted.asked_back;
    told.insert(told.end(), holder->second.attachments.begin(), holder->second.attachments.end());
  }
  return wanted;
}

void DeviceWeights::Lost(ArenaId arena) {
  if (const auto place = places_.find(arena); place != places_.end()) {
    Leave(OnDevicePtr(place->second), true);
  }
  for (const LoadPtr& load : std::vector<LoadPtr>(loads_)) {
    if (load->Uses(arena)) load->Cancel({Code::kStale, "memory of the device was lost"});
  }
}

void DeviceWeights::ModelsRemoved() {
  const auto removed = [this](const DeviceLoad::Of& of) {
    const auto facts = parts_.weights->RegistrationOf(of.name, of.version);
    return !facts || facts->ordinal != of.ordinal;
  };
  for (const OnDevicePtr& version : std::vector<OnDevicePtr>(versions_)) {
    if (version->leaving || !removed(version->of)) continue;
    version->to_leave = true;
    if (version->holders.empty()) Leave(version, false);
  }
  for (const LoadPtr& load : std::vector<LoadPtr>(loads_)) {
    if (removed(load->of())) load->Cancel({Code::kNotFound, "it was removed"});
  }
}

void DeviceWeights::ClientGone(ClientId client) {
  wanted_.erase(client);
  for (const OnDevicePtr& version : std::vector<OnDevicePtr>(versions_)) {
    if (version->holders.contains(client)) LetGo(version, client);
  }
  EndWaits([client](const DeviceWaiter& waiter) { return waiter.client == client; },
           {Code::kUnavailable, "the client has gone"});
}

void DeviceWeights::EndWaits(const std::function<bool(const DeviceWaiter&)>& ended,
                             const Status& why) {
  std::vector<DeviceWaiter> told;
  for (const LoadPtr& load : loads_) {
    std::vector<DeviceWaiter>& waiters = load->waiters();
    const auto theirs =
        std::stable_partition(waiters.begin(), waiters.end(),
                              [&ended](const DeviceWaiter& waiter) { return !ended(waiter); });
    std::move(theirs, waiters.end(), std::back_inserter(told));
    waiters.erase(theirs, waiters.end());
  }
  for (const DeviceWaiter& waiter : told)
    waiter.done(why);
}

void DeviceWeights::Turn() {
  const MonotonicNs now = parts_.clock->Now();
  EndWaits(
      [now](const DeviceWaiter& waiter) { return waiter.deadline != 0 && waiter.deadline <= now; },
      {Code::kDeadlineExceeded, "it is still being loaded to the device; the load goes on"});
  for (const LoadPtr& load : std::vector<LoadPtr>(loads_))
    load->Turn();
  GiveRoom();
}

Status DeviceWeights::CheckInvariants() const {
  const auto differs = [this](const std::string& what) {
    return Status(Code::kInternal,
                  "weights on device " + std::to_string(parts_.arenas->device()) + ": " + what);
  };
  size_t places = 0;
  size_t items = 0;
  size_t attachments = 0;
  for (const OnDevicePtr& version : versions_) {
    for (const auto& [client, holder] : version->holders) {
      attachments += holder.attachments.size();
      if (holder.attachments.empty()) return differs("a client holds what it has not attached");
    }
    if (version->leaving) {
      if (version->holders.empty()) return differs("keeps what has left and nobody has attached");
      continue;
    }
    ++items;
    places += version->arenas.size();
    uint64_t bytes = 0;
    for (const ArenaId arena : version->arenas) {
      bytes += parts_.arenas->BytesOf(arena);
      if (!parts_.arenas->Ready(arena)) return differs("has a block that is not there");
      const auto place = places_.find(arena);
      if (place == places_.end() || place->second != version) return differs("misplaces a block");
    }
    if (bytes != version->bytes) return differs("miscounts the bytes of a version");
    if (version->to_leave && version->holders.empty()) return differs("keeps a removed version");
  }
  if (places != places_.size() || items != by_item_.size() || attachments != attachments_.size()) {
    return differs("places, items or attachments differ from its versions");
  }
  return {};
}

}  // namespace terrace
