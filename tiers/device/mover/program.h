// The program of a mover, but for where its GPUs come from.
//
// With "--list" alone it prints the devices that it finds (listing.h), makes no context, and ends.
// Otherwise it has a socket to the daemon from its start, takes memory by descriptors that come
// over it, and opens nothing itself but what the driver does. It ends when the daemon has closed
// its end, and is killed when the thread that started it ends.
#pragma once

#include <functional>
#include <memory>
#include <span>

#include "base/status.h"
#include "tiers/device/gpu.h"
#include "tiers/device/mover/arguments.h"

namespace terrace {

// How it ends. What kept it from serving is told to the daemon too, and to standard error.
enum class MoverExit : int {
  kOk = 0,         // The daemon closed its end, or the devices are listed.
  kFailed = 1,     // Any other error.
  kArguments = 2,  // The command line is wrong.
  kMissing = 3,    // No driver, or no such device.
  kRefused = 4,    // Device files or driver refuse this process.
  kUnfit = 5,      // This build, driver or device cannot do it.
  kBroken = 6,     // The context died, or the device is gone.
};

// Returns what main returns.
int RunMover(std::span<char* const> arguments,
             const std::function<Result<std::unique_ptr<Gpus>>(const MoverArguments&)>& open);

// As the kind says.
Result<std::unique_ptr<Gpus>> OpenGpusOfMover(const MoverArguments& arguments);

}  // namespace terrace
