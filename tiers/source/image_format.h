// The header of an image file, as docs/block_image.md describes it: what the image is of, and the
// CRC32C of every unit of it. Numbers are little-endian. Pure functions; any thread.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "tiers/tier.h"

namespace terrace::image_file {

inline constexpr std::string_view kMagic = "TRBLKIMG";
inline constexpr uint32_t kVersion = 1;
inline constexpr uint64_t kAlignment = 4096;
inline constexpr size_t kFixedBytes = 368;     // Before the table of CRCs.
inline constexpr size_t kMaxLabelBytes = 260;  // Of 128 of the name, '@', 128 of the version.
inline constexpr uint64_t kMaxHeaderBytes = 64u << 20;  // 32 TiB in units of 2 MiB.

struct Header {
  ImageFacts facts;
  std::vector<uint32_t> crcs;
};

uint64_t RoundUp(uint64_t bytes);
// Of an image in blocks of `block_bytes`.
uint64_t UnitsOf(uint64_t image_bytes, uint64_t block_bytes);
// Of a header with so many CRCs.
uint64_t HeaderBytes(uint64_t crcs);
// Whether blocks of these sizes are checked by the same units.
bool SameUnits(uint64_t block_bytes, uint64_t other_block_bytes);

std::vector<uint8_t> Encode(const Header& header);
// How long the header is that begins with `page`; mismatch for what is no image, or of a version
// that this program does not know.
Result<uint64_t> LengthOf(std::span<const uint8_t, kAlignment> page);
// All of it; data_loss for one that is damaged.
Result<Header> Decode(std::span<const uint8_t> bytes);

}  // namespace terrace::image_file
