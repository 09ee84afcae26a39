// A progress bar on standard error: how much of how much, at what rate, how long still.
//
// One thread uses it. It draws only on a terminal, at most about ten times a second, and clears its
// line when it goes.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>

namespace terrace::cli {

class ProgressBar {
 public:
  // `enabled` false: never draws.
  ProgressBar(std::string label, bool enabled);
  ~ProgressBar();
  ProgressBar(const ProgressBar&) = delete;
  ProgressBar& operator=(const ProgressBar&) = delete;

  void Show(uint64_t done_bytes, uint64_t total_bytes);

 private:
  using Time = std::chrono::steady_clock::time_point;

  const std::string label_;
  const bool enabled_;
  const Time started_;
  Time drawn_;
  bool visible_ = false;
  uint64_t first_bytes_ =
      0;  // Done when we began to watch: another caller may have started the load.
  bool watching_ = false;
};

}  // namespace terrace::cli
