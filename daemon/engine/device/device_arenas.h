// DeviceArenas: the memory of one GPU: its budget, and the arenas that it pays for, from the asking
// for them until nobody can touch them any more.
//
// Memory of a device cannot be taken back from who maps it. So an arena that is given up is first
// asked back from every client that was given it (TakeWanted), then released to the tier when the
// last of them has let go, or is gone, and free when the tier has released it. Past the deadline
// what is still mapped is a zombie: counted, and of no use, until then. It knows nothing of pages,
// weights and policies. Owned by the engine; owner thread only.
//
// Limits: kMostArenas; of each arena, one record a client that maps it.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <unordered_map>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "base/status.h"
#include "daemon/engine/client_verbs.h"
#include "daemon/engine/device_verbs.h"
#include "daemon/engine/engine_options.h"
#include "tiers/device_tier.h"

namespace terrace {

// Numbers for arenas of devices, beside those of host arenas.
class DeviceArenaNumbers {
 public:
  // 0: there are no more.
  ArenaId NextSlab() { return next_slab_ > kLastDeviceSlabId ? 0 : next_slab_++; }
  ArenaId NextBlock() { return next_block_ == 0 ? 0 : next_block_++; }

 private:
  ArenaId next_slab_ = kFirstDeviceSlabId;
  ArenaId next_block_ = kFirstDeviceBlockId;  // Wraps to 0.
};

class DeviceArenas {
 public:
  static constexpr size_t kMostArenas = 32'768;

  enum class Use : uint8_t { kPages, kWeights };
  struct Parts {
    uint32_t device = 0;
    DeviceTier* tier = nullptr;
    const Clock* clock = nullptr;
    DeviceArenaNumbers* numbers = nullptr;
  };
  DeviceArenas(const DeviceOptions& options, const Parts& parts);

  uint32_t device() const { return parts_.device; }
  DeviceTier& tier() const { return *parts_.tier; }
  const DeviceOptions& options() const { return options_; }
  // Of what is asked of the tier now.
  MonotonicNs Deadline() const;
  // What sizes are rounded up to; 0 before the tier has said so.
  uint64_t Rounded(uint64_t bytes) const;

  // ---- Budget
  const DeviceBytes& bytes() const { return bytes_; }
  // Of `bytes`, what each tenant's own arenas are charged for. 0: those of weights.
  const std::map<TenantId, uint64_t>& bytes_of_tenants() const { return tenant_bytes_; }
  uint64_t capacity() const { return options_.capacity_bytes; }
  uint64_t room() const { return bytes_.used() < capacity() ? capacity() - bytes_.used() : 0; }
  // What of `room` another's floor leaves to this use.
  uint64_t RoomFor(Use use) const;
  // And what it would be if nothing else were there.
  uint64_t MostFor(Use use) const;
  // Of what is charged, what comes back by itself: it is being released, or clients have until
  // their deadline to let go of it. O(arenas).
  uint64_t OnItsWay() const;

  // ---- Arenas
  // Memory of `bytes`, rounded up, charged at once; of one tenant (0: of weights, which several may
  // map). `done` comes when it can be used (it is all zeros), or could not be had: then it is
  // charged no more and its number means nothing. `exhausted`: no room, or no number.
  Result<ArenaId> Create(uint64_t bytes, TenantId tenant, Use use,
                         std::function<void(Status)> done);
  // It is needed no more, and no work that names it is under way; also of one that is coming, whose
  // `done` then does not come.
  void Release(ArenaId arena);
  bool Ready(ArenaId arena) const;
  // What of it clients map it by; null: it is not there.
  const DeviceMemory* MemoryOf(ArenaId arena) const;
  uint64_t BytesOf(ArenaId arena) const;

  // ---- Who maps it
  // The client is given it once more. False: it is not there, or was asked back.
  bool Give(ArenaId arena, ClientId client);
  // It has let go of it once; nothing if it was not given it.
  void LetGo(ArenaId arena, ClientId client);
  // Arenas of pages, however often it was given each; those of weights are let go of by Detach.
  void CountGivenOnce(ClientId client);
  void ClientGone(ClientId client);
  bool Mapped(ArenaId arena) const;
  std::vector<ClientId> GivenTo(ArenaId arena) const;

  // Its memory is gone, by the tier's word: it stays charged until Release, which asks nobody.
  void Lost(ArenaId arena);

  // Deadlines, and releases that the tier could not take; true if more is waiting.
  bool Turn();
  // Whom to ask for which arenas of pages, once each. Those of weights are asked for by their
  // attachments (DeviceWeights).
  std::map<ClientId, std::vector<ArenaId>> TakeWanted();
  // What this client was asked for, or will be, and has not let go of. O(arenas).
  struct Leaving {
    std::vector<ArenaId> arenas;
    MonotonicNs deadline = 0;  // Of the first.
  };
  Leaving LeavingOf(ClientId client) const;

  uint64_t zombie_arenas() const { return zombies_; }
  uint64_t unmap_requests() const { return unmap_requests_; }
  // Recounts what the counters say; an error names the first difference.
  Status CheckInvariants() const;

 private:
  enum class State : uint8_t {
    kComing,  // The tier makes it.
    kReady,
    kCancelled,  // Given up while it was coming.
    kLeaving,    // Given up; clients map it.
    kZombie,     // Likewise, and their deadline passed.
    kReleasing,  // The tier gives it back.
  };
  struct Arena {
    uint64_t bytes = 0;
    TenantId tenant = 0;
    Use use = Use::kPages;
    State state = State::kComing;
    bool lost = false;
    DeviceMemory memory;
    std::map<ClientId, uint32_t> given;  // How often.
    MonotonicNs deadline = 0;            // While it is leaving.
    std::function<void(Status)> done;    // While it is coming.
  };
  uint64_t& Counter(const Arena& arena);
  void SetState(Arena& arena, State state);
  void Came(ArenaId id, Result<DeviceMemory> memory);
  void Forget(ArenaId id);
  void ReleaseToTier(ArenaId id, Arena& arena);

  const DeviceOptions options_;
  const Parts parts_;
  std::unordered_map<ArenaId, Arena> arenas_;
  std::set<std::pair<MonotonicNs, ArenaId>> deadlines_;  // Of those that are leaving.
  std::vector<ArenaId> retries_;                         // Releases that failed.
  std::map<ClientId, std::vector<ArenaId>> wanted_;
  DeviceBytes bytes_;
  std::map<TenantId, uint64_t> tenant_bytes_;  // None is 0.
  uint64_t zombies_ = 0;
  uint64_t unmap_requests_ = 0;
  std::shared_ptr<char> alive_ =
      std::make_shared<char>();  // The tier's completions hold it weakly.
};

}  // namespace terrace
