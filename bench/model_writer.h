// ModelWriter: safetensors models with the true tensor names, shapes and dtypes of an architecture,
// and values that follow from a seed.
//
// A value depends on (seed, tensor name, position) and nothing else: a reader can verify any range
// of any tensor without having the file, and a model split into other shards has the same content.
// Values of floating-point tensors are finite and of the size of trained weights.
//
// Thread safety: functions and values without hidden state.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"

namespace terrace {

// The part of a Hugging Face config.json that decides which tensors a decoder has. Names as there.
struct Architecture {
  std::string
      model_type;  // "llama", "mistral", "qwen2" (biases of q, k, v), "qwen3" (q and k norms).
  uint64_t hidden_size = 0;
  uint64_t num_hidden_layers = 0;
  uint64_t num_attention_heads = 0;
  uint64_t num_key_value_heads = 0;
  uint64_t head_dim = 0;
  uint64_t intermediate_size = 0;
  uint64_t vocab_size = 0;
  bool tie_word_embeddings = false;      // Then there is no lm_head.
  std::string torch_dtype = "bfloat16";  // bfloat16, float16 or float32.
  std::string config_json;               // Written beside the shards.
};

// "llama-3.2-1b" (2.47 GB), "tiny" (a llama of 3.3 MB).
std::vector<std::string> PublishedArchitectures();
Result<Architecture> FindArchitecture(std::string_view name);
Result<Architecture> ParseConfig(std::string_view config_json);

struct ModelTensor {
  std::string name;
  std::string dtype;  // The safetensors word.
  std::vector<uint64_t> shape;

  uint64_t bytes() const;
};
// In the order in which the reference implementation saves them.
Result<std::vector<ModelTensor>> TensorsOf(const Architecture& architecture);
// Many small ones: `count` BF16 tensors of [64, 64], 25 a layer.
std::vector<ModelTensor> ManyTensors(uint64_t count);

// What all values of one tensor are computed from.
uint64_t TensorSeed(uint64_t seed, std::string_view name);
// Bytes [8 * index, 8 * index + 8) of the tensor, little-endian.
uint64_t WordAt(uint64_t tensor_seed, std::string_view dtype, uint64_t index);
// Fills `into` with the tensor's bytes from `offset` on; both may be unaligned.
void FillTensor(uint64_t tensor_seed, std::string_view dtype, uint64_t offset,
                std::span<uint8_t> into);

struct WriteOptions {
  uint64_t seed = 1;
  uint32_t shards = 1;  // At most the number of tensors; 1 writes model.safetensors and no index.
  std::string config_json;  // Written as config.json unless empty.
};
struct Written {
  std::vector<std::string> files;  // Paths of the safetensors files.
  uint64_t tensor_bytes = 0;
};
// Writes into `directory`, which is made if needed. Files that are there already are replaced, each
// at once and when it is complete; of an index or shards that belong to another model nothing is
// removed.
Result<Written> WriteModel(const std::string& directory, const std::vector<ModelTensor>& tensors,
                           const WriteOptions& options);

}  // namespace terrace
