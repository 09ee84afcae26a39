// Headers of image files. What is accepted is what the encoder writes, byte for byte.
#include <algorithm>
#include <vector>

#include "base/check.h"
#include "kernels/crc32c.h"
#include "tests/fuzz/fuzz.h"
#include "tiers/source/image_format.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace terrace;
  FuzzInput input(data, size);
  // With the checksum that a fuzzer would not find, where the input asks for it.
  const bool sealed = input.Take<uint8_t>() % 2 == 0;
  const std::string text = input.Rest();
  std::vector<uint8_t> bytes(image_file::RoundUp(std::max<size_t>(text.size(), 1)));
  std::ranges::copy(text, bytes.begin());
  if (sealed) {
    const uint32_t crc = Crc32c(std::span(bytes).first(bytes.size() - 4));
    for (size_t i = 0; i < 4; ++i)
      bytes[bytes.size() - 4 + i] = static_cast<uint8_t>(crc >> (8 * i));
  }
  const auto header = image_file::Decode(bytes);
  if (!header) return 0;
  TERRACE_CHECK(header->facts.image_bytes > 0 && header->facts.block_bytes > 0);
  TERRACE_CHECK(header->crcs.size() ==
                image_file::UnitsOf(header->facts.image_bytes, header->facts.block_bytes));
  TERRACE_CHECK(image_file::Encode(*header) == bytes);
  return 0;
}
