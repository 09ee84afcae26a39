// What the kernel says about this process, for the metrics that every program has. Any thread.
#pragma once

#include <cstdint>

namespace terrace {

// Zero for what cannot be read.
struct ProcessFigures {
  double start_time_seconds = 0;  // Since the epoch.
  double cpu_seconds = 0;
  uint64_t resident_bytes = 0;
  uint64_t open_fds = 0;
  uint64_t max_fds = 0;
};

ProcessFigures ReadProcessFigures();

}  // namespace terrace
