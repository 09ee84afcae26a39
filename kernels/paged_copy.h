// Paged copies: the KV of an engine's blocks into contiguous pages (gather) and back (scatter).
//
// An engine keeps KV in a pool of numbered blocks of a fixed number of tokens. What it has of one
// block lies in pieces, here called segments: one a layer where K and V lie together or are one
// (MLA), two a layer where they lie apart. Segment s of block b is `block_bytes` bytes at
//
//     bases[s] + b * block_stride            in the engine's pool, and at
//     page + s * segment_stride              in a page,
//
// where `page` is the address of that block's segment 0 in its page. What a segment holds (the
// order of tokens, heads and elements in it) is not looked at. With B = the bytes of K, or of V, of
// one block and one layer, L layers and N blocks in the pool:
//
//     the engine's tensor                    segments  bases                       stride   bytes
//     a layer [2, N, B]      K, V split      2 L       layer, layer + N B, ...     B        B
//     a layer [N, 2, B]      joined          L         layer, ...                  2 B      2 B
//     a layer [N, B] for K, one for V        2 L       K, V of each layer          B        B
//     a layer [N, B]         MLA             L         layer, ...                  B        B
//     one [L, 2, N, B]       layer-first     2 L       EvenBases(t, 2 L, N B)      B        B
//     one [N, L, 2, B]       page-first      1         t                           2 L B    2 L B
//
// (the last is a plain copy of each block). A page of P blocks has them in either order:
//
//     layer-first  [segment][block][bytes]   segment_stride = P * block_bytes,
//                                            block i begins at page + i * block_bytes
//     page-first   [block][segment][bytes]   segment_stride = block_bytes,
//                                            block i begins at page + i * segments * block_bytes
//
// Everything is a multiple of 16: bases, strides, addresses and bytes. Other layouts are refused,
// for every byte moves in accesses of 16 bytes.
//
// A block that is partly filled is copied in part: the first `bytes` of each segment. That is its
// first tokens where tokens are the outermost axis of a segment; elsewhere such blocks are copied
// whole. Bytes of a page or of the pool that no block names are not touched.
//
// Pure: any thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace terrace {

inline constexpr uint64_t kPagedAlignment = 16;
inline constexpr size_t kMostPagedSegments = 4096;
inline constexpr size_t kMostPagedBlocks = 8192;  // Of one call.

struct PagedLayout {
  std::span<const uint64_t> bases;  // Addresses, one a segment.
  uint64_t block_stride = 0;        // At least block_bytes.
  uint64_t block_bytes = 0;         // Of one segment of one block; below 4 GiB.
  uint64_t segment_stride = 0;      // At least block_bytes.
};

struct PagedBlock {
  uint64_t page = 0;   // Address of the block's segment 0 in its page.
  uint32_t block = 0;  // In the engine's pool.
  uint32_t bytes = 0;  // Of each segment: 1 or more 16s, at most block_bytes.
};

// Where the pool is one tensor: base, base + stride, ...
std::vector<uint64_t> EvenBases(uint64_t base, size_t segments, uint64_t stride);

// What is wrong with them, naming the field; null where they can be copied. That the addresses are
// memory, and that blocks do not overlap in what is written, is the caller's to know.
const char* PagedCopyProblem(const PagedLayout& layout, std::span<const PagedBlock> blocks);

// By the processor, of memory that it can address. They have no problem.
void GatherPages(const PagedLayout& layout, std::span<const PagedBlock> blocks);
void ScatterPages(const PagedLayout& layout, std::span<const PagedBlock> blocks);

}  // namespace terrace
