// GPUs by the CUDA driver, which is opened when they are: nothing of ours is linked with CUDA, and
// a program runs where there is none. docs/device_memory.md has which call of the driver does what.
//
// A Gpu retains the device's primary context. The driver keeps that one for the process, so after a
// sticky error (`stale`) a Gpu that is opened anew in the same process gets it too.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "base/status.h"
#include "tiers/device/gpu.h"

namespace terrace {

struct CudaGpuOptions {
  std::string library = "libcuda.so.1";             // As dlopen takes it.
  uint64_t registration_bytes = uint64_t{8} << 30;  // A multiple of 4096.
  // kernels/cuda_kernels.h, where GatherPages and ScatterPages are wanted; outlives the Gpus.
  std::span<const std::byte> kernels = {};
};

// not_found: no driver, or it finds no GPU. permission_denied: it may not open what is there, with
// the file. mismatch: the build has no CUDA, or the driver is older than 12.0.
Result<std::unique_ptr<Gpus>> OpenCudaGpus(const CudaGpuOptions& options);

}  // namespace terrace
