#include "daemon/policy/sketch.h"

#include <algorithm>

namespace terrace {
namespace {

constexpr int kMaxBits = 28;
constexpr uint64_t kUsesACounter = 8;
// Odd, and far apart: each row sees another hash of the same item.
constexpr uint64_t kFactors[] = {0x9e3779b97f4a7c15, 0xc2b2ae3d27d4eb4f, 0xd6e8feb86659fd93,
                                 0xa0761d6478bd642f};

}  // namespace

FrequencySketch::FrequencySketch(size_t counters) {
  while (bits_ < kMaxBits && (size_t{1} << bits_) < counters)
    ++bits_;
  words_.resize(kRows * ((size_t{1} << bits_) / 16));
}

FrequencySketch::Place FrequencySketch::PlaceOf(uint64_t item, int row) const {
  const uint64_t mixed = (item ^ item >> 32) * kFactors[row];
  const uint64_t counter = (mixed ^ mixed >> 29) * kFactors[row] >> (64 - bits_);
  return {.word = static_cast<size_t>(row) * (words_.size() / kRows) + counter / 16,
          .shift = static_cast<uint32_t>(counter % 16 * 4)};
}

// Only the lowest of the four grow: the others are too high already, by other items.
void FrequencySketch::Add(uint64_t item) {
  const uint32_t count = Estimate(item);
  if (++added_ >= kUsesACounter << bits_) Halve();
  if (count == kMax) return;
  for (int row = 0; row < kRows; ++row) {
    const Place place = PlaceOf(item, row);
    if (CountAt(place) <= count) words_[place.word] += uint64_t{1} << place.shift;
  }
}

uint32_t FrequencySketch::Estimate(uint64_t item) const {
  uint32_t least = kMax;
  for (int row = 0; row < kRows; ++row)
    least = std::min(least, CountAt(PlaceOf(item, row)));
  return least;
}

void FrequencySketch::Halve() {
  for (uint64_t& word : words_)
    word = word >> 1 & 0x7777777777777777;
  added_ /= 2;
}

}  // namespace terrace
