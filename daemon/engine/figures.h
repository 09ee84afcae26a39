// What the engine tells whoever asks often, such as a scrape of metrics: plain values, by tenant
// and space, that cost little to collect. Reports (report.h) tell more and cost more.
//
// Promise 6, also of these: the extents of all tenants and of the weights make the used bytes; each
// tenant's hits and misses make its lookups.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/digest.h"
#include "daemon/engine/device_verbs.h"
#include "daemon/engine/durations.h"
#include "daemon/engine/store/admission.h"
#include "daemon/engine/tenant_index.h"
#include "daemon/policy/policy.h"
#include "tiers/page_store.h"
#include "tiers/tier.h"

namespace terrace {

// What an eviction was for.
enum class EvictionReason : uint8_t {
  kPages,     // Room for pages that were asked for.
  kWeights,   // Room for blocks that are being loaded.
  kReserve,   // Room kept ahead of demand.
  kCapacity,  // The host capacity became less.
  kOperator,  // Somebody asked for it.
};
inline constexpr int kEvictionReasons = 5;

// Why a page left the store.
enum class StoredErasure : uint8_t {
  kRoom,     // For others.
  kDropped,  // By a client.
  kStale,    // Of a generation, or of a model, that is no more.
  kUnknown,  // Found at the start, and nobody knows what it means.
  kFault,    // It did not check out.
};
inline constexpr int kStoredErasures = 5;

struct Amount {
  uint64_t extents = 0;
  uint64_t bytes = 0;

  void Add(uint64_t more_bytes) {
    ++extents;
    bytes += more_bytes;
  }
  void Remove(uint64_t less_bytes) {
    --extents;
    bytes -= less_bytes;
  }
  friend bool operator==(const Amount&, const Amount&) = default;
};

// Of one tenant's pages, since the start. They only grow.
struct PageCounts {
  Amount granted;
  Amount committed;
  uint64_t failed_allocations = 0;  // Grants refused for want of memory.
  uint64_t duplicate_commits = 0;   // Another writer's page of that key was first.
  uint64_t stale_commits = 0;       // The generation or the space moved on meanwhile.
  uint64_t refused_commits = 0;     // Too late, of no grant, or without a place in the directory.
  uint64_t expired_grants = 0;
  uint64_t dropped = 0;  // By their writers.
  uint64_t reused = 0;   // Read at least once while they were there, as far as rings tell.
  // With a store only: brought back to memory from it; and evicted though it did not have them.
  Amount promoted;
  Amount evicted_unstored;
};

struct TenantFigures {
  std::string name;
  uint64_t clients = 0;
  uint64_t spaces = 0;
  uint64_t pins = 0;
  uint64_t pinned_bytes = 0;        // At the last scan, once for each client.
  uint64_t directory_capacity = 0;  // Entries.
  uint64_t ring_records = 0;        // Touches and misses that the engine has not taken yet.
  // Extents by state; `free` is memory of slabs without a page.
  Amount linked;
  Amount granted;
  Amount abandoned;
  Amount limbo;
  Amount filling;  // Being read from the store.
  Amount free;
  PageCounts pages;
  // In the store, by ItemClass: what their places take.
  Amount stored[kItemClasses];
  Amount evicted[kEvictionReasons];
  ChannelTotals lookups;
};

// A space, with what the rings told of it: less than the lookups by what they had to drop.
struct SpaceFigures {
  uint32_t tenant = 0;  // Index into EngineFigures::tenants.
  Digest id;
  std::string model;
  uint64_t pages = 0;
  uint64_t bytes = 0;
  uint64_t hits = 0;
  uint64_t misses = 0;  // The first missing page of each prefix, or each missing page.
};

struct WeightsFigures {
  uint64_t versions = 0;  // Registered.
  uint64_t attachments = 0;
  uint64_t loads = 0;    // Running.
  uint64_t waiters = 0;  // For them.
  uint64_t read_bytes = 0;
  Durations read_times;  // Of blocks, from files and images.
  // Blocks and manifests: held by a client or a load; by nobody; let go, but still held.
  Amount held;
  Amount idle;
  Amount gone;
  Amount evicted[kEvictionReasons];
};

// The store, as the engine uses it; zeros where there is none.
struct StoreFigures {
  bool present = false;
  PageStoreReport store;
  uint64_t capacity_bytes = 0;
  uint64_t free_bytes = 0;      // Of devices that are written to.
  uint64_t used_bytes = 0;      // The sum of what all stored pages take: of tenants, and the next.
  Amount absent[kItemClasses];  // Of tenants that are not in the configuration, by ItemClass.
  uint64_t pages = 0;
  uint64_t spaces = 0;
  uint64_t catalog_bytes = 0;
  // Since the start.
  Amount spilled;
  Amount promoted;
  // Of these pages, from their being sent: until the index has them, until the directory has.
  Durations spill_times;
  Durations promote_times;
  Amount erased[kStoredErasures];
  uint64_t unspilled[kUnspilled] = {};  // Pages that were not written, by why.
  uint64_t faults[kReadFaults] = {};    // Pages that were not served, by why.
  uint64_t prefetched_keys = 0;         // Asked for,
  uint64_t prefetched_in_memory = 0;    // and there already.
  uint64_t stale_reads = 0;             // Space or generation ended while they were read.
  uint64_t scrub_bytes_per_second = 0;  // As configured; 0: off.
  Amount scrubbed;                      // Pages read to check them, in the background.
  uint64_t scrub_faults[kReadFaults] = {};
  uint64_t scrub_rounds = 0;  // Times that it came round.
  // Now.
  uint64_t queued_pages = 0;
  uint64_t writing_pages = 0;
  uint64_t writing_bytes = 0;
  uint64_t erasing_pages = 0;
  uint64_t reading_pages = 0;
  uint64_t reading_bytes = 0;
  uint64_t requests = 0;  // Of prefetches that are not answered.
  uint64_t holds = 0;
  uint64_t held_bytes = 0;
  uint64_t write_budget_bytes = 0;  // Left; UINT64_MAX: no limit.
  uint64_t fetch_latency_ns = 0;    // Moving averages.
  uint64_t fetch_bytes_per_second = 0;
};

struct EngineFigures {
  // Beyond so many, spaces are counted and not told one by one.
  static constexpr size_t kMaxSpaces = 2048;

  uint64_t host_capacity_bytes = 0;
  uint64_t used_bytes = 0;
  uint64_t evictions_pinned = 0;  // Victims found pinned at the second scan and kept.
  HostReport host;
  std::vector<TenantFigures> tenants;
  std::vector<SpaceFigures> spaces;
  WeightsFigures weights;
  StoreFigures store;
  std::vector<GpuReport> devices;
};

}  // namespace terrace
