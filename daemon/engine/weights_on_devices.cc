// The verbs of HostEngine on weights in memory of devices, and what clients are asked to detach.
#include <algorithm>
#include <string>

#include "daemon/engine/host_engine.h"

namespace terrace {

void HostEngine::MakeDeviceWeights(OfDevice& device) {
  device.weights = std::make_unique<DeviceWeights>(
      DeviceWeights::Parts{.weights = &weights_,
                           .host = &host_,
                           .arenas = &device.arenas,
                           .policy = device.policy.get(),
                           .items = &device.items,
                           .clock = &clock_,
                           .tenant_of = [this](ClientId id) { return TenantOf(id); }});
}

OfDevice* HostEngine::AttachedOn(ClientId client, uint64_t attachment) const {
  for (const std::unique_ptr<OfDevice>& device : devices_) {
    if (device->weights->ModelOf(client, attachment) != nullptr) return device.get();
  }
  return nullptr;
}

void HostEngine::LoadToDevice(ClientId id, uint32_t number, const std::string& name,
                              const std::string& version, Progress progress,
                              std::function<void(Result<ModelLoaded>)> done) {
  if (const auto client = clients_.Serving(id); !client) return done(client.error());
  const Result<OfDevice*> device = DeviceOf(number);
  if (!device) return done(device.error());
  (*device)->weights->Load(id, name, version, std::move(progress), std::move(done));
}

Result<Unloaded> HostEngine::UnloadFromDevice(uint32_t number, const std::string& name,
                                              const std::string& version) {
  ASSIGN_OR_RETURN(OfDevice* const device, DeviceOf(number));
  return device->weights->Unload(name, version);
}

void HostEngine::AttachOnDevice(ClientId id, uint32_t number, const std::string& name,
                                const std::string& version, bool load, uint32_t deadline_ms,
                                std::function<void(Result<Attached>)> done) {
  const Result<Client*> client = clients_.Serving(id);
  if (!client) return done(client.error());
  const Result<OfDevice*> device = DeviceOf(number);
  if (!device) return done(device.error());
  const TenantId tenant = (*client)->spec.tenant;
  if (Status allowed = CheckModelAccess(tenant, name); !allowed.ok()) return done(allowed);
  (*device)->weights->Attach(id, name, version, load, deadline_ms,
                             IfStillAllowed(id, tenant, name, std::move(done)));
}

Result<DeviceMemory> HostEngine::GiveBlock(ClientId id, ArenaId arena) {
  RETURN_IF_ERROR(clients_.Serving(id).status());
  for (const std::unique_ptr<OfDevice>& device : devices_) {
    if (device->arenas.BytesOf(arena) > 0) return device->weights->Give(id, arena);
  }
  return Status(Code::kNotFound, "arena " + std::to_string(arena) + " is of no device");
}

void HostEngine::LoseBlock(ArenaId arena) {
  for (const std::unique_ptr<OfDevice>& device : devices_) {
    if (device->arenas.BytesOf(arena) == 0) continue;
    device->arenas.Lost(arena);
    device->weights->Lost(arena);
  }
}

bool HostEngine::TurnDeviceWeights() {
  bool more = false;
  for (const std::unique_ptr<OfDevice>& device : devices_) {
    more |= device->arenas.Turn();
    device->weights->Turn();
  }
  return more;
}

void HostEngine::TellAttachmentsWanted() {
  for (const std::unique_ptr<OfDevice>& device : devices_) {
    for (auto& [client, wanted] : device->weights->TakeWanted()) {
      UnmapRequest request;
      request.device = device->arenas.device();
      if (!wanted.asked_back.empty()) {
        request.attachments = wanted.asked_back;
        request.deadline_ms = device->arenas.options().unmap_deadline_ms;
        events_.UnmapWanted(client, request);
      }
      if (wanted.lost.empty()) continue;
      request.attachments = wanted.lost;
      request.deadline_ms = 0;
      request.lost = true;
      events_.UnmapWanted(client, request);
    }
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
    if (wanted.lost.empty()) continue;
    requests.push_back({.device = number,
                        .arenas = {},
                        .attachments = wanted.lost,
                        .deadline_ms = 0,
                        .lost = true});
  }
  return requests;
}

}  // namespace terrace
