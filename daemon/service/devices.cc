#include "daemon/service/devices.h"

#include <unistd.h>

#include <algorithm>
#include <climits>
#include <string_view>
#include <utility>

#include "daemon/service/size_text.h"

namespace terrace {

namespace {

constexpr MonotonicNs kListWithin = 60 * kNsPerSecond;  // A driver that wakes its GPUs is slow.
constexpr MonotonicNs kListWithinAuto = 10 * kNsPerSecond;
constexpr uint64_t kSlabBytes = 64u << 20;
constexpr uint64_t kLeastSlabBytes = 1u << 20;
constexpr uint64_t kHostDeviceBytes = uint64_t{1} << 30;  // Where the capacity is a share.
constexpr uint64_t kHostGranularity = 2u << 20;           // Of host_gpu.h.

uint64_t RoundedUp(uint64_t bytes, uint64_t unit) {
  return (bytes + unit - 1) / unit * unit;
}

Result<DeviceOptions> OptionsOf(const DeviceConfig& device, uint64_t total_bytes) {
  DeviceOptions options;
  options.capacity_bytes =
      device.capacity.bytes != 0
          ? device.capacity.bytes
          : static_cast<uint64_t>(static_cast<double>(total_bytes) * device.capacity.fraction);
  if (options.capacity_bytes > total_bytes) {
    return Status(Code::kInvalidArgument, "device.capacity: " + device.uuid + " has " +
                                              SizeText(total_bytes) + ", not " +
                                              SizeText(options.capacity_bytes));
  }
  const uint64_t floors = device.weights_floor_bytes + device.pages_floor_bytes;
  if (floors > options.capacity_bytes) {
    return Status(Code::kInvalidArgument,
                  "device.weights_floor: " + device.uuid + " has floors of " + SizeText(floors) +
                      " together, its capacity is " + SizeText(options.capacity_bytes));
  }
  options.slab_bytes = device.slab_bytes != 0 ? device.slab_bytes : kSlabBytes;
  options.weights_floor_bytes = device.weights_floor_bytes;
  options.pages_floor_bytes = device.pages_floor_bytes;
  options.unmap_deadline_ms = device.unmap_deadline_ms;
  options.tenants = device.tenants;
  return options;
}

Result<ChosenDevices> ChooseOfHost(const Config& config) {
  std::vector<DeviceConfig> tables = config.devices;
  if (tables.empty()) tables.push_back({.uuid = "host:0"});
  ChosenDevices chosen;
  for (const DeviceConfig& table : tables) {
    const uint64_t total = table.capacity.bytes != 0
                               ? RoundedUp(table.capacity.bytes, kHostGranularity)
                               : kHostDeviceBytes;
    ChosenDevice device;
    device.kind = MoverKind::kHost;
    device.uuid = HostGpuUuid(*HostDeviceOf(table.uuid));  // CheckConfig let it by.
    device.host_bytes = total;
    ASSIGN_OR_RETURN(device.options, OptionsOf(table, total));
    device.options.kind = "host";
    // Room for several, in little memory.
    if (table.slab_bytes == 0) {
      const uint64_t eighth = device.options.capacity_bytes / 8 / 4096 * 4096;
      device.options.slab_bytes = std::clamp(eighth, kLeastSlabBytes, kSlabBytes);
    }
    chosen.devices.push_back(device);
  }
  return chosen;
}

Result<ChosenDevices> ChooseOf(const std::vector<ListedGpu>& gpus, const Config& config) {
  std::vector<DeviceConfig> tables = config.devices;
  if (tables.empty()) {
    for (const ListedGpu& gpu : gpus)
      tables.push_back({.uuid = gpu.uuid.Text()});
  }
  ChosenDevices chosen;
  const auto left_out = [&chosen](const std::string& why) {
    chosen.why += (chosen.why.empty() ? "" : "; ") + why;
    chosen.wanted = true;
  };
  if (tables.size() > kMaxDevices) {
    left_out(std::to_string(tables.size()) + " devices were found, the first " +
             std::to_string(kMaxDevices) + " are used");
    tables.resize(kMaxDevices);
  }
  for (const DeviceConfig& table : tables) {
    const std::optional<GpuUuid> uuid = ParseGpuUuid(table.uuid);
    const auto gpu = std::find_if(gpus.begin(), gpus.end(),
                                  [&](const ListedGpu& each) { return each.uuid == uuid; });
    Result<DeviceOptions> options =
        gpu == gpus.end() ? Status(Code::kNotFound, "device.uuid: the driver has no " + table.uuid)
                          : OptionsOf(table, gpu->total_bytes);
    if (!options) {
      if (config.device == DeviceChoice::kCuda) return std::move(options).error();
      left_out(options.error().message());
      continue;
    }
    ChosenDevice device;
    device.uuid = gpu->uuid;
    device.options = *std::move(options);
    chosen.devices.push_back(device);
  }
  return chosen;
}

}  // namespace

Result<ChosenDevices> ChooseDevices(const Config& config, const GpuList& list) {
  if (config.device == DeviceChoice::kNone) {
    return ChosenDevices{.devices = {}, .why = "devices.device is \"none\""};
  }
  if (config.device == DeviceChoice::kHost) return ChooseOfHost(config);
  const Result<std::vector<ListedGpu>> gpus =
      list(config.device == DeviceChoice::kCuda ? kListWithin : kListWithinAuto);
  const Status missing = !gpus           ? gpus.error()
                         : gpus->empty() ? Status(Code::kNotFound, "the CUDA driver finds no GPU")
                                         : Status();
  if (missing.ok()) return ChooseOf(*gpus, config);
  if (config.device == DeviceChoice::kCuda) {
    return Status(missing).WithContext("devices.device is \"cuda\"");
  }
  return ChosenDevices{.devices = {},
                       .why = missing.message(),
                       .wanted = !config.devices.empty() || missing.code() != Code::kNotFound};
}

std::string_view KindName(const ChosenDevices& chosen) {
  if (chosen.devices.empty()) return "none";
  return chosen.devices.front().kind == MoverKind::kCuda ? "cuda" : "host";
}

std::string MoverPath(const Config& config) {
  if (!config.mover.empty()) return config.mover;
  std::string path(PATH_MAX, '\0');
  const ssize_t bytes = ::readlink("/proc/self/exe", path.data(), path.size());
  path.resize(bytes > 0 ? static_cast<size_t>(bytes) : 0);
  return path.substr(0, path.rfind('/') + 1) + "terrace-mover";
}

}  // namespace terrace
