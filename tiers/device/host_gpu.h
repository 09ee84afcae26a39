// GPUs that are none: slabs are memfds, addresses are those of the processor, streams are threads.
// For tests and for machines without a GPU, and only where the configuration asks for it. What
// engines and the mover can do wrong fails here as it does on a GPU, with these differences:
//   - programs read and write device addresses directly, within the access of the mapping;
//   - memory counts against its device while this process has it: what other processes keep of a
//     slab that was released is not seen;
//   - an allocation that was freed stays readable where others have opened it.
// Linux 5.14 or later.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/status.h"
#include "tiers/device/gpu.h"

namespace terrace {

struct HostGpuDevice {
  GpuUuid uuid;
  uint64_t bytes = 1u << 30;
};

struct HostGpuOptions {
  std::vector<HostGpuDevice> devices = {{.uuid = HostGpuUuid(0)}};  // Of different UUIDs.
  uint64_t granularity = 2u << 20;  // A power of two of at least 4096.
  bool slabs = true;                // False: as a driver without them, allocations only.
  // New memory holds rubbish, as a GPU's does, and not zeros.
  bool dirty = false;
  uint64_t registration_bytes = uint64_t{8} << 30;  // A multiple of 4096.
};

// `invalid_argument` names the field.
Result<std::unique_ptr<Gpus>> OpenHostGpus(const HostGpuOptions& options);

}  // namespace terrace
