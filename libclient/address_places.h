// AddressPlaces: which places of a reserved range of addresses are in use. Places begin at
// multiples of a step, and the first that is wide enough is taken. Thread safety: a value.
#pragma once

#include <cstdint>
#include <map>
#include <optional>

namespace terrace::client {

class AddressPlaces {
 public:
  AddressPlaces(uint64_t bytes, uint64_t step) : bytes_(bytes), step_(step) {}

  // Its offset; nullopt: there is none.
  std::optional<uint64_t> Take(uint64_t bytes) {
    uint64_t offset = 0;
    for (const auto& [used, used_bytes] : used_) {
      if (bytes <= used && offset <= used - bytes) break;
      offset = (used + used_bytes + step_ - 1) / step_ * step_;
    }
    if (bytes == 0 || offset > bytes_ || bytes > bytes_ - offset) return std::nullopt;
    used_.emplace(offset, bytes);
    return offset;
  }
  // Its bytes; nullopt: nothing begins there.
  std::optional<uint64_t> Give(uint64_t offset) {
    const auto place = used_.find(offset);
    if (place == used_.end()) return std::nullopt;
    const uint64_t bytes = place->second;
    used_.erase(place);
    return bytes;
  }

 private:
  uint64_t bytes_;
  uint64_t step_;
  std::map<uint64_t, uint64_t> used_;  // Offset -> bytes.
};

}  // namespace terrace::client
