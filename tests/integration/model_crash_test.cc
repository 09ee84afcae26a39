// The daemon is killed at any moment of an import and of loads, again and again: after each death
// no part of an image is left, an image that there is is whole, and every byte of every tensor that
// is served is that of the files. TERRACE_MODEL_KILLS says how often.
#include <kvclient/admin.h>

#include <chrono>
#include <cstdlib>
#include <filesystem>

#include "base/random.h"
#include "bench/model_writer.h"
#include "tests/integration/effort.h"
#include "tests/integration/store_steps.h"

namespace terrace {
namespace {

namespace fs = std::filesystem;
using std::chrono::microseconds;
using std::chrono::steady_clock;

constexpr uint64_t kSeed = 34;
constexpr const char* kName = "org/model";

class ModelCrashTest : public StoreTest {
 protected:
  void SetUp() override {
    StartStore(kOneDirectory, "64MiB");
    tensors_ = ManyTensors(1200);
    path_ = folder_.path() + "/model";
    ASSERT_TRUE(WriteModel(path_, tensors_, {.seed = kSeed, .shards = 2, .config_json = ""}));
  }

  Status Import(kvc_client* client) const {
    kvc_model_added added{};
    added.struct_size = sizeof added;
    kvc_error error{};
    RETURN_IF_ERROR(bench::ToStatus(
        kvc_model_import(client, kName, "1", path_.c_str(), 60'000, &added, &error), error));
    RETURN_UNLESS(added.imported == 1, added.why_not_imported);
    return {};
  }
  Status Check(kvc_client* client) const {
    ASSIGN_OR_RETURN(const bench::Weights weights, Attach(client, kName));
    return CheckTensors(weights.get(), tensors_, kSeed);
  }
  static Status Unload(kvc_client* client) {
    kvc_unloaded unloaded{};
    unloaded.struct_size = sizeof unloaded;
    kvc_error error{};
    return bench::ToStatus(kvc_unload(client, kName, nullptr, 0, &unloaded, &error), error);
  }
  static Status Remove(kvc_client* client) {
    kvc_error error{};
    return bench::ToStatus(kvc_model_remove(client, kName, nullptr, 0, &error), error);
  }
  microseconds TimeOf(const std::function<Status(kvc_client*)>& body) {
    const auto begin = steady_clock::now();
    Run(body);
    return std::chrono::duration_cast<microseconds>(steady_clock::now() - begin);
  }
  // A client does this, and the daemon dies within it, or after it.
  void KillWithin(const std::function<Status(kvc_client*)>& body, microseconds moment) {
    bench::Child client = StartClient("client", [&](kvc_client* connected, bench::Link& link) {
      RETURN_IF_ERROR(link.Send(bench::Go{}));
      const Status status = body(connected);
      const bool died = status.code() == Code::kUnavailable || status.code() == Code::kStale;
      return died ? Status() : status;
    });
    Hear<bench::Go>(client);
    const auto until = steady_clock::now() + moment;
    while (steady_clock::now() < until) {
    }
    daemon().Kill();
    ExpectDone(client);
    const Status launched = daemon().Launch();
    ASSERT_TRUE(launched.ok()) << launched.ToString();
  }
  // Nothing that was begun is left; says whether there is an image.
  bool HasImage() {
    size_t images = 0;
    if (!fs::exists(store_folder() + "/images")) return false;
    for (const fs::directory_entry& entry : fs::directory_iterator(store_folder() + "/images")) {
      EXPECT_EQ(entry.path().extension(), ".image") << entry.path();
      ++images;
    }
    EXPECT_LE(images, 1u);
    return images == 1;
  }
  // Null when the model is not known.
  Json TheVersion() {
    const Json models = Report("models")["models"];
    return models.empty() ? Json() : models[0]["versions"][0];
  }

  TemporaryFolder folder_;
  std::vector<ModelTensor> tensors_;
  std::string path_;
};

TEST_F(ModelCrashTest, NoPartOfAnImageIsEverUsed) {
  const char* const asked = std::getenv("TERRACE_MODEL_KILLS");
  const uint64_t kills = asked != nullptr ? std::strtoull(asked, nullptr, 10) : Effort(80, 4);
  const auto import = [this](kvc_client* client) { return Import(client); };
  const auto check = [this](kvc_client* client) { return Check(client); };
  const auto import_time = TimeOf(import);
  Run(Unload);
  const auto load_time = TimeOf(check);
  uint64_t imported = 0;
  uint64_t begun = 0;
  for (uint64_t round = 1; round <= kills; ++round) {
    SCOPED_TRACE("round " + std::to_string(round));
    Random random(round * 104'729);
    const auto within = [&random](microseconds time) {
      return microseconds(random.Below(static_cast<uint64_t>(time.count()) * 3 / 4));
    };
    if (!TheVersion().is_null()) Run(Remove);
    EXPECT_FALSE(HasImage());
    ASSERT_NO_FATAL_FAILURE(KillWithin(import, within(import_time)));
    const bool there = HasImage();
    const Json version = TheVersion();
    imported += there ? 1 : 0;
    begun += version.is_null() ? 0 : 1;
    EXPECT_EQ(there, !version.is_null() && version["imported"].get<bool>());
    Run([this](kvc_client* client) -> Status {
      RETURN_IF_ERROR(AddModel(client, kName, path_));
      // A death between the model's record and that of who may attach it leaves it closed.
      kvc_error error{};
      return bench::ToStatus(kvc_model_grant(client, kName, "default", 0, &error), error);
    });
    Run(check);
    EXPECT_EQ(TheVersion()["image_problem"], "");

    ASSERT_NO_FATAL_FAILURE(KillWithin(check, within(load_time)));
    Run(check);
    EXPECT_EQ(TheVersion()["image_problem"], "");
    ASSERT_FALSE(HasFailure()) << daemon().Log();
  }
  // The store that the images lie in takes them for nothing of its own.
  daemon().Kill();
  const CommandOutput fsck = RunTerraced({"--config", daemon().config_file(), "--fsck=repair"});
  EXPECT_EQ(fsck.exit_code, 0) << fsck.standard_output << fsck.standard_error;
  ASSERT_TRUE(daemon().Launch().ok());
  Run(check);
  std::printf("%llu deaths within imports: %llu models known after them, %llu images whole\n",
              static_cast<unsigned long long>(kills), static_cast<unsigned long long>(begun),
              static_cast<unsigned long long>(imported));
}

}  // namespace
}  // namespace terrace
