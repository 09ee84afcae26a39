// Gather and scatter as kernels/paged_copy.h defines them. One launch moves many pages: a thread
// block moves a tile of one segment of one block, in accesses of 16 bytes that are read once and
// written once, and say so to the caches.
//
// A thread has its four loads under way before it stores the first. With 2048 threads a
// multiprocessor these are 128 KiB, several times what latency times bandwidth asks for (some 20
// KiB on an H100).
#include "kernels/paged_copy_launch.h"

namespace terrace {
namespace {

template <bool kGather>
__device__ __forceinline__ void CopyTile(const PagedCopyLaunch& launch) {
  const PagedBlock& block = launch.blocks[blockIdx.z];
  const uint64_t pool = launch.bases[blockIdx.y] + block.block * launch.block_stride;
  const uint64_t page = block.page + blockIdx.y * launch.segment_stride;
  const auto* from = reinterpret_cast<const uint4*>(kGather ? pool : page);
  auto* to = reinterpret_cast<uint4*>(kGather ? page : pool);
  const uint32_t vectors = block.bytes / sizeof(uint4);
  const uint32_t first = blockIdx.x * blockDim.x * kVectorsOfAThread + threadIdx.x;

  uint4 moved[kVectorsOfAThread];
#pragma unroll
  for (uint32_t i = 0; i < kVectorsOfAThread; ++i) {
    const uint32_t at = first + i * blockDim.x;
    if (at < vectors) moved[i] = __ldcs(from + at);
  }
#pragma unroll
  for (uint32_t i = 0; i < kVectorsOfAThread; ++i) {
    const uint32_t at = first + i * blockDim.x;
    if (at < vectors) __stcs(to + at, moved[i]);
  }
}

}  // namespace

extern "C" __global__ void __launch_bounds__(kMostThreadsOfABlock)
    TerraceGatherPages(const __grid_constant__ PagedCopyLaunch launch) {
  CopyTile<true>(launch);
}

extern "C" __global__ void __launch_bounds__(kMostThreadsOfABlock)
    TerraceScatterPages(const __grid_constant__ PagedCopyLaunch launch) {
  CopyTile<false>(launch);
}

}  // namespace terrace
