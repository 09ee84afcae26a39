#include "tiers/device/cuda_driver.h"

#include <dlfcn.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

namespace terrace {
namespace {

constexpr int kOldestDriver = 12000;  // The first with cuGetProcAddress as it is since.
constexpr int kBatch13000 = 13000;
constexpr const char* kDeviceFiles[] = {"/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia0"};

using GetProcAddress = CUresult (*)(const char* name, void** function, int version,
                                    cuuint64_t flags, CUdriverProcAddressQueryResult* found);

Code CodeOf(CUresult result) {
  switch (result) {
    case CUDA_ERROR_OUT_OF_MEMORY:
      return Code::kExhausted;
    case CUDA_ERROR_INVALID_VALUE:
    case CUDA_ERROR_INVALID_HANDLE:
    case CUDA_ERROR_INVALID_DEVICE:
    case CUDA_ERROR_ALREADY_MAPPED:
    case CUDA_ERROR_NOT_MAPPED:
    case CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED:
    case CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED:
      return Code::kInvalidArgument;
    case CUDA_ERROR_NOT_PERMITTED:
      return Code::kPermissionDenied;
    case CUDA_ERROR_NOT_SUPPORTED:
    case CUDA_ERROR_STUB_LIBRARY:
    case CUDA_ERROR_CALL_REQUIRES_NEWER_DRIVER:
    case CUDA_ERROR_SYSTEM_DRIVER_MISMATCH:
    case CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE:
    case CUDA_ERROR_NO_BINARY_FOR_GPU:
    case CUDA_ERROR_INVALID_PTX:
    case CUDA_ERROR_UNSUPPORTED_PTX_VERSION:
    case CUDA_ERROR_JIT_COMPILER_NOT_FOUND:
    case CUDA_ERROR_JIT_COMPILATION_DISABLED:
      return Code::kMismatch;
    // The device refuses contexts, is not ready, or its shared server is at its end.
    case CUDA_ERROR_NO_DEVICE:
    case CUDA_ERROR_DEVICE_UNAVAILABLE:
    case CUDA_ERROR_DEVICE_NOT_LICENSED:
    case CUDA_ERROR_SYSTEM_NOT_READY:
    case CUDA_ERROR_MPS_CONNECTION_FAILED:
    case CUDA_ERROR_MPS_RPC_FAILURE:
    case CUDA_ERROR_MPS_SERVER_NOT_READY:
    case CUDA_ERROR_MPS_MAX_CLIENTS_REACHED:
    case CUDA_ERROR_MPS_MAX_CONNECTIONS_REACHED:
    case CUDA_ERROR_MPS_CLIENT_TERMINATED:
      return Code::kUnavailable;
    // cuda.h: "leaves the process in an inconsistent state", or the context is no more. An unknown
    // error is taken for one of them: going on may be wrong, and a new context never is.
    case CUDA_ERROR_ECC_UNCORRECTABLE:
    case CUDA_ERROR_NVLINK_UNCORRECTABLE:
    case CUDA_ERROR_CONTAINED:
    case CUDA_ERROR_ILLEGAL_ADDRESS:
    case CUDA_ERROR_LAUNCH_TIMEOUT:
    case CUDA_ERROR_ASSERT:
    case CUDA_ERROR_HARDWARE_STACK_ERROR:
    case CUDA_ERROR_ILLEGAL_INSTRUCTION:
    case CUDA_ERROR_MISALIGNED_ADDRESS:
    case CUDA_ERROR_INVALID_ADDRESS_SPACE:
    case CUDA_ERROR_INVALID_PC:
    case CUDA_ERROR_LAUNCH_FAILED:
    case CUDA_ERROR_EXTERNAL_DEVICE:
    case CUDA_ERROR_DEINITIALIZED:
    case CUDA_ERROR_CONTEXT_IS_DESTROYED:
    case CUDA_ERROR_UNKNOWN:
      return Code::kStale;
    default:
      return Code::kInternal;
  }
}

// Ok where every device file that is there may be opened.
Status MayOpenDevices() {
  for (const char* file : kDeviceFiles) {
    if (::access(file, F_OK) == 0 && ::access(file, R_OK | W_OK) != 0) {
      return {Code::kPermissionDenied,
              std::string("the CUDA driver finds no GPU: ") + file + ": " + std::strerror(errno)};
    }
  }
  return {};
}

std::string VersionText(int version) {
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

}  // namespace

Result<std::shared_ptr<const CudaDriver>> CudaDriver::Load(const std::string& library) {
  void* opened = ::dlopen(library.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (opened == nullptr) {
    return Status(Code::kNotFound, std::string("no CUDA driver: ") + ::dlerror());
  }
  const auto driver = std::make_shared<CudaDriver>();
  using GetVersion = CUresult (*)(int*);
  const auto get_version = reinterpret_cast<GetVersion>(::dlsym(opened, "cuDriverGetVersion"));
  const auto get = reinterpret_cast<GetProcAddress>(::dlsym(opened, "cuGetProcAddress_v2"));
  if (get_version == nullptr || get_version(&driver->version_) != CUDA_SUCCESS || get == nullptr) {
    return Status(Code::kMismatch,
                  library + " is not a CUDA driver of " + VersionText(kOldestDriver) + " or later");
  }
  const auto find = [get](const char* name, int version) {
    void* function = nullptr;
    CUdriverProcAddressQueryResult found = CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND;
    const CUresult result = get(name, &function, version, CU_GET_PROC_ADDRESS_DEFAULT, &found);
    const bool there = result == CUDA_SUCCESS && found == CU_GET_PROC_ADDRESS_SUCCESS;
    return there ? function : nullptr;
  };
#define TERRACE_CUDA_FIND(name, introduced)                                                 \
  driver->name = reinterpret_cast<decltype(driver->name)>(find(#name, introduced));         \
  if (driver->name == nullptr) {                                                            \
    return Status(Code::kMismatch, "the CUDA driver (" + VersionText(driver->version_) +    \
                                       ") has no " #name " of " + VersionText(introduced)); \
  }
  TERRACE_CUDA_FUNCTIONS(TERRACE_CUDA_FIND)
#undef TERRACE_CUDA_FIND
  // Not every driver before 13.0 refuses to be asked for what is newer than itself, and the one
  // that answers gives the signature that it has.
  if (driver->version_ >= kBatch13000) {
    driver->batch_13000_ = reinterpret_cast<Batch13000>(find("cuMemcpyBatchAsync", kBatch13000));
  }
  if (driver->batch_13000_ == nullptr) {
    driver->batch_12080_ = reinterpret_cast<Batch12080>(find("cuMemcpyBatchAsync", 12080));
  }

  const CUresult result = driver->cuInit(0);
  // What it says of a file that it may not open depends on the file: "no device", or "unknown".
  if (result != CUDA_SUCCESS) RETURN_IF_ERROR(MayOpenDevices());
  if (result == CUDA_ERROR_NO_DEVICE) {
    return Status(Code::kNotFound, "the CUDA driver finds no GPU");
  }
  Status initialised = driver->Tell("cuInit", result);
  // There is no context yet that could be dead.
  if (initialised.code() == Code::kStale) {
    return Status(Code::kUnavailable, initialised.message());
  }
  RETURN_IF_ERROR(std::move(initialised));
  return std::shared_ptr<const CudaDriver>(driver);
}

CUresult CudaDriver::CopyBatch(CUdeviceptr* dsts, CUdeviceptr* srcs, size_t* sizes, size_t count,
                               CUmemcpyAttributes attributes, CUstream stream) const {
  size_t from_first = 0;
  if (batch_13000_ != nullptr) {
    return batch_13000_(dsts, srcs, sizes, count, &attributes, &from_first, 1, stream);
  }
  size_t failed = 0;
  return batch_12080_(dsts, srcs, sizes, count, &attributes, &from_first, 1, &failed, stream);
}

Status CudaDriver::Tell(const char* call, CUresult result) const {
  if (result == CUDA_SUCCESS) return {};
  const char* name = nullptr;
  const char* words = nullptr;
  (void)cuGetErrorName(result, &name);
  (void)cuGetErrorString(result, &words);
  std::string message = std::string(call) + ": ";
  message += name != nullptr ? name : "error " + std::to_string(static_cast<int>(result));
  if (words != nullptr) message += std::string(" (") + words + ")";
  return {CodeOf(result), std::move(message)};
}

}  // namespace terrace
