// Engines on a device, for what checks them: a terraced that has the device and a model
// on it, and engines that attach it by libkvclient and look at its bytes.
//
// One thread uses each. An engine belongs to the process that opened it, and the process that forks
// it opens no driver: neither outlives a fork. Devices are named as ChooseDevice takes them.
#pragma once

#include <kvclient/device.h>

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/status.h"
#include "bench/client.h"
#include "bench/daemon.h"
#include "bench/model_writer.h"
#include "tiers/device/gpu_probe.h"

namespace terrace::bench {

inline constexpr const char* kDeviceModel = "bench";

struct DeviceModelOptions {
  std::string terraced = {};  // As DaemonOptions::binary.
  std::string device;
  uint64_t bytes = 0;  // Of the model, about.
};

// A terraced with room for the model in host memory and on the device, which serves; the model is
// added, and neither here nor there.
struct DeviceModel {
  static Result<DeviceModel> Start(const DeviceModelOptions& options);
  Daemon daemon;
  std::string device;
  std::vector<ModelTensor> tensors;
  uint64_t seed = 0;

  uint64_t bytes() const;  // Of all tensors.
};
using OpenedDevice = std::unique_ptr<kvc_device, Closer<kvc_device_close>>;

class DeviceEngine {
 public:
  // With a context on the device, which an engine has before it comes to its cache.
  static Result<DeviceEngine> Make(const std::string& device);
  // Then, once: the daemon, and the device in it.
  Status Connect(const std::string& socket, const std::string& name);
  // Both.
  static Result<DeviceEngine> Open(const DeviceModel& model, const std::string& name);

  kvc_client* client() const { return client_.get(); }
  kvc_device* device() const { return device_.get(); }
  Result<kvc_device_info> Info() const;
  // Number of the daemon's status at this device: "/bytes/weights".
  Result<uint64_t> StatusNumber(const std::string& pointer) const;

  // Loads the model onto the device if it is not there.
  Result<Weights> Attach() const;
  // Returns when no byte of the model is left on the device.
  Status Unload() const;
  // Every byte of every tensor, copied off the device, is what the model's files have.
  Status CheckWeights(const kvc_weights* weights, const DeviceModel& model) const;
  // The ends of the first and of the last tensor alone.
  Status CheckEnds(const kvc_weights* weights, const DeviceModel& model) const;

  // Pages written in the device's memory and published out of it, and looked up there.
  Status Publish(const kvc_space* space, std::span<const kvc_key> keys) const;
  // All are found on the device, with their bytes.
  Status CheckPages(const kvc_space* space, std::span<const kvc_key> keys) const;

 private:
  DeviceEngine() = default;
  Status CheckTensor(const kvc_weights* weights, const DeviceModel& model, const ModelTensor& of,
                     uint64_t from) const;
  Status Read(const void* from, std::span<uint8_t> to) const;
  Status Write(std::span<const uint8_t> from, void* to) const;

  std::string uuid_;  // Empty on a device of the host, which has one.
  Client client_;
  OpenedDevice device_;
  std::unique_ptr<GpuProbe> probe_;  // The addresses are libkvclient's: no Gpu of ours knows them.
};

}  // namespace terrace::bench
