// What the writer writes is what the reader reads, and what anybody can compute.
#include "bench/model_writer.h"

#include <gmock/gmock.h>

#include <cmath>

#include "libclient/model_files/model_files.h"
#include "tests/source/files.h"

namespace terrace {
namespace {

using testing::HasSubstr;

std::vector<ModelTensor> TinyTensors() {
  return *TensorsOf(*FindArchitecture("tiny"));
}

TEST(ModelWriter, Llama32OneBHasThePublishedTensors) {
  const auto tensors = TensorsOf(*FindArchitecture("llama-3.2-1b"));
  ASSERT_TRUE(tensors.has_value());
  uint64_t bytes = 0;
  for (const ModelTensor& tensor : *tensors) {
    EXPECT_EQ(tensor.dtype, "BF16");
    bytes += tensor.bytes();
  }
  EXPECT_EQ(tensors->size(), 146u);
  EXPECT_EQ(bytes, 2u * 1'235'814'400);
  const auto shape = [&](const std::string& name) {
    for (const ModelTensor& tensor : *tensors) {
      if (tensor.name == name) return tensor.shape;
    }
    return std::vector<uint64_t>{};
  };
  EXPECT_EQ(shape("model.embed_tokens.weight"), (std::vector<uint64_t>{128256, 2048}));
  EXPECT_EQ(shape("model.layers.15.self_attn.k_proj.weight"), (std::vector<uint64_t>{512, 2048}));
  EXPECT_EQ(shape("model.layers.0.mlp.down_proj.weight"), (std::vector<uint64_t>{2048, 8192}));
  EXPECT_EQ(shape("model.norm.weight"), (std::vector<uint64_t>{2048}));
}

TEST(ModelWriter, ConfigDecidesTheTensors) {
  const std::string common =
      R"("hidden_size":64,"num_hidden_layers":2,"num_attention_heads":4,"intermediate_size":96,"vocab_size":100)";
  const auto count = [&](const std::string& more) {
    const auto parsed = ParseConfig("{" + common + "," + more + "}");
    EXPECT_TRUE(parsed.has_value()) << parsed.error().ToString();
    return TensorsOf(*parsed)->size();
  };
  EXPECT_EQ(count(R"("model_type":"llama")"), 2 * 9 + 3u);
  EXPECT_EQ(count(R"("model_type":"llama","tie_word_embeddings":true)"), 2 * 9 + 2u);
  EXPECT_EQ(count(R"("model_type":"qwen2")"), 2 * 12 + 3u);
  EXPECT_EQ(count(R"("model_type":"qwen3","head_dim":32)"), 2 * 11 + 3u);
}

TEST(ModelWriter, ConfigsThatItCannotFollowAreRefused) {
  const auto refused = [](const std::string& config, const std::string& says) {
    const auto parsed = ParseConfig(config);
    ASSERT_FALSE(parsed.has_value()) << config;
    EXPECT_THAT(parsed.error().message(), HasSubstr(says));
  };
  refused("[]", "not a JSON object");
  refused("{}", "model_type is missing");
  refused(R"({"model_type":"llama"})", "hidden_size is missing");
  refused(R"({"model_type":"llama","hidden_size":0})", "hidden_size must be");
  refused(R"({"model_type":"llama","hidden_size":-4})", "hidden_size must be");
  const std::string sizes =
      R"("hidden_size":8,"num_hidden_layers":1,"num_attention_heads":1,"intermediate_size":8,"vocab_size":8)";
  refused(R"({"model_type":"mamba",)" + sizes + "}", "model_type 'mamba'");
  refused(R"({"model_type":"llama","torch_dtype":"int4",)" + sizes + "}", "torch_dtype 'int4'");
}

TEST(ModelWriter, EveryByteOfEveryTensorCanBeComputed) {
  for (const uint32_t shards : {1u, 3u}) {
    const TemporaryDirectory directory;
    const std::vector<ModelTensor> tensors = TinyTensors();
    const auto written =
        WriteModel(directory.path(), tensors, {.seed = 7, .shards = shards, .config_json = "{}"});
    ASSERT_TRUE(written.has_value()) << written.error().ToString();
    EXPECT_EQ(written->files.size(), shards);
    const auto files = FindModelFiles(directory.path());
    ASSERT_TRUE(files.has_value()) << files.error().ToString();
    SourceOpener opener;
    const auto source = opener.OpenPaths(files->paths, files->index);
    ASSERT_TRUE(source.has_value()) << source.error().ToString();
    ASSERT_EQ((*source)->tensors().size(), tensors.size());
    for (uint32_t i = 0; i < tensors.size(); ++i) {
      const TensorSpec& spec = (*source)->tensors()[i];
      EXPECT_EQ(spec.name, tensors[i].name);
      EXPECT_EQ(spec.shape, tensors[i].shape);
      std::vector<uint8_t> bytes(spec.bytes);
      ASSERT_TRUE(opener.Read(**source, {{.tensor = i, .offset = 0, .into = bytes}}).ok());
      const uint64_t seed = TensorSeed(7, spec.name);
      for (uint64_t word = 0; word < bytes.size() / 8; ++word) {
        uint64_t found;
        std::memcpy(&found, bytes.data() + 8 * word, 8);
        ASSERT_EQ(found, WordAt(seed, spec.dtype, word)) << spec.name << " word " << word;
      }
    }
  }
}

TEST(ModelWriter, AnyRangeEqualsThatOfTheWhole) {
  const uint64_t seed = TensorSeed(3, "t");
  std::vector<uint8_t> whole(1000);
  FillTensor(seed, "BF16", 0, whole);
  for (size_t begin = 0; begin < 20; ++begin) {
    for (const size_t bytes : {0, 1, 3, 7, 8, 9, 64, 100}) {
      std::vector<uint8_t> range(bytes);
      FillTensor(seed, "BF16", begin, range);
      ASSERT_TRUE(std::equal(range.begin(), range.end(), whole.begin() + begin))
          << begin << " " << bytes;
    }
  }
}

TEST(ModelWriter, SeedsAndNamesGiveOtherValues) {
  const uint64_t word = WordAt(TensorSeed(1, "a"), "BF16", 0);
  EXPECT_EQ(word, WordAt(TensorSeed(1, "a"), "BF16", 0));
  EXPECT_NE(word, WordAt(TensorSeed(2, "a"), "BF16", 0));
  EXPECT_NE(word, WordAt(TensorSeed(1, "b"), "BF16", 0));
  EXPECT_NE(word, WordAt(TensorSeed(1, "a"), "BF16", 1));
}

TEST(ModelWriter, ValuesHaveTheSizeOfTrainedWeights) {
  const uint64_t seed = TensorSeed(1, "w");
  uint64_t negative = 0;
  for (uint64_t i = 0; i < 4000; ++i) {
    const uint64_t word = WordAt(seed, "BF16", i);
    for (int lane = 0; lane < 4; ++lane) {
      const auto bits = static_cast<uint32_t>(word >> (16 * lane) & 0xffff) << 16;
      float value;
      std::memcpy(&value, &bits, sizeof value);
      ASSERT_GE(std::abs(value), 0x1p-10f);
      ASSERT_LT(std::abs(value), 0x1p-2f);
      negative += value < 0 ? 1 : 0;
    }
  }
  EXPECT_NEAR(static_cast<double>(negative), 8000, 400);
}

TEST(ModelWriter, ManyTensorsAreAsManyAsAsked) {
  const std::vector<ModelTensor> tensors = ManyTensors(4000);
  ASSERT_EQ(tensors.size(), 4000u);
  EXPECT_EQ(tensors.back().name, "model.layers.159.part.24.weight");
  EXPECT_EQ(tensors.back().bytes(), 8192u);
}

TEST(ModelWriter, ImpossibleShardsAreRefused) {
  const TemporaryDirectory directory;
  EXPECT_FALSE(
      WriteModel(directory.path(), ManyTensors(3), {.seed = 1, .shards = 0, .config_json = ""})
          .has_value());
  EXPECT_FALSE(
      WriteModel(directory.path(), ManyTensors(3), {.seed = 1, .shards = 4, .config_json = ""})
          .has_value());
  EXPECT_FALSE(WriteModel(directory.path(), {}, {}).has_value());
  EXPECT_TRUE(
      WriteModel(directory.path(), ManyTensors(3), {.seed = 1, .shards = 3, .config_json = ""})
          .has_value());
  EXPECT_FALSE(WriteModel("/dev/null/x", ManyTensors(3), {}).has_value());
}

}  // namespace
}  // namespace terrace
