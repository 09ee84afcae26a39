// The format is what docs/nvme_format.md says, byte by byte: a change of it changes the version.
#include "tiers/nvme/format.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>

#include "base/hex.h"

namespace terrace::nvme {
namespace {

Digest Filled(uint8_t byte) {
  Digest digest;
  digest.bytes.fill(byte);
  return digest;
}

SlotHeader SomeHeader() {
  SlotHeader header;
  header.store.fill(0x11);
  header.page = {.name = {Filled(0x22), Filled(0x33), 0x04030201},
                 .place = ToPlaceId({2, 3, 4}),
                 .serial = 0x0807060504030201,
                 .bytes = 20'000,
                 .valid_tokens = 16,
                 .generation = 5,
                 .layout = 6,
                 .parent = Filled(0x44),
                 .position = 7,
                 .item_class = 8,
                 .committed_ms = -9};
  header.data_crc = 0xaabbccdd;
  return header;
}

TEST(NvmeFormat, HeadersAreLaidOutAsTheDocumentSays) {
  std::array<uint8_t, kHeaderBytes> bytes;
  EncodeSlotHeader(SomeHeader(), bytes);
  const auto hex = [&](size_t at, size_t count) {
    return HexEncode(std::span(bytes).subspan(at, count));
  };
  EXPECT_EQ(hex(0, 8), "54657272536c6f74");
  EXPECT_EQ(hex(8, 4), "01000000");
  EXPECT_EQ(hex(12, 4), "01020304");
  EXPECT_EQ(hex(16, 16), std::string(32, '1'));
  EXPECT_EQ(hex(32, 32), std::string(64, '2'));
  EXPECT_EQ(hex(64, 32), std::string(64, '3'));
  EXPECT_EQ(hex(96, 32), std::string(64, '4'));
  EXPECT_EQ(hex(128, 8), "0400000003000002");
  EXPECT_EQ(hex(136, 8), "0102030405060708");
  EXPECT_EQ(hex(144, 8), "0500000000000000");
  EXPECT_EQ(hex(152, 8), "0600000000000000");
  EXPECT_EQ(hex(160, 8), "f7ffffffffffffff");
  EXPECT_EQ(hex(168, 4), "204e0000");
  EXPECT_EQ(hex(172, 4), "10000000");
  EXPECT_EQ(hex(176, 4), "07000000");
  EXPECT_EQ(hex(180, 4), "08000000");
  EXPECT_EQ(hex(184, 4), "ddccbbaa");
  EXPECT_TRUE(std::all_of(bytes.begin() + 188, bytes.end() - 4, [](uint8_t b) { return b == 0; }));
  EXPECT_EQ(DecodeSlotHeader(bytes), SomeHeader());
}

TEST(NvmeFormat, NoHeaderWithOneBitChangedIsAccepted) {
  std::array<uint8_t, kHeaderBytes> bytes;
  EncodeSlotHeader(SomeHeader(), bytes);
  for (size_t bit = 0; bit < 8 * kHeaderBytes; ++bit) {
    bytes[bit / 8] ^= static_cast<uint8_t>(1U << (bit % 8));
    ASSERT_FALSE(DecodeSlotHeader(bytes)) << bit;
    bytes[bit / 8] ^= static_cast<uint8_t>(1U << (bit % 8));
  }
}

TEST(NvmeFormat, EveryFieldOfAPageIsHeldAgainstTheSlot) {
  const SlotHeader header = SomeHeader();
  std::array<uint8_t, kHeaderBytes> bytes;
  EncodeSlotHeader(header, bytes);
  const auto check = [&](auto change) {
    SlotHeader expected = header;
    change(expected);
    return CheckSlot(bytes, expected.store, expected.page, header.data_crc);
  };
  EXPECT_EQ(check([](SlotHeader&) {}), ReadFault::kNone);
  EXPECT_EQ(check([](SlotHeader& h) { h.store[3] ^= 1; }), ReadFault::kName);
  EXPECT_EQ(check([](SlotHeader& h) { h.page.name.space.bytes[0] ^= 1; }), ReadFault::kName);
  EXPECT_EQ(check([](SlotHeader& h) { h.page.name.key.bytes[31] ^= 1; }), ReadFault::kName);
  EXPECT_EQ(check([](SlotHeader& h) { ++h.page.name.part; }), ReadFault::kName);
  EXPECT_EQ(check([](SlotHeader& h) { ++h.page.place; }), ReadFault::kName);
  EXPECT_EQ(check([](SlotHeader& h) { ++h.page.serial; }), ReadFault::kStale);
  EXPECT_EQ(check([](SlotHeader& h) { ++h.page.generation; }), ReadFault::kStale);
  EXPECT_EQ(check([](SlotHeader& h) { ++h.page.layout; }), ReadFault::kStale);
  EXPECT_EQ(check([](SlotHeader& h) { ++h.page.bytes; }), ReadFault::kStale);
  EXPECT_EQ(check([](SlotHeader& h) { h.page.parent.bytes[5] ^= 1; }), ReadFault::kStale);
  EXPECT_EQ(CheckSlot(bytes, header.store, header.page, header.data_crc + 1), ReadFault::kData);
  EXPECT_EQ(CheckSlot(bytes, header.store, header.page, std::nullopt), ReadFault::kNone);
}

TEST(NvmeFormat, NamesOfFilesSayWhatIsInThem) {
  const SlotFileName name{.number = 12, .slot_bytes = 2'101'248, .slots = 511};
  EXPECT_EQ(SlotFileNameText(name), "slots-12-2101248x511");
  EXPECT_EQ(ParseSlotFileName("slots-12-2101248x511"), name);
  for (const std::string_view bad :
       {"", "slots", "slots-0-8192x1", "slots-1-4096x1", "slots-1-8000x1", "slots-1-8192x0",
        "slots-01-8192x1", "slots-1-8192x1.new", "slots-16777216-8192x1", "slots-1-8192x4294967296",
        "slots--1-8192x1", "slots-1-999999999999999999999x1"}) {
    EXPECT_FALSE(ParseSlotFileName(bad)) << bad;
  }
}

}  // namespace
}  // namespace terrace::nvme
