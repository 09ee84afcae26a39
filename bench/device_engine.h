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

// A terraced with room for a model of about `bytes` in host memory and on the device, which serves;
// the model is added, and neither here nor there.
struct DeviceModel {
  static Result<DeviceModel> Start(const std::string& device, uint64_t bytes);
  Daemon daemon;
  std::vector<ModelTensor> tensors;
  uint64_t seed = 0;
};
using OpenedDevice = std::unique_ptr<kvc_device, Closer<kvc_device_close>>;

class DeviceEngine {
 public:
  static Result<DeviceEngine> Open(const std::string& socket, const std::string& name,
                                   const std::string& device);
  kvc_client* client() const { return client_.get(); }
  kvc_device* device() const { return device_.get(); }

  Result<Weights> Attach() const;
  // Every byte of every tensor, copied off the device, is what the model's files have.
  Status CheckWeights(const kvc_weights* weights, const DeviceModel& model) const;

  // Pages written in the device's memory and published out of it, and looked up there.
  Status Publish(const kvc_space* space, std::span<const kvc_key> keys) const;
  // All are found on the device, with their bytes.
  Status CheckPages(const kvc_space* space, std::span<const kvc_key> keys) const;

 private:
  Status Read(const void* from, std::span<uint8_t> to) const;
  Status Write(std::span<const uint8_t> from, void* to) const;

  Client client_;
  OpenedDevice device_;
  std::unique_ptr<GpuProbe> probe_;  // The addresses are libkvclient's: no Gpu of ours knows them.
};

}  // namespace terrace::bench
