#include "tiers/source/image_format.h"

#include <algorithm>
#include <cstring>

#include "base/check.h"
#include "kernels/crc32c.h"

namespace terrace::image_file {
namespace {

// Where the fields are.
constexpr size_t kVersionAt = 8;
constexpr size_t kHeaderBytesAt = 12;
constexpr size_t kImageBytesAt = 16;
constexpr size_t kBlockBytesAt = 24;
constexpr size_t kCheckedBytesAt = 32;
constexpr size_t kCrcCountAt = 36;
constexpr size_t kListingAt = 40;
constexpr size_t kContentAt = 72;
constexpr size_t kLabelBytesAt = 104;
constexpr size_t kLabelAt = 108;
static_assert(kLabelAt + kMaxLabelBytes == kFixedBytes);
constexpr size_t kCrcBytes = 4;
constexpr uint64_t kMaxImage = uint64_t{1} << 48;
constexpr uint64_t kMaxBlock = 512u << 20;

template <typename T>
void Put(std::vector<uint8_t>& bytes, size_t at, T value) {
  for (size_t i = 0; i < sizeof value; ++i)
    bytes[at + i] = static_cast<uint8_t>(value >> (8 * i));
}
template <typename T>
T Get(std::span<const uint8_t> bytes, size_t at) {
  T value = 0;
  for (size_t i = 0; i < sizeof value; ++i)
    value = static_cast<T>(value | static_cast<T>(bytes[at + i]) << (8 * i));
  return value;
}
Digest GetDigest(std::span<const uint8_t> bytes, size_t at) {
  Digest digest;
  std::copy_n(bytes.begin() + static_cast<ptrdiff_t>(at), digest.bytes.size(),
              digest.bytes.begin());
  return digest;
}

Status Damaged(std::string what) {
  return {Code::kDataLoss, "the header is damaged: " + std::move(what)};
}

bool AllZeros(std::span<const uint8_t> bytes) {
  return std::all_of(bytes.begin(), bytes.end(), [](uint8_t byte) { return byte == 0; });
}

}  // namespace

uint64_t RoundUp(uint64_t bytes) {
  return (bytes + kAlignment - 1) / kAlignment * kAlignment;
}

uint64_t UnitsOf(uint64_t image_bytes, uint64_t block_bytes) {
  const auto units = [](uint64_t bytes) { return (bytes + kCheckedBytes - 1) / kCheckedBytes; };
  return image_bytes / block_bytes * units(block_bytes) + units(image_bytes % block_bytes);
}

uint64_t HeaderBytes(uint64_t crcs) {
  return RoundUp(kFixedBytes + crcs * sizeof(uint32_t) + kCrcBytes);
}

bool SameUnits(uint64_t block_bytes, uint64_t other_block_bytes) {
  return block_bytes == other_block_bytes ||
         (block_bytes % kCheckedBytes == 0 && other_block_bytes % kCheckedBytes == 0);
}

std::vector<uint8_t> Encode(const Header& header) {
  TERRACE_CHECK(header.facts.label.size() <= kMaxLabelBytes);
  const uint64_t length = HeaderBytes(header.crcs.size());
  std::vector<uint8_t> bytes(length);
  std::copy(kMagic.begin(), kMagic.end(), bytes.begin());
  Put(bytes, kVersionAt, kVersion);
  Put(bytes, kHeaderBytesAt, static_cast<uint32_t>(length));
  Put(bytes, kImageBytesAt, header.facts.image_bytes);
  Put(bytes, kBlockBytesAt, header.facts.block_bytes);
  Put(bytes, kCheckedBytesAt, static_cast<uint32_t>(kCheckedBytes));
  Put(bytes, kCrcCountAt, static_cast<uint32_t>(header.crcs.size()));
  std::ranges::copy(header.facts.listing.bytes, bytes.begin() + kListingAt);
  std::ranges::copy(header.facts.content.bytes, bytes.begin() + kContentAt);
  Put(bytes, kLabelBytesAt, static_cast<uint32_t>(header.facts.label.size()));
  std::ranges::copy(header.facts.label, bytes.begin() + kLabelAt);
  for (size_t i = 0; i < header.crcs.size(); ++i)
    Put(bytes, kFixedBytes + i * sizeof(uint32_t), header.crcs[i]);
  Put(bytes, length - kCrcBytes, Crc32c(std::span(bytes).first(length - kCrcBytes)));
  return bytes;
}

Result<uint64_t> LengthOf(std::span<const uint8_t, kAlignment> page) {
  if (!std::equal(kMagic.begin(), kMagic.end(), page.begin())) {
    return Status(Code::kMismatch, "is no image of Terrace");
  }
  const auto version = Get<uint32_t>(page, kVersionAt);
  if (version != kVersion) {
    return Status(Code::kMismatch, "is of format " + std::to_string(version) +
                                       ", and this daemon reads " + std::to_string(kVersion));
  }
  const uint64_t length = Get<uint32_t>(page, kHeaderBytesAt);
  const uint64_t crcs = Get<uint32_t>(page, kCrcCountAt);
  if (length > kMaxHeaderBytes || length != HeaderBytes(crcs)) return Damaged("its length");
  return length;
}

Result<Header> Decode(std::span<const uint8_t> bytes) {
  if (bytes.size() < kAlignment) return Damaged("it is cut");
  ASSIGN_OR_RETURN(const uint64_t length, LengthOf(bytes.first<kAlignment>()));
  if (length != bytes.size()) return Damaged("it is cut");
  if (Get<uint32_t>(bytes, length - kCrcBytes) != Crc32c(bytes.first(length - kCrcBytes))) {
    return Damaged("its checksum");
  }
  Header header;
  header.facts.image_bytes = Get<uint64_t>(bytes, kImageBytesAt);
  header.facts.block_bytes = Get<uint64_t>(bytes, kBlockBytesAt);
  header.facts.listing = GetDigest(bytes, kListingAt);
  header.facts.content = GetDigest(bytes, kContentAt);
  const auto label_bytes = Get<uint32_t>(bytes, kLabelBytesAt);
  const auto crcs = Get<uint32_t>(bytes, kCrcCountAt);
  const ImageFacts& facts = header.facts;
  if (label_bytes > kMaxLabelBytes || facts.image_bytes == 0 || facts.image_bytes > kMaxImage ||
      facts.block_bytes == 0 || facts.block_bytes > kMaxBlock ||
      facts.block_bytes % kAlignment != 0 ||
      Get<uint32_t>(bytes, kCheckedBytesAt) != kCheckedBytes ||
      crcs != UnitsOf(facts.image_bytes, facts.block_bytes)) {
    return Damaged("its numbers cannot be right");
  }
  const std::span<const uint8_t> label = bytes.subspan(kLabelAt, kMaxLabelBytes);
  header.facts.label.assign(label.begin(), label.begin() + label_bytes);
  const size_t end = kFixedBytes + crcs * sizeof(uint32_t);
  if (!AllZeros(label.subspan(label_bytes)) ||
      !AllZeros(bytes.subspan(end, length - kCrcBytes - end))) {
    return Damaged("it has bytes where there are none");
  }
  header.crcs.reserve(crcs);
  for (size_t i = 0; i < crcs; ++i)
    header.crcs.push_back(Get<uint32_t>(bytes, kFixedBytes + i * sizeof(uint32_t)));
  return header;
}

}  // namespace terrace::image_file
