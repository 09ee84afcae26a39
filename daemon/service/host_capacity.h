// HostCapacity: how much host memory the daemon takes, given what is left of the memory limit.
//
// What was asked for is the aim; what the control groups and the machine still have is the bound. A
// daemon that starts while engines of an earlier one still map its memory begins small and grows as
// they let go. It never shrinks by itself. Owner thread only.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "base/status.h"
#include "daemon/service/config.h"
#include "tiers/host/memory_limit.h"

namespace terrace {

class HostCapacity {
 public:
  using Read = std::function<Result<MemoryLimit>()>;
  // A fraction is of the limit at this moment.
  static Result<HostCapacity> Choose(const CapacityChoice& choice, Read read);

  uint64_t wanted_bytes() const { return wanted_; }
  uint64_t present_bytes() const { return present_; }
  const MemoryLimit& limit() const { return limit_; }

  // Reads the limit again. `resident_bytes`: what of the daemon's own memory counts as used
  // already. Returns whether the capacity grew.
  bool Grow(uint64_t resident_bytes);

  // So small a tier is always taken, even when nothing is left: the daemon can serve and say so.
  static constexpr uint64_t kLeastBytes = 16u << 20;
  // Left to everything else of the group: a sixteenth of the limit, at most this.
  static constexpr uint64_t kMostHeadroom = 1u << 30;

 private:
  HostCapacity(Read read, const MemoryLimit& limit, uint64_t wanted);
  uint64_t Bound(uint64_t resident_bytes) const;

  Read read_;
  MemoryLimit limit_;
  uint64_t wanted_ = 0;
  uint64_t present_ = 0;
};

}  // namespace terrace
