// By name and by hand: toolkits come without nvml.h.
#include <dlfcn.h>

#include <string>

#include "tiers/device/gpu_probe.h"

namespace terrace {
namespace {

// nvml.h: nvmlMemory_t, and 0 for success.
struct NvmlMemory {
  unsigned long long total = 0;
  unsigned long long free = 0;
  unsigned long long used = 0;
};
using Init = int (*)();
using HandleByUuid = int (*)(const char* uuid, void** device);
using MemoryInfo = int (*)(void* device, NvmlMemory* memory);

Status Said(const char* call, int result) {
  return {Code::kInternal, std::string(call) + ": " + std::to_string(result)};
}

}  // namespace

Result<uint64_t> NvmlFreeBytes(const GpuUuid& uuid) {
  // Kept: it is asked again and again, and a driver's library does not stand being closed.
  static void* const library = ::dlopen("libnvidia-ml.so.1", RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) return Status(Code::kNotFound, "no libnvidia-ml.so.1");
  const auto init = reinterpret_cast<Init>(::dlsym(library, "nvmlInit_v2"));
  const auto find = reinterpret_cast<HandleByUuid>(::dlsym(library, "nvmlDeviceGetHandleByUUID"));
  const auto info = reinterpret_cast<MemoryInfo>(::dlsym(library, "nvmlDeviceGetMemoryInfo"));
  if (init == nullptr || find == nullptr || info == nullptr) {
    return Status(Code::kMismatch, "libnvidia-ml.so.1 has not what is asked for");
  }
  static const int initialised = init();
  if (initialised != 0) return Said("nvmlInit_v2", initialised);
  void* device = nullptr;
  if (const int result = find(uuid.Text().c_str(), &device); result != 0) {
    return Status(Code::kNotFound, Said("nvmlDeviceGetHandleByUUID", result).message());
  }
  NvmlMemory memory;
  if (const int result = info(device, &memory); result != 0) {
    return Said("nvmlDeviceGetMemoryInfo", result);
  }
  return uint64_t{memory.free};
}

}  // namespace terrace
