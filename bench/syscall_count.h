// Counts the system calls of another process from outside, with ptrace.
//
// All calls come from one thread, which becomes the tracer.
#pragma once

#include <sys/types.h>

#include <atomic>
#include <cstdint>

#include "base/status.h"

namespace terrace::bench {

// Shared with the process that is counted, which waits for `go` and sets `done` without a system
// call, and then waits for its end.
struct CountedSection {
  std::atomic<uint32_t> go{0};
  std::atomic<uint32_t> done{0};
};

// Traces every thread of `pid`, a child of this process, sets `go`, counts the entries into system
// calls until `done`, and kills the process, whose end is still to be waited for.
Result<uint64_t> CountSystemCalls(pid_t pid, CountedSection& section);

}  // namespace terrace::bench
