#include "daemon/engine/weights/checks.h"

#include <utility>

#include "daemon/engine/weights/record_bytes.h"

namespace terrace::weights {
namespace {

constexpr uint32_t kImported = 1;

Status Bad(std::string_view key, std::string_view what) {
  return {Code::kDataLoss, "journal record '" + std::string(key) + "': " + std::string(what)};
}

}  // namespace

size_t UnitsOfImage(uint64_t image_bytes, uint64_t block_bytes) {
  return image_bytes / block_bytes * UnitsOf(block_bytes) + UnitsOf(image_bytes % block_bytes);
}

bool Checks::Fit(const Image& image) const {
  return image_bytes == image.bytes &&
         (block_bytes == image.block_bytes ||
          (block_bytes % kCheckedBytes == 0 && image.block_bytes % kCheckedBytes == 0));
}

std::string ChecksKey(std::string_view name, std::string_view version) {
  return std::string(kChecksPrefix) + std::string(name) + "@" + std::string(version);
}

std::string EncodeChecks(const Checks& checks) {
  std::string out;
  out.reserve(96 + checks.crcs.size() * sizeof(uint32_t));
  Append(out, kChecksFormat);
  Append(out, checks.imported ? kImported : 0);
  Append(out, checks.image_bytes);
  Append(out, checks.block_bytes);
  Append(out, checks.content);
  Append(out, checks.stamp);
  Append(out, static_cast<uint32_t>(checks.crcs.size()));
  for (const uint32_t crc : checks.crcs)
    Append(out, crc);
  return out;
}

Result<Checks> DecodeChecks(std::string_view key, std::string_view value) {
  Reader reader(value);
  const auto format = reader.Number<uint32_t>();
  if (reader.ok() && format != kChecksFormat) {
    return Bad(key, "format " + std::to_string(format) + ", but this daemon reads only " +
                        std::to_string(kChecksFormat));
  }
  Checks checks;
  const auto flags = reader.Number<uint32_t>();
  checks.imported = flags == kImported;
  checks.image_bytes = reader.Number<uint64_t>();
  checks.block_bytes = reader.Number<uint64_t>();
  checks.content = reader.NextDigest();
  checks.stamp = reader.NextDigest();
  const auto crcs = reader.Number<uint32_t>();
  if (!reader.ok() || reader.left() != crcs * sizeof(uint32_t)) {
    return Bad(key, "its length is wrong");
  }
  if (flags > kImported || checks.image_bytes == 0 || checks.image_bytes > kMaxImageBytes ||
      checks.block_bytes == 0 || checks.block_bytes > kMaxBlockBytes ||
      checks.block_bytes % kBlockGranularity != 0 ||
      crcs != UnitsOfImage(checks.image_bytes, checks.block_bytes)) {
    return Bad(key, "its numbers cannot be right");
  }
  checks.crcs.reserve(crcs);
  for (uint32_t i = 0; i < crcs; ++i)
    checks.crcs.push_back(reader.Number<uint32_t>());
  return checks;
}

}  // namespace terrace::weights
