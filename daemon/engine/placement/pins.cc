#include "daemon/engine/placement/pins.h"

#include <string>

#include "base/check.h"

namespace terrace {
namespace {

// Between two scans that can wait: with 640,000 pins, whose scan takes some 3 ms, that is 138 ms,
// so that they cost the owner thread about a fiftieth of its time.
constexpr MonotonicNs kScanMinNs = 10 * kNsPerMs;
constexpr MonotonicNs kScanNsPerPin = 200;
constexpr size_t kPrefetchAhead = 12;

}  // namespace

Pins::OfTenant& Pins::At(TenantId tenant) {
  if (tenant >= tenants_.size()) tenants_.resize(tenant + 1);
  return tenants_[tenant];
}

void Pins::Scan(TenantId id) {
  Tenant& tenant = catalog_.At(id);
  std::map<ClientId, Holding> holdings = ReadPins(tenant);
  // The pins of a client that was cut count no more: read those of the others again. Whoever comes
  // to be over its budget only then is cut by the next scan.
  if (CutOverBudget(tenant, holdings)) holdings = ReadPins(tenant);
  OfTenant& of = At(id);
  of.pins = 0;
  of.scanned = clock_.Now();
  for (const auto& [client_id, holding] : holdings) {
    of.pins += holding.pins;
    if (Client* client = clients_.Find(client_id)) {
      client->pins = holding.pins;
      client->pinned_bytes = holding.bytes;
      for (PageWatcher* watcher : watchers_)
        watcher->Scanned(*client);
    }
  }
  FreeLimbo(of);
}

std::map<ClientId, Pins::Holding> Pins::ReadPins(Tenant& tenant) {
  std::map<ClientId, Holding> holdings;
  Holding* holding = nullptr;
  ClientId of_client = 0;
  At(tenant.id).floor = next_stamp_;
  const auto counts =
      tenant.index->ScanPins([&](ClientId client, std::span<const uint64_t> extents) {
        if (holding == nullptr || client != of_client) {
          holding = &holdings[client];
          of_client = client;
          ++next_stamp_;
        }
        for (size_t i = 0; i < extents.size(); ++i) {
          // Pins lie anywhere in memory: what is stamped next is fetched meanwhile.
          if (i + kPrefetchAhead < extents.size()) {
            const auto ahead = slabs_.FindSlot(tenant.id, extents[i + kPrefetchAhead]);
            if (ahead) ahead->slab->PrefetchStamp(ahead->index);
          }
          const std::optional<SlotRef> slot = slabs_.FindSlot(tenant.id, extents[i]);
          if (slot && slot->slab->Stamp(slot->index, next_stamp_)) {
            holding->bytes += slot->slab->shape().page_bytes;
          }
        }
      });
  ++next_stamp_;
  for (const TenantIndex::ClientPins& count : counts)
    holdings[count.client].pins = count.pins;
  return holdings;
}

bool Pins::CutOverBudget(Tenant& tenant, const std::map<ClientId, Holding>& holdings) {
  bool any = false;
  for (const auto& [id, holding] : holdings) {
    Client* client = clients_.Find(id);
    if (client == nullptr || client->cut) continue;
    const ClientGiven& given = client->given;
    if (holding.pins <= given.max_pins && holding.bytes <= given.max_pinned_bytes) continue;
    client->cut_why = "it had " + std::to_string(holding.pins) + " pins on " +
                      std::to_string(holding.bytes) + " bytes, its budget is " +
                      std::to_string(given.max_pins) + " pins on " +
                      std::to_string(given.max_pinned_bytes) + " bytes";
    client->cut = true;
    client->pins = 0;
    client->pinned_bytes = 0;
    tenant.index->RemoveChannel(id);
    cut_.emplace_back(id, Status(Code::kExhausted, client->cut_why));
    any = true;
  }
  return any;
}

uint64_t Pins::total() const {
  uint64_t pins = 0;
  for (const OfTenant& of : tenants_)
    pins += of.pins;
  return pins;
}

void Pins::AddLimbo(SlotRef slot) {
  TERRACE_CHECK(slot->state == SlotState::kLimbo);
  At(slot.slab->tenant()).limbo.push_back(slot);
}

// Each page is freed once, and those that stay are at most as many as the pins just read and the
// transfers under way.
void Pins::FreeLimbo(OfTenant& of) {
  std::erase_if(of.limbo, [&](const SlotRef& slot) {
    if (Pinned(slot) || slot->transfers > 0 || slot->holds > 0) return false;
    slabs_.Free(slot);
    return true;
  });
}

void Pins::ScanIfDue(TenantId tenant) {
  const OfTenant& of = At(tenant);
  const MonotonicNs interval = kScanMinNs + kScanNsPerPin * static_cast<MonotonicNs>(of.pins);
  if (clock_.Now() >= of.scanned + interval) Scan(tenant);
}

void Pins::TurnLimbo() {
  for (TenantId tenant = 1; tenant < tenants_.size(); ++tenant) {
    if (!tenants_[tenant].limbo.empty()) ScanIfDue(tenant);
  }
}

void Pins::SettleLimbo() {
  for (TenantId tenant = 1; tenant < tenants_.size(); ++tenant) {
    if (!tenants_[tenant].limbo.empty()) Scan(tenant);
  }
}

uint64_t Pins::limbo_pages() const {
  uint64_t pages = 0;
  for (const OfTenant& of : tenants_)
    pages += of.limbo.size();
  return pages;
}

}  // namespace terrace
