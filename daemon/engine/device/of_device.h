// OfDevice: what the engine has of one GPU, joined from its parts: the budget and its arenas, and
// the pages and weights in them.
#pragma once

#include <memory>

#include "daemon/engine/device/device_arenas.h"
#include "daemon/engine/device/device_fetch.h"
#include "daemon/engine/device/device_weights.h"
#include "daemon/engine/device/item_numbers.h"
#include "daemon/engine/device/pages_on_device.h"
#include "daemon/engine/device/pools.h"
#include "daemon/engine/engine_options.h"
#include "daemon/policy/policy.h"

namespace terrace {

struct OfDevice {
  OfDevice(DevicePart part, uint32_t device, const Clock& clock, DeviceArenaNumbers& numbers)
      : policy(std::move(part.policy)),
        arenas(part.options,
               {.device = device, .tier = part.tier, .clock = &clock, .numbers = &numbers}) {}

  const std::unique_ptr<Policy> policy;
  ItemNumbers items;  // Of the policy.
  DeviceArenas arenas;
  std::unique_ptr<PagesOnDevice> pages;
  std::unique_ptr<DeviceFetch> fetch;
  std::unique_ptr<Pools> pools;
  std::unique_ptr<DeviceWeights> weights;
};

}  // namespace terrace
