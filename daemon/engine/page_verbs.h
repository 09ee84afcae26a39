// What the engine's verbs take and answer: pages, in memory and stored.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/digest.h"
#include "base/status.h"
#include "daemon/engine/tenant_index.h"
#include "proto/shared_memory.h"
#include "tiers/extent.h"
#include "tiers/page_store.h"

namespace terrace {

inline constexpr uint32_t kMaxBatch = 512;  // Pages of one verb.
// Memory that one call of Grant gets for its pages; of larger ones at least one page's.
inline constexpr uint64_t kGrantStepBytes = 32u << 20;

struct GrantSpec {
  uint32_t slot = 0;
  uint32_t epoch = 0;
  uint32_t part = 0;
  uint32_t deadline_ms = 0;
  std::span<const Digest> keys;
  // Memory of which device; with one, fewer answers than keys, or none, also mean that memory for
  // the others is on its way.
  uint32_t device = 0;
  // The keys are a chain, each extending the one before it, the first `parent` (zero: none), with
  // `position` pages before it. Kept with the pages that go to the store; nothing depends on it.
  bool chain = false;
  Digest parent = {};
  uint32_t position = 0;
};
struct GrantGiven {
  Code code = Code::kOk;
  uint64_t grant = 0;
  shm::Handle handle = 0;  // Arena and slot.
};
struct ArenaFacts {
  ArenaId id = 0;
  uint64_t bytes = 0;
  uint32_t page_bytes = 0;
  uint32_t device = 0;
};

struct PrefetchSpec {
  uint32_t slot = 0;
  uint32_t epoch = 0;
  uint32_t part = 0;
  std::span<const Digest> keys =
      {};                    // A chain from its first page on: nothing behind a gap is of use.
  uint32_t deadline_ms = 0;  // 0: the default.
  // If less than this fraction of the keys is there, in memory or stored, nothing is fetched.
  double min_fraction = 0;
  // What computing a page takes the client: no more is fetched than comes sooner. 0: not told.
  uint32_t recompute_us_per_page = 0;
  // To memory of which device, by way of host memory; `codes` are then of that memory.
  uint32_t device = 0;
};
struct Prefetched {
  // One a key. kOk: in memory, and held for the client (Holds) until the deadline. kNotFound:
  // nowhere, behind a gap, or not worth it. kDataLoss: it was stored and did not check out.
  // kDeadlineExceeded; kExhausted: no memory, or more than the client's pin budget; kUnavailable:
  // the device does not answer; kStale: space or generation ended meanwhile.
  std::vector<Code> codes;
  uint32_t worth = 0;  // Keys from the first on that were worth having.
};
struct PersistSpec {
  uint32_t slot = 0;
  uint32_t epoch = 0;
  uint32_t part = 0;
  std::span<const Digest> keys;
};
struct Demoted {
  uint64_t pages = 0;
  uint64_t bytes = 0;
};
struct PromoteSpec {
  std::string tenant;  // Empty: of all.
  Digest space;        // Zero: of all.
  uint64_t bytes = 0;  // 0: as much as there is room for.
};
struct Promoted {
  uint64_t pages = 0;
  uint64_t bytes = 0;
};

struct StoreCheckSpec {
  bool read_data = false;  // Every page's header and bytes.
  bool repair = false;
};
// What a check of the store found.
struct StoreCheckReport {
  // Entries are of the index, pages of the catalogue in memory, slots of the devices' books.
  uint64_t entries = 0;
  uint64_t pages = 0;
  uint64_t read_pages = 0;
  uint64_t read_bytes = 0;
  uint64_t not_read = 0;  // No answer, or the device is not read from.
  // Findings.
  uint64_t unreadable_records = 0;  // Of the index.
  uint64_t unknown_entries = 0;     // Of no page that is known.
  uint64_t missing_entries = 0;     // Pages that the next start would not find.
  uint64_t unknown_slots = 0;       // Allocated, and of no page.
  uint64_t faults[kReadFaults] = {};
  std::vector<std::string> examples;  // A sentence each, of some of them.
  uint64_t repaired = 0;

  uint64_t findings() const {
    uint64_t sum = unreadable_records + unknown_entries + missing_entries + unknown_slots;
    for (const uint64_t count : faults)
      sum += count;
    return sum;
  }
};
struct Evicted {
  uint64_t pages = 0;
  uint64_t blocks = 0;
  uint64_t bytes = 0;
};

}  // namespace terrace
