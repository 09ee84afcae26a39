#include "tiers/device/mover/messages.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <type_traits>
#include <utility>

#include "base/check.h"

namespace terrace {
namespace {

static_assert(std::endian::native == std::endian::little);

struct Header {
  uint32_t bytes = 0;
  uint16_t type = 0;
  uint16_t descriptors = 0;
  uint64_t request = 0;
};
static_assert(sizeof(Header) == kMoverHeaderBytes);

constexpr const char* kNames[] = {"ready", "answer",  "create", "import", "allocate", "open",
                                  "host",  "release", "copies", "clear",  "pages",    "report"};
static_assert(std::size(kNames) == std::variant_size_v<MoverBody>);

template <typename T>
constexpr bool kIsNumber =
    std::is_same_v<T, uint8_t> || std::is_same_v<T, uint32_t> || std::is_same_v<T, uint64_t>;

// Puts fields behind each other. It takes what it sends for sound.
class Writer {
 public:
  explicit Writer(std::vector<uint8_t>& packet) : packet_(packet) {}

  template <typename T>
    requires kIsNumber<T>
  void Field(const char*, const T& value) {
    Append(&value, sizeof value);
  }
  template <size_t kBytes>
  void Field(const char*, const std::array<uint8_t, kBytes>& value) {
    Append(value.data(), kBytes);
  }
  void Field(const char* name, const std::string& text) {
    const auto bytes = static_cast<uint32_t>(std::min(text.size(), kMostMoverText));
    Field(name, bytes);
    Append(text.data(), bytes);
  }
  void Field(const char* name, const bool& value) { Field(name, uint8_t{value}); }
  void Field(const char* name, const Status& status) {
    Field(name, static_cast<uint8_t>(status.code()));
    Field(name, status.message());
  }
  template <typename T, typename Each>
  void List(const char* name, const std::vector<T>& list, size_t most, Each each) {
    TERRACE_CHECK(list.size() <= most);
    Field(name, static_cast<uint32_t>(list.size()));
    for (const T& one : list)
      each(one);
  }
  void Require(const char*, bool sound, const char*) { TERRACE_CHECK(sound); }

 private:
  void Append(const void* bytes, size_t count) {
    const auto* begin = static_cast<const uint8_t*>(bytes);
    packet_.insert(packet_.end(), begin, begin + count);
  }
  std::vector<uint8_t>& packet_;
};

// Takes fields from the front. The first thing that is wrong is kept, and everything behind it
// reads as zeros.
class Reader {
 public:
  Reader(std::string message, std::span<const uint8_t> body)
      : message_(std::move(message)), left_(body) {}

  template <typename T>
    requires kIsNumber<T>
  void Field(const char* name, T& value) {
    Take(name, &value, sizeof value);
  }
  template <size_t kBytes>
  void Field(const char* name, std::array<uint8_t, kBytes>& value) {
    Take(name, value.data(), kBytes);
  }
  void Field(const char* name, std::string& text) {
    uint32_t bytes = 0;
    Field(name, bytes);
    Require(name, bytes <= kMostMoverText, "is too long");
    if (!wrong_.ok()) return;
    text.resize(bytes);
    Take(name, text.data(), bytes);
  }
  void Field(const char* name, bool& value) {
    uint8_t byte = 0;
    Field(name, byte);
    Require(name, byte <= 1, "is neither 0 nor 1");
    value = byte == 1;
  }
  void Field(const char* name, Status& status) {
    uint8_t code = 0;
    std::string text;
    Field(name, code);
    Require(name, code < kCodeCount, "is no code");
    Field(name, text);
    Require(name, code != 0 || text.empty(), "is ok and has words");
    if (wrong_.ok() && code != 0) status = Status(static_cast<Code>(code), std::move(text));
  }
  template <typename T, typename Each>
  void List(const char* name, std::vector<T>& list, size_t most, Each each) {
    uint32_t count = 0;
    Field(name, count);
    Require(name, count <= most, "are too many");
    // An element has at least a byte, so a count beyond what is left cannot be, and costs no
    // memory.
    Require(name, count <= left_.size(), "are more than the message has");
    if (!wrong_.ok()) return;
    list.resize(count);
    for (size_t i = 0; i < list.size() && wrong_.ok(); ++i) {
      element_ = std::string(name) + "[" + std::to_string(i) + "].";
      each(list[i]);
    }
    element_.clear();
  }
  void Require(const char* name, bool sound, const char* what) {
    if (sound || !wrong_.ok()) return;
    wrong_ = Status(Code::kInvalidArgument, message_ + ": " + element_ + name + ": " + what);
  }
  Status Finish() {
    Require("end", left_.empty(), "bytes behind the last field");
    return wrong_;
  }

 private:
  void Take(const char* name, void* into, size_t bytes) {
    Require(name, bytes <= left_.size(), "the message ends before it");
    if (!wrong_.ok()) return;
    std::memcpy(into, left_.data(), bytes);
    left_ = left_.subspan(bytes);
  }

  const std::string message_;
  std::span<const uint8_t> left_;
  std::string element_;  // Of the list that is being read: "copies[3].".
  Status wrong_;
};

// ---- The fields of each message, for both directions

template <typename Archive, typename Place>
void PlaceFields(Archive& archive, const char* arena, const char* offset, Place& place) {
  archive.Field(arena, place.arena);
  archive.Field(offset, place.offset);
}

// Of what is made, mapped, copied or cleared: never none.
template <typename Archive, typename Number>
void BytesField(Archive& archive, Number& bytes) {
  archive.Field("bytes", bytes);
  archive.Require("bytes", bytes > 0, "is 0");
}

template <typename T, typename U>
concept Is = std::is_same_v<std::remove_const_t<T>, U>;

template <typename Archive, typename T>
  requires Is<T, MoverCreate> || Is<T, MoverImport> || Is<T, MoverAllocate>
void Fields(Archive& archive, T& body) {
  archive.Field("arena", body.arena);
  BytesField(archive, body.bytes);
}
template <typename Archive, Is<MoverOpen> T>
void Fields(Archive& archive, T& body) {
  archive.Field("arena", body.arena);
  BytesField(archive, body.bytes);
  archive.Field("handle", body.handle);
}
template <typename Archive, Is<MoverHost> T>
void Fields(Archive& archive, T& body) {
  archive.Field("arena", body.arena);
  BytesField(archive, body.bytes);
  archive.Field("writable", body.writable);
  archive.Field("registered", body.registered);
}
template <typename Archive, Is<MoverRelease> T>
void Fields(Archive& archive, T& body) {
  archive.Field("arena", body.arena);
}
template <typename Archive, Is<MoverCopies> T>
void Fields(Archive& archive, T& body) {
  archive.Field("any_order", body.any_order);
  archive.List("copies", body.copies, kMostDeviceCopies, [&](auto& copy) {
    PlaceFields(archive, "dst.arena", "dst.offset", copy.dst);
    PlaceFields(archive, "src.arena", "src.offset", copy.src);
    BytesField(archive, copy.bytes);
  });
}
template <typename Archive, Is<MoverClear> T>
void Fields(Archive& archive, T& body) {
  PlaceFields(archive, "at.arena", "at.offset", body.at);
  BytesField(archive, body.bytes);
}
template <typename Archive, Is<MoverPages> T>
void Fields(Archive& archive, T& body) {
  archive.Field("gather", body.gather);
  archive.Field("block_stride", body.block_stride);
  archive.Field("block_bytes", body.block_bytes);
  archive.Field("segment_stride", body.segment_stride);
  archive.List("bases", body.bases, kMostPagedSegments,
               [&](auto& base) { PlaceFields(archive, "arena", "offset", base); });
  archive.List("blocks", body.blocks, kMostDeviceBlocks, [&](auto& block) {
    PlaceFields(archive, "page.arena", "page.offset", block.page);
    archive.Field("block", block.block);
    archive.Field("bytes", block.bytes);
  });
}
template <typename Archive, Is<MoverReport> T>
void Fields(Archive&, T&) {}
template <typename Archive, Is<MoverReady> T>
void Fields(Archive& archive, T& body) {
  archive.Field("version", body.version);
  archive.Require("version", body.version == kMoverVersion, "is another build's");
  archive.Field("status", body.status);
  auto& facts = body.facts;
  archive.Field("uuid", facts.uuid.bytes);
  archive.Field("name", facts.name);
  archive.Field("driver", facts.driver);
  archive.Field("total_bytes", facts.total_bytes);
  archive.Field("slabs", facts.slabs);
  archive.Field("granularity", facts.granularity);
  archive.Require("granularity", std::has_single_bit(facts.granularity) || !body.status.ok(),
                  "is no power of two");
  archive.Field("allocations", facts.allocations);
  archive.Field("batches", facts.batches);
  archive.Field("paged_copies", facts.paged_copies);
  archive.Field("read_only_registration", facts.read_only_registration);
  archive.Field("registration_bytes", facts.registration_bytes);
}
template <typename Archive, Is<MoverAnswer> T>
void Fields(Archive& archive, T& body) {
  archive.Field("status", body.status);
  auto& figures = body.figures;
  archive.Field("free_bytes", figures.memory.free_bytes);
  archive.Field("total_bytes", figures.memory.total_bytes);
  archive.Field("host_bytes", figures.host_bytes);
  archive.Field("registered_bytes", figures.registered_bytes);
  archive.Field("direct_bytes", figures.direct_bytes);
  archive.Field("staged_bytes", figures.staged_bytes);
  archive.Field("registration", figures.registration);
  archive.Field("handle", body.handle);
}

// The most that these can have.
static_assert(kMoverHeaderBytes + 1 + 4 + kMostDeviceCopies * 32 <= kMostMoverBytes);
static_assert(kMoverHeaderBytes + 33 + kMostPagedSegments * 12 + kMostDeviceBlocks * 20 <=
              kMostMoverBytes);

// The variant's alternative by its place.
template <size_t kType = 0>
void Choose(size_t type, MoverBody& body) {
  if constexpr (kType < std::variant_size_v<MoverBody>) {
    if (type == kType) {
      body.emplace<kType>();
    } else {
      Choose<kType + 1>(type, body);
    }
  }
}

Status Refused(const std::string& words) {
  return {Code::kInvalidArgument, words};
}

}  // namespace

std::vector<uint8_t> EncodeMover(const MoverMessage& message) {
  std::vector<uint8_t> packet(kMoverHeaderBytes);
  Writer writer(packet);
  std::visit([&](const auto& body) { Fields(writer, body); }, message.body);
  const Header header{.bytes = static_cast<uint32_t>(packet.size() - kMoverHeaderBytes),
                      .type = static_cast<uint16_t>(message.body.index()),
                      .descriptors = message.descriptors,
                      .request = message.request};
  std::memcpy(packet.data(), &header, sizeof header);
  return packet;
}

Result<MoverMessage> DecodeMover(std::span<const uint8_t> packet) {
  if (packet.size() < kMoverHeaderBytes || packet.size() > kMostMoverBytes) {
    return Refused("packet: of " + std::to_string(packet.size()) + " bytes");
  }
  Header header;
  std::memcpy(&header, packet.data(), sizeof header);
  const std::span<const uint8_t> rest = packet.subspan(kMoverHeaderBytes);
  if (header.type >= std::size(kNames)) {
    return Refused("type: " + std::to_string(header.type) + " is unknown");
  }
  const std::string name = kNames[header.type];
  if (header.bytes != rest.size()) {
    return Refused(name + ": bytes: " + std::to_string(header.bytes) + ", and the packet has " +
                   std::to_string(rest.size()));
  }
  if (header.descriptors > 1) {
    return Refused(name + ": descriptors: " + std::to_string(header.descriptors));
  }
  MoverMessage message{.request = header.request, .descriptors = header.descriptors, .body = {}};
  Choose(header.type, message.body);
  Reader reader(name, rest);
  std::visit([&](auto& body) { Fields(reader, body); }, message.body);
  RETURN_IF_ERROR(reader.Finish());
  return message;
}

uint64_t RequestOfMover(std::span<const uint8_t> packet) {
  if (packet.size() < kMoverHeaderBytes) return 0;
  Header header;
  std::memcpy(&header, packet.data(), sizeof header);
  return header.request;
}

}  // namespace terrace
