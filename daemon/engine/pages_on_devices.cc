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
      .placement = placement_,
      .pins = pins_,
      .arenas = device.arenas,
      .clock = clock_,
      .below = [this](ClientId client, const PrefetchSpec& spec, DeviceFetch::Done done) {
        Prefetch(client, spec, std::move(done));
      }});
  placement_.AddWatcher(*device.fetch);
  pins_.AddWatcher(*device.fetch);
  device.pools = std::make_unique<Pools>(Pools::Parts{.catalog = catalog_,
                                                      .slabs = slabs_,
                                                      .clients = clients_,
                                                      .pages = *device.pages,
                                                      .fetch = *device.fetch,
                                                      .arenas = device.arenas,
                                                      .numbers = device_numbers_,
                                                      .clock = clock_});
}

Result<PagesOnDevice::Slots> HostEngine::SlotsFor(TenantId tenant, uint32_t number,
                                                  uint32_t page_bytes, uint64_t count) {
  if (number == 0) {
    ASSIGN_OR_RETURN(SlabClass * of, memory_.ClassOf(tenant, page_bytes));
    return PagesOnDevice::Slots{.slots = placement_.Allocate(*of, count)};
  }
  ASSIGN_OR_RETURN(OfDevice * device, DeviceFor(tenant, number));
  ASSIGN_OR_RETURN(SlabClass * of, device->pages->ClassOf(tenant, page_bytes));
  PagesOnDevice::Slots got = device->pages->Allocate(*of, count);
  // Nothing comes of a device that does not serve.
  if (got.slots.empty() && count > 0) RETURN_IF_ERROR(device->weights->CheckServing());
  return got;
}

Residents& HostEngine::ResidentsOf(SlotRef slot) {
  const uint32_t place = slot.slab->owner()->place;
  return place == 0 ? residents_ : devices_[place - 1]->pages->residents();
}

void HostEngine::LetGoArenas(ClientId id, std::span<const ArenaId> arenas) {
  for (const ArenaId arena : arenas) {
    // Blocks are let go by Detach.
    if (arena > kLastDeviceSlabId) continue;
    for (const std::unique_ptr<OfDevice>& device : devices_) {
      device->arenas.LetGo(arena, id);
      const auto lost = lost_and_mapped_.find({id, device->arenas.device()});
      if (lost == lost_and_mapped_.end()) continue;
      lost->second.erase(arena);
      if (lost->second.empty()) lost_and_mapped_.erase(lost);
    }
  }
}

void HostEngine::CountGivenOnce(ClientId client) {
  for (const std::unique_ptr<OfDevice>& device : devices_)
    device->arenas.CountGivenOnce(client);
}

void HostEngine::DemoteDevice(uint32_t number, uint64_t bytes, Progress progress,
                              std::function<void(Result<Demoted>)> done) {
  const Result<OfDevice*> device = DeviceOf(number);
  if (!device) return done(device.error());
  (*device)->pages->Demote(bytes, std::move(progress), std::move(done));
}

MonotonicNs HostEngine::PrefetchDeadline(uint32_t asked_ms) const {
  const StoreOptions& limits = options_.store;
  const uint32_t wanted_ms = asked_ms == 0 ? limits.prefetch_deadline_ms : asked_ms;
  return clock_.Now() + std::min(wanted_ms, limits.prefetch_deadline_max_ms) * kNsPerMs;
}

void HostEngine::PrefetchToDevice(const Client& client, const PrefetchSpec& spec,
                                  std::function<void(Result<Prefetched>)> done) {
  const Result<OfDevice*> device = DeviceFor(client.spec.tenant, spec.device);
  if (!device) return done(device.error());
  (*device)->fetch->Fetch(client, spec, PrefetchDeadline(spec.deadline_ms), std::move(done));
}

}  // namespace terrace
