// What the host's devices are made of: a device's budget, physical memory that counts against it,
// and addresses of the processor.
//
// Thread safety: HostDevice all of it; the others are values that are not changed once they are
// made.
#pragma once

#include <cstdint>
#include <memory>

#include "base/mutex.h"
#include "base/status.h"
#include "base/unique_fd.h"
#include "tiers/device/gpu.h"

namespace terrace {

// One device, which all Gpus that this process opened of it share.
class HostDevice {
 public:
  explicit HostDevice(GpuFacts facts) : facts_(std::move(facts)) {}
  const GpuFacts& facts() const { return facts_; }
  bool Take(uint64_t bytes) EXCLUDES(mu_);
  void GiveBack(uint64_t bytes) EXCLUDES(mu_);
  GpuMemory memory() const EXCLUDES(mu_);

 private:
  const GpuFacts facts_;
  mutable Mutex mu_;
  uint64_t taken_ GUARDED_BY(mu_) = 0;
};

// Physical memory: a memfd. Made here it counts against the device; imported it does not.
class HostMemory {
 public:
  static Result<std::shared_ptr<HostMemory>> Create(std::shared_ptr<HostDevice> device,
                                                    uint64_t bytes, bool dirty);
  // `fd` is one that another made.
  static Result<std::shared_ptr<HostMemory>> Import(UniqueFd fd, uint64_t bytes);
  ~HostMemory();
  HostMemory(const HostMemory&) = delete;
  HostMemory& operator=(const HostMemory&) = delete;

  int fd() const { return fd_.get(); }
  uint64_t bytes() const { return bytes_; }

 private:
  HostMemory(UniqueFd fd, uint64_t bytes) : fd_(std::move(fd)), bytes_(bytes) {}

  UniqueFd fd_;
  uint64_t bytes_;
  std::shared_ptr<HostDevice> charged_;
};

// Reserved addresses, which nobody may touch before something is mapped there.
class HostRange {
 public:
  static Result<std::unique_ptr<HostRange>> Reserve(uint64_t bytes, uint64_t alignment);
  ~HostRange();
  HostRange(const HostRange&) = delete;
  HostRange& operator=(const HostRange&) = delete;

  GpuAddress address() const { return address_; }
  uint64_t bytes() const { return bytes_; }

 private:
  HostRange(GpuAddress address, uint64_t bytes) : address_(address), bytes_(bytes) {}
  GpuAddress address_;
  uint64_t bytes_;
};

// In place of what is at reserved addresses: all of `memory`, without access; or nothing again.
Status MapAt(GpuAddress at, const HostMemory& memory);
Status UnmapAt(GpuAddress at, uint64_t bytes);
Status ProtectAt(GpuAddress at, uint64_t bytes, GpuAccess access);

}  // namespace terrace
