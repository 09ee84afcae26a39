// HostSlabs: the host's slabs that the tier of a device knows, for copies between their pages and
// the device's. A slab is made known by the first copy that names it, and released when host memory
// gives it up. It is not registered: that would fill the holes that host memory punches, so copies
// go through the tier's staging. Owned by PagesOnDevice; owner thread only.
#pragma once

#include <functional>
#include <memory>
#include <unordered_map>
#include <vector>

#include "base/status.h"
#include "daemon/engine/device/device_arenas.h"
#include "tiers/tier.h"

namespace terrace {

class HostSlabs {
 public:
  HostSlabs(DeviceArenas& device, HostTier& host) : device_(device), host_(host) {}

  using Ready = std::function<void(Status)>;
  // `ready` comes when copies may name the slab, perhaps before this returns. Its pages that they
  // name keep the slab until then.
  void Use(ArenaId slab, uint64_t bytes, Ready ready);
  // Host memory has no such slab any more, and no copy names it.
  void Gone(ArenaId slab);
  // Releases that the tier could not take.
  void Turn();
  size_t count() const { return known_.size(); }

 private:
  struct Known {
    bool there = false;
    bool gone = false;
    std::vector<Ready> waiting;
  };
  void Came(ArenaId slab, const Status& status);
  void Release(ArenaId slab);

  DeviceArenas& device_;
  HostTier& host_;
  std::unordered_map<ArenaId, Known> known_;
  std::vector<ArenaId> retries_;
  std::shared_ptr<char> alive_ = std::make_shared<char>();  // Completions hold it weakly.
};

}  // namespace terrace
