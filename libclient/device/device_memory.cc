#include "libclient/device/device_memory.h"

#include <algorithm>
#include <cstring>
#include <functional>
#include <future>
#include <numeric>
#include <optional>
#include <system_error>
#include <utility>

#include "tiers/device/cuda_gpu.h"
#include "tiers/device/host_gpu.h"

namespace terrace::client {
namespace {

constexpr uint64_t kSlabBytes = 64 << 20;  // About what a daemon makes of a device's memory.
constexpr uint64_t kRoom =
    4;  // Of the capacity: fragments, and arenas that were not let go of yet.
constexpr uint64_t kMostBytes = 1ull << 42;  // Of a range.

// A thread that calls the driver has its context current afterwards, and the caller's belongs to
// the engine. What is mapped is mapped seldom, so a thread for each call costs little. Where there
// is no thread to be had, memory is given back all the same.
template <class Call>
auto Aside(Call call) {
  std::future<decltype(call())> answer;
  try {
    answer = std::async(std::launch::async, std::ref(call));
  } catch (const std::system_error&) {
    return call();
  }
  return answer.get();
}

Result<std::unique_ptr<Gpus>> OpenGpus(const messages::Device& facts, const GpuUuid& uuid) {
  if (facts.kind == "cuda") return OpenCudaGpus({});
  if (facts.kind != "host") {
    return Status(Code::kMismatch,
                  "the device is of a kind that this library does not know: '" + facts.kind + "'");
  }
  return OpenHostGpus({.devices = {{.uuid = uuid, .bytes = facts.capacity_bytes}},
                       .granularity = facts.granularity,
                       .slabs = facts.slabs});
}

}  // namespace

Result<std::string> UuidOfCudaOrdinal(int32_t ordinal) {
  return Aside([&]() -> Result<std::string> {
    ASSIGN_OR_RETURN(const std::unique_ptr<Gpus> gpus, OpenCudaGpus({}));
    const auto& devices = gpus->devices();
    if (ordinal < 0 || static_cast<size_t>(ordinal) >= devices.size()) {
      return Status(Code::kNotFound,
                    "ordinal: the CUDA driver has " + std::to_string(devices.size()) + " devices");
    }
    return devices[static_cast<size_t>(ordinal)].uuid.Text();
  });
}

Result<std::shared_ptr<DeviceMemory>> DeviceMemory::Open(const messages::Device& facts) {
  const std::optional<GpuUuid> uuid = ParseGpuUuid(facts.uuid);
  if (!uuid) return Status(Code::kDataLoss, "the daemon describes the device wrongly: uuid");
  return Aside([&]() -> Result<std::shared_ptr<DeviceMemory>> {
    ASSIGN_OR_RETURN(std::unique_ptr<Gpus> gpus, OpenGpus(facts, *uuid));
    ASSIGN_OR_RETURN(std::unique_ptr<Gpu> gpu, gpus->Open(*uuid));
    const uint64_t own = gpu->facts().granularity;
    if (facts.slabs &&
        (!gpu->facts().slabs || facts.granularity == 0 || facts.granularity % own != 0)) {
      return Status(Code::kMismatch,
                    "the device's memory is shared by slabs, which it does not "
                    "have here, or not in the daemon's granularity");
    }
    return std::shared_ptr<DeviceMemory>(new DeviceMemory(std::move(gpus), std::move(gpu), facts));
  });
}

DeviceMemory::DeviceMemory(std::unique_ptr<Gpus> gpus, std::unique_ptr<Gpu> gpu,
                           const messages::Device& facts)
    : gpus_(std::move(gpus)),
      gpu_(std::move(gpu)),
      slabs_(facts.slabs),
      granularity_(std::max<uint64_t>(facts.granularity, gpu_->facts().granularity)),
      capacity_bytes_(facts.capacity_bytes) {}

DeviceMemory::~DeviceMemory() {
  pages_.clear();
  Aside([this] {
    gpu_.reset();
    gpus_.reset();
  });
}

uint64_t DeviceMemory::Rounded(uint64_t bytes) const {
  return (bytes + granularity_ - 1) / granularity_ * granularity_;
}

// ---- Ranges

Result<std::unique_ptr<DeviceMemory::Range>> DeviceMemory::NewRange(uint64_t bytes) {
  if (!slabs_) {
    return Status(Code::kMismatch, "the device has no slabs, so addresses cannot be reserved");
  }
  const uint64_t whole = Rounded(std::max<uint64_t>(bytes, 1));
  ASSIGN_OR_RETURN(const GpuAddress base, Aside([&] { return gpu_->ReserveRange(whole); }));
  return std::unique_ptr<Range>(new Range(*this, base, whole));
}

Result<std::shared_ptr<DeviceMemory::Range>> DeviceMemory::Reserve(uint64_t bytes) {
  ASSIGN_OR_RETURN(std::unique_ptr<Range> range, NewRange(bytes));
  return std::shared_ptr<Range>(range.release(),
                                [self = shared_from_this()](Range* given) { delete given; });
}

DeviceMemory::Range::~Range() {
  // Refused while something is mapped in it; then it stays until the device is closed.
  static_cast<void>(Aside([this] { return memory_.gpu_->FreeRange(base_); }));
}

Status DeviceMemory::Range::MapAt(uint64_t offset, const SharedMemory& memory, GpuAccess access) {
  return Aside([&]() -> Status {
    Gpu& gpu = *memory_.gpu_;
    const GpuAddress at = base_ + offset;
    ASSIGN_OR_RETURN(const GpuSlab slab, gpu.ImportSlab(memory.fd, memory.bytes));
    Status mapped = gpu.MapSlab(at, slab);
    // The mapping keeps the memory.
    const Status released = gpu.ReleaseSlab(slab);
    if (!mapped.ok()) return mapped;
    mapped = released.ok() ? gpu.SetAccess(at, memory.bytes, access) : released;
    if (!mapped.ok()) static_cast<void>(gpu.UnmapSlab(at));
    return mapped;
  });
}

void DeviceMemory::Range::UnmapAt(uint64_t offset) {
  // Fails only where the context is dead, and everything with it.
  static_cast<void>(Aside([&] { return memory_.gpu_->UnmapSlab(base_ + offset); }));
}

// ---- Arenas

Result<MappedArena> DeviceMemory::OpenHandle(const SharedMemory& memory) {
  IpcHandle handle{};
  if (memory.handle.size() != handle.size()) {
    return Status(Code::kDataLoss, "the daemon sent neither a descriptor nor a handle of memory");
  }
  std::memcpy(handle.data(), memory.handle.data(), handle.size());
  MutexLock lock(mu_);
  for (auto known = opened_.find(memory.handle); known != opened_.end();
       known = opened_.find(memory.handle)) {
    if (std::shared_ptr<const void> open = known->second.lock()) {
      auto* base = static_cast<uint8_t*>(const_cast<void*>(open.get()));
      return MappedArena{base, std::move(open)};
    }
    closed_.wait(mu_);  // Its last holder is about to close it.
  }
  ASSIGN_OR_RETURN(const GpuAddress at,
                   Aside([&] { return gpu_->OpenAllocation(handle, memory.bytes); }));
  auto* base = reinterpret_cast<uint8_t*>(at);
  std::shared_ptr<const void> held(
      base, [self = shared_from_this(), at, name = memory.handle](const void*) {
        MutexLock close(self->mu_);
        static_cast<void>(Aside([&] { return self->gpu_->CloseAllocation(at); }));
        self->opened_.erase(name);
        self->closed_.notify_all();
      });
  opened_.emplace(memory.handle, held);
  return MappedArena{base, std::move(held)};
}

Result<MappedArena> DeviceMemory::Map(const SharedMemory& memory, GpuAccess access) {
  if (!slabs_) return OpenHandle(memory);
  ASSIGN_OR_RETURN(const std::shared_ptr<Range> range, Reserve(memory.bytes));
  RETURN_IF_ERROR(range->MapAt(0, memory, access));
  std::shared_ptr<const void> held(range->base(), [range](const void*) { range->UnmapAt(0); });
  return MappedArena{range->base(), std::move(held)};
}

Result<GpuForeign> DeviceMemory::ShareForeign(GpuAddress at) {
  return Aside([&] { return gpu_->ShareForeign(at); });
}

Result<DeviceMemory::Pages*> DeviceMemory::PagesOf(uint32_t page_bytes) {
  if (const auto known = pages_.find(page_bytes); known != pages_.end()) return &known->second;
  if (page_bytes == 0) return Status(Code::kDataLoss, "the daemon announced pages of 0 bytes");
  // A place starts where a page and a granule do.
  const uint64_t step = std::lcm(uint64_t{page_bytes}, granularity_);
  const uint64_t spread = std::max<uint64_t>(1, step / kSlabBytes) * kRoom;
  const uint64_t wanted =
      capacity_bytes_ > kMostBytes / spread ? kMostBytes : capacity_bytes_ * spread;
  const uint64_t bytes = std::clamp(wanted, step * 16, std::max(kMostBytes, step * 16));
  ASSIGN_OR_RETURN(std::unique_ptr<Range> range, NewRange(bytes));
  return &pages_.emplace(page_bytes, Pages{std::move(range), AddressPlaces(bytes, step)})
              .first->second;
}

Result<const uint8_t*> DeviceMemory::PagesBase(uint32_t page_bytes) {
  MutexLock lock(mu_);
  ASSIGN_OR_RETURN(const Pages* pages, PagesOf(page_bytes));
  return static_cast<const uint8_t*>(pages->range->base());
}

Result<MappedArena> DeviceMemory::MapPages(uint32_t page_bytes, const SharedMemory& memory) {
  if (!slabs_) return OpenHandle(memory);
  Range* range = nullptr;
  std::optional<uint64_t> offset;
  {
    MutexLock lock(mu_);
    ASSIGN_OR_RETURN(Pages * pages, PagesOf(page_bytes));
    range = pages->range.get();
    offset = pages->places.Take(memory.bytes);
  }
  if (!offset) {
    return Status(Code::kExhausted, "no addresses of the device left for pages of " +
                                        std::to_string(page_bytes) + " bytes");
  }
  const auto give = [self = shared_from_this(), page_bytes, at = *offset] {
    MutexLock lock(self->mu_);
    self->pages_.at(page_bytes).places.Give(at);
  };
  const Status mapped = range->MapAt(*offset, memory, GpuAccess::kRead);
  if (!mapped.ok()) {
    give();
    return mapped;
  }
  uint8_t* base = range->base() + *offset;
  std::shared_ptr<const void> held(base, [range, give, at = *offset](const void*) {
    range->UnmapAt(at);
    give();
  });
  return MappedArena{base, std::move(held)};
}

}  // namespace terrace::client
