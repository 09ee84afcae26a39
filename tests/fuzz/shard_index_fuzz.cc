// model.safetensors.index.json of any bytes, against a set of two files.
#include "base/check.h"
#include "tests/fuzz/fuzz.h"
#include "tiers/source/shard_index.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace terrace;
  const auto index = ParseShardIndex({reinterpret_cast<const char*>(data), size});
  if (!index) {
    TERRACE_CHECK(!index.error().message().empty());
    return 0;
  }
  for (const ShardedTensor& entry : *index)
    TERRACE_CHECK(!entry.shard.empty() && entry.shard.find('/') == std::string::npos);
  const std::vector<SourceFile> files = {{.path = "/m/s1", .bytes = 8, .why_not = ""},
                                         {.path = "/m/s2", .bytes = 8, .why_not = ""}};
  const std::vector<TensorSpec> tensors = {
      {.name = "a", .dtype = "U8", .shape = {8}, .file = 0, .bytes = 8},
      {.name = "b", .dtype = "U8", .shape = {8}, .file = 1, .bytes = 8}};
  // Accepted only if it is exactly this set.
  if (CheckShardIndex(*index, tensors, files).ok()) TERRACE_CHECK(index->size() == tensors.size());
  return 0;
}
