// The verbs of HostEngine on weights in memory of devices.
#include <algorithm>
#include <string>
#include <tuple>
#include <vector>

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

Result<OfDevice*> HostEngine::DeviceForModel(const std::string& name, const std::string& version,
                                             uint32_t number) const {
  const auto usable = [&](const OfDevice& device) {
    const std::vector<std::string>& tenants = device.arenas.options().tenants;
    return tenants.empty() || std::any_of(tenants.begin(), tenants.end(), [&](const auto& tenant) {
             return access_.Allows(name, tenant);
           });
  };
  if (number != kAnyDevice) {
    ASSIGN_OR_RETURN(OfDevice* const device, DeviceOf(number));
    if (usable(*device) || !weights_.Knows(name)) return device;
    return Status(Code::kPermissionDenied, "device " + std::to_string(number) +
                                               " is for tenants to none of which model '" + name +
                                               "' is granted");
  }
  ASSIGN_OR_RETURN(const Weights::Registration facts, weights_.RegistrationOf(name, version));
  // Where they are; else where they find room as it is, so that nothing is pushed out; else where
  // the most can be made. Of those the emptiest.
  using Rank = std::tuple<bool, bool, uint64_t>;
  OfDevice* best = nullptr;
  Rank of_best;
  Status none(Code::kUnavailable,
              "no device is for a tenant to whom model '" + name + "' is granted");
  for (const std::unique_ptr<OfDevice>& device : devices_) {
    if (!usable(*device)) continue;
    if (Status serving = device->weights->CheckServing(); !serving.ok()) {
      none = serving;
      continue;
    }
    const uint64_t room = device->arenas.RoomFor(DeviceArenas::Use::kWeights);
    const bool fits = room >= facts.bytes;
    const Rank rank = {device->weights->Has(facts.ordinal), fits,
                       fits ? room : device->weights->RoomToMake()};
    if (best != nullptr && rank <= of_best) continue;
    best = device.get();
    of_best = rank;
  }
  if (best == nullptr) return none;
  return best;
}

void HostEngine::LoadToDevice(ClientId id, uint32_t number, const std::string& name,
                              const std::string& version, Progress progress,
                              std::function<void(Result<ModelLoaded>)> done) {
  if (const auto client = clients_.Serving(id); !client) return done(client.error());
  const Result<OfDevice*> device = DeviceForModel(name, version, number);
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
  const TenantId tenant = (*client)->spec.tenant;
  const Result<OfDevice*> device = DeviceFor(tenant, number);
  if (!device) return done(device.error());
  if (Status allowed = CheckModelAccess(tenant, name); !allowed.ok()) return done(allowed);
  (*device)->weights->Attach(id, name, version, load, deadline_ms,
                             IfStillAllowed(id, tenant, name, std::move(done)));
}

}  // namespace terrace
