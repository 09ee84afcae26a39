#include "daemon/engine/device/device_arenas.h"

#include <algorithm>
#include <string>

#include "base/check.h"

namespace terrace {
namespace {

// What is left to a use of a budget with so much room, of which another class's floor, if it is not
// reached, keeps some.
uint64_t BesideFloor(uint64_t room, uint64_t floor, uint64_t has) {
  const uint64_t kept = floor > has ? floor - has : 0;
  return room > kept ? room - kept : 0;
}

}  // namespace

DeviceArenas::DeviceArenas(const DeviceOptions& options, const Parts& parts)
    : options_(options), parts_(parts) {}

MonotonicNs DeviceArenas::Deadline() const {
  return parts_.clock->Now() + options_.call_deadline_ms * kNsPerMs;
}

uint64_t DeviceArenas::Rounded(uint64_t bytes) const {
  const uint64_t unit = parts_.tier->Report().granularity;
  return unit == 0 ? 0 : (bytes + unit - 1) / unit * unit;
}

uint64_t DeviceArenas::RoomFor(Use use) const {
  return use == Use::kPages ? BesideFloor(room(), options_.weights_floor_bytes, bytes_.weights)
                            : BesideFloor(room(), options_.pages_floor_bytes, bytes_.pages);
}

uint64_t DeviceArenas::MostFor(Use use) const {
  return BesideFloor(capacity(),
                     use == Use::kPages ? options_.weights_floor_bytes : options_.pages_floor_bytes,
                     0);
}

uint64_t DeviceArenas::OnItsWay() const {
  uint64_t bytes = 0;
  for (const auto& [id, arena] : arenas_) {
    const bool comes_back = arena.state == State::kCancelled || arena.state == State::kLeaving ||
                            arena.state == State::kReleasing;
    if (comes_back) bytes += arena.bytes;
  }
  return bytes;
}

Result<ArenaId> DeviceArenas::Create(uint64_t bytes, TenantId tenant, Use use,
                                     std::function<void(Status)> done) {
  const std::string label = "device " + std::to_string(parts_.device) + ": ";
  const uint64_t rounded = Rounded(bytes);
  if (rounded == 0) {
    return Status(Code::kUnavailable, label + "it is not ready: " + parts_.tier->Report().why);
  }
  if (RoomFor(use) < rounded) {
    return Status(Code::kExhausted, label + "no room for " + std::to_string(rounded) +
                                        " bytes beside what is in use");
  }
  const ArenaId id = arenas_.size() >= kMostArenas ? 0
                     : use == Use::kPages          ? parts_.numbers->NextSlab()
                                                   : parts_.numbers->NextBlock();
  if (id == 0) return Status(Code::kExhausted, label + "arena ids are used up");
  Arena& arena = arenas_[id];
  arena.bytes = rounded;
  arena.tenant = tenant;
  arena.use = use;
  arena.done = std::move(done);
  Counter(arena) += rounded;
  tenant_bytes_[tenant] += rounded;
  parts_.tier->Create(id, rounded, Deadline(),
                      [this, id, alive = std::weak_ptr(alive_)](Result<DeviceMemory> memory) {
                        if (!alive.expired()) Came(id, std::move(memory));
                      });
  return id;
}

void DeviceArenas::Came(ArenaId id, Result<DeviceMemory> memory) {
  Arena& arena = arenas_.at(id);
  const std::function<void(Status)> done = std::move(arena.done);
  if (!memory) {
    const bool cancelled = arena.state == State::kCancelled;
    Forget(id);
    if (!cancelled) done(memory.error());
    return;
  }
  arena.memory = *std::move(memory);
  if (arena.state == State::kCancelled) return ReleaseToTier(id, arena);
  SetState(arena, State::kReady);
  done({});
}

void DeviceArenas::Release(ArenaId id) {
  Arena& arena = arenas_.at(id);
  if (arena.state == State::kComing) return SetState(arena, State::kCancelled);
  TERRACE_CHECK(arena.state == State::kReady);
  // Who maps what was lost was told so: its mapping shows nothing that anybody else will have.
  if (arena.given.empty() || arena.lost) return ReleaseToTier(id, arena);
  SetState(arena, State::kLeaving);
  arena.deadline = parts_.clock->Now() + options_.unmap_deadline_ms * kNsPerMs;
  deadlines_.emplace(arena.deadline, id);
  for (const auto& [client, times] : arena.given) {
    if (arena.use == Use::kPages) wanted_[client].push_back(id);
  }
  unmap_requests_ += arena.given.size();
}

void DeviceArenas::ReleaseToTier(ArenaId id, Arena& arena) {
  SetState(arena, State::kReleasing);
  parts_.tier->Release(id, Deadline(), [this, id, alive = std::weak_ptr(alive_)](Status status) {
    if (alive.expired()) return;
    // Whatever names nothing is free.
    if (status.ok() || status.code() == Code::kNotFound) return Forget(id);
    retries_.push_back(id);
  });
}

void DeviceArenas::Forget(ArenaId id) {
  const auto found = arenas_.find(id);
  const auto of_tenant = tenant_bytes_.find(found->second.tenant);
  Counter(found->second) -= found->second.bytes;
  of_tenant->second -= found->second.bytes;
  if (of_tenant->second == 0) tenant_bytes_.erase(of_tenant);
  arenas_.erase(found);
}

bool DeviceArenas::Ready(ArenaId id) const {
  const auto found = arenas_.find(id);
  return found != arenas_.end() && found->second.state == State::kReady;
}

const DeviceMemory* DeviceArenas::MemoryOf(ArenaId id) const {
  return Ready(id) ? &arenas_.at(id).memory : nullptr;
}

uint64_t DeviceArenas::BytesOf(ArenaId id) const {
  const auto found = arenas_.find(id);
  return found == arenas_.end() ? 0 : found->second.bytes;
}

bool DeviceArenas::Give(ArenaId id, ClientId client) {
  if (!Ready(id) || arenas_.at(id).lost) return false;
  ++arenas_.at(id).given[client];
  return true;
}

void DeviceArenas::LetGo(ArenaId id, ClientId client) {
  const auto found = arenas_.find(id);
  if (found == arenas_.end()) return;
  Arena& arena = found->second;
  const auto given = arena.given.find(client);
  if (given == arena.given.end() || --given->second > 0) return;
  arena.given.erase(given);
  const bool leaving = arena.state == State::kLeaving || arena.state == State::kZombie;
  if (!leaving || !arena.given.empty()) return;
  deadlines_.erase({arena.deadline, id});
  ReleaseToTier(id, arena);
}

void DeviceArenas::CountGivenOnce(ClientId client) {
  for (auto& [id, arena] : arenas_) {
    const auto given = arena.given.find(client);
    if (arena.use == Use::kPages && given != arena.given.end()) given->second = 1;
  }
}

void DeviceArenas::ClientGone(ClientId client) {
  wanted_.erase(client);
  std::vector<ArenaId> theirs;
  for (auto& [id, arena] : arenas_) {
    const auto given = arena.given.find(client);
    if (given == arena.given.end()) continue;
    given->second = 1;
    theirs.push_back(id);
  }
  for (const ArenaId id : theirs)
    LetGo(id, client);
}

bool DeviceArenas::Mapped(ArenaId id) const {
  const auto found = arenas_.find(id);
  return found != arenas_.end() && !found->second.given.empty();
}

std::vector<ClientId> DeviceArenas::GivenTo(ArenaId id) const {
  std::vector<ClientId> clients;
  const auto found = arenas_.find(id);
  if (found == arenas_.end()) return clients;
  for (const auto& [client, times] : found->second.given)
    clients.push_back(client);
  return clients;
}

void DeviceArenas::Lost(ArenaId id) {
  const auto found = arenas_.find(id);
  if (found == arenas_.end()) return;
  Arena& arena = found->second;
  arena.lost = true;
  if (arena.state != State::kLeaving && arena.state != State::kZombie) return;
  deadlines_.erase({arena.deadline, id});
  ReleaseToTier(id, arena);
}

bool DeviceArenas::Turn() {
  const MonotonicNs now = parts_.clock->Now();
  while (!deadlines_.empty() && deadlines_.begin()->first <= now) {
    SetState(arenas_.at(deadlines_.begin()->second), State::kZombie);
    deadlines_.erase(deadlines_.begin());
  }
  for (const ArenaId id : std::exchange(retries_, {}))
    ReleaseToTier(id, arenas_.at(id));
  return false;
}

std::map<ClientId, std::vector<ArenaId>> DeviceArenas::TakeWanted() {
  std::map<ClientId, std::vector<ArenaId>> wanted;
  for (const auto& [client, arenas] : std::exchange(wanted_, {})) {
    for (const ArenaId id : arenas) {
      // Some have let go since, unasked.
      const auto found = arenas_.find(id);
      if (found != arenas_.end() && found->second.given.contains(client)) {
        wanted[client].push_back(id);
      }
    }
  }
  return wanted;
}

DeviceArenas::Leaving DeviceArenas::LeavingOf(ClientId client) const {
  Leaving leaving;
  for (const auto& [id, arena] : arenas_) {
    const bool asked = arena.state == State::kLeaving || arena.state == State::kZombie;
    if (!asked || !arena.given.contains(client)) continue;
    leaving.deadline =
        leaving.arenas.empty() ? arena.deadline : std::min(leaving.deadline, arena.deadline);
    leaving.arenas.push_back(id);
  }
  std::sort(leaving.arenas.begin(), leaving.arenas.end());
  return leaving;
}

uint64_t& DeviceArenas::Counter(const Arena& arena) {
  if (arena.state == State::kLeaving) return bytes_.leaving;
  if (arena.state == State::kZombie) return bytes_.zombies;
  return arena.use == Use::kPages ? bytes_.pages : bytes_.weights;
}

void DeviceArenas::SetState(Arena& arena, State state) {
  Counter(arena) -= arena.bytes;
  if (arena.state == State::kZombie) --zombies_;
  arena.state = state;
  Counter(arena) += arena.bytes;
  if (state == State::kZombie) ++zombies_;
}

Status DeviceArenas::CheckInvariants() const {
  DeviceArenas counted(options_, parts_);
  for (const auto& [id, arena] : arenas_) {
    counted.Counter(arena) += arena.bytes;
    counted.tenant_bytes_[arena.tenant] += arena.bytes;
    if (arena.state == State::kZombie) ++counted.zombies_;
    const bool leaving = arena.state == State::kLeaving || arena.state == State::kZombie;
    if (leaving && arena.given.empty()) {
      return Status(Code::kInternal, "an arena of a device waits for nobody");
    }
  }
  if (counted.bytes_.weights != bytes_.weights || counted.bytes_.pages != bytes_.pages ||
      counted.bytes_.leaving != bytes_.leaving || counted.bytes_.zombies != bytes_.zombies ||
      counted.tenant_bytes_ != tenant_bytes_ || counted.zombies_ != zombies_) {
    return Status(Code::kInternal, "bytes of a device's arenas differ from the books");
  }
  if (bytes_.used() > capacity()) return Status(Code::kInternal, "a device's budget is exceeded");
  return {};
}

}  // namespace terrace
