#include "bench/model_writer.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <system_error>
#include <utility>

#include "base/unique_fd.h"

namespace terrace {
namespace {

using Json = nlohmann::json;

constexpr size_t kBufferBytes = 4u << 20;
constexpr uint64_t kMaxSize = 1u << 24;  // Of any one number of a configuration.

// https://huggingface.co/meta-llama/Llama-3.2-1B/blob/main/config.json
constexpr char kLlama32OneB[] = R"({
  "architectures": ["LlamaForCausalLM"],
  "attention_bias": false,
  "attention_dropout": 0.0,
  "bos_token_id": 128000,
  "eos_token_id": 128001,
  "head_dim": 64,
  "hidden_act": "silu",
  "hidden_size": 2048,
  "initializer_range": 0.02,
  "intermediate_size": 8192,
  "max_position_embeddings": 131072,
  "mlp_bias": false,
  "model_type": "llama",
  "num_attention_heads": 32,
  "num_hidden_layers": 16,
  "num_key_value_heads": 8,
  "rms_norm_eps": 1e-05,
  "rope_scaling": {
    "factor": 32.0,
    "high_freq_factor": 4.0,
    "low_freq_factor": 1.0,
    "original_max_position_embeddings": 8192,
    "rope_type": "llama3"
  },
  "rope_theta": 500000.0,
  "tie_word_embeddings": true,
  "torch_dtype": "bfloat16",
  "use_cache": true,
  "vocab_size": 128256
}
)";

// Nobody's model: the same structure, small enough for a test.
constexpr char kTiny[] = R"({
  "architectures": ["LlamaForCausalLM"],
  "head_dim": 16,
  "hidden_size": 128,
  "intermediate_size": 512,
  "max_position_embeddings": 2048,
  "model_type": "llama",
  "num_attention_heads": 8,
  "num_hidden_layers": 4,
  "num_key_value_heads": 2,
  "rms_norm_eps": 1e-05,
  "rope_theta": 500000.0,
  "tie_word_embeddings": true,
  "torch_dtype": "bfloat16",
  "vocab_size": 5000
}
)";

struct Published {
  std::string_view name;
  std::string_view config_json;
};
constexpr std::array kPublished = {Published{"llama-3.2-1b", kLlama32OneB},
                                   Published{"tiny", kTiny}};

Status Bad(std::string message) {
  return {Code::kInvalidArgument, std::move(message)};
}

Result<uint64_t> SizeField(const Json& config, const char* field) {
  const auto found = config.find(field);
  if (found == config.end()) return Bad(std::string(field) + " is missing");
  if (!found->is_number_unsigned() || found->get<uint64_t>() == 0 ||
      found->get<uint64_t>() > kMaxSize) {
    return Bad(std::string(field) + " must be an integer from 1 to " + std::to_string(kMaxSize));
  }
  return found->get<uint64_t>();
}

// splitmix64 (Steele, Lea and Flood, 2014): its n-th output needs none of those before.
uint64_t Mix(uint64_t z) {
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
  z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
  return z ^ (z >> 31);
}

// How random bits become numbers: the bits that stay, and what is added to them. Exponents then
// span 2^-10 to 2^-3 in all three formats; no carry crosses from one number to the next.
struct Shape {
  uint64_t keep = ~uint64_t{0};
  uint64_t add = 0;
};
Shape ShapeOf(std::string_view dtype) {
  if (dtype == "BF16") return {0x83ff83ff83ff83ff, 0x3a803a803a803a80};
  if (dtype == "F16") return {0x9fff9fff9fff9fff, 0x1400140014001400};
  if (dtype == "F32") return {0x83ffffff83ffffff, 0x3a8000003a800000};
  return {};
}

uint64_t Word(uint64_t tensor_seed, const Shape& shape, uint64_t index) {
  return (Mix(tensor_seed + (index + 1) * 0x9e3779b97f4a7c15) & shape.keep) + shape.add;
}

// The dtypes that TensorsOf and ManyTensors use.
uint64_t ElementBytes(std::string_view dtype) {
  return dtype == "F32" ? 4 : 2;
}

Status WriteAll(int fd, std::span<const uint8_t> bytes) {
  while (!bytes.empty()) {
    const ssize_t written = write(fd, bytes.data(), bytes.size());
    if (written < 0) {
      if (errno == EINTR) continue;
      return SystemError("writing", errno);
    }
    bytes = bytes.subspan(static_cast<size_t>(written));
  }
  return {};
}

std::span<const uint8_t> AsBytes(std::string_view text) {
  return {reinterpret_cast<const uint8_t*>(text.data()), text.size()};
}

// Writes `path` by way of a temporary file, so that no reader sees half of it.
template <typename Write>
Status Replace(const std::string& path, Write write_contents) {
  const std::string temporary = path + ".tmp";
  UniqueFd fd(open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644));
  if (!fd) return SystemError(temporary, errno);
  Status written = write_contents(fd.get());
  if (written.ok() && rename(temporary.c_str(), path.c_str()) != 0) {
    written = SystemError("renaming", errno);
  }
  if (!written.ok()) unlink(temporary.c_str());
  return std::move(written).WithContext(path);
}

std::string HeaderOf(std::span<const ModelTensor> tensors) {
  Json header;
  header["__metadata__"] = {{"format", "pt"}};
  uint64_t offset = 0;
  for (const ModelTensor& tensor : tensors) {
    header[tensor.name] = {{"dtype", tensor.dtype},
                           {"shape", tensor.shape},
                           {"data_offsets", {offset, offset + tensor.bytes()}}};
    offset += tensor.bytes();
  }
  std::string text = header.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');  // The data shall be aligned.
  return text;
}

Status WriteShard(int fd, std::span<const ModelTensor> tensors, uint64_t seed) {
  const std::string header = HeaderOf(tensors);
  const uint64_t length = header.size();
  std::array<uint8_t, 8> prefix;
  std::memcpy(prefix.data(), &length, sizeof length);
  RETURN_IF_ERROR(WriteAll(fd, prefix));
  RETURN_IF_ERROR(WriteAll(fd, AsBytes(header)));
  std::vector<uint8_t> buffer(kBufferBytes);
  for (const ModelTensor& tensor : tensors) {
    const uint64_t tensor_seed = TensorSeed(seed, tensor.name);
    for (uint64_t at = 0; at < tensor.bytes(); at += kBufferBytes) {
      const std::span<uint8_t> part =
          std::span(buffer).first(std::min<uint64_t>(kBufferBytes, tensor.bytes() - at));
      FillTensor(tensor_seed, tensor.dtype, at, part);
      RETURN_IF_ERROR(WriteAll(fd, part));
    }
  }
  return {};
}

std::string ShardName(uint32_t shard, uint32_t shards) {
  if (shards == 1) return "model.safetensors";
  std::array<char, 64> name;
  std::snprintf(name.data(), name.size(), "model-%05u-of-%05u.safetensors", shard + 1, shards);
  return name.data();
}

// Tensors stay in order; a shard is closed when it has its share of the bytes.
std::vector<std::span<const ModelTensor>> Split(std::span<const ModelTensor> tensors,
                                                uint32_t shards) {
  uint64_t left = 0;
  for (const ModelTensor& tensor : tensors)
    left += tensor.bytes();
  std::vector<std::span<const ModelTensor>> parts;
  size_t begin = 0;
  for (uint32_t shard = 0; shard < shards; ++shard) {
    const uint32_t shards_left = shards - shard;
    size_t end = begin;
    uint64_t bytes = 0;
    // Every later shard gets at least one tensor; the last one takes what is left.
    while (end + shards_left - 1 < tensors.size() &&
           (end == begin || shards_left == 1 ||
            bytes + tensors[end].bytes() / 2 < left / shards_left)) {
      bytes += tensors[end++].bytes();
    }
    parts.push_back(tensors.subspan(begin, end - begin));
    left -= bytes;
    begin = end;
  }
  return parts;
}

}  // namespace

std::vector<std::string> PublishedArchitectures() {
  std::vector<std::string> names;
  for (const Published& published : kPublished)
    names.emplace_back(published.name);
  return names;
}

Result<Architecture> FindArchitecture(std::string_view name) {
  for (const Published& published : kPublished) {
    if (published.name == name) return ParseConfig(published.config_json);
  }
  return Status(Code::kNotFound, "no architecture '" + std::string(name) + "'");
}

Result<Architecture> ParseConfig(std::string_view config_json) {
  const Json config = Json::parse(config_json, nullptr, /*allow_exceptions=*/false);
  if (!config.is_object()) return Bad("not a JSON object");
  Architecture parsed;
  parsed.config_json = config_json;
  const auto type = config.find("model_type");
  if (type == config.end() || !type->is_string()) return Bad("model_type is missing");
  parsed.model_type = type->get<std::string>();
  ASSIGN_OR_RETURN(parsed.hidden_size, SizeField(config, "hidden_size"));
  ASSIGN_OR_RETURN(parsed.num_hidden_layers, SizeField(config, "num_hidden_layers"));
  ASSIGN_OR_RETURN(parsed.num_attention_heads, SizeField(config, "num_attention_heads"));
  ASSIGN_OR_RETURN(parsed.intermediate_size, SizeField(config, "intermediate_size"));
  ASSIGN_OR_RETURN(parsed.vocab_size, SizeField(config, "vocab_size"));
  parsed.num_key_value_heads = parsed.num_attention_heads;
  if (config.contains("num_key_value_heads")) {
    ASSIGN_OR_RETURN(parsed.num_key_value_heads, SizeField(config, "num_key_value_heads"));
  }
  parsed.head_dim = parsed.hidden_size / parsed.num_attention_heads;
  if (config.contains("head_dim")) {
    ASSIGN_OR_RETURN(parsed.head_dim, SizeField(config, "head_dim"));
  }
  const auto tied = config.find("tie_word_embeddings");
  parsed.tie_word_embeddings = tied != config.end() && tied->is_boolean() && tied->get<bool>();
  const auto dtype = config.find("torch_dtype");
  if (dtype != config.end() && dtype->is_string()) parsed.torch_dtype = dtype->get<std::string>();
  if (auto tensors = TensorsOf(parsed); !tensors) return std::move(tensors).error();
  return parsed;
}

uint64_t ModelTensor::bytes() const {
  uint64_t count = ElementBytes(dtype);
  for (const uint64_t n : shape)
    count *= n;
  return count;
}

Result<std::vector<ModelTensor>> TensorsOf(const Architecture& a) {
  const bool biases = a.model_type == "qwen2";
  const bool norms = a.model_type == "qwen3";
  if (!biases && !norms && a.model_type != "llama" && a.model_type != "mistral") {
    return Bad("model_type '" + a.model_type + "' is not one of llama, mistral, qwen2, qwen3");
  }
  const std::string dtype = a.torch_dtype == "bfloat16"  ? "BF16"
                            : a.torch_dtype == "float16" ? "F16"
                            : a.torch_dtype == "float32" ? "F32"
                                                         : "";
  if (dtype.empty()) {
    return Bad("torch_dtype '" + a.torch_dtype + "' is not bfloat16, float16 or float32");
  }
  std::vector<ModelTensor> tensors;
  const auto add = [&](std::string name, std::vector<uint64_t> shape) {
    tensors.push_back({.name = std::move(name), .dtype = dtype, .shape = std::move(shape)});
  };
  const uint64_t q = a.num_attention_heads * a.head_dim;
  const uint64_t kv = a.num_key_value_heads * a.head_dim;
  if (!a.tie_word_embeddings) add("lm_head.weight", {a.vocab_size, a.hidden_size});
  add("model.embed_tokens.weight", {a.vocab_size, a.hidden_size});
  for (uint64_t i = 0; i < a.num_hidden_layers; ++i) {
    const std::string layer = "model.layers." + std::to_string(i) + ".";
    add(layer + "input_layernorm.weight", {a.hidden_size});
    add(layer + "mlp.down_proj.weight", {a.hidden_size, a.intermediate_size});
    add(layer + "mlp.gate_proj.weight", {a.intermediate_size, a.hidden_size});
    add(layer + "mlp.up_proj.weight", {a.intermediate_size, a.hidden_size});
    add(layer + "post_attention_layernorm.weight", {a.hidden_size});
    const std::string attention = layer + "self_attn.";
    if (biases) add(attention + "k_proj.bias", {kv});
    if (norms) add(attention + "k_norm.weight", {a.head_dim});
    add(attention + "k_proj.weight", {kv, a.hidden_size});
    add(attention + "o_proj.weight", {a.hidden_size, q});
    if (biases) add(attention + "q_proj.bias", {q});
    if (norms) add(attention + "q_norm.weight", {a.head_dim});
    add(attention + "q_proj.weight", {q, a.hidden_size});
    if (biases) add(attention + "v_proj.bias", {kv});
    add(attention + "v_proj.weight", {kv, a.hidden_size});
  }
  add("model.norm.weight", {a.hidden_size});
  return tensors;
}

std::vector<ModelTensor> ManyTensors(uint64_t count) {
  constexpr uint64_t kALayer = 25;
  std::vector<ModelTensor> tensors;
  for (uint64_t i = 0; i < count; ++i) {
    tensors.push_back({.name = "model.layers." + std::to_string(i / kALayer) + ".part." +
                               std::to_string(i % kALayer) + ".weight",
                       .dtype = "BF16",
                       .shape = {64, 64}});
  }
  return tensors;
}

uint64_t TensorSeed(uint64_t seed, std::string_view name) {
  uint64_t hash = Mix(seed + 0x9e3779b97f4a7c15);
  for (const char c : name)
    hash = Mix(hash + static_cast<unsigned char>(c) + 1);
  return hash;
}

uint64_t WordAt(uint64_t tensor_seed, std::string_view dtype, uint64_t index) {
  return Word(tensor_seed, ShapeOf(dtype), index);
}

void FillTensor(uint64_t tensor_seed, std::string_view dtype, uint64_t offset,
                std::span<uint8_t> into) {
  const Shape shape = ShapeOf(dtype);
  uint64_t index = offset / 8;
  if (const size_t skip = offset % 8; skip != 0 && !into.empty()) {
    const uint64_t word = Word(tensor_seed, shape, index++);
    const size_t bytes = std::min(8 - skip, into.size());
    std::memcpy(into.data(), reinterpret_cast<const uint8_t*>(&word) + skip, bytes);
    into = into.subspan(bytes);
  }
  const size_t words = into.size() / 8;
  for (size_t i = 0; i < words; ++i) {
    const uint64_t word = Word(tensor_seed, shape, index + i);
    std::memcpy(into.data() + 8 * i, &word, 8);
  }
  if (const std::span<uint8_t> rest = into.subspan(8 * words); !rest.empty()) {
    const uint64_t word = Word(tensor_seed, shape, index + words);
    std::memcpy(rest.data(), &word, rest.size());
  }
}

Result<Written> WriteModel(const std::string& directory, const std::vector<ModelTensor>& tensors,
                           const WriteOptions& options) {
  if (tensors.empty()) return Bad("a model without tensors");
  if (options.shards == 0 || options.shards > tensors.size()) {
    return Bad("shards: must be 1 to " + std::to_string(tensors.size()) +
               ", the number of tensors");
  }
  std::error_code error;
  std::filesystem::create_directories(directory, error);
  if (error) return SystemError(directory, error.value());

  Written written;
  Json weight_map = Json::object();
  const auto parts = Split(tensors, options.shards);
  for (uint32_t shard = 0; shard < options.shards; ++shard) {
    const std::span<const ModelTensor> part = parts[shard];
    const std::string name = ShardName(shard, options.shards);
    const std::string path = directory + "/" + name;
    RETURN_IF_ERROR(Replace(path, [&](int fd) { return WriteShard(fd, part, options.seed); }));
    written.files.push_back(path);
    for (const ModelTensor& tensor : part) {
      weight_map[tensor.name] = name;
      written.tensor_bytes += tensor.bytes();
    }
  }
  if (options.shards > 1) {
    const Json index = {{"metadata", {{"total_size", written.tensor_bytes}}},
                        {"weight_map", std::move(weight_map)}};
    RETURN_IF_ERROR(Replace(directory + "/model.safetensors.index.json",
                            [&](int fd) { return WriteAll(fd, AsBytes(index.dump(2) + "\n")); }));
  }
  if (!options.config_json.empty()) {
    RETURN_IF_ERROR(Replace(directory + "/config.json",
                            [&](int fd) { return WriteAll(fd, AsBytes(options.config_json)); }));
  }
  return written;
}

}  // namespace terrace
