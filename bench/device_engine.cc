#include "bench/device_engine.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <nlohmann/json.hpp>
#include <thread>
#include <utility>

#include "bench/content.h"
#include "bench/device_bench.h"
#include "bench/statistics.h"

namespace terrace::bench {
namespace {

constexpr uint64_t kSeed = 3;
constexpr uint64_t kTensorBytes = 8u << 20;
constexpr uint64_t kSpare = 256u << 20;  // Beside the model: ends of blocks, manifests, pages.
constexpr uint64_t kCheckedAtOnce = 4u << 20;
constexpr double kServeSeconds = 120;
constexpr int32_t kLongMs = 600'000;

uint64_t WithRoom(uint64_t bytes) {
  return (bytes + bytes / 8 + kSpare) / kTensorBytes * kTensorBytes;
}

// A device that is not named by its UUID is one of all that there are.
std::string Configuration(const std::string& device, uint64_t bytes) {
  const bool host = device == "host";
  std::string uuid = host ? "host:0" : "";
  if (device.starts_with("cuda:")) uuid = device.substr(5);
  std::string text = std::string("[devices]\ndevice = \"") + (host ? "host" : "cuda") + "\"\n";
  if (!uuid.empty()) {
    text += "[[device]]\nuuid = \"" + uuid + "\"\ncapacity = \"" + std::to_string(bytes) + "\"\n";
  }
  return text;
}

// Until its first device serves.
Status AwaitDevice(kvc_client* client) {
  const Stopwatch watch;
  const nlohmann::json::json_pointer state("/devices/0/state");
  for (;;) {
    ASSIGN_OR_RETURN(const nlohmann::json status, Report(client, "status"));
    if (status.contains(state) && status[state] == "serving") return {};
    if (watch.Seconds() > kServeSeconds) {
      return {Code::kDeadlineExceeded, "the daemon's device does not serve"};
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
}

}  // namespace

Result<DeviceModel> DeviceModel::Start(const std::string& device, uint64_t bytes) {
  ASSIGN_OR_RETURN(Daemon daemon,
                   Daemon::Start({.binary = "",
                                  .capacity_bytes = WithRoom(bytes),
                                  .devices = Configuration(device, WithRoom(bytes))}));
  DeviceModel model{.daemon = std::move(daemon), .tensors = {}, .seed = kSeed};
  for (uint64_t i = 0; i < std::max<uint64_t>(1, bytes / kTensorBytes); ++i) {
    model.tensors.push_back({.name = "model.layers." + std::to_string(i) + ".weight",
                             .dtype = "BF16",
                             .shape = {kTensorBytes / 2 / 4096, 4096}});
  }
  const std::string folder = model.daemon.folder() + "/model";
  RETURN_IF_ERROR(
      WriteModel(folder, model.tensors, {.seed = kSeed, .shards = 1, .config_json = ""}).status());
  ASSIGN_OR_RETURN(const Client client,
                   Connect({.socket = model.daemon.socket(), .name = "operator"}));
  RETURN_IF_ERROR(AwaitDevice(client.get()));
  kvc_model_added added{};
  added.struct_size = sizeof added;
  kvc_error error{};
  RETURN_IF_ERROR(ToStatus(
      kvc_model_add(client.get(), kDeviceModel, "1", folder.c_str(), kLongMs, &added, &error),
      error));
  return model;
}

// ---- Engines

Status DeviceEngine::Read(const void* from, std::span<uint8_t> to) const {
  return probe_->Copy(reinterpret_cast<GpuAddress>(to.data()), reinterpret_cast<GpuAddress>(from),
                      to.size());
}

Status DeviceEngine::Write(std::span<const uint8_t> from, void* to) const {
  return probe_->Copy(reinterpret_cast<GpuAddress>(to), reinterpret_cast<GpuAddress>(from.data()),
                      from.size());
}

Result<DeviceEngine> DeviceEngine::Open(const std::string& socket, const std::string& name,
                                        const std::string& device) {
  DeviceEngine engine;
  ASSIGN_OR_RETURN(engine.client_, Connect({.socket = socket, .name = name}));
  kvc_device_options options{};
  options.struct_size = sizeof options;
  std::string uuid;
  engine.probe_ = OpenHostProbe();
  if (device != "host") {
    ASSIGN_OR_RETURN(const ChosenDevice chosen, ChooseDevice(device, 0));
    uuid = chosen.facts.uuid.Text();
    options.uuid = uuid.c_str();
    ASSIGN_OR_RETURN(engine.probe_, OpenCudaProbe(chosen.facts.uuid, {}));
  }
  kvc_device* opened = nullptr;
  kvc_error error{};
  RETURN_IF_ERROR(ToStatus(kvc_device_open(engine.client(), &options, 0, &opened, &error), error));
  engine.device_.reset(opened);
  return engine;
}

Result<Weights> DeviceEngine::Attach() const {
  kvc_attach_options options{};
  options.struct_size = sizeof options;
  options.load = 1;
  options.device = device();
  kvc_weights* weights = nullptr;
  kvc_error error{};
  RETURN_IF_ERROR(
      ToStatus(kvc_attach(client(), kDeviceModel, &options, kLongMs, &weights, &error), error));
  return Weights(weights);
}

Status DeviceEngine::CheckWeights(const kvc_weights* weights, const DeviceModel& model) const {
  std::vector<uint8_t> is(kCheckedAtOnce);
  std::vector<uint8_t> shall(kCheckedAtOnce);
  for (const ModelTensor& wanted : model.tensors) {
    kvc_tensor tensor{};
    tensor.struct_size = sizeof tensor;
    if (kvc_weights_find(weights, wanted.name.c_str(), &tensor) != KVC_OK ||
        tensor.data == nullptr || tensor.bytes != wanted.bytes()) {
      return {Code::kInternal, wanted.name + " is not mapped"};
    }
    const uint64_t seed = TensorSeed(model.seed, wanted.name);
    for (uint64_t at = 0; at < tensor.bytes; at += kCheckedAtOnce) {
      const uint64_t bytes = std::min(kCheckedAtOnce, tensor.bytes - at);
      RETURN_IF_ERROR(
          Read(static_cast<const uint8_t*>(tensor.data) + at, std::span(is).first(bytes)));
      FillTensor(seed, wanted.dtype, at, std::span(shall).first(bytes));
      if (std::memcmp(is.data(), shall.data(), bytes) != 0) {
        return {Code::kDataLoss, wanted.name + " is not what the files have"};
      }
    }
  }
  return {};
}

Status DeviceEngine::Publish(const kvc_space* space, std::span<const kvc_key> keys) const {
  kvc_grant_options options{};
  options.struct_size = sizeof options;
  options.device = device();
  kvc_grants* granted = nullptr;
  kvc_error error{};
  RETURN_IF_ERROR(ToStatus(
      kvc_grant(client(), space, keys.data(), keys.size(), &options, 0, &granted, &error), error));
  const Grants grants(granted);
  std::vector<uint8_t> page(PageBytes(space));
  for (size_t i = 0; i < keys.size(); ++i) {
    void* const data = kvc_grants_data(granted, i);
    if (data == nullptr) return {Code::kExhausted, "a page was not granted on the device"};
    FillContent(keys[i], page);
    RETURN_IF_ERROR(Write(page, data));
  }
  return ToStatus(kvc_commit(granted, nullptr, 0, &error), error);
}

Status DeviceEngine::CheckPages(const kvc_space* space, std::span<const kvc_key> keys) const {
  ASSIGN_OR_RETURN(const Reader reader, NewReader(client()));
  if (kvc_reader_set_device(reader.get(), device()) != KVC_OK) {
    return {Code::kInternal, "a reader does not take the device"};
  }
  kvc_pages* found = nullptr;
  kvc_miss why{};
  const kvc_code code =
      kvc_lookup_prefix(reader.get(), space, keys.data(), keys.size(), &found, &why);
  if (code != KVC_OK) return {static_cast<Code>(code), "kvc_lookup_prefix"};
  const Pages pages(found);
  if (kvc_pages_count(found) != keys.size()) {
    return {Code::kNotFound, std::to_string(kvc_pages_count(found)) + " of " +
                                 std::to_string(keys.size()) + " pages were found; miss " +
                                 std::to_string(why)};
  }
  std::vector<uint8_t> bytes(PageBytes(space));
  for (size_t i = 0; i < keys.size(); ++i) {
    kvc_page page{};
    if (kvc_pages_get(found, i, &page) != KVC_OK || page.device == 0) {
      return {Code::kInternal, "a page is not on the device"};
    }
    RETURN_IF_ERROR(Read(page.data, bytes));
    if (WrongBytes(keys[i], bytes) != 0) return {Code::kDataLoss, "a page has wrong bytes"};
  }
  return {};
}

}  // namespace terrace::bench
