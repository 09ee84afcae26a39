// What an engine is made of and bounded by: its options, and the parts that it is given.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/status.h"
#include "daemon/engine/tenant_index.h"
#include "daemon/policy/policy.h"
#include "proto/shared_memory.h"
#include "tiers/device_tier.h"
#include "tiers/page_store.h"
#include "tiers/tier.h"

namespace terrace {

// What one client may have, and for how long.
struct ClientLimits {
  uint32_t max_pins = 65536;      // At most; shm::kMaxPinLines * 8 is the ceiling.
  uint64_t max_pinned_bytes = 0;  // 0: half the host capacity.
  uint32_t max_grants = 4096;
  uint32_t max_spaces = 1024;           // Open at a time.
  uint32_t grant_deadline_ms = 30'000;  // Where a request names none.
  uint32_t grant_deadline_max_ms = 600'000;
};

// How the store is used. Percentages are of its capacity.
struct StoreOptions {
  uint64_t write_bytes_per_day = 0;  // 0: no limit.
  uint64_t write_burst_bytes = uint64_t{64} << 30;
  uint32_t high_percent = 95;  // Above it pages leave the store until it is below the other.
  uint32_t low_percent = 90;
  uint32_t max_queued_pages = 8192;   // That wait to be written,
  uint32_t max_writing_pages = 1024;  // that are written,
  uint64_t max_writing_bytes = 256u << 20;
  uint32_t max_reading_pages = 4096;  // and that are read.
  uint64_t max_reading_bytes = uint64_t{1} << 30;
  uint32_t write_deadline_ms = 10'000;
  uint32_t read_deadline_ms = 2'000;
  // At what rate stored pages are read for no other reason than to see whether they are still what
  // they were; 0: never.
  uint64_t scrub_bytes_per_second = 0;
  uint32_t prefetch_deadline_ms = 1'000;  // Where a request names none.
  uint32_t prefetch_deadline_max_ms = 60'000;
  uint64_t sketch_counters = 1u << 20;  // Two bytes each.
};

// What is used of one GPU.
struct DeviceOptions {
  std::string kind = "cuda";  // Or "host": memory of the host that stands for a GPU. For reports.
  uint64_t capacity_bytes = 0;
  uint64_t slab_bytes = 64u << 20;  // Of pages: aimed at, rounded up to the device's granularity.
  // What a class keeps although another wants room.
  uint64_t weights_floor_bytes = 0;
  uint64_t pages_floor_bytes = 0;
  uint32_t call_deadline_ms = 30'000;     // Of what the tier is asked for.
  uint32_t unmap_deadline_ms = 10'000;    // Until who was asked to unmap holds a zombie.
  std::vector<std::string> tenants = {};  // Whose memory lies on it; empty: everybody's.
};

struct EngineOptions : ClientLimits {
  uint64_t host_capacity_bytes = 0;
  uint64_t slab_bytes = 64u << 20;  // Aimed at; a slab holds whole pages, at least one.
  uint64_t block_bytes =
      64u << 20;  // Of weights; doubled, up to 512 MiB, for sets of over 253 blocks.
  uint64_t huge_page_bytes = 2u << 20;   // The unit in which memory is best taken and given back.
  uint64_t pretouch_bytes = UINT64_MAX;  // How much unused capacity is kept as pre-touched blanks.
  StoreOptions store;
};

// One GPU: `device` n of every verb is the n-th of EngineParts::devices, from 1; 0 is host memory.
struct DevicePart {
  DeviceOptions options;
  DeviceTier* tier = nullptr;
  std::unique_ptr<Policy> policy;
};

struct EngineParts {
  const Clock* clock = nullptr;
  HostTier* host = nullptr;
  WeightSources* sources = nullptr;
  WeightImages* images = nullptr;  // Null: nothing can be imported.
  Journal* journal = nullptr;
  DirectoryMemory* directory_memory = nullptr;
  PageStore* page_store = nullptr;       // Null: pages live in memory alone.
  std::vector<DevicePart> devices = {};  // At most kMaxDevices.
  std::unique_ptr<Policy> host_policy;
  // Makes a tenant's index; empty: MakeTenantIndex(*directory_memory).
  std::function<Result<std::unique_ptr<TenantIndex>>()> make_index;
};

inline constexpr size_t kMaxDevices = 64;

}  // namespace terrace
