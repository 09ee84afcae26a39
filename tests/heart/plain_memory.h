// Test support: directory memory and channels in plain memory of this process.
//
// PlainDirectory keeps what was freed until the end, as clients that still map a directory would,
// and can be told to refuse. Descriptors are not served.
#pragma once

#include <sys/mman.h>

#include <cstdint>
#include <cstring>
#include <span>
#include <utility>
#include <vector>

#include "base/check.h"
#include "base/digest.h"
#include "daemon/engine/tenant_index.h"
#include "proto/shared_memory.h"

namespace terrace {

// Zeroed bytes at a page's alignment, which cost nothing until they are touched.
class PlainBytes {
 public:
  explicit PlainBytes(size_t bytes)
      : bytes_(bytes),
        data_(::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)) {
    TERRACE_CHECK(data_ != MAP_FAILED);
  }
  PlainBytes(PlainBytes&& other) noexcept
      : bytes_(other.bytes_), data_(std::exchange(other.data_, MAP_FAILED)) {}
  PlainBytes& operator=(PlainBytes&&) = delete;
  ~PlainBytes() {
    if (data_ != MAP_FAILED) ::munmap(data_, bytes_);
  }

  std::span<uint8_t> span() const { return {static_cast<uint8_t*>(data_), bytes_}; }

 private:
  size_t bytes_;
  void* data_;
};

class PlainDirectory final : public DirectoryMemory {
 public:
  Result<Region> Allocate(size_t bytes) override {
    if (refuse) return Status(Code::kExhausted, "told to refuse");
    regions_.emplace_back(bytes);
    ++live;
    return Region{regions_.back().span(), regions_.size() - 1};
  }
  void Populate(uint64_t, size_t) override { ++populated; }
  void Free(uint64_t) override { --live; }
  Result<UniqueFd> Descriptor(uint64_t) override {
    return Status(Code::kUnavailable, "plain memory has no descriptor");
  }

  // Of the region that was allocated as the n-th, from 0.
  std::span<uint8_t> region(size_t index) const { return regions_[index].span(); }
  size_t regions() const { return regions_.size(); }

  bool refuse = false;
  int live = 0;
  int populated = 0;

 private:
  std::vector<PlainBytes> regions_;
};

class PlainChannel {
 public:
  PlainChannel() : memory_(shm::kChannelBytes) {}
  std::span<uint8_t> span() const { return memory_.span(); }
  shm::Channel& channel() const { return *reinterpret_cast<shm::Channel*>(memory_.span().data()); }

 private:
  PlainBytes memory_;
};

// A key whose words follow from a number, uniform like a real one.
inline Digest KeyOf(uint64_t number) {
  Digest key;
  uint64_t state = number * 0x9e3779b97f4a7c15 + 0x632be59bd9b4e019;
  for (size_t word = 0; word < 4; ++word) {
    state += 0x9e3779b97f4a7c15;
    uint64_t mixed = (state ^ state >> 30) * 0xbf58476d1ce4e5b9;
    mixed = (mixed ^ mixed >> 27) * 0x94d049bb133111eb;
    mixed ^= mixed >> 31;
    std::memcpy(key.bytes.data() + 8 * word, &mixed, sizeof mixed);
  }
  return key;
}

}  // namespace terrace
