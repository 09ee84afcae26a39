#include "tiers/device/cuda_device.h"

#include <cuda.h>
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "base/mutex.h"
#include "kernels/paged_copy_launch.h"
#include "tiers/device/cuda_context.h"
#include "tiers/device/cuda_driver.h"
#include "tiers/device/gpu_addresses.h"
#include "tiers/device/gpu_handles.h"

namespace terrace {
namespace {

Status Refused(std::string words) {
  return {Code::kInvalidArgument, std::move(words)};
}

CUmemAccess_flags Flags(GpuAccess access) {
  switch (access) {
    case GpuAccess::kNone:
      return CU_MEM_ACCESS_FLAGS_PROT_NONE;
    case GpuAccess::kRead:
      return CU_MEM_ACCESS_FLAGS_PROT_READ;
    case GpuAccess::kReadWrite:
      return CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
  }
  return CU_MEM_ACCESS_FLAGS_PROT_NONE;
}

// Called by a thread of the driver, which may not call it back.
void CUDA_CB NotifyFd(void* data) {
  const std::unique_ptr<UniqueFd> eventfd(static_cast<UniqueFd*>(data));
  const uint64_t one = 1;
  // Full, it wakes its reader already.
  (void)!::write(eventfd->get(), &one, sizeof one);
}

class CudaGpu final : public Gpu {
 public:
  CudaGpu(std::shared_ptr<CudaContext> context, const CudaDevice& device)
      : context_(std::move(context)),
        driver_(context_->driver()),
        device_(device.device),
        properties_(SlabProperties(device.device, device.rdma)),
        facts_(device.facts),
        addresses_(facts_.granularity) {
    if (!facts_.paged_copies) {
      no_kernels_ = Status(Code::kMismatch, "no kernels for this device, or none in this build");
      return;
    }
    Result<std::unique_ptr<CudaKernels>> kernels = CudaKernels::Load(context_, device.kernels);
    if (kernels) {
      kernels_ = *std::move(kernels);
    } else {
      no_kernels_ = std::move(kernels).error();
      facts_.paged_copies = false;
    }
  }

  // Every call of a dead context fails and does nothing, so it is told nothing apart.
  ~CudaGpu() override {
    (void)context_->Enter();
    MutexLock lock(mu_);
    for (const auto& [id, stream] : streams_)
      (void)driver_.cuStreamSynchronize(stream->get());
    const GpuLeftovers left = addresses_.Leftovers();
    for (const GpuLeftovers::Piece& mapping : left.mappings)
      (void)driver_.cuMemUnmap(mapping.at, mapping.bytes);
    for (const GpuLeftovers::Piece& range : left.ranges)
      (void)driver_.cuMemAddressFree(range.at, range.bytes);
    for (const auto& [id, slab] : slabs_)
      (void)driver_.cuMemRelease(slab.handle);
    for (const GpuAddress opened : left.opened)
      (void)driver_.cuIpcCloseMemHandle(opened);
    for (const GpuAddress allocation : left.allocations)
      (void)driver_.cuMemFree(allocation);
    for (const auto& [id, region] : regions_)
      (void)Unpin(region, region.size());
  }

  const GpuFacts& facts() const override { return facts_; }

  Result<GpuMemory> Memory() override {
    RETURN_IF_ERROR(context_->Enter());
    size_t free = 0;
    size_t total = 0;
    RETURN_IF_ERROR(context_->Tell("cuMemGetInfo", driver_.cuMemGetInfo(&free, &total)));
    return GpuMemory{.free_bytes = free, .total_bytes = total};
  }

  // ---- Slabs
  Result<GpuSlab> CreateSlab(uint64_t bytes) override {
    RETURN_IF_ERROR(EnterForSlabs(bytes));
    CUmemGenericAllocationHandle handle = 0;
    RETURN_IF_ERROR(
        context_->Tell("cuMemCreate", driver_.cuMemCreate(&handle, bytes, &properties_, 0)));
    return Keep(handle, bytes);
  }

  Result<UniqueFd> ExportSlab(GpuSlab slab) override {
    RETURN_IF_ERROR(context_->Enter());
    MutexLock lock(mu_);
    ASSIGN_OR_RETURN(const Slab exported, slabs_.Find(slab));
    return ExportHandle(exported.handle);
  }

  Result<GpuSlab> ImportSlab(int fd, uint64_t bytes) override {
    RETURN_IF_ERROR(EnterForSlabs(bytes));
    // What the driver makes of a number that is no descriptor is nowhere promised.
    if (::fcntl(fd, F_GETFD) < 0) return Refused("fd: is not open");
    CUmemGenericAllocationHandle handle = 0;
    RETURN_IF_ERROR(context_->Tell("cuMemImportFromShareableHandle",
                                   driver_.cuMemImportFromShareableHandle(
                                       &handle, reinterpret_cast<void*>(static_cast<intptr_t>(fd)),
                                       CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR)));
    return Keep(handle, bytes);
  }

  Status ReleaseSlab(GpuSlab slab) override {
    RETURN_IF_ERROR(context_->Enter());
    Slab released;
    {
      MutexLock lock(mu_);
      ASSIGN_OR_RETURN(released, slabs_.Take(slab));
    }
    // Slow while the device is busy, so under no mutex.
    return context_->Tell("cuMemRelease", driver_.cuMemRelease(released.handle));
  }

  // ---- Ranges
  Result<GpuAddress> ReserveRange(uint64_t bytes) override {
    RETURN_IF_ERROR(EnterForSlabs(bytes));
    CUdeviceptr at = 0;
    RETURN_IF_ERROR(context_->Tell(
        "cuMemAddressReserve", driver_.cuMemAddressReserve(&at, bytes, facts_.granularity, 0, 0)));
    addresses_.AddRange(at, bytes);
    return GpuAddress{at};
  }

  Status FreeRange(GpuAddress range) override {
    RETURN_IF_ERROR(context_->Enter());
    MutexLock lock(mu_);
    ASSIGN_OR_RETURN(const uint64_t bytes, addresses_.CheckFree(range));
    addresses_.RemoveRange(range);
    return context_->Tell("cuMemAddressFree", driver_.cuMemAddressFree(range, bytes));
  }

  Status MapSlab(GpuAddress at, GpuSlab slab) override {
    RETURN_IF_ERROR(context_->Enter());
    MutexLock lock(mu_);
    ASSIGN_OR_RETURN(const Slab mapped, slabs_.Find(slab));
    RETURN_IF_ERROR(addresses_.CheckMap(at, mapped.bytes));
    RETURN_IF_ERROR(
        context_->Tell("cuMemMap", driver_.cuMemMap(at, mapped.bytes, 0, mapped.handle, 0)));
    addresses_.AddMapping(at, mapped.bytes);
    return {};
  }

  Status SetAccess(GpuAddress at, uint64_t bytes, GpuAccess access) override {
    RETURN_IF_ERROR(context_->Enter());
    MutexLock lock(mu_);
    RETURN_IF_ERROR(addresses_.CheckAccess(at, bytes));
    const CUmemAccessDesc how = {.location = {.type = CU_MEM_LOCATION_TYPE_DEVICE, .id = device_},
                                 .flags = Flags(access)};
    RETURN_IF_ERROR(context_->Tell("cuMemSetAccess", driver_.cuMemSetAccess(at, bytes, &how, 1)));
    addresses_.SetAccess(at, bytes, access);
    return {};
  }

  Status UnmapSlab(GpuAddress at) override {
    RETURN_IF_ERROR(context_->Enter());
    MutexLock lock(mu_);
    ASSIGN_OR_RETURN(const uint64_t bytes, addresses_.RemoveMapping(at));
    return context_->Tell("cuMemUnmap", driver_.cuMemUnmap(at, bytes));
  }

  // ---- Allocations
  Result<GpuAddress> Allocate(uint64_t bytes) override {
    RETURN_IF_ERROR(addresses_.CheckGranules("bytes", bytes));
    RETURN_IF_ERROR(context_->Enter());
    CUdeviceptr at = 0;
    RETURN_IF_ERROR(context_->Tell("cuMemAlloc", driver_.cuMemAlloc(&at, bytes)));
    addresses_.AddAllocation(at, bytes, false);
    return GpuAddress{at};
  }

  Status FreeAllocation(GpuAddress allocation) override {
    RETURN_IF_ERROR(context_->Enter());
    RETURN_IF_ERROR(addresses_.RemoveAllocation(allocation, false).status());
    return context_->Tell("cuMemFree", driver_.cuMemFree(allocation));
  }

  Result<IpcHandle> ExportAllocation(GpuAddress allocation) override {
    static_assert(CU_IPC_HANDLE_SIZE == kIpcHandleBytes);
    RETURN_IF_ERROR(context_->Enter());
    RETURN_IF_ERROR(addresses_.CheckAllocation(allocation, false));
    CUipcMemHandle handle{};
    RETURN_IF_ERROR(
        context_->Tell("cuIpcGetMemHandle", driver_.cuIpcGetMemHandle(&handle, allocation)));
    IpcHandle bytes{};
    std::memcpy(bytes.data(), handle.reserved, bytes.size());
    return bytes;
  }

  Result<GpuAddress> OpenAllocation(const IpcHandle& bytes_of_handle, uint64_t bytes) override {
    RETURN_IF_ERROR(addresses_.CheckGranules("bytes", bytes));
    RETURN_IF_ERROR(context_->Enter());
    CUipcMemHandle handle{};
    std::memcpy(handle.reserved, bytes_of_handle.data(), bytes_of_handle.size());
    CUdeviceptr at = 0;
    const CUresult opened =
        driver_.cuIpcOpenMemHandle(&at, handle, CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS);
    if (opened == CUDA_ERROR_INVALID_CONTEXT) {
      return Refused("handle: of this process itself, or of another PID namespace");
    }
    RETURN_IF_ERROR(context_->Tell("cuIpcOpenMemHandle", opened));
    MutexLock lock(mu_);
    Status sound = CheckOpened(at, bytes);
    if (!sound.ok()) {
      (void)driver_.cuIpcCloseMemHandle(at);
      return sound;
    }
    addresses_.AddAllocation(at, bytes, true);
    return GpuAddress{at};
  }

  Status CloseAllocation(GpuAddress opened) override {
    RETURN_IF_ERROR(context_->Enter());
    RETURN_IF_ERROR(addresses_.RemoveAllocation(opened, true).status());
    return context_->Tell("cuIpcCloseMemHandle", driver_.cuIpcCloseMemHandle(opened));
  }

  // ---- Memory that somebody else in this process made
  Result<GpuForeign> ShareForeign(GpuAddress at) override {
    RETURN_IF_ERROR(context_->Enter());
    CUdeviceptr base = 0;
    size_t whole = 0;
    RETURN_IF_ERROR(
        context_->Tell("cuMemGetAddressRange", driver_.cuMemGetAddressRange(&base, &whole, at)));
    GpuForeign found;
    found.base = base;
    found.bytes = whole / facts_.granularity * facts_.granularity;
    CUmemGenericAllocationHandle handle = 0;
    // Refused for memory that did not come from cuMemCreate.
    if (driver_.cuMemRetainAllocationHandle(&handle, reinterpret_cast<void*>(at)) == CUDA_SUCCESS) {
      Result<UniqueFd> exported = ExportHandle(handle);
      RETURN_IF_ERROR(context_->Tell("cuMemRelease", driver_.cuMemRelease(handle)));
      if (!exported) return NotShared(exported.error());
      found.slab = *std::move(exported);
      return found;
    }
    CUipcMemHandle legacy{};
    const Status told =
        context_->Tell("cuIpcGetMemHandle", driver_.cuIpcGetMemHandle(&legacy, base));
    if (!told.ok()) return NotShared(told);
    std::memcpy(found.handle.data(), legacy.reserved, found.handle.size());
    return found;
  }

  // ---- Host memory
  Result<HostRegion> RegisterHost(std::span<uint8_t> memory, GpuAccess access) override {
    if (access == GpuAccess::kNone) return Refused("access: none");
    if (access == GpuAccess::kRead && !facts_.read_only_registration) {
      return Status(Code::kMismatch, "access: this device registers no read-only memory");
    }
    RETURN_IF_ERROR(context_->Enter());
    RETURN_IF_ERROR(addresses_.ClaimHost(memory));
    const unsigned flags =
        CU_MEMHOSTREGISTER_PORTABLE |
        (access == GpuAccess::kRead ? static_cast<unsigned>(CU_MEMHOSTREGISTER_READ_ONLY) : 0u);
    for (size_t at = 0; at < memory.size(); at += facts_.registration_bytes) {
      const size_t bytes = std::min<size_t>(facts_.registration_bytes, memory.size() - at);
      Status pinned = context_->Tell("cuMemHostRegister",
                                     driver_.cuMemHostRegister(memory.data() + at, bytes, flags));
      if (!pinned.ok()) {
        (void)Unpin(memory, at);
        addresses_.RemoveHost(memory);
        return std::move(pinned).WithContext("memory: at " + std::to_string(at) + " of " +
                                             std::to_string(memory.size()) + " bytes");
      }
    }
    addresses_.AdmitHost(memory, access, facts_.registration_bytes);
    MutexLock lock(mu_);
    return regions_.Add(memory);
  }

  Status UnregisterHost(HostRegion region) override {
    RETURN_IF_ERROR(context_->Enter());
    std::span<uint8_t> memory;
    {
      MutexLock lock(mu_);
      ASSIGN_OR_RETURN(memory, regions_.Take(region));
    }
    const Status unpinned = Unpin(memory, memory.size());
    addresses_.RemoveHost(memory);
    return unpinned;
  }

  // ---- Streams and events
  Result<GpuStream> CreateStream() override {
    ASSIGN_OR_RETURN(std::shared_ptr<CudaStream> stream, CudaStream::Create(context_));
    MutexLock lock(mu_);
    return streams_.Add(std::move(stream));
  }

  Status DestroyStream(GpuStream stream) override {
    RETURN_IF_ERROR(context_->Enter());
    std::shared_ptr<CudaStream> destroyed;
    {
      MutexLock lock(mu_);
      ASSIGN_OR_RETURN(destroyed, streams_.Take(stream));
    }
    return context_->Tell("cuStreamSynchronize", driver_.cuStreamSynchronize(destroyed->get()));
  }

  Result<GpuEvent> CreateEvent() override {
    ASSIGN_OR_RETURN(std::shared_ptr<CudaEvent> event, CudaEvent::Create(context_));
    MutexLock lock(mu_);
    return events_.Add(std::move(event));
  }

  Status DestroyEvent(GpuEvent event) override {
    RETURN_IF_ERROR(context_->Enter());
    std::shared_ptr<CudaEvent> destroyed;  // Without the mutex.
    MutexLock lock(mu_);
    ASSIGN_OR_RETURN(destroyed, events_.Take(event));
    return {};
  }

  Status RecordEvent(GpuEvent event, GpuStream stream) override {
    ASSIGN_OR_RETURN(const std::shared_ptr<CudaEvent> what, EnterEvent(event));
    ASSIGN_OR_RETURN(const std::shared_ptr<CudaStream> where, EnterStream(stream));
    return context_->Tell("cuEventRecord", driver_.cuEventRecord(what->get(), where->get()));
  }

  Status WaitEvent(GpuStream stream, GpuEvent event) override {
    ASSIGN_OR_RETURN(const std::shared_ptr<CudaEvent> what, EnterEvent(event));
    ASSIGN_OR_RETURN(const std::shared_ptr<CudaStream> where, EnterStream(stream));
    return context_->Tell("cuStreamWaitEvent",
                          driver_.cuStreamWaitEvent(where->get(), what->get(), 0));
  }

  Result<bool> QueryEvent(GpuEvent event) override {
    ASSIGN_OR_RETURN(const std::shared_ptr<CudaEvent> what, EnterEvent(event));
    const CUresult result = driver_.cuEventQuery(what->get());
    if (result == CUDA_ERROR_NOT_READY) return false;
    RETURN_IF_ERROR(context_->Tell("cuEventQuery", result));
    return true;
  }

  Status Notify(GpuStream stream, int eventfd) override {
    ASSIGN_OR_RETURN(const std::shared_ptr<CudaStream> where, EnterStream(stream));
    auto own = std::make_unique<UniqueFd>(::fcntl(eventfd, F_DUPFD_CLOEXEC, 0));
    if (!*own) return Refused("eventfd: is not open");
    RETURN_IF_ERROR(context_->Tell("cuLaunchHostFunc",
                                   driver_.cuLaunchHostFunc(where->get(), NotifyFd, own.get())));
    (void)own.release();  // NotifyFd has it.
    return {};
  }

  // ---- Work
  Status Copy(GpuStream stream, std::span<const GpuCopy> copies, SourceOrder order) override {
    ASSIGN_OR_RETURN(const std::shared_ptr<CudaStream> where, EnterStream(stream));
    ASSIGN_OR_RETURN(const std::vector<GpuCopy> plan, addresses_.Plan(copies));
    if (facts_.batches && plan.size() > 1) return CopyBatch(plan, order, where->get());
    for (const GpuCopy& copy : plan) {
      RETURN_IF_ERROR(context_->Tell(
          "cuMemcpyAsync", driver_.cuMemcpyAsync(copy.dst, copy.src, copy.bytes, where->get())));
    }
    return {};
  }

  Status Clear(GpuStream stream, GpuAddress at, uint64_t bytes) override {
    ASSIGN_OR_RETURN(const std::shared_ptr<CudaStream> where, EnterStream(stream));
    RETURN_IF_ERROR(addresses_.CheckClear(at, bytes));
    return context_->Tell("cuMemsetD8Async", driver_.cuMemsetD8Async(at, 0, bytes, where->get()));
  }

  Status GatherPages(GpuStream stream, const PagedLayout& layout,
                     std::span<const PagedBlock> blocks) override {
    return LaunchPages(stream, layout, blocks, true);
  }

  Status ScatterPages(GpuStream stream, const PagedLayout& layout,
                      std::span<const PagedBlock> blocks) override {
    return LaunchPages(stream, layout, blocks, false);
  }

 private:
  struct Slab {
    CUmemGenericAllocationHandle handle = 0;
    uint64_t bytes = 0;
  };

  Status EnterForSlabs(uint64_t bytes) {
    if (!facts_.slabs) {
      return {Code::kMismatch, "this device or driver has no slabs: its memory has no descriptors"};
    }
    RETURN_IF_ERROR(addresses_.CheckGranules("bytes", bytes));
    return context_->Enter();
  }

  Result<UniqueFd> ExportHandle(CUmemGenericAllocationHandle handle) {
    int fd = -1;
    RETURN_IF_ERROR(context_->Tell("cuMemExportToShareableHandle",
                                   driver_.cuMemExportToShareableHandle(
                                       &fd, handle, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0)));
    UniqueFd own(fd);
    if (::fcntl(fd, F_SETFD, FD_CLOEXEC) != 0) return SystemError("descriptor of a slab", errno);
    return own;
  }

  // What the driver refuses of an allocation is how that was made.
  static Status NotShared(const Status& why) {
    if (why.code() == Code::kStale || why.code() == Code::kUnavailable) return why;
    return {Code::kMismatch, "its memory cannot be shared: " + why.message()};
  }

  Status CheckOpened(CUdeviceptr at, uint64_t bytes) REQUIRES(mu_) {
    // The driver gives the same address a second time, and counts.
    if (addresses_.CheckAllocation(at, true).ok()) {
      return Refused("handle: is open already, at " + AddressText(at));
    }
    CUdeviceptr base = 0;
    size_t whole = 0;
    RETURN_IF_ERROR(
        context_->Tell("cuMemGetAddressRange", driver_.cuMemGetAddressRange(&base, &whole, at)));
    const uint64_t there = whole - std::min<uint64_t>(whole, at - base);
    if (there >= bytes) return {};
    return Refused("bytes: " + std::to_string(bytes) + ", and it has " + std::to_string(there));
  }

  GpuSlab Keep(CUmemGenericAllocationHandle handle, uint64_t bytes) {
    MutexLock lock(mu_);
    return slabs_.Add({.handle = handle, .bytes = bytes});
  }

  Result<std::shared_ptr<CudaStream>> EnterStream(GpuStream stream) {
    RETURN_IF_ERROR(context_->Enter());
    MutexLock lock(mu_);
    return streams_.Find(stream);
  }

  Result<std::shared_ptr<CudaEvent>> EnterEvent(GpuEvent event) {
    RETURN_IF_ERROR(context_->Enter());
    MutexLock lock(mu_);
    return events_.Find(event);
  }

  // The pieces that begin before `end`.
  Status Unpin(std::span<uint8_t> memory, size_t end) {
    Status first;
    for (size_t at = 0; at < end; at += facts_.registration_bytes) {
      Status unpinned =
          context_->Tell("cuMemHostUnregister", driver_.cuMemHostUnregister(memory.data() + at));
      if (first.ok()) first = std::move(unpinned);
    }
    return first;
  }

  Status CopyBatch(std::span<const GpuCopy> plan, SourceOrder order, CUstream stream) {
    std::vector<CUdeviceptr> dsts(plan.size());
    std::vector<CUdeviceptr> srcs(plan.size());
    std::vector<size_t> sizes(plan.size());
    for (size_t i = 0; i < plan.size(); ++i) {
      dsts[i] = plan[i].dst;
      srcs[i] = plan[i].src;
      sizes[i] = plan[i].bytes;
    }
    CUmemcpyAttributes attributes{};
    attributes.srcAccessOrder = order == SourceOrder::kAny ? CU_MEMCPY_SRC_ACCESS_ORDER_ANY
                                                           : CU_MEMCPY_SRC_ACCESS_ORDER_STREAM;
    return context_->Tell(
        "cuMemcpyBatchAsync",
        driver_.CopyBatch(dsts.data(), srcs.data(), sizes.data(), plan.size(), attributes, stream));
  }

  Status LaunchPages(GpuStream stream, const PagedLayout& layout,
                     std::span<const PagedBlock> blocks, bool gather) {
    ASSIGN_OR_RETURN(const std::shared_ptr<CudaStream> where, EnterStream(stream));
    if (kernels_ == nullptr) return no_kernels_;
    RETURN_IF_ERROR(addresses_.CheckPages(layout, blocks, gather));
    const CUfunction kernel = gather ? kernels_->gather() : kernels_->scatter();
    const int result = ForEachPagedLaunch(
        layout, blocks,
        [&](PagedCopyLaunch& launch, uint32_t threads, uint32_t tiles, uint32_t segments,
            uint32_t some) -> int {
          void* parameters[] = {&launch};
          return driver_.cuLaunchKernel(kernel, tiles, segments, some, threads, 1, 1, 0,
                                        where->get(), parameters, nullptr);
        });
    return context_->Tell("cuLaunchKernel", static_cast<CUresult>(result));
  }

  const std::shared_ptr<CudaContext> context_;
  const CudaDriver& driver_;
  const CUdevice device_;
  const CUmemAllocationProp properties_;
  GpuFacts facts_;  // Constant after construction, as are all up to no_kernels_.
  std::unique_ptr<CudaKernels> kernels_;
  Status no_kernels_;

  GpuAddresses addresses_;  // Its mappings and ranges change under mu_.

  // Held while the driver changes a mapping, for two changes of one place must not cross.
  Mutex mu_;
  GpuHandles<GpuSlab, Slab> slabs_ GUARDED_BY(mu_){"slab"};
  GpuHandles<HostRegion, std::span<uint8_t>> regions_ GUARDED_BY(mu_){"region"};
  GpuHandles<GpuStream, std::shared_ptr<CudaStream>> streams_ GUARDED_BY(mu_){"stream"};
  GpuHandles<GpuEvent, std::shared_ptr<CudaEvent>> events_ GUARDED_BY(mu_){"event"};
};

}  // namespace

std::unique_ptr<Gpu> MakeCudaGpu(std::shared_ptr<CudaContext> context, const CudaDevice& device) {
  return std::make_unique<CudaGpu>(std::move(context), device);
}

}  // namespace terrace
