// The host tier: arenas of host memory as memfds (tiers/tier.h, HostTier), and a reserve of blank
// ones that the threads of a worker pool fill in advance.
//
// An arena costs one descriptor and one mapping of the daemon. Ids are given out once: after
// `max_slab_id` slabs, or some four thousand million blocks, Create answers `exhausted` until the
// daemon is restarted.
//
// Who can reach the memory: the memfds have no name, mode 0600 and seals. A process of the daemon's
// own uid can still reopen a slab for writing through its /proc/self/fd; one of another uid cannot,
// and nobody can a sealed block.
#pragma once

#include <cstddef>
#include <memory>

#include "base/executor.h"
#include "base/status.h"
#include "base/worker_pool.h"
#include "tiers/host/host_system.h"
#include "tiers/tier.h"

namespace terrace {

struct HostTierOptions {
  // A multiple of 4096. Multiples of 2 MiB go on huge pages whole.
  size_t blank_bytes = 64u << 20;
  bool huge_pages = true;   // Take them by every means that works.
  bool lock_memory = true;  // mlock what is populated, where allowed.
  ArenaId max_slab_id = kLastSlabId;
  HostSystem* system = nullptr;  // Null: the kernel's. Outlives the pool.
};

// Blanks are made on `pool` (at most one a thread at once; best a pool of low priority) and arrive
// through `owner`; both outlive the tier. Made, used and destroyed on the owner thread.
Result<std::unique_ptr<HostTier>> MakeHostTier(const HostTierOptions& options, Executor& owner,
                                               WorkerPool& pool);

}  // namespace terrace
