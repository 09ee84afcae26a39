// Real files, read by the real source into simulated host memory.
#include <fcntl.h>
#include <unistd.h>

#include "bench/model_writer.h"
#include "tests/source/files.h"
#include "tests/weights/weights_world.h"

namespace terrace {
namespace {

using testing::HasSubstr;

// A daemon's worth of parts around one directory of files.
class FileWorld {
 public:
  explicit FileWorld(uint64_t block_bytes)
      : sources_(MakeWeightFiles(opener_.pool(), opener_.executor(), opener_.reader())),
        weights_({.block_bytes = block_bytes},
                 {.clock = &clock_,
                  .host = &host_,
                  .sources = sources_.get(),
                  .journal = &journal_,
                  .memory = &memory_,
                  .tenant_of = [](ClientId) { return TenantId{1}; }}) {
    memory_.SetWeights(&weights_);
  }

  void Add(const std::vector<std::string>& paths, const std::string& index = "") {
    std::optional<Result<ModelAdded>> added;
    ModelSpec spec{.name = "m", .version = "1", .source = {}};
    spec.source.paths = paths;
    spec.source.index = index;
    weights_.AddModel(std::move(spec), [&](Result<ModelAdded> r) { added = std::move(r); });
    RunUntil([&] { return added.has_value(); });
    ASSERT_TRUE(added->has_value()) << added->error().ToString();
    EXPECT_TRUE((*added)->durable) << (*added)->why_not;
  }
  Result<ModelLoaded> Load() {
    std::optional<Result<ModelLoaded>> loaded;
    weights_.Load(1, "m", "", {}, [&](Result<ModelLoaded> r) { loaded = std::move(r); });
    RunUntil([&] { return loaded.has_value(); });
    return *loaded;
  }
  BudgetMemory& memory() { return memory_; }

 private:
  void RunUntil(const std::function<bool()>& reached) {
    ASSERT_TRUE(opener_.executor().RunUntil([&] {
      weights_.Turn();
      journal_.RunPending();
      return reached();
    }));
  }

  SourceOpener opener_;
  std::unique_ptr<WeightSources> sources_;
  ManualClock clock_;
  SimHostTier host_;
  SimJournal journal_;
  BudgetMemory memory_{host_, uint64_t{64} << 20};
  Weights weights_;
};

TEST(Sharding, DigestDependsOnTheTensorsAlone) {
  const std::vector<ModelTensor> tensors = *TensorsOf(*FindArchitecture("tiny"));
  std::optional<Digest> digest;
  for (const uint32_t shards : {1u, 2u, 7u}) {
    const TemporaryDirectory directory;
    const auto written =
        WriteModel(directory.path(), tensors, {.seed = 5, .shards = shards, .config_json = ""});
    ASSERT_TRUE(written.has_value());
    for (const uint64_t block_bytes : {uint64_t{65536}, uint64_t{1} << 20, uint64_t{64} << 20}) {
      FileWorld world(block_bytes);
      world.Add(written->files);
      const auto loaded = world.Load();
      ASSERT_TRUE(loaded.has_value()) << loaded.error().ToString();
      if (!digest) digest = loaded->digest;
      EXPECT_EQ(loaded->digest, *digest) << shards << " shards, blocks of " << block_bytes;
    }
  }
  // One other bit is another digest.
  const TemporaryDirectory directory;
  const auto written =
      WriteModel(directory.path(), tensors, {.seed = 5, .shards = 1, .config_json = ""});
  ASSERT_TRUE(written.has_value());
  const UniqueFd file(open(written->files[0].c_str(), O_RDWR | O_CLOEXEC));
  const off_t last = lseek(file.get(), -1, SEEK_END);
  char byte = 0;
  ASSERT_EQ(pread(file.get(), &byte, 1, last), 1);
  byte = static_cast<char>(byte ^ 1);
  ASSERT_EQ(pwrite(file.get(), &byte, 1, last), 1);
  FileWorld world(65536);
  world.Add(written->files);
  const auto loaded = world.Load();
  ASSERT_TRUE(loaded.has_value());
  EXPECT_NE(loaded->digest, *digest);
}

TEST(Sharding, FileChangedInPlaceIsFoundWhenEvictedBlocksAreReadAgain) {
  const TemporaryDirectory directory;
  const auto written =
      WriteModel(directory.path(), ManyTensors(100), {.seed = 1, .shards = 1, .config_json = ""});
  ASSERT_TRUE(written.has_value());
  FileWorld world(65536);
  world.Add(written->files);
  ASSERT_TRUE(world.Load().has_value());
  ASSERT_TRUE(world.memory().EvictOne());  // The first block: it has the first tensor.
  const uint64_t used = world.memory().used();

  // The same length, one byte of the first tensor changed.
  const UniqueFd file(open(written->files[0].c_str(), O_RDWR | O_CLOEXEC));
  uint64_t header = 0;
  ASSERT_EQ(pread(file.get(), &header, 8, 0), 8);
  ASSERT_EQ(pwrite(file.get(), "!", 1, static_cast<off_t>(8 + header)), 1);
  const auto loaded = world.Load();
  EXPECT_EQ(loaded.status().code(), Code::kDataLoss);
  EXPECT_THAT(loaded.status().message(),
              HasSubstr("other bytes than when the model was first loaded: tensor "
                        "'model.layers.0.part.0.weight'"));
  EXPECT_EQ(world.memory().used(), used);
}

}  // namespace
}  // namespace terrace
