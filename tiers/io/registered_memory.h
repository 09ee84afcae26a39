// RegisteredMemory: the table of memory that a ring's kernel side keeps pinned, so that requests
// within it cost no walk over its pages.
//
// A region is registered in stretches of at most 1 GiB, which is what the kernel takes as one; a
// request across the border of two goes without. So does a request that finds its stretch here just
// before it is removed: the kernel then answers EFAULT, for it looks the address up in the stretch
// that it has, and the request is made again without.
//
// Thread safety: all of it.
#pragma once

#include <sys/uio.h>

#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <vector>

#include "base/mutex.h"

struct io_uring;

namespace terrace {

class RegisteredMemory {
 public:
  // A table with that many places; with none where the kernel refuses it. The ring outlives this.
  RegisteredMemory(io_uring& ring, uint32_t places);
  RegisteredMemory(const RegisteredMemory&) = delete;
  RegisteredMemory& operator=(const RegisteredMemory&) = delete;

  // As far as there are places and the kernel pins it.
  void Add(std::span<uint8_t> memory) EXCLUDES(changes_mu_, mu_);
  // Every stretch that has a byte of `memory`.
  void Remove(std::span<uint8_t> memory) EXCLUDES(changes_mu_, mu_);

  // The place of the stretch that has all of `piece`.
  std::optional<uint16_t> Find(const iovec& piece) const EXCLUDES(mu_);
  uint64_t bytes() const EXCLUDES(mu_);

 private:
  struct Stretch {
    uintptr_t end = 0;
    uint16_t place = 0;
  };

  bool AddStretch(std::span<uint8_t> memory) REQUIRES(changes_mu_) EXCLUDES(mu_);
  // Empties the place when `memory` is empty.
  bool Tell(uint16_t place, std::span<uint8_t> memory) REQUIRES(changes_mu_);

  io_uring& ring_;
  // One change at a time. Held while the kernel pins memory, which is why it is not mu_.
  Mutex changes_mu_;
  std::vector<uint16_t> free_ GUARDED_BY(changes_mu_);

  mutable Mutex mu_;
  std::map<uintptr_t, Stretch> stretches_ GUARDED_BY(mu_);  // By begin; none overlap.
  uint64_t bytes_ GUARDED_BY(mu_) = 0;
};

}  // namespace terrace
