// RawDisk: what the disk itself does: O_DIRECT transfers of one file, many at a time, through a
// bare io_uring of its own, from huge pages. The ceiling of the suites on the page store, so
// nothing of Terrace's file I/O is in it.
//
// One thread uses it.
#pragma once

#include <linux/io_uring.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "base/random.h"
#include "base/status.h"
#include "base/unique_fd.h"

namespace terrace::bench {

// Memory on huge pages where they are to be had, touched, full of random bytes.
class HugeMemory {
 public:
  HugeMemory() = default;
  HugeMemory(HugeMemory&& other) noexcept : memory_(std::exchange(other.memory_, {})) {}
  HugeMemory& operator=(HugeMemory&& other) noexcept {
    std::swap(memory_, other.memory_);
    return *this;
  }
  ~HugeMemory();
  static Result<HugeMemory> Allocate(size_t bytes);
  std::span<uint8_t> bytes() const { return memory_; }

 private:
  std::span<uint8_t> memory_;
};

// Numbers 0 to count - 1 in random order, from the start again when all were taken.
class Shuffled {
 public:
  Shuffled(uint64_t count, uint64_t seed);
  uint64_t Take();

 private:
  std::vector<uint64_t> order_;
  size_t next_ = 0;
};

struct RawDiskOptions {
  std::string path;             // Made anew.
  uint64_t transfer_bytes = 0;  // Of one read or write: a multiple of 4096.
  uint64_t transfers = 0;       // That the file has room for.
  // It comes from and goes to all of it, in turn: as much as what it is compared with uses, for
  // memory that a processor's cache holds is filled sooner.
  uint64_t memory_bytes = 0;
};

class RawDisk {
 public:
  static constexpr uint32_t kMaxDepth = 64;

  // The file is preallocated and written once, so that later writes change bytes and nothing else.
  static Result<RawDisk> Make(const RawDiskOptions& options);
  RawDisk(RawDisk&&) = default;

  enum class Verb : uint8_t { kRead, kWrite };
  // Moves the given transfers, `depth` at a time; how many seconds that took.
  Result<double> Move(Verb verb, std::span<const uint64_t> transfers, uint32_t depth);
  uint64_t transfers() const { return options_.transfers; }

 private:
  // What the kernel shares with whoever uses a ring.
  class Mapping {
   public:
    Mapping() = default;
    Mapping(Mapping&& other) noexcept : memory_(std::exchange(other.memory_, {})) {}
    Mapping& operator=(Mapping&& other) noexcept {
      std::swap(memory_, other.memory_);
      return *this;
    }
    ~Mapping();
    Status Map(int ring, uint64_t offset, size_t bytes);
    template <typename T>
    T* At(uint64_t offset) const {
      return reinterpret_cast<T*>(memory_.data() + offset);
    }

   private:
    std::span<uint8_t> memory_;
  };

  explicit RawDisk(RawDiskOptions options) : options_(std::move(options)) {}
  Status OpenRing();
  void Prepare(Verb verb, uint64_t transfer);
  Status Enter(uint32_t submit);

  RawDiskOptions options_;
  UniqueFd file_;
  UniqueFd ring_;
  io_uring_params params_{};
  Mapping queue_;
  Mapping entries_;
  HugeMemory memory_;
  uint64_t next_piece_ = 0;  // Of the memory.
};

}  // namespace terrace::bench
