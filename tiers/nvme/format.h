// What the store keeps on disk, as constants and plain values, encoded byte by byte, little-endian:
// docs/nvme_format.md says what it means and why it holds. Pure: any thread. Whatever is decoded
// comes from a disk and is taken for hostile: a decoder refuses, it never assumes.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "base/status.h"
#include "tiers/page_store.h"

namespace terrace::nvme {

inline constexpr uint32_t kFormatVersion = 1;
inline constexpr size_t kAlignment = 4096;  // Of offsets, lengths and memory of every transfer.
inline constexpr size_t kHeaderBytes = 4096;
inline constexpr uint32_t kMaxPageBytes = 256u << 20;

// ---- Names of files in a directory of the store
inline constexpr std::string_view kMarkerName = "TERRACE-STORE";
inline constexpr std::string_view kNewMarkerName = "TERRACE-STORE.new";  // Becomes it by a rename.
inline constexpr std::string_view kLockName = "LOCK";
inline constexpr std::string_view kIndexName = "index";  // In the first directory.
inline constexpr std::string_view kNewIndexName = "index.new";
inline constexpr std::string_view kOldIndexName = "index.old";
inline constexpr std::string_view kUnfinishedSuffix = ".new";  // Of a slot file.

using StoreUuid = std::array<uint8_t, 16>;

constexpr uint64_t RoundUp(uint64_t bytes) {
  return (bytes + kAlignment - 1) / kAlignment * kAlignment;
}
// What a page of `bytes` takes in a file, its header included.
constexpr uint64_t SlotBytes(uint32_t bytes) {
  return kHeaderBytes + RoundUp(bytes);
}

// ---- Places
struct Place {
  uint8_t device = 0;
  uint32_t file = 0;  // From 1, below 2^24.
  uint32_t slot = 0;

  friend bool operator==(const Place&, const Place&) = default;
};
inline constexpr uint32_t kMaxFileNumber = (1u << 24) - 1;
inline constexpr uint32_t kMaxSlotsOfFile = 1u << 28;
inline constexpr uint32_t kMaxDevices = 64;

constexpr PlaceId ToPlaceId(const Place& place) {
  return uint64_t{place.device} << 56 | uint64_t{place.file} << 32 | place.slot;
}
constexpr Place FromPlaceId(PlaceId id) {
  return {.device = static_cast<uint8_t>(id >> 56),
          .file = static_cast<uint32_t>(id >> 32) & kMaxFileNumber,
          .slot = static_cast<uint32_t>(id)};
}

// ---- Slot files: "slots-NUMBER-SLOTBYTESxSLOTS". The name says all that there is to know of one.
struct SlotFileName {
  uint32_t number = 0;
  uint64_t slot_bytes = 0;
  uint32_t slots = 0;

  friend bool operator==(const SlotFileName&, const SlotFileName&) = default;
  uint64_t bytes() const { return slot_bytes * slots; }
};
std::string SlotFileNameText(const SlotFileName& name);
// Only names that SlotFileNameText gives.
std::optional<SlotFileName> ParseSlotFileName(std::string_view text);

// ---- The marker of a directory
struct Marker {
  StoreUuid store{};
  uint32_t device = 0;   // Number of this directory.
  uint32_t devices = 0;  // Of the store; that of device 0 counts.
  int64_t created_ms = 0;

  friend bool operator==(const Marker&, const Marker&) = default;
};
using MarkerBytes = std::array<uint8_t, kAlignment>;
MarkerBytes EncodeMarker(const Marker& marker);
// `mismatch`: something else, or a format that this program does not know. `data_loss`: damaged.
Result<Marker> DecodeMarker(std::span<const uint8_t> bytes);

// ---- The header of a slot
struct SlotHeader {
  StoreUuid store{};
  StoredPage page;
  uint32_t data_crc = 0;

  friend bool operator==(const SlotHeader&, const SlotHeader&);
};
void EncodeSlotHeader(const SlotHeader& header, std::span<uint8_t, kHeaderBytes> out);
// Empty for anything that EncodeSlotHeader did not write.
std::optional<SlotHeader> DecodeSlotHeader(std::span<const uint8_t, kHeaderBytes> bytes);
// Why a slot that was read at the place of `expected` is not that page; kNone when it is.
// `data_crc` is that of the bytes; empty: not looked at.
ReadFault CheckSlot(std::span<const uint8_t, kHeaderBytes> header, const StoreUuid& store,
                    const StoredPage& expected, std::optional<uint32_t> data_crc);

// ---- Records of the index
// space | key | part, big-endian, so that the parts of a key are neighbours in their order.
inline constexpr size_t kIndexKeyBytes = 32 + 32 + 4;
inline constexpr size_t kSpaceBytes = 32;
inline constexpr size_t kIndexValueBytes = 90;
struct IndexEntry {
  StoredPage page;
  uint32_t data_crc = 0;
};
std::array<uint8_t, kIndexKeyBytes> EncodeIndexKey(const StoredName& name);
std::array<uint8_t, kIndexValueBytes> EncodeIndexValue(const IndexEntry& entry);
// Empty for anything that the two above did not write.
std::optional<IndexEntry> DecodeIndexEntry(std::span<const uint8_t> key,
                                           std::span<const uint8_t> value);

}  // namespace terrace::nvme
