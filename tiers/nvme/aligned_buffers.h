// AlignedBuffers: memory that O_DIRECT takes, for headers of slots and for pages whose own memory
// it does not take. At most `budget_bytes` of it, used and kept together; one buffer is always to
// be had, however large. Owner thread; a buffer itself may go anywhere.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <map>
#include <memory>
#include <span>
#include <utility>

#include "base/check.h"
#include "tiers/nvme/format.h"

namespace terrace::nvme {

class AlignedBuffer {
 public:
  AlignedBuffer() = default;
  explicit AlignedBuffer(size_t bytes)
      : memory_(static_cast<uint8_t*>(std::aligned_alloc(kAlignment, bytes))), bytes_(bytes) {}

  explicit operator bool() const { return memory_ != nullptr; }
  uint8_t* data() const { return memory_.get(); }
  size_t size() const { return bytes_; }
  std::span<uint8_t> bytes() const { return {memory_.get(), bytes_}; }

 private:
  struct Free {
    void operator()(uint8_t* memory) const { std::free(memory); }
  };
  std::unique_ptr<uint8_t, Free> memory_;
  size_t bytes_ = 0;
};

class AlignedBuffers {
 public:
  explicit AlignedBuffers(size_t budget_bytes) : budget_bytes_(budget_bytes) {}

  // Of at least `bytes`, rounded up; empty when the budget is in use, or there is no memory.
  AlignedBuffer Take(size_t bytes) {
    const size_t rounded = RoundUp(bytes);
    if (const auto kept = kept_.find(rounded); kept != kept_.end()) {
      AlignedBuffer buffer = std::move(kept->second);
      kept_.erase(kept);
      kept_bytes_ -= rounded;
      used_bytes_ += rounded;
      return buffer;
    }
    if (used_bytes_ > 0 && used_bytes_ + rounded > budget_bytes_) return {};
    while (!kept_.empty() && used_bytes_ + kept_bytes_ + rounded > budget_bytes_) {
      kept_bytes_ -= kept_.begin()->first;
      kept_.erase(kept_.begin());
    }
    AlignedBuffer buffer(rounded);
    if (buffer) used_bytes_ += rounded;
    return buffer;
  }

  // What Take gave; an empty one is nothing.
  void Give(AlignedBuffer buffer) {
    if (!buffer) return;
    const size_t bytes = buffer.size();
    TERRACE_CHECK(bytes <= used_bytes_);
    used_bytes_ -= bytes;
    if (used_bytes_ + kept_bytes_ + bytes > budget_bytes_) return;
    kept_bytes_ += bytes;
    kept_.emplace(bytes, std::move(buffer));
  }

 private:
  const size_t budget_bytes_;
  std::multimap<size_t, AlignedBuffer> kept_;  // By size.
  size_t used_bytes_ = 0;
  size_t kept_bytes_ = 0;
};

}  // namespace terrace::nvme
