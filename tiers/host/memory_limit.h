// How much memory this process may use: the tightest limit of its control groups and of the
// machine.
//
// Read from /proc and /sys/fs/cgroup (cgroup v2: memory.max, memory.high, memory.current; v1:
// memory.limit_in_bytes, memory.usage_in_bytes), for every group from the process's own up to the
// root of the mount. Blocks for some file reads; any thread.
#pragma once

#include <cstdint>
#include <string>

#include "base/status.h"

namespace terrace {

struct MemoryLimit {
  uint64_t limit_bytes = 0;
  // What can still be had now, page cache that the kernel would drop included. The smallest over
  // all groups and the machine, so it may come from another group than the limit does.
  uint64_t available_bytes = 0;
  std::string source;  // What sets limit_bytes: "the machine" or the group's folder.
};

// `root` goes before every path that is read, also before those that files name: tests lay out a
// small tree of their own. Fails only when the machine's own memory cannot be read; control groups
// that cannot be are ignored.
Result<MemoryLimit> ReadMemoryLimit(const std::string& root = "");

}  // namespace terrace
