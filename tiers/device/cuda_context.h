// What the CUDA implementation keeps of the driver's: a context that may die, and handles that end
// themselves.
//
// Thread safety: CudaContext all of it; handles are shared, and their last user ends them.
#pragma once

#include <cuda.h>

#include <atomic>
#include <cstddef>
#include <memory>
#include <span>

#include "base/mutex.h"
#include "base/status.h"
#include "tiers/device/cuda_driver.h"

namespace terrace {

class CudaContext {
 public:
  // The device's primary context.
  static Result<std::shared_ptr<CudaContext>> Retain(std::shared_ptr<const CudaDriver> driver,
                                                     CUdevice device);
  ~CudaContext();
  CudaContext(const CudaContext&) = delete;
  CudaContext& operator=(const CudaContext&) = delete;

  const CudaDriver& driver() const { return *driver_; }
  CUdevice device() const { return device_; }
  // Makes it current for this thread. Once it is dead: why.
  Status Enter() EXCLUDES(mu_);
  // CudaDriver::Tell. The context dies of `stale` and `unavailable`.
  Status Tell(const char* call, CUresult result) EXCLUDES(mu_);

 private:
  CudaContext(std::shared_ptr<const CudaDriver> driver, CUdevice device, CUcontext context)
      : driver_(std::move(driver)), device_(device), context_(context) {}

  const std::shared_ptr<const CudaDriver> driver_;
  const CUdevice device_;
  const CUcontext context_;
  // Set with release after why_dead_ is there, and never reset.
  std::atomic<bool> dead_ = false;
  Mutex mu_;
  Status why_dead_ GUARDED_BY(mu_);
};

class CudaStream {
 public:
  static Result<std::shared_ptr<CudaStream>> Create(std::shared_ptr<CudaContext> context);
  ~CudaStream();
  CudaStream(const CudaStream&) = delete;
  CudaStream& operator=(const CudaStream&) = delete;
  CUstream get() const { return stream_; }

 private:
  CudaStream(std::shared_ptr<CudaContext> context, CUstream stream)
      : context_(std::move(context)), stream_(stream) {}
  const std::shared_ptr<CudaContext> context_;
  const CUstream stream_;
};

class CudaEvent {
 public:
  static Result<std::shared_ptr<CudaEvent>> Create(std::shared_ptr<CudaContext> context);
  ~CudaEvent();
  CudaEvent(const CudaEvent&) = delete;
  CudaEvent& operator=(const CudaEvent&) = delete;
  CUevent get() const { return event_; }

 private:
  CudaEvent(std::shared_ptr<CudaContext> context, CUevent event)
      : context_(std::move(context)), event_(event) {}
  const std::shared_ptr<CudaContext> context_;
  const CUevent event_;
};

// The kernels of kernels/paged_copy.cu, loaded for the context's device.
class CudaKernels {
 public:
  static Result<std::unique_ptr<CudaKernels>> Load(std::shared_ptr<CudaContext> context,
                                                   std::span<const std::byte> fatbin);
  ~CudaKernels();
  CudaKernels(const CudaKernels&) = delete;
  CudaKernels& operator=(const CudaKernels&) = delete;
  CUfunction gather() const { return gather_; }
  CUfunction scatter() const { return scatter_; }

 private:
  CudaKernels(std::shared_ptr<CudaContext> context, CUmodule module)
      : context_(std::move(context)), module_(module) {}
  const std::shared_ptr<CudaContext> context_;
  const CUmodule module_;
  CUfunction gather_ = nullptr;
  CUfunction scatter_ = nullptr;
};

}  // namespace terrace
