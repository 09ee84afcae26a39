// The device tier in a mover: DeviceTier by a process that is started, watched and replaced.
//
// One thread of its own supervises (mover_supervisor.h); the owner thread hands it requests and
// gets completions by Executor::Post. The tier has no context and no memory of the device but
// descriptors.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <string>

#include "base/clock.h"
#include "base/executor.h"
#include "base/status.h"
#include "tiers/device/mover/arguments.h"
#include "tiers/device_tier.h"

namespace terrace {

struct MoverTierOptions {
  std::string program;   // terrace-mover, by its path.
  MoverArguments mover;  // All but the socket.

  size_t requests = 4096;  // That are not done: beyond it they are `exhausted`.
  size_t in_flight = 128;  // Of them with the mover, which takes more.
  int attempts = 3;        // Processes that one request is given to.

  MonotonicNs start_ns = 60 * kNsPerSecond;  // To get ready, and again to be told what there is.
  MonotonicNs report_every_ns = kNsPerSecond;
  MonotonicNs report_ns = 10 * kNsPerSecond;  // To answer: who is slower hangs.
  MonotonicNs stop_ns = 2 * kNsPerSecond;

  // The pause before a start doubles with each process that ended before it served for a window.
  // After so many starts in a window the tier rests until the window has passed.
  MonotonicNs pause_ns = 100 * kNsPerMs;
  MonotonicNs most_pause_ns = 30 * kNsPerSecond;
  size_t starts = 8;
  MonotonicNs window_ns = 60 * kNsPerSecond;
};

// `lost`: on the owner thread, of an arena that no process can have again, before any `done` that
// says so. `owner` and `clock` outlive the tier. `exhausted`: no thread or descriptor.
Result<std::unique_ptr<DeviceTier>> StartMoverTier(const MoverTierOptions& options, Executor& owner,
                                                   const Clock& clock,
                                                   std::function<void(ArenaId)> lost);

}  // namespace terrace
