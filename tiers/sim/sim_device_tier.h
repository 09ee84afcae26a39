// SimDeviceTier: memory of a device for tests and the simulation: plain memory, no process, the
// contract of DeviceTier, and faults by plan. Work is done when RunPending says so.
//
// It is stricter than the real tier where that finds bugs of the engine: what names an arena that
// there is not, strays, or releases what work in flight uses, aborts the program (TERRACE_CHECK),
// since the engine alone calls it. Arenas of the host are reached by `host_bytes`. Owner thread
// only.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <span>
#include <vector>

#include "tiers/device_tier.h"
#include "tiers/sim/sim_faults.h"

namespace terrace {

class SimDeviceTier final : public DeviceTier {
 public:
  // What an arena of the host has; empty: there is no such.
  using HostBytes = std::function<std::span<uint8_t>(ArenaId)>;
  SimDeviceTier(uint64_t total_bytes, uint64_t granularity, HostBytes host_bytes)
      : total_bytes_(total_bytes), granularity_(granularity), host_bytes_(std::move(host_bytes)) {}

  void Create(ArenaId arena, uint64_t bytes, MonotonicNs deadline,
              std::function<void(Result<DeviceMemory>)> done) override;
  void Import(ArenaId arena, uint64_t bytes, UniqueFd slab, MonotonicNs deadline,
              Done done) override;
  void Open(ArenaId arena, uint64_t bytes, const DeviceHandle& handle, MonotonicNs deadline,
            Done done) override;
  void AddHost(ArenaId arena, uint64_t bytes, UniqueFd file, Protection protection,
               Registration registration, MonotonicNs deadline, Done done) override;
  void Release(ArenaId arena, MonotonicNs deadline, Done done) override;
  void Copy(std::vector<DeviceCopy> copies, bool complete, MonotonicNs deadline,
            Done done) override;
  void Clear(DevicePlace at, uint64_t bytes, MonotonicNs deadline, Done done) override;
  void MovePages(DevicePages pages, MonotonicNs deadline, Done done) override;
  DeviceTierReport Report() const override;

  // Does what was asked for by now, in its order, at most `limit`; returns how many completions
  // were called.
  size_t RunPending(size_t limit = SIZE_MAX);
  // The device, or the process that had it, is gone: arenas of the device are lost, those named
  // through `lost` first; what is pending fails with `stale`.
  void LoseDevice(const std::function<void(ArenaId)>& lost);
  // The bytes of an arena of the device; empty: there is no such.
  std::span<uint8_t> Bytes(ArenaId arena);
  size_t arena_count() const { return arenas_.size(); }  // Of device and host.
  size_t pending() const { return pending_.size(); }

  bool serving = true;   // What Report says; requests wait while it is not.
  bool resting = false;  // What it says too: all that is asked for is `unavailable`.
  bool slabs = true;     // Else memory is shared by handles.
  // Descriptors of slabs stand for them, and nothing can be mapped by them; else they are none.
  bool descriptors = false;
  FaultPlan create_faults;
  FaultPlan copy_faults;
  FaultPlan release_faults;
  FaultPlan host_faults;    // Of AddHost.
  FaultPlan import_faults;  // Of Import and Open.
  uint64_t copied_bytes = 0;
  uint64_t copy_calls = 0;

 private:
  struct Arena {
    bool of_host = false;
    Protection protection = Protection::kRead;
    bool coming = true;
    bool lost = false;
    uint32_t uses = 0;  // By work that is pending.
    uint64_t bytes = 0;
    std::vector<uint8_t> memory;  // Of the device.
  };
  struct Pending {
    std::vector<ArenaId> uses;
    // Ran when it is its turn; or gets the error that the plan, or a loss, has for it.
    std::function<void(Status)> run;
    Status fault;
  };
  Arena& Find(ArenaId arena);
  std::span<uint8_t> At(DevicePlace place, uint64_t bytes);
  void Ask(std::vector<ArenaId> uses, Status fault, std::function<void(Status)> run);
  void Add(ArenaId id, uint64_t bytes, bool of_host, Protection protection, FaultPlan& faults,
           std::function<void(Status)> done);

  const uint64_t total_bytes_;
  const uint64_t granularity_;
  const HostBytes host_bytes_;
  std::map<ArenaId, Arena> arenas_;
  std::deque<Pending> pending_;
  uint64_t used_bytes_ = 0;
};

}  // namespace terrace
