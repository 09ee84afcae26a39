// The verbs of HostEngine on pools: memory of devices that engines own.
#include <string>
#include <utility>

#include "daemon/engine/host_engine.h"

namespace terrace {

void HostEngine::AddPool(ClientId id, PoolSpec spec, std::function<void(Result<uint64_t>)> done) {
  const Result<Client*> client = clients_.Serving(id);
  if (!client) return done(client.error());
  const Result<OfDevice*> device = DeviceFor((*client)->spec.tenant, spec.device);
  if (!device) return done(device.error());
  size_t pools = 0;
  for (const std::unique_ptr<OfDevice>& of : devices_)
    pools += of->pools->CountOf(id);
  if (pools >= kMaxPools) {
    return done(Status(Code::kExhausted,
                       "pools: the client has " + std::to_string(pools) + ", which is the most"));
  }
  (*device)->pools->Add(id, std::move(spec), std::move(done));
}

void HostEngine::RemovePool(ClientId id, uint64_t pool, std::function<void(Status)> done) {
  const Result<Pools*> pools = PoolsWith(id, pool);
  if (!pools) return done(pools.error());
  (*pools)->Remove(id, pool, std::move(done));
}

void HostEngine::StoreFromPool(ClientId id, const PoolPages& pages,
                               std::function<void(Result<std::vector<Code>>)> done) {
  const Result<Client*> client = clients_.Writing(id);
  if (!client) return done(client.error());
  const Result<Pools*> pools = PoolsWith(id, pages.pool);
  if (!pools) return done(pools.error());
  const Result<Pools::Work> work = WorkOf(**client, pages);
  if (!work) return done(work.error());
  (*pools)->Store(*work, std::move(done));
}

void HostEngine::FetchIntoPool(ClientId id, const PoolPages& pages,
                               std::function<void(Result<std::vector<Code>>)> done) {
  const Result<Client*> client = clients_.Serving(id);
  if (!client) return done(client.error());
  const Result<Pools*> pools = PoolsWith(id, pages.pool);
  if (!pools) return done(pools.error());
  const Result<Pools::Work> work = WorkOf(**client, pages);
  if (!work) return done(work.error());
  (*pools)->Fetch(*work, std::move(done));
}

Result<Pools*> HostEngine::PoolsWith(ClientId client, uint64_t pool) {
  for (const std::unique_ptr<OfDevice>& device : devices_) {
    if (device->pools->Has(client, pool)) return device->pools.get();
  }
  return Status(Code::kNotFound, "pool: the client has no pool " + std::to_string(pool));
}

Result<Pools::Work> HostEngine::WorkOf(const Client& client, const PoolPages& pages) {
  if (pages.keys.size() > kMaxBatch) {
    return Status(Code::kInvalidArgument, "a batch of " + std::to_string(pages.keys.size()) +
                                              " pages, at most " + std::to_string(kMaxBatch) +
                                              " are allowed");
  }
  ASSIGN_OR_RETURN(const Space* space, OpenedSpace(client, pages.slot, pages.epoch));
  ASSIGN_OR_RETURN(const uint32_t bytes, PartBytes(space->spec.layout, pages.part));
  return Pools::Work{.client = client,
                     .space = *space,
                     .pages = pages,
                     .page_bytes = bytes,
                     .deadline = PrefetchDeadline(pages.deadline_ms)};
}

}  // namespace terrace
