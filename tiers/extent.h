// Arena and extent: names of memory that a tier owns.
#pragma once

#include <cstddef>
#include <cstdint>

namespace terrace {

// A piece of a tier's memory owned by one tenant. Ids start at 1, fit shm::kMaxArenas and are never
// reused in a daemon's life.
using ArenaId = uint32_t;

struct Extent {
  ArenaId arena = 0;
  size_t offset = 0;
  size_t bytes = 0;
};

}  // namespace terrace
