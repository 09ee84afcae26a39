#include "daemon/engine/store/holds.h"

#include <algorithm>
#include <utility>

namespace terrace {

bool Holds::Hold(const ClientGiven& client, SlotRef slot, MonotonicNs until) {
  const uint64_t extent = ExtentOf(slot);
  const uint32_t bytes = slot.slab->shape().page_bytes;
  const auto of = of_client_.find(client.id);
  if (of == of_client_.end() || !of->second.extents.contains(extent)) {
    const uint64_t pages_held = of == of_client_.end() ? 0 : of->second.extents.size();
    const uint64_t bytes_held = of == of_client_.end() ? 0 : of->second.bytes;
    if (pages_held >= client.max_pins || bytes_held + bytes > client.max_pinned_bytes) return false;
    OfClient& charged = of_client_[client.id];
    charged.bytes += bytes;
    charged.extents.insert(extent);
    Held& held = held_[extent];
    held.slot = slot;
    held.until.emplace(client.id, until);
    expiries_.emplace(until, client.id, extent);
    ++slot->holds;
    bytes_ += bytes;
    return true;
  }
  MonotonicNs& told = held_.at(extent).until.at(client.id);
  if (until > told) {
    expiries_.erase({told, client.id, extent});
    expiries_.emplace(until, client.id, extent);
    told = until;
  }
  return true;
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
  of.extents.erase(extent);
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
  const uint64_t extent = ExtentOf(from);
  const auto found = held_.find(extent);
  if (found == held_.end()) return;
  for (const auto& [client, until] : std::map<ClientId, MonotonicNs>(found->second.until)) {
    Release(client, extent);
    // What was charged was given back a moment ago: this is within the budget.
    Hold({.id = client, .max_pins = UINT32_MAX, .max_pinned_bytes = UINT64_MAX}, to, until);
  }
}

void Holds::ClientGone(ClientId client) {
  while (true) {
    const auto of = of_client_.find(client);
    if (of == of_client_.end()) return;
    Release(client, *of->second.extents.begin());
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
