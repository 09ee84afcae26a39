#include "tests/kernels/paged_copy_on_cpu.h"

// As much of CUDA C++ as paged_copy.cu uses.
#define __device__
#define __global__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(threads)

struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};
struct uint3 {
  uint32_t x, y, z;
};
static uint3 blockIdx, blockDim, threadIdx;

static uint4 __ldcs(const uint4* from) {
  return *from;
}
static void __stcs(uint4* to, const uint4& value) {
  *to = value;
}

#include "kernels/paged_copy.cu"

namespace terrace {

bool RunPagedCopyOnCpu(std::string_view kernel, const LaunchShape& shape,
                       const PagedCopyLaunch& launch) {
  const bool gather = kernel == kGatherKernel;
  if (!gather && kernel != kScatterKernel) return false;
  blockDim = {shape.threads, 1, 1};
  for (uint32_t z = 0; z < shape.blocks; ++z) {
    for (uint32_t y = 0; y < shape.segments; ++y) {
      for (uint32_t x = 0; x < shape.tiles; ++x) {
        blockIdx = {x, y, z};
        for (uint32_t thread = 0; thread < shape.threads; ++thread) {
          threadIdx = {thread, 0, 0};
          if (gather) {
            TerraceGatherPages(launch);
          } else {
            TerraceScatterPages(launch);
          }
        }
      }
    }
  }
  return true;
}

}  // namespace terrace
