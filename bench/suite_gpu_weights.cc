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
#include <algorithm>
#include <optional>
#include <utility>

#include "bench/client.h"
#include "bench/device_bench.h"
#include "bench/device_engine.h"
#include "bench/processes.h"
#include "bench/statistics.h"
#include "bench/store_pages.h"
#include "bench/suites.h"

namespace terrace::bench {
namespace {

constexpr uint64_t kMiB = 1u << 20;
constexpr uint64_t kMostPlainBytes = 2048 * kMiB;
constexpr int32_t kLimitMs = 300'000;
constexpr int kEngines = 2;

bool OnHost(const DeviceModel& model) {
  return model.device == "host";
}

// The device as this process has it beside what libkvclient maps: only in children, for a driver
// that was begun with does not outlive a fork.
struct OwnDevice {
  ChosenDevice chosen;
  DeviceWork work;

  static Result<OwnDevice> Open(const DeviceModel& model, uint64_t host_bytes) {
    OwnDevice own;
    ASSIGN_OR_RETURN(own.chosen, ChooseDevice(model.device, host_bytes));
    ASSIGN_OR_RETURN(own.work, DeviceWork::Open(own.chosen));
    return own;
  }
};

// From a process that is started for it, so that this one opens no driver.
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

// A daemon with the device and with the set in host memory.
Result<DeviceModel> InHostMemory(const SuiteOptions& options) {
  uint64_t bytes = options.set_bytes;
  if (bytes == 0) bytes = (options.device == "host" ? 256 : 16 * 1024) * kMiB;
  if (options.quick) bytes = 32 * kMiB;
  ASSIGN_OR_RETURN(
      DeviceModel model,
      DeviceModel::Start({.terraced = options.terraced, .device = options.device, .bytes = bytes}));
  ASSIGN_OR_RETURN(const Client client,
                   Connect({.socket = model.daemon.socket(), .name = "operator"}));
  kvc_error error{};
  RETURN_IF_ERROR(ToStatus(
      kvc_load(client.get(), kDeviceModel, nullptr, nullptr, nullptr, kLimitMs, nullptr, &error),
      error));
  return model;
}

void AddPlace(Figures* figures, const DeviceModel& model) {
  figures->push_back({"set_bytes", static_cast<double>(model.bytes()), "bytes"});
  figures->push_back({"has_thresholds", OnHost(model) ? 0.0 : 1.0, "count"});
}

// Opens the device, says so, attaches, says so, and holds until told.
Status Hold(const DeviceModel& model, Link& link) {
  ASSIGN_OR_RETURN(const DeviceEngine engine, DeviceEngine::Open(model, "engine"));
  RETURN_IF_ERROR(link.Send(Go{}));
  RETURN_IF_ERROR(link.Receive<Go>().status());
  ASSIGN_OR_RETURN(const Weights weights, engine.Attach());
  RETURN_IF_ERROR(engine.CheckEnds(weights.get(), model));
  RETURN_IF_ERROR(link.Send(Go{}));
  return link.Receive<Go>().status();
}

struct Held {
  uint64_t charged_bytes = 0;
  uint64_t fell_bytes = 0;  // Of the driver's free memory.
};

// What the device has free before the engines attach, and what is charged and free after.
Status Observe(const DeviceModel& model, Link& link) {
  ASSIGN_OR_RETURN(const OwnDevice own, OwnDevice::Open(model, kMiB));
  ASSIGN_OR_RETURN(const DeviceEngine engine, DeviceEngine::Open(model, "observer"));
  RETURN_IF_ERROR(link.Receive<Go>().status());
  ASSIGN_OR_RETURN(const GpuMemory before, own.work.gpu().Memory());
  RETURN_IF_ERROR(link.Send(Go{}));
  RETURN_IF_ERROR(link.Receive<Go>().status());
  ASSIGN_OR_RETURN(const GpuMemory after, own.work.gpu().Memory());
  Held held;
  ASSIGN_OR_RETURN(held.charged_bytes, engine.StatusNumber("/bytes/weights"));
  held.fell_bytes = before.free_bytes > after.free_bytes ? before.free_bytes - after.free_bytes : 0;
  return link.Send(held);
}

Result<double> AttachFresh(const DeviceModel& model) {
  ASSIGN_OR_RETURN(DeviceEngine engine, DeviceEngine::Make(model.device));
  const Stopwatch watch;
  RETURN_IF_ERROR(engine.Connect(model.daemon.socket(), "fresh"));
  ASSIGN_OR_RETURN(const Weights weights, engine.Attach());
  kvc_tensor tensor{};
  tensor.struct_size = sizeof tensor;
  const bool found =
      kvc_weights_find(weights.get(), model.tensors.back().name.c_str(), &tensor) == KVC_OK;
  const double ms = watch.Seconds() * 1e3;
  if (!found || tensor.data == nullptr)
    return Status(Code::kInternal, model.tensors.back().name + " has no address");
  RETURN_IF_ERROR(engine.CheckEnds(weights.get(), model));
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

Status LoadInTurn(const DeviceModel& model, int rounds, Link& link) {
  const uint64_t plain_bytes = std::min(model.bytes(), kMostPlainBytes);
  ASSIGN_OR_RETURN(const OwnDevice own, OwnDevice::Open(model, 2 * plain_bytes));
  ASSIGN_OR_RETURN(const PlainCopies plain, PlainCopies::Make(own, plain_bytes));
  ASSIGN_OR_RETURN(const DeviceEngine engine, DeviceEngine::Open(model, "engine"));
  for (int i = 0; i <= rounds; ++i) {
    Rates rates;
    ASSIGN_OR_RETURN(rates.h2d_gb_s, plain.GigabytesPerSecond());
    {
      const Stopwatch watch;
      ASSIGN_OR_RETURN(const Weights weights, engine.Attach());
      rates.load_gb_s = static_cast<double>(model.bytes()) / 1e9 / watch.Seconds();
      RETURN_IF_ERROR(engine.CheckEnds(weights.get(), model));
    }
    RETURN_IF_ERROR(engine.Unload());
    // The first one pays for pinning the host's memory, once in a daemon's life.
    if (i > 0) RETURN_IF_ERROR(link.Send(rates));
  }
  return {};
}

}  // namespace

Result<Figures> RunGpuAttach(const SuiteOptions& options) {
  const int attempts = options.quick ? 3 : 21;
  ASSIGN_OR_RETURN(const DeviceModel model, InHostMemory(options));
  ASSIGN_OR_RETURN(Child observer,
                   Child::Start("observer", [&](Link& link) { return Observe(model, link); }));
  std::vector<Child> engines;
  for (int i = 0; i < kEngines; ++i) {
    ASSIGN_OR_RETURN(Child engine,
                     Child::Start("engine", [&](Link& link) { return Hold(model, link); }));
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
                     FromChild<double>("fresh", [&] { return AttachFresh(model); }));
    attach_ms.push_back(ms);
  }
  RETURN_IF_ERROR(TellAll(engines));
  RETURN_IF_ERROR(WaitAll(engines));
  Figures figures;
  AddSpread(&figures, "attach_ms", attach_ms, "ms");
  const auto set = static_cast<double>(model.bytes());
  figures.push_back({"hbm_copies", static_cast<double>(held.charged_bytes) / set, "ratio"});
  if (!OnHost(model)) {
    figures.push_back(
        {"hbm_copies_by_free_memory", static_cast<double>(held.fell_bytes) / set, "ratio"});
  }
  AddPlace(&figures, model);
  return figures;
}

Result<Figures> RunGpuLoad(const SuiteOptions& options) {
  const int rounds = options.quick ? 2 : 5;
  ASSIGN_OR_RETURN(const DeviceModel model, InHostMemory(options));
  ASSIGN_OR_RETURN(Child engine, Child::Start("engine", [&](Link& link) {
                     return LoadInTurn(model, rounds, link);
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
  AddPlace(&figures, model);
  return figures;
}

}  // namespace terrace::bench
