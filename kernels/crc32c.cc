#include "kernels/crc32c.h"

#include <isa-l/crc.h>

#include <algorithm>
#include <cstddef>

namespace terrace {
namespace {

constexpr size_t kMostAtOnce = size_t{1} << 30;  // ISA-L counts in int.

}  // namespace

uint32_t Crc32c(std::span<const uint8_t> bytes, uint32_t before) {
  // ISA-L leaves the inversions at both ends to its caller.
  uint32_t crc = ~before;
  while (!bytes.empty()) {
    const std::span<const uint8_t> now = bytes.first(std::min(bytes.size(), kMostAtOnce));
    // It takes a pointer to what it could write to and only reads it.
    crc = crc32_iscsi(const_cast<unsigned char*>(now.data()), static_cast<int>(now.size()), crc);
    bytes = bytes.subspan(now.size());
  }
  return ~crc;
}

}  // namespace terrace
