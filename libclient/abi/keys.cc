// The C ABI: page keys and sequences.
#include <span>
#include <string>

#include "libclient/abi/abi.h"

using namespace terrace;               // NOLINT(google-build-using-namespace)
using namespace terrace::client::abi;  // NOLINT(google-build-using-namespace)
using terrace::client::PageSequence;
using terrace::client::Space;

namespace {

Status CheckExtra(const void* extra, size_t extra_bytes) {
  if (extra == nullptr && extra_bytes > 0) return Invalid("extra is NULL");
  if (extra_bytes > UINT32_MAX) return Invalid("extra_bytes is over 2^32 - 1");
  return {};
}

}  // namespace

kvc_code kvc_page_key(const kvc_space* space, const kvc_key* parent, const uint32_t* tokens,
                      size_t token_count, const void* extra, size_t extra_bytes, kvc_key* key) {
  return Run(nullptr, [&]() -> Status {
    if (space == nullptr || tokens == nullptr || key == nullptr) {
      return Invalid("space, tokens or key is NULL");
    }
    const Space& opened = *Of(space)->space;
    if (token_count == 0 || token_count > opened.facts().page_tokens) {
      return Invalid("token_count is not between 1 and the page's tokens");
    }
    RETURN_IF_ERROR(CheckExtra(extra, extra_bytes));
    *Of(key) =
        opened.hasher().PageKey(parent != nullptr ? *Of(parent) : Digest(), {tokens, token_count},
                                {static_cast<const uint8_t*>(extra), extra_bytes});
    return {};
  });
}

kvc_code kvc_foreign_key(const kvc_space* space, const uint8_t engine_key[32], kvc_key* key) {
  return Run(nullptr, [&]() -> Status {
    if (space == nullptr || engine_key == nullptr || key == nullptr) {
      return Invalid("space, engine_key or key is NULL");
    }
    *Of(key) = Of(space)->space->hasher().ForeignKey(std::span<const uint8_t, 32>(engine_key, 32));
    return {};
  });
}

kvc_code kvc_sequence_create(const kvc_space* space, kvc_sequence** sequence) {
  return Run(nullptr, [&]() -> Status {
    if (space == nullptr || sequence == nullptr) return Invalid("space or sequence is NULL");
    const Space& opened = *Of(space)->space;
    *sequence =
        ToHandle<kvc_sequence>(new PageSequence(opened.hasher(), opened.facts().page_tokens));
    return {};
  });
}

void kvc_sequence_destroy(kvc_sequence* sequence) {
  delete Of(sequence);
}

kvc_code kvc_sequence_append(kvc_sequence* sequence, const uint32_t* tokens, size_t count) {
  return Run(nullptr, [&]() -> Status {
    if (sequence == nullptr || (tokens == nullptr && count > 0)) {
      return Invalid("sequence or tokens is NULL");
    }
    Of(sequence)->Append({tokens, count});
    return {};
  });
}

kvc_code kvc_sequence_set_extra(kvc_sequence* sequence, size_t page_index, const void* extra,
                                size_t extra_bytes) {
  return Run(nullptr, [&]() -> Status {
    if (sequence == nullptr) return Invalid("sequence is NULL");
    RETURN_IF_ERROR(CheckExtra(extra, extra_bytes));
    return Of(sequence)->SetExtra(page_index, {static_cast<const uint8_t*>(extra), extra_bytes});
  });
}

kvc_code kvc_sequence_truncate(kvc_sequence* sequence, size_t count) {
  return Run(nullptr, [&]() -> Status {
    if (sequence == nullptr) return Invalid("sequence is NULL");
    return Of(sequence)->Truncate(count);
  });
}

size_t kvc_sequence_tokens(const kvc_sequence* sequence) {
  return sequence == nullptr ? 0 : Of(sequence)->tokens();
}

const kvc_key* kvc_sequence_keys(const kvc_sequence* sequence, size_t* count) {
  const std::span<const Digest> keys =
      sequence == nullptr ? std::span<const Digest>() : Of(sequence)->keys();
  if (count != nullptr) *count = keys.size();
  return reinterpret_cast<const kvc_key*>(keys.data());
}

kvc_code kvc_sequence_partial(const kvc_sequence* sequence, kvc_key* key, uint32_t* valid_tokens) {
  return Run(nullptr, [&]() -> Status {
    if (sequence == nullptr || key == nullptr || valid_tokens == nullptr) {
      return Invalid("sequence, key or valid_tokens is NULL");
    }
    const auto partial = Of(sequence)->partial();
    if (!partial) return Status(Code::kNotFound, "the last page is full");
    *Of(key) = partial->key;
    *valid_tokens = partial->valid_tokens;
    return {};
  });
}
