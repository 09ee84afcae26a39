// The reports of HostEngine, and the recount of what it keeps.
#include <algorithm>
#include <map>

#include "base/hex.h"
#include "daemon/engine/host_engine.h"

namespace terrace {
namespace {

constexpr uint32_t kDefaultPages = 100;

uint64_t Of(const uint64_t (&by_state)[kSlotStates], SlotState state) {
  return by_state[static_cast<int>(state)];
}

}  // namespace

StatusReport HostEngine::Summary() const {
  StatusReport report;
  const HostBooks& books = memory_.books();
  report.host_capacity_bytes = memory_.capacity();
  report.used_bytes = books.used();
  report.linked_bytes = Of(books.bytes, SlotState::kLinked);
  report.granted_bytes =
      Of(books.bytes, SlotState::kGranted) + Of(books.bytes, SlotState::kAbandoned);
  report.limbo_bytes = Of(books.bytes, SlotState::kLimbo);
  report.filling_bytes = Of(books.bytes, SlotState::kFilling);
  report.free_bytes = books.slab_bytes - report.linked_bytes - report.granted_bytes -
                      report.limbo_bytes - report.filling_bytes;
  report.block_bytes = books.block_bytes;
  report.pages = Of(books.slots, SlotState::kLinked);
  report.grants = grants_.all().size();
  report.abandoned_grants = abandoned_grants_;
  report.limbo_pages = pins_.limbo_pages();
  report.clients = clients_.all().size();
  report.pins = pins_.total();
  report.evicted_pages = evictor_.evicted_pages();
  report.evictions_pinned = evictor_.found_pinned();
  for (const auto& tenant : catalog_.tenants()) {
    report.spaces += tenant->spaces.size();
    report.directory_growths += tenant->index->directory_id() - 1;
    report.lookups.Add(tenant->index->totals());
    const PageCounts& counts = tenant->counts;
    report.committed_pages += counts.committed.extents;
    report.duplicate_commits += counts.duplicate_commits;
    report.expired_grants += counts.expired_grants;
    report.failed_allocations += counts.failed_allocations;
  }
  const WeightsTotals weights = weights_.totals();
  report.held_gone_bytes = weights.let_go_bytes;
  report.evicted_blocks = weights.evicted_blocks;
  report.host = host_.Report();
  if (store_ != nullptr) report.store = store_->Figures();
  report.policy = policy_->name();
  report.restore_problems = restore_problems_;
  return report;
}

std::vector<ModelReport> HostEngine::Models() const {
  std::vector<ModelReport> models = weights_.Models();
  for (ModelReport& model : models)
    model.tenants = access_.TenantsOf(model.name);
  return models;
}

std::vector<SpaceReport> HostEngine::Spaces() const {
  std::vector<SpaceReport> reports;
  for (const auto& tenant : catalog_.tenants()) {
    for (const auto& [slot, space] : tenant->spaces) {
      reports.push_back({.id = space.id,
                         .tenant = tenant->name,
                         .model = space.spec.model,
                         .layout = space.spec.layout,
                         .slot = slot,
                         .epoch = space.epoch,
                         .page_bytes = space.page_bytes,
                         .open_by = static_cast<uint32_t>(space.openers.size()),
                         .pages = tenant->index->linked_in_space(slot),
                         .bytes = space.linked_bytes});
    }
  }
  return reports;
}

std::vector<ClientReport> HostEngine::Clients() {
  for (const auto& tenant : catalog_.tenants())
    pins_.Scan(tenant->id);
  std::vector<ClientReport> reports;
  for (const auto& [id, client] : clients_.all()) {
    const Tenant& tenant = catalog_.At(client.spec.tenant);
    const Weights::Holdings holdings = weights_.HoldingsOf(id);
    reports.push_back({.id = id,
                       .name = client.spec.name,
                       .tenant = tenant.name,
                       .pid = client.spec.pid,
                       .uid = client.spec.uid,
                       .writer = client.spec.writer,
                       .pins = client.pins,
                       .pinned_bytes = client.pinned_bytes,
                       .grants = client.grants,
                       .granted_bytes = client.granted_bytes,
                       .attachments = holdings.attachments,
                       .attached_bytes = holdings.bytes,
                       .lookups = tenant.index->totals_of(id)});
  }
  return reports;
}

std::vector<PageReport> HostEngine::Pages(const std::string& space_hex, uint32_t limit,
                                          TenantId only_tenant) const {
  std::optional<Digest> wanted;
  if (!space_hex.empty()) {
    wanted = Digest::FromHex(space_hex);
    if (!wanted) return {};
  }
  const size_t most = limit == 0 ? kDefaultPages : limit;
  std::vector<PageReport> reports;
  for (const auto& tenant : catalog_.tenants()) {
    if (only_tenant != 0 && tenant->id != only_tenant) continue;
    std::optional<uint32_t> only;
    if (wanted) {
      const auto found = tenant->slot_of_id.find(*wanted);
      if (found == tenant->slot_of_id.end()) continue;
      only = found->second;
    }
    if (reports.size() >= most) break;
    tenant->index->Visit(only, [&](const LinkedPage& page) {
      const auto space = tenant->spaces.find(page.name.space_slot);
      reports.push_back({.space = space != tenant->spaces.end() ? space->second.id : Digest{},
                         .key = page.name.key,
                         .part = page.name.part,
                         .bytes = page.bytes,
                         .valid_tokens = page.valid_tokens,
                         .arena = shm::ArenaOf(page.handle),
                         .slot = shm::SlotOf(page.handle)});
      return reports.size() < most;
    });
  }
  return reports;
}

Status HostEngine::CheckInvariants() const {
  RETURN_IF_ERROR(memory_.CheckInvariants());
  RETURN_IF_ERROR(residents_.CheckInvariants());
  RETURN_IF_ERROR(weights_.CheckInvariants());
  RETURN_IF_ERROR(CheckGrants());
  if (store_ != nullptr) RETURN_IF_ERROR(store_->CheckInvariants());
  const HostBooks& books = memory_.books();
  if (weights_.totals().resident_bytes != books.block_bytes) {
    return Status(Code::kInternal, "weights have other bytes resident than the budget is charged");
  }
  RETURN_IF_ERROR(CheckDirectories());
  RETURN_IF_ERROR(CheckTransfers());
  RETURN_IF_ERROR(CheckDevices());
  uint64_t limbo = Of(books.slots, SlotState::kLimbo);
  for (const std::unique_ptr<OfDevice>& device : devices_)
    limbo += Of(device->pages->books().slots, SlotState::kLimbo);
  if (pins_.limbo_pages() != limbo) {
    return Status(Code::kInternal, "pages in limbo are not the slots in limbo");
  }
  return CheckFigures();
}

// Slots in transfer are those that somebody moves.
Status HostEngine::CheckTransfers() const {
  uint64_t transfers = 0;
  slabs_.Visit(0, [&](Slab& slab) {
    for (uint32_t i = 0; i < slab.shape().slots; ++i)
      transfers += slab.slot(i).transfers;
  });
  uint64_t moved = store_ == nullptr ? 0 : store_->transfers();
  for (const std::unique_ptr<OfDevice>& device : devices_)
    moved += device->pages->transfers() + device->fetch->transfers();
  if (transfers == moved) return {};
  return Status(Code::kInternal, "slots in transfer are not the pages read and written");
}

// A linked slot is in its tenant's directory (Residents); nothing else is.
Status HostEngine::CheckDirectories() const {
  std::map<TenantId, uint64_t> linked;
  for (uint32_t place = 0; place <= devices_.size(); ++place) {
    slabs_.Visit(place, [&](Slab& slab) {
      for (uint32_t i = 0; i < slab.shape().slots; ++i)
        linked[slab.tenant()] += slab.slot(i).state == SlotState::kLinked ? 1 : 0;
    });
  }
  for (const auto& tenant : catalog_.tenants()) {
    uint64_t in_spaces = 0;
    for (const auto& [slot, space] : tenant->spaces)
      in_spaces += tenant->index->linked_in_space(slot);
    if (tenant->index->linked() != linked[tenant->id] || in_spaces != linked[tenant->id]) {
      return Status(Code::kInternal, "tenant " + tenant->name + ": directory has " +
                                         std::to_string(tenant->index->linked()) +
                                         " pages, its spaces " + std::to_string(in_spaces) +
                                         ", slots " + std::to_string(linked[tenant->id]));
    }
  }
  return {};
}

// What is told by tenant and state adds up to what is used.
Status HostEngine::CheckFigures() const {
  const EngineFigures figures = Figures();
  const WeightsFigures& weights = figures.weights;
  uint64_t bytes = weights.held.bytes + weights.idle.bytes + weights.gone.bytes;
  for (const TenantFigures& tenant : figures.tenants) {
    for (const Amount* amount : {&tenant.linked, &tenant.granted, &tenant.abandoned, &tenant.limbo,
                                 &tenant.filling, &tenant.free})
      bytes += amount->bytes;
  }
  if (bytes != figures.used_bytes) {
    return Status(Code::kInternal, "figures: " + std::to_string(bytes) + " bytes of extents, " +
                                       std::to_string(figures.used_bytes) + " used");
  }
  uint64_t stored = 0;
  for (int of = 0; of < kItemClasses; ++of) {
    stored += figures.store.absent[of].bytes;
    for (const TenantFigures& tenant : figures.tenants)
      stored += tenant.stored[of].bytes;
  }
  if (stored == figures.store.used_bytes) return {};
  return Status(Code::kInternal, "figures: " + std::to_string(stored) + " bytes stored, " +
                                     std::to_string(figures.store.used_bytes) + " used");
}

Status HostEngine::CheckGrants() const {
  const auto writing = [](const SlabBooks& books) {
    return Of(books.slots, SlotState::kGranted) + Of(books.slots, SlotState::kAbandoned);
  };
  uint64_t slots = writing(memory_.books());
  for (const std::unique_ptr<OfDevice>& device : devices_)
    slots += writing(device->pages->books());
  std::map<ClientId, std::pair<uint32_t, uint64_t>> of_client;
  uint64_t expired = 0;
  for (const auto& [key, grant] : grants_.all()) {
    const SlotState state = grant.slot->state;
    if (state != (grant.expired ? SlotState::kAbandoned : SlotState::kGranted)) {
      return Status(Code::kInternal, "a grant's slot is in another state");
    }
    auto& [grants, bytes] = of_client[key.first];
    ++grants;
    bytes += grant.slot.slab->shape().page_bytes;
    if (grant.expired) ++expired;
  }
  if (grants_.all().size() != slots || expired != abandoned_grants_) {
    return Status(Code::kInternal, "grants are not the slots that are granted or abandoned");
  }
  for (const auto& [id, client] : clients_.all()) {
    const auto& [grants, bytes] = of_client[id];
    if (grants != client.grants || bytes != client.granted_bytes) {
      return Status(Code::kInternal, "client " + std::to_string(id) + ": " +
                                         std::to_string(grants) + " grants counted, " +
                                         std::to_string(client.grants) + " charged");
    }
  }
  return {};
}

}  // namespace terrace
