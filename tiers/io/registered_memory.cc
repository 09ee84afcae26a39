#include "tiers/io/registered_memory.h"

#include <liburing.h>

#include <algorithm>

namespace terrace {
namespace {

constexpr size_t kStretchBytes = 1u << 30;

uintptr_t Address(const void* pointer) {
  return reinterpret_cast<uintptr_t>(pointer);
}

}  // namespace

RegisteredMemory::RegisteredMemory(io_uring& ring, uint32_t places) : ring_(ring) {
  if (::io_uring_register_buffers_sparse(&ring_, places) < 0) return;
  for (uint32_t place = places; place > 0; --place)
    free_.push_back(static_cast<uint16_t>(place - 1));
}

bool RegisteredMemory::Tell(uint16_t place, std::span<uint8_t> memory) {
  const iovec piece{.iov_base = memory.data(), .iov_len = memory.size()};
  const __u64 no_tag = 0;
  return ::io_uring_register_buffers_update_tag(&ring_, place, &piece, &no_tag, 1) == 1;
}

bool RegisteredMemory::AddStretch(std::span<uint8_t> memory) {
  const uintptr_t begin = Address(memory.data());
  const uintptr_t end = begin + memory.size();
  {
    MutexLock lock(mu_);
    const auto next = stretches_.lower_bound(end);
    if (next != stretches_.begin() && std::prev(next)->second.end > begin) return false;
  }
  if (free_.empty()) return false;
  const uint16_t place = free_.back();
  if (!Tell(place, memory)) return false;
  free_.pop_back();
  MutexLock lock(mu_);
  stretches_[begin] = {.end = end, .place = place};
  bytes_ += memory.size();
  return true;
}

void RegisteredMemory::Add(std::span<uint8_t> memory) {
  MutexLock change(changes_mu_);
  while (!memory.empty()) {
    const size_t bytes = std::min(memory.size(), kStretchBytes);
    if (!AddStretch(memory.first(bytes))) return;
    memory = memory.subspan(bytes);
  }
}

void RegisteredMemory::Remove(std::span<uint8_t> memory) {
  if (memory.empty()) return;
  const uintptr_t begin = Address(memory.data());
  const uintptr_t end = begin + memory.size();
  MutexLock change(changes_mu_);
  std::vector<std::pair<uint16_t, uint64_t>> removed;  // Places and their bytes.
  {
    // Nobody finds them from here on.
    MutexLock lock(mu_);
    auto stretch = stretches_.lower_bound(begin);
    if (stretch != stretches_.begin() && std::prev(stretch)->second.end > begin) --stretch;
    while (stretch != stretches_.end() && stretch->first < end) {
      removed.emplace_back(stretch->second.place, stretch->second.end - stretch->first);
      stretch = stretches_.erase(stretch);
    }
  }
  for (const auto& [place, bytes] : removed) {
    // A place that the kernel would not empty (it lacks memory) stays pinned and is told so in
    // bytes(); no request uses it.
    if (!Tell(place, {})) continue;
    free_.push_back(place);
    MutexLock lock(mu_);
    bytes_ -= bytes;
  }
}

std::optional<uint16_t> RegisteredMemory::Find(const iovec& piece) const {
  const uintptr_t begin = Address(piece.iov_base);
  MutexLock lock(mu_);
  auto stretch = stretches_.upper_bound(begin);
  if (stretch == stretches_.begin()) return std::nullopt;
  --stretch;
  if (begin + piece.iov_len > stretch->second.end) return std::nullopt;
  return stretch->second.place;
}

uint64_t RegisteredMemory::bytes() const {
  MutexLock lock(mu_);
  return bytes_;
}

}  // namespace terrace
