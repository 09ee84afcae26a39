// GpuProbe: what a device and its driver do where gpu.h keeps its callers from asking, for the
// check of hardware alone (bench/gpu_check). Nothing that serves uses it.
//
// `mismatch`: there is nothing to ask; a device of the host has none of it but Store and Copy.
//
// Thread safety: one thread uses it. It has the device's context as a Gpu of the same process has.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "base/status.h"
#include "tiers/device/gpu.h"

namespace terrace {

class GpuProbe {
 public:
  virtual ~GpuProbe() = default;

  // Stores 16 bytes by a kernel, whatever access this process has there, and waits. An error is
  // what the driver said of it; on a device of the host the processor stops the process.
  virtual Status Store(GpuAddress at, GpuAddress readable) = 0;
  // Copies between memory of this process and addresses of the device that a Gpu knows nothing of,
  // as those of a library; waits.
  virtual Status Copy(GpuAddress dst, GpuAddress src, uint64_t bytes) = 0;
  // Creates a slab on a thread that has no context current, and releases it.
  virtual Status CreateWithoutContext(uint64_t bytes) = 0;
  // Creates memory of the host's first node by the driver, exports it, imports and maps the export.
  virtual Status ExportHostMemory(uint64_t bytes) = 0;
  // An event that other processes may open; it is there as long as this.
  virtual Result<IpcHandle> ExportEvent() = 0;
  // Of another process; waits for it and closes it.
  virtual Status OpenEvent(const IpcHandle& handle) = 0;
};

// `kernels` as in CudaGpuOptions: it stores by one of them.
Result<std::unique_ptr<GpuProbe>> OpenCudaProbe(const GpuUuid& uuid,
                                                std::span<const std::byte> kernels);
std::unique_ptr<GpuProbe> OpenHostProbe();

// What libnvidia-ml says is free on a device, which needs no context; opened when it is asked.
// not_found: there is no such library, or no such device.
Result<uint64_t> NvmlFreeBytes(const GpuUuid& uuid);

}  // namespace terrace
