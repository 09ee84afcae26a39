// Page keys: the names of KV pages, chained over token ids (docs/keys.md).
//
// KeyHasher belongs to a space and is constant: any thread. PageSequence is the keys of one growing
// list of tokens, each token hashed once; one thread at a time. It keeps the tokens (4 bytes each),
// so that it can be cut at any of them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <vector>

#include "base/digest.h"
#include "base/status.h"

namespace terrace::client {

class KeyHasher {
 public:
  explicit KeyHasher(const Digest& space);

  // `parent` is zero for the first page.
  Digest PageKey(const Digest& parent, std::span<const uint32_t> tokens,
                 std::span<const uint8_t> extra) const;
  Digest ForeignKey(std::span<const uint8_t, 32> engine_key) const;

 private:
  // What every key of the space begins with is one block of SHA-256, hashed here once.
  Sha256 page_;
  Sha256 foreign_;
};

class PageSequence {
 public:
  PageSequence(const KeyHasher& hasher, uint32_t page_tokens)
      : hasher_(hasher), page_tokens_(page_tokens) {}

  void Append(std::span<const uint32_t> tokens);
  // For a page that is not full yet; it may lie ahead.
  Status SetExtra(size_t page, std::span<const uint8_t> extra);
  // Keeps the first `count` tokens, and the extras of pages that begin before there.
  Status Truncate(size_t count);

  size_t tokens() const { return tokens_.size(); }
  // Of full pages.
  std::span<const Digest> keys() const { return keys_; }
  struct Partial {
    Digest key;
    uint32_t valid_tokens = 0;
  };
  // Of the last page, if it is partly filled.
  std::optional<Partial> partial() const;

 private:
  Digest Hash(size_t page, size_t token_count) const;

  const KeyHasher hasher_;
  const uint32_t page_tokens_;
  std::vector<uint32_t> tokens_;
  std::vector<Digest> keys_;
  std::map<size_t, std::vector<uint8_t>> extras_;
};

}  // namespace terrace::client
