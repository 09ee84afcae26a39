// What the engine says about itself: plain values that the service turns into JSON.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/digest.h"
#include "daemon/engine/figures.h"
#include "daemon/engine/layout.h"
#include "daemon/engine/tenant_index.h"
#include "tiers/tier.h"

namespace terrace {

// Promise 6: used_bytes is the sum over extents; hits by tier + misses = lookups.
struct StatusReport {
  uint64_t host_capacity_bytes = 0;
  uint64_t used_bytes = 0;     // Resident in slabs and blocks: the sum of the next six.
  uint64_t linked_bytes = 0;   // Pages that can be found.
  uint64_t granted_bytes = 0;  // Being written, abandoned grants included.
  uint64_t limbo_bytes = 0;    // Invalidated, still pinned or in transfer.
  uint64_t filling_bytes = 0;  // Being read from the store.
  uint64_t free_bytes = 0;     // Resident slots without a page.
  uint64_t block_bytes = 0;    // Weights.
  uint64_t held_gone_bytes =
      0;  // Of block_bytes: unloaded or removed blocks that clients still hold.
  uint64_t pages = 0;
  uint64_t grants = 0;
  uint64_t abandoned_grants = 0;
  uint64_t limbo_pages = 0;
  uint64_t clients = 0;
  uint64_t spaces = 0;
  uint64_t pins = 0;  // At the last scan.
  uint64_t evicted_pages = 0;
  uint64_t evicted_blocks = 0;
  uint64_t evictions_pinned = 0;  // Victims found pinned at the second scan and linked again.
  uint64_t committed_pages = 0;
  uint64_t duplicate_commits = 0;
  uint64_t expired_grants = 0;
  uint64_t failed_allocations = 0;
  uint64_t directory_growths = 0;
  ChannelTotals lookups;  // All tenants.
  HostReport host;
  StoreFigures store;
  std::string policy;
  // Registered models that could not be read back at the start, one sentence each.
  std::vector<std::string> restore_problems;
};

// How the bytes of a load came.
struct LoadedBy {
  uint64_t image_bytes = 0;     // Of an image file, past the page cache.
  uint64_t direct_bytes = 0;    // Of its files, past the page cache.
  uint64_t cached_bytes = 0;    // Out of the page cache.
  uint64_t buffered_bytes = 0;  // Through it, for want of O_DIRECT.
  std::string why_buffered;     // The first reason.
  std::string checked_by;       // "sha256", "crc32c", or "" before the first load.
};
struct ModelVersionReport {
  std::string version;
  uint32_t tensors = 0;
  uint64_t bytes = 0;
  uint32_t blocks = 0;
  uint32_t blocks_resident = 0;
  std::string state;  // "registered", "loading", "resident", "partly evicted", "failed: ..."
  uint64_t loading_done_bytes = 0;
  uint32_t attachments = 0;
  bool durable = false;
  Digest digest;  // Zero until loaded once.
  std::vector<SourceFile> files;
  bool imported = false;      // The daemon has an image file of it.
  std::string image_problem;  // Why the last load, or import, did without that.
  LoadedBy loaded;            // By the last load.
};
struct ModelReport {
  std::string name;
  std::vector<std::string> tenants;          // Which may attach it, in alphabetical order.
  std::vector<ModelVersionReport> versions;  // In the order they were added.
};

struct SpaceReport {
  Digest id;
  std::string tenant;
  std::string model;
  KvLayout layout;
  uint32_t slot = 0;
  uint32_t epoch = 0;
  uint32_t page_bytes = 0;
  uint32_t open_by = 0;  // Clients.
  uint64_t pages = 0;
  uint64_t bytes = 0;
};

struct ClientReport {
  ClientId id = 0;
  std::string name;
  std::string tenant;
  int64_t pid = 0;
  uint32_t uid = 0;
  bool writer = false;
  uint64_t pins = 0;
  uint64_t pinned_bytes = 0;  // Each pinned extent once.
  uint64_t grants = 0;
  uint64_t granted_bytes = 0;
  uint64_t attachments = 0;
  uint64_t attached_bytes = 0;
  ChannelTotals lookups;
};

struct PageReport {
  Digest space;
  Digest key;
  uint32_t part = 0;
  uint32_t bytes = 0;
  uint32_t valid_tokens = 0;
  uint32_t arena = 0;
  uint32_t slot = 0;
};

}  // namespace terrace
