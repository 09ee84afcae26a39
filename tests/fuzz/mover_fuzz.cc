// Packets between the daemon and a mover. What is accepted is what the encoder writes, byte for
// byte.
#include <algorithm>
#include <vector>

#include "base/check.h"
#include "tests/fuzz/fuzz.h"
#include "tiers/device/mover/messages.h"

namespace terrace {
namespace {

void Decode(std::span<const uint8_t> packet) {
  const auto message = DecodeMover(packet);
  if (message) TERRACE_CHECK(std::ranges::equal(EncodeMover(*message), packet));
}

}  // namespace
}  // namespace terrace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace terrace;
  Decode({data, size});
  (void)RequestOfMover({data, size});
  // Few inputs have the right length by chance.
  if (size < kMoverHeaderBytes) return 0;
  std::vector<uint8_t> packet(data, data + size);
  const auto body = static_cast<uint32_t>(size - kMoverHeaderBytes);
  std::memcpy(packet.data(), &body, sizeof body);
  Decode(packet);
  return 0;
}
