#include "bench/statistics.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace terrace::bench {

double Percentile(std::vector<double> values, double share) {
  if (values.empty()) return 0;
  const double rank = std::ceil(share * static_cast<double>(values.size()));
  const size_t index = std::min(values.size() - 1, static_cast<size_t>(std::max(rank, 1.0)) - 1);
  const auto place = values.begin() + static_cast<std::ptrdiff_t>(index);
  std::nth_element(values.begin(), place, values.end());
  return *place;
}

double Mean(std::span<const double> values) {
  if (values.empty()) return 0;
  return std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
}

TickScale MeasureTicks() {
  TickScale scale;
  const Stopwatch watch;
  const uint64_t first = Ticks();
  std::vector<double> empty;
  while (watch.Seconds() < 0.02) {
    const uint64_t start = Ticks();
    empty.push_back(static_cast<double>(Ticks() - start));
  }
  scale.ns_per_tick = watch.Ns() / static_cast<double>(Ticks() - first);
  scale.empty_ticks = Median(std::move(empty));
  return scale;
}

}  // namespace terrace::bench
