// Holds: pages that were fetched for clients and are not to leave memory before those have looked
// them up, for as long as they said they would wait.
//
// A hold is one client's on one slot, in memory or being filled. It ends when the client's ring
// says that it found the page after it had asked for it, when its time is over, when the client or
// the page is gone, or when the client pins so much else that both are over its budget. Pins of
// before end no hold, nor do records of before: the rings of a client are drained when it asks. Of
// one that has written thousands since they were drained last some are left, and may end a hold.
//
// Owned by the engine; owner thread only. Limits: what a client holds, and had pinned at the last
// scan, is within its pin budget, pages and bytes (who asks scans before it is refused for pins
// that are gone); kExpiredATurn end a turn because their time is over.
#pragma once

#include <cstdint>
#include <map>
#include <set>
#include <tuple>
#include <unordered_map>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "base/status.h"
#include "daemon/engine/clients.h"
#include "daemon/engine/placement/slab.h"

namespace terrace {

class Holds {
 public:
  static constexpr size_t kExpiredATurn = 4096;

  explicit Holds(const Clients& clients) : clients_(clients) {}

  // Whether the client's budget has a place for so much more.
  bool WithinBudget(const Client& client, uint64_t pages, uint64_t bytes) const;
  // False, and nothing changed, if it has none for the page.
  bool Hold(ClientId client, SlotRef slot, MonotonicNs until);
  void Release(ClientId client, SlotRef slot) { Release(client, ExtentOf(slot)); }
  // Nobody holds the slot any more.
  void Forget(SlotRef slot);
  // Who held the one holds the other.
  void Move(SlotRef from, SlotRef to);
  // What is over the budget with the client's pins ends, the holds first whose time is over first.
  // What is both held and pinned counts twice, until its record is drained.
  void GiveWay(const Client& client);
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
    std::set<std::pair<MonotonicNs, uint64_t>> extents;  // By when their time is over.
  };
  static uint64_t ExtentOf(SlotRef slot) {
    return shm::ExtentOf(shm::MakeHandle(slot.slab->arena(), slot.index, 0));
  }
  void Add(ClientId client, SlotRef slot, MonotonicNs until);
  void Release(ClientId client, uint64_t extent);

  const Clients& clients_;
  std::unordered_map<uint64_t, Held> held_;  // By extent.
  std::map<ClientId, OfClient> of_client_;   // Of those that hold something.
  std::set<std::tuple<MonotonicNs, ClientId, uint64_t>> expiries_;
  uint64_t bytes_ = 0;
};

}  // namespace terrace
