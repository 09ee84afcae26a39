// KvLayout: what the bytes of a page mean, and from it how many there are.
#pragma once

#include <cstdint>
#include <string>

#include "base/digest.h"
#include "base/status.h"

namespace terrace {

// page_bytes = planes * layers * kv_heads * head_size * page_tokens * bytes of dtype.
struct KvLayout {
  std::string dtype;  // "bf16", "f16", "f8_e4m3", "f8_e5m2", "i8", "f32"
  uint32_t layers = 0;
  uint32_t kv_heads = 0;
  uint32_t head_size = 0;
  uint32_t page_tokens = 0;  // 16 to 512
  uint32_t planes = 0;       // 2: K and V; 1: one latent
  std::string order;         // Axes, outermost first; a permutation of layer,plane,token,head,dim.

  friend bool operator==(const KvLayout&, const KvLayout&) = default;
};

// Refuses what cannot be a layout, naming the field. A page has at most 2 GiB, a multiple of 64
// bytes: pages are carved side by side, and two of them never share a cache line.
Status ValidateLayout(const KvLayout& layout);
// Of an undivided page (part 0) or of a rank's part: tp_rank | tp_size << 8 | stage << 16 | stages
// << 24, where tp_size must divide kv_heads (or kv_heads be 1: replicated) and stages the layers.
Result<uint32_t> PartBytes(const KvLayout& layout, uint32_t part);
// "page_tokens is 16 here and 256 in the open space", or empty if there is no difference.
std::string FirstDifference(const KvLayout& asked, const KvLayout& present);

// SHA-256 over the length-prefixed fields, in the order of docs/keys.md.
Digest SpaceId(const std::string& tenant, const Digest& weights, const Digest& adapter,
               std::string_view salt, const KvLayout& layout);

}  // namespace terrace
