// Sizes and durations as people write them. Pure functions; any thread.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace terrace {

// "16GiB", "1.5 MiB", "4096": a decimal number and B, KiB, MiB, GiB or TiB, or no unit for bytes.
// Nothing for anything else, for a fraction of a byte count without a unit, and beyond 2^63.
std::optional<uint64_t> ParseSize(std::string_view text);
// The shortest exact form: "16GiB", "1536MiB", "4097".
std::string SizeText(uint64_t bytes);
// For reading only, rounded to a tenth: "15.3GiB".
std::string RoundedSizeText(uint64_t bytes);

// "500ms", "30s", "10min": milliseconds. A number without a unit is no duration.
std::optional<uint32_t> ParseDurationMs(std::string_view text);
std::string DurationText(uint32_t ms);

}  // namespace terrace
