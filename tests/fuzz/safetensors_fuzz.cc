// The header of a safetensors file. The first four bytes of the input say how much data follows it.
#include "base/check.h"
#include "tests/fuzz/fuzz.h"
#include "tiers/source/safetensors.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace terrace;
  FuzzInput input(data, size);
  const uint64_t data_bytes = input.Take<uint32_t>();
  const std::string header = input.Rest();
  const auto tensors = ParseSafetensorsHeader(header, data_bytes, 0);
  if (!tensors) {
    TERRACE_CHECK(!tensors.error().message().empty());
    return 0;
  }
  // What is accepted covers the data exactly, and each tensor is as large as its shape says.
  uint64_t at = kHeaderLengthBytes + header.size();
  for (const TensorSpec& tensor : *tensors) {
    TERRACE_CHECK(tensor.file_offset == at);
    TERRACE_CHECK(!tensor.name.empty() && tensor.name.size() <= kMaxTensorNameBytes);
    TERRACE_CHECK(tensor.shape.size() <= kMaxTensorRank);
    uint64_t bytes = DtypeBytes(tensor.dtype);
    for (const uint64_t count : tensor.shape)
      bytes *= count;
    TERRACE_CHECK(tensor.bytes == bytes);
    at += tensor.bytes;
  }
  TERRACE_CHECK(at == kHeaderLengthBytes + header.size() + data_bytes);
  return 0;
}
