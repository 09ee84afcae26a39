// What the kernels of paged_copy.cu are launched with, and how many threads. Tables travel in the
// launch itself, by value: nothing has to be uploaded before, nor kept until the kernel ran. What
// does not fit into one launch takes several, each over some of the segments and some of the
// blocks.
//
// Read by the compiler of the kernels too.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>

#include "kernels/paged_copy.h"

namespace terrace {

// A launch takes at most 4096 bytes of parameters.
inline constexpr uint32_t kSegmentsOfALaunch = 256;
inline constexpr uint32_t kBlocksOfALaunch = 126;

struct PagedCopyLaunch {
  uint64_t block_stride = 0;
  uint64_t segment_stride = 0;
  uint64_t bases[kSegmentsOfALaunch] = {};
  PagedBlock blocks[kBlocksOfALaunch] = {};  // Their pages begin at the first of these segments.
};
static_assert(sizeof(PagedCopyLaunch) <= 4096);

// A thread moves so many 16s, all loads before the first store; they are a thread block apart, so
// that neighbouring threads touch neighbouring 16s.
inline constexpr uint32_t kVectorsOfAThread = 4;
inline constexpr uint32_t kMostThreadsOfABlock = 256;

// Threads in a thread block, so that short segments do not leave most of it idle: a multiple of 32.
constexpr uint32_t PagedCopyThreads(uint64_t block_bytes) {
  const uint64_t vectors = block_bytes / kPagedAlignment;
  const uint64_t wanted = (vectors + kVectorsOfAThread - 1) / kVectorsOfAThread;
  if (wanted >= kMostThreadsOfABlock) return kMostThreadsOfABlock;
  return static_cast<uint32_t>((wanted + 31) / 32 * 32);
}

// Thread blocks of the x axis, which together move one segment of one block; y are the segments, z
// the blocks.
constexpr uint32_t PagedCopyTiles(uint64_t block_bytes, uint32_t threads) {
  const uint64_t tile_bytes = uint64_t{threads} * kVectorsOfAThread * kPagedAlignment;
  return static_cast<uint32_t>((block_bytes + tile_bytes - 1) / tile_bytes);
}

// Calls `launch(parameters, threads, tiles, segments, blocks)` for each launch that the copy takes,
// until one does not return 0; returns what that one did. The copy has no problem.
template <typename Launch>
int ForEachPagedLaunch(const PagedLayout& layout, std::span<const PagedBlock> all, Launch launch) {
  const uint32_t threads = PagedCopyThreads(layout.block_bytes);
  const uint32_t tiles = PagedCopyTiles(layout.block_bytes, threads);
  for (size_t first = 0; first < layout.bases.size(); first += kSegmentsOfALaunch) {
    const auto bases = layout.bases.subspan(
        first, std::min<size_t>(kSegmentsOfALaunch, layout.bases.size() - first));
    for (size_t from = 0; from < all.size(); from += kBlocksOfALaunch) {
      const auto blocks = all.subspan(from, std::min<size_t>(kBlocksOfALaunch, all.size() - from));
      PagedCopyLaunch parameters;
      parameters.block_stride = layout.block_stride;
      parameters.segment_stride = layout.segment_stride;
      std::copy(bases.begin(), bases.end(), parameters.bases);
      std::copy(blocks.begin(), blocks.end(), parameters.blocks);
      for (size_t i = 0; i < blocks.size(); ++i)
        parameters.blocks[i].page += first * layout.segment_stride;
      const int result = launch(parameters, threads, tiles, static_cast<uint32_t>(bases.size()),
                                static_cast<uint32_t>(blocks.size()));
      if (result != 0) return result;
    }
  }
  return 0;
}

// The kernels' names in the module.
inline constexpr const char* kGatherKernel = "TerraceGatherPages";
inline constexpr const char* kScatterKernel = "TerraceScatterPages";

}  // namespace terrace
