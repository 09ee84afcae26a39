#include "daemon/engine/store/holds.h"

#include <algorithm>

namespace terrace {

bool Holds::WithinBudget(const Client& client, uint64_t pages, uint64_t bytes) const {
  const auto of = of_client_.find(client.given.id);
  if (of != of_client_.end()) {
    pages += of->second.extents.size();
    bytes += of->second.bytes;
  }
  return client.pins + pages <= client.given.max_pins &&
         client.pinned_bytes + bytes <= client.given.max_pinned_bytes;
}

bool Holds::Hold(ClientId id, SlotRef slot, MonotonicNs until) {
  const auto held = held_.find(ExtentOf(slot));
  if (held != held_.end()) {
    const auto told = held->second.until.find(id);
    if (told != held->second.until.end()) {
      const MonotonicNs later = std::max(until, told->second);
      Release(id, slot);
      Add(id, slot, later);
      return true;
    }
  }
  const auto client = clients_.all().find(id);
  if (client == clients_.all().end()) return false;
  if (!WithinBudget(client->second, 1, slot.slab->shape().page_bytes)) return false;
  Add(id, slot, until);
  return true;
}

void Holds::Add(ClientId client, SlotRef slot, MonotonicNs until) {
  const uint64_t extent = ExtentOf(slot);
  const uint32_t bytes = slot.slab->shape().page_bytes;
  Held& held = held_[extent];
  held.slot = slot;
  held.until.emplace(client, until);
  OfClient& of = of_client_[client];
  of.bytes += bytes;
  of.extents.emplace(until, extent);
  expiries_.emplace(until, client, extent);
  bytes_ += bytes;
  ++slot->holds;
}

void Holds::Release(ClientId client, uint64_t extent) {
  const auto found = held_.find(extent);
  if (found == held_.end()) return;
  Held& held = found->second;
  const auto until = held.until.find(client);
  if (until == held.until.end()) return;
  const uint32_t bytes = held.slot.slab->shape().page_bytes;
  expiries_.erase({until->second, client, extent});
  OfClient& of = of_client_.at(client);
  of.bytes -= bytes;
  of.extents.erase({until->second, extent});
  if (of.extents.empty()) of_client_.erase(client);
  bytes_ -= bytes;
  --held.slot->holds;
  held.until.erase(until);
  if (held.until.empty()) held_.erase(found);
}

void Holds::Forget(SlotRef slot) {
  const uint64_t extent = ExtentOf(slot);
  while (true) {
    const auto found = held_.find(extent);
    if (found == held_.end()) return;
    Release(found->second.until.begin()->first, extent);
  }
}

void Holds::Move(SlotRef from, SlotRef to) {
  const auto found = held_.find(ExtentOf(from));
  if (found == held_.end()) return;
  for (const auto& [client, until] : std::map<ClientId, MonotonicNs>(found->second.until)) {
    Release(client, from);
    // What was charged was given back a moment ago: this is within the budget. Who holds the other
    // one too has nothing to be charged for.
    (void)Hold(client, to, until);
  }
}

void Holds::GiveWay(const Client& client) {
  while (!WithinBudget(client, 0, 0)) {
    const auto of = of_client_.find(client.given.id);
    if (of == of_client_.end()) return;
    Release(client.given.id, of->second.extents.begin()->second);
  }
}

void Holds::ClientGone(ClientId client) {
  while (true) {
    const auto of = of_client_.find(client);
    if (of == of_client_.end()) return;
    Release(client, of->second.extents.begin()->second);
  }
}

void Holds::Turn(MonotonicNs now) {
  for (size_t i = 0; i < kExpiredATurn && !expiries_.empty(); ++i) {
    const auto [until, client, extent] = *expiries_.begin();
    if (until > now) return;
    Release(client, extent);
  }
}

}  // namespace terrace
