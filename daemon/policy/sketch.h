// FrequencySketch: about how often each of many items was used lately, in memory of a fixed size.
//
// A count-min sketch of four rows of 4-bit counters: an item's estimate is the least of its four,
// so it is never too low, up to kMax. When as many uses were added as eight times the counters of a
// row, all counters are halved, so that what was used long ago weighs less. Owner thread only.
//
// Memory: two bytes a counter of a row. Add is O(1); the halving reads all of it, some 0.3 ms for
// 2^20 counters a row, once in 2^23 uses.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace terrace {

class FrequencySketch {
 public:
  static constexpr uint32_t kMax = 15;

  // `counters` of a row: rounded up to a power of two, at least 64.
  explicit FrequencySketch(size_t counters);

  // `item` is a hash; what of it is uniform does not matter.
  void Add(uint64_t item);
  uint32_t Estimate(uint64_t item) const;
  uint64_t bytes() const { return words_.size() * sizeof(uint64_t); }

 private:
  static constexpr int kRows = 4;
  struct Place {
    size_t word = 0;
    uint32_t shift = 0;
  };
  Place PlaceOf(uint64_t item, int row) const;
  uint32_t CountAt(const Place& place) const { return words_[place.word] >> place.shift & 15; }
  void Halve();

  int bits_ = 6;                 // Of a counter's number in its row.
  std::vector<uint64_t> words_;  // Sixteen counters a word, one row after the other.
  uint64_t added_ = 0;           // Since the last halving.
};

}  // namespace terrace
