// The life of a model on the real daemon: added, loaded once whoever asks, held, evicted, reloaded.
#include <gmock/gmock.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <filesystem>
#include <fstream>

#include "base/digest.h"
#include "bench/model_writer.h"
#include "tests/integration/effort.h"
#include "tests/integration/integration_test.h"

namespace terrace {
namespace {

namespace fs = std::filesystem;

constexpr uint64_t kSeed = 33;
constexpr const char* kName = "org/model";

Result<kvc_loaded> Load(kvc_client* client) {
  kvc_loaded loaded{};
  loaded.struct_size = sizeof loaded;
  kvc_error error{};
  RETURN_IF_ERROR(bench::ToStatus(
      kvc_load(client, kName, nullptr, nullptr, nullptr, 0, &loaded, &error), error));
  return loaded;
}

Result<kvc_unloaded> Unload(kvc_client* client) {
  kvc_unloaded unloaded{};
  unloaded.struct_size = sizeof unloaded;
  kvc_error error{};
  RETURN_IF_ERROR(bench::ToStatus(kvc_unload(client, kName, nullptr, 0, &unloaded, &error), error));
  return unloaded;
}

Code OpenSpaceWith(kvc_client* client, const kvc_weights* weights) {
  return bench::OpenSpace(
             client, {.layout = bench::PlainLayout(4096, 16), .weights = weights, .salt = "early"})
      .status()
      .code();
}

class ModelsTest : public IntegrationTest {
 protected:
  // A hub cache as `huggingface_hub` lays it out: the files are symlinks into a folder of blobs.
  std::string WriteHubCache(const std::vector<ModelTensor>& tensors) {
    const fs::path plain = fs::path(folder_.path()) / "plain";
    const Result<Written> written =
        WriteModel(plain.string(), tensors, {.seed = kSeed, .shards = 4, .config_json = "{}"});
    EXPECT_TRUE(written);
    const fs::path model = fs::path(folder_.path()) / "models--org--model";
    const fs::path snapshot = model / "snapshots" / "0123456789abcdef";
    fs::create_directories(model / "blobs");
    fs::create_directories(model / "refs");
    fs::create_directories(snapshot);
    int number = 0;
    for (const fs::directory_entry& file : fs::directory_iterator(plain)) {
      const bool large = file.path().extension() == ".safetensors";
      std::string blob = std::string(39, 'a') + std::to_string(number++);  // A SHA-1 of git's.
      if (large) blob = Sha256().Update(Contents(file.path())).Finish().Hex();
      fs::rename(file.path(), model / "blobs" / blob);
      fs::create_symlink(fs::path("../../blobs") / blob, snapshot / file.path().filename());
    }
    std::ofstream(model / "refs" / "main") << "0123456789abcdef";
    return model.string();
  }
  static std::string Contents(const fs::path& path) {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  }
  // The one version of the one model.
  Json TheVersion() {
    const Json models = Report("models");
    if (models["models"].size() != 1 || models["models"][0]["versions"].size() != 1) {
      ADD_FAILURE() << models.dump();
      return {};
    }
    return models["models"][0]["versions"][0];
  }

  TemporaryFolder folder_;
};

TEST_F(ModelsTest, AShardedHubModelIsLoadedOnceForAllWhoAsk) {
  StartDaemon("128MiB");
  const std::vector<ModelTensor> tensors = ManyTensors(3000);
  const std::string path = WriteHubCache(tensors);
  ASSERT_TRUE(WriteModel(folder_.path() + "/other", ManyTensors(10),
                         {.seed = kSeed, .shards = 1, .config_json = ""}));
  bench::Child adder = StartClient("adder", [&](kvc_client* client, bench::Link&) -> Status {
    kvc_model_added added{};
    added.struct_size = sizeof added;
    RETURN_IF_ERROR(AddModel(client, kName, path, &added));
    RETURN_UNLESS(added.tensors == tensors.size(), "tensors");
    RETURN_UNLESS(added.files == 4, "files");
    RETURN_UNLESS(added.durable == 1, added.why_not);
    RETURN_IF_ERROR(AddModel(client, kName, path));  // The same again changes nothing.
    RETURN_UNLESS(AddModel(client, kName, folder_.path() + "/other").code() == Code::kAlreadyExists,
                  "the name is taken");
    return {};
  });
  ExpectDone(adder);
  EXPECT_EQ(TheVersion()["state"], "registered");

  // All ask at once, by either verb; each waits for the one load.
  std::vector<bench::Child> engines;
  for (int i = 0; i < 4; ++i) {
    engines.push_back(
        StartClient("engine", [&, i](kvc_client* client, bench::Link& link) -> Status {
          RETURN_IF_ERROR(link.Send(bench::Go{}));
          RETURN_IF_ERROR(link.Receive<bench::Go>().status());
          if (i % 2 == 0) RETURN_IF_ERROR(Load(client).status());
          ASSIGN_OR_RETURN(const bench::Weights weights, Attach(client, kName));
          RETURN_IF_ERROR(CheckTensors(weights.get(), tensors, kSeed));
          RETURN_IF_ERROR(link.Send(bench::Go{}));
          return link.Receive<bench::Go>().status();
        }));
  }
  for (bench::Child& engine : engines)
    Hear<bench::Go>(engine);
  for (bench::Child& engine : engines)
    Tell(engine);
  for (bench::Child& engine : engines)
    Hear<bench::Go>(engine);
  const Json version = TheVersion();
  EXPECT_EQ(version["state"], "resident");
  EXPECT_EQ(version["attachments"], 4);
  const Json status = Report("status");
  EXPECT_LE(status["host"]["block_bytes"].get<uint64_t>(),
            version["bytes"].get<uint64_t>() * 105 / 100)
      << "loaded once";
  EXPECT_EQ(status["blocks"]["evicted"], 0);
  EXPECT_EQ(status["traffic"]["frames_received"]["attach"], 4);
  EXPECT_EQ(status["traffic"]["frames_received"]["attach_blocks"], 4) << "two round trips each";
  for (bench::Child& engine : engines) {
    Tell(engine);
    ExpectDone(engine);
  }
}

TEST_F(ModelsTest, ABlobThatIsNotWhatItsNameSaysIsNotLoaded) {
  StartDaemon("64MiB");
  const std::string path = WriteHubCache(ManyTensors(1000));
  std::string blob;
  for (const auto& entry : fs::directory_iterator(path + "/blobs")) {
    if (entry.path().filename().string().size() == 64) blob = entry.path();
  }
  ASSERT_FALSE(blob.empty());
  {
    std::fstream file(blob, std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(-7, std::ios::end);
    file.put('\x5a');
  }
  const std::string found = Sha256().Update(Contents(blob)).Finish().Hex();
  bench::Child engine = StartClient("engine", [&](kvc_client* client, bench::Link&) -> Status {
    RETURN_IF_ERROR(AddModel(client, kName, path));
    const Status loaded = Load(client).status();
    RETURN_UNLESS(loaded.code() == Code::kDataLoss, loaded.ToString());
    RETURN_UNLESS(loaded.message().find(fs::path(blob).filename().string()) != std::string::npos,
                  loaded.message());
    RETURN_UNLESS(loaded.message().find(found) != std::string::npos, loaded.message());
    return {};
  });
  ExpectDone(engine);
  EXPECT_EQ(StatusNumber("/host/block_bytes"), 0u);
}

TEST_F(ModelsTest, TheFirstBlockIsUsedBeforeTheLoadIsDone) {
  StartDaemon("160MiB");
  const std::vector<ModelTensor> tensors = ManyTensors(12'000);  // 98 MB: some time to hash.
  const std::string path = WriteHubCache(tensors);
  bench::Child engine = StartClient("engine", [&](kvc_client* client, bench::Link&) -> Status {
    RETURN_IF_ERROR(AddModel(client, kName, path));
    kvc_attach_options options{};
    options.struct_size = sizeof options;
    options.early = 1;
    kvc_weights* handle = nullptr;
    kvc_error error{};
    RETURN_UNLESS(kvc_attach(client, kName, &options, 0, &handle, &error) == KVC_INVALID_ARGUMENT,
                  "early without load");
    options.load = 1;
    RETURN_IF_ERROR(
        bench::ToStatus(kvc_attach(client, kName, &options, 0, &handle, &error), error));
    const bench::Weights weights(handle);
    kvc_weights_info info{};
    info.struct_size = sizeof info;
    kvc_weights_get_info(handle, &info);
    RETURN_UNLESS(info.blocks > 8, "several blocks");
    const kvc_key none{};
    RETURN_UNLESS(std::memcmp(&info.digest, &none, sizeof none) == 0, "the load runs");
    RETURN_UNLESS(OpenSpaceWith(client, handle) == Code::kUnavailable, "the digest is not known");
    RETURN_UNLESS(kvc_model_wait(handle, info.blocks, 0, &error) == KVC_INVALID_ARGUMENT, "bound");
    RETURN_UNLESS(kvc_model_wait_tensor(handle, "other", 0, &error) == KVC_NOT_FOUND, "name");
    const std::vector<ModelTensor> first(tensors.begin(), tensors.begin() + 1);
    RETURN_IF_ERROR(
        bench::ToStatus(kvc_model_wait_tensor(handle, first[0].name.c_str(), 0, &error), error));
    RETURN_IF_ERROR(CheckTensors(handle, first, kSeed));
    kvc_weights_get_info(handle, &info);
    RETURN_UNLESS(std::memcmp(&info.digest, &none, sizeof none) == 0, "the load still runs");
    RETURN_IF_ERROR(bench::ToStatus(kvc_model_wait(handle, KVC_ALL_BLOCKS, 0, &error), error));
    RETURN_IF_ERROR(CheckTensors(handle, tensors, kSeed));
    kvc_weights_get_info(handle, &info);
    RETURN_UNLESS(info.mapped_bytes == info.bytes, "all is mapped");
    RETURN_UNLESS(OpenSpaceWith(client, handle) == Code::kOk, "the digest is known");
    return bench::ToStatus(kvc_model_wait(handle, 0, 0, &error), error);
  });
  ExpectDone(engine);
}

TEST_F(ModelsTest, WhoAttachedEarlyIsToldThatTheLoadFailed) {
  StartDaemon("64MiB");
  const std::string path = WriteHubCache(ManyTensors(1000));
  for (const auto& entry : fs::directory_iterator(path + "/blobs")) {
    if (entry.path().filename().string().size() != 64) continue;
    std::fstream file(entry.path(), std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(-7, std::ios::end);
    file.put('\x5a');
  }
  bench::Child engine = StartClient("engine", [&](kvc_client* client, bench::Link& link) -> Status {
    RETURN_IF_ERROR(AddModel(client, kName, path));
    kvc_attach_options options{};
    options.struct_size = sizeof options;
    options.early = 1;
    options.load = 1;
    kvc_weights* handle = nullptr;
    kvc_error error{};
    RETURN_IF_ERROR(
        bench::ToStatus(kvc_attach(client, kName, &options, 0, &handle, &error), error));
    bench::Weights weights(handle);
    const kvc_code failed = kvc_model_wait(handle, KVC_ALL_BLOCKS, 0, &error);
    RETURN_UNLESS(failed == KVC_DATA_LOSS, error.message);
    RETURN_UNLESS(kvc_model_wait(handle, KVC_ALL_BLOCKS, 0, &error) == KVC_DATA_LOSS, "and again");
    RETURN_UNLESS(kvc_model_wait(handle, 0, 0, &error) == KVC_DATA_LOSS, "what is mapped too");
    RETURN_UNLESS(OpenSpaceWith(client, handle) == Code::kUnavailable, "nothing is based on it");
    weights.reset();
    RETURN_IF_ERROR(link.Send(bench::Go{}));
    return link.Receive<bench::Go>().status();
  });
  Hear<bench::Go>(engine);
  EXPECT_TRUE(Await([&] { return StatusNumber("/host/block_bytes") == 0; }));
  Tell(engine);
  ExpectDone(engine);
}

TEST_F(ModelsTest, UnloadedBlocksAreHeldUntilTheLastEngineDetaches) {
  StartDaemon("64MiB");
  const std::vector<ModelTensor> tensors = ManyTensors(1000);
  const std::string path = WriteHubCache(tensors);
  bench::Child engine = StartClient("engine", [&](kvc_client* client, bench::Link& link) -> Status {
    RETURN_IF_ERROR(AddModel(client, kName, path));
    ASSIGN_OR_RETURN(bench::Weights weights, Attach(client, kName));
    ASSIGN_OR_RETURN(const kvc_unloaded held, Unload(client));
    RETURN_UNLESS(held.freed_bytes == 0 && held.held_bytes > 0, "all is held");
    RETURN_IF_ERROR(CheckTensors(weights.get(), tensors, kSeed));
    RETURN_UNLESS(Attach(client, kName, false).status().code() == Code::kNotFound,
                  "it is unloaded");
    RETURN_IF_ERROR(link.Send(held.held_bytes));
    RETURN_IF_ERROR(link.Receive<bench::Go>().status());
    weights.reset();
    RETURN_IF_ERROR(link.Send(bench::Go{}));
    // What nobody holds goes at once.
    RETURN_IF_ERROR(link.Receive<bench::Go>().status());
    RETURN_IF_ERROR(Load(client).status());
    ASSIGN_OR_RETURN(const kvc_unloaded freed, Unload(client));
    RETURN_UNLESS(freed.held_bytes == 0 && freed.freed_bytes >= held.held_bytes, "all is freed");
    return {};
  });
  const auto held_bytes = Hear<uint64_t>(engine);
  EXPECT_EQ(StatusNumber("/host/held_gone_bytes"), held_bytes);
  EXPECT_EQ(ClientOf(engine.pid())["attachments"], 1);
  EXPECT_GE(ClientOf(engine.pid())["attached_bytes"], held_bytes);
  Tell(engine);
  Hear<bench::Go>(engine);
  EXPECT_TRUE(Await([&] { return StatusNumber("/host/block_bytes") == 0; }));
  EXPECT_EQ(StatusNumber("/host/held_gone_bytes"), 0u);
  Tell(engine);
  ExpectDone(engine);
  EXPECT_EQ(StatusNumber("/host/block_bytes"), 0u);
}

TEST_F(ModelsTest, AKilledEngineHoldsItsBlocksNoLonger) {
  StartDaemon("64MiB");
  const std::vector<ModelTensor> tensors = ManyTensors(1000);
  const std::string path = WriteHubCache(tensors);
  bench::Child engine = StartClient("engine", [&](kvc_client* client, bench::Link& link) -> Status {
    RETURN_IF_ERROR(AddModel(client, kName, path));
    ASSIGN_OR_RETURN(const bench::Weights weights, Attach(client, kName));
    RETURN_IF_ERROR(Unload(client).status());
    RETURN_IF_ERROR(link.Send(bench::Go{}));
    return link.Receive<bench::Go>().status();
  });
  Hear<bench::Go>(engine);
  EXPECT_GT(StatusNumber("/host/held_gone_bytes"), 0u);
  engine.Kill();
  EXPECT_TRUE(Await([&] { return StatusNumber("/host/block_bytes") == 0; }));
}

TEST_F(ModelsTest, BlocksGiveWayToPagesAndComeBackOnDemand) {
  StartDaemon("32MiB");
  const std::vector<ModelTensor> tensors = ManyTensors(1500);  // 12 MB.
  const std::string path = WriteHubCache(tensors);
  constexpr uint64_t kPageBytes = 64u << 10;
  constexpr uint64_t kPages = (32u << 20) / kPageBytes;
  constexpr uint64_t kBatch = 32;
  bench::Child engine = StartClient("engine", [&](kvc_client* client, bench::Link& link) -> Status {
    RETURN_IF_ERROR(AddModel(client, kName, path));
    ASSIGN_OR_RETURN(bench::Weights weights, Attach(client, kName));
    ASSIGN_OR_RETURN(const bench::Space space, OpenPlainSpace(client, kPageBytes));
    uint64_t next = 0;
    const auto publish = [&]() -> Status {
      for (const uint64_t end = next + kPages; next < end; next += kBatch)
        RETURN_IF_ERROR(PutNewPages(client, space.get(), Keys(next, kBatch)));
      return {};
    };
    // Attached weights stay, whatever is published.
    RETURN_IF_ERROR(publish());
    RETURN_IF_ERROR(CheckTensors(weights.get(), tensors, kSeed));
    RETURN_IF_ERROR(link.Send(bench::Go{}));
    RETURN_IF_ERROR(link.Receive<bench::Go>().status());
    // Those that nobody holds give way.
    weights.reset();
    RETURN_IF_ERROR(publish());
    RETURN_IF_ERROR(publish());
    RETURN_IF_ERROR(link.Send(bench::Go{}));
    RETURN_IF_ERROR(link.Receive<bench::Go>().status());
    ASSIGN_OR_RETURN(weights, Attach(client, kName));
    return CheckTensors(weights.get(), tensors, kSeed);
  });
  Hear<bench::Go>(engine);
  EXPECT_EQ(StatusNumber("/blocks/evicted"), 0u);
  EXPECT_EQ(TheVersion()["state"], "resident");
  Tell(engine);
  Hear<bench::Go>(engine);
  EXPECT_GT(StatusNumber("/blocks/evicted"), 0u);
  EXPECT_NE(TheVersion()["state"], "resident");
  Tell(engine);
  ExpectDone(engine);
  EXPECT_LE(StatusNumber("/host/used_bytes"), StatusNumber("/host/capacity_bytes"));
}

TEST_F(ModelsTest, AFileThatChangedSinceItWasAddedIsNotLoaded) {
  StartDaemon();
  const std::string path = folder_.path() + "/plain";
  const std::vector<ModelTensor> tensors = ManyTensors(100);
  const Result<Written> written =
      WriteModel(path, tensors, {.seed = kSeed, .shards = 2, .config_json = ""});
  ASSERT_TRUE(written) << written.error().ToString();
  bench::Child engine = StartClient("engine", [&](kvc_client* client, bench::Link& link) -> Status {
    RETURN_IF_ERROR(AddModel(client, kName, path));
    RETURN_IF_ERROR(Load(client).status());
    RETURN_IF_ERROR(Unload(client).status());
    RETURN_IF_ERROR(link.Send(bench::Go{}));
    RETURN_IF_ERROR(link.Receive<bench::Go>().status());
    const Status changed = Load(client).status();
    RETURN_UNLESS(changed.code() == Code::kDataLoss, changed.ToString());
    const Status attached = Attach(client, kName).status();
    RETURN_UNLESS(attached.code() == Code::kDataLoss, attached.ToString());
    return {};
  });
  Hear<bench::Go>(engine);
  {
    std::fstream file(written->files[1], std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(-1, std::ios::end);
    file.put('\x5a');
  }
  Tell(engine);
  ExpectDone(engine);
  EXPECT_EQ(StatusNumber("/host/block_bytes"), 0u) << "nothing half-loaded stays";
}

// ---- Images

class ImportTest : public ModelsTest {
 protected:
  void SetUp() override {
    StartDaemon();
    tensors_ = ManyTensors(1000);
    path_ = folder_.path() + "/plain";
    ASSERT_TRUE(WriteModel(path_, tensors_, {.seed = kSeed, .shards = 2, .config_json = ""}));
    Run([&](kvc_client* client) -> Status {
      kvc_model_added added{};
      added.struct_size = sizeof added;
      kvc_error error{};
      RETURN_IF_ERROR(bench::ToStatus(
          kvc_model_import(client, kName, "1", path_.c_str(), 0, &added, &error), error));
      RETURN_UNLESS(added.imported == 1, added.why_not_imported);
      return {};
    });
    digest_ = TheVersion()["digest"];
  }
  void Run(const std::function<Status(kvc_client*)>& body) {
    bench::Child child = StartClient(
        "client", [&](kvc_client* client, bench::Link&) -> Status { return body(client); });
    ExpectDone(child);
  }
  // Every byte, as a client maps it.
  void ExpectLoads() {
    Run([&](kvc_client* client) -> Status {
      ASSIGN_OR_RETURN(const bench::Weights weights, Attach(client, kName));
      return CheckTensors(weights.get(), tensors_, kSeed);
    });
    EXPECT_EQ(TheVersion()["digest"], digest_);
  }
  std::vector<fs::path> Images() {
    std::vector<fs::path> images;
    for (const auto& entry : fs::directory_iterator(daemon().state_dir() + "/images"))
      images.push_back(entry.path());
    return images;
  }

  std::vector<ModelTensor> tensors_;
  std::string path_;
  std::string digest_;
};

TEST_F(ImportTest, ARestartedDaemonLoadsTheImage) {
  daemon().Kill();
  ASSERT_TRUE(daemon().Launch().ok());
  ExpectLoads();
  const Json loaded = TheVersion()["loaded"];
  EXPECT_GT(loaded["image_bytes"], 0);
  EXPECT_EQ(loaded["direct_bytes"], 0);
  EXPECT_EQ(loaded["checked_by"], "crc32c");
  EXPECT_EQ(TheVersion()["image_problem"], "");
}

TEST_F(ImportTest, ADamagedImageIsDoneWithoutAndTold) {
  daemon().Kill();
  ASSERT_EQ(Images().size(), 1u);
  {
    std::fstream file(Images()[0], std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(-5000, std::ios::end);
    file.put('\x5a');
  }
  ASSERT_TRUE(daemon().Launch().ok());
  ExpectLoads();
  EXPECT_THAT(TheVersion()["image_problem"].get<std::string>(),
              testing::HasSubstr("holds other bytes"));
}

TEST_F(ImportTest, TheImageGoesWithTheModel) {
  ASSERT_EQ(Images().size(), 1u);
  Run([&](kvc_client* client) -> Status {
    kvc_error error{};
    return bench::ToStatus(kvc_model_remove(client, kName, nullptr, 0, &error), error);
  });
  EXPECT_EQ(Images().size(), 0u);
}

}  // namespace
}  // namespace terrace
