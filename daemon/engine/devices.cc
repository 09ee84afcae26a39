// The verbs of HostEngine on memory of devices.
#include <algorithm>
#include <map>
#include <string>
#include <utility>

#include "daemon/engine/host_engine.h"

namespace terrace {

void HostEngine::MakeDevices(EngineParts& parts) {
  for (DevicePart& part : parts.devices) {
    const auto number = static_cast<uint32_t>(devices_.size() + 1);
    devices_.push_back(
        std::make_unique<OfDevice>(std::move(part), number, clock_, device_numbers_));
    MakeDevicePages(*devices_.back());
    MakeDeviceWeights(*devices_.back());
  }
}

Result<OfDevice*> HostEngine::DeviceOf(uint32_t device) const {
  if (device >= 1 && device <= devices_.size()) return devices_[device - 1].get();
  return Status(Code::kInvalidArgument, "device " + std::to_string(device) + ": there are " +
                                            std::to_string(devices_.size()) +
                                            " (they are numbered from 1)");
}

Result<OfDevice*> HostEngine::DeviceFor(TenantId tenant, uint32_t number) const {
  ASSIGN_OR_RETURN(OfDevice* const device, DeviceOf(number));
  const std::vector<std::string>& tenants = device->arenas.options().tenants;
  const std::string& name = catalog_.At(tenant).name;
  if (tenants.empty() || std::find(tenants.begin(), tenants.end(), name) != tenants.end()) {
    return device;
  }
  return Status(Code::kPermissionDenied,
                "device " + std::to_string(number) + " is not for tenant '" + name + "'");
}

Status HostEngine::CheckDeviceAccess(TenantId tenant, uint32_t device) const {
  return DeviceFor(tenant, device).status();
}

OfDevice* HostEngine::HasArena(ArenaId arena) const {
  for (const std::unique_ptr<OfDevice>& device : devices_) {
    if (device->arenas.BytesOf(arena) > 0) return device.get();
  }
  return nullptr;
}

Result<DeviceMemory> HostEngine::GiveDeviceArena(ClientId id, ArenaId arena) {
  ASSIGN_OR_RETURN(const Client* client, clients_.Serving(id));
  OfDevice* const device = HasArena(arena);
  if (device == nullptr) {
    return Status(Code::kNotFound, "arena " + std::to_string(arena) + " is of no device");
  }
  if (arena > kLastDeviceSlabId) return device->weights->Give(id, arena);
  const Slab* slab = slabs_.Find(arena);
  if (slab == nullptr || slab->tenant() != client->spec.tenant) {
    return Status(Code::kNotFound,
                  "arena " + std::to_string(arena) + " is no memory that the client may map");
  }
  // Counted each time: it lets go of an arena as often as that was described to it.
  if (slab->closed() || !device->arenas.Give(arena, id)) {
    return Status(Code::kStale, "arena " + std::to_string(arena) + " was lost, or is given up");
  }
  return *device->arenas.MemoryOf(arena);
}

void HostEngine::DeviceArenaLost(ArenaId arena) {
  OfDevice* const device = HasArena(arena);
  if (device == nullptr) {
    for (const std::unique_ptr<OfDevice>& of : devices_)
      of->pools->Lost(arena);
    return;
  }
  const std::vector<ClientId> given = device->arenas.GivenTo(arena);
  device->arenas.Lost(arena);
  if (arena > kLastDeviceSlabId) return device->weights->Lost(arena);
  // Also of a slab that was given up already.
  for (const ClientId client : given) {
    const std::pair whom(client, device->arenas.device());
    lost_slabs_[whom].push_back(arena);
    lost_and_mapped_[whom].insert(arena);
  }
  if (!device->pages->Lost(arena)) return;
  Slab& slab = *slabs_.Find(arena);
  for (uint32_t i = 0; i < slab.shape().slots; ++i)
    device->fetch->Dropped({&slab, i});
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
    device->pools->Turn();
    device->weights->Turn();
  }
  return more;
}

void HostEngine::DeviceClientGone(ClientId client) {
  for (const std::unique_ptr<OfDevice>& device : devices_) {
    device->pools->ClientGone(client);
    device->fetch->ClientGone(client);
  }
}

void HostEngine::TellUnmapWanted() {
  for (const auto& [whom, arenas] : std::exchange(lost_slabs_, {})) {
    events_.UnmapWanted(whom.first, {.device = whom.second,
                                     .arenas = arenas,
                                     .attachments = {},
                                     .deadline_ms = 0,
                                     .lost = true});
  }
  for (const std::unique_ptr<OfDevice>& device : devices_)
    TellUnmapWanted(*device);
}

void HostEngine::TellUnmapWanted(OfDevice& device) {
  std::map<ClientId, UnmapRequest> requests;
  for (auto& [client, arenas] : device.arenas.TakeWanted())
    requests[client].arenas = std::move(arenas);
  std::map<ClientId, DeviceWeights::Wanted> attached = device.weights->TakeWanted();
  for (auto& [client, wanted] : attached) {
    if (!wanted.asked_back.empty()) requests[client].attachments = std::move(wanted.asked_back);
  }
  const uint32_t number = device.arenas.device();
  for (auto& [client, request] : requests) {
    request.device = number;
    request.deadline_ms = device.arenas.options().unmap_deadline_ms;
    events_.UnmapWanted(client, request);
  }
  for (auto& [client, wanted] : attached) {
    if (wanted.lost.empty()) continue;
    events_.UnmapWanted(client, {.device = number,
                                 .arenas = {},
                                 .attachments = std::move(wanted.lost),
                                 .deadline_ms = 0,
                                 .lost = true});
  }
}

std::vector<UnmapRequest> HostEngine::UnmapWantedOf(ClientId client) const {
  std::vector<UnmapRequest> requests;
  for (const std::unique_ptr<OfDevice>& device : devices_) {
    const uint32_t number = device->arenas.device();
    const DeviceWeights::Wanted wanted = device->weights->WantedOf(client);
    const DeviceArenas::Leaving leaving = device->arenas.LeavingOf(client);
    UnmapRequest request;
    request.device = number;
    for (const ArenaId arena : leaving.arenas) {
      if (arena <= kLastDeviceSlabId) request.arenas.push_back(arena);
    }
    request.attachments = wanted.asked_back;
    const MonotonicNs left = std::max<MonotonicNs>(0, leaving.deadline - clock_.Now());
    request.deadline_ms = static_cast<uint32_t>(left / kNsPerMs);
    if (!request.arenas.empty() || !request.attachments.empty()) requests.push_back(request);
    UnmapRequest of_lost{
        .device = number, .arenas = {}, .attachments = wanted.lost, .deadline_ms = 0, .lost = true};
    const auto mapped = lost_and_mapped_.find({client, number});
    if (mapped != lost_and_mapped_.end()) {
      of_lost.arenas.assign(mapped->second.begin(), mapped->second.end());
    }
    if (!of_lost.arenas.empty() || !of_lost.attachments.empty()) requests.push_back(of_lost);
  }
  return requests;
}

Status HostEngine::CheckDevices() const {
  for (const std::unique_ptr<OfDevice>& device : devices_) {
    RETURN_IF_ERROR(device->arenas.CheckInvariants());
    RETURN_IF_ERROR(device->pages->CheckInvariants());
    RETURN_IF_ERROR(device->fetch->CheckInvariants());
    RETURN_IF_ERROR(device->pools->CheckInvariants());
    RETURN_IF_ERROR(device->weights->CheckInvariants());
  }
  return {};
}

std::vector<GpuReport> HostEngine::Devices() const {
  std::vector<GpuReport> reports;
  for (const std::unique_ptr<OfDevice>& device : devices_) {
    GpuReport report;
    report.device = device->arenas.device();
    report.kind = device->arenas.options().kind;
    report.capacity_bytes = device->arenas.capacity();
    report.tenants = device->arenas.options().tenants;
    report.bytes = device->arenas.bytes();
    for (const auto& [tenant, bytes] : device->arenas.bytes_of_tenants()) {
      // Of no tenant are weights, which several may map.
      if (tenant != 0) report.tenant_bytes[catalog_.tenants()[tenant - 1]->name] = bytes;
    }
    report.zombie_arenas = device->arenas.zombie_arenas();
    report.unmap_requests = device->arenas.unmap_requests();
    device->pages->AddFigures(&report);
    report.promoted_pages = device->fetch->promoted().extents;
    report.promoted_bytes = device->fetch->promoted().bytes;
    report.loaded_bytes = device->weights->loaded_bytes();
    report.evicted_blocks = device->weights->evicted_blocks();
    report.policy = device->policy->name();
    report.tier = device->arenas.tier().Report();
    reports.push_back(std::move(report));
  }
  return reports;
}

}  // namespace terrace
