// The verbs of HostEngine on weights in memory of devices.
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
  device.weights->SetPageRoom(
      [pages = device.pages.get()](uint64_t bytes) { return pages->MakeRoom(bytes); });
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

}  // namespace terrace
