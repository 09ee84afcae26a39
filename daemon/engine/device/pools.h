// Pools: memory of one device that engines own and have KV blocks in, and the copies between those
// and pages: for engines that keep a pool of their own.
//
// A pool is imported to the tier under an arena number of its own, which is also the pool's. It is
// one client's, and leaves when that removes it or is gone, after the work that uses it.
//
// A store takes slots on the device as memory for them comes, gathers blocks into them, and links
// the pages: nothing is found that was not gathered whole, and nothing of a client that is gone. A
// fetch has the pages brought by DeviceFetch, which holds them, and scatters them; while they are
// scattered they stay where they are. A request has one copy under way; the next step follows it.
//
// Bytes of other pages than those that were answered `ok` mean nothing. A pool that was lost (the
// device, or an allocation whose engine is gone) answers `stale` until it is removed.
//
// Owned by the engine; owner thread only. Limits: kMostPools; requests as DeviceFetch has them; of
// a step, kMostDeviceBlocks blocks and kStepBytes.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <utility>
#include <vector>

#include "daemon/engine/device/device_arenas.h"
#include "daemon/engine/device/device_fetch.h"
#include "daemon/engine/device/pages_on_device.h"

namespace terrace {

class Pools {
 public:
  static constexpr size_t kMostPools = 256;
  static constexpr size_t kMaxRequests = 1024;
  static constexpr size_t kMaxRequestsOfClient = 32;
  static constexpr uint64_t kStepBytes = 256u << 20;

  using Done = std::function<void(Result<std::vector<Code>>)>;
  struct Parts {
    Catalog& catalog;
    Slabs& slabs;
    const Clients& clients;
    PagesOnDevice& pages;
    DeviceFetch& fetch;
    DeviceArenas& arenas;
    DeviceArenaNumbers& numbers;
    const Clock& clock;
  };
  explicit Pools(const Parts& parts) : parts_(parts) {}

  // ---- Pools
  void Add(ClientId client, PoolSpec spec, std::function<void(Result<uint64_t>)> done);
  void Remove(ClientId client, uint64_t pool, std::function<void(Status)> done);
  // Whether it is the client's, and was not removed.
  bool Has(ClientId client, uint64_t pool) const;
  size_t CountOf(ClientId client) const;
  bool Lost(ArenaId arena);  // False: no pool of this device.
  void ClientGone(ClientId client);

  // ---- Pages. The client is served and has the space open; the pool is its own; a page of the
  // space's part has `page_bytes`.
  struct Work {
    const Client& client;
    const Space& space;
    const PoolPages& pages;
    uint32_t page_bytes = 0;
    MonotonicNs deadline = 0;  // Of waiting for memory and pages; a copy takes what it takes.
  };
  void Store(const Work& work, Done done);
  void Fetch(const Work& work, Done done);

  // Deadlines, and what waits for memory.
  void Turn();

  // Slots that are written.
  uint64_t filling() const { return filling_; }
  Status CheckInvariants() const;

 private:
  using RequestId = uint64_t;
  enum class State : uint8_t {
    kComing,  // The tier imports it.
    kReady,
    kLeaving,    // Removed; a copy uses it, or it is still coming.
    kReleasing,  // The tier gives it back.
  };
  struct Pool {
    ClientId client = 0;
    uint64_t bytes = 0;
    State state = State::kComing;
    bool lost = false;
    size_t copies = 0;  // Under way.
    std::function<void(Result<uint64_t>)> added;
    std::function<void(Status)> removed;  // May be empty.
  };
  struct Request {
    ClientId client = 0;
    TenantId tenant = 0;
    ArenaId pool = 0;
    bool store = false;
    PoolLayout layout;
    uint32_t slot = 0;
    uint32_t epoch = 0;
    uint32_t part = 0;
    std::vector<Digest> keys;
    std::vector<uint32_t> blocks;
    uint32_t blocks_per_page = 0;
    std::vector<uint32_t> valid_tokens;
    bool chain = false;
    Digest parent;
    uint32_t position = 0;
    uint32_t page_bytes = 0;
    uint32_t page_tokens = 0;
    uint32_t generation_index = 0;
    uint64_t generation = 0;  // When it was asked.
    MonotonicNs deadline = 0;
    std::vector<size_t>
        wanted;          // What is to be moved, by the number of its key; the next one last.
    bool waits = false;  // For pages to come to the device.
    bool moving = false;
    std::vector<Code> codes;
    Done done;
  };
  struct Moved {
    SlotRef slot;
    size_t index = 0;  // Of its key.
  };
  using Batch = std::vector<Moved>;

  Status CheckLayout(const Work& work) const;
  Result<RequestId> Begin(const Work& work, bool store, Done* done);
  PageName NameOf(const Request& request, size_t index) const;
  std::optional<SlotRef> FindAt(const Request& request, size_t index) const;
  // Blocks of the page that have tokens; the others are left as they are.
  uint32_t BlocksOf(const Request& request, uint32_t valid_tokens) const;
  size_t PagesOfStep(const Request& request) const;
  // Goes on with what is wanted, as far as there is memory.
  void Advance(RequestId id);
  Batch TakeSlots(Request& request);
  Batch TakePages(Request& request);
  void Move(RequestId id, Batch batch);
  void Ended(RequestId id, const Batch& batch, const Status& status);
  Code Land(const Request& request, const Moved& page);
  // Whether what was begun may still be finished.
  Code Compare(const Request& request) const;
  void Finish(RequestId id, const Status& status);
  void Leave(ArenaId id);
  void Release(ArenaId id);

  const Parts parts_;
  std::map<ArenaId, Pool> pools_;
  std::vector<ArenaId> retries_;  // Releases that failed.
  std::map<RequestId, Request> requests_;
  RequestId last_request_ = 0;
  uint64_t filling_ = 0;
  std::shared_ptr<char> alive_ = std::make_shared<char>();  // Completions hold it weakly.
};

}  // namespace terrace
