// The figures of HostEngine: what Summary counts for all, by tenant and space. The owner thread
// pays for them at every scrape, so nothing here looks at pages, slots or shared memory.
#include <algorithm>

#include "daemon/engine/host_engine.h"

namespace terrace {

bool HostEngine::RereadChannels(FiguresCursor* cursor, size_t lines) {
  const auto& tenants = catalog_.tenants();
  size_t read = 0;
  while (cursor->tenant < tenants.size() && read < lines) {
    const TenantIndex::ReadStep step =
        tenants[cursor->tenant]->index->Reread(cursor->client, lines - read);
    cursor->client = step.last;
    read += step.lines;
    if (step.last == 0) ++cursor->tenant;
  }
  return cursor->tenant < tenants.size();
}

EngineFigures HostEngine::Figures() const {
  EngineFigures figures;
  figures.host_capacity_bytes = memory_.capacity();
  figures.used_bytes = memory_.books().used();
  figures.evictions_pinned = evictor_.found_pinned();
  figures.host = host_.Report();
  figures.devices = Devices();
  figures.weights = weights_.Figures();
  if (store_ != nullptr) figures.store = store_->Figures();
  for (int reason = 0; reason < kEvictionReasons; ++reason)
    figures.weights.evicted[reason] = evictor_.evicted_blocks()[reason];
  figures.tenants.reserve(catalog_.tenants().size());
  for (const auto& tenant : catalog_.tenants()) {
    TenantFigures& told = figures.tenants.emplace_back();
    told.name = tenant->name;
    told.spaces = tenant->spaces.size();
    told.directory_capacity = tenant->index->capacity();
    told.pages = tenant->counts;
    const auto* stored = store_ == nullptr ? nullptr : store_->TotalsOf(tenant->name);
    if (stored != nullptr) std::copy(stored->begin(), stored->end(), told.stored);
    const Evictor::ByReason evicted = evictor_.evicted_of(tenant->id);
    for (int reason = 0; reason < kEvictionReasons; ++reason)
      told.evicted[reason] = evicted[reason];
    const TenantIndex::Told read = tenant->index->told();
    told.lookups = read.totals;
    told.ring_records = read.ring_records;
    told.pins = read.pins;
    for (const auto& [slot, space] : tenant->spaces) {
      if (figures.spaces.size() == EngineFigures::kMaxSpaces) break;
      figures.spaces.push_back({.tenant = tenant->id - 1,
                                .id = space.id,
                                .model = space.spec.model,
                                .pages = tenant->index->linked_in_space(slot),
                                .bytes = space.linked_bytes,
                                .hits = tenant->reads[slot].hits,
                                .misses = tenant->reads[slot].misses});
    }
  }
  AddPageFigures(&figures.tenants);
  AddClientFigures(&figures.tenants);
  return figures;
}

void HostEngine::AddPageFigures(std::vector<TenantFigures>* tenants) const {
  for (const auto& [key, of] : memory_.classes()) {
    TenantFigures& told = (*tenants)[of->tenant - 1];
    uint64_t busy_bytes = 0;
    const auto add = [&](SlotState state, Amount* amount) {
      const uint64_t slots = of->slots[static_cast<int>(state)];
      amount->extents += slots;
      amount->bytes += slots * of->shape.page_bytes;
      busy_bytes += slots * of->shape.page_bytes;
    };
    add(SlotState::kLinked, &told.linked);
    add(SlotState::kGranted, &told.granted);
    add(SlotState::kAbandoned, &told.abandoned);
    add(SlotState::kLimbo, &told.limbo);
    add(SlotState::kFilling, &told.filling);
    told.free.extents += of->ready_slots;
    told.free.bytes += of->resident_bytes - busy_bytes;
  }
}

void HostEngine::AddClientFigures(std::vector<TenantFigures>* tenants) const {
  for (const auto& [id, client] : clients_.all()) {
    TenantFigures& told = (*tenants)[client.spec.tenant - 1];
    ++told.clients;
    told.pinned_bytes += client.pinned_bytes;
  }
}

}  // namespace terrace
