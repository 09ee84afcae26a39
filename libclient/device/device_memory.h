// DeviceMemory: a GPU as this process maps memory of it: the library's one door to CUDA.
//
// It uses the device's primary context, which is also that of the CUDA runtime, so that what is
// mapped here can be used by the engine's kernels. The driver is called on threads of its own: the
// calling thread's current context stays what it was. Devices of the kind "host" are memory of this
// host, whose addresses programs read directly.
//
// Mappings hold the DeviceMemory; it goes with the last of them. Thread-safe.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>

#include "base/mutex.h"
#include "base/status.h"
#include "base/unique_fd.h"
#include "libclient/address_places.h"
#include "libclient/arena_map.h"
#include "libclient/messages.h"
#include "tiers/device/gpu.h"

namespace terrace::client {

// What the daemon shares memory of a device by: a slab's descriptor, or the handle of an allocation
// where the device has no slabs.
struct SharedMemory {
  int fd = -1;
  std::string handle;  // Empty: it is the descriptor.
  uint64_t bytes = 0;  // Whole granules.
};

// The UUID that the CUDA driver gives the device of this ordinal in this process.
Result<std::string> UuidOfCudaOrdinal(int32_t ordinal);

class DeviceMemory : public std::enable_shared_from_this<DeviceMemory> {
 public:
  // As the daemon describes it. `not_found`: there is no driver, or it has no such device.
  static Result<std::shared_ptr<DeviceMemory>> Open(const messages::Device& facts);
  ~DeviceMemory();
  DeviceMemory(const DeviceMemory&) = delete;
  DeviceMemory& operator=(const DeviceMemory&) = delete;

  bool slabs() const { return slabs_; }
  uint64_t Rounded(uint64_t bytes) const;

  // Addresses without memory, with slabs only; given back with the last holder.
  class Range {
   public:
    ~Range();
    uint8_t* base() const { return reinterpret_cast<uint8_t*>(base_); }
    uint64_t bytes() const { return bytes_; }
    // In whole granules, where nothing is.
    Status MapAt(uint64_t offset, const SharedMemory& memory, GpuAccess access);
    void UnmapAt(uint64_t offset);

   private:
    friend class DeviceMemory;
    Range(DeviceMemory& memory, GpuAddress base, uint64_t bytes)
        : memory_(memory), base_(base), bytes_(bytes) {}
    DeviceMemory& memory_;
    const GpuAddress base_;
    const uint64_t bytes_;
  };
  // Holds the DeviceMemory.
  Result<std::shared_ptr<Range>> Reserve(uint64_t bytes);

  // At addresses of its own, wherever: for writing, and all that a device without slabs can do.
  Result<MappedArena> Map(const SharedMemory& memory, GpuAccess access);

  // How others can share the memory of this process that has that address on the device.
  Result<GpuForeign> ShareForeign(GpuAddress at);

  // An arena of pages for reading: with slabs in the one range of its page size.
  Result<MappedArena> MapPages(uint32_t page_bytes, const SharedMemory& memory) EXCLUDES(mu_);
  // Where that range begins: page i lies at i * page_bytes. `mismatch` without slabs.
  Result<const uint8_t*> PagesBase(uint32_t page_bytes) EXCLUDES(mu_);

 private:
  struct Pages {
    std::unique_ptr<Range> range;
    AddressPlaces places;
  };

  DeviceMemory(std::unique_ptr<Gpus> gpus, std::unique_ptr<Gpu> gpu, const messages::Device& facts);
  // `mismatch` without slabs.
  Result<std::unique_ptr<Range>> NewRange(uint64_t bytes);
  Result<Pages*> PagesOf(uint32_t page_bytes) REQUIRES(mu_);
  Result<MappedArena> OpenHandle(const SharedMemory& memory) EXCLUDES(mu_);

  std::unique_ptr<Gpus> gpus_;
  std::unique_ptr<Gpu> gpu_;
  const bool slabs_;
  const uint64_t granularity_;
  const uint64_t capacity_bytes_;
  Mutex mu_;
  std::map<uint32_t, Pages> pages_ GUARDED_BY(mu_);  // By page_bytes; they stay.
  CondVar closed_;
  // Allocations that are open: the driver opens each once. Expired from the last holder's letting go
  // until it is closed.
  std::map<std::string, std::weak_ptr<const void>> opened_ GUARDED_BY(mu_);
};

}  // namespace terrace::client
