// Attaching weights, against the real daemon and a model written here.
#include <kvclient/admin.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <fstream>

#include "tests/libclient/client_fixture.h"

namespace terrace {
namespace {

constexpr int kLayers = 6;
constexpr size_t kTensorBytes = 1'500'000;  // Not a multiple of anything.

// Layers of one tensor each, and one outside of them; tensor i holds ContentOf(i).
class WeightsTest : public ClientTest {
 protected:
  void SetUp() override {
    ClientTest::SetUp();
    file_ = daemon().folder() + "/model.safetensors";
    std::vector<std::string> names;
    for (int layer = 0; layer < kLayers; ++layer) {
      names.push_back("model.layers." + std::to_string(layer) + ".w");
    }
    names.push_back("model.norm");
    std::string header = "{";
    std::string data;
    for (size_t i = 0; i < names.size(); ++i) {
      const size_t bytes = i < kLayers ? kTensorBytes : 64;
      header += (i == 0 ? "\"" : ",\"") + names[i] + R"(":{"dtype":"U8","shape":[2,)" +
                std::to_string(bytes / 2) + R"(],"data_offsets":[)" + std::to_string(data.size()) +
                "," + std::to_string(data.size() + bytes) + "]}";
      const auto content = ContentOf(i, bytes);
      data.append(reinterpret_cast<const char*>(content.data()), content.size());
    }
    header += "}";
    const uint64_t length = header.size();
    std::ofstream out(file_, std::ios::binary);
    out.write(reinterpret_cast<const char*>(&length), sizeof length);
    out << header << data;
    ASSERT_TRUE(out.good());
  }

  void AddModel(kvc::Client& client) {
    kvc_model_added added{};
    added.struct_size = sizeof added;
    kvc_error error{};
    ASSERT_EQ(kvc_model_add(client.get(), "m", "v1", file_.c_str(), 0, &added, &error), KVC_OK)
        << error.message;
    EXPECT_EQ(added.tensors, kLayers + 1u);
    EXPECT_EQ(added.files, 1u);
    EXPECT_GT(added.blocks, 3u);
  }
  static kvc_attach_options Load() {
    kvc_attach_options options{};
    options.load = 1;
    return options;
  }

  std::string file_;
};

TEST_F(WeightsTest, AttachedTensorsAreThoseOfTheFile) {
  kvc::Client client = Connect();
  AddModel(client);
  EXPECT_EQ(client.Attach("m").error().code(), KVC_NOT_FOUND) << "it is not in memory";
  EXPECT_EQ(client.Attach("other", Load()).error().code(), KVC_NOT_FOUND);
  const kvc::Weights weights = Take(client.Attach("m", Load()));
  const kvc_weights_info info = weights.info();
  EXPECT_STREQ(info.model, "m");
  EXPECT_STREQ(info.version, "v1");
  EXPECT_EQ(info.tensors, kLayers + 1u);
  EXPECT_EQ(info.layers, uint32_t{kLayers});
  EXPECT_EQ(info.mapped_bytes, info.bytes);
  EXPECT_EQ(weights.epoch(), 1u);
  for (int layer = 0; layer < kLayers; ++layer) {
    const std::string name = "model.layers." + std::to_string(layer) + ".w";
    const kvc::Tensor tensor = Take(weights.Find(name));
    EXPECT_EQ(tensor.name(), name);
    EXPECT_EQ(tensor.dtype(), "U8");
    ASSERT_EQ(tensor.shape().size(), 2u);
    EXPECT_EQ(tensor.shape()[1], kTensorBytes / 2);
    ASSERT_EQ(tensor.bytes().size(), kTensorBytes);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(tensor.bytes().data()) % 256, 0u);
    EXPECT_TRUE(Holds(tensor.bytes(), static_cast<uint64_t>(layer))) << name;
  }
  EXPECT_EQ(Take(weights.at(0)).name(), "model.layers.0.w");
  EXPECT_EQ(weights.at(kLayers + 1).error().code(), KVC_NOT_FOUND);
  EXPECT_EQ(weights.Find("model.layers.0").error().code(), KVC_NOT_FOUND);
}

TEST_F(WeightsTest, ChosenLayersMapTheirBlocksOnly) {
  kvc::Client client = Connect();
  AddModel(client);
  kvc_attach_options options = Load();
  options.first_layer = 2;
  options.layer_count = 2;
  const kvc::Weights weights = Take(client.Attach("m", options));
  const kvc_weights_info info = weights.info();
  EXPECT_LT(info.mapped_bytes, info.bytes);
  for (const int layer : {2, 3}) {
    const kvc::Tensor tensor = Take(weights.Find("model.layers." + std::to_string(layer) + ".w"));
    EXPECT_TRUE(Holds(tensor.bytes(), static_cast<uint64_t>(layer)));
  }
  EXPECT_TRUE(Take(weights.Find("model.layers.0.w")).bytes().empty()) << "not attached";
  options.first_layer = 100;
  EXPECT_EQ(client.Attach("m", options).error().code(), KVC_NOT_FOUND);
  options.with_rest = 1;
  const kvc::Weights rest = Take(client.Attach("m", options));
  EXPECT_TRUE(Holds(Take(rest.Find("model.norm")).bytes(), kLayers));
}

TEST_F(WeightsTest, WeightsStayReadableWhenTheDaemonIsKilledAndWhenItUnloads) {
  kvc::Client client = Connect();
  AddModel(client);
  const kvc::Weights weights = Take(client.Attach("m", Load()));
  kvc_unloaded unloaded{};
  unloaded.struct_size = sizeof unloaded;
  ASSERT_EQ(kvc_unload(client.get(), "m", nullptr, 0, &unloaded, nullptr), KVC_OK);
  EXPECT_GT(unloaded.held_bytes, 0u);
  daemon().Kill();
  ASSERT_TRUE(Await([&] { return client.epoch() == 0; }));
  EXPECT_TRUE(Holds(Take(weights.Find("model.layers.5.w")).bytes(), 5));
  ASSERT_TRUE(daemon().Launch().ok());
  ASSERT_TRUE(client.WaitConnected().ok());
  EXPECT_EQ(weights.epoch(), 1u);
  // The registration survived, and the new life has its own attachment.
  const kvc::Weights again = Take(client.Attach("m", Load()));
  EXPECT_EQ(again.epoch(), 2u);
  EXPECT_TRUE(Holds(Take(again.Find("model.layers.5.w")).bytes(), 5));
}

TEST_F(WeightsTest, LoadTellsItsProgressAndReportsAreJson) {
  kvc::Client client = Connect();
  AddModel(client);
  kvc_loaded loaded{};
  loaded.struct_size = sizeof loaded;
  const auto progress = [](void* context, uint64_t done, uint64_t total) {
    EXPECT_LE(done, total);
    ++*static_cast<int*>(context);
  };
  int calls = 0;  // A load as short as this one may be over before the first is due.
  ASSERT_EQ(kvc_load(client.get(), "m", nullptr, progress, &calls, 0, &loaded, nullptr), KVC_OK);
  EXPECT_STREQ(loaded.version, "v1");
  EXPECT_GT(loaded.bytes, kLayers * kTensorBytes);
  kvc_report_options options{};
  options.struct_size = sizeof options;
  for (const char* what : {"status", "models", "spaces", "clients", "pages"}) {
    options.what = what;
    char* json = nullptr;
    ASSERT_EQ(kvc_report(client.get(), &options, 0, &json, nullptr), KVC_OK) << what;
    EXPECT_TRUE(json[0] == '{' || json[0] == '[') << json;
    kvc_free(json);
  }
  options.what = "nothing";
  char* json = nullptr;
  EXPECT_EQ(kvc_report(client.get(), &options, 0, &json, nullptr), KVC_INVALID_ARGUMENT);
  EXPECT_EQ(kvc_model_remove(client.get(), "m", nullptr, 0, nullptr), KVC_OK);
  EXPECT_EQ(kvc_load(client.get(), "m", nullptr, nullptr, nullptr, 0, &loaded, nullptr),
            KVC_NOT_FOUND);
}

TEST_F(WeightsTest, SpaceOfAttachedWeightsIsBoundToTheirDigest) {
  kvc::Client client = Connect();
  AddModel(client);
  const kvc::Weights weights = Take(client.Attach("m", Load()));
  kvc_space_options options = SpaceOptions();
  const kvc::Space unbound = Take(client.OpenSpace(options));
  options.weights = weights.get();
  const kvc::Space bound = Take(client.OpenSpace(options));
  EXPECT_FALSE(SameKey(bound.info().id, unbound.info().id));
  const kvc_key digest = weights.info().digest;
  options.weights = nullptr;
  options.weights_digest = &digest;
  EXPECT_EQ(client.OpenSpace(options).error().code(), KVC_MISMATCH) << "fenced by another model";
  options.model = "m";
  const kvc::Space by_digest = Take(client.OpenSpace(options));
  EXPECT_TRUE(SameKey(bound.info().id, by_digest.info().id));
}

TEST_F(WeightsTest, MissingFilesAreNamed) {
  kvc::Client client = Connect();
  kvc_error error{};
  EXPECT_EQ(kvc_model_add(client.get(), "m", "v1", "/no/such/model", 0, nullptr, &error),
            KVC_NOT_FOUND);
  EXPECT_NE(std::string(error.message).find("/no/such/model"), std::string::npos);
}

TEST_F(WeightsTest, TheMinimalExampleFindsWhatItPublishedBefore) {
  kvc::Client client = Connect();
  AddModel(client);
  // Where the example looks for its daemon.
  const std::string folder = daemon().folder() + "/terrace";
  ASSERT_EQ(::mkdir(folder.c_str(), 0700), 0);
  ASSERT_EQ(::symlink(socket().c_str(), (folder + "/terraced.sock").c_str()), 0);
  const std::string command = "XDG_RUNTIME_DIR=" + daemon().folder() + " " MINIMAL_PATH " m 2>&1";
  const auto run = [&] {
    std::string output;
    FILE* pipe = ::popen(command.c_str(), "r");
    char line[256];
    while (pipe != nullptr && std::fgets(line, sizeof line, pipe) != nullptr)
      output += line;
    EXPECT_EQ(::pclose(pipe), 0);
    return output;
  };
  EXPECT_EQ(run(), "0 of 62 pages were there\n62 pages were published\n");
  EXPECT_EQ(run(), "62 of 62 pages were there\n");
}

}  // namespace
}  // namespace terrace
