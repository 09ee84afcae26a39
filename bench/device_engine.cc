#include "bench/device_engine.h"

#include <algorithm>
#include <cstring>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>

#include "bench/content.h"
#include "bench/device_bench.h"

namespace terrace::bench {
namespace {

constexpr uint64_t kSeed = 3;
constexpr uint64_t kTensorBytes = 8u << 20;
constexpr uint64_t kCheckedAtOnce = 4u << 20;
constexpr uint64_t kEndBytes = 64u << 10;
constexpr int32_t kLongMs = 600'000;

// Of host memory, and of the device. From 512 MiB on weights have blocks of 64 MiB, which are whole
// granules of any device.
uint64_t WithRoom(uint64_t bytes) {
  return (bytes + bytes / 4) / kTensorBytes * kTensorBytes + (512u << 20);
}

// A device that is not named by its UUID is one of all that there are.
std::string Configuration(const std::string& device, uint64_t bytes) {
  const bool host = device == "host";
  std::string text = std::string("[devices]\ndevice = \"") + (host ? "host" : "cuda") + "\"\n";
  std::string uuid;
  if (host) uuid = "host:0";
  if (device.starts_with("cuda:")) uuid = device.substr(5);
  if (uuid.empty()) return text;
  text += "[[device]]\nuuid = \"" + uuid + "\"\ncapacity = \"" + std::to_string(bytes) + "\"\n";
  // Small ones, for what is left over at the end of a set is memory of the host.
  if (host) text += "slab = \"2MiB\"\n";
  return text;
}

bool AllServe(const nlohmann::json& status) {
  const auto devices = status.find("devices");
  return devices != status.end() && !devices->empty() &&
         std::ranges::all_of(*devices, [](const nlohmann::json& device) {
           return device.value("state", "") == "serving";
         });
}

// At the device of that UUID.
std::optional<uint64_t> NumberAt(const nlohmann::json& status, const std::string& uuid,
                                 const std::string& pointer) {
  const nlohmann::json::json_pointer path(pointer);
  const auto devices = status.find("devices");
  if (devices != status.end()) {
    for (const nlohmann::json& device : *devices) {
      if (device.value("uuid", "") != uuid) continue;
      if (device.contains(path) && device[path].is_number_unsigned())
        return device[path].get<uint64_t>();
    }
  }
  return std::nullopt;
}

Result<kvc_tensor> FindTensor(const kvc_weights* weights, const ModelTensor& of) {
  kvc_tensor tensor{};
  tensor.struct_size = sizeof tensor;
  if (const kvc_code code = kvc_weights_find(weights, of.name.c_str(), &tensor); code != KVC_OK)
    return Status(static_cast<Code>(code), "kvc_weights_find " + of.name);
  if (tensor.data == nullptr || tensor.bytes != of.bytes())
    return Status(Code::kInternal, of.name + " is not mapped");
  return tensor;
}

}  // namespace

uint64_t DeviceModel::bytes() const {
  uint64_t sum = 0;
  for (const ModelTensor& tensor : tensors)
    sum += tensor.bytes();
  return sum;
}

Result<DeviceModel> DeviceModel::Start(const DeviceModelOptions& options) {
  const std::string& device = options.device;
  if (device != "host" && device != "cuda" && !device.starts_with("cuda:")) {
    return Status(Code::kInvalidArgument,
                  "device: '" + device + "' is not host, cuda or cuda:UUID");
  }
  const uint64_t room = WithRoom(options.bytes);
  ASSIGN_OR_RETURN(Daemon daemon, Daemon::Start({.binary = options.terraced,
                                                 .capacity_bytes = room,
                                                 .pretouch_bytes = 0,
                                                 .devices = Configuration(device, room)}));
  DeviceModel model{.daemon = std::move(daemon), .device = device, .tensors = {}, .seed = kSeed};
  for (uint64_t i = 0; i < std::max<uint64_t>(2, options.bytes / kTensorBytes); ++i) {
    model.tensors.push_back({.name = "model.layers." + std::to_string(i) + ".weight",
                             .dtype = "BF16",
                             .shape = {kTensorBytes / 2 / 4096, 4096}});
  }
  const std::string folder = model.daemon.folder() + "/model";
  RETURN_IF_ERROR(
      WriteModel(folder, model.tensors, {.seed = kSeed, .shards = 1, .config_json = ""}).status());
  ASSIGN_OR_RETURN(const Client client,
                   Connect({.socket = model.daemon.socket(), .name = "operator"}));
  RETURN_IF_ERROR(AwaitStatus(client.get(), AllServe, "a device of the daemon does not serve"));
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

Result<DeviceEngine> DeviceEngine::Make(const std::string& device) {
  DeviceEngine engine;
  if (device == "host") {
    engine.probe_ = OpenHostProbe();
    return engine;
  }
  ASSIGN_OR_RETURN(const ChosenDevice chosen, ChooseDevice(device, 0));
  engine.uuid_ = chosen.facts.uuid.Text();
  ASSIGN_OR_RETURN(engine.probe_, OpenCudaProbe(chosen.facts.uuid, {}));
  return engine;
}

Status DeviceEngine::Connect(const std::string& socket, const std::string& name) {
  ASSIGN_OR_RETURN(client_, bench::Connect({.socket = socket, .name = name}));
  kvc_device_options options{};
  options.struct_size = sizeof options;
  if (!uuid_.empty()) options.uuid = uuid_.c_str();
  kvc_device* opened = nullptr;
  kvc_error error{};
  RETURN_IF_ERROR(ToStatus(kvc_device_open(client(), &options, 0, &opened, &error), error));
  device_.reset(opened);
  return {};
}

Result<DeviceEngine> DeviceEngine::Open(const DeviceModel& model, const std::string& name) {
  ASSIGN_OR_RETURN(DeviceEngine engine, Make(model.device));
  RETURN_IF_ERROR(engine.Connect(model.daemon.socket(), name));
  return engine;
}

Result<kvc_device_info> DeviceEngine::Info() const {
  kvc_device_info info{};
  info.struct_size = sizeof info;
  if (const kvc_code code = kvc_device_get_info(device(), &info); code != KVC_OK)
    return Status(static_cast<Code>(code), "kvc_device_get_info");
  return info;
}

Result<uint64_t> DeviceEngine::StatusNumber(const std::string& pointer) const {
  ASSIGN_OR_RETURN(const kvc_device_info info, Info());
  ASSIGN_OR_RETURN(const nlohmann::json status, Report(client(), "status"));
  if (const std::optional<uint64_t> number = NumberAt(status, info.uuid, pointer)) return *number;
  return Status(Code::kDataLoss, "the daemon's status has no number at the device's " + pointer);
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

Status DeviceEngine::Unload() const {
  ASSIGN_OR_RETURN(const kvc_device_info info, Info());
  kvc_device_choice choice{};
  choice.struct_size = sizeof choice;
  choice.device = info.uuid;
  kvc_unloaded unloaded{};
  unloaded.struct_size = sizeof unloaded;
  kvc_error error{};
  RETURN_IF_ERROR(ToStatus(
      kvc_unload_from_device(client(), kDeviceModel, nullptr, &choice, kLongMs, &unloaded, &error),
      error));
  return AwaitStatus(
      client(),
      [&info](const nlohmann::json& status) {
        return NumberAt(status, info.uuid, "/bytes/weights") == 0 &&
               NumberAt(status, info.uuid, "/bytes/leaving") == 0;
      },
      "the weights do not leave the device");
}

Status DeviceEngine::CheckTensor(const kvc_weights* weights, const DeviceModel& model,
                                 const ModelTensor& of, uint64_t from) const {
  ASSIGN_OR_RETURN(const kvc_tensor tensor, FindTensor(weights, of));
  std::vector<uint8_t> is(std::min(kCheckedAtOnce, tensor.bytes - from));
  std::vector<uint8_t> shall(is.size());
  for (uint64_t at = from; at < tensor.bytes; at += is.size()) {
    const uint64_t bytes = std::min<uint64_t>(is.size(), tensor.bytes - at);
    RETURN_IF_ERROR(
        Read(static_cast<const uint8_t*>(tensor.data) + at, std::span(is).first(bytes)));
    FillTensor(TensorSeed(model.seed, of.name), of.dtype, at, std::span(shall).first(bytes));
    if (std::memcmp(is.data(), shall.data(), bytes) != 0)
      return {Code::kDataLoss, of.name + " on the device is not what the files have"};
  }
  return {};
}

Status DeviceEngine::CheckWeights(const kvc_weights* weights, const DeviceModel& model) const {
  for (const ModelTensor& tensor : model.tensors)
    RETURN_IF_ERROR(CheckTensor(weights, model, tensor, 0));
  return {};
}

Status DeviceEngine::CheckEnds(const kvc_weights* weights, const DeviceModel& model) const {
  for (const ModelTensor* tensor : {&model.tensors.front(), &model.tensors.back()})
    RETURN_IF_ERROR(CheckTensor(weights, model, *tensor, tensor->bytes() - kEndBytes));
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
