#include "tests/device/fake_libcuda.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "kernels/paged_copy_launch.h"
#include "tests/kernels/paged_copy_on_cpu.h"
#include "tiers/device/host_memory.h"
#include "tiers/device/host_stream.h"

namespace terrace {
namespace {

constexpr size_t kGranularity = 2u << 20;
constexpr CUdevice kDevice = 0;
constexpr uint8_t kUuid[16] = {0xfa, 0xce, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14};

struct Mapped {
  size_t bytes = 0;
  std::shared_ptr<HostMemory> memory;
  std::unique_ptr<HostRange> own;  // Of allocations.
  bool opened = false;
};
struct FakeEvent {
  std::shared_ptr<HostMark> mark;
};
struct FakeStream {
  std::shared_ptr<HostStream> stream;
};
struct FakeHandle {
  int process = 0;
  int fd = -1;
  uint64_t inode = 0;
};

std::shared_ptr<HostDevice> DeviceOf(size_t bytes) {
  GpuFacts facts;
  facts.total_bytes = bytes;
  return std::make_shared<HostDevice>(std::move(facts));
}

struct Fake {
  std::mutex mu;
  int version = 13000;
  std::map<CUdevice_attribute, int> attributes;
  std::map<std::string, unsigned> calls;
  std::map<std::pair<std::string, unsigned>, CUresult> failures;  // By the number of the call.
  std::shared_ptr<HostDevice> device = DeviceOf(size_t{1} << 30);
  int contexts = 0;
  CUmemGenericAllocationHandle last_handle = 0;
  std::map<CUmemGenericAllocationHandle, std::shared_ptr<HostMemory>> handles;
  std::map<CUdeviceptr, std::unique_ptr<HostRange>> ranges;
  std::map<CUdeviceptr, Mapped> mapped;
  std::map<uintptr_t, size_t> registered;
  std::set<void*> live;  // Streams, events, modules.
};

Fake& Driver() {
  static Fake fake;
  return fake;
}

// A context is an address that nobody uses for anything else.
const CUcontext kContext = reinterpret_cast<CUcontext>(&Driver);
thread_local CUcontext current = nullptr;

// Counts the call, and answers for it if it shall fail.
CUresult Begin(const char* call, bool needs_context = true) {
  Fake& fake = Driver();
  const std::lock_guard lock(fake.mu);
  const unsigned nth = fake.calls[call]++;
  const auto failure = fake.failures.find({call, nth});
  if (failure != fake.failures.end()) return failure->second;
  if (needs_context && (current != kContext || fake.contexts == 0)) {
    return CUDA_ERROR_INVALID_CONTEXT;
  }
  return CUDA_SUCCESS;
}

#define BEGIN(call) \
  if (const CUresult failed = Begin(call); failed != CUDA_SUCCESS) return failed
#define BEGIN_WITHOUT_CONTEXT(call) \
  if (const CUresult failed = Begin(call, false); failed != CUDA_SUCCESS) return failed
#define REFUSE_IF(condition) \
  if (condition) return CUDA_ERROR_INVALID_VALUE

bool IsSlab(const CUmemAllocationProp* prop) {
  return prop != nullptr && prop->type == CU_MEM_ALLOCATION_TYPE_PINNED &&
         prop->requestedHandleTypes == CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR &&
         prop->location.type == CU_MEM_LOCATION_TYPE_DEVICE && prop->location.id == kDevice &&
         prop->win32HandleMetaData == nullptr && prop->allocFlags.gpuDirectRDMACapable == 1;
}

bool IsRegistered(uintptr_t at, size_t bytes) {
  const auto after = Driver().registered.upper_bound(at);
  if (after == Driver().registered.begin()) return false;
  const auto region = std::prev(after);
  return at + bytes <= region->first + region->second;
}

// What is mapped there; mapped.end(): nothing. With the lock.
std::map<CUdeviceptr, Mapped>::iterator MappedAround(CUdeviceptr at) {
  std::map<CUdeviceptr, Mapped>& mapped = Driver().mapped;
  const auto after = mapped.upper_bound(at);
  if (after == mapped.begin()) return mapped.end();
  const auto piece = std::prev(after);
  return at < piece->first + piece->second.bytes ? piece : mapped.end();
}

// Of one kind: wholly of mapped device memory, or within one registration.
bool IsReachable(CUdeviceptr at, size_t bytes) {
  const std::lock_guard lock(Driver().mu);
  if (IsRegistered(at, bytes)) return true;
  const auto after = Driver().mapped.upper_bound(at);
  if (after == Driver().mapped.begin()) return false;
  auto piece = std::prev(after);
  CUdeviceptr end = piece->first + piece->second.bytes;
  if (at >= end) return false;
  for (++piece; end < at + bytes && piece != Driver().mapped.end() && piece->first == end; ++piece)
    end += piece->second.bytes;
  return at + bytes <= end;
}

HostStream* StreamOf(CUstream stream) {
  const std::lock_guard lock(Driver().mu);
  if (!Driver().live.contains(stream)) return nullptr;
  return reinterpret_cast<FakeStream*>(stream)->stream.get();
}

bool IsLive(void* thing) {
  const std::lock_guard lock(Driver().mu);
  return Driver().live.contains(thing);
}

CUresult CopyOne(CUdeviceptr dst, CUdeviceptr src, size_t bytes, CUstream stream) {
  HostStream* queue = StreamOf(stream);
  if (queue == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  REFUSE_IF(bytes == 0 || !IsReachable(dst, bytes) || !IsReachable(src, bytes));
  queue->Push([dst, src, bytes] {
    std::memcpy(reinterpret_cast<void*>(dst), reinterpret_cast<const void*>(src), bytes);
  });
  return CUDA_SUCCESS;
}

CUresult CopyMany(CUdeviceptr* dsts, CUdeviceptr* srcs, size_t* sizes, size_t count,
                  CUmemcpyAttributes* attributes, size_t* first, size_t sets, CUstream stream) {
  REFUSE_IF(stream == nullptr || count == 0 || sets != 1 || first[0] != 0);
  REFUSE_IF(attributes[0].srcAccessOrder != CU_MEMCPY_SRC_ACCESS_ORDER_STREAM &&
            attributes[0].srcAccessOrder != CU_MEMCPY_SRC_ACCESS_ORDER_ANY);
  for (size_t i = 0; i < count; ++i) {
    const CUresult result = CopyOne(dsts[i], srcs[i], sizes[i], stream);
    if (result != CUDA_SUCCESS) return result;
  }
  return CUDA_SUCCESS;
}

// Memory at an address of its own, as cuMemAlloc has it.
CUresult Place(std::shared_ptr<HostMemory> memory, bool opened, CUdeviceptr* at) {
  auto range = HostRange::Reserve(memory->bytes(), kGranularity);
  if (!range || !MapAt((*range)->address(), *memory).ok() ||
      !ProtectAt((*range)->address(), memory->bytes(), GpuAccess::kReadWrite).ok()) {
    return CUDA_ERROR_OUT_OF_MEMORY;
  }
  *at = (*range)->address();
  const size_t bytes = memory->bytes();
  const std::lock_guard lock(Driver().mu);
  Driver().mapped.emplace(
      *at,
      Mapped{
          .bytes = bytes, .memory = std::move(memory), .own = *std::move(range), .opened = opened});
  return CUDA_SUCCESS;
}

CUresult TakeAway(CUdeviceptr at, bool opened) {
  const std::lock_guard lock(Driver().mu);
  const auto found = Driver().mapped.find(at);
  REFUSE_IF(found == Driver().mapped.end() || found->second.own == nullptr ||
            found->second.opened != opened);
  Driver().mapped.erase(found);
  return CUDA_SUCCESS;
}

// ---- The entry points

CUresult Init(unsigned flags) {
  BEGIN_WITHOUT_CONTEXT("cuInit");
  REFUSE_IF(flags != 0);
  return CUDA_SUCCESS;
}
CUresult GetErrorName(CUresult error, const char** name) {
  *name = error == CUDA_ERROR_OUT_OF_MEMORY     ? "CUDA_ERROR_OUT_OF_MEMORY"
          : error == CUDA_ERROR_ILLEGAL_ADDRESS ? "CUDA_ERROR_ILLEGAL_ADDRESS"
                                                : nullptr;
  return *name != nullptr ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}
CUresult GetErrorString(CUresult, const char** words) {
  *words = "as the test wants it";
  return CUDA_SUCCESS;
}
CUresult DeviceGetCount(int* count) {
  BEGIN_WITHOUT_CONTEXT("cuDeviceGetCount");
  *count = 1;
  return CUDA_SUCCESS;
}
CUresult DeviceGet(CUdevice* device, int ordinal) {
  BEGIN_WITHOUT_CONTEXT("cuDeviceGet");
  if (ordinal != 0) return CUDA_ERROR_INVALID_DEVICE;
  *device = kDevice;
  return CUDA_SUCCESS;
}
CUresult DeviceGetUuid(CUuuid* uuid, CUdevice) {
  std::memcpy(uuid->bytes, kUuid, sizeof kUuid);
  return CUDA_SUCCESS;
}
CUresult DeviceGetName(char* name, int bytes, CUdevice) {
  std::strncpy(name, "a GPU that is none", static_cast<size_t>(bytes));
  return CUDA_SUCCESS;
}
CUresult DeviceGetAttribute(int* value, CUdevice_attribute attribute, CUdevice device) {
  BEGIN_WITHOUT_CONTEXT("cuDeviceGetAttribute");
  if (device != kDevice) return CUDA_ERROR_INVALID_DEVICE;
  const std::lock_guard lock(Driver().mu);
  const auto set = Driver().attributes.find(attribute);
  *value = set != Driver().attributes.end()                            ? set->second
           : attribute == CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR ? 9
                                                                       : 1;
  return CUDA_SUCCESS;
}
CUresult DeviceTotalMem(size_t* bytes, CUdevice) {
  *bytes = Driver().device->memory().total_bytes;
  return CUDA_SUCCESS;
}
CUresult PrimaryCtxRetain(CUcontext* context, CUdevice device) {
  BEGIN_WITHOUT_CONTEXT("cuDevicePrimaryCtxRetain");
  if (device != kDevice) return CUDA_ERROR_INVALID_DEVICE;
  const std::lock_guard lock(Driver().mu);
  ++Driver().contexts;
  *context = kContext;
  return CUDA_SUCCESS;
}
CUresult PrimaryCtxRelease(CUdevice) {
  BEGIN_WITHOUT_CONTEXT("cuDevicePrimaryCtxRelease");
  const std::lock_guard lock(Driver().mu);
  if (Driver().contexts == 0) return CUDA_ERROR_INVALID_CONTEXT;
  --Driver().contexts;
  return CUDA_SUCCESS;
}
CUresult CtxSetCurrent(CUcontext context) {
  BEGIN_WITHOUT_CONTEXT("cuCtxSetCurrent");
  current = context;
  return CUDA_SUCCESS;
}
CUresult MemGetInfo(size_t* free, size_t* total) {
  BEGIN("cuMemGetInfo");
  const GpuMemory memory = Driver().device->memory();
  *free = memory.free_bytes;
  *total = memory.total_bytes;
  return CUDA_SUCCESS;
}

CUresult MemGetAllocationGranularity(size_t* bytes, const CUmemAllocationProp* prop,
                                     CUmemAllocationGranularity_flags which) {
  BEGIN_WITHOUT_CONTEXT("cuMemGetAllocationGranularity");
  REFUSE_IF(!IsSlab(prop) || which != CU_MEM_ALLOC_GRANULARITY_MINIMUM);
  *bytes = kGranularity;
  return CUDA_SUCCESS;
}
CUresult MemCreate(CUmemGenericAllocationHandle* handle, size_t bytes,
                   const CUmemAllocationProp* prop, unsigned long long flags) {
  BEGIN("cuMemCreate");
  REFUSE_IF(bytes == 0 || bytes % kGranularity != 0 || !IsSlab(prop) || flags != 0);
  auto memory = HostMemory::Create(Driver().device, bytes, false);
  if (!memory) return CUDA_ERROR_OUT_OF_MEMORY;
  const std::lock_guard lock(Driver().mu);
  *handle = ++Driver().last_handle;
  Driver().handles.emplace(*handle, *std::move(memory));
  return CUDA_SUCCESS;
}
CUresult MemRelease(CUmemGenericAllocationHandle handle) {
  BEGIN("cuMemRelease");
  const std::lock_guard lock(Driver().mu);
  return Driver().handles.erase(handle) == 1 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}
CUresult MemExportToShareableHandle(void* shareable, CUmemGenericAllocationHandle handle,
                                    CUmemAllocationHandleType type, unsigned long long flags) {
  BEGIN("cuMemExportToShareableHandle");
  REFUSE_IF(type != CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR || flags != 0);
  const std::lock_guard lock(Driver().mu);
  const auto found = Driver().handles.find(handle);
  REFUSE_IF(found == Driver().handles.end());
  // A driver's descriptor does not close on exec.
  *static_cast<int*>(shareable) = ::fcntl(found->second->fd(), F_DUPFD, 0);
  return CUDA_SUCCESS;
}
CUresult MemImportFromShareableHandle(CUmemGenericAllocationHandle* handle, void* shareable,
                                      CUmemAllocationHandleType type) {
  BEGIN("cuMemImportFromShareableHandle");
  REFUSE_IF(type != CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR);
  const int fd = static_cast<int>(reinterpret_cast<intptr_t>(shareable));
  struct stat file {};
  REFUSE_IF(::fstat(fd, &file) != 0);
  auto memory = HostMemory::Import(UniqueFd(::fcntl(fd, F_DUPFD_CLOEXEC, 0)),
                                   static_cast<uint64_t>(file.st_size));
  REFUSE_IF(!memory);
  const std::lock_guard lock(Driver().mu);
  *handle = ++Driver().last_handle;
  Driver().handles.emplace(*handle, *std::move(memory));
  return CUDA_SUCCESS;
}
CUresult MemRetainAllocationHandle(CUmemGenericAllocationHandle* handle, void* at) {
  BEGIN("cuMemRetainAllocationHandle");
  const std::lock_guard lock(Driver().mu);
  const auto found = MappedAround(reinterpret_cast<CUdeviceptr>(at));
  REFUSE_IF(found == Driver().mapped.end() || found->second.own != nullptr);
  *handle = ++Driver().last_handle;
  Driver().handles.emplace(*handle, found->second.memory);
  return CUDA_SUCCESS;
}
CUresult MemAddressReserve(CUdeviceptr* at, size_t bytes, size_t alignment, CUdeviceptr hint,
                           unsigned long long flags) {
  BEGIN("cuMemAddressReserve");
  REFUSE_IF(bytes == 0 || bytes % 4096 != 0 || alignment != kGranularity || hint != 0 ||
            flags != 0);
  auto range = HostRange::Reserve(bytes, alignment);
  if (!range) return CUDA_ERROR_OUT_OF_MEMORY;
  *at = (*range)->address();
  const std::lock_guard lock(Driver().mu);
  Driver().ranges.emplace(*at, *std::move(range));
  return CUDA_SUCCESS;
}
CUresult MemAddressFree(CUdeviceptr at, size_t bytes) {
  BEGIN("cuMemAddressFree");
  const std::lock_guard lock(Driver().mu);
  const auto range = Driver().ranges.find(at);
  REFUSE_IF(range == Driver().ranges.end() || range->second->bytes() != bytes);
  const auto inside = Driver().mapped.lower_bound(at);
  REFUSE_IF(inside != Driver().mapped.end() && inside->first < at + bytes);
  Driver().ranges.erase(range);
  return CUDA_SUCCESS;
}
CUresult MemMap(CUdeviceptr at, size_t bytes, size_t offset, CUmemGenericAllocationHandle handle,
                unsigned long long flags) {
  BEGIN("cuMemMap");
  const std::lock_guard lock(Driver().mu);
  const auto found = Driver().handles.find(handle);
  REFUSE_IF(at % kGranularity != 0 || offset != 0 || flags != 0);
  REFUSE_IF(found == Driver().handles.end() || found->second->bytes() != bytes);
  const auto behind = Driver().ranges.upper_bound(at);
  REFUSE_IF(behind == Driver().ranges.begin());
  const auto range = std::prev(behind);
  REFUSE_IF(at + bytes > range->first + range->second->bytes());
  if (!MapAt(at, *found->second).ok()) return CUDA_ERROR_OUT_OF_MEMORY;
  Driver().mapped.emplace(
      at, Mapped{.bytes = bytes, .memory = found->second, .own = nullptr, .opened = false});
  return CUDA_SUCCESS;
}
CUresult MemUnmap(CUdeviceptr at, size_t bytes) {
  BEGIN("cuMemUnmap");
  const std::lock_guard lock(Driver().mu);
  const auto found = Driver().mapped.find(at);
  REFUSE_IF(found == Driver().mapped.end() || found->second.bytes != bytes);
  REFUSE_IF(!UnmapAt(at, bytes).ok());
  Driver().mapped.erase(found);
  return CUDA_SUCCESS;
}
CUresult MemSetAccess(CUdeviceptr at, size_t bytes, const CUmemAccessDesc* how, size_t count) {
  BEGIN("cuMemSetAccess");
  REFUSE_IF(count != 1 || how->location.type != CU_MEM_LOCATION_TYPE_DEVICE ||
            how->location.id != kDevice);
  const std::lock_guard lock(Driver().mu);
  CUdeviceptr next = at;
  while (next < at + bytes) {
    const auto piece = Driver().mapped.find(next);
    REFUSE_IF(piece == Driver().mapped.end());
    next += piece->second.bytes;
  }
  REFUSE_IF(next != at + bytes);
  const GpuAccess access = how->flags == CU_MEM_ACCESS_FLAGS_PROT_READWRITE ? GpuAccess::kReadWrite
                           : how->flags == CU_MEM_ACCESS_FLAGS_PROT_READ    ? GpuAccess::kRead
                                                                            : GpuAccess::kNone;
  return ProtectAt(at, bytes, access).ok() ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult MemAlloc(CUdeviceptr* at, size_t bytes) {
  BEGIN("cuMemAlloc");
  auto memory = HostMemory::Create(Driver().device, bytes, false);
  if (!memory) return CUDA_ERROR_OUT_OF_MEMORY;
  return Place(*std::move(memory), false, at);
}
CUresult MemFree(CUdeviceptr at) {
  BEGIN("cuMemFree");
  return TakeAway(at, false);
}
CUresult MemGetAddressRange(CUdeviceptr* base, size_t* bytes, CUdeviceptr at) {
  BEGIN("cuMemGetAddressRange");
  const std::lock_guard lock(Driver().mu);
  const auto found = MappedAround(at);
  REFUSE_IF(found == Driver().mapped.end());
  *base = found->first;
  *bytes = found->second.bytes;
  return CUDA_SUCCESS;
}
CUresult IpcGetMemHandle(CUipcMemHandle* handle, CUdeviceptr at) {
  BEGIN("cuIpcGetMemHandle");
  const std::lock_guard lock(Driver().mu);
  const auto found = Driver().mapped.find(at);
  REFUSE_IF(found == Driver().mapped.end() || found->second.own == nullptr);
  struct stat file {};
  REFUSE_IF(::fstat(found->second.memory->fd(), &file) != 0);
  const FakeHandle fake{
      .process = ::getpid(), .fd = found->second.memory->fd(), .inode = file.st_ino};
  std::memset(handle, 0, sizeof *handle);
  std::memcpy(handle->reserved, &fake, sizeof fake);
  return CUDA_SUCCESS;
}
CUresult IpcOpenMemHandle(CUdeviceptr* at, CUipcMemHandle handle, unsigned flags) {
  BEGIN("cuIpcOpenMemHandle");
  REFUSE_IF(flags != CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS);
  FakeHandle fake;
  std::memcpy(&fake, handle.reserved, sizeof fake);
  if (fake.process == ::getpid()) return CUDA_ERROR_INVALID_CONTEXT;
  const std::string path =
      "/proc/" + std::to_string(fake.process) + "/fd/" + std::to_string(fake.fd);
  UniqueFd fd(::open(path.c_str(), O_RDWR | O_CLOEXEC));
  struct stat file {};
  REFUSE_IF(!fd || ::fstat(fd.get(), &file) != 0 || file.st_ino != fake.inode);
  auto memory = HostMemory::Import(std::move(fd), static_cast<uint64_t>(file.st_size));
  REFUSE_IF(!memory);
  return Place(*std::move(memory), true, at);
}
CUresult IpcCloseMemHandle(CUdeviceptr at) {
  BEGIN("cuIpcCloseMemHandle");
  return TakeAway(at, true);
}

// Of events this driver has no handles.
CUresult IpcGetEventHandle(CUipcEventHandle*, CUevent) {
  BEGIN("cuIpcGetEventHandle");
  return CUDA_ERROR_NOT_SUPPORTED;
}
CUresult IpcOpenEventHandle(CUevent*, CUipcEventHandle) {
  BEGIN("cuIpcOpenEventHandle");
  return CUDA_ERROR_NOT_SUPPORTED;
}

CUresult MemHostRegister(void* memory, size_t bytes, unsigned flags) {
  BEGIN("cuMemHostRegister");
  const bool read_only = (flags & CU_MEMHOSTREGISTER_READ_ONLY) != 0;
  REFUSE_IF(bytes == 0 || (flags & ~9u) != 0 || (flags & CU_MEMHOSTREGISTER_PORTABLE) == 0);
  const std::lock_guard lock(Driver().mu);
  const auto at = reinterpret_cast<uintptr_t>(memory);
  const auto behind = Driver().registered.lower_bound(at + bytes);
  if (behind != Driver().registered.begin() &&
      std::prev(behind)->first + std::prev(behind)->second > at) {
    return CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED;
  }
  REFUSE_IF(::madvise(memory, bytes, read_only ? MADV_POPULATE_READ : MADV_POPULATE_WRITE) != 0);
  Driver().registered.emplace(at, bytes);
  return CUDA_SUCCESS;
}
CUresult MemHostUnregister(void* memory) {
  BEGIN("cuMemHostUnregister");
  const std::lock_guard lock(Driver().mu);
  return Driver().registered.erase(reinterpret_cast<uintptr_t>(memory)) == 1
             ? CUDA_SUCCESS
             : CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED;
}

CUresult StreamCreate(CUstream* stream, unsigned flags) {
  BEGIN("cuStreamCreate");
  REFUSE_IF(flags != CU_STREAM_NON_BLOCKING);
  auto started = HostStream::Start();
  if (!started) return CUDA_ERROR_OUT_OF_MEMORY;
  auto* fake = new FakeStream{*std::move(started)};
  *stream = reinterpret_cast<CUstream>(fake);
  const std::lock_guard lock(Driver().mu);
  Driver().live.insert(fake);
  return CUDA_SUCCESS;
}
CUresult StreamDestroy(CUstream stream) {
  BEGIN("cuStreamDestroy");
  {
    const std::lock_guard lock(Driver().mu);
    if (Driver().live.erase(stream) == 0) return CUDA_ERROR_INVALID_HANDLE;
  }
  delete reinterpret_cast<FakeStream*>(stream);
  return CUDA_SUCCESS;
}
CUresult StreamSynchronize(CUstream stream) {
  BEGIN("cuStreamSynchronize");
  HostStream* queue = StreamOf(stream);
  if (queue == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  const auto mark = std::make_shared<HostMark>();
  queue->Push([mark] { mark->Reach(); });
  mark->Wait();
  return CUDA_SUCCESS;
}
CUresult StreamWaitEvent(CUstream stream, CUevent event, unsigned flags) {
  BEGIN("cuStreamWaitEvent");
  REFUSE_IF(flags != 0);
  HostStream* queue = StreamOf(stream);
  if (queue == nullptr || !IsLive(event)) return CUDA_ERROR_INVALID_HANDLE;
  std::shared_ptr<HostMark> mark;
  {
    const std::lock_guard lock(Driver().mu);
    mark = reinterpret_cast<FakeEvent*>(event)->mark;
  }
  if (mark != nullptr) queue->Push([mark] { mark->Wait(); });
  return CUDA_SUCCESS;
}
CUresult EventCreate(CUevent* event, unsigned flags) {
  BEGIN("cuEventCreate");
  REFUSE_IF(flags != CU_EVENT_DISABLE_TIMING);
  auto* fake = new FakeEvent;
  *event = reinterpret_cast<CUevent>(fake);
  const std::lock_guard lock(Driver().mu);
  Driver().live.insert(fake);
  return CUDA_SUCCESS;
}
CUresult EventDestroy(CUevent event) {
  BEGIN("cuEventDestroy");
  {
    const std::lock_guard lock(Driver().mu);
    if (Driver().live.erase(event) == 0) return CUDA_ERROR_INVALID_HANDLE;
  }
  delete reinterpret_cast<FakeEvent*>(event);
  return CUDA_SUCCESS;
}
CUresult EventRecord(CUevent event, CUstream stream) {
  BEGIN("cuEventRecord");
  HostStream* queue = StreamOf(stream);
  if (queue == nullptr || !IsLive(event)) return CUDA_ERROR_INVALID_HANDLE;
  const auto mark = std::make_shared<HostMark>();
  queue->Push([mark] { mark->Reach(); });
  const std::lock_guard lock(Driver().mu);
  reinterpret_cast<FakeEvent*>(event)->mark = mark;
  return CUDA_SUCCESS;
}
CUresult EventQuery(CUevent event) {
  BEGIN("cuEventQuery");
  if (!IsLive(event)) return CUDA_ERROR_INVALID_HANDLE;
  const std::lock_guard lock(Driver().mu);
  const auto& mark = reinterpret_cast<FakeEvent*>(event)->mark;
  return mark == nullptr || mark->reached() ? CUDA_SUCCESS : CUDA_ERROR_NOT_READY;
}
CUresult LaunchHostFunc(CUstream stream, CUhostFn function, void* data) {
  BEGIN("cuLaunchHostFunc");
  HostStream* queue = StreamOf(stream);
  if (queue == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  queue->Push([function, data] { function(data); });
  return CUDA_SUCCESS;
}

// A module is its image; a function is the name of a kernel.
CUresult ModuleLoadData(CUmodule* module, const void* image) {
  BEGIN("cuModuleLoadData");
  const unsigned char magic[] = {0x50, 0xed, 0x55, 0xba};
  if (std::memcmp(image, magic, sizeof magic) != 0) return CUDA_ERROR_INVALID_IMAGE;
  *module = reinterpret_cast<CUmodule>(const_cast<void*>(image));
  const std::lock_guard lock(Driver().mu);
  Driver().live.insert(*module);
  return CUDA_SUCCESS;
}
CUresult ModuleUnload(CUmodule module) {
  BEGIN("cuModuleUnload");
  const std::lock_guard lock(Driver().mu);
  return Driver().live.contains(module) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}
CUresult ModuleGetFunction(CUfunction* function, CUmodule module, const char* name) {
  BEGIN("cuModuleGetFunction");
  if (!IsLive(module)) return CUDA_ERROR_INVALID_HANDLE;
  for (const char* kernel : {kGatherKernel, kScatterKernel}) {
    if (std::string_view(name) != kernel) continue;
    *function = reinterpret_cast<CUfunction>(const_cast<char*>(kernel));
    return CUDA_SUCCESS;
  }
  return CUDA_ERROR_NOT_FOUND;
}
CUresult LaunchKernel(CUfunction function, unsigned grid_x, unsigned grid_y, unsigned grid_z,
                      unsigned block_x, unsigned block_y, unsigned block_z, unsigned shared_bytes,
                      CUstream stream, void** parameters, void** extra) {
  BEGIN("cuLaunchKernel");
  HostStream* queue = StreamOf(stream);
  if (queue == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  REFUSE_IF(block_x == 0 || block_x > kMostThreadsOfABlock || block_y != 1 || block_z != 1);
  REFUSE_IF(grid_x == 0 || grid_y == 0 || grid_y > 65'535 || grid_z == 0 || grid_z > 65'535);
  REFUSE_IF(shared_bytes != 0 || extra != nullptr);
  queue->Push(
      [kernel = std::string(reinterpret_cast<const char*>(function)),
       shape =
           LaunchShape{.threads = block_x, .tiles = grid_x, .segments = grid_y, .blocks = grid_z},
       launch = *static_cast<const PagedCopyLaunch*>(parameters[0])] {
        RunPagedCopyOnCpu(kernel, shape, launch);
      });
  return CUDA_SUCCESS;
}

CUresult MemcpyAsync(CUdeviceptr dst, CUdeviceptr src, size_t bytes, CUstream stream) {
  BEGIN("cuMemcpyAsync");
  return CopyOne(dst, src, bytes, stream);
}
CUresult MemcpyBatch12080(CUdeviceptr* dsts, CUdeviceptr* srcs, size_t* sizes, size_t count,
                          CUmemcpyAttributes* attributes, size_t* first, size_t sets,
                          size_t* fail_index, CUstream stream) {
  BEGIN("cuMemcpyBatchAsync_12080");
  REFUSE_IF(fail_index == nullptr);
  return CopyMany(dsts, srcs, sizes, count, attributes, first, sets, stream);
}
CUresult MemcpyBatch13000(CUdeviceptr* dsts, CUdeviceptr* srcs, size_t* sizes, size_t count,
                          CUmemcpyAttributes* attributes, size_t* first, size_t sets,
                          CUstream stream) {
  BEGIN("cuMemcpyBatchAsync_13000");
  return CopyMany(dsts, srcs, sizes, count, attributes, first, sets, stream);
}
CUresult MemsetD8Async(CUdeviceptr at, unsigned char value, size_t bytes, CUstream stream) {
  BEGIN("cuMemsetD8Async");
  HostStream* queue = StreamOf(stream);
  if (queue == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  REFUSE_IF(!IsReachable(at, bytes));
  queue->Push([at, value, bytes] { std::memset(reinterpret_cast<void*>(at), value, bytes); });
  return CUDA_SUCCESS;
}

struct EntryPoint {
  const char* name;
  int introduced;
  void* function;
};

template <typename Function>
EntryPoint Entry(const char* name, int introduced, Function function) {
  return {name, introduced, reinterpret_cast<void*>(function)};
}

// With the versions that cudaTypedefs.h has for the signatures of cuda.h.
const std::vector<EntryPoint>& EntryPoints() {
  static const std::vector<EntryPoint> points = {
      Entry("cuInit", 2000, Init),
      Entry("cuGetErrorName", 6000, GetErrorName),
      Entry("cuGetErrorString", 6000, GetErrorString),
      Entry("cuDeviceGetCount", 2000, DeviceGetCount),
      Entry("cuDeviceGet", 2000, DeviceGet),
      Entry("cuDeviceGetUuid", 11040, DeviceGetUuid),
      Entry("cuDeviceGetName", 2000, DeviceGetName),
      Entry("cuDeviceGetAttribute", 2000, DeviceGetAttribute),
      Entry("cuDeviceTotalMem", 3020, DeviceTotalMem),
      Entry("cuDevicePrimaryCtxRetain", 7000, PrimaryCtxRetain),
      Entry("cuDevicePrimaryCtxRelease", 11000, PrimaryCtxRelease),
      Entry("cuCtxSetCurrent", 4000, CtxSetCurrent),
      Entry("cuMemGetInfo", 3020, MemGetInfo),
      Entry("cuMemGetAllocationGranularity", 10020, MemGetAllocationGranularity),
      Entry("cuMemCreate", 10020, MemCreate),
      Entry("cuMemRelease", 10020, MemRelease),
      Entry("cuMemExportToShareableHandle", 10020, MemExportToShareableHandle),
      Entry("cuMemImportFromShareableHandle", 10020, MemImportFromShareableHandle),
      Entry("cuMemRetainAllocationHandle", 11000, MemRetainAllocationHandle),
      Entry("cuMemAddressReserve", 10020, MemAddressReserve),
      Entry("cuMemAddressFree", 10020, MemAddressFree),
      Entry("cuMemMap", 10020, MemMap),
      Entry("cuMemUnmap", 10020, MemUnmap),
      Entry("cuMemSetAccess", 10020, MemSetAccess),
      Entry("cuMemAlloc", 3020, MemAlloc),
      Entry("cuMemFree", 3020, MemFree),
      Entry("cuMemGetAddressRange", 3020, MemGetAddressRange),
      Entry("cuIpcGetMemHandle", 4010, IpcGetMemHandle),
      Entry("cuIpcOpenMemHandle", 11000, IpcOpenMemHandle),
      Entry("cuIpcCloseMemHandle", 4010, IpcCloseMemHandle),
      Entry("cuIpcGetEventHandle", 4010, IpcGetEventHandle),
      Entry("cuIpcOpenEventHandle", 4010, IpcOpenEventHandle),
      Entry("cuMemHostRegister", 6050, MemHostRegister),
      Entry("cuMemHostUnregister", 4000, MemHostUnregister),
      Entry("cuStreamCreate", 2000, StreamCreate),
      Entry("cuStreamDestroy", 4000, StreamDestroy),
      Entry("cuStreamSynchronize", 2000, StreamSynchronize),
      Entry("cuStreamWaitEvent", 3020, StreamWaitEvent),
      Entry("cuEventCreate", 2000, EventCreate),
      Entry("cuEventDestroy", 4000, EventDestroy),
      Entry("cuEventRecord", 2000, EventRecord),
      Entry("cuEventQuery", 2000, EventQuery),
      Entry("cuLaunchHostFunc", 10000, LaunchHostFunc),
      Entry("cuLaunchKernel", 4000, LaunchKernel),
      Entry("cuModuleLoadData", 2000, ModuleLoadData),
      Entry("cuModuleUnload", 2000, ModuleUnload),
      Entry("cuModuleGetFunction", 2000, ModuleGetFunction),
      Entry("cuMemcpyAsync", 4000, MemcpyAsync),
      Entry("cuMemcpyBatchAsync", 12080, MemcpyBatch12080),
      Entry("cuMemcpyBatchAsync", 13000, MemcpyBatch13000),
      Entry("cuMemsetD8Async", 3020, MemsetD8Async),
  };
  return points;
}

void Reset(size_t device_bytes) {
  Fake& fake = Driver();
  const std::lock_guard lock(fake.mu);
  fake.version = 13000;
  fake.attributes.clear();
  fake.calls.clear();
  fake.failures.clear();
  fake.device = DeviceOf(device_bytes);
}

}  // namespace
}  // namespace terrace

extern "C" {

CUresult cuDriverGetVersion(int* version) {
  const std::lock_guard lock(terrace::Driver().mu);
  *version = terrace::Driver().version;
  return CUDA_SUCCESS;
}

// As cuda.h documents it: the newest signature that is not newer than `version`. What a driver does
// when it is asked for more than it has, documentation before 13.0 leaves open; this one gives the
// newest that it has.
CUresult cuGetProcAddress_v2(const char* name, void** function, int version, cuuint64_t,
                             CUdriverProcAddressQueryResult* found) {
  const std::lock_guard lock(terrace::Driver().mu);
  *function = nullptr;
  version = std::min(version, terrace::Driver().version);
  *found = CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND;
  for (const terrace::EntryPoint& point : terrace::EntryPoints()) {
    if (std::string_view(point.name) != name) continue;
    if (point.introduced > version) {
      if (*function == nullptr) *found = CU_GET_PROC_ADDRESS_VERSION_NOT_SUFFICIENT;
      continue;
    }
    *function = point.function;
    *found = CU_GET_PROC_ADDRESS_SUCCESS;
  }
  return CUDA_SUCCESS;
}

void FakeCudaReset(size_t device_bytes) {
  terrace::Reset(device_bytes);
}
void FakeCudaVersion(int version) {
  const std::lock_guard lock(terrace::Driver().mu);
  terrace::Driver().version = version;
}
void FakeCudaAttribute(CUdevice_attribute attribute, int value) {
  const std::lock_guard lock(terrace::Driver().mu);
  terrace::Driver().attributes[attribute] = value;
}
void FakeCudaFail(const char* call, unsigned nth, CUresult result) {
  const std::lock_guard lock(terrace::Driver().mu);
  terrace::Driver().failures[{call, terrace::Driver().calls[call] + nth}] = result;
}
unsigned FakeCudaCalls(const char* call) {
  const std::lock_guard lock(terrace::Driver().mu);
  return terrace::Driver().calls[call];
}
unsigned FakeCudaRegistrations(void) {
  const std::lock_guard lock(terrace::Driver().mu);
  return static_cast<unsigned>(terrace::Driver().registered.size());
}

}  // extern "C"
