#include <cstring>

#include "tiers/device/gpu_probe.h"

namespace terrace {
namespace {

Status NothingToAsk() {
  return {Code::kMismatch, "a device of the host has none of it"};
}

class HostProbe final : public GpuProbe {
 public:
  Status Store(GpuAddress at, GpuAddress readable) override {
    for (size_t i = 0; i < 16; ++i) {
      reinterpret_cast<volatile uint8_t*>(at)[i] =
          reinterpret_cast<const volatile uint8_t*>(readable)[i];
    }
    return {};
  }
  Status Copy(GpuAddress dst, GpuAddress src, uint64_t bytes) override {
    std::memcpy(reinterpret_cast<void*>(dst), reinterpret_cast<const void*>(src), bytes);
    return {};
  }
  Status CreateWithoutContext(uint64_t) override { return NothingToAsk(); }
  Status ExportHostMemory(uint64_t) override { return NothingToAsk(); }
  Result<IpcHandle> ExportEvent() override { return NothingToAsk(); }
  Status OpenEvent(const IpcHandle&) override { return NothingToAsk(); }
};

}  // namespace

std::unique_ptr<GpuProbe> OpenHostProbe() {
  return std::make_unique<HostProbe>();
}

}  // namespace terrace
