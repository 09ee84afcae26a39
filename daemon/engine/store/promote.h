// Promote: how pages come from the store back into memory.
//
// A request names a chain's prefix. What is in memory is held for its client; what is stored gets a
// slot, as a grant would, and is read straight into it: one flight a page, however many wait for
// it. When the bytes have checked out, and space and generation are still those of the page, it is
// linked and stays for those who wait until they have looked it up or their time is over (Holds). A
// flight that is overdue answers who waits; its slot stays out of use until the device has let go
// of the memory, and counts as memory that is being read, but not against what may be read: a
// device that hangs keeps nobody from others, and itself has a bound on what it is given. Owned by
// the engine; owner thread only.
//
// Limits: kMaxRequests, kMaxRequestsOfClient, kMaxWaiters; pages and bytes being read as in
// StoreOptions, beyond which keys wait until others have been read or their deadline passes; memory
// for kStepBytes of pages is got in one step, the next in the next turn. Clients whose requests
// wait have their steps in turn, and none gets more than half of what may be read while others
// wait.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <unordered_map>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "base/status.h"
#include "daemon/engine/clients.h"
#include "daemon/engine/durations.h"
#include "daemon/engine/placement/placement.h"
#include "daemon/engine/placement/residents.h"
#include "daemon/engine/store/holds.h"
#include "daemon/engine/store/spill.h"
#include "daemon/engine/store/stored.h"
#include "daemon/engine/store/worth.h"

namespace terrace {

// A stored page, and what it is called in memory.
struct StoredItem {
  TenantId tenant = 0;
  PageName name;
  ItemId id = 0;
};

class Promote {
 public:
  static constexpr size_t kMaxRequests = 4096;
  static constexpr size_t kMaxRequestsOfClient = 32;
  static constexpr size_t kMaxWaiters = 4096;  // Of a flight, those that gave up included.
  static constexpr uint64_t kStepBytes = kGrantStepBytes;

  Promote(const StoreOptions& options, const StoreParts& parts, Residents& residents,
          Placement& placement, Holds& holds);

  using Done = std::function<void(Result<Prefetched>)>;
  // The client has the space open, and the spec is within its limits.
  void Prefetch(const Client& client, const Space& space, const PrefetchSpec& spec, Done done);
  // Pages that are brought up for nobody, into memory that is free.
  struct Raised {
    size_t under_way = 0;
    Amount landed;
  };
  // Begins with pages that are stored, not in memory and not in flight, in their order, until one
  // finds no free memory; how many those are.
  size_t Raise(std::span<const StoredItem> pages, const std::shared_ptr<Raised>& raised);
  // What may be raised now: half of what may be read is left to those who ask, but for a page.
  Amount RoomToRaise() const {
    const uint64_t pages = options_.max_reading_pages / 2;
    const uint64_t bytes = options_.max_reading_bytes / 2;
    return {.extents = pages - std::min(pages, awaited_.extents),
            .bytes = bytes - std::min(bytes, awaited_.bytes)};
  }
  bool InFlight(ItemId id) const { return flights_.contains(id); }
  // Its requests are answered.
  void ClientGone(ClientId client);
  // Deadlines, and what did not fit into one step; true if more is waiting.
  bool Turn();

  // ---- Figures
  const Amount& promoted() const { return promoted_; }
  const Durations& times() const { return times_; }
  const std::array<uint64_t, kReadFaults>& faults() const { return faults_; }
  uint64_t stale_reads() const { return stale_reads_; }
  uint64_t asked_keys() const { return asked_keys_; }
  uint64_t found_in_memory() const { return found_in_memory_; }
  uint64_t reading_pages() const { return flights_.size(); }
  uint64_t reading_bytes() const { return reading_bytes_; }
  uint64_t requests() const { return requests_.size(); }
  const FetchSpeed& speed() const { return speed_; }
  Status CheckInvariants() const;

 private:
  using RequestId = uint64_t;
  struct Request {
    ClientId client = 0;
    TenantId tenant = 0;
    uint32_t space_slot = 0;
    uint32_t space_epoch = 0;
    uint32_t part = 0;
    std::vector<Digest> keys;  // Those worth having.
    size_t next = 0;           // The first of them that nothing was done about.
    size_t waiting = 0;        // In flight.
    MonotonicNs deadline = 0;
    Prefetched answer;
    Done done;
  };
  struct Flight {
    ClientId client = 0;  // For whom it was begun.
    SlotRef slot;
    TenantId tenant = 0;
    PageName name;
    std::vector<std::pair<RequestId, size_t>> waiters;  // And which of its keys.
    std::shared_ptr<Raised> raised;                     // Null: somebody asked for it.
    bool answered = false;                              // With a fault, and not ended.
    bool awaited = true;                                // It counts against what may be read.
    ReadFault fault = ReadFault::kNone;
  };
  // One call of the store.
  struct Batch {
    std::vector<ItemId> ids;
    MonotonicNs began = 0;
    MonotonicNs first = 0;  // When the first page was there.
    uint64_t first_bytes = 0;
    uint64_t bytes = 0;
    size_t left = 0;     // Not answered,
    size_t unended = 0;  // and not ended.
    bool faulty = false;
  };
  // A client with requests, or for whom something is read.
  struct OfClient {
    size_t requests = 0;
    std::deque<RequestId> unfinished;  // With keys that nothing was done about.
    Amount awaited;                    // Of its flights.
  };

  Space* SpaceOf(TenantId tenant, uint32_t slot, uint32_t epoch) const;
  uint32_t FindPrefix(const Tenant& tenant, const Space& space, const PrefetchSpec& spec,
                      std::vector<PrefixPage>* pages) const;
  // Goes on with requests, client by client; true if more could be done in another step.
  bool Pump();
  // Whether one more page may be read for the client, in addition to some.
  bool HasRoom(ClientId client, size_t pages, uint64_t bytes, uint32_t page_bytes) const;
  // Goes on with the request's keys, as far as there is room; the bytes of memory it got.
  uint64_t Advance(RequestId id, Request& request);
  // What a key came to without a read; nullopt: it wants one, of that record.
  std::optional<Code> WithoutRead(const Tenant& tenant, const Space& space, RequestId id,
                                  Request& request, size_t index, ItemId* record);
  bool Wait(Request& request, size_t index, SlotRef slot);
  void Read(RequestId id, Request& request, const std::vector<std::pair<size_t, ItemId>>& wanted);
  Flight& Begin(SlotRef slot, const StoredItem& page);
  void Send(std::vector<ItemId> ids);
  void Answered(Batch& batch, ItemId id, ReadFault fault);
  void Measure(const Batch& batch);
  void Ended(Batch& batch, ItemId id);
  // The device owes nothing for the flight any more but to let go of its memory.
  void AwaitNoMore(Flight& flight);
  // Links what was read; what its waiters are told.
  Code Land(const Batch& batch, ItemId id, Flight& flight);
  void TellWaiters(std::vector<std::pair<RequestId, size_t>> waiters, Code code);
  // Nothing is left to be done about its keys.
  void RemoveUnfinished(ClientId client, RequestId id);
  void ForgetIfIdle(ClientId client);
  // Answers the request if nothing is left to wait for.
  void FinishIfDone(RequestId id);
  void Finish(RequestId id, Code rest);

  const StoreOptions options_;
  const StoreParts parts_;
  Residents& residents_;
  Placement& placement_;
  Holds& holds_;

  std::map<RequestId, Request> requests_;
  std::map<ClientId, OfClient> of_client_;
  std::set<ClientId> waiting_;  // With unfinished requests.
  ClientId served_ = 0;         // The last of them that had its turn.
  std::set<std::pair<MonotonicNs, RequestId>> deadlines_;
  RequestId last_request_ = 0;
  std::unordered_map<ItemId, Flight> flights_;
  uint64_t reading_bytes_ = 0;  // Of all flights,
  Amount awaited_;              // and those that count against what may be read.
  FetchSpeed speed_;
  Amount promoted_;
  Durations times_;
  std::array<uint64_t, kReadFaults> faults_ = {};
  uint64_t stale_reads_ = 0;
  uint64_t asked_keys_ = 0;
  uint64_t found_in_memory_ = 0;
};

}  // namespace terrace
