// The CUDA driver: libcuda opened at run time, its functions by name and version, and its errors in
// our words.
//
// A function is asked for by the version of CUDA in which the signature came that cuda.h has for
// it, so that an older or a newer driver gives that one or none. cuMemcpyBatchAsync has two,
// of 12.8 and of 13.0; whichever the driver has is called by its own.
//
// Thread safety: constant once loaded.
#pragma once

#include <cuda.h>

#include <cstddef>
#include <memory>
#include <string>

#include "base/status.h"

namespace terrace {

// Name, and the version of its signature.
#define TERRACE_CUDA_FUNCTIONS(X)          \
  X(cuInit, 2000)                          \
  X(cuGetErrorName, 6000)                  \
  X(cuGetErrorString, 6000)                \
  X(cuDeviceGetCount, 2000)                \
  X(cuDeviceGet, 2000)                     \
  X(cuDeviceGetUuid, 11040)                \
  X(cuDeviceGetName, 2000)                 \
  X(cuDeviceGetAttribute, 2000)            \
  X(cuDeviceTotalMem, 3020)                \
  X(cuDevicePrimaryCtxRetain, 7000)        \
  X(cuDevicePrimaryCtxRelease, 11000)      \
  X(cuCtxSetCurrent, 4000)                 \
  X(cuMemGetInfo, 3020)                    \
  X(cuMemGetAllocationGranularity, 10020)  \
  X(cuMemCreate, 10020)                    \
  X(cuMemRelease, 10020)                   \
  X(cuMemExportToShareableHandle, 10020)   \
  X(cuMemImportFromShareableHandle, 10020) \
  X(cuMemRetainAllocationHandle, 11000)    \
  X(cuMemAddressReserve, 10020)            \
  X(cuMemAddressFree, 10020)               \
  X(cuMemMap, 10020)                       \
  X(cuMemUnmap, 10020)                     \
  X(cuMemSetAccess, 10020)                 \
  X(cuMemAlloc, 3020)                      \
  X(cuMemFree, 3020)                       \
  X(cuMemGetAddressRange, 3020)            \
  X(cuIpcGetMemHandle, 4010)               \
  X(cuIpcOpenMemHandle, 11000)             \
  X(cuIpcCloseMemHandle, 4010)             \
  X(cuIpcGetEventHandle, 4010)             \
  X(cuIpcOpenEventHandle, 4010)            \
  X(cuMemHostRegister, 6050)               \
  X(cuMemHostUnregister, 4000)             \
  X(cuStreamCreate, 2000)                  \
  X(cuStreamDestroy, 4000)                 \
  X(cuStreamSynchronize, 2000)             \
  X(cuStreamWaitEvent, 3020)               \
  X(cuEventCreate, 2000)                   \
  X(cuEventDestroy, 4000)                  \
  X(cuEventRecord, 2000)                   \
  X(cuEventQuery, 2000)                    \
  X(cuLaunchHostFunc, 10000)               \
  X(cuLaunchKernel, 4000)                  \
  X(cuModuleLoadData, 2000)                \
  X(cuModuleUnload, 2000)                  \
  X(cuModuleGetFunction, 2000)             \
  X(cuMemcpyAsync, 4000)                   \
  X(cuMemsetD8Async, 3020)

class CudaDriver {
 public:
  // `library` as dlopen takes it. Initialises the driver, and makes no context. The library stays
  // open as long as the process lives, for drivers do not stand being closed.
  static Result<std::shared_ptr<const CudaDriver>> Load(const std::string& library);

#define TERRACE_CUDA_MEMBER(name, version) decltype(&::name) name = nullptr;
  TERRACE_CUDA_FUNCTIONS(TERRACE_CUDA_MEMBER)
#undef TERRACE_CUDA_MEMBER

  int version() const { return version_; }  // 13000 is CUDA 13.0.

  // cuMemcpyBatchAsync, with one set of attributes for all copies.
  bool has_batches() const { return batch_12080_ != nullptr || batch_13000_ != nullptr; }
  CUresult CopyBatch(CUdeviceptr* dsts, CUdeviceptr* srcs, size_t* sizes, size_t count,
                     CUmemcpyAttributes attributes, CUstream stream) const;

  // What `call` answered: Ok, or the code that gpu.h gives it and the driver's words.
  Status Tell(const char* call, CUresult result) const;

 private:
  using Batch12080 = CUresult (*)(CUdeviceptr*, CUdeviceptr*, size_t*, size_t, CUmemcpyAttributes*,
                                  size_t*, size_t, size_t*, CUstream);
  using Batch13000 = CUresult (*)(CUdeviceptr*, CUdeviceptr*, size_t*, size_t, CUmemcpyAttributes*,
                                  size_t*, size_t, CUstream);

  int version_ = 0;
  Batch12080 batch_12080_ = nullptr;
  Batch13000 batch_13000_ = nullptr;
};

}  // namespace terrace
