// FaultyGpus: GPUs of the tests that fail as they are told, over others that do the work.
//
// Rules say which calls fail and how, before anything was done. What is wrong with a context or a
// device stays so: every later call says the same, as gpu.h has it, until the device is opened
// anew, or restored. What the one below has on its streams goes on meanwhile.
//
// Thread safety: as Gpus and Gpu; rules may be added and what hangs may be released by any thread.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <optional>
#include <vector>

#include "base/clock.h"
#include "base/status.h"
#include "tiers/device/gpu.h"

namespace terrace {

enum class GpuVerb : uint8_t {
  kOpen,
  kMemory,
  kCreateSlab,
  kExportSlab,
  kImportSlab,
  kReleaseSlab,
  kReserveRange,
  kFreeRange,
  kMapSlab,
  kSetAccess,
  kUnmapSlab,
  kAllocate,
  kFreeAllocation,
  kExportAllocation,
  kOpenAllocation,
  kCloseAllocation,
  kShareForeign,
  kRegisterHost,
  kUnregisterHost,
  kCreateStream,
  kDestroyStream,
  kCreateEvent,
  kDestroyEvent,
  kRecordEvent,
  kWaitEvent,
  kQueryEvent,
  kNotify,
  kCopy,
  kClear,
  kGatherPages,
  kScatterPages,
};
inline constexpr size_t kGpuVerbs = 31;

enum class GpuFault : uint8_t {
  kOutOfMemory,  // exhausted, this call.
  kSticky,       // stale: the context is dead.
  kLost,         // unavailable: the device is gone, for every Gpu of it, and cannot be opened.
  // Of RecordEvent: what it stands for now is not done before Release, or before `late_ns` passed,
  // though work that waits for it goes on. Of Notify: it does not come before Release.
  kNever,
  kLate,
  kCrash,  // The process is killed, this call.
  kStop,   // The process is stopped, this call.
};
inline constexpr size_t kGpuFaults = 7;

struct GpuFaultRule {
  GpuFault fault = GpuFault::kOutOfMemory;
  std::optional<GpuVerb> verb = std::nullopt;             // Any.
  uint64_t skip = 0;                                      // This many such calls pass first,
  uint64_t times = std::numeric_limits<uint64_t>::max();  // and this many fail after that.
  MonotonicNs late_ns = 0;
};

class FaultyGpus final : public Gpus {
 public:
  // `clock` outlives it.
  FaultyGpus(std::unique_ptr<Gpus> gpus, const Clock& clock);
  ~FaultyGpus() override;

  // ---- Faults
  // Where several rules name a call the first added has it.
  void Add(GpuFaultRule rule);
  void ClearRules();
  // What hangs goes on.
  void Release();
  // Devices that were lost can be opened again.
  void Restore();
  // Faults made; calls that failed of an earlier one are not counted.
  uint64_t made(GpuFault fault) const;
  uint64_t calls(GpuVerb verb) const;

  // ---- Gpus
  const std::vector<GpuFacts>& devices() const override;
  Result<std::unique_ptr<Gpu>> Open(const GpuUuid& uuid) override;

 private:
  class Schedule;
  class FaultyGpu;

  const std::unique_ptr<Gpus> gpus_;
  const std::shared_ptr<Schedule> schedule_;
};

}  // namespace terrace
