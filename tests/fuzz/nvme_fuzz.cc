// Bytes of a disk: headers of slots, records of the index, markers and names of files. What is
// accepted is what the encoder writes, byte for byte, and what is read of it is within bounds.
#include <algorithm>
#include <array>

#include "base/check.h"
#include "kernels/crc32c.h"
#include "tests/fuzz/fuzz.h"
#include "tiers/nvme/format.h"

namespace terrace::nvme {
namespace {

using Block = std::array<uint8_t, kAlignment>;

// With the checksum that a fuzzer would not find, where the input asks for it.
Block BlockOf(FuzzInput& input) {
  Block block{};
  const bool sealed = input.Take<uint8_t>() % 2 == 0;
  const std::string text = input.TakeText(block.size());
  std::copy(text.begin(), text.end(), block.begin());
  if (!sealed) return block;
  const uint32_t crc = Crc32c(std::span(block).first(kAlignment - 4));
  for (size_t i = 0; i < 4; ++i)
    block[kAlignment - 4 + i] = static_cast<uint8_t>(crc >> (8 * i));
  return block;
}

void TryHeader(FuzzInput& input) {
  const Block block = BlockOf(input);
  const auto header = DecodeSlotHeader(block);
  if (!header) return;
  TERRACE_CHECK(header->page.bytes > 0 && header->page.bytes <= kMaxPageBytes);
  Block again;
  EncodeSlotHeader(*header, again);
  TERRACE_CHECK(again == block);
  TERRACE_CHECK(CheckSlot(block, header->store, header->page, header->data_crc) ==
                ReadFault::kNone);
  StoredPage other = header->page;
  ++other.serial;
  TERRACE_CHECK(CheckSlot(block, header->store, other, header->data_crc) == ReadFault::kStale);
}

void TryMarker(FuzzInput& input) {
  const Block block = BlockOf(input);
  const auto marker = DecodeMarker(block);
  if (marker) TERRACE_CHECK(EncodeMarker(*marker) == block);
}

void TryRecord(FuzzInput& input) {
  const std::string key = input.TakeText(kIndexKeyBytes);
  const std::string value = input.Rest();
  const auto bytes = [](const std::string& text) {
    return std::span(reinterpret_cast<const uint8_t*>(text.data()), text.size());
  };
  const auto entry = DecodeIndexEntry(bytes(key), bytes(value));
  if (!entry) return;
  TERRACE_CHECK(std::ranges::equal(EncodeIndexKey(entry->page.name), bytes(key)));
  TERRACE_CHECK(std::ranges::equal(EncodeIndexValue(*entry), bytes(value)));
}

void TryName(FuzzInput& input) {
  const std::string text = input.Rest();
  const auto name = ParseSlotFileName(text);
  if (name) TERRACE_CHECK(SlotFileNameText(*name) == text);
}

}  // namespace
}  // namespace terrace::nvme

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace terrace;
  FuzzInput input(data, size);
  switch (input.Take<uint8_t>() % 4) {
    case 0:
      nvme::TryHeader(input);
      break;
    case 1:
      nvme::TryMarker(input);
      break;
    case 2:
      nvme::TryRecord(input);
      break;
    default:
      nvme::TryName(input);
      break;
  }
  return 0;
}
