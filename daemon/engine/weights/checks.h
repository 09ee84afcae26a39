// Checks: what a load of bytes that were digested once is checked by, at the speed of memory:
// CRC32C of every kCheckedBytes of each block of the image. docs/weight_checks.md is about them and
// their record in the journal.
//
// They find what a disk, a cable or a careless copy did to the bytes. Whoever writes to the files
// on purpose could keep them right, so they are believed only as long as the files' stamp is what
// it was (WeightSource::Stamp), or where the bytes come from an image of the daemon's own.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/digest.h"
#include "base/status.h"
#include "daemon/engine/weights/image.h"

namespace terrace::weights {

inline constexpr uint32_t kChecksFormat = 1;
inline constexpr std::string_view kChecksPrefix = "checks/";

struct Checks {
  bool imported = false;  // There is an image file.
  uint64_t image_bytes = 0;
  uint64_t block_bytes = 0;
  Digest content;  // Of the bytes.
  Digest stamp;    // Of the files when they were digested.
  std::vector<uint32_t> crcs;

  // Whether they were made of the same stretches of the image: blocks that are multiples of
  // kCheckedBytes all have the same ones.
  bool Fit(const Image& image) const;
};

// Of a block of `bytes`.
inline size_t UnitsOf(uint64_t bytes) {
  return static_cast<size_t>((bytes + kCheckedBytes - 1) / kCheckedBytes);
}
// Of the image's first `block` blocks.
inline size_t UnitsBefore(const Image& image, uint32_t block) {
  return block * UnitsOf(image.block_bytes);
}
size_t UnitsOfImage(uint64_t image_bytes, uint64_t block_bytes);

std::string ChecksKey(std::string_view name, std::string_view version);
std::string EncodeChecks(const Checks& checks);
Result<Checks> DecodeChecks(std::string_view key, std::string_view value);

}  // namespace terrace::weights
