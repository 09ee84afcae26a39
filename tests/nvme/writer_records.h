// What store_writer tells on its standard output, before it begins something and after it was
// acknowledged: the history that a test holds against what the next start finds.
#pragma once

#include <cstdint>

namespace terrace {

enum class WriterEvent : uint8_t { kWriteBegun, kWritten, kEraseBegun, kErased };

struct WriterRecord {
  uint64_t id = 0;
  uint64_t version = 0;
  WriterEvent event = WriterEvent::kWriteBegun;
};

// Sizes of several classes, a few of them odd.
inline uint32_t WriterBytes(uint64_t id) {
  constexpr uint32_t kBytes[] = {4096, 8192, 20'000, 60'000};
  return kBytes[id % 4];
}

}  // namespace terrace
