// What the tests of Gpus share: a device with a stream, memory of it, and bytes in and out by
// copies.
#pragma once

#include <gtest/gtest.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <span>
#include <thread>
#include <utility>
#include <vector>

#include "base/check.h"
#include "base/random.h"
#include "base/status.h"
#include "tiers/device/gpu.h"

namespace terrace {

#define ASSERT_OK(expression) ASSERT_EQ((expression), ::terrace::Status())
#define EXPECT_OK(expression) EXPECT_EQ((expression), ::terrace::Status())

inline std::vector<uint8_t> RandomBytes(size_t bytes, uint64_t seed) {
  Random random(seed);
  std::vector<uint8_t> result(bytes);
  std::ranges::generate(result, [&] { return static_cast<uint8_t>(random()); });
  return result;
}

// Whole pages of this process, which are given back at the end.
class HostPages {
 public:
  explicit HostPages(size_t bytes) : bytes_(bytes) {
    void* place =
        ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    TERRACE_CHECK(place != MAP_FAILED);
    data_ = static_cast<uint8_t*>(place);
  }
  ~HostPages() { ::munmap(data_, bytes_); }
  HostPages(const HostPages&) = delete;
  HostPages& operator=(const HostPages&) = delete;
  std::span<uint8_t> bytes() const { return {data_, bytes_}; }
  GpuAddress address() const { return reinterpret_cast<GpuAddress>(data_); }

 private:
  uint8_t* data_ = nullptr;
  size_t bytes_;
};

// A Gpu with a stream and registered memory to copy through. The Gpu is its user's.
class GpuBench {
 public:
  static constexpr size_t kWindow = 4u << 20;

  explicit GpuBench(Gpu& gpu) : gpu_(gpu), window_(kWindow) {
    const Result<HostRegion> region = gpu.RegisterHost(window_.bytes(), GpuAccess::kReadWrite);
    TERRACE_CHECK(region.has_value());
    region_ = *region;
    const Result<GpuStream> stream = gpu.CreateStream();
    const Result<GpuEvent> event = gpu.CreateEvent();
    TERRACE_CHECK(stream.has_value() && event.has_value());
    stream_ = *stream;
    event_ = *event;
  }
  ~GpuBench() {
    EXPECT_EQ(gpu_.DestroyEvent(event_), Status());
    EXPECT_EQ(gpu_.DestroyStream(stream_), Status());
    EXPECT_EQ(gpu_.UnregisterHost(region_), Status());
  }
  GpuBench(const GpuBench&) = delete;
  GpuBench& operator=(const GpuBench&) = delete;

  GpuStream stream() const { return stream_; }
  const HostPages& window() const { return window_; }

  // Returns when all that is on the stream is done; the test's own limit ends what hangs.
  Status Finish() { return Finish(stream_); }
  Status Finish(GpuStream stream) {
    RETURN_IF_ERROR(gpu_.RecordEvent(event_, stream));
    for (;;) {
      ASSIGN_OR_RETURN(const bool done, gpu_.QueryEvent(event_));
      if (done) return {};
      std::this_thread::yield();
    }
  }

  Status Write(GpuAddress to, std::span<const uint8_t> bytes) {
    while (!bytes.empty()) {
      const size_t now = std::min(bytes.size(), kWindow);
      std::ranges::copy(bytes.first(now), window_.bytes().begin());
      const GpuCopy copy{.dst = to, .src = window_.address(), .bytes = now};
      RETURN_IF_ERROR(gpu_.Copy(stream_, {&copy, 1}, SourceOrder::kStream));
      RETURN_IF_ERROR(Finish());
      bytes = bytes.subspan(now);
      to += now;
    }
    return {};
  }
  Result<std::vector<uint8_t>> Read(GpuAddress from, size_t bytes) {
    std::vector<uint8_t> result;
    while (result.size() < bytes) {
      const size_t now = std::min(bytes - result.size(), kWindow);
      const GpuCopy copy{.dst = window_.address(), .src = from + result.size(), .bytes = now};
      RETURN_IF_ERROR(gpu_.Copy(stream_, {&copy, 1}, SourceOrder::kStream));
      RETURN_IF_ERROR(Finish());
      const std::span<uint8_t> got = window_.bytes().first(now);
      result.insert(result.end(), got.begin(), got.end());
    }
    return result;
  }

 private:
  Gpu& gpu_;
  HostPages window_;
  HostRegion region_{};
  GpuStream stream_{};
  GpuEvent event_{};
};

// A slab in a range of its own, mapped with that access.
struct MappedSlab {
  GpuSlab slab{};
  GpuAddress at = 0;
  uint64_t bytes = 0;
};

inline Result<MappedSlab> MapNewSlab(Gpu& gpu, uint64_t bytes,
                                     GpuAccess access = GpuAccess::kReadWrite) {
  MappedSlab mapped{.bytes = bytes};
  ASSIGN_OR_RETURN(mapped.slab, gpu.CreateSlab(bytes));
  ASSIGN_OR_RETURN(mapped.at, gpu.ReserveRange(bytes));
  RETURN_IF_ERROR(gpu.MapSlab(mapped.at, mapped.slab));
  RETURN_IF_ERROR(gpu.SetAccess(mapped.at, bytes, access));
  return mapped;
}

}  // namespace terrace
