// Lower-case hexadecimal, for keys and digests in messages and reports.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

namespace terrace {

std::string HexEncode(std::span<const uint8_t> bytes);
// False unless `hex` has exactly two hexadecimal digits (either case) for each byte of `out`.
bool HexDecode(std::string_view hex, std::span<uint8_t> out);

}  // namespace terrace
