// model.safetensors.index.json: which shard of a set holds which tensor.
//
// Index and shards must agree exactly: every listed tensor lies in the shard that the index names,
// every tensor of a shard is listed, and every shard is named. Files of two downloads, or of a
// download that is not complete, differ in one of these.
//
// Thread safety: functions without state.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "tiers/tier.h"

namespace terrace {

inline constexpr size_t kMaxIndexBytes = 64u << 20;

struct ShardedTensor {
  std::string tensor;
  std::string shard;  // A file name without a directory.
};
// The entries of "weight_map"; other members are skipped.
Result<std::vector<ShardedTensor>> ParseShardIndex(std::string_view index);

// Whether `tensors`, found in `files`, are what the index lists.
Status CheckShardIndex(const std::vector<ShardedTensor>& index,
                       const std::vector<TensorSpec>& tensors,
                       const std::vector<SourceFile>& files);

}  // namespace terrace
