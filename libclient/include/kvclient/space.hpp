// Spaces and page keys in C++. See kvclient.hpp.
#ifndef KVCLIENT_SPACE_HPP
#define KVCLIENT_SPACE_HPP

#include <cstddef>
#include <cstdint>
#include <kvclient/result.hpp>

namespace kvc {

class Sequence;

class Space {
 public:
  kvc_space_info info() const {
    kvc_space_info info{};
    info.struct_size = sizeof info;
    kvc_space_get_info(handle_.get(), &info);
    return info;
  }
  // `parent` null for the first page.
  Result<Key> PageKey(const Key* parent, Span<const std::uint32_t> tokens,
                      ConstBytes extra = {}) const {
    Key key{};
    const kvc_code code = kvc_page_key(handle_.get(), parent, tokens.data(), tokens.size(),
                                       extra.data(), extra.size(), &key);
    if (code != KVC_OK) return Status(code, "page key");
    return key;
  }
  Key ForeignKey(const std::uint8_t (&engine_key)[32]) const {
    Key key{};
    kvc_foreign_key(handle_.get(), engine_key, &key);
    return key;
  }
  inline Result<Sequence> NewSequence() const;
  const kvc_space* get() const { return handle_.get(); }

 private:
  friend class Client;
  detail::Owned<kvc_space, kvc_space_close> handle_;
};

class Sequence {
 public:
  Status Append(Span<const std::uint32_t> tokens) {
    return detail::StatusOf(kvc_sequence_append(handle_.get(), tokens.data(), tokens.size()),
                            "append to a sequence");
  }
  Status SetExtra(std::size_t page, ConstBytes extra) {
    return detail::StatusOf(kvc_sequence_set_extra(handle_.get(), page, extra.data(), extra.size()),
                            "extra of a page that is full");
  }
  Status Truncate(std::size_t tokens) {
    return detail::StatusOf(kvc_sequence_truncate(handle_.get(), tokens),
                            "truncate a sequence to more than it has");
  }
  std::size_t tokens() const { return kvc_sequence_tokens(handle_.get()); }
  // Of full pages; valid until the sequence changes.
  Span<const Key> keys() const {
    std::size_t count = 0;
    const Key* keys = kvc_sequence_keys(handle_.get(), &count);
    return {keys, count};
  }
  struct Partial {
    Key key{};
    std::uint32_t valid_tokens = 0;  // 0: the last page is full.
  };
  Partial partial() const {
    Partial partial;
    if (kvc_sequence_partial(handle_.get(), &partial.key, &partial.valid_tokens) != KVC_OK) {
      return {};
    }
    return partial;
  }

 private:
  friend class Space;
  detail::Owned<kvc_sequence, kvc_sequence_destroy> handle_;
};

inline Result<Sequence> Space::NewSequence() const {
  Sequence sequence;
  kvc_sequence* handle = nullptr;
  const kvc_code code = kvc_sequence_create(handle_.get(), &handle);
  if (code != KVC_OK) return Status(code, "new sequence");
  sequence.handle_.reset(handle);
  return sequence;
}

}  // namespace kvc

#endif  // KVCLIENT_SPACE_HPP
