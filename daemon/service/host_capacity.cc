#include "daemon/service/host_capacity.h"

#include <algorithm>

namespace terrace {

namespace {

constexpr uint64_t kAlignment = 2u << 20;

uint64_t Aligned(uint64_t bytes) {
  return bytes / kAlignment * kAlignment;
}

}  // namespace

Result<HostCapacity> HostCapacity::Choose(const CapacityChoice& choice, Read read) {
  ASSIGN_OR_RETURN(const MemoryLimit limit, read());
  uint64_t wanted = choice.bytes;
  if (wanted == 0) {
    wanted =
        Aligned(static_cast<uint64_t>(static_cast<double>(limit.limit_bytes) * choice.fraction));
  }
  return HostCapacity(std::move(read), limit, std::max(wanted, kLeastBytes));
}

HostCapacity::HostCapacity(Read read, const MemoryLimit& limit, uint64_t wanted)
    : read_(std::move(read)), limit_(limit), wanted_(wanted) {
  present_ = std::min(wanted_, Bound(0));
}

uint64_t HostCapacity::Bound(uint64_t resident_bytes) const {
  const uint64_t headroom = std::min(limit_.limit_bytes / 16, kMostHeadroom);
  const uint64_t possible = resident_bytes + limit_.available_bytes;
  return std::max(kLeastBytes, Aligned(possible - std::min(possible, headroom)));
}

bool HostCapacity::Grow(uint64_t resident_bytes) {
  if (present_ >= wanted_) return false;
  const Result<MemoryLimit> limit = read_();
  if (!limit) return false;  // It could be read at the start; the next time may do.
  limit_ = *limit;
  const uint64_t bound = std::min(wanted_, Bound(resident_bytes));
  if (bound <= present_) return false;
  present_ = bound;
  return true;
}

}  // namespace terrace
