// Plays a request trace through live client processes against a live daemon, with pages of a
// scaled-down size, and compares every byte that a hit maps with what its key demands.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/status.h"
#include "bench/figures.h"
#include "bench/trace.h"

namespace terrace::bench {

struct PlayOptions {
  std::string socket;    // Empty: a daemon of our own.
  std::string terraced;  // For a daemon of our own; empty: the one that belongs to this program.
  uint64_t capacity_bytes = 512u << 20;  // Likewise.
  uint32_t clients = 4;
  double speedup = 0;          // Times as fast as the timestamps say; 0: as fast as it goes.
  uint64_t page_bytes = 4096;  // Of a 512-token block; a multiple of 512.
};

// Fails when a byte was wrong. Request i goes to the first client that is free when i - 1 was
// taken.
Result<Figures> Play(const std::vector<TraceRequest>& requests, const PlayOptions& options);

}  // namespace terrace::bench
