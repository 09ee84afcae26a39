// The SHA256_* functions are called directly: the EVP layer costs an allocation and about 150 ns a
// hash, as much as hashing 256 bytes, and a chain of page keys makes thousands of short hashes.
#define OPENSSL_SUPPRESS_DEPRECATED
#include "base/digest.h"

#include <openssl/sha.h>

#include "base/check.h"
#include "base/hex.h"

namespace terrace {
namespace {

SHA256_CTX* Context(std::array<uint8_t, 112>& state) {
  static_assert(sizeof(SHA256_CTX) == 112);
  return reinterpret_cast<SHA256_CTX*>(state.data());
}

}  // namespace

std::string Digest::Hex() const {
  return HexEncode(bytes);
}

std::optional<Digest> Digest::FromHex(std::string_view hex) {
  Digest digest;
  if (hex.size() != 64 || !HexDecode(hex, digest.bytes)) return std::nullopt;
  return digest;
}

Sha256::Sha256() {
  TERRACE_CHECK(SHA256_Init(Context(state_)) == 1);
}

Sha256& Sha256::Update(std::span<const uint8_t> bytes) {
  SHA256_Update(Context(state_), bytes.data(), bytes.size());
  return *this;
}

Sha256& Sha256::UpdateU32(uint32_t value) {
  return Update({reinterpret_cast<const uint8_t*>(&value), sizeof value});
}

Sha256& Sha256::UpdateU64(uint64_t value) {
  return Update({reinterpret_cast<const uint8_t*>(&value), sizeof value});
}

Sha256& Sha256::UpdateField(std::span<const uint8_t> bytes) {
  return UpdateU64(bytes.size()).Update(bytes);
}

Sha256& Sha256::UpdateField(std::string_view text) {
  return UpdateField(std::span(reinterpret_cast<const uint8_t*>(text.data()), text.size()));
}

Digest Sha256::Finish() {
  Digest digest;
  SHA256_Final(digest.bytes.data(), Context(state_));
  return digest;
}

}  // namespace terrace
