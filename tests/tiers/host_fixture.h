// What the tests of the host tier share: a tier with a pool and an owner thread by hand, and eyes
// on what the kernel says about its memory.
#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <memory>
#include <span>
#include <sstream>
#include <string>
#include <vector>

#include "base/worker_pool.h"
#include "tests/tiers/faulty_host_system.h"
#include "tiers/host/host_tier.h"
#include "tiers/sim/sim_executor.h"

namespace terrace {

inline constexpr size_t kPage = 4096;
inline constexpr size_t kMiB = 1u << 20;
inline constexpr size_t kHuge = 2 * kMiB;

class HostTierTest : public ::testing::Test {
 protected:
  HostTierTest() : pool_(*WorkerPool::Start({.name = "pretouch", .low_priority = true})) {
    Restart({.blank_bytes = 4 * kMiB});
  }
  void Restart(HostTierOptions options) {
    options.system = &system_;
    tier_.reset();
    auto tier = MakeHostTier(options, owner_, *pool_);
    TERRACE_CHECK(tier.has_value());
    tier_ = *std::move(tier);
  }
  ArenaId Create(size_t bytes, ArenaUse use = ArenaUse::kSlab) {
    auto created = tier_->Create(bytes, use);
    TERRACE_CHECK(created.has_value());
    return created->id;
  }
  // Waits until the reserve is as large as it shall be.
  bool FillReserve(size_t bytes) {
    tier_->SetReserve(bytes);
    return owner_.RunUntil([&] { return tier_->Report().blank_bytes == bytes; });
  }
  UniqueFd Open(ArenaId arena, Protection protection) {
    auto fd = tier_->Descriptor(arena, protection);
    TERRACE_CHECK(fd.has_value());
    return *std::move(fd);
  }
  static size_t AllocatedBytes(int fd) {
    struct stat facts {};
    TERRACE_CHECK(::fstat(fd, &facts) == 0);
    return static_cast<size_t>(facts.st_blocks) * 512;
  }
  // Pages of the range that are in memory, by mincore.
  static size_t ResidentPages(std::span<uint8_t> range) {
    std::vector<unsigned char> resident((range.size() + kPage - 1) / kPage);
    TERRACE_CHECK(::mincore(range.data(), range.size(), resident.data()) == 0);
    return static_cast<size_t>(
        std::count_if(resident.begin(), resident.end(), [](unsigned char b) { return b & 1; }));
  }
  static bool AllZero(std::span<const uint8_t> bytes) {
    return std::all_of(bytes.begin(), bytes.end(), [](uint8_t b) { return b == 0; });
  }
  // A field of /proc/self/smaps in bytes, summed over the mappings that lie in `range`.
  static size_t SmapsBytes(std::span<uint8_t> range, const std::string& field) {
    const auto begin = reinterpret_cast<uintptr_t>(range.data());
    const uintptr_t end = (begin + range.size() + kPage - 1) / kPage * kPage;
    std::ifstream file("/proc/self/smaps");
    std::string line;
    bool inside = false;
    size_t sum = 0;
    while (std::getline(file, line)) {
      uintptr_t from = 0;
      uintptr_t to = 0;
      char dash = 0;
      if (std::istringstream(line) >> std::hex >> from >> dash >> to && dash == '-') {
        inside = from >= begin && to <= end;
      }
      if (inside && line.starts_with(field + ":")) {
        sum += 1024 * std::stoul(line.substr(field.size() + 1));
      }
    }
    return sum;
  }

  FaultyHostSystem system_;
  ManualExecutor owner_;
  const std::unique_ptr<WorkerPool> pool_;
  std::unique_ptr<HostTier> tier_;
};

}  // namespace terrace
