// A real daemon with a device that is memory of the host, and daemons whose devices cannot be.
#include <gmock/gmock.h>
#include <kvclient/device.h>
#include <signal.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <optional>
#include <string>

#include "bench/model_writer.h"
#include "tests/integration/integration_test.h"

namespace terrace {
namespace {

using testing::HasSubstr;

constexpr const char* kOneDevice =
    "[devices]\ndevice = \"host\"\n[[device]]\nuuid = \"host:0\"\ncapacity = \"64MiB\"\n"
    "slab = \"2MiB\"\n";

class DevicesTest : public IntegrationTest {
 protected:
  void StartWith(const std::string& devices) {
    DaemonProcessOptions options;
    options.store = devices;
    StartDaemon(options);
  }
  bool AwaitState(const std::string& state) {
    return Await([&] { return Device()["state"] == state; });
  }
  Json Device() {
    const Json devices = Report("status")["devices"];
    return devices.is_array() && !devices.empty() ? devices[0] : Json();
  }
};

using OpenedDevice = std::unique_ptr<kvc_device, bench::Closer<kvc_device_close>>;

Result<OpenedDevice> OpenDevice(kvc_client* client) {
  kvc_device* device = nullptr;
  kvc_error error{};
  RETURN_IF_ERROR(bench::ToStatus(kvc_device_open(client, nullptr, 0, &device, &error), error));
  return OpenedDevice(device);
}

Result<bench::Weights> AttachOn(kvc_client* client, kvc_device* device, const char* model) {
  kvc_attach_options options{};
  options.struct_size = sizeof options;
  options.load = 1;
  options.device = device;
  kvc_weights* weights = nullptr;
  kvc_error error{};
  RETURN_IF_ERROR(
      bench::ToStatus(kvc_attach(client, model, &options, 60'000, &weights, &error), error));
  return bench::Weights(weights);
}

const void* BaseOf(const kvc_weights* weights) {
  kvc_weights_info info{};
  info.struct_size = sizeof info;
  return kvc_weights_get_info(weights, &info) == KVC_OK ? info.base : nullptr;
}

// Publishes the keys' pages out of the device's memory.
Status PutOn(kvc_client* client, kvc_device* device, const kvc_space* space,
             const std::vector<kvc_key>& keys) {
  kvc_grant_options options{};
  options.struct_size = sizeof options;
  options.device = device;
  kvc_grants* granted = nullptr;
  kvc_error error{};
  RETURN_IF_ERROR(bench::ToStatus(
      kvc_grant(client, space, keys.data(), keys.size(), &options, 0, &granted, &error), error));
  const bench::Grants grants(granted);
  for (size_t i = 0; i < keys.size(); ++i) {
    auto* data = static_cast<uint8_t*>(kvc_grants_data(grants.get(), i));
    RETURN_UNLESS(data != nullptr, "page " + std::to_string(i));
    bench::FillContent(keys[i], {data, bench::PageBytes(space)});
  }
  return bench::ToStatus(kvc_commit(grants.get(), nullptr, 0, &error), error);
}

// Every page is found, with its bytes, and in the memory of the device if so wanted.
Status FindAll(kvc_reader* reader, const kvc_space* space, const std::vector<kvc_key>& keys,
               bool on_device) {
  ASSIGN_OR_RETURN(const bench::Pages pages, PinAll(reader, space, keys));
  RETURN_IF_ERROR(CheckPages(pages.get(), keys));
  for (size_t i = 0; i < keys.size(); ++i) {
    kvc_page page{};
    RETURN_UNLESS(kvc_pages_get(pages.get(), i, &page) == KVC_OK, "a place");
    RETURN_UNLESS((page.device != 0) == on_device, "the place of page " + std::to_string(i));
  }
  return {};
}

std::string WhyNotStarted(const std::string& devices) {
  const auto daemon = DaemonProcess::Start({.store = devices});
  EXPECT_FALSE(daemon) << devices;
  return daemon ? "" : daemon.error().message();
}

TEST_F(DevicesTest, AHostDeviceServesAndIsReported) {
  StartWith(kOneDevice);
  ASSERT_TRUE(AwaitState("serving")) << Device();
  const Json device = Device();
  EXPECT_EQ(device["device"], 1);
  EXPECT_THAT(std::string(device["uuid"]), HasSubstr("GPU-"));
  EXPECT_EQ(device["kind"], "host");
  EXPECT_EQ(device["driver"], "host memory");
  EXPECT_EQ(device["mode"], "slabs");
  EXPECT_EQ(device["capacity_bytes"], 64u << 20);
  EXPECT_EQ(device["mover"]["starts"], 1);
  EXPECT_EQ(device["mover"]["crashes"], 0);
  EXPECT_EQ(Report("status")["devices_by"]["kind"], "host");
  EXPECT_EQ(Report("tiers")["devices"][0]["uuid"], device["uuid"]);
}

TEST_F(DevicesTest, AMoverThatIsKilledIsStartedAgain) {
  StartWith(kOneDevice);
  ASSERT_TRUE(AwaitState("serving"));
  const pid_t first = Device()["mover"]["pid"];
  ASSERT_GT(first, 0);
  ASSERT_EQ(::kill(first, SIGKILL), 0);
  ASSERT_TRUE(Await([&] {
    const Json mover = Device()["mover"];
    return mover["crashes"] == 1 && mover["pid"] > 0 && mover["pid"] != first;
  }));
  ASSERT_TRUE(AwaitState("serving"));
  EXPECT_EQ(Device()["mover"]["starts"], 2);
  EXPECT_THAT(std::string(Device()["why"]), HasSubstr("signal 9"));
}

TEST_F(DevicesTest, EnginesShareWeightsThereThroughTheMoversDeathAndUntilTheyAreAskedBack) {
  StartWith(kOneDevice);
  ASSERT_TRUE(AwaitState("serving"));
  const TemporaryFolder folder;
  const std::vector<ModelTensor> tensors = ManyTensors(1000);
  const uint64_t seed = 5;
  ASSERT_TRUE(WriteModel(folder.path(), tensors, {.seed = seed, .shards = 1, .config_json = ""}));
  bench::Child adder = StartClient("adder", [&](kvc_client* client, bench::Link&) {
    return terrace::AddModel(client, "m", folder.path());
  });
  ExpectDone(adder);

  const auto engine = [&](kvc_client* client, bench::Link& link) -> Status {
    ASSIGN_OR_RETURN(const OpenedDevice device, OpenDevice(client));
    ASSIGN_OR_RETURN(const bench::Weights weights, AttachOn(client, device.get(), "m"));
    RETURN_IF_ERROR(CheckTensors(weights.get(), tensors, seed));
    RETURN_IF_ERROR(link.Send(bench::Go{}));
    RETURN_IF_ERROR(link.Receive<bench::Go>().status());
    RETURN_IF_ERROR(CheckTensors(weights.get(), tensors, seed));
    RETURN_IF_ERROR(link.Send(bench::Go{}));
    kvc_unmap_request request{};
    request.struct_size = sizeof request;
    kvc_error error{};
    RETURN_IF_ERROR(
        bench::ToStatus(kvc_device_next_request(device.get(), 60'000, &request, &error), error));
    RETURN_UNLESS(request.weights == weights.get() && request.lost == 0, "the request");
    const void* base = BaseOf(weights.get());
    RETURN_IF_ERROR(bench::ToStatus(kvc_weights_unmap(weights.get(), 0, &error), error));
    RETURN_IF_ERROR(link.Send(bench::Go{}));
    RETURN_IF_ERROR(link.Receive<bench::Go>().status());
    RETURN_IF_ERROR(bench::ToStatus(kvc_weights_remap(weights.get(), 60'000, &error), error));
    RETURN_UNLESS(BaseOf(weights.get()) == base, "the address");
    return CheckTensors(weights.get(), tensors, seed);
  };
  std::vector<bench::Child> engines;
  for (const char* name : {"engine-0", "engine-1"})
    engines.push_back(StartClient(name, engine));
  for (bench::Child& child : engines)
    Hear<bench::Go>(child);
  const uint64_t weights = Device()["bytes"]["weights"];
  EXPECT_GE(weights, 1000u * 64 * 64 * 2);
  EXPECT_LT(weights, 2 * 1000u * 64 * 64 * 2) << "one copy for both";

  ASSERT_EQ(::kill(Device()["mover"]["pid"], SIGKILL), 0);
  ASSERT_TRUE(Await([&] { return Device()["mover"]["crashes"] == 1; }));
  for (bench::Child& child : engines)
    Tell(child);
  for (bench::Child& child : engines)
    Hear<bench::Go>(child);
  ASSERT_TRUE(AwaitState("serving"));

  bench::Child admin = StartClient("admin", [&](kvc_client* client, bench::Link&) -> Status {
    kvc_unloaded unloaded{};
    unloaded.struct_size = sizeof unloaded;
    kvc_device_choice choice{};
    choice.struct_size = sizeof choice;
    kvc_error error{};
    RETURN_IF_ERROR(bench::ToStatus(
        kvc_unload_from_device(client, "m", nullptr, &choice, 0, &unloaded, &error), error));
    RETURN_UNLESS(unloaded.freed_bytes == 0 && unloaded.held_bytes > 0, "what is held");
    return {};
  });
  ExpectDone(admin);
  for (bench::Child& child : engines)
    Hear<bench::Go>(child);
  EXPECT_TRUE(Await([&] {
    const Json bytes = Device()["bytes"];
    return bytes["weights"] == 0 && bytes["leaving"] == 0 && bytes["zombies"] == 0;
  })) << Device();
  for (bench::Child& child : engines)
    Tell(child);
  for (bench::Child& child : engines)
    ExpectDone(child);
}

TEST_F(DevicesTest, AnEngineThatDiesUnaskedGivesItsWeightsBack) {
  StartWith(kOneDevice);
  ASSERT_TRUE(AwaitState("serving"));
  const TemporaryFolder folder;
  ASSERT_TRUE(
      WriteModel(folder.path(), ManyTensors(100), {.seed = 5, .shards = 1, .config_json = ""}));
  bench::Child engine = StartClient("engine", [&](kvc_client* client, bench::Link& link) -> Status {
    RETURN_IF_ERROR(terrace::AddModel(client, "m", folder.path()));
    ASSIGN_OR_RETURN(const auto device, OpenDevice(client));
    ASSIGN_OR_RETURN(const bench::Weights weights, AttachOn(client, device.get(), "m"));
    kvc_unloaded unloaded{};
    unloaded.struct_size = sizeof unloaded;
    kvc_device_choice choice{};
    choice.struct_size = sizeof choice;
    kvc_error error{};
    RETURN_IF_ERROR(bench::ToStatus(
        kvc_unload_from_device(client, "m", nullptr, &choice, 0, &unloaded, &error), error));
    RETURN_IF_ERROR(link.Send(bench::Go{}));
    return link.Receive<bench::Go>().status();  // It never answers what it was asked.
  });
  Hear<bench::Go>(engine);
  EXPECT_GT(Device()["bytes"]["leaving"], 0) << Device();
  ASSERT_EQ(::kill(engine.pid(), SIGKILL), 0);
  EXPECT_TRUE(Await([&] { return Device()["bytes"]["leaving"] == 0; })) << Device();
  EXPECT_EQ(Device()["bytes"]["zombies"], 0);
  (void)engine.Wait();
}

TEST_F(DevicesTest, PagesArePublishedThereAndFoundByOthersAndComeFromHostMemory) {
  StartWith(kOneDevice);
  ASSERT_TRUE(AwaitState("serving"));
  constexpr uint64_t kBytes = 64u << 10;
  const std::vector<kvc_key> there = Keys(0, 8);
  const std::vector<kvc_key> above = Keys(100, 8);
  bench::Child writer = StartClient("writer", [&](kvc_client* client, bench::Link&) -> Status {
    ASSIGN_OR_RETURN(const auto device, OpenDevice(client));
    ASSIGN_OR_RETURN(const bench::Space space, OpenPlainSpace(client, kBytes));
    RETURN_IF_ERROR(PutOn(client, device.get(), space.get(), there));
    return PutNewPages(client, space.get(), above);
  });
  ExpectDone(writer);
  EXPECT_EQ(Device()["pages"], there.size()) << Device();
  bench::Child reader = StartClient("reader", [&](kvc_client* client, bench::Link&) -> Status {
    ASSIGN_OR_RETURN(const auto device, OpenDevice(client));
    ASSIGN_OR_RETURN(const bench::Space space, OpenPlainSpace(client, kBytes));
    ASSIGN_OR_RETURN(const bench::Reader look, bench::NewReader(client));
    RETURN_UNLESS(kvc_reader_set_device(look.get(), device.get()) == KVC_OK, "the device");
    RETURN_IF_ERROR(FindAll(look.get(), space.get(), there, true));
    RETURN_IF_ERROR(FindAll(look.get(), space.get(), above, false));
    kvc_prefetch_options options{};
    options.struct_size = sizeof options;
    options.device = device.get();
    options.deadline_ms = 60'000;
    kvc_fetch* asked = nullptr;
    kvc_error error{};
    RETURN_IF_ERROR(bench::ToStatus(
        kvc_prefetch(client, space.get(), above.data(), above.size(), &options, 0, &asked, &error),
        error));
    const bench::Fetch fetch(asked);
    std::vector<kvc_code> codes(above.size());
    RETURN_IF_ERROR(
        bench::ToStatus(kvc_wait(fetch.get(), 60'000, nullptr, codes.data(), &error), error));
    for (const kvc_code code : codes)
      RETURN_UNLESS(code == KVC_OK, "a page that was fetched");
    return FindAll(look.get(), space.get(), above, true);
  });
  ExpectDone(reader);
  EXPECT_EQ(Device()["promoted"]["pages"], above.size()) << Device();
}

TEST_F(DevicesTest, TheMoverEndsWithTheDaemon) {
  StartWith(kOneDevice);
  ASSERT_TRUE(AwaitState("serving"));
  const pid_t mover = Device()["mover"]["pid"];
  const auto gone = [&] { return ::kill(mover, 0) != 0; };
  const Result<int> code = daemon().Stop();
  ASSERT_TRUE(code);
  EXPECT_EQ(*code, 0);
  EXPECT_TRUE(Await(gone));
}

TEST_F(DevicesTest, WithoutDevicesTheStatusSaysWhy) {
  StartWith("[devices]\ndevice = \"none\"\n");
  const Json status = Report("status");
  EXPECT_EQ(status["devices"], Json::array());
  EXPECT_EQ(status["devices_by"]["choice"], "none");
  EXPECT_EQ(status["devices_by"]["kind"], "none");
  EXPECT_EQ(status["devices_by"]["why"], "devices.device is \"none\"");
}

TEST_F(DevicesTest, AutoServesWithoutWhatItDoesNotFind) {
  StartWith("[devices]\nmover = \"/does/not/exist\"\n");
  const Json by = Report("status")["devices_by"];
  EXPECT_EQ(by["choice"], "auto");
  EXPECT_THAT(std::string(by["why"]), HasSubstr("/does/not/exist"));
  EXPECT_THAT(daemon().Log(), HasSubstr("devices-missing"));
}

TEST_F(DevicesTest, AMoverThatCannotStartLeavesADeviceThatRests) {
  StartWith(std::string("[devices]\nmover = \"/bin/false\"\n") +
            std::string(kOneDevice).substr(sizeof "[devices]"));
  ASSERT_TRUE(Await([&] { return Device()["mover"]["crashes"] > 0; })) << Device();
  EXPECT_NE(Device()["state"], "serving");
  EXPECT_THAT(std::string(Device()["why"]), HasSubstr("exit code 1"));
}

TEST_F(DevicesTest, AReloadNamesDevicesAsWhatNeedsARestart) {
  StartWith(kOneDevice);
  ASSERT_TRUE(AwaitState("serving"));
  std::ifstream file(daemon().config_file());
  std::string text((std::istreambuf_iterator<char>(file)), {});
  const std::string device = "uuid = \"host:0\"\ncapacity = \"64MiB\"";
  ASSERT_NE(text.find(device), std::string::npos);
  text.replace(text.find(device), device.size(), "uuid = \"host:0\"\ncapacity = \"32MiB\"");
  std::ofstream(daemon().config_file()) << text;
  ASSERT_EQ(::kill(daemon().pid(), SIGHUP), 0);
  ASSERT_TRUE(Await([&] { return daemon().Log().find("reloaded") != std::string::npos; }));
  EXPECT_THAT(daemon().Log(), HasSubstr("field=device "));
  EXPECT_EQ(Device()["capacity_bytes"], 64u << 20);
}

TEST(DevicesRefused, WhatCannotBeIsNamed) {
  EXPECT_THAT(WhyNotStarted("[devices]\ndevice = \"cuda\"\nmover = \"/does/not/exist\"\n"),
              HasSubstr("devices.device is \"cuda\": start /does/not/exist"));
  EXPECT_THAT(WhyNotStarted("[devices]\ndevice = \"gpu\"\n"),
              HasSubstr("devices.device: expected"));
  EXPECT_THAT(WhyNotStarted("[devices]\ndevice = \"host\"\n[[device]]\ncapacity = \"64MiB\"\n"),
              HasSubstr("device.uuid: every [[device]] needs one"));
}

#ifdef FAKE_LIBCUDA
TEST_F(DevicesTest, CudasDevicesAreFoundByThemselves) {
  const TemporaryFolder folder;
  std::filesystem::create_symlink(FAKE_LIBCUDA, folder.path() + "/libcuda.so.1");
  ::setenv("LD_LIBRARY_PATH", folder.path().c_str(), 1);
  StartWith("[devices]\ndevice = \"cuda\"\n");
  ::unsetenv("LD_LIBRARY_PATH");
  ASSERT_TRUE(AwaitState("serving")) << Device();
  EXPECT_EQ(Report("status")["devices_by"]["kind"], "cuda");
  EXPECT_THAT(std::string(Device()["driver"]), HasSubstr("CUDA driver"));
  EXPECT_EQ(Device()["mode"], "slabs");
}
#endif

TEST_F(DevicesTest, ADeviceThatIsKeptForATenantIsNobodyElses) {
  DaemonProcessOptions options;
  options.store = R"([devices]
device = "host"
[[device]]
uuid = "host:0"
capacity = "64MiB"
slab = "2MiB"
[[device]]
uuid = "host:1"
capacity = "128MiB"
slab = "2MiB"
tenants = ["chat"]
)";
  options.tables = R"(
[[socket]]
path = "@/chat.sock"
tenant = "chat"
[[socket]]
path = "@/batch.sock"
tenant = "batch"
[[socket]]
path = "@/terraced.sock"
tenant = "ops"
role = "admin"
admin = true
)";
  StartDaemon(options);
  ASSERT_TRUE(Await([&] {
    const Json devices = Report("status")["devices"];
    return devices[0]["state"] == "serving" && devices[1]["state"] == "serving";
  }));
  EXPECT_EQ(Report("status")["devices"][1]["tenants"], Json::array({"chat"}));
  const std::string kept = Report("status")["devices"][1]["uuid"];

  const TemporaryFolder folder;
  ASSERT_TRUE(
      WriteModel(folder.path(), ManyTensors(10), {.seed = 5, .shards = 1, .config_json = ""}));
  const auto load = [](kvc_client* client) -> Result<uint32_t> {
    kvc_loaded loaded{};
    loaded.struct_size = sizeof loaded;
    kvc_error error{};
    RETURN_IF_ERROR(bench::ToStatus(
        kvc_load_to_device(client, "m", nullptr, nullptr, nullptr, nullptr, 0, &loaded, &error),
        error));
    return loaded.device;
  };
  bench::Child operator_ = StartClient("operator", [&](kvc_client* client, bench::Link&) -> Status {
    RETURN_IF_ERROR(terrace::AddModel(client, "m", folder.path()));
    // The other one has more room, but nobody there may attach it.
    ASSIGN_OR_RETURN(const uint32_t first, load(client));
    RETURN_UNLESS(first == 1, "device " + std::to_string(first));
    kvc_error error{};
    RETURN_UNLESS(kvc_unload_from_device(client, "m", nullptr, nullptr, 0, nullptr, nullptr) ==
                      KVC_INVALID_ARGUMENT,
                  "which of two it is to leave");
    const kvc_device_choice one = {.struct_size = sizeof one, .device = "1"};
    RETURN_IF_ERROR(bench::ToStatus(
        kvc_unload_from_device(client, "m", nullptr, &one, 0, nullptr, &error), error));
    RETURN_IF_ERROR(bench::ToStatus(kvc_model_grant(client, "m", "chat", 0, &error), error));
    ASSIGN_OR_RETURN(const uint32_t second, load(client));
    RETURN_UNLESS(second == 2, "device " + std::to_string(second));
    return {};
  });
  ExpectDone(operator_);

  const auto open_as = [&](const char* tenant) {
    std::optional<kvc_code> code;
    bench::Child engine = StartProcess(tenant, [&](bench::Link& link) -> Status {
      ASSIGN_OR_RETURN(
          const bench::Client client,
          bench::Connect({.socket = daemon().folder() + "/" + tenant + ".sock", .name = tenant}));
      kvc_device_options wanted{};
      wanted.struct_size = sizeof wanted;
      wanted.uuid = kept.c_str();
      kvc_device* device = nullptr;
      const kvc_code opened = kvc_device_open(client.get(), &wanted, 0, &device, nullptr);
      kvc_device_close(device);
      return link.Send(opened);
    });
    code = Hear<kvc_code>(engine);
    ExpectDone(engine);
    return *code;
  };
  EXPECT_EQ(open_as("chat"), KVC_OK);
  EXPECT_EQ(open_as("batch"), KVC_NOT_FOUND);

  const auto told = [&](const char* tenant) {
    WireClient client = WireClient::Connect(daemon().folder() + "/" + tenant + ".sock");
    EXPECT_EQ(client.Hello(tenant).status(), Status());
    wire::Report request;
    request.set_what("status");
    const auto reply = client.Call<wire::ReportReply>(wire::Type::kReport, request);
    return reply ? Json::parse(reply->json())["devices"] : Json();
  };
  EXPECT_EQ(told("batch").size(), 1u) << "not the one that is kept for others";
  ASSERT_EQ(told("chat").size(), 2u);
  EXPECT_EQ(told("chat")[1]["tenants"], Json::array({"chat"}));
}

}  // namespace
}  // namespace terrace
