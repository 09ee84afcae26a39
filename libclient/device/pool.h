// Pool: memory of a device that the engine owns, as the daemon knows it: what is copied between
// its blocks and pages.
//
// It is known to the daemon life that it was added in, and `stale` in every other. Thread-safe.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/status.h"
#include "base/unique_fd.h"
#include "libclient/client.h"
#include "libclient/device/device.h"
#include "libclient/space.h"

namespace terrace::client {

class Pool {
 public:
  // What the daemon opens it by.
  struct Memory {
    UniqueFd slab;       // Or none, and
    std::string handle;  // the handle of an allocation.
    uint64_t bytes = 0;
    uint64_t offset = 0;  // Where what the engine calls its beginning lies in it.
  };
  // Of memory of this process that lies on the device, at least `bytes` from `at` on.
  static Result<Memory> MemoryAt(const Device& device, uint64_t at, uint64_t bytes);

  static Result<std::unique_ptr<Pool>> Add(std::shared_ptr<Device> device, const Memory& memory,
                                           Deadline deadline);
  // Without Remove, it is removed without waiting long.
  ~Pool();
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  Client& client() const { return *device_->client(); }
  // `pages` says all but the pool, the space and the deadline; its bases count from the beginning
  // of the engine's. One code a key.
  Result<std::vector<Code>> Store(const Space& space, messages::PoolPages pages, Deadline deadline);
  Result<std::vector<Code>> Fetch(const Space& space, messages::PoolPages pages, Deadline deadline);
  // Ok: the daemon has nothing of it.
  Status Remove(Deadline deadline);

 private:
  Pool(std::shared_ptr<Device> device, uint64_t offset, uint64_t epoch, uint64_t number)
      : device_(std::move(device)), offset_(offset), epoch_(epoch), number_(number) {}

  template <class Request>
  Result<std::vector<Code>> Ask(const Space& space, messages::PoolPages pages, Deadline deadline);

  const std::shared_ptr<Device> device_;
  const uint64_t offset_;
  const uint64_t epoch_;   // Of the life that knows it,
  const uint64_t number_;  // by this number.
  std::atomic<bool> removed_ = false;
};

}  // namespace terrace::client
