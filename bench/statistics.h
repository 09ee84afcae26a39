// Order statistics over measured values, and the clock they are measured with.
//
// Pure functions; any thread.
#pragma once

#include <chrono>
#include <cstdint>
#include <span>
#include <vector>

#if defined(__x86_64__)
#include <x86intrin.h>
#endif

namespace terrace::bench {

// The value below which `share` (0 to 1) of the values lie, by the nearest-rank rule: always one of
// the values; 0 of none.
double Percentile(std::vector<double> values, double share);
inline double Median(std::vector<double> values) {
  return Percentile(std::move(values), 0.5);
}
double Mean(std::span<const double> values);

class Stopwatch {
 public:
  double Seconds() const {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  }
  double Us() const { return Seconds() * 1e6; }
  double Ns() const { return Seconds() * 1e9; }

 private:
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

// A counter cheap enough to time steps of tens of nanoseconds one by one. The fences keep the timed
// step from moving out of its two readings.
inline uint64_t Ticks() {
#if defined(__x86_64__)
  _mm_lfence();
  const uint64_t ticks = __rdtsc();
  _mm_lfence();
  return ticks;
#else
  return static_cast<uint64_t>(std::chrono::steady_clock::now().time_since_epoch().count());
#endif
}

// What Ticks() is worth on this machine, measured for about 20 ms.
struct TickScale {
  double ns_per_tick = 1;
  double empty_ticks = 0;  // Between two readings with nothing in between: the median.
};
TickScale MeasureTicks();

}  // namespace terrace::bench
