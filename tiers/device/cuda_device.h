// One device of the CUDA driver: what is known of it before it has a context, and the Gpu that it
// becomes with one.
#pragma once

#include <cuda.h>

#include <cstddef>
#include <memory>
#include <span>

#include "tiers/device/cuda_context.h"
#include "tiers/device/gpu.h"

namespace terrace {

struct CudaDevice {
  CUdevice device = 0;
  bool rdma = false;  // Network cards may reach its slabs.
  std::span<const std::byte> kernels;
  GpuFacts facts;
};

// What slabs are created with.
CUmemAllocationProp SlabProperties(CUdevice device, bool rdma);

std::unique_ptr<Gpu> MakeCudaGpu(std::shared_ptr<CudaContext> context, const CudaDevice& device);

}  // namespace terrace
