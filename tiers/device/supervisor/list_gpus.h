// ListGpus: which CUDA devices this host has, asked of a short-lived terrace-mover: this process
// neither opens a driver nor makes a context. Waits for it; any thread.
#pragma once

#include <string>
#include <vector>

#include "base/clock.h"
#include "base/status.h"
#include "tiers/device/mover/listing.h"

namespace terrace {

// `program` is terrace-mover, by its path. not_found, permission_denied, mismatch: as gpu.h has
// them, or of the program's file. deadline_exceeded: a driver hangs; the process was killed.
Result<std::vector<ListedGpu>> ListGpus(const std::string& program, MonotonicNs within_ns);

}  // namespace terrace
