// What `terrace-mover --list` prints, for who prints it and who reads it: a line a device, with
// tabs between UUID, bytes of memory, granularity, "slabs" or "allocations", driver and name. Pure
// functions.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "tiers/device/gpu.h"

namespace terrace {

// What of GpuFacts the list has.
struct ListedGpu {
  GpuUuid uuid;
  uint64_t total_bytes = 0;
  uint64_t granularity = 0;
  bool slabs = false;
  std::string driver;
  std::string name;
  friend bool operator==(const ListedGpu&, const ListedGpu&) = default;
};

std::string GpuListText(std::span<const GpuFacts> devices);
// `mismatch`: it is no such list; that of another version, perhaps.
Result<std::vector<ListedGpu>> ParseGpuList(std::string_view text);

}  // namespace terrace
