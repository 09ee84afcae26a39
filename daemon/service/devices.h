// Devices: which GPUs the daemon uses, and how much of each, by its configuration and what the host
// has. Decides only; the daemon starts what is chosen.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "daemon/engine/engine_options.h"
#include "daemon/service/config.h"
#include "tiers/device/mover/arguments.h"
#include "tiers/device/mover/listing.h"

namespace terrace {

struct ChosenDevice {
  MoverKind kind = MoverKind::kCuda;
  GpuUuid uuid;
  uint64_t host_bytes = 0;  // Of the memory that stands for a device of kind kHost.
  DeviceOptions options;
};

struct ChosenDevices {
  std::vector<ChosenDevice> devices;  // In the order of the tables, else of the driver.
  std::string why;                    // A sentence: why there is none, or less than was named.
};

// `list` is asked for GPUs where they are wanted (ListGpus). With "cuda" the errors are its own,
// and `not_found` for a [[device]] that is not there. `invalid_argument`: a table wants more than
// its device has.
Result<ChosenDevices> ChooseDevices(const Config& config,
                                    const std::function<Result<std::vector<ListedGpu>>()>& list);

// "cuda" or "host", as all are; "none".
std::string_view KindName(const ChosenDevices& chosen);

// devices.mover, or terrace-mover beside the program of this process.
std::string MoverPath(const Config& config);

// What a device costs the daemon of RLIMIT_NOFILE: the socket and pidfd of its mover, each slab and
// block of the device, and each host arena that its movers map.
inline constexpr uint64_t kDescriptorsOfDevice = 2048;

}  // namespace terrace
