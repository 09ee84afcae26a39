// The verbs of HostEngine on pages in memory of devices.
#include <algorithm>
#include <string>
#include <utility>

#include "base/check.h"
#include "daemon/engine/host_engine.h"

namespace terrace {

void HostEngine::MakeDevicePages(OfDevice& device) {
  device.pages = std::make_unique<PagesOnDevice>(PagesOnDevice::Parts{.catalog = catalog_,
                                                                      .slabs = slabs_,
                                                                      .host_memory = memory_,
                                                                      .host = host_,
                                                                      .host_residents = residents_,
                                                                      .host_placement = placement_,
                                                                      .pins = pins_,
                                                                      .store = store_,
                                                                      .policy = *device.policy,
                                                                      .items = device.items,
                                                                      .arenas = device.arenas,
                                                                      .clock = clock_});
  placement_.AddWatcher(*device.pages);
  device.fetch = std::make_unique<DeviceFetch>(DeviceFetch::Parts{
      .catalog = catalog_,
      .slabs = slabs_,
      .clients = clients_,
      .pages = *device.pages,
      .arenas = device.arenas,
      .clock = clock_,
      .below = [this](ClientId client, const PrefetchSpec& spec, DeviceFetch::Done done) {
        Prefetch(client, spec, std::move(done));
      }});
  placement_.AddWatcher(*device.fetch);
  pins_.AddWatcher(*device.fetch);
}

Result<PagesOnDevice::Slots> HostEngine::SlotsFor(TenantId tenant, uint32_t number,
                                                  uint32_t page_bytes, uint64_t count) {
  if (number == 0) {
    ASSIGN_OR_RETURN(SlabClass * of, memory_.ClassOf(tenant, page_bytes));
    return PagesOnDevice::Slots{.slots = placement_.Allocate(*of, count)};
  }
  ASSIGN_OR_RETURN(OfDevice * device, DeviceOf(number));
  ASSIGN_OR_RETURN(SlabClass * of, device->pages->ClassOf(tenant, page_bytes));
  return device->pages->Allocate(*of, count);
}

Residents& HostEngine::ResidentsOf(SlotRef slot) {
  const uint32_t place = slot.slab->owner()->place;
  return place == 0 ? residents_ : devices_[place - 1]->pages->residents();
}

Result<DeviceMemory> HostEngine::GiveDeviceArena(ClientId id, ArenaId arena) {
  ASSIGN_OR_RETURN(const Client* client, clients_.Serving(id));
  const Slab* slab = slabs_.Find(arena);
  const uint32_t place = slab == nullptr ? 0 : slab->owner()->place;
  if (place == 0 || slab->tenant() != client->spec.tenant) {
    return Status(Code::kNotFound, "arena " + std::to_string(arena) +
                                       " is no memory of a device that the client may map");
  }
  DeviceArenas& arenas = devices_[place - 1]->arenas;
  // Once, however often it asks: it lets go of it once.
  const std::vector<ClientId> given = arenas.GivenTo(arena);
  const bool again = std::find(given.begin(), given.end(), id) != given.end();
  if (slab->closed() || (!again && !arenas.Give(arena, id))) {
    return Status(Code::kStale, "arena " + std::to_string(arena) + " was lost, or is given up");
  }
  return *arenas.MemoryOf(arena);
}

void HostEngine::LetGoArenas(ClientId id, std::span<const ArenaId> arenas) {
  for (const ArenaId arena : arenas) {
    // Blocks are let go by Detach.
    if (arena > kLastDeviceSlabId) continue;
    for (const std::unique_ptr<OfDevice>& device : devices_)
      device->arenas.LetGo(arena, id);
  }
}

void HostEngine::DemoteDevice(uint32_t number, uint64_t bytes, Progress progress,
                              std::function<void(Result<Demoted>)> done) {
  const Result<OfDevice*> device = DeviceOf(number);
  if (!device) return done(device.error());
  (*device)->pages->Demote(bytes, std::move(progress), std::move(done));
}

void HostEngine::DeviceArenaLost(ArenaId arena) {
  for (const std::unique_ptr<OfDevice>& device : devices_) {
    if (!device->pages->Lost(arena)) continue;
    Slab& slab = *slabs_.Find(arena);
    for (uint32_t i = 0; i < slab.shape().slots; ++i)
      device->fetch->Dropped({&slab, i});
    for (const ClientId client : device->arenas.GivenTo(arena))
      lost_slabs_[{client, device->arenas.device()}].push_back(arena);
  }
}

bool HostEngine::TurnDevices(std::span<const Placement::Gone> gone) {
  bool more = false;
  for (const std::unique_ptr<OfDevice>& device : devices_) {
    // What host memory gave up.
    for (const Placement::Gone& arena : gone)
      device->pages->HostSlabGone(arena.arena);
    more |= device->arenas.Turn();
    more |= device->pages->Turn();
    device->fetch->Turn();
  }
  return more;
}

void HostEngine::TellUnmapWanted() {
  for (const auto& [whom, arenas] : std::exchange(lost_slabs_, {})) {
    UnmapRequest request;
    request.device = whom.second;
    request.arenas = arenas;
    request.lost = true;
    events_.UnmapWanted(whom.first, request);
  }
  for (const std::unique_ptr<OfDevice>& device : devices_) {
    for (const auto& [client, arenas] : device->arenas.TakeWanted()) {
      UnmapRequest request;
      request.device = device->arenas.device();
      request.arenas = arenas;
      request.deadline_ms = device->arenas.options().unmap_deadline_ms;
      events_.UnmapWanted(client, request);
    }
  }
}

void HostEngine::PrefetchToDevice(const Client& client, const PrefetchSpec& spec,
                                  std::function<void(Result<Prefetched>)> done) {
  const Result<OfDevice*> device = DeviceOf(spec.device);
  if (!device) return done(device.error());
  const StoreOptions& limits = options_.store;
  const uint32_t asked_ms = spec.deadline_ms == 0 ? limits.prefetch_deadline_ms : spec.deadline_ms;
  const MonotonicNs deadline =
      clock_.Now() + std::min(asked_ms, limits.prefetch_deadline_max_ms) * kNsPerMs;
  (*device)->fetch->Fetch(client, spec, deadline, std::move(done));
}

void HostEngine::DeviceClientGone(ClientId client) {
  for (const std::unique_ptr<OfDevice>& device : devices_)
    device->fetch->ClientGone(client);
}

Status HostEngine::CheckDevices() const {
  for (const std::unique_ptr<OfDevice>& device : devices_) {
    RETURN_IF_ERROR(device->arenas.CheckInvariants());
    RETURN_IF_ERROR(device->pages->CheckInvariants());
    RETURN_IF_ERROR(device->fetch->CheckInvariants());
  }
  return {};
}

}  // namespace terrace
