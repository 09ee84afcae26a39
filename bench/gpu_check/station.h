// A process's place at the device: a context, registered memory to copy through, and random bytes
// put and found again by their seed. And descriptors handed from one process to another.
//
// One thread uses it.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "base/status.h"
#include "base/unique_fd.h"
#include "bench/device_bench.h"
#include "bench/gpu_check/question.h"
#include "tiers/device/gpu_probe.h"

namespace terrace::bench {

struct Mapped {
  GpuSlab slab{};
  GpuAddress at = 0;
  uint64_t bytes = 0;
};

class Station {
 public:
  static constexpr uint64_t kWindow = 8u << 20;

  static Result<Station> Open(const CheckOptions& options);
  Gpu& gpu() const { return work_.gpu(); }
  const DeviceWork& work() const { return work_; }
  const GpuFacts& facts() const { return gpu().facts(); }
  const HostFile& window() const { return window_; }
  GpuAddress window_at() const { return reinterpret_cast<GpuAddress>(window_.bytes().data()); }
  // The next multiple of the granularity.
  uint64_t Granules(uint64_t bytes) const;

  // Mapped with that access, in a range of its own.
  Result<Mapped> Map(GpuSlab slab, uint64_t bytes, GpuAccess access) const;
  Result<Mapped> MapNew(uint64_t bytes) const;
  Result<Mapped> MapImport(int fd, uint64_t bytes, GpuAccess access) const;
  // Unmaps it and lets go of it.
  Status Drop(const Mapped& mapped) const;

  // The first bytes, at most kWindow, are those of the seed. data_loss where they are not.
  Status Put(GpuAddress at, uint64_t bytes, uint64_t seed) const;
  Status Holds(GpuAddress at, uint64_t bytes, uint64_t seed) const;
  Status CopyNow(GpuAddress dst, GpuAddress src, uint64_t bytes) const;

  Result<uint64_t> FreeBytes() const;
  Result<std::unique_ptr<GpuProbe>> Probe() const;

 private:
  ChosenDevice device_;
  HostFile window_;  // Registered: it outlives the context.
  DeviceWork work_;
};

std::vector<uint8_t> SeedBytes(uint64_t bytes, uint64_t seed);

// Over a Link's socket, in order with its values.
Status SendFd(int socket, int fd);
Result<UniqueFd> ReceiveFd(int socket);

}  // namespace terrace::bench
