// The implementations of Gpus that the conformance suite runs over, by name, in this process and in
// the helper process that imports what this one exports.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "tiers/device/gpu.h"

namespace terrace {

// "Host", "Faulty" (one without rules, over the host's), "CudaCalls" (the CUDA implementation over
// a driver that is none) and "Cuda" (over this machine's).
std::vector<std::string> ImplementationNames();

// What the devices have, where that can be chosen.
inline constexpr uint64_t kTestDeviceBytes = uint64_t{256} << 20;
// Small, so that registrations of several pieces cost little.
inline constexpr uint64_t kTestRegistrationBytes = uint64_t{1} << 20;

// An error: it is not there, and why.
Result<std::unique_ptr<Gpus>> OpenImplementation(std::string_view name);

// Whether programs can touch device addresses themselves.
bool IsHostAddressable(std::string_view name);

}  // namespace terrace
