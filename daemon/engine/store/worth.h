// Worth: whether fetching pages from the store is faster than computing them anew. Pure functions,
// and the measure of the store's speed that they take.
#pragma once

#include <cstdint>
#include <span>

#include "base/clock.h"

namespace terrace {

// How fast the store answered lately: moving averages over reads, each new one weighing an eighth.
// Before the first read it is taken for a common device, and what it tells later is measured.
class FetchSpeed {
 public:
  // Of one read of several pages: the time to the first answer and its bytes, and what came after
  // it in how long.
  struct Measured {
    MonotonicNs first_ns = 0;
    uint64_t rest_bytes = 0;
    MonotonicNs rest_ns = 0;
  };
  void Add(const Measured& measured);

  uint64_t latency_ns() const { return static_cast<uint64_t>(latency_ns_); }
  uint64_t bytes_per_second() const { return static_cast<uint64_t>(bytes_per_second_); }

 private:
  bool latency_known_ = false;
  bool speed_known_ = false;
  double latency_ns_ = 200'000;
  double bytes_per_second_ = 2e9;
};

// A page of a chain's prefix, of which each is in memory or in the store.
struct PrefixPage {
  bool in_memory = false;
  uint32_t bytes = 0;
};

// How many pages from the first on are worth having: the longest prefix whose missing pages come
// from the store in less time than they take to compute. What is in memory costs neither. 0
// microseconds: not told, so all.
uint32_t WorthPrefix(std::span<const PrefixPage> pages, const FetchSpeed& speed,
                     uint32_t recompute_us_per_page);

}  // namespace terrace
