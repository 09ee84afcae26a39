// Clock: where time comes from. Rooms are given one; nothing reads the system's clock itself, so
// that the simulation and the tests own time.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>

namespace terrace {

// Nanoseconds on a monotonic clock whose zero is arbitrary.
using MonotonicNs = int64_t;

class Clock {
 public:
  virtual ~Clock() = default;
  virtual MonotonicNs Now() const = 0;
  // Milliseconds since the Unix epoch: for records that outlive the process, never for durations.
  virtual int64_t WallMs() const = 0;
};

class SystemClock final : public Clock {
 public:
  MonotonicNs Now() const override {
    return std::chrono::duration_cast<std::chrono::nanoseconds>(
               std::chrono::steady_clock::now().time_since_epoch())
        .count();
  }
  int64_t WallMs() const override {
    return std::chrono::duration_cast<std::chrono::milliseconds>(
               std::chrono::system_clock::now().time_since_epoch())
        .count();
  }
};

// Moves only when told. Safe to read from any thread.
class ManualClock final : public Clock {
 public:
  MonotonicNs Now() const override { return now_.load(std::memory_order_relaxed); }
  int64_t WallMs() const override { return Now() / 1'000'000; }
  void Advance(MonotonicNs ns) { now_.fetch_add(ns, std::memory_order_relaxed); }

 private:
  std::atomic<MonotonicNs> now_{1};
};

inline constexpr MonotonicNs kNsPerMs = 1'000'000;
inline constexpr MonotonicNs kNsPerSecond = 1'000'000'000;

}  // namespace terrace
