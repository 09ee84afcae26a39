#include "daemon/service/host_check.h"

#include <fcntl.h>
#include <linux/io_uring.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>

#include "daemon/service/devices.h"
#include "daemon/service/fd_budget.h"
#include "daemon/service/host_capacity.h"
#include "daemon/service/size_text.h"
#include "tiers/host/host_system.h"
#include "tiers/io/disk_io.h"
#include "tiers/nvme/slot_space.h"

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25  // Linux 6.1; headers may be older than the kernel.
#endif

namespace terrace {

namespace {

constexpr size_t kHugePage = 2u << 20;
constexpr unsigned kCapIpcLock = 14;  // linux/capability.h
// Of the daemon itself: libraries, the journal's files, epoll and timers, the listening sockets.
constexpr uint64_t kOwnDescriptors = 128;
// Of one directory of the store: slot files and its marker (docs/architecture.md).
constexpr uint64_t kFilesOfDirectory = nvme::kMaxFilesOfDevice + 1;
constexpr uint64_t kIndexDescriptors = 512;

uint64_t LimitOf(__rlimit_resource resource, bool hard) {
  rlimit limit{};
  if (::getrlimit(resource, &limit) != 0) return 0;
  const rlim_t value = hard ? limit.rlim_max : limit.rlim_cur;
  return value == RLIM_INFINITY ? UINT64_MAX : value;
}

bool HasCapability(unsigned capability) {
  std::ifstream status("/proc/self/status");
  std::string line;
  while (std::getline(status, line)) {
    if (!line.starts_with("CapEff:")) continue;
    return (std::strtoull(line.c_str() + 7, nullptr, 16) >> capability & 1) != 0;
  }
  return false;
}

// What the host tier does with each of its arenas, tried once.
int ProbeCollapse(HostSystem& system) {
  Result<UniqueFd> memory = system.CreateMemfd("terrace-probe", MFD_CLOEXEC);
  if (!memory) return ENOMEM;
  if (const int error = system.Truncate(memory->get(), kHugePage); error != 0) return error;
  Result<uint8_t*> at = system.Map(memory->get(), kHugePage, kHugePage);
  if (!at) return ENOMEM;
  **at = 1;
  const int error = system.Advise(*at, kHugePage, MADV_COLLAPSE);
  system.Unmap(*at, kHugePage);
  return error;
}

int ProbeIoUring() {
  io_uring_params params{};
  const UniqueFd ring(static_cast<int>(::syscall(SYS_io_uring_setup, 1, &params)));
  return ring ? 0 : errno;
}

// The directory itself may have to be made yet.
NvmeFacts ProbeDirectory(const std::string& path) {
  NvmeFacts facts{.path = path};
  std::string at = path;
  while (at.size() > 1 && ::access(at.c_str(), F_OK) != 0)
    at.resize(std::max<size_t>(at.rfind('/'), 1));
  struct statvfs system {};
  if (::statvfs(at.c_str(), &system) == 0) facts.total_bytes = system.f_blocks * system.f_frsize;
  const UniqueFd file(::open(at.c_str(), O_TMPFILE | O_RDWR | O_DIRECT | O_CLOEXEC, 0600));
  facts.direct_error = file ? 0 : errno;
  return facts;
}

uint64_t Wanted(const Config& config, const HostFacts& facts) {
  if (config.capacity.bytes != 0 || !facts.memory) return config.capacity.bytes;
  return static_cast<uint64_t>(static_cast<double>(facts.memory->limit_bytes) *
                               config.capacity.fraction);
}

HostFinding Memory(const Config& config, const HostFacts& facts) {
  if (!facts.memory) return {"memory", true, facts.memory.error().message()};
  const MemoryLimit& memory = *facts.memory;
  const auto choice = HostCapacity::Choose(config.capacity, [&] { return memory; });
  const std::string limit = RoundedSizeText(memory.limit_bytes) + " by " + memory.source + ", " +
                            RoundedSizeText(memory.available_bytes) + " of it free";
  if (choice && choice->present_bytes() >= choice->wanted_bytes()) {
    return {"memory", false,
            "the capacity is " + RoundedSizeText(choice->wanted_bytes()) + ", the limit " + limit};
  }
  return {"memory", true,
          "the capacity is " + RoundedSizeText(Wanted(config, facts)) + ", but the limit is " +
              limit +
              ". The daemon starts with less and grows as memory becomes free: lower "
              "host.capacity or raise the limit"};
}

HostFinding Memlock(const Config& config, const HostFacts& facts) {
  if (config.lock == LockChoice::kNever) {
    return {"memlock", false, "host.lock is \"never\": memory may be swapped out"};
  }
  if (facts.may_lock_all) return {"memlock", false, "CAP_IPC_LOCK: all memory can be locked"};
  const uint64_t wanted = Wanted(config, facts);
  if (facts.memlock_bytes >= wanted) {
    return {"memlock", false, "RLIMIT_MEMLOCK allows the whole capacity"};
  }
  return {"memlock", true,
          "RLIMIT_MEMLOCK is " + RoundedSizeText(facts.memlock_bytes) + " and the capacity " +
              RoundedSizeText(wanted) +
              ". Memory beyond the limit is not locked: under pressure the kernel swaps it out, "
              "and a hit then waits for a disk. Set LimitMEMLOCK=infinity in the unit, or "
              "\"memlock\" in limits.conf"};
}

HostFinding HugePages(const Config& config, const HostFacts& facts) {
  if (config.huge_pages == HugePagesChoice::kNever) {
    return {"huge pages", false, "host.huge_pages is \"never\""};
  }
  const uint64_t reserved = facts.hugetlb_pages * kHugePage;
  const uint64_t wanted = Wanted(config, facts);
  if (wanted > 0 && reserved >= wanted) {
    return {"huge pages", false, "enough are reserved: " + RoundedSizeText(reserved)};
  }
  if (facts.collapse_error == 0) {
    return {"huge pages", false,
            "MADV_COLLAPSE works" + (reserved > 0
                                         ? ", and " + RoundedSizeText(reserved) + " are reserved"
                                         : std::string())};
  }
  const bool shmem = facts.shmem_huge_pages == "always" || facts.shmem_huge_pages == "advise" ||
                     facts.shmem_huge_pages == "within_size" || facts.shmem_huge_pages == "force";
  if (shmem) {
    return {"huge pages", false, "shmem_enabled is \"" + facts.shmem_huge_pages + "\""};
  }
  return {
      "huge pages", true,
      "MADV_COLLAPSE fails (" + std::string(std::strerror(facts.collapse_error)) +
          "), shmem_enabled is \"" + facts.shmem_huge_pages + "\", and " +
          (reserved == 0 ? std::string("none are reserved")
                         : RoundedSizeText(reserved) + " are reserved") +
          ". Memory stands on pages of 4 KiB: its first touch costs some twenty times more, and "
          "every access more TLB misses. Set vm.nr_hugepages to " +
          std::to_string((wanted + kHugePage - 1) / kHugePage) +
          ", or use Linux 6.1 or later with transparent huge pages"};
}

HostFinding IoUring(const Config& config, const HostFacts& facts) {
  if (config.nvme.empty()) {
    return {"io_uring", false, "not used: there is no [[nvme]] in the configuration"};
  }
  if (config.io_uring == IoUringChoice::kNever) {
    return {"io_uring", false, "store.io_uring is \"never\": the store uses threads"};
  }
  if (facts.io_uring_error == 0) return {"io_uring", false, "it works, and the store uses it"};
  return {"io_uring", true,
          "not to be had (" + std::string(std::strerror(facts.io_uring_error)) +
              "). The store uses threads: each transfer costs two switches between them, and a "
              "device that hangs keeps one of them. Set kernel.io_uring_disabled to 0, and allow "
              "io_uring_setup, io_uring_enter and io_uring_register where system calls are "
              "filtered"};
}

HostFinding Directory(const NvmeConfig& nvme, const NvmeFacts& facts) {
  const std::string path = nvme.path + ": ";
  if (facts.direct_error == EINVAL) {
    return {"nvme", true,
            path +
                "its file system knows no O_DIRECT, and the daemon does not start. Choose a "
                "directory on ext4 or xfs"};
  }
  if (facts.total_bytes != 0 && facts.total_bytes < nvme.capacity_bytes) {
    return {"nvme", true,
            path + "nvme.capacity is " + RoundedSizeText(nvme.capacity_bytes) +
                ", and its file system has " + RoundedSizeText(facts.total_bytes) +
                ". When that is full the store takes no more pages; what it has is served. Lower "
                "nvme.capacity, or mount what is meant to be there"};
  }
  if (facts.direct_error != 0) {
    return {"nvme", false,
            path + "whether O_DIRECT works was not tried (" +
                std::string(std::strerror(facts.direct_error)) + ")"};
  }
  return {"nvme", false, path + "O_DIRECT works"};
}

// As far as the configuration tells: those that are found without tables come on top.
size_t DevicesOf(const Config& config) {
  if (config.device == DeviceChoice::kNone) return 0;
  return config.device == DeviceChoice::kHost ? std::max<size_t>(1, config.devices.size())
                                              : config.devices.size();
}

HostFinding Descriptors(const Config& config, const HostFacts& facts) {
  const uint64_t wanted_bytes = Wanted(config, facts);
  const uint64_t arena = std::min(config.slab_bytes != 0 ? config.slab_bytes : UINT64_MAX,
                                  config.block_bytes != 0 ? config.block_bytes : UINT64_MAX);
  const uint64_t arena_bytes = arena == UINT64_MAX ? DefaultArenaBytes(wanted_bytes) : arena;
  const uint64_t open = kOwnDescriptors + wanted_bytes / arena_bytes + 2ull * config.clients +
                        (config.connections - config.clients) + FileDescriptors(config) +
                        kDescriptorsOfDevice * DevicesOf(config);
  // Replies may hold a part of the limit besides.
  const uint64_t needed =
      (open * FdBudget::kPartOfLimit + FdBudget::kPartOfLimit - 2) / (FdBudget::kPartOfLimit - 1);
  if (facts.descriptors >= needed) {
    return {"descriptors", false, "the limit allows limits.clients and limits.connections"};
  }
  return {"descriptors", true,
          "the hard RLIMIT_NOFILE is " + std::to_string(facts.descriptors) +
              ", but limits.clients, limits.connections, the capacity, files and replies under way "
              "may need " +
              std::to_string(needed) +
              ". Beyond it new connections wait, and memory that is not yet taken cannot be. Set "
              "LimitNOFILE= in the unit, or lower the limits"};
}

}  // namespace

uint64_t FileDescriptors(const Config& config) {
  const uint64_t files = kFilesOfDirectory * config.nvme.size() + kMostWeightFiles;
  return 2 * std::min<uint64_t>(files, kMostIoFiles) +
         (config.nvme.empty() ? 0 : kIndexDescriptors);
}

HostFacts ReadHostFacts(const Config& config) {
  HostSystem& system = KernelHostSystem();
  HostFacts facts;
  facts.memory = ReadMemoryLimit();
  facts.memlock_bytes = LimitOf(RLIMIT_MEMLOCK, false);
  facts.may_lock_all = HasCapability(kCapIpcLock);
  facts.descriptors = LimitOf(RLIMIT_NOFILE, true);
  facts.hugetlb_pages = system.FreeHugetlbPages();
  facts.shmem_huge_pages = system.ShmemHugePages();
  facts.collapse_error = ProbeCollapse(system);
  facts.io_uring_error = ProbeIoUring();
  for (const NvmeConfig& nvme : config.nvme)
    facts.nvme.push_back(ProbeDirectory(nvme.path));
  return facts;
}

std::vector<HostFinding> CheckHost(const Config& config, const HostFacts& facts) {
  std::vector<HostFinding> findings = {Memory(config, facts), Memlock(config, facts),
                                       HugePages(config, facts), IoUring(config, facts),
                                       Descriptors(config, facts)};
  for (size_t i = 0; i < config.nvme.size() && i < facts.nvme.size(); ++i)
    findings.push_back(Directory(config.nvme[i], facts.nvme[i]));
  return findings;
}

}  // namespace terrace
