// Deadline: the moment at which a call gives up waiting. The library runs inside engines, so it
// reads the system's monotonic clock itself. Thread safety: values.
#pragma once

#include <time.h>

#include <algorithm>
#include <chrono>
#include <cstdint>

namespace terrace::client {

class Deadline {
 public:
  using Clock = std::chrono::steady_clock;

  static Deadline In(int64_t ms) { return Deadline(Clock::now() + std::chrono::milliseconds(ms)); }

  Clock::time_point point() const { return point_; }
  bool passed() const { return Clock::now() >= point_; }
  // What is left, as ppoll takes it; zero once passed.
  timespec left() const {
    const auto ns = std::max<int64_t>(
        0, std::chrono::duration_cast<std::chrono::nanoseconds>(point_ - Clock::now()).count());
    return {.tv_sec = ns / 1'000'000'000, .tv_nsec = ns % 1'000'000'000};
  }
  // The same in milliseconds, rounded up.
  int64_t left_ms() const {
    const timespec rest = left();
    return int64_t{rest.tv_sec} * 1000 + (rest.tv_nsec + 999'999) / 1'000'000;
  }

 private:
  explicit Deadline(Clock::time_point point) : point_(point) {}
  Clock::time_point point_;
};

}  // namespace terrace::client
