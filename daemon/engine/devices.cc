// The verbs of HostEngine on memory of devices.
#include <string>

#include "daemon/engine/host_engine.h"

namespace terrace {
namespace {

Status NotYet() {
  return {Code::kUnavailable, "not built"};
}

}  // namespace

void HostEngine::MakeDevices(EngineParts& parts) {
  for (DevicePart& part : parts.devices) {
    const auto number = static_cast<uint32_t>(devices_.size() + 1);
    devices_.push_back(
        std::make_unique<OfDevice>(std::move(part), number, clock_, device_numbers_));
    MakeDevicePages(*devices_.back());
  }
}

Result<OfDevice*> HostEngine::DeviceOf(uint32_t device) {
  if (device >= 1 && device <= devices_.size()) return devices_[device - 1].get();
  return Status(Code::kInvalidArgument, "device " + std::to_string(device) + ": there are " +
                                            std::to_string(devices_.size()) +
                                            " (they are numbered from 1)");
}

void HostEngine::LoadToDevice(ClientId, uint32_t, const std::string&, const std::string&, Progress,
                              std::function<void(Result<ModelLoaded>)> done) {
  done(NotYet());
}

Result<Unloaded> HostEngine::UnloadFromDevice(uint32_t, const std::string&, const std::string&) {
  return NotYet();
}

void HostEngine::AttachOnDevice(ClientId, uint32_t, const std::string&, const std::string&, bool,
                                uint32_t, std::function<void(Result<Attached>)> done) {
  done(NotYet());
}

void HostEngine::AddPool(ClientId, PoolSpec, std::function<void(Result<uint64_t>)> done) {
  done(NotYet());
}

void HostEngine::RemovePool(ClientId, uint64_t, std::function<void(Status)> done) {
  done(NotYet());
}

void HostEngine::StoreFromPool(ClientId, const PoolPages&,
                               std::function<void(Result<std::vector<Code>>)> done) {
  done(NotYet());
}

void HostEngine::FetchIntoPool(ClientId, const PoolPages&,
                               std::function<void(Result<std::vector<Code>>)> done) {
  done(NotYet());
}

std::vector<GpuReport> HostEngine::Devices() const {
  std::vector<GpuReport> reports;
  for (const std::unique_ptr<OfDevice>& device : devices_) {
    GpuReport report;
    report.device = device->arenas.device();
    report.capacity_bytes = device->arenas.capacity();
    report.bytes = device->arenas.bytes();
    report.zombie_arenas = device->arenas.zombie_arenas();
    report.unmap_requests = device->arenas.unmap_requests();
    device->pages->AddFigures(&report);
    report.promoted_pages = device->fetch->promoted().extents;
    report.promoted_bytes = device->fetch->promoted().bytes;
    report.policy = device->policy->name();
    report.tier = device->arenas.tier().Report();
    reports.push_back(std::move(report));
  }
  return reports;
}

}  // namespace terrace
