// HostCheck: what this host lacks for a configuration, in words: what was found, what follows, and
// what to do about it. At the start of the daemon, and for `terraced --check-host`.
//
// Nothing that it finds keeps the daemon from serving, but a directory of the store without
// O_DIRECT. Blocks for some file reads, one probe of 2 MiB of memory, and an unnamed file in each
// directory of the store; any thread.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "daemon/service/config.h"
#include "tiers/host/memory_limit.h"

namespace terrace {

// Of the file system that a directory of the store is on, or would be made on.
struct NvmeFacts {
  std::string path;
  int direct_error = 0;  // Of an unnamed file with O_DIRECT; EINVAL: it knows none; 0: it works.
  uint64_t total_bytes = 0;  // 0: not read.
};

struct HostFacts {
  Result<MemoryLimit> memory = Status(Code::kUnavailable, "not read");
  uint64_t memlock_bytes = 0;  // RLIMIT_MEMLOCK; UINT64_MAX: no limit.
  bool may_lock_all = false;   // CAP_IPC_LOCK.
  uint64_t descriptors = 0;    // The hard RLIMIT_NOFILE.
  uint64_t hugetlb_pages = 0;  // Of 2 MiB, free.
  std::string shmem_huge_pages;
  int collapse_error = 0;  // Of MADV_COLLAPSE on 2 MiB of a memfd; 0: it works.
  int io_uring_error = 0;  // Of io_uring_setup; 0: it works.
  std::vector<NvmeFacts> nvme;
};
HostFacts ReadHostFacts(const Config& config);

// Of weights, that are read or written past the page cache at once.
inline constexpr uint32_t kMostWeightFiles = 1024;
// What the daemon has open of files at most: slot files and weights, which threads of the file I/O
// open again, and the index of a store. Not the files of registered models, of which there are as
// many as the operator adds.
uint64_t FileDescriptors(const Config& config);

struct HostFinding {
  std::string_view subject;  // "memlock"
  bool lacking = false;
  std::string text;
};
// One for each subject, in a fixed order; one for each directory of the store, last.
std::vector<HostFinding> CheckHost(const Config& config, const HostFacts& facts);

}  // namespace terrace
