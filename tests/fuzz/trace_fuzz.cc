// Trace lines of any bytes: refused by their number, or requests whose blocks add up.
#include <sstream>

#include "base/check.h"
#include "bench/trace.h"
#include "tests/fuzz/fuzz.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace terrace;
  std::istringstream lines(std::string(reinterpret_cast<const char*>(data), size));
  const auto requests = bench::ParseTrace(lines, 1000);
  if (!requests) {
    TERRACE_CHECK(requests.error().message().find("line ") != std::string::npos);
    return 0;
  }
  for (const bench::TraceRequest& request : *requests) {
    uint64_t tokens = 0;
    for (size_t i = 0; i < request.hash_ids.size(); ++i)
      tokens += bench::TokensOfBlock(request, i);
    TERRACE_CHECK(tokens <= request.input_length);
  }
  const bench::TraceCeiling ceiling = bench::CeilingOf(*requests);
  TERRACE_CHECK(ceiling.hits <= ceiling.blocks);
  return 0;
}
