#include "tiers/nvme/format.h"

#include <algorithm>
#include <charconv>
#include <concepts>
#include <type_traits>

#include "base/check.h"
#include "kernels/crc32c.h"

namespace terrace::nvme {
namespace {

constexpr std::array<uint8_t, 8> kMarkerMagic = {'T', 'e', 'r', 'r', 'S', 't', 'o', 'r'};
constexpr std::array<uint8_t, 8> kSlotMagic = {'T', 'e', 'r', 'r', 'S', 'l', 'o', 't'};
// The CRC32C of a block of 4096 bytes is its last four and covers all before.
constexpr size_t kCrcAt = kAlignment - 4;
constexpr uint8_t kIndexValueVersion = 1;

// Integers of any width, byte by byte.
class Writer {
 public:
  explicit Writer(std::span<uint8_t> out) : left_(out) {}
  template <std::integral T>
  Writer& Put(T value) {
    const auto bits = static_cast<std::make_unsigned_t<T>>(value);
    for (size_t i = 0; i < sizeof(T); ++i)
      left_[i] = static_cast<uint8_t>(uint64_t{bits} >> (8 * i));
    left_ = left_.subspan(sizeof(T));
    return *this;
  }
  Writer& Put(std::span<const uint8_t> bytes) {
    std::copy(bytes.begin(), bytes.end(), left_.begin());
    left_ = left_.subspan(bytes.size());
    return *this;
  }
  size_t left() const { return left_.size(); }

 private:
  std::span<uint8_t> left_;
};

// The caller has made sure that there are enough bytes.
class Reader {
 public:
  explicit Reader(std::span<const uint8_t> in) : left_(in) {}
  template <std::integral T>
  Reader& Get(T& value) {
    uint64_t bits = 0;
    for (size_t i = 0; i < sizeof(T); ++i)
      bits |= uint64_t{left_[i]} << (8 * i);
    value = static_cast<T>(bits);
    left_ = left_.subspan(sizeof(T));
    return *this;
  }
  template <size_t kSize>
  Reader& Get(std::array<uint8_t, kSize>& bytes) {
    std::copy_n(left_.begin(), kSize, bytes.begin());
    left_ = left_.subspan(kSize);
    return *this;
  }
  std::span<const uint8_t> left() const { return left_; }

 private:
  std::span<const uint8_t> left_;
};

bool StartsWith(std::span<const uint8_t> bytes, std::span<const uint8_t> magic) {
  return std::equal(magic.begin(), magic.end(), bytes.begin());
}

bool CrcHolds(std::span<const uint8_t> block) {
  uint32_t crc = 0;
  Reader(block.subspan(kCrcAt)).Get(crc);
  return crc == Crc32c(block.first(kCrcAt));
}

// What is reserved is zero in this version, so that a later one can tell whether it was set.
bool OnlyZerosUpToCrc(std::span<const uint8_t> rest) {
  const auto reserved = rest.first(rest.size() - 4);
  return std::all_of(reserved.begin(), reserved.end(), [](uint8_t byte) { return byte == 0; });
}

bool SameWriting(const StoredPage& a, const StoredPage& b) {
  return a.serial == b.serial && a.bytes == b.bytes && a.valid_tokens == b.valid_tokens &&
         a.generation == b.generation && a.layout == b.layout && a.parent == b.parent &&
         a.position == b.position && a.item_class == b.item_class &&
         a.committed_ms == b.committed_ms;
}

template <typename T>
bool TakeNumber(std::string_view& text, T& value) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc()) return false;
  text.remove_prefix(static_cast<size_t>(end - text.data()));
  return true;
}

bool TakeText(std::string_view& text, std::string_view expected) {
  if (!text.starts_with(expected)) return false;
  text.remove_prefix(expected.size());
  return true;
}

}  // namespace

std::string SlotFileNameText(const SlotFileName& name) {
  return "slots-" + std::to_string(name.number) + "-" + std::to_string(name.slot_bytes) + "x" +
         std::to_string(name.slots);
}

std::optional<SlotFileName> ParseSlotFileName(std::string_view text) {
  SlotFileName name;
  std::string_view left = text;
  if (!TakeText(left, "slots-") || !TakeNumber(left, name.number) || !TakeText(left, "-") ||
      !TakeNumber(left, name.slot_bytes) || !TakeText(left, "x") || !TakeNumber(left, name.slots) ||
      !left.empty()) {
    return std::nullopt;
  }
  if (name.number == 0 || name.number > kMaxFileNumber || name.slots == 0 ||
      name.slots > kMaxSlotsOfFile || name.slot_bytes % kAlignment != 0 ||
      name.slot_bytes <= kHeaderBytes || name.slot_bytes > SlotBytes(kMaxPageBytes)) {
    return std::nullopt;
  }
  // One name a file: no leading zeros.
  if (SlotFileNameText(name) != text) return std::nullopt;
  return name;
}

MarkerBytes EncodeMarker(const Marker& marker) {
  MarkerBytes bytes{};
  Writer(bytes)
      .Put(kMarkerMagic)
      .Put(kFormatVersion)
      .Put(marker.device)
      .Put(marker.devices)
      .Put(static_cast<uint32_t>(kHeaderBytes))
      .Put(static_cast<uint32_t>(kAlignment))
      .Put(marker.created_ms)
      .Put(marker.store);
  Writer(std::span(bytes).subspan(kCrcAt)).Put(Crc32c(std::span(bytes).first(kCrcAt)));
  return bytes;
}

Result<Marker> DecodeMarker(std::span<const uint8_t> bytes) {
  if (bytes.size() < kMarkerMagic.size() || !StartsWith(bytes, kMarkerMagic)) {
    return Status(Code::kMismatch, "is not the marker of a Terrace store");
  }
  // The version stands before the checksum: a later format may have it elsewhere.
  if (bytes.size() < 12) return Status(Code::kDataLoss, "is damaged: cut short");
  uint32_t version = 0;
  Reader(bytes.subspan(kMarkerMagic.size())).Get(version);
  if (version != kFormatVersion) {
    return Status(Code::kMismatch, "is of format " + std::to_string(version) +
                                       "; this program knows " + std::to_string(kFormatVersion));
  }
  if (bytes.size() != kAlignment || !CrcHolds(bytes)) {
    return Status(Code::kDataLoss, "is damaged: its checksum does not hold");
  }
  Marker marker;
  uint32_t header = 0;
  uint32_t alignment = 0;
  const auto rest = Reader(bytes.subspan(12))
                        .Get(marker.device)
                        .Get(marker.devices)
                        .Get(header)
                        .Get(alignment)
                        .Get(marker.created_ms)
                        .Get(marker.store)
                        .left();
  if (header != kHeaderBytes || alignment != kAlignment || marker.devices == 0 ||
      marker.devices > kMaxDevices || marker.device >= marker.devices || !OnlyZerosUpToCrc(rest)) {
    return Status(Code::kMismatch, "has a geometry that this program does not know");
  }
  return marker;
}

bool operator==(const SlotHeader& a, const SlotHeader& b) {
  return a.store == b.store && a.page.name == b.page.name && a.page.place == b.page.place &&
         SameWriting(a.page, b.page) && a.data_crc == b.data_crc;
}

void EncodeSlotHeader(const SlotHeader& header, std::span<uint8_t, kHeaderBytes> out) {
  const StoredPage& page = header.page;
  Writer writer(out);
  writer.Put(kSlotMagic)
      .Put(kFormatVersion)
      .Put(page.name.part)
      .Put(header.store)
      .Put(page.name.space.bytes)
      .Put(page.name.key.bytes)
      .Put(page.parent.bytes)
      .Put(page.place)
      .Put(page.serial)
      .Put(page.generation)
      .Put(page.layout)
      .Put(page.committed_ms)
      .Put(page.bytes)
      .Put(page.valid_tokens)
      .Put(page.position)
      .Put(uint32_t{page.item_class})
      .Put(header.data_crc);
  std::fill(out.end() - static_cast<ptrdiff_t>(writer.left()), out.end(), uint8_t{0});
  Writer(out.subspan(kCrcAt)).Put(Crc32c(out.first(kCrcAt)));
}

std::optional<SlotHeader> DecodeSlotHeader(std::span<const uint8_t, kHeaderBytes> bytes) {
  if (!StartsWith(bytes, kSlotMagic) || !CrcHolds(bytes)) return std::nullopt;
  SlotHeader header;
  StoredPage& page = header.page;
  uint32_t version = 0;
  uint32_t item_class = 0;
  const auto rest = Reader(bytes.subspan(kSlotMagic.size()))
                        .Get(version)
                        .Get(page.name.part)
                        .Get(header.store)
                        .Get(page.name.space.bytes)
                        .Get(page.name.key.bytes)
                        .Get(page.parent.bytes)
                        .Get(page.place)
                        .Get(page.serial)
                        .Get(page.generation)
                        .Get(page.layout)
                        .Get(page.committed_ms)
                        .Get(page.bytes)
                        .Get(page.valid_tokens)
                        .Get(page.position)
                        .Get(item_class)
                        .Get(header.data_crc)
                        .left();
  if (version != kFormatVersion || item_class > 255 || page.bytes == 0 ||
      page.bytes > kMaxPageBytes || FromPlaceId(page.place).file == 0 || !OnlyZerosUpToCrc(rest)) {
    return std::nullopt;
  }
  page.item_class = static_cast<uint8_t>(item_class);
  return header;
}

ReadFault CheckSlot(std::span<const uint8_t, kHeaderBytes> bytes, const StoreUuid& store,
                    const StoredPage& expected, std::optional<uint32_t> data_crc) {
  const std::optional<SlotHeader> header = DecodeSlotHeader(bytes);
  if (!header) return ReadFault::kHeader;
  // A header of another store or place was copied here, whatever its name says.
  if (header->store != store || header->page.place != expected.place ||
      header->page.name != expected.name) {
    return ReadFault::kName;
  }
  if (!SameWriting(header->page, expected)) return ReadFault::kStale;
  if (data_crc && *data_crc != header->data_crc) return ReadFault::kData;
  return ReadFault::kNone;
}

std::array<uint8_t, kIndexKeyBytes> EncodeIndexKey(const StoredName& name) {
  std::array<uint8_t, kIndexKeyBytes> key{};
  Writer writer(key);
  writer.Put(name.space.bytes).Put(name.key.bytes);
  for (int shift = 24; shift >= 0; shift -= 8)
    writer.Put(static_cast<uint8_t>(name.part >> shift));
  return key;
}

std::array<uint8_t, kIndexValueBytes> EncodeIndexValue(const IndexEntry& entry) {
  const StoredPage& page = entry.page;
  std::array<uint8_t, kIndexValueBytes> value{};
  Writer writer(value);
  writer.Put(kIndexValueVersion)
      .Put(page.place)
      .Put(page.serial)
      .Put(page.bytes)
      .Put(page.valid_tokens)
      .Put(page.generation)
      .Put(page.layout)
      .Put(page.parent.bytes)
      .Put(page.position)
      .Put(page.item_class)
      .Put(page.committed_ms)
      .Put(entry.data_crc);
  TERRACE_CHECK(writer.left() == 0);
  return value;
}

std::optional<IndexEntry> DecodeIndexEntry(std::span<const uint8_t> key,
                                           std::span<const uint8_t> value) {
  if (key.size() != kIndexKeyBytes || value.size() != kIndexValueBytes ||
      value[0] != kIndexValueVersion) {
    return std::nullopt;
  }
  IndexEntry entry;
  StoredPage& page = entry.page;
  const auto part = Reader(key).Get(page.name.space.bytes).Get(page.name.key.bytes).left();
  for (const uint8_t byte : part)
    page.name.part = page.name.part << 8 | byte;
  Reader(value.subspan(1))
      .Get(page.place)
      .Get(page.serial)
      .Get(page.bytes)
      .Get(page.valid_tokens)
      .Get(page.generation)
      .Get(page.layout)
      .Get(page.parent.bytes)
      .Get(page.position)
      .Get(page.item_class)
      .Get(page.committed_ms)
      .Get(entry.data_crc);
  if (page.bytes == 0 || page.bytes > kMaxPageBytes || FromPlaceId(page.place).file == 0) {
    return std::nullopt;
  }
  return entry;
}

}  // namespace terrace::nvme
