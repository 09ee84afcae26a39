#include "libclient/page_range.h"

#include <algorithm>
#include <numeric>
#include <optional>
#include <string>
#include <utility>

namespace terrace::client {
namespace {

constexpr uint64_t kHugePage = 2 << 20;
constexpr uint64_t kSmallPage = 4096;
constexpr uint64_t kSlabBytes = 64 << 20;    // What a daemon aims at for an arena.
constexpr uint64_t kMostBytes = 1ull << 44;  // Of a range: an eighth of the address space.
constexpr uint64_t kRoom = 4;  // Of the capacity: fragments, and arenas of an old life.

// A place starts where a page and a page of memory do; a huge one, unless page sizes with few
// factors of two make the gaps between places too wide.
uint64_t StepOf(uint32_t page_bytes) {
  const uint64_t huge = std::lcm(uint64_t{page_bytes}, kHugePage);
  return huge <= 16 * kSlabBytes ? huge : std::lcm(uint64_t{page_bytes}, kSmallPage);
}

}  // namespace

Result<std::unique_ptr<PageRange>> PageRange::Reserve(uint32_t page_bytes,
                                                      uint64_t capacity_bytes) {
  if (page_bytes == 0) return Status(Code::kDataLoss, "the daemon announced pages of 0 bytes");
  const uint64_t step = StepOf(page_bytes);
  const uint64_t spread = std::max<uint64_t>(1, step / kSlabBytes) * kRoom;
  const uint64_t bytes =
      std::clamp(capacity_bytes > kMostBytes / spread ? kMostBytes : capacity_bytes * spread,
                 step * 16, std::max(kMostBytes, step * 16));
  ASSIGN_OR_RETURN(MappedRange addresses, MappedRange::Reserve(bytes));
  return std::unique_ptr<PageRange>(new PageRange(page_bytes, step, std::move(addresses)));
}

Result<const uint8_t*> PageRange::Map(int fd, uint64_t bytes) {
  MutexLock lock(mu_);
  const std::optional<uint64_t> offset = places_.Take(bytes);
  if (!offset) {
    return Status(Code::kExhausted, "no addresses left for pages of " +
                                        std::to_string(page_bytes_) +
                                        " bytes: release pages of old daemon lives");
  }
  const Status mapped = addresses_.MapAt(*offset, fd, bytes, Protection::kRead);
  if (!mapped.ok()) {
    places_.Give(*offset);
    return mapped;
  }
  return addresses_.data() + *offset;
}

void PageRange::Unmap(const uint8_t* data) {
  MutexLock lock(mu_);
  const auto offset = static_cast<uint64_t>(data - addresses_.data());
  if (const auto bytes = places_.Give(offset)) addresses_.UnmapAt(offset, *bytes);
}

Result<PageRange*> PageRanges::Of(uint32_t page_bytes, uint64_t capacity_bytes) {
  MutexLock lock(mu_);
  std::unique_ptr<PageRange>& range = ranges_[page_bytes];
  if (range == nullptr) {
    auto reserved = PageRange::Reserve(page_bytes, capacity_bytes);
    if (!reserved) {
      ranges_.erase(page_bytes);
      return std::move(reserved).error();
    }
    range = *std::move(reserved);
  }
  return range.get();
}

}  // namespace terrace::client
