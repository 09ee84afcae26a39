#include "tiers/host/residency.h"

#include <algorithm>

namespace terrace {

Residency::Residency(size_t bytes)
    : pages_(bytes / kSmallPageBytes), chunks_((pages_ + kChunkPages - 1) / kChunkPages) {}

Residency::Bits Residency::Mask(size_t chunk, PageRange range) {
  const size_t start = chunk * kChunkPages;
  const size_t first = std::max(range.first, start) - start;
  const size_t end = std::min(range.end, start + kChunkPages) - start;
  return ~Bits() >> (kChunkPages - (end - first)) << first;
}

template <typename Visit>
void Residency::ForEachChunk(PageRange range, Visit visit) {
  if (range.empty()) return;
  for (size_t chunk = range.first / kChunkPages; chunk * kChunkPages < range.end; ++chunk) {
    visit(chunk, Mask(chunk, range));
  }
}

bool Residency::Present(PageRange range) const {
  bool present = true;
  ForEachChunk(range, [&](size_t chunk, const Bits& mask) {
    present = present && (chunks_[chunk].present & mask) == mask;
  });
  return present;
}

size_t Residency::ClaimsWith(size_t chunk, PageRange range) const {
  return (chunks_[chunk].claimed | Mask(chunk, range)).count();
}

size_t Residency::ClaimsWithout(size_t chunk, PageRange range) const {
  return (chunks_[chunk].claimed & ~Mask(chunk, range)).count();
}

void Residency::Claim(PageRange range) {
  ForEachChunk(range, [&](size_t chunk, const Bits& mask) { chunks_[chunk].claimed |= mask; });
}

void Residency::Unclaim(PageRange range) {
  ForEachChunk(range, [&](size_t chunk, const Bits& mask) { chunks_[chunk].claimed &= ~mask; });
}

void Residency::SetSmall(PageRange range) {
  ForEachChunk(range, [&](size_t number, const Bits& mask) {
    Chunk& chunk = chunks_[number];
    if (chunk.huge) return;
    small_pages_ += (mask & ~chunk.present).count();
    chunk.present |= mask;
  });
}

void Residency::SetHuge(size_t number) {
  Chunk& chunk = chunks_[number];
  if (chunk.huge) return;
  small_pages_ -= chunk.present.count();
  chunk.present.set();
  chunk.huge = true;
  ++huge_chunks_;
}

void Residency::Clear(PageRange range) {
  ForEachChunk(range, [&](size_t number, const Bits& mask) {
    Chunk& chunk = chunks_[number];
    if (chunk.huge) {
      chunk.huge = false;
      --huge_chunks_;
    } else {
      small_pages_ -= chunk.present.count();
    }
    chunk.present &= ~mask;
    chunk.claimed &= ~mask;
    small_pages_ += chunk.present.count();
  });
}

void Residency::Truncate(size_t bytes) {
  const size_t pages = bytes / kSmallPageBytes;
  Clear({pages, pages_});
  pages_ = pages;
  chunks_.resize((pages_ + kChunkPages - 1) / kChunkPages);
}

}  // namespace terrace
