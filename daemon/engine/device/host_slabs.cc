#include "daemon/engine/device/host_slabs.h"

#include <utility>

namespace terrace {

void HostSlabs::Use(ArenaId slab, uint64_t bytes, Ready ready) {
  const auto [found, added] = known_.try_emplace(slab);
  if (found->second.there) return ready({});
  found->second.waiting.push_back(std::move(ready));
  if (!added) return;
  Result<UniqueFd> file = host_.Descriptor(slab, Protection::kReadWrite);
  if (!file) return Came(slab, file.error());
  device_.tier().AddHost(slab, bytes, *std::move(file), Protection::kReadWrite,
                         Registration::kNever, device_.Deadline(),
                         [this, slab, alive = std::weak_ptr(alive_)](const Status& status) {
                           if (!alive.expired()) Came(slab, status);
                         });
}

void HostSlabs::Came(ArenaId slab, const Status& status) {
  Known& known = known_.at(slab);
  const std::vector<Ready> waiting = std::exchange(known.waiting, {});
  known.there = status.ok();
  if (!status.ok()) {
    known_.erase(slab);
  } else if (known.gone) {
    Release(slab);
  }
  for (const Ready& ready : waiting)
    ready(status);
}

void HostSlabs::Gone(ArenaId slab) {
  const auto found = known_.find(slab);
  if (found == known_.end()) return;
  found->second.gone = true;
  if (found->second.there) Release(slab);
}

void HostSlabs::Release(ArenaId slab) {
  device_.tier().Release(slab, device_.Deadline(),
                         [this, slab, alive = std::weak_ptr(alive_)](const Status& status) {
                           if (alive.expired()) return;
                           const bool free = status.ok() || status.code() == Code::kNotFound;
                           if (!free) return retries_.push_back(slab);
                           known_.erase(slab);
                         });
}

void HostSlabs::Turn() {
  for (const ArenaId slab : std::exchange(retries_, {}))
    Release(slab);
}

}  // namespace terrace
