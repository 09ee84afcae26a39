// What the suites on GPUs share: the device that was chosen, work on it that is waited for, memory
// of files that a mover can be given, and a device tier over a real terrace-mover.
//
// One thread uses each.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/status.h"
#include "base/unique_fd.h"
#include "bench/figures.h"
#include "tiers/device/gpu.h"
#include "tiers/device/mover/arguments.h"
#include "tiers/device_tier.h"
#include "tiers/sim/sim_executor.h"

namespace terrace::bench {

// A device by its words: "host", "cuda" (the first one) or "cuda:UUID". Opens no context.
struct ChosenDevice {
  std::shared_ptr<Gpus> gpus;
  GpuFacts facts;
  MoverKind kind = MoverKind::kHost;
  uint64_t host_bytes = 0;  // Of a device of the host.
};
Result<ChosenDevice> ChooseDevice(const std::string& words, uint64_t host_bytes);

// A context of this process on it, with a stream.
class DeviceWork {
 public:
  static Result<DeviceWork> Open(const ChosenDevice& device);
  Gpu& gpu() const { return *gpu_; }
  GpuStream stream() const { return stream_; }
  // Returns when all that is on the stream is done.
  Status Finish() const;
  // Memory of the device, of whole granules, that this process reads and writes.
  Result<GpuAddress> Allocate(uint64_t bytes) const;

 private:
  std::unique_ptr<Gpu> gpu_;
  GpuStream stream_{};
  GpuEvent event_{};
};

// A memfd of random bytes, mapped here, all of it in memory and on huge pages where they are to be
// had: what a host arena is.
class HostFile {
 public:
  static Result<HostFile> Make(uint64_t bytes, uint64_t seed);
  // Another descriptor of it, to be given away.
  Result<UniqueFd> Descriptor() const { return fd_.Duplicate(); }
  std::span<uint8_t> bytes() const { return mapping_.bytes(); }

 private:
  UniqueFd fd_;
  Mapping mapping_;
};

// The terrace-mover that belongs to this program: beside it, or where the build tree has it.
Result<std::string> FindMover();

// A DeviceTier and its owner thread, which is whoever calls. Every request has a minute.
class TierBench {
 public:
  struct Options {
    std::string mover;    // Empty: FindMover.
    bool staged = false;  // Nothing is registered: every copy is staged.
  };
  static Result<std::unique_ptr<TierBench>> Start(const ChosenDevice& device,
                                                  const Options& options);

  // A new arena; the call returns when it is there.
  Result<ArenaId> Create(uint64_t bytes);
  Result<ArenaId> AddHost(const HostFile& file);
  Status Release(ArenaId arena);
  // Until all host arenas are registered; at once where nothing is.
  Status AwaitRegistration();

  // Puts the copies under way; what comes of them is told by Await.
  void Copy(std::vector<DeviceCopy> copies);
  // Until at most so many are under way. The first error of any, as often as it is asked for.
  Status Await(size_t under_way);

  DeviceTier& tier() const { return *tier_; }
  ManualExecutor& owner() { return owner_; }
  MonotonicNs Deadline() const { return clock_.Now() + 60 * kNsPerSecond; }
  ArenaId NextArena() { return ++last_arena_; }
  void CountCopy(const Status& status);
  void BeginCopy() { ++under_way_; }

 private:
  TierBench() = default;
  Status AwaitCall(const std::function<void(DeviceTier::Done)>& call);

  const SystemClock clock_;
  ManualExecutor owner_;
  bool staged_ = false;
  ArenaId last_arena_ = 0;
  size_t under_way_ = 0;
  Status failed_;
  std::unique_ptr<DeviceTier> tier_;  // Goes first: its completions name the above.
};

// Figures say whose they are: on a device of the host they have no thresholds, for what is measured
// there are copies by the processor.
void AddDevice(Figures* figures, const ChosenDevice& device);

}  // namespace terrace::bench
