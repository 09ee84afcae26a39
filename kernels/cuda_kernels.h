// The kernels for GPUs, as they are embedded in the program: a fatbin of the driver API.
#pragma once

#include <cstddef>
#include <span>

namespace terrace {

// That of paged_copy.cu; empty where the build had no nvcc. It lives as long as the program.
std::span<const std::byte> PagedCopyFatbin();

}  // namespace terrace
