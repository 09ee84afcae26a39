#include "libclient/page_keys.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <string>
#include <string_view>
#include <utility>

namespace terrace::client {
namespace {

static_assert(std::endian::native == std::endian::little, "token ids are hashed as they lie");

// tag | space id: together one block of SHA-256.
Sha256 Begin(std::string_view tag, const Digest& space) {
  std::array<uint8_t, 32> padded{};
  std::memcpy(padded.data(), tag.data(), tag.size());
  Sha256 hash;
  hash.Update(padded).Update(space.bytes);
  return hash;
}

std::span<const uint8_t> BytesOf(std::span<const uint32_t> tokens) {
  return {reinterpret_cast<const uint8_t*>(tokens.data()), tokens.size_bytes()};
}

}  // namespace

KeyHasher::KeyHasher(const Digest& space)
    : page_(Begin("terrace page key v1", space)),
      foreign_(Begin("terrace foreign key v1", space)) {}

Digest KeyHasher::PageKey(const Digest& parent, std::span<const uint32_t> tokens,
                          std::span<const uint8_t> extra) const {
  struct {
    Digest parent;
    uint32_t token_count;
    uint32_t extra_bytes;
  } const head = {parent, static_cast<uint32_t>(tokens.size()),
                  static_cast<uint32_t>(extra.size())};
  static_assert(sizeof head == 40);
  Sha256 hash = page_;
  hash.Update({reinterpret_cast<const uint8_t*>(&head), sizeof head}).Update(BytesOf(tokens));
  if (!extra.empty()) hash.Update(extra);
  return hash.Finish();
}

Digest KeyHasher::ForeignKey(std::span<const uint8_t, 32> engine_key) const {
  Sha256 hash = foreign_;
  return hash.Update(engine_key).Finish();
}

Digest PageSequence::Hash(size_t page, size_t token_count) const {
  const auto extra = extras_.find(page);
  return hasher_.PageKey(page == 0 ? Digest() : keys_[page - 1],
                         std::span(tokens_).subspan(page * page_tokens_, token_count),
                         extra == extras_.end() ? std::span<const uint8_t>() : extra->second);
}

void PageSequence::Append(std::span<const uint32_t> tokens) {
  tokens_.insert(tokens_.end(), tokens.begin(), tokens.end());
  const size_t full = tokens_.size() / page_tokens_;
  // Not to the exact size: a sequence that grows page by page would copy its keys each time.
  if (full > keys_.capacity()) keys_.reserve(std::max(full, 2 * keys_.capacity()));
  while (keys_.size() < full)
    keys_.push_back(Hash(keys_.size(), page_tokens_));
}

Status PageSequence::SetExtra(size_t page, std::span<const uint8_t> extra) {
  if (extra.size() > UINT32_MAX) return {Code::kInvalidArgument, "extra_bytes is over 2^32 - 1"};
  if (page < keys_.size()) {
    return {Code::kInvalidArgument, "page_index " + std::to_string(page) + " is full already"};
  }
  if (extra.empty()) {
    extras_.erase(page);
  } else {
    extras_[page].assign(extra.begin(), extra.end());
  }
  return {};
}

Status PageSequence::Truncate(size_t count) {
  if (count > tokens_.size()) {
    return {Code::kInvalidArgument, "count " + std::to_string(count) + " is more than the " +
                                        std::to_string(tokens_.size()) + " tokens there are"};
  }
  if (count == tokens_.size()) return {};
  tokens_.resize(count);
  keys_.resize(count / page_tokens_);
  extras_.erase(extras_.lower_bound((count + page_tokens_ - 1) / page_tokens_), extras_.end());
  return {};
}

std::optional<PageSequence::Partial> PageSequence::partial() const {
  const size_t rest = tokens_.size() % page_tokens_;
  if (rest == 0) return std::nullopt;
  return Partial{Hash(keys_.size(), rest), static_cast<uint32_t>(rest)};
}

}  // namespace terrace::client
