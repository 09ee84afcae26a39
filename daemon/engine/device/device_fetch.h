// DeviceFetch: how pages come to the memory of one device: out of host memory, where those that are
// only stored are brought first (`below`).
//
// One copy a page, however many wait for it. While it runs its source stays where it is; when it
// ends everything is compared again, and the page is linked in the device's memory and held there
// for those who asked, as Holds does for host memory. Owned by the engine; owner thread only.
// Completions may come before Fetch returns.
//
// Limits: kMaxRequests, of a client kMaxRequestsOfClient: `exhausted`; kMostFlights pages under
// way: the others wait. What is not there by its deadline is answered so, and comes later.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <tuple>
#include <utility>
#include <vector>

#include "daemon/engine/device/pages_on_device.h"
#include "daemon/engine/store/holds.h"

namespace terrace {

class DeviceFetch final : public PageWatcher {
 public:
  static constexpr size_t kMaxRequests = 1024;
  static constexpr size_t kMaxRequestsOfClient = 32;
  static constexpr size_t kMostFlights = 256;

  using Done = std::function<void(Result<Prefetched>)>;
  struct Parts {
    Catalog& catalog;
    Slabs& slabs;
    const Clients& clients;
    PagesOnDevice& pages;
    Placement& placement;
    Pins& pins;
    DeviceArenas& arenas;
    const Clock& clock;
    // Brings pages into host memory, by their names there.
    std::function<void(ClientId, const PrefetchSpec&, Done)> below;
  };
  explicit DeviceFetch(const Parts& parts) : parts_(parts), holds_(parts.clients) {}

  // The client has the space open, and the spec is within its limits.
  void Fetch(const Client& client, const PrefetchSpec& spec, MonotonicNs deadline, Done done);
  // The page is gone from the device's memory: nobody holds it.
  void Dropped(SlotRef slot) { holds_.Forget(slot); }
  // The client has what it wanted of the page.
  void Release(ClientId client, SlotRef slot) { holds_.Release(client, slot); }
  void ClientGone(ClientId client);
  // Deadlines, and what waits for memory.
  void Turn();

  // ---- PageWatcher
  void Scanned(const Client& client) override { holds_.GiveWay(client); }
  void Told(TenantId tenant, const TenantIndex::RingVisit& visit) override;

  const Amount& promoted() const { return promoted_; }
  // Slots of host memory that are read, and of the device that are written.
  uint64_t transfers() const { return flights_.size(); }
  Status CheckInvariants() const;

 private:
  using RequestId = uint64_t;
  struct Request {
    ClientId client = 0;
    TenantId tenant = 0;
    PrefetchSpec spec;  // Its keys are those below.
    std::vector<Digest> keys;
    std::vector<size_t> wanted;  // In host memory, by its word; the next one last.
    size_t waiting = 0;          // In flight.
    bool asked_below = false;    // And not answered.
    MonotonicNs deadline = 0;
    Prefetched answer;
    Done done;
  };
  using Key = std::tuple<TenantId, uint32_t, uint32_t, uint32_t, Digest>;
  struct Flight {
    SlotRef from;
    SlotRef to;
    uint32_t sequence = 0;  // Of the source's stay.
    PageName name;
    PageFacts facts;
    std::vector<std::pair<RequestId, size_t>> waiters;  // And which of its keys.
  };
  struct Batch {
    std::vector<Key> flights;
    size_t waits = 0;  // For slabs of the host.
    Status status;
  };

  PageName NameOf(const Request& request, size_t index, uint32_t place) const;
  std::optional<SlotRef> FindAt(TenantId tenant, const PageName& name) const;
  void Below(RequestId id, const Result<Prefetched>& found, const std::vector<size_t>& asked);
  // Goes on with what is wanted, as far as there is memory.
  void Advance(RequestId id);
  // What came of a key without a flight of its own; nullopt: it wants one.
  std::optional<Code> WithoutFlight(RequestId id, Request& request, size_t index);
  bool Wait(Request& request, size_t index, SlotRef slot);
  void Send(std::shared_ptr<Batch> batch);
  void Copy(const std::shared_ptr<Batch>& batch);
  void Ended(const Key& key, const Status& status);
  Code Land(Flight& flight);
  void FinishIfDone(RequestId id);
  void Finish(RequestId id, Code rest);

  const Parts parts_;
  Holds holds_;
  std::map<RequestId, Request> requests_;
  std::map<ClientId, size_t> requests_of_;
  std::set<std::pair<MonotonicNs, RequestId>> deadlines_;
  RequestId last_request_ = 0;
  std::map<Key, Flight> flights_;
  Amount promoted_;
  std::shared_ptr<char> alive_ = std::make_shared<char>();  // Completions hold it weakly.
};

}  // namespace terrace
