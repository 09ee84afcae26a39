// MemfdDirectory: directory memory that clients can map and nobody but the daemon can write.
//
// Each directory is a memfd without a name, mode 0600, mapped writable here once and then sealed
// against every later write, resize and seal, whatever the uid of who holds a descriptor. Memory
// becomes resident by Populate, on huge pages where the kernel gives them.
//
// Owner thread only. Regions that were not freed are unmapped at the end.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <span>

#include "base/status.h"
#include "base/unique_fd.h"
#include "daemon/engine/tenant_index.h"

namespace terrace {

class MemfdDirectory final : public DirectoryMemory {
 public:
  MemfdDirectory() = default;
  ~MemfdDirectory() override;
  MemfdDirectory(const MemfdDirectory&) = delete;
  MemfdDirectory& operator=(const MemfdDirectory&) = delete;

  Result<Region> Allocate(size_t bytes) override;
  void Populate(uint64_t token, size_t offset) override;
  void Free(uint64_t token) override;
  Result<UniqueFd> Descriptor(uint64_t token) override;

 private:
  struct Sealed {
    UniqueFd fd;
    std::span<uint8_t> bytes;
  };

  std::map<uint64_t, Sealed> regions_;  // By token.
  uint64_t last_token_ = 0;
};

}  // namespace terrace
