// Holds: pages that were fetched for clients and are not to leave memory before those have pinned
// them, for as long as they said they would wait.
//
// A hold is one client's on one slot, in memory or being filled. It ends when a scan finds the
// client's pin there, when the client's ring says that it was read, when its time is over, when the
// client or the page is gone. Owned by the engine; owner thread only. Limits: what a client holds
// is within its pin budget, pages and bytes; kExpiredATurn end a turn because their time is over.
#pragma once

#include <cstdint>
#include <map>
#include <set>
#include <tuple>
#include <unordered_map>
#include <vector>

#include "base/clock.h"
#include "base/status.h"
#include "daemon/engine/clients.h"
#include "daemon/engine/placement/slab.h"

namespace terrace {

class Holds {
 public:
  static constexpr size_t kExpiredATurn = 4096;

  // False, and nothing changed, if the client's budget has no place for the page.
  bool Hold(const ClientGiven& client, SlotRef slot, MonotonicNs until);
  bool Waiting(ClientId client) const { return of_client_.contains(client); }
  void Release(ClientId client, uint64_t extent);
  // Nobody holds the slot any more.
  void Forget(SlotRef slot);
  // Who held the one holds the other.
  void Move(SlotRef from, SlotRef to);
  void ClientGone(ClientId client);
  void Turn(MonotonicNs now);

  uint64_t count() const { return expiries_.size(); }
  uint64_t bytes() const { return bytes_; }

 private:
  struct Held {
    SlotRef slot;
    std::map<ClientId, MonotonicNs> until;
  };
  struct OfClient {
    uint64_t bytes = 0;
    std::set<uint64_t> extents;
  };
  static uint64_t ExtentOf(SlotRef slot) {
    return shm::ExtentOf(shm::MakeHandle(slot.slab->arena(), slot.index, 0));
  }

  std::unordered_map<uint64_t, Held> held_;  // By extent.
  std::map<ClientId, OfClient> of_client_;   // Of those that hold something.
  std::set<std::tuple<MonotonicNs, ClientId, uint64_t>> expiries_;
  uint64_t bytes_ = 0;
};

}  // namespace terrace
