// What the engine's verbs take and answer: memory of GPUs. A `device` is the number of one, from 1;
// 0 is host memory.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "base/digest.h"
#include "base/status.h"
#include "base/unique_fd.h"
#include "daemon/engine/tenant_index.h"
#include "tiers/device_tier.h"
#include "tiers/extent.h"

namespace terrace {

// What a client is asked to unmap, or told that it lost.
struct UnmapRequest {
  uint32_t device = 0;
  std::vector<ArenaId> arenas;        // Of pages.
  std::vector<uint64_t> attachments;  // Of weights on the device: to be detached.
  uint32_t deadline_ms = 0;           // Until what is still mapped counts as a zombie.
  bool lost = false;  // The memory is gone: nothing of it may be used, also where it is mapped.
};

// In place of a number, of whoever leaves the choice to the engine.
inline constexpr uint32_t kAnyDevice = UINT32_MAX;

inline constexpr size_t kMaxPools = 16;  // Of a client.

// Memory of the device that an engine owns, and has KV blocks in (kernels/paged_copy.h).
struct PoolSpec {
  uint32_t device = 0;
  uint64_t bytes = 0;
  UniqueFd slab;          // Of a slab; or invalid, and
  DeviceHandle handle{};  // the handle of an allocation.
};
// Where blocks lie in a pool: segment s of block b at bases[s] + b * block_stride.
struct PoolLayout {
  std::vector<uint64_t> bases;  // From the pool's begin.
  uint64_t block_stride = 0;
  uint64_t block_bytes = 0;  // Of one segment.
  bool page_first = false;   // Order of a page's blocks: [block][segment], else [segment][block].
};
struct PoolPages {
  uint64_t pool = 0;
  PoolLayout layout;
  uint32_t slot = 0;
  uint32_t epoch = 0;
  uint32_t part = 0;
  std::span<const Digest> keys;
  // `blocks_per_page` for each key: the blocks that make the page.
  std::span<const uint32_t> blocks;
  uint32_t blocks_per_page = 0;
  std::span<const uint32_t> valid_tokens;  // One a key; empty: all are full. For storing.
  bool chain = false;                      // As in GrantSpec; for storing.
  Digest parent = {};
  uint32_t position = 0;
  uint32_t deadline_ms = 0;
};

// What is resident on a device, by what it is for. Bytes are charged from the asking for memory
// until nobody can touch it any more.
struct DeviceBytes {
  uint64_t weights = 0;
  uint64_t pages = 0;    // Slabs, whole.
  uint64_t leaving = 0;  // Given up here, and still mapped by clients who were asked to unmap,
  uint64_t zombies = 0;  // or who let the deadline pass.
  uint64_t used() const { return weights + pages + leaving + zombies; }
};

struct GpuReport {
  uint32_t device = 0;
  std::string kind;
  uint64_t capacity_bytes = 0;
  std::vector<std::string> tenants;  // Whose memory lies on it; empty: everybody's.
  DeviceBytes bytes;
  // Of `bytes`, slabs of pages by their tenant; who has none is left out.
  std::map<std::string, uint64_t> tenant_bytes;
  uint64_t zombie_arenas = 0;
  // Of slabs of pages: extents by state.
  uint64_t linked_pages = 0;
  uint64_t linked_bytes = 0;
  uint64_t granted_bytes = 0;
  uint64_t limbo_bytes = 0;
  uint64_t filling_bytes = 0;
  uint64_t free_bytes = 0;
  // Since the start.
  uint64_t promoted_pages = 0;  // From host memory,
  uint64_t promoted_bytes = 0;
  uint64_t demoted_pages = 0;  // and to it.
  uint64_t demoted_bytes = 0;
  uint64_t evicted_pages = 0;  // Without loss: host memory or the store has them, or not.
  uint64_t lost_pages = 0;     // With memory that was lost.
  uint64_t loaded_bytes = 0;   // Weights, from host memory.
  uint64_t evicted_blocks = 0;
  uint64_t unmap_requests = 0;
  std::string policy;
  DeviceTierReport tier;
};

}  // namespace terrace
