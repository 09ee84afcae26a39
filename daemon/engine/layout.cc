#include "daemon/engine/layout.h"

#include <algorithm>
#include <array>
#include <optional>
#include <string_view>
#include <vector>

namespace terrace {
namespace {

constexpr uint32_t kMaxLayers = 1u << 16;
constexpr uint32_t kMaxHeads = 1u << 16;
constexpr uint32_t kMaxHeadSize = 1u << 16;
// Two pages never share a cache line, though they are carved side by side.
constexpr uint64_t kPageAlignment = 64;
constexpr uint64_t kMaxPageBytes = 1u << 31;
// docs/keys.md: a tag fills 32 bytes.
constexpr std::array<char, 32> kSpaceTag = {"terrace space id v1"};

struct Dtype {
  std::string_view name;
  uint32_t bytes;
};
constexpr std::array kDtypes = {Dtype{"bf16", 2},    Dtype{"f16", 2}, Dtype{"f8_e4m3", 1},
                                Dtype{"f8_e5m2", 1}, Dtype{"i8", 1},  Dtype{"f32", 4}};
constexpr std::array<std::string_view, 5> kAxes = {"dim", "head", "layer", "plane", "token"};

std::optional<uint32_t> DtypeBytes(std::string_view name) {
  for (const Dtype& dtype : kDtypes) {
    if (dtype.name == name) return dtype.bytes;
  }
  return std::nullopt;
}

Status Invalid(std::string message) {
  return Status(Code::kInvalidArgument, std::move(message));
}

Status CheckRange(std::string_view field, uint32_t value, uint32_t low, uint32_t high) {
  if (value >= low && value <= high) return {};
  return Invalid("layout." + std::string(field) + " is " + std::to_string(value) +
                 ", must be between " + std::to_string(low) + " and " + std::to_string(high));
}

Status CheckOrder(const std::string& order) {
  std::vector<std::string_view> axes;
  for (std::string_view rest = order; axes.size() <= kAxes.size();) {
    const size_t comma = rest.find(',');
    axes.push_back(rest.substr(0, comma));
    if (comma == std::string_view::npos) break;
    rest.remove_prefix(comma + 1);
  }
  std::sort(axes.begin(), axes.end());
  if (std::equal(axes.begin(), axes.end(), kAxes.begin(), kAxes.end())) return {};
  // Cut: it came from outside and goes into a message.
  return Invalid("layout.order is '" + order.substr(0, 64) +
                 "', must be a permutation of layer,plane,token,head,dim");
}

// The bytes of `layers` layers with `heads` heads. The factors are range-checked, so that the
// product of any four stays below 2^64; it is capped before the fifth.
Result<uint32_t> Bytes(const KvLayout& layout, uint32_t layers, uint32_t heads) {
  const std::optional<uint32_t> element = DtypeBytes(layout.dtype);
  if (!element) return Invalid("layout.dtype '" + layout.dtype.substr(0, 64) + "' is not known");
  uint64_t bytes = *element;
  for (const uint32_t factor :
       {layout.planes, layout.page_tokens, layers, heads, layout.head_size}) {
    bytes *= factor;
    if (bytes > kMaxPageBytes) {
      return Invalid("layout: a page has more than " + std::to_string(kMaxPageBytes) + " bytes");
    }
  }
  if (bytes % kPageAlignment != 0) {
    return Invalid("layout: a page has " + std::to_string(bytes) +
                   " bytes, which is not a multiple of 64");
  }
  return static_cast<uint32_t>(bytes);
}

}  // namespace

Status ValidateLayout(const KvLayout& layout) {
  if (!DtypeBytes(layout.dtype)) {
    return Invalid("layout.dtype '" + layout.dtype.substr(0, 64) +
                   "' is not one of bf16, f16, f8_e4m3, f8_e5m2, i8, f32");
  }
  RETURN_IF_ERROR(CheckRange("layers", layout.layers, 1, kMaxLayers));
  RETURN_IF_ERROR(CheckRange("kv_heads", layout.kv_heads, 1, kMaxHeads));
  RETURN_IF_ERROR(CheckRange("head_size", layout.head_size, 1, kMaxHeadSize));
  RETURN_IF_ERROR(CheckRange("page_tokens", layout.page_tokens, 16, 512));
  RETURN_IF_ERROR(CheckRange("planes", layout.planes, 1, 2));
  RETURN_IF_ERROR(CheckOrder(layout.order));
  return Bytes(layout, layout.layers, layout.kv_heads).status();
}

Result<uint32_t> PartBytes(const KvLayout& layout, uint32_t part) {
  RETURN_IF_ERROR(ValidateLayout(layout));
  if (part == 0) return Bytes(layout, layout.layers, layout.kv_heads);
  const uint32_t tp_rank = part & 0xff;
  const uint32_t tp_size = part >> 8 & 0xff;
  const uint32_t stage = part >> 16 & 0xff;
  const uint32_t stages = part >> 24;
  if (tp_size == 0 || tp_rank >= tp_size) {
    return Invalid("part: tp_rank " + std::to_string(tp_rank) + " of tp_size " +
                   std::to_string(tp_size));
  }
  if (stages == 0 || stage >= stages) {
    return Invalid("part: stage " + std::to_string(stage) + " of " + std::to_string(stages) +
                   " stages");
  }
  if (layout.kv_heads != 1 && layout.kv_heads % tp_size != 0) {
    return Invalid("part: tp_size " + std::to_string(tp_size) + " does not divide kv_heads " +
                   std::to_string(layout.kv_heads));
  }
  if (layout.layers % stages != 0) {
    return Invalid("part: stages " + std::to_string(stages) + " does not divide layers " +
                   std::to_string(layout.layers));
  }
  const uint32_t heads = layout.kv_heads == 1 ? 1 : layout.kv_heads / tp_size;
  return Bytes(layout, layout.layers / stages, heads);
}

std::string FirstDifference(const KvLayout& asked, const KvLayout& present) {
  const auto differs = [](std::string_view field, const std::string& here,
                          const std::string& there) {
    return std::string(field) + " is " + here + " here and " + there + " in the open space";
  };
  const auto number = [](uint32_t value) { return std::to_string(value); };
  if (asked.dtype != present.dtype) return differs("dtype", asked.dtype, present.dtype);
  if (asked.layers != present.layers) {
    return differs("layers", number(asked.layers), number(present.layers));
  }
  if (asked.kv_heads != present.kv_heads) {
    return differs("kv_heads", number(asked.kv_heads), number(present.kv_heads));
  }
  if (asked.head_size != present.head_size) {
    return differs("head_size", number(asked.head_size), number(present.head_size));
  }
  if (asked.page_tokens != present.page_tokens) {
    return differs("page_tokens", number(asked.page_tokens), number(present.page_tokens));
  }
  if (asked.planes != present.planes) {
    return differs("planes", number(asked.planes), number(present.planes));
  }
  if (asked.order != present.order) return differs("order", asked.order, present.order);
  return {};
}

Digest SpaceId(const std::string& tenant, const Digest& weights, const Digest& adapter,
               std::string_view salt, const KvLayout& layout) {
  return Sha256()
      .Update(std::string_view(kSpaceTag.data(), kSpaceTag.size()))
      .UpdateField(tenant)
      .UpdateField(weights.bytes)
      .UpdateField(adapter.bytes)
      .UpdateField(salt)
      .UpdateField(layout.dtype)
      .UpdateU32(layout.layers)
      .UpdateU32(layout.kv_heads)
      .UpdateU32(layout.head_size)
      .UpdateU32(layout.page_tokens)
      .UpdateU32(layout.planes)
      .UpdateField(layout.order)
      .Finish();
}

}  // namespace terrace
