// SHA-256: the one door to OpenSSL.
//
// Digest is a value of 32 bytes. Sha256 is an incremental hasher that can be copied in the middle:
// a chain of page keys hashes its constant first block once and copies the state (docs/keys.md).
// Thread safety: values.
#pragma once

#include <array>
#include <compare>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>
#include <string>
#include <string_view>

namespace terrace {

struct Digest {
  std::array<uint8_t, 32> bytes{};

  friend auto operator<=>(const Digest&, const Digest&) = default;
  bool IsZero() const { return *this == Digest{}; }
  // The first 8 bytes, little-endian: digests are uniform, so this is a good hash.
  uint64_t Word(int index) const {
    uint64_t word;
    std::memcpy(&word, bytes.data() + 8 * index, sizeof word);
    return word;
  }
  std::string Hex() const;
  static std::optional<Digest> FromHex(std::string_view hex);
};

struct DigestHash {
  size_t operator()(const Digest& digest) const { return static_cast<size_t>(digest.Word(0)); }
};

class Sha256 {
 public:
  Sha256();
  Sha256& Update(std::span<const uint8_t> bytes);
  Sha256& Update(std::string_view text) {
    return Update({reinterpret_cast<const uint8_t*>(text.data()), text.size()});
  }
  // Little-endian, 4 and 8 bytes.
  Sha256& UpdateU32(uint32_t value);
  Sha256& UpdateU64(uint64_t value);
  // A u64 length and then the bytes: the injective encoding of a field.
  Sha256& UpdateField(std::span<const uint8_t> bytes);
  Sha256& UpdateField(std::string_view text);
  // The hasher may not be updated after it.
  Digest Finish();

  static Digest Of(std::span<const uint8_t> bytes) { return Sha256().Update(bytes).Finish(); }

 private:
  // Room for OpenSSL's SHA256_CTX; its header stays inside digest.cc.
  alignas(8) std::array<uint8_t, 112> state_;
};

}  // namespace terrace
