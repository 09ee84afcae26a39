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
  bool wanted = false;  // Somebody is to look at `why`: it is not a host without GPUs.
};

// Asked for GPUs where they are wanted (ListGpus): the daemon starts when it has answered, or the
// time is over.
using GpuList = std::function<Result<std::vector<ListedGpu>>(MonotonicNs within)>;

// With "cuda" the errors are those of `list`, and `not_found` for a [[device]] that is not there.
// `invalid_argument`: the configuration is wrong, for a table wants more than its device has. With
// "auto" the rest is used. "auto" also waits less: who runs engines on GPUs says "cuda".
Result<ChosenDevices> ChooseDevices(const Config& config, const GpuList& list);

// "cuda" or "host", as all are; "none".
std::string_view KindName(const ChosenDevices& chosen);

// devices.mover, or terrace-mover beside the program of this process.
std::string MoverPath(const Config& config);

// What a device costs the daemon of RLIMIT_NOFILE: the socket and pidfd of its mover, each slab and
// block of the device, and each host arena that its movers map.
inline constexpr uint64_t kDescriptorsOfDevice = 2048;

}  // namespace terrace
