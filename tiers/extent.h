// Arena and extent: names of memory that a tier owns.
#pragma once

#include <cstddef>
#include <cstdint>

namespace terrace {

// A piece of a tier's memory owned by one tenant. Ids are never reused in a daemon's life. Those of
// slabs start at 1 and fit shm::kMaxArenas, for handles name them; those of blocks lie above. Of
// both the upper half is of devices.
using ArenaId = uint32_t;
inline constexpr ArenaId kLastSlabId = (1u << 19) - 1;
inline constexpr ArenaId kFirstDeviceSlabId = 1u << 19;
inline constexpr ArenaId kLastDeviceSlabId = (1u << 20) - 1;
inline constexpr ArenaId kFirstBlockId = 1u << 20;
inline constexpr ArenaId kFirstDeviceBlockId = 1u << 31;

struct Extent {
  ArenaId arena = 0;
  size_t offset = 0;
  size_t bytes = 0;
};

}  // namespace terrace
