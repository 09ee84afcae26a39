// The command line of terrace-mover, for who writes it and who reads it.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/status.h"
#include "tiers/device/gpu.h"
#include "tiers/device/mover/mover.h"

namespace terrace {

enum class MoverKind : uint8_t { kCuda, kHost };

struct MoverArguments {
  int socket = -1;
  MoverKind kind = MoverKind::kCuda;
  GpuUuid device;
  uint64_t host_bytes = uint64_t{1} << 30;  // Of a device of kind kHost.
  MoverOptions options;
};

// Of "--socket=3 --kind=cuda --device=GPU-...", and the limits, behind the program's name.
// `invalid_argument` names the argument.
Result<MoverArguments> ParseMoverArguments(std::span<char* const> arguments);
// The same, for who starts one.
std::vector<std::string> MoverCommand(const std::string& program, const MoverArguments& arguments);

}  // namespace terrace
