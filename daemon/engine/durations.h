// Durations: how long things of one kind took, counted by upper bounds. A plain value.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>

#include "base/clock.h"

namespace terrace {

struct Durations {
  static constexpr std::array<MonotonicNs, 15> kBoundsNs = {
      100'000,     200'000,     500'000,       1'000'000,     2'000'000,
      5'000'000,   10'000'000,  20'000'000,    50'000'000,    100'000'000,
      200'000'000, 500'000'000, 1'000'000'000, 2'000'000'000, 10'000'000'000};

  std::array<uint64_t, kBoundsNs.size() + 1> counts = {};  // The last: of those beyond.
  MonotonicNs total_ns = 0;

  void Add(MonotonicNs ns) {
    const auto bound = std::lower_bound(kBoundsNs.begin(), kBoundsNs.end(), ns);
    ++counts[static_cast<size_t>(bound - kBoundsNs.begin())];
    total_ns += ns;
  }
  Durations& operator+=(const Durations& others) {
    for (size_t i = 0; i < counts.size(); ++i)
      counts[i] += others.counts[i];
    total_ns += others.total_ns;
    return *this;
  }
};

}  // namespace terrace
