// The mover: what does a GPU's work for the daemon, in a process of its own that has the context.
// The daemon asks over a socket (messages.h); it may die, hang or lose its context, and the daemon
// starts another.
//
// One thread serves: it takes requests, puts their work on a stream (into the device, out of it,
// within it), and answers when it is done. Requests are in no order but their answers': who needs
// one done before another asks for the other after its answer. An arena is released when no work
// uses it any more, and no work that comes after the request to release it may name it. Work stays
// inside the arenas that it names, whatever lies beside them.
//
// Host arenas are registered by a thread of its own, for one call to the driver takes as long as
// the kernel needs to pin the memory; piece by piece, so that a release waits for one at most, and
// arenas take turns. Copies to and from what is not registered, or was refused, are staged
// (staging.h).
#pragma once

#include <cstddef>
#include <memory>

#include "base/status.h"
#include "tiers/device/gpu.h"
#include "tiers/device/mover/socket.h"
#include "tiers/device/mover/staging.h"

namespace terrace {

struct MoverOptions {
  size_t in_flight = 256;  // Requests that are not answered: beyond it they are `exhausted`.
  size_t arenas = 65'536;  // Likewise.
  MoverStagingOptions staging;
  // Registered by one call: a multiple of 4096, and as the driver takes it at most. 0: nothing is
  // registered but the staging ring, and every copy is staged.
  uint64_t registration_bytes = uint64_t{1} << 30;
};

// To a daemon that waits for a mover which cannot be.
void SayNotReady(const MoverSocket& socket, const Status& why);

// Serves until the daemon has closed its end: Ok. `stale` and `unavailable`: the context is dead;
// all that was asked has its answer. The Gpu ends with it, after the work on its streams: with a
// device that hangs this may never return, though it answers whatever does not hang until then.
// Then the daemon kills the process. What cannot start at all is told to the daemon, too.
Status ServeMover(std::unique_ptr<Gpu> gpu, const MoverSocket& socket, const MoverOptions& options);

}  // namespace terrace
