#include "tiers/device/gpu.h"

#include <algorithm>

#include "base/hex.h"

namespace terrace {
namespace {

constexpr size_t kPrefixBytes = 4;             // "GPU-", "MIG-".
constexpr size_t kDashes[] = {8, 13, 18, 23};  // Behind the prefix.
constexpr size_t kDigits = 32;

}  // namespace

std::string GpuUuid::Text() const {
  std::string text = HexEncode(bytes);
  for (const size_t dash : kDashes)
    text.insert(dash, 1, '-');
  return "GPU-" + text;
}

GpuUuid HostGpuUuid(uint32_t index) {
  GpuUuid uuid;
  const char name[] = "terrace-host";
  std::copy_n(name, sizeof name - 1, uuid.bytes.begin());
  for (size_t i = 0; i < 4; ++i)
    uuid.bytes[12 + i] = static_cast<uint8_t>(index >> (24 - 8 * i));
  return uuid;
}

std::optional<GpuUuid> ParseGpuUuid(std::string_view text) {
  if (!text.starts_with("GPU-") && !text.starts_with("MIG-")) return std::nullopt;
  std::string digits(text.substr(kPrefixBytes));
  if (digits.size() != kDigits + std::size(kDashes)) return std::nullopt;
  for (size_t i = std::size(kDashes); i > 0; --i) {
    if (digits[kDashes[i - 1]] != '-') return std::nullopt;
    digits.erase(kDashes[i - 1], 1);
  }
  GpuUuid uuid;
  if (!HexDecode(digits, uuid.bytes)) return std::nullopt;
  return uuid;
}

}  // namespace terrace
