// Residency: which pages of an arena are in memory, on which kind of page, and which of them
// somebody asked for. Bookkeeping only; HostArena makes it true.
//
// The unit is the 4096-byte page; 512 of them, aligned, are a chunk: what one huge page holds.
// Taking a huge page makes a whole chunk present although less of it was claimed. When the last
// claim of a chunk ends, all of it can be freed.
#pragma once

#include <bitset>
#include <cstddef>
#include <vector>

namespace terrace {

inline constexpr size_t kSmallPageBytes = 4096;
inline constexpr size_t kHugePageBytes = 2u << 20;
inline constexpr size_t kChunkPages = kHugePageBytes / kSmallPageBytes;

// Pages [first, end) of an arena.
struct PageRange {
  size_t first = 0;
  size_t end = 0;

  bool empty() const { return first >= end; }
  // The pages that [offset, offset + bytes) touches.
  static PageRange Touched(size_t offset, size_t bytes) {
    return {offset / kSmallPageBytes, (offset + bytes + kSmallPageBytes - 1) / kSmallPageBytes};
  }
  // The pages that lie inside it whole.
  static PageRange Inside(size_t offset, size_t bytes) {
    return {(offset + kSmallPageBytes - 1) / kSmallPageBytes, (offset + bytes) / kSmallPageBytes};
  }
  static PageRange OfChunk(size_t chunk) {
    return {chunk * kChunkPages, (chunk + 1) * kChunkPages};
  }
};

class Residency {
 public:
  explicit Residency(size_t bytes);

  size_t pages() const { return pages_; }
  size_t chunks() const { return chunks_.size(); }
  // Every page of the range is present.
  bool Present(PageRange range) const;
  bool PresentAny(size_t chunk) const { return chunks_[chunk].present.any(); }
  bool Claimed(size_t page) const {
    return chunks_[page / kChunkPages].claimed[page % kChunkPages];
  }
  bool Huge(size_t chunk) const { return chunks_[chunk].huge; }
  // The arena reaches to the chunk's end, so that a huge page fits.
  bool Whole(size_t chunk) const { return (chunk + 1) * kChunkPages <= pages_; }
  // Claims that the chunk would have if those of `range` were added, or taken away.
  size_t ClaimsWith(size_t chunk, PageRange range) const;
  size_t ClaimsWithout(size_t chunk, PageRange range) const;

  void Claim(PageRange range);
  void SetSmall(PageRange range);  // Present on small pages, unless on a huge one already.
  void SetHuge(size_t chunk);
  // Neither present nor claimed; what is left of a huge page stands on small ones.
  void Clear(PageRange range);
  void Unclaim(PageRange range);
  // The arena ends after `bytes` from now on.
  void Truncate(size_t bytes);

  size_t huge_bytes() const { return huge_chunks_ * kHugePageBytes; }
  size_t small_bytes() const { return small_pages_ * kSmallPageBytes; }
  size_t present_bytes() const { return huge_bytes() + small_bytes(); }

 private:
  using Bits = std::bitset<kChunkPages>;
  struct Chunk {
    Bits present;
    Bits claimed;
    bool huge = false;
  };
  // The bits of `range` in `chunk`.
  static Bits Mask(size_t chunk, PageRange range);
  // Calls visit(chunk number, mask) for the chunks that the range touches.
  template <typename Visit>
  static void ForEachChunk(PageRange range, Visit visit);

  size_t pages_;
  std::vector<Chunk> chunks_;
  size_t huge_chunks_ = 0;
  size_t small_pages_ = 0;
};

}  // namespace terrace
