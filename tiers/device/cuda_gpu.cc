#include "tiers/device/cuda_gpu.h"

#include <cuda.h>

#include <cstring>
#include <utility>

#include "tiers/device/cuda_device.h"
#include "tiers/device/cuda_driver.h"

namespace terrace {
namespace {

constexpr uint64_t kPage = 4096;
constexpr int kFirstWithKernels = 8;  // Compute capability: the oldest in the fatbin is 8.0.
// Of plain allocations on a device without slabs: what cuMemAlloc gives from one piece of the
// device.
constexpr uint64_t kAllocationGranule = 2u << 20;

class CudaGpus final : public Gpus {
 public:
  static Result<std::unique_ptr<Gpus>> Open(const CudaGpuOptions& options) {
    ASSIGN_OR_RETURN(std::shared_ptr<const CudaDriver> driver, CudaDriver::Load(options.library));
    auto gpus = std::make_unique<CudaGpus>(std::move(driver));
    RETURN_IF_ERROR(gpus->Enumerate(options));
    return std::unique_ptr<Gpus>(std::move(gpus));
  }
  explicit CudaGpus(std::shared_ptr<const CudaDriver> driver) : driver_(std::move(driver)) {}

  const std::vector<GpuFacts>& devices() const override { return facts_; }

  Result<std::unique_ptr<Gpu>> Open(const GpuUuid& uuid) override {
    for (const CudaDevice& device : devices_) {
      if (device.facts.uuid != uuid) continue;
      ASSIGN_OR_RETURN(std::shared_ptr<CudaContext> context,
                       CudaContext::Retain(driver_, device.device));
      return MakeCudaGpu(std::move(context), device);
    }
    return Status(Code::kNotFound, "no GPU is " + uuid.Text());
  }

 private:
  Status Enumerate(const CudaGpuOptions& options) {
    int count = 0;
    RETURN_IF_ERROR(driver_->Tell("cuDeviceGetCount", driver_->cuDeviceGetCount(&count)));
    for (int i = 0; i < count; ++i) {
      CudaDevice device;
      RETURN_IF_ERROR(driver_->Tell("cuDeviceGet", driver_->cuDeviceGet(&device.device, i)));
      RETURN_IF_ERROR(Describe(device, options));
      facts_.push_back(device.facts);
      devices_.push_back(std::move(device));
    }
    return {};
  }

  Result<int> Attribute(CUdevice_attribute attribute, CUdevice device) const {
    int value = 0;
    RETURN_IF_ERROR(driver_->Tell("cuDeviceGetAttribute",
                                  driver_->cuDeviceGetAttribute(&value, attribute, device)));
    return value;
  }

  Status Describe(CudaDevice& device, const CudaGpuOptions& options) const {
    GpuFacts& facts = device.facts;
    CUuuid uuid{};
    RETURN_IF_ERROR(
        driver_->Tell("cuDeviceGetUuid", driver_->cuDeviceGetUuid(&uuid, device.device)));
    std::memcpy(facts.uuid.bytes.data(), uuid.bytes, facts.uuid.bytes.size());
    char name[256] = {};
    RETURN_IF_ERROR(driver_->Tell("cuDeviceGetName",
                                  driver_->cuDeviceGetName(name, sizeof name - 1, device.device)));
    facts.name = name;
    facts.driver = "CUDA driver " + std::to_string(driver_->version() / 1000) + "." +
                   std::to_string(driver_->version() % 1000 / 10);
    size_t total = 0;
    RETURN_IF_ERROR(
        driver_->Tell("cuDeviceTotalMem", driver_->cuDeviceTotalMem(&total, device.device)));
    facts.total_bytes = total;

    ASSIGN_OR_RETURN(
        const int vmm,
        Attribute(CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED, device.device));
    ASSIGN_OR_RETURN(
        const int descriptors,
        Attribute(CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED, device.device));
    ASSIGN_OR_RETURN(
        const int rdma,
        Attribute(CU_DEVICE_ATTRIBUTE_GPU_DIRECT_RDMA_WITH_CUDA_VMM_SUPPORTED, device.device));
    ASSIGN_OR_RETURN(
        const int read_only,
        Attribute(CU_DEVICE_ATTRIBUTE_READ_ONLY_HOST_REGISTER_SUPPORTED, device.device));
    ASSIGN_OR_RETURN(const int capability,
                     Attribute(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, device.device));
    facts.slabs = vmm != 0 && descriptors != 0;
    device.rdma = rdma != 0;
    facts.granularity = kAllocationGranule;
    if (facts.slabs) {
      const CUmemAllocationProp properties = SlabProperties(device.device, device.rdma);
      size_t granularity = 0;
      RETURN_IF_ERROR(
          driver_->Tell("cuMemGetAllocationGranularity",
                        driver_->cuMemGetAllocationGranularity(&granularity, &properties,
                                                               CU_MEM_ALLOC_GRANULARITY_MINIMUM)));
      facts.granularity = granularity;
    }
    facts.allocations = true;
    device.kernels = options.kernels;
    facts.batches = driver_->has_batches();
    facts.paged_copies = !options.kernels.empty() && capability >= kFirstWithKernels;
    facts.read_only_registration = read_only != 0;
    facts.registration_bytes = options.registration_bytes;
    return {};
  }

  const std::shared_ptr<const CudaDriver> driver_;
  std::vector<GpuFacts> facts_;      // Constant after Enumerate, as are the devices.
  std::vector<CudaDevice> devices_;  // In the same order.
};

}  // namespace

CUmemAllocationProp SlabProperties(CUdevice device, bool rdma) {
  CUmemAllocationProp properties{};
  properties.type = CU_MEM_ALLOCATION_TYPE_PINNED;
  properties.requestedHandleTypes = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR;
  properties.location = {.type = CU_MEM_LOCATION_TYPE_DEVICE, .id = device};
  properties.allocFlags.gpuDirectRDMACapable = rdma ? 1 : 0;
  return properties;
}

Result<std::unique_ptr<Gpus>> OpenCudaGpus(const CudaGpuOptions& options) {
  if (options.registration_bytes == 0 || options.registration_bytes % kPage != 0) {
    return Status(Code::kInvalidArgument, "registration_bytes: not a multiple of 4096");
  }
  return CudaGpus::Open(options);
}

}  // namespace terrace
