#include "kernels/paged_copy.h"

#include <algorithm>
#include <cstring>
#include <limits>

namespace terrace {
namespace {

constexpr uint64_t kLast = std::numeric_limits<uint64_t>::max();

bool Aligned(uint64_t value) {
  return value % kPagedAlignment == 0;
}

// Whether [base, base + steps * stride + bytes) ends before the addresses do.
bool Ends(uint64_t base, uint64_t steps, uint64_t stride, uint64_t bytes) {
  if (steps != 0 && stride > (kLast - bytes) / steps) return false;
  return base <= kLast - bytes - steps * stride;
}

template <typename Move>
void ForEachRun(const PagedLayout& layout, std::span<const PagedBlock> blocks, Move move) {
  for (const PagedBlock& block : blocks) {
    for (size_t segment = 0; segment < layout.bases.size(); ++segment) {
      move(reinterpret_cast<void*>(layout.bases[segment] + block.block * layout.block_stride),
           reinterpret_cast<void*>(block.page + segment * layout.segment_stride), block.bytes);
    }
  }
}

}  // namespace

std::vector<uint64_t> EvenBases(uint64_t base, size_t segments, uint64_t stride) {
  std::vector<uint64_t> bases(segments);
  for (size_t i = 0; i < segments; ++i)
    bases[i] = base + i * stride;
  return bases;
}

const char* PagedCopyProblem(const PagedLayout& layout, std::span<const PagedBlock> blocks) {
  const size_t segments = layout.bases.size();
  if (segments == 0 || segments > kMostPagedSegments) return "bases: not 1 to 4096 segments";
  if (blocks.size() > kMostPagedBlocks) return "blocks: more than 8192";
  if (layout.block_bytes == 0 || !Aligned(layout.block_bytes) ||
      layout.block_bytes > std::numeric_limits<uint32_t>::max()) {
    return "block_bytes: not a multiple of 16 between 16 and 4 GiB";
  }
  if (layout.block_stride < layout.block_bytes || !Aligned(layout.block_stride)) {
    return "block_stride: not a multiple of 16 of at least block_bytes";
  }
  if (layout.segment_stride < layout.block_bytes || !Aligned(layout.segment_stride)) {
    return "segment_stride: not a multiple of 16 of at least block_bytes";
  }
  uint32_t last_block = 0;
  for (const PagedBlock& block : blocks) {
    if (block.bytes == 0 || block.bytes > layout.block_bytes || !Aligned(block.bytes)) {
      return "bytes: not a multiple of 16 between 16 and block_bytes";
    }
    if (!Aligned(block.page)) return "page: not a multiple of 16";
    if (!Ends(block.page, segments - 1, layout.segment_stride, block.bytes)) {
      return "page: ends beyond all addresses";
    }
    last_block = std::max(last_block, block.block);
  }
  for (const uint64_t base : layout.bases) {
    if (!Aligned(base)) return "bases: not a multiple of 16";
    if (!Ends(base, last_block, layout.block_stride, layout.block_bytes)) {
      return "block: ends beyond all addresses";
    }
  }
  return nullptr;
}

void GatherPages(const PagedLayout& layout, std::span<const PagedBlock> blocks) {
  ForEachRun(layout, blocks,
             [](void* pool, void* page, size_t bytes) { std::memcpy(page, pool, bytes); });
}

void ScatterPages(const PagedLayout& layout, std::span<const PagedBlock> blocks) {
  ForEachRun(layout, blocks,
             [](void* pool, void* page, size_t bytes) { std::memcpy(pool, page, bytes); });
}

}  // namespace terrace
