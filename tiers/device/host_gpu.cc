#include "tiers/device/host_gpu.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>
#include <map>
#include <utility>

#include "base/mutex.h"
#include "tiers/device/gpu_addresses.h"
#include "tiers/device/gpu_handles.h"
#include "tiers/device/host_memory.h"
#include "tiers/device/host_stream.h"

namespace terrace {
namespace {

constexpr uint64_t kPage = 4096;

Status Refused(std::string words) {
  return {Code::kInvalidArgument, std::move(words)};
}

Status NoSlabs() {
  return {Code::kMismatch, "this device has no slabs"};
}

// What an IpcHandle of a host's device holds: where the exporter has the memfd.
struct HostHandle {
  uint64_t magic = 0x6370692d74736f68;  // "host-ipc"
  int32_t process = 0;
  int32_t fd = -1;
  uint64_t inode = 0;
};
static_assert(sizeof(HostHandle) <= kIpcHandleBytes);

Status Pin(std::span<uint8_t> memory, GpuAccess access) {
  const int advice = access == GpuAccess::kRead ? MADV_POPULATE_READ : MADV_POPULATE_WRITE;
  if (::madvise(memory.data(), memory.size(), advice) == 0) return {};
  // Not mapped, or not with that access.
  if (errno == EFAULT || errno == ENOMEM || errno == EINVAL) {
    return Refused(std::string("memory: cannot be pinned: ") + std::strerror(errno));
  }
  return SystemError("memory: pin", errno);
}

class HostGpu final : public Gpu {
 public:
  HostGpu(std::shared_ptr<HostDevice> device, const HostGpuOptions& options)
      : device_(std::move(device)), options_(options), addresses_(options.granularity) {}

  ~HostGpu() override {
    MutexLock lock(mu_);
    for (const auto& [id, stream] : streams_)
      stream->Stop();
  }

  const GpuFacts& facts() const override { return device_->facts(); }
  Result<GpuMemory> Memory() override { return device_->memory(); }

  // ---- Slabs
  Result<GpuSlab> CreateSlab(uint64_t bytes) override {
    if (!options_.slabs) return NoSlabs();
    RETURN_IF_ERROR(addresses_.CheckGranules("bytes", bytes));
    ASSIGN_OR_RETURN(std::shared_ptr<HostMemory> memory,
                     HostMemory::Create(device_, bytes, options_.dirty));
    return Keep(std::move(memory));
  }

  Result<UniqueFd> ExportSlab(GpuSlab slab) override {
    ASSIGN_OR_RETURN(const std::shared_ptr<HostMemory> memory, FindSlab(slab));
    UniqueFd fd(::fcntl(memory->fd(), F_DUPFD_CLOEXEC, 0));
    if (!fd) return SystemError("duplicate the descriptor of a slab", errno);
    return fd;
  }

  Result<GpuSlab> ImportSlab(int fd, uint64_t bytes) override {
    if (!options_.slabs) return NoSlabs();
    RETURN_IF_ERROR(addresses_.CheckGranules("bytes", bytes));
    UniqueFd own(::fcntl(fd, F_DUPFD_CLOEXEC, 0));
    if (!own) return Refused("fd: is not open");
    ASSIGN_OR_RETURN(std::shared_ptr<HostMemory> memory, HostMemory::Import(std::move(own), bytes));
    return Keep(std::move(memory));
  }

  Status ReleaseSlab(GpuSlab slab) override {
    std::shared_ptr<HostMemory> released;
    MutexLock lock(mu_);
    ASSIGN_OR_RETURN(released, slabs_.Take(slab));
    return {};
  }

  // ---- Ranges
  Result<GpuAddress> ReserveRange(uint64_t bytes) override {
    if (!options_.slabs) return NoSlabs();
    RETURN_IF_ERROR(addresses_.CheckGranules("bytes", bytes));
    ASSIGN_OR_RETURN(std::unique_ptr<HostRange> range,
                     HostRange::Reserve(bytes, options_.granularity));
    const GpuAddress at = range->address();
    MutexLock lock(mu_);
    ranges_.emplace(at, std::move(range));
    addresses_.AddRange(at, bytes);
    return at;
  }

  Status FreeRange(GpuAddress range) override {
    MutexLock lock(mu_);
    RETURN_IF_ERROR(addresses_.CheckFree(range).status());
    addresses_.RemoveRange(range);
    ranges_.erase(range);
    return {};
  }

  Status MapSlab(GpuAddress at, GpuSlab slab) override {
    ASSIGN_OR_RETURN(const std::shared_ptr<HostMemory> memory, FindSlab(slab));
    MutexLock lock(mu_);
    RETURN_IF_ERROR(addresses_.CheckMap(at, memory->bytes()));
    RETURN_IF_ERROR(MapAt(at, *memory));
    addresses_.AddMapping(at, memory->bytes());
    mappings_.emplace(at, memory);
    return {};
  }

  Status SetAccess(GpuAddress at, uint64_t bytes, GpuAccess access) override {
    MutexLock lock(mu_);
    RETURN_IF_ERROR(addresses_.CheckAccess(at, bytes));
    RETURN_IF_ERROR(ProtectAt(at, bytes, access));
    addresses_.SetAccess(at, bytes, access);
    return {};
  }

  Status UnmapSlab(GpuAddress at) override {
    MutexLock lock(mu_);
    ASSIGN_OR_RETURN(const uint64_t bytes, addresses_.RemoveMapping(at));
    RETURN_IF_ERROR(UnmapAt(at, bytes));
    mappings_.erase(at);
    return {};
  }

  // ---- Allocations
  Result<GpuAddress> Allocate(uint64_t bytes) override {
    RETURN_IF_ERROR(addresses_.CheckGranules("bytes", bytes));
    ASSIGN_OR_RETURN(const std::shared_ptr<HostMemory> memory,
                     HostMemory::Create(device_, bytes, options_.dirty));
    return Place(memory, false);
  }

  Status FreeAllocation(GpuAddress allocation) override { return TakeAway(allocation, false); }

  Result<IpcHandle> ExportAllocation(GpuAddress allocation) override {
    MutexLock lock(mu_);
    RETURN_IF_ERROR(addresses_.CheckAllocation(allocation, false));
    HostHandle handle;
    handle.process = ::getpid();
    handle.fd = mappings_.at(allocation)->fd();
    struct stat file {};
    if (::fstat(handle.fd, &file) != 0) return SystemError("fstat of an allocation", errno);
    handle.inode = file.st_ino;
    IpcHandle bytes{};
    std::memcpy(bytes.data(), &handle, sizeof handle);
    return bytes;
  }

  Result<GpuAddress> OpenAllocation(const IpcHandle& handle, uint64_t bytes) override {
    RETURN_IF_ERROR(addresses_.CheckGranules("bytes", bytes));
    HostHandle where;
    std::memcpy(&where, handle.data(), sizeof where);
    if (where.magic != HostHandle().magic) return Refused("handle: not of a host's device");
    if (where.process == ::getpid()) return Refused("handle: of this process itself");
    const std::string path =
        "/proc/" + std::to_string(where.process) + "/fd/" + std::to_string(where.fd);
    UniqueFd fd(::open(path.c_str(), O_RDWR | O_CLOEXEC));
    if (!fd) return Refused("handle: its allocation is gone: " + std::string(std::strerror(errno)));
    struct stat file {};
    if (::fstat(fd.get(), &file) != 0) return SystemError("fstat of an allocation", errno);
    if (file.st_ino != where.inode) return Refused("handle: its allocation is gone");
    ASSIGN_OR_RETURN(const std::shared_ptr<HostMemory> memory,
                     HostMemory::Import(std::move(fd), bytes));
    return Place(memory, true);
  }

  Status CloseAllocation(GpuAddress opened) override { return TakeAway(opened, true); }

  Result<GpuForeign> ShareForeign(GpuAddress) override {
    return Status(Code::kMismatch, "memory of a device of the host is shared by its memfd");
  }

  // ---- Host memory
  Result<HostRegion> RegisterHost(std::span<uint8_t> memory, GpuAccess access) override {
    if (access == GpuAccess::kNone) return Refused("access: none");
    RETURN_IF_ERROR(addresses_.ClaimHost(memory));
    for (size_t at = 0; at < memory.size(); at += options_.registration_bytes) {
      const size_t bytes = std::min<size_t>(options_.registration_bytes, memory.size() - at);
      Status pinned = Pin(memory.subspan(at, bytes), access);
      if (!pinned.ok()) {
        addresses_.RemoveHost(memory);
        return pinned;
      }
    }
    addresses_.AdmitHost(memory, access, options_.registration_bytes);
    MutexLock lock(mu_);
    return regions_.Add(memory);
  }

  Status UnregisterHost(HostRegion region) override {
    MutexLock lock(mu_);
    ASSIGN_OR_RETURN(const std::span<uint8_t> memory, regions_.Take(region));
    addresses_.RemoveHost(memory);
    return {};
  }

  // ---- Streams and events
  Result<GpuStream> CreateStream() override {
    ASSIGN_OR_RETURN(std::shared_ptr<HostStream> stream, HostStream::Start());
    MutexLock lock(mu_);
    return streams_.Add(std::move(stream));
  }

  Status DestroyStream(GpuStream stream) override {
    std::shared_ptr<HostStream> destroyed;
    {
      MutexLock lock(mu_);
      ASSIGN_OR_RETURN(destroyed, streams_.Take(stream));
    }
    destroyed->Stop();
    return {};
  }

  Result<GpuEvent> CreateEvent() override {
    MutexLock lock(mu_);
    return events_.Add(nullptr);
  }

  Status DestroyEvent(GpuEvent event) override {
    MutexLock lock(mu_);
    return events_.Take(event).status();
  }

  Status RecordEvent(GpuEvent event, GpuStream stream) override {
    RETURN_IF_ERROR(FindEvent(event).status());
    const auto mark = std::make_shared<HostMark>();
    RETURN_IF_ERROR(Push(stream, [mark] { mark->Reach(); }));
    MutexLock lock(mu_);
    (void)events_.Replace(event, mark);  // It may be destroyed meanwhile.
    return {};
  }

  Status WaitEvent(GpuStream stream, GpuEvent event) override {
    ASSIGN_OR_RETURN(const std::shared_ptr<HostMark> mark, FindEvent(event));
    if (mark == nullptr) return FindStream(stream).status();
    return Push(stream, [mark] { mark->Wait(); });
  }

  Result<bool> QueryEvent(GpuEvent event) override {
    ASSIGN_OR_RETURN(const std::shared_ptr<HostMark> mark, FindEvent(event));
    return mark == nullptr || mark->reached();
  }

  Status Notify(GpuStream stream, int eventfd) override {
    const auto own = std::make_shared<UniqueFd>(::fcntl(eventfd, F_DUPFD_CLOEXEC, 0));
    if (!*own) return Refused("eventfd: is not open");
    return Push(stream, [own] {
      const uint64_t one = 1;
      // Full, it wakes its reader already.
      (void)!::write(own->get(), &one, sizeof one);
    });
  }

  // ---- Work
  Status Copy(GpuStream stream, std::span<const GpuCopy> copies, SourceOrder) override {
    ASSIGN_OR_RETURN(std::vector<GpuCopy> plan, addresses_.Plan(copies));
    return Push(stream, [plan = std::move(plan)] {
      for (const GpuCopy& copy : plan) {
        std::memcpy(reinterpret_cast<void*>(copy.dst), reinterpret_cast<const void*>(copy.src),
                    copy.bytes);
      }
    });
  }

  Status Clear(GpuStream stream, GpuAddress at, uint64_t bytes) override {
    RETURN_IF_ERROR(addresses_.CheckClear(at, bytes));
    return Push(stream, [at, bytes] { std::memset(reinterpret_cast<void*>(at), 0, bytes); });
  }

  Status GatherPages(GpuStream stream, const PagedLayout& layout,
                     std::span<const PagedBlock> blocks) override {
    return PushPages(stream, layout, blocks, true);
  }

  Status ScatterPages(GpuStream stream, const PagedLayout& layout,
                      std::span<const PagedBlock> blocks) override {
    return PushPages(stream, layout, blocks, false);
  }

 private:
  GpuSlab Keep(std::shared_ptr<HostMemory> memory) {
    MutexLock lock(mu_);
    return slabs_.Add(std::move(memory));
  }

  Result<std::shared_ptr<HostMemory>> FindSlab(GpuSlab slab) {
    MutexLock lock(mu_);
    return slabs_.Find(slab);
  }

  Result<std::shared_ptr<HostStream>> FindStream(GpuStream stream) {
    MutexLock lock(mu_);
    return streams_.Find(stream);
  }

  // Null: it was never recorded.
  Result<std::shared_ptr<HostMark>> FindEvent(GpuEvent event) {
    MutexLock lock(mu_);
    return events_.Find(event);
  }

  Result<GpuAddress> Place(const std::shared_ptr<HostMemory>& memory, bool opened) {
    ASSIGN_OR_RETURN(std::unique_ptr<HostRange> range,
                     HostRange::Reserve(memory->bytes(), options_.granularity));
    const GpuAddress at = range->address();
    RETURN_IF_ERROR(MapAt(at, *memory));
    RETURN_IF_ERROR(ProtectAt(at, memory->bytes(), GpuAccess::kReadWrite));
    MutexLock lock(mu_);
    addresses_.AddAllocation(at, memory->bytes(), opened);
    ranges_.emplace(at, std::move(range));
    mappings_.emplace(at, memory);
    return at;
  }

  Status TakeAway(GpuAddress allocation, bool opened) {
    MutexLock lock(mu_);
    RETURN_IF_ERROR(addresses_.RemoveAllocation(allocation, opened).status());
    ranges_.erase(allocation);
    mappings_.erase(allocation);
    return {};
  }

  Status Push(GpuStream stream, std::function<void()> work) {
    ASSIGN_OR_RETURN(const std::shared_ptr<HostStream> found, FindStream(stream));
    if (!found->Push(std::move(work))) return Refused("stream: it is being destroyed");
    return {};
  }

  Status PushPages(GpuStream stream, PagedLayout layout, std::span<const PagedBlock> blocks,
                   bool gather) {
    RETURN_IF_ERROR(addresses_.CheckPages(layout, blocks, gather));
    return Push(stream,
                [layout, gather, bases = std::vector(layout.bases.begin(), layout.bases.end()),
                 own = std::vector(blocks.begin(), blocks.end())]() mutable {
                  layout.bases = bases;
                  if (gather) {
                    terrace::GatherPages(layout, own);
                  } else {
                    terrace::ScatterPages(layout, own);
                  }
                });
  }

  const std::shared_ptr<HostDevice> device_;
  const HostGpuOptions options_;
  GpuAddresses addresses_;  // Changed under mu_, but for host memory.

  Mutex mu_;  // What it is held over makes no I/O: a mapping is changed in microseconds.
  GpuHandles<GpuSlab, std::shared_ptr<HostMemory>> slabs_ GUARDED_BY(mu_){"slab"};
  // By address, those of allocations too.
  std::map<GpuAddress, std::unique_ptr<HostRange>> ranges_ GUARDED_BY(mu_);
  std::map<GpuAddress, std::shared_ptr<HostMemory>> mappings_ GUARDED_BY(mu_);
  GpuHandles<HostRegion, std::span<uint8_t>> regions_ GUARDED_BY(mu_){"region"};
  GpuHandles<GpuStream, std::shared_ptr<HostStream>> streams_ GUARDED_BY(mu_){"stream"};
  GpuHandles<GpuEvent, std::shared_ptr<HostMark>> events_ GUARDED_BY(mu_){"event"};
};

class HostGpus final : public Gpus {
 public:
  explicit HostGpus(const HostGpuOptions& options) : options_(options) {
    for (const HostGpuDevice& device : options.devices) {
      GpuFacts facts;
      facts.uuid = device.uuid;
      facts.name = "host memory";
      facts.driver = "host memory";
      facts.total_bytes = device.bytes;
      facts.slabs = options.slabs;
      facts.granularity = options.granularity;
      facts.allocations = true;
      facts.batches = true;
      facts.paged_copies = true;
      facts.read_only_registration = true;
      facts.registration_bytes = options.registration_bytes;
      facts_.push_back(facts);
      devices_.push_back(std::make_shared<HostDevice>(facts));
    }
  }

  const std::vector<GpuFacts>& devices() const override { return facts_; }

  Result<std::unique_ptr<Gpu>> Open(const GpuUuid& uuid) override {
    for (const std::shared_ptr<HostDevice>& device : devices_) {
      if (device->facts().uuid == uuid) return std::unique_ptr<Gpu>(new HostGpu(device, options_));
    }
    return Status(Code::kNotFound, "no host device is " + uuid.Text());
  }

 private:
  const HostGpuOptions options_;
  std::vector<GpuFacts> facts_;
  std::vector<std::shared_ptr<HostDevice>> devices_;
};

}  // namespace

Result<std::unique_ptr<Gpus>> OpenHostGpus(const HostGpuOptions& options) {
  if (!std::has_single_bit(options.granularity) || options.granularity < kPage) {
    return Refused("granularity: not a power of two of at least 4096");
  }
  if (options.registration_bytes == 0 || options.registration_bytes % kPage != 0) {
    return Refused("registration_bytes: not a multiple of 4096");
  }
  for (size_t i = 0; i < options.devices.size(); ++i) {
    for (size_t j = 0; j < i; ++j) {
      if (options.devices[i].uuid == options.devices[j].uuid) {
        return Refused("devices: two have the UUID " + options.devices[i].uuid.Text());
      }
    }
  }
  return std::unique_ptr<Gpus>(std::make_unique<HostGpus>(options));
}

}  // namespace terrace
