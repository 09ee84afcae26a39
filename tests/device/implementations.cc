#include "tests/device/implementations.h"

#include "base/clock.h"
#include "kernels/cuda_kernels.h"
#include "tiers/device/cuda_gpu.h"
#include "tiers/device/host_gpu.h"
#include "tiers/sim/faulty_gpu.h"

namespace terrace {
namespace {

Result<std::unique_ptr<Gpus>> OpenHost() {
  return OpenHostGpus({.devices = {{.uuid = HostGpuUuid(0), .bytes = kTestDeviceBytes},
                                   {.uuid = HostGpuUuid(1), .bytes = kTestDeviceBytes}},
                       .dirty = true,
                       .registration_bytes = kTestRegistrationBytes});
}

}  // namespace

std::vector<std::string> ImplementationNames() {
  return {"Host", "Faulty", "CudaCalls", "Cuda"};
}

Result<std::unique_ptr<Gpus>> OpenImplementation(std::string_view name) {
  static const SystemClock clock;
  if (name == "Host") return OpenHost();
  if (name == "Faulty") {
    ASSIGN_OR_RETURN(std::unique_ptr<Gpus> host, OpenHost());
    return std::unique_ptr<Gpus>(std::make_unique<FaultyGpus>(std::move(host), clock));
  }
  if (name == "CudaCalls") {
#ifdef FAKE_LIBCUDA
    return OpenCudaGpus({.library = FAKE_LIBCUDA,
                         .registration_bytes = kTestRegistrationBytes,
                         .kernels = PagedCopyFatbin()});
#else
    return Status(Code::kMismatch, "this build has no CUDA: there was no cuda.h");
#endif
  }
  if (name == "Cuda")
    return OpenCudaGpus(
        {.registration_bytes = kTestRegistrationBytes, .kernels = PagedCopyFatbin()});
  return Status(Code::kInvalidArgument, "no such implementation");
}

bool IsHostAddressable(std::string_view name) {
  return name == "Host" || name == "Faulty";
}

}  // namespace terrace
