// In builds without cuda.h.
#include "tiers/device/cuda_gpu.h"
#include "tiers/device/gpu_probe.h"

namespace terrace {

Result<std::unique_ptr<Gpus>> OpenCudaGpus(const CudaGpuOptions&) {
  return Status(Code::kMismatch, "this build has no CUDA: there was no cuda.h");
}

Result<std::unique_ptr<GpuProbe>> OpenCudaProbe(const GpuUuid&, std::span<const std::byte>) {
  return Status(Code::kMismatch, "this build has no CUDA: there was no cuda.h");
}

}  // namespace terrace
