// The public Mooncake trace format: one JSON object a line with `timestamp` (ms), `input_length`,
// `output_length` (tokens) and `hash_ids`, one id for each 512-token block of the prompt. Equal ids
// mean an equal prompt up to and including that block; the last block may be partly filled.
#pragma once

#include <cstdint>
#include <istream>
#include <string_view>
#include <vector>

#include "base/status.h"

namespace terrace::bench {

inline constexpr uint32_t kTraceBlockTokens = 512;

struct TraceRequest {
  uint64_t timestamp_ms = 0;
  uint64_t input_length = 0;
  uint64_t output_length = 0;
  std::vector<uint64_t> hash_ids;
};

// One line; `invalid_argument` names the field.
Result<TraceRequest> ParseTraceLine(std::string_view line);
// At most `limit` requests; errors name the line, counted from 1. Blank lines are passed over.
Result<std::vector<TraceRequest>> ParseTrace(std::istream& in, size_t limit);

// How many of `request`'s tokens lie in block `index`.
uint32_t TokensOfBlock(const TraceRequest& request, size_t index);

struct TraceCeiling {
  uint64_t blocks = 0;
  uint64_t hits = 0;    // Blocks that a cache which forgets nothing would find.
  uint64_t tokens = 0;  // In those blocks.
};
TraceCeiling CeilingOf(const std::vector<TraceRequest>& requests);

}  // namespace terrace::bench
