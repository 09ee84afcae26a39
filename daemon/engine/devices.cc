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
    MakeDeviceWeights(*devices_.back());
  }
}

Result<OfDevice*> HostEngine::DeviceOf(uint32_t device) {
  if (device >= 1 && device <= devices_.size()) return devices_[device - 1].get();
  return Status(Code::kInvalidArgument, "device " + std::to_string(device) + ": there are " +
                                            std::to_string(devices_.size()) +
                                            " (they are numbered from 1)");
}

Result<DeviceMemory> HostEngine::GiveDeviceArena(ClientId id, ArenaId arena) {
  return GiveBlock(id, arena);
}

void HostEngine::DeviceArenaLost(ArenaId arena) {
  LoseBlock(arena);
}

void HostEngine::LetGoArenas(ClientId, std::span<const ArenaId>) {}

void HostEngine::DemoteDevice(uint32_t, uint64_t, Progress,
                              std::function<void(Result<Demoted>)> done) {
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
    report.kind = device->arenas.options().kind;
    report.capacity_bytes = device->arenas.capacity();
    report.bytes = device->arenas.bytes();
    report.zombie_arenas = device->arenas.zombie_arenas();
    report.unmap_requests = device->arenas.unmap_requests();
    report.loaded_bytes = device->weights->loaded_bytes();
    report.evicted_blocks = device->weights->evicted_blocks();
    report.policy = device->policy->name();
    report.tier = device->arenas.tier().Report();
    reports.push_back(std::move(report));
  }
  return reports;
}

}  // namespace terrace
