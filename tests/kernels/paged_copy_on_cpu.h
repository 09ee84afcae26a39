// The kernels of paged_copy.cu themselves, compiled for the processor and run thread after thread:
// what they compute can be tested where there is no GPU, though not how threads share the memory.
#pragma once

#include <cstdint>
#include <string_view>

#include "kernels/paged_copy_launch.h"

namespace terrace {

struct LaunchShape {
  uint32_t threads = 0;   // Of a thread block.
  uint32_t tiles = 0;     // x
  uint32_t segments = 0;  // y
  uint32_t blocks = 0;    // z
};

// By the kernel's name in the module; false where there is none of that name.
bool RunPagedCopyOnCpu(std::string_view kernel, const LaunchShape& shape,
                       const PagedCopyLaunch& launch);

}  // namespace terrace
