#include "tiers/device/mover/listing.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <optional>

namespace terrace {
namespace {

constexpr std::string_view kSlabs = "slabs";
constexpr std::string_view kAllocations = "allocations";
constexpr size_t kFields = 6;

// What a driver calls its devices is not ours.
std::string Plain(std::string text) {
  std::replace_if(
      text.begin(), text.end(), [](char c) { return c < 0x20 || c > 0x7e; }, '?');
  return text;
}

bool ParseNumber(std::string_view text, uint64_t& number) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  return error == std::errc() && end == text.data() + text.size();
}

std::optional<ListedGpu> ParseLine(std::string_view line) {
  std::array<std::string_view, kFields> fields;
  for (size_t i = 0; i < kFields; ++i) {
    const size_t end = line.find('\t');
    if ((end == line.npos) != (i + 1 == kFields)) return std::nullopt;
    fields[i] = line.substr(0, end);
    if (end != line.npos) line.remove_prefix(end + 1);
  }
  const std::optional<GpuUuid> uuid = ParseGpuUuid(fields[0]);
  ListedGpu gpu;
  if (!uuid || !ParseNumber(fields[1], gpu.total_bytes) ||
      !ParseNumber(fields[2], gpu.granularity) ||
      (fields[3] != kSlabs && fields[3] != kAllocations)) {
    return std::nullopt;
  }
  gpu.uuid = *uuid;
  gpu.slabs = fields[3] == kSlabs;
  gpu.driver = Plain(std::string(fields[4]));
  gpu.name = Plain(std::string(fields[5]));
  return gpu;
}

}  // namespace

std::string GpuListText(std::span<const GpuFacts> devices) {
  std::string text;
  for (const GpuFacts& device : devices) {
    text += device.uuid.Text() + "\t" + std::to_string(device.total_bytes) + "\t" +
            std::to_string(device.granularity) + "\t" +
            std::string(device.slabs ? kSlabs : kAllocations) + "\t" + Plain(device.driver) + "\t" +
            Plain(device.name) + "\n";
  }
  return text;
}

Result<std::vector<ListedGpu>> ParseGpuList(std::string_view text) {
  std::vector<ListedGpu> gpus;
  while (!text.empty()) {
    const size_t end = text.find('\n');
    std::optional<ListedGpu> gpu;
    if (end != text.npos) gpu = ParseLine(text.substr(0, end));
    if (!gpu) {
      return Status(Code::kMismatch, "line " + std::to_string(gpus.size() + 1) +
                                         " of the list of devices is none: is terrace-mover of "
                                         "another version?");
    }
    gpus.push_back(*std::move(gpu));
    text.remove_prefix(end + 1);
  }
  return gpus;
}

}  // namespace terrace
