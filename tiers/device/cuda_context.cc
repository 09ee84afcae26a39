#include "tiers/device/cuda_context.h"

#include <utility>

#include "kernels/paged_copy_launch.h"

namespace terrace {

Result<std::shared_ptr<CudaContext>> CudaContext::Retain(std::shared_ptr<const CudaDriver> driver,
                                                         CUdevice device) {
  CUcontext context = nullptr;
  RETURN_IF_ERROR(
      driver->Tell("cuDevicePrimaryCtxRetain", driver->cuDevicePrimaryCtxRetain(&context, device)));
  return std::shared_ptr<CudaContext>(new CudaContext(std::move(driver), device, context));
}

CudaContext::~CudaContext() {
  (void)driver_->cuDevicePrimaryCtxRelease(device_);
}

Status CudaContext::Enter() {
  if (dead_.load(std::memory_order_acquire)) {
    MutexLock lock(mu_);
    return why_dead_;
  }
  return Tell("cuCtxSetCurrent", driver_->cuCtxSetCurrent(context_));
}

Status CudaContext::Tell(const char* call, CUresult result) {
  Status status = driver_->Tell(call, result);
  if (status.code() == Code::kStale || status.code() == Code::kUnavailable) {
    MutexLock lock(mu_);
    if (why_dead_.ok()) why_dead_ = status;
    dead_.store(true, std::memory_order_release);
  }
  return status;
}

Result<std::shared_ptr<CudaStream>> CudaStream::Create(std::shared_ptr<CudaContext> context) {
  RETURN_IF_ERROR(context->Enter());
  CUstream stream = nullptr;
  // Not ordered with the legacy default stream, which nobody here uses.
  RETURN_IF_ERROR(context->Tell("cuStreamCreate",
                                context->driver().cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING)));
  return std::shared_ptr<CudaStream>(new CudaStream(std::move(context), stream));
}

CudaStream::~CudaStream() {
  (void)context_->Enter();
  (void)context_->driver().cuStreamDestroy(stream_);
}

Result<std::shared_ptr<CudaEvent>> CudaEvent::Create(std::shared_ptr<CudaContext> context) {
  RETURN_IF_ERROR(context->Enter());
  CUevent event = nullptr;
  RETURN_IF_ERROR(context->Tell("cuEventCreate",
                                context->driver().cuEventCreate(&event, CU_EVENT_DISABLE_TIMING)));
  return std::shared_ptr<CudaEvent>(new CudaEvent(std::move(context), event));
}

CudaEvent::~CudaEvent() {
  (void)context_->Enter();
  (void)context_->driver().cuEventDestroy(event_);
}

Result<std::unique_ptr<CudaKernels>> CudaKernels::Load(std::shared_ptr<CudaContext> context,
                                                       std::span<const std::byte> fatbin) {
  RETURN_IF_ERROR(context->Enter());
  const CudaDriver& driver = context->driver();
  CUmodule module = nullptr;
  RETURN_IF_ERROR(
      context->Tell("cuModuleLoadData", driver.cuModuleLoadData(&module, fatbin.data())));
  std::unique_ptr<CudaKernels> kernels(new CudaKernels(context, module));
  RETURN_IF_ERROR(context->Tell(
      "cuModuleGetFunction", driver.cuModuleGetFunction(&kernels->gather_, module, kGatherKernel)));
  RETURN_IF_ERROR(
      context->Tell("cuModuleGetFunction",
                    driver.cuModuleGetFunction(&kernels->scatter_, module, kScatterKernel)));
  return kernels;
}

CudaKernels::~CudaKernels() {
  (void)context_->Enter();
  (void)context_->driver().cuModuleUnload(module_);
}

}  // namespace terrace
