#include <cuda.h>
#include <fcntl.h>

#include <cstring>
#include <utility>

#include "base/unique_fd.h"
#include "kernels/paged_copy_launch.h"
#include "tiers/device/cuda_context.h"
#include "tiers/device/cuda_device.h"
#include "tiers/device/gpu_probe.h"

namespace terrace {
namespace {

// What the driver gave, given back at the end of a question whatever came of it.
class HostNode {
 public:
  HostNode(CudaContext& context, uint64_t bytes) : context_(context), bytes_(bytes) {}
  ~HostNode() {
    if (mapped_) (void)driver().cuMemUnmap(at_, bytes_);
    if (at_ != 0) (void)driver().cuMemAddressFree(at_, bytes_);
    if (imported_ != 0) (void)driver().cuMemRelease(imported_);
    if (made_ != 0) (void)driver().cuMemRelease(made_);
  }

  Status Run() {
    CUmemAllocationProp properties{};
    properties.type = CU_MEM_ALLOCATION_TYPE_PINNED;
    properties.requestedHandleTypes = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR;
    properties.location = {.type = CU_MEM_LOCATION_TYPE_HOST_NUMA, .id = 0};
    RETURN_IF_ERROR(
        Tell("cuMemCreate on the host", driver().cuMemCreate(&made_, bytes_, &properties, 0)));
    int fd = -1;
    RETURN_IF_ERROR(Tell("cuMemExportToShareableHandle",
                         driver().cuMemExportToShareableHandle(
                             &fd, made_, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0)));
    const UniqueFd exported(fd);
    RETURN_IF_ERROR(Tell("cuMemImportFromShareableHandle",
                         driver().cuMemImportFromShareableHandle(
                             &imported_, reinterpret_cast<void*>(static_cast<intptr_t>(fd)),
                             CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR)));
    RETURN_IF_ERROR(
        Tell("cuMemAddressReserve", driver().cuMemAddressReserve(&at_, bytes_, 0, 0, 0)));
    RETURN_IF_ERROR(Tell("cuMemMap", driver().cuMemMap(at_, bytes_, 0, imported_, 0)));
    mapped_ = true;
    CUmemAccessDesc access[2] = {};
    access[0].location = {.type = CU_MEM_LOCATION_TYPE_DEVICE, .id = context_.device()};
    access[1].location = {.type = CU_MEM_LOCATION_TYPE_HOST_NUMA, .id = 0};
    for (CUmemAccessDesc& who : access)
      who.flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
    return Tell("cuMemSetAccess", driver().cuMemSetAccess(at_, bytes_, access, 2));
  }

 private:
  const CudaDriver& driver() const { return context_.driver(); }
  Status Tell(const char* call, CUresult result) { return context_.Tell(call, result); }

  CudaContext& context_;
  const uint64_t bytes_;
  CUmemGenericAllocationHandle made_ = 0;
  CUmemGenericAllocationHandle imported_ = 0;
  CUdeviceptr at_ = 0;
  bool mapped_ = false;
};

class CudaProbe final : public GpuProbe {
 public:
  static Result<std::unique_ptr<GpuProbe>> Open(const GpuUuid& uuid,
                                                std::span<const std::byte> fatbin) {
    ASSIGN_OR_RETURN(const std::shared_ptr<const CudaDriver> driver,
                     CudaDriver::Load("libcuda.so.1"));
    int count = 0;
    RETURN_IF_ERROR(driver->Tell("cuDeviceGetCount", driver->cuDeviceGetCount(&count)));
    for (int i = 0; i < count; ++i) {
      CUdevice device = 0;
      CUuuid its{};
      RETURN_IF_ERROR(driver->Tell("cuDeviceGet", driver->cuDeviceGet(&device, i)));
      RETURN_IF_ERROR(driver->Tell("cuDeviceGetUuid", driver->cuDeviceGetUuid(&its, device)));
      if (std::memcmp(its.bytes, uuid.bytes.data(), uuid.bytes.size()) != 0) continue;
      ASSIGN_OR_RETURN(std::shared_ptr<CudaContext> context, CudaContext::Retain(driver, device));
      return std::unique_ptr<GpuProbe>(new CudaProbe(std::move(context), fatbin));
    }
    return Status(Code::kNotFound, "no GPU is " + uuid.Text());
  }
  ~CudaProbe() override {
    if (!context_->Enter().ok()) return;
    for (const CUevent event : events_)
      (void)driver_.cuEventDestroy(event);
  }

  Status Store(GpuAddress at, GpuAddress readable) override {
    ASSIGN_OR_RETURN(const std::shared_ptr<CudaStream> stream, CudaStream::Create(context_));
    ASSIGN_OR_RETURN(const std::unique_ptr<CudaKernels> kernels,
                     CudaKernels::Load(context_, kernels_));
    PagedCopyLaunch launch;
    launch.block_stride = kPagedAlignment;
    launch.segment_stride = kPagedAlignment;
    launch.bases[0] = readable;
    launch.blocks[0] = {.page = at, .block = 0, .bytes = kPagedAlignment};
    void* parameters[] = {&launch};
    RETURN_IF_ERROR(context_->Tell("cuLaunchKernel",
                                   driver_.cuLaunchKernel(kernels->gather(), 1, 1, 1, 32, 1, 1, 0,
                                                          stream->get(), parameters, nullptr)));
    return context_->Tell("cuStreamSynchronize", driver_.cuStreamSynchronize(stream->get()));
  }

  Status Copy(GpuAddress dst, GpuAddress src, uint64_t bytes) override {
    ASSIGN_OR_RETURN(const std::shared_ptr<CudaStream> stream, CudaStream::Create(context_));
    RETURN_IF_ERROR(
        context_->Tell("cuMemcpyAsync", driver_.cuMemcpyAsync(dst, src, bytes, stream->get())));
    return context_->Tell("cuStreamSynchronize", driver_.cuStreamSynchronize(stream->get()));
  }

  Status CreateWithoutContext(uint64_t bytes) override {
    const CUmemAllocationProp properties = SlabProperties(context_->device(), false);
    RETURN_IF_ERROR(context_->Tell("cuCtxSetCurrent", driver_.cuCtxSetCurrent(nullptr)));
    CUmemGenericAllocationHandle handle = 0;
    Status created =
        driver_.Tell("cuMemCreate", driver_.cuMemCreate(&handle, bytes, &properties, 0));
    if (created.ok()) created = driver_.Tell("cuMemRelease", driver_.cuMemRelease(handle));
    return created;
  }

  Status ExportHostMemory(uint64_t bytes) override {
    RETURN_IF_ERROR(context_->Enter());
    return HostNode(*context_, bytes).Run();
  }

  Result<IpcHandle> ExportEvent() override {
    ASSIGN_OR_RETURN(const std::shared_ptr<CudaStream> stream, CudaStream::Create(context_));
    CUevent event = nullptr;
    RETURN_IF_ERROR(context_->Tell(
        "cuEventCreate",
        driver_.cuEventCreate(&event, CU_EVENT_DISABLE_TIMING | CU_EVENT_INTERPROCESS)));
    events_.push_back(event);
    RETURN_IF_ERROR(context_->Tell("cuEventRecord", driver_.cuEventRecord(event, stream->get())));
    CUipcEventHandle handle{};
    RETURN_IF_ERROR(
        context_->Tell("cuIpcGetEventHandle", driver_.cuIpcGetEventHandle(&handle, event)));
    IpcHandle bytes{};
    std::memcpy(bytes.data(), handle.reserved, bytes.size());
    return bytes;
  }

  Status OpenEvent(const IpcHandle& bytes) override {
    ASSIGN_OR_RETURN(const std::shared_ptr<CudaStream> stream, CudaStream::Create(context_));
    CUipcEventHandle handle{};
    std::memcpy(handle.reserved, bytes.data(), bytes.size());
    CUevent event = nullptr;
    RETURN_IF_ERROR(
        context_->Tell("cuIpcOpenEventHandle", driver_.cuIpcOpenEventHandle(&event, handle)));
    events_.push_back(event);
    RETURN_IF_ERROR(
        context_->Tell("cuStreamWaitEvent", driver_.cuStreamWaitEvent(stream->get(), event, 0)));
    return context_->Tell("cuStreamSynchronize", driver_.cuStreamSynchronize(stream->get()));
  }

 private:
  CudaProbe(std::shared_ptr<CudaContext> context, std::span<const std::byte> kernels)
      : context_(std::move(context)), driver_(context_->driver()), kernels_(kernels) {}

  const std::shared_ptr<CudaContext> context_;
  const CudaDriver& driver_;
  const std::span<const std::byte> kernels_;
  std::vector<CUevent> events_;
};

}  // namespace

Result<std::unique_ptr<GpuProbe>> OpenCudaProbe(const GpuUuid& uuid,
                                                std::span<const std::byte> kernels) {
  return CudaProbe::Open(uuid, kernels);
}

}  // namespace terrace
