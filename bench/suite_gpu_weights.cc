// Suites `gpu-attach` and `gpu-load`: weights in the memory of a device, by a real terraced.
//
// `gpu-attach`: two engines open the device, attach the set and hold it, which loads it once. Then
// processes that are started for it attach, one after the other. `attach_ms` is the median from the
// call of kvc_connect until a tensor has an address; the process has its context by then, as an
// engine has. `hbm_copies` is what the daemon has charged for weights there while both hold them,
// over the size of the set. On a GPU `hbm_copies_by_free_memory` is what the driver's free memory
// fell by while both attached.
//
// `gpu-load`: the set is in host memory. `load_over_h2d` is the rate of an attachment that loads it
// onto the device, over the best of plain copies of this process from its own pinned memory, in
// turn; the median of rounds. Between rounds the set leaves the device.
//
// What is attached is compared with what was written, at both ends of the set.
#include <kvclient/device.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>

#include "bench/client.h"
#include "bench/daemon.h"
#include "bench/device_bench.h"
#include "bench/model_writer.h"
#include "bench/processes.h"
#include "bench/statistics.h"
#include "bench/store_pages.h"
#include "bench/suites.h"

namespace terrace::bench {
namespace {

constexpr const char* kModel = "bench";
constexpr uint64_t kSeed = 3;
constexpr uint64_t kMiB = 1u << 20;
constexpr uint64_t kTensorBytes = 8 * kMiB;
constexpr uint64_t kCheckedBytes = 64u << 10;
constexpr uint64_t kMostPlainBytes = 2048 * kMiB;
constexpr int32_t kLimitMs = 300'000;
constexpr double kServingSeconds = 120;
constexpr int kEngines = 2;

using OpenedDevice = std::unique_ptr<kvc_device, Closer<kvc_device_close>>;

struct Plan {
  std::string device;  // As SuiteOptions has it.
  std::string socket;
  std::vector<ModelTensor> tensors;
  uint64_t set_bytes = 0;

  bool on_host() const { return device == "host"; }
};

// The device as this process has it by itself: only in children, for a driver that was begun with
// does not outlive a fork.
struct OwnDevice {
  ChosenDevice chosen;
  DeviceWork work;

  static Result<OwnDevice> Open(const Plan& plan, uint64_t host_bytes) {
    OwnDevice own;
    ASSIGN_OR_RETURN(own.chosen, ChooseDevice(plan.device, host_bytes));
    ASSIGN_OR_RETURN(own.work, DeviceWork::Open(own.chosen));
    return own;
  }
};

Result<OpenedDevice> OpenDevice(kvc_client* client, const Plan& plan) {
  kvc_device_options options{};
  options.struct_size = sizeof options;
  const std::string uuid = plan.device.starts_with("cuda:") ? plan.device.substr(5) : "";
  if (!uuid.empty()) options.uuid = uuid.c_str();
  kvc_device* device = nullptr;
  kvc_error error{};
  RETURN_IF_ERROR(ToStatus(kvc_device_open(client, &options, kLimitMs, &device, &error), error));
  return OpenedDevice(device);
}

Result<Weights> AttachOn(kvc_client* client, kvc_device* device) {
  kvc_attach_options options{};
  options.struct_size = sizeof options;
  options.load = 1;
  options.device = device;
  kvc_weights* weights = nullptr;
  kvc_error error{};
  RETURN_IF_ERROR(
      ToStatus(kvc_attach(client, kModel, &options, kLimitMs, &weights, &error), error));
  return Weights(weights);
}

Result<kvc_tensor> FindTensor(const kvc_weights* weights, const ModelTensor& of) {
  kvc_tensor tensor{};
  tensor.struct_size = sizeof tensor;
  if (const kvc_code code = kvc_weights_find(weights, of.name.c_str(), &tensor); code != KVC_OK)
    return Status(static_cast<Code>(code), "kvc_weights_find " + of.name);
  if (tensor.data == nullptr) return Status(Code::kInternal, of.name + " has no address");
  return tensor;
}

Status CheckEnds(const kvc_weights* weights, const Plan& plan, const OwnDevice& own) {
  ASSIGN_OR_RETURN(const HostFile read, HostFile::Make(kCheckedBytes, 1));
  if (!plan.on_host())
    RETURN_IF_ERROR(own.work.gpu().RegisterHost(read.bytes(), GpuAccess::kReadWrite).status());
  for (const ModelTensor* of : {&plan.tensors.front(), &plan.tensors.back()}) {
    ASSIGN_OR_RETURN(const kvc_tensor tensor, FindTensor(weights, *of));
    const uint64_t at = tensor.bytes - kCheckedBytes;
    const uint8_t* const from = static_cast<const uint8_t*>(tensor.data) + at;
    if (plan.on_host()) {
      std::memcpy(read.bytes().data(), from, kCheckedBytes);
    } else {
      const GpuCopy copy{.dst = reinterpret_cast<GpuAddress>(read.bytes().data()),
                         .src = reinterpret_cast<GpuAddress>(from),
                         .bytes = kCheckedBytes};
      RETURN_IF_ERROR(own.work.gpu().Copy(own.work.stream(), {&copy, 1}, SourceOrder::kAny));
      RETURN_IF_ERROR(own.work.Finish());
    }
    std::vector<uint8_t> wanted(kCheckedBytes);
    FillTensor(TensorSeed(kSeed, of->name), of->dtype, at, wanted);
    if (!std::ranges::equal(wanted, read.bytes()))
      return {Code::kDataLoss, of->name + " on the device is not what was written"};
  }
  return {};
}

// In a child each, so that this process has no connection when it forks the next.
Status InChild(const char* name, const std::function<Status(Link&)>& body) {
  ASSIGN_OR_RETURN(Child child, Child::Start(name, body));
  return child.Wait();
}

template <typename T>
Result<T> FromChild(const char* name, const std::function<Result<T>()>& body) {
  ASSIGN_OR_RETURN(Child child, Child::Start(name, [&](Link& link) -> Status {
                     ASSIGN_OR_RETURN(const T value, body());
                     return link.Send(value);
                   }));
  Result<T> value = child.link().Receive<T>();
  RETURN_IF_ERROR(child.Wait());
  return value;
}

Status AwaitServing(kvc_client* client) {
  const Stopwatch watch;
  std::string state;
  while (watch.Seconds() < kServingSeconds) {
    ASSIGN_OR_RETURN(const nlohmann::json status, Report(client, "status"));
    const nlohmann::json& devices = status.at("devices");
    if (devices.empty()) return {Code::kNotFound, "the daemon has no device"};
    state = devices[0].at("state").get<std::string>();
    if (state == "serving") return {};
    usleep(10'000);
  }
  return {Code::kDeadlineExceeded, "the device is '" + state + "', not serving"};
}

Status AddToHost(const Plan& plan, const std::string& folder) {
  ASSIGN_OR_RETURN(const Client client, Connect({.socket = plan.socket, .name = "adder"}));
  RETURN_IF_ERROR(AwaitServing(client.get()));
  kvc_model_added added{};
  added.struct_size = sizeof added;
  kvc_error error{};
  RETURN_IF_ERROR(ToStatus(
      kvc_model_add(client.get(), kModel, "1", folder.c_str(), kLimitMs, &added, &error), error));
  return ToStatus(
      kvc_load(client.get(), kModel, nullptr, nullptr, nullptr, kLimitMs, nullptr, &error), error);
}

// A daemon with the device and with the set in host memory.
struct Stage {
  Plan plan;
  std::optional<Daemon> daemon;

  static Result<Stage> Set(const SuiteOptions& options) {
    Stage stage;
    Plan& plan = stage.plan;
    plan.device = options.device;
    if (!plan.on_host() && plan.device != "cuda" && !plan.device.starts_with("cuda:"))
      return Status(Code::kInvalidArgument,
                    "device: '" + plan.device + "' is not host, cuda or cuda:UUID");
    uint64_t bytes = options.set_bytes;
    if (bytes == 0) bytes = (plan.on_host() ? 256 : 16 * 1024) * kMiB;
    if (options.quick) bytes = 32 * kMiB;
    const uint64_t tensors = std::max<uint64_t>(2, bytes / kTensorBytes);
    for (uint64_t i = 0; i < tensors; ++i) {
      plan.tensors.push_back({.name = "layers." + std::to_string(i) + ".weight",
                              .dtype = "BF16",
                              .shape = {kTensorBytes / 4096, 2048}});
    }
    plan.set_bytes = tensors * kTensorBytes;
    // At least 512 MiB: from there on blocks have 64 MiB, whole granules of any device.
    const uint64_t room = plan.set_bytes + plan.set_bytes / 4 + 512 * kMiB;
    std::string devices = "[devices]\ndevice = \"cuda\"\n";
    if (plan.on_host()) {
      devices = "[devices]\ndevice = \"host\"\n[[device]]\nuuid = \"host:0\"\ncapacity = \"" +
                std::to_string(room) + "\"\nslab = \"2MiB\"\n";
    }
    ASSIGN_OR_RETURN(Daemon daemon, Daemon::Start({.binary = options.terraced,
                                                   .capacity_bytes = room,
                                                   .pretouch_bytes = 0,
                                                   .devices = devices}));
    stage.daemon.emplace(std::move(daemon));
    plan.socket = stage.daemon->socket();
    const std::string folder = stage.daemon->folder() + "/model";
    RETURN_IF_ERROR(
        WriteModel(folder, plan.tensors, {.seed = kSeed, .shards = 1, .config_json = ""}).status());
    RETURN_IF_ERROR(InChild("adder", [&](Link&) { return AddToHost(plan, folder); }));
    return stage;
  }
};

void AddPlace(Figures* figures, const Plan& plan) {
  figures->push_back({"set_bytes", static_cast<double>(plan.set_bytes), "bytes"});
  figures->push_back({"has_thresholds", plan.on_host() ? 0.0 : 1.0, "count"});
}

// Opens the device, says so, attaches, says so, and holds until told.
Status Hold(const Plan& plan, Link& link) {
  ASSIGN_OR_RETURN(const OwnDevice own, OwnDevice::Open(plan, kTensorBytes));
  ASSIGN_OR_RETURN(const Client client, Connect({.socket = plan.socket, .name = "engine"}));
  ASSIGN_OR_RETURN(const OpenedDevice device, OpenDevice(client.get(), plan));
  RETURN_IF_ERROR(link.Send(Go{}));
  RETURN_IF_ERROR(link.Receive<Go>().status());
  ASSIGN_OR_RETURN(const Weights weights, AttachOn(client.get(), device.get()));
  RETURN_IF_ERROR(CheckEnds(weights.get(), plan, own));
  RETURN_IF_ERROR(link.Send(Go{}));
  return link.Receive<Go>().status();
}

struct Held {
  uint64_t charged_bytes = 0;
  uint64_t fell_bytes = 0;  // Of the driver's free memory.
};

// What the device has free before the engines attach, and what is charged and free after.
Status Observe(const Plan& plan, Link& link) {
  ASSIGN_OR_RETURN(const OwnDevice own, OwnDevice::Open(plan, kTensorBytes));
  ASSIGN_OR_RETURN(const Client client, Connect({.socket = plan.socket, .name = "observer"}));
  RETURN_IF_ERROR(link.Receive<Go>().status());
  ASSIGN_OR_RETURN(const GpuMemory before, own.work.gpu().Memory());
  RETURN_IF_ERROR(link.Send(Go{}));
  RETURN_IF_ERROR(link.Receive<Go>().status());
  ASSIGN_OR_RETURN(const GpuMemory after, own.work.gpu().Memory());
  Held held;
  ASSIGN_OR_RETURN(held.charged_bytes, StatusNumber(client.get(), "/devices/0/bytes/weights"));
  held.fell_bytes = before.free_bytes > after.free_bytes ? before.free_bytes - after.free_bytes : 0;
  return link.Send(held);
}

Result<double> AttachFresh(const Plan& plan) {
  ASSIGN_OR_RETURN(const OwnDevice own, OwnDevice::Open(plan, kTensorBytes));
  const Stopwatch watch;
  ASSIGN_OR_RETURN(const Client client, Connect({.socket = plan.socket, .name = "fresh"}));
  ASSIGN_OR_RETURN(const OpenedDevice device, OpenDevice(client.get(), plan));
  ASSIGN_OR_RETURN(const Weights weights, AttachOn(client.get(), device.get()));
  RETURN_IF_ERROR(FindTensor(weights.get(), plan.tensors.back()).status());
  const double ms = watch.Seconds() * 1e3;
  RETURN_IF_ERROR(CheckEnds(weights.get(), plan, own));
  return ms;
}

struct Rates {
  double load_gb_s = 0;
  double h2d_gb_s = 0;
};

// Copies of this process, from memory of its own that is pinned.
class PlainCopies {
 public:
  static Result<PlainCopies> Make(const OwnDevice& own, uint64_t bytes) {
    PlainCopies plain;
    plain.own_ = &own;
    ASSIGN_OR_RETURN(plain.host_, HostFile::Make(bytes, 5));
    RETURN_IF_ERROR(
        own.work.gpu().RegisterHost(plain.host_.bytes(), GpuAccess::kReadWrite).status());
    ASSIGN_OR_RETURN(plain.device_, own.work.Allocate(bytes));
    return plain;
  }
  // The best of all in one and of pieces.
  Result<double> GigabytesPerSecond() const {
    double best = 0;
    for (const uint64_t piece : {host_.bytes().size(), size_t{16 * kMiB}}) {
      for (int i = 0; i < 2; ++i) {
        ASSIGN_OR_RETURN(const double seconds, Copy(piece));
        best = std::max(best, static_cast<double>(host_.bytes().size()) / 1e9 / seconds);
      }
    }
    return best;
  }

 private:
  Result<double> Copy(uint64_t piece) const {
    const auto host = reinterpret_cast<GpuAddress>(host_.bytes().data());
    const Stopwatch watch;
    for (uint64_t at = 0; at < host_.bytes().size(); at += piece) {
      const GpuCopy copy{.dst = device_ + at,
                         .src = host + at,
                         .bytes = std::min<uint64_t>(piece, host_.bytes().size() - at)};
      RETURN_IF_ERROR(own_->work.gpu().Copy(own_->work.stream(), {&copy, 1}, SourceOrder::kAny));
    }
    RETURN_IF_ERROR(own_->work.Finish());
    return watch.Seconds();
  }

  const OwnDevice* own_ = nullptr;
  HostFile host_;
  GpuAddress device_ = 0;
};

// The set leaves the device, and the call returns when it has.
Status Unload(kvc_client* client, kvc_device* device) {
  kvc_device_choice choice{};
  choice.struct_size = sizeof choice;
  kvc_unloaded unloaded{};
  unloaded.struct_size = sizeof unloaded;
  kvc_device_info info{};
  info.struct_size = sizeof info;
  if (const kvc_code code = kvc_device_get_info(device, &info); code != KVC_OK)
    return Status(static_cast<Code>(code), "kvc_device_get_info");
  choice.device = info.uuid;
  kvc_error error{};
  RETURN_IF_ERROR(ToStatus(
      kvc_unload_from_device(client, kModel, nullptr, &choice, kLimitMs, &unloaded, &error),
      error));
  const Stopwatch watch;
  while (watch.Seconds() < kServingSeconds) {
    ASSIGN_OR_RETURN(const uint64_t weights, StatusNumber(client, "/devices/0/bytes/weights"));
    ASSIGN_OR_RETURN(const uint64_t leaving, StatusNumber(client, "/devices/0/bytes/leaving"));
    if (weights == 0 && leaving == 0) return {};
    usleep(10'000);
  }
  return {Code::kDeadlineExceeded, "the weights do not leave the device"};
}

Status LoadInTurn(const Plan& plan, int rounds, Link& link) {
  const uint64_t plain_bytes = std::min(plan.set_bytes, kMostPlainBytes);
  ASSIGN_OR_RETURN(const OwnDevice own, OwnDevice::Open(plan, 2 * plain_bytes));
  ASSIGN_OR_RETURN(const PlainCopies plain, PlainCopies::Make(own, plain_bytes));
  ASSIGN_OR_RETURN(const Client client, Connect({.socket = plan.socket, .name = "engine"}));
  ASSIGN_OR_RETURN(const OpenedDevice device, OpenDevice(client.get(), plan));
  for (int i = 0; i <= rounds; ++i) {
    Rates rates;
    ASSIGN_OR_RETURN(rates.h2d_gb_s, plain.GigabytesPerSecond());
    {
      const Stopwatch watch;
      ASSIGN_OR_RETURN(const Weights weights, AttachOn(client.get(), device.get()));
      rates.load_gb_s = static_cast<double>(plan.set_bytes) / 1e9 / watch.Seconds();
      RETURN_IF_ERROR(CheckEnds(weights.get(), plan, own));
    }
    RETURN_IF_ERROR(Unload(client.get(), device.get()));
    // The first one pays for pinning the host's memory, once in a daemon's life.
    if (i > 0) RETURN_IF_ERROR(link.Send(rates));
  }
  return {};
}

}  // namespace

Result<Figures> RunGpuAttach(const SuiteOptions& options) {
  const int attempts = options.quick ? 3 : 21;
  ASSIGN_OR_RETURN(const Stage stage, Stage::Set(options));
  const Plan& plan = stage.plan;
  ASSIGN_OR_RETURN(Child observer,
                   Child::Start("observer", [&](Link& link) { return Observe(plan, link); }));
  std::vector<Child> engines;
  for (int i = 0; i < kEngines; ++i) {
    ASSIGN_OR_RETURN(Child engine,
                     Child::Start("engine", [&](Link& link) { return Hold(plan, link); }));
    engines.push_back(std::move(engine));
  }
  RETURN_IF_ERROR(HearAll(engines));
  RETURN_IF_ERROR(observer.link().Send(Go{}));
  RETURN_IF_ERROR(observer.link().Receive<Go>().status());
  RETURN_IF_ERROR(TellAll(engines));
  RETURN_IF_ERROR(HearAll(engines));
  RETURN_IF_ERROR(observer.link().Send(Go{}));
  ASSIGN_OR_RETURN(const Held held, observer.link().Receive<Held>());
  RETURN_IF_ERROR(observer.Wait());
  std::vector<double> attach_ms;
  for (int i = 0; i < attempts; ++i) {
    ASSIGN_OR_RETURN(const double ms,
                     FromChild<double>("fresh", [&] { return AttachFresh(plan); }));
    attach_ms.push_back(ms);
  }
  RETURN_IF_ERROR(TellAll(engines));
  RETURN_IF_ERROR(WaitAll(engines));
  Figures figures;
  AddSpread(&figures, "attach_ms", attach_ms, "ms");
  const auto set = static_cast<double>(plan.set_bytes);
  figures.push_back({"hbm_copies", static_cast<double>(held.charged_bytes) / set, "ratio"});
  if (!plan.on_host()) {
    figures.push_back(
        {"hbm_copies_by_free_memory", static_cast<double>(held.fell_bytes) / set, "ratio"});
  }
  AddPlace(&figures, plan);
  return figures;
}

Result<Figures> RunGpuLoad(const SuiteOptions& options) {
  const int rounds = options.quick ? 2 : 5;
  ASSIGN_OR_RETURN(const Stage stage, Stage::Set(options));
  const Plan& plan = stage.plan;
  ASSIGN_OR_RETURN(Child engine, Child::Start("engine", [&](Link& link) {
                     return LoadInTurn(plan, rounds, link);
                   }));
  std::vector<double> over, load_gb_s, h2d_gb_s;
  for (int i = 0; i < rounds; ++i) {
    ASSIGN_OR_RETURN(const Rates rates, engine.link().Receive<Rates>());
    over.push_back(rates.load_gb_s / rates.h2d_gb_s);
    load_gb_s.push_back(rates.load_gb_s);
    h2d_gb_s.push_back(rates.h2d_gb_s);
  }
  RETURN_IF_ERROR(engine.Wait());
  Figures figures;
  AddSpread(&figures, "load_over_h2d", over, "ratio");
  figures.push_back({"load_gb_s", Median(load_gb_s), "GB/s"});
  figures.push_back({"h2d_gb_s", Median(h2d_gb_s), "GB/s"});
  AddPlace(&figures, plan);
  return figures;
}

}  // namespace terrace::bench
