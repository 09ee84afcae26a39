// What a process maps, from /proc: to see from outside what is shared, writable and resident.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <string>
#include <vector>

#include "base/status.h"

namespace terrace::bench {

struct MappedRange {
  uint64_t start = 0;
  uint64_t end = 0;
  bool writable = false;
  bool shared = false;
  uint64_t inode = 0;
  std::string name;
  uint64_t pss_bytes = 0;  // Its share of what is resident: n processes have an n-th each.
  uint64_t rss_bytes = 0;

  uint64_t bytes() const { return end - start; }
};

// /proc/PID/smaps. Costs a walk over the page tables of the process.
Result<std::vector<MappedRange>> MapsOf(pid_t pid);

Result<uint64_t> OpenDescriptors(pid_t pid);

// A line of /proc/PID/status that counts kB ("RssAnon"), in bytes.
Result<double> StatusBytes(pid_t pid, const std::string& field);

// Capacity, in entries, of the newest directory that this process maps.
Result<uint64_t> MappedDirectoryCapacity();

}  // namespace terrace::bench
