// CRC32C (Castagnoli; the CRC of iSCSI, RFC 3720 B.4): the one door to ISA-L, which runs it at the
// speed of memory, with whatever the processor has. Pure: any thread.
#pragma once

#include <cstdint>
#include <span>

namespace terrace {

// Of `bytes`; or, with the value of what came before them, of both: Crc32c(b, Crc32c(a)) is that of
// a and b in a row. Of no bytes: 0.
uint32_t Crc32c(std::span<const uint8_t> bytes, uint32_t before = 0);

}  // namespace terrace
