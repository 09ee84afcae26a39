#include "daemon/engine/store/worth.h"

#include <algorithm>

namespace terrace {
namespace {

constexpr double kWeight = 1.0 / 8;
// Below this a difference of two times says more about the clock than about the device.
constexpr MonotonicNs kLeastNs = 1000;

void Average(double measured, bool* known, double* average) {
  *average = *known ? *average + kWeight * (measured - *average) : measured;
  *known = true;
}

}  // namespace

void FetchSpeed::Add(const Measured& measured) {
  Average(static_cast<double>(std::max<MonotonicNs>(measured.first_ns, 0)), &latency_known_,
          &latency_ns_);
  if (measured.rest_bytes == 0 || measured.rest_ns < kLeastNs) return;
  Average(static_cast<double>(measured.rest_bytes) / (static_cast<double>(measured.rest_ns) / 1e9),
          &speed_known_, &bytes_per_second_);
}

uint32_t WorthPrefix(std::span<const PrefixPage> pages, const FetchSpeed& speed,
                     uint32_t recompute_us_per_page) {
  if (recompute_us_per_page == 0) return static_cast<uint32_t>(pages.size());
  const double ns_per_byte =
      1e9 / static_cast<double>(std::max<uint64_t>(1, speed.bytes_per_second()));
  uint32_t worth = 0;
  double fetch_ns = static_cast<double>(speed.latency_ns());
  double compute_ns = 0;
  for (uint32_t i = 0; i < pages.size(); ++i) {
    if (!pages[i].in_memory) {
      fetch_ns += ns_per_byte * pages[i].bytes;
      compute_ns += 1000.0 * recompute_us_per_page;
    }
    if (compute_ns == 0 || fetch_ns < compute_ns) worth = i + 1;
  }
  return worth;
}

}  // namespace terrace
