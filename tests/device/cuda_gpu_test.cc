// How the CUDA implementation calls a driver, and what it makes of the driver's answers: over one
// that is none, and says what the test wants.
#include "tiers/device/cuda_gpu.h"

#include <dlfcn.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/eventfd.h>

#include <memory>
#include <string>
#include <vector>

#include "kernels/cuda_kernels.h"
#include "tests/device/fake_libcuda.h"
#include "tests/device/gpu_fixture.h"

namespace terrace {
namespace {

using testing::AllOf;
using testing::HasSubstr;

constexpr uint64_t kGranule = 2u << 20;
constexpr uint64_t kPiece = 1u << 20;

// The driver's other entrance, for tests.
struct FakeDriver {
  FakeDriver() : library(::dlopen(FAKE_LIBCUDA, RTLD_NOW | RTLD_LOCAL)) {}
  template <typename Function>
  Function* Find(Function*, const char* name) const {
    return reinterpret_cast<Function*>(::dlsym(library, name));
  }
  void* library;
#define FIND(name) decltype(&::name) name = Find(decltype (&::name)(), #name)
  FIND(FakeCudaReset);
  FIND(FakeCudaVersion);
  FIND(FakeCudaAttribute);
  FIND(FakeCudaFail);
  FIND(FakeCudaCalls);
  FIND(FakeCudaRegistrations);
#undef FIND
};

class CudaGpuTest : public testing::Test {
 protected:
  void SetUp() override {
    ASSERT_NE(driver_.library, nullptr) << ::dlerror();
    driver_.FakeCudaReset(size_t{1} << 30);
  }
  Result<std::unique_ptr<Gpus>> OpenGpus() {
    return OpenCudaGpus(
        {.library = FAKE_LIBCUDA, .registration_bytes = kPiece, .kernels = PagedCopyFatbin()});
  }
  void Open() {
    gpu_.reset();
    auto gpus = OpenGpus();
    ASSERT_OK(gpus.status());
    gpus_ = *std::move(gpus);
    auto gpu = gpus_->Open(gpus_->devices().front().uuid);
    ASSERT_OK(gpu.status());
    gpu_ = *std::move(gpu);
  }

  FakeDriver driver_;
  std::unique_ptr<Gpus> gpus_;
  std::unique_ptr<Gpu> gpu_;
};

TEST_F(CudaGpuTest, FactsAreWhatTheDriverSays) {
  Open();
  const GpuFacts& facts = gpu_->facts();
  EXPECT_EQ(facts.uuid.Text(), "GPU-face0102-0304-0506-0708-090a0b0c0d0e");
  EXPECT_EQ(facts.name, "a GPU that is none");
  EXPECT_EQ(facts.driver, "CUDA driver 13.0");
  EXPECT_EQ(facts.total_bytes, uint64_t{1} << 30);
  EXPECT_EQ(facts.granularity, kGranule);
  EXPECT_TRUE(facts.slabs && facts.allocations && facts.batches && facts.read_only_registration);
  EXPECT_EQ(facts.paged_copies, !PagedCopyFatbin().empty());
  EXPECT_EQ(facts.registration_bytes, kPiece);
}

TEST_F(CudaGpuTest, EnumeratingMakesNoContext) {
  const auto gpus = OpenGpus();
  ASSERT_OK(gpus.status());
  EXPECT_EQ(driver_.FakeCudaCalls("cuDevicePrimaryCtxRetain"), 0u);
  {
    const auto gpu = (*gpus)->Open((*gpus)->devices().front().uuid);
    ASSERT_OK(gpu.status());
    EXPECT_EQ(driver_.FakeCudaCalls("cuDevicePrimaryCtxRetain"), 1u);
  }
  EXPECT_EQ(driver_.FakeCudaCalls("cuDevicePrimaryCtxRelease"), 1u);
}

TEST_F(CudaGpuTest, BatchesAreCalledByTheSignatureThatTheDriverHas) {
  struct Case {
    int version;
    const char* call;
  };
  for (const Case& driver :
       {Case{13000, "cuMemcpyBatchAsync_13000"}, Case{12080, "cuMemcpyBatchAsync_12080"},
        Case{12090, "cuMemcpyBatchAsync_12080"}, Case{12020, ""}}) {
    driver_.FakeCudaReset(size_t{1} << 30);
    driver_.FakeCudaVersion(driver.version);
    Open();
    EXPECT_EQ(gpu_->facts().batches, driver.call[0] != '\0');
    const auto slab = MapNewSlab(*gpu_, kGranule);
    ASSERT_OK(slab.status());
    GpuBench bench(*gpu_);
    const std::vector<uint8_t> bytes = RandomBytes(1000, 1);
    ASSERT_OK(bench.Write(slab->at, bytes));
    const GpuCopy copies[] = {{.dst = slab->at + 4096, .src = slab->at, .bytes = 500},
                              {.dst = slab->at + 4596, .src = slab->at + 500, .bytes = 500}};
    const unsigned singles = driver_.FakeCudaCalls("cuMemcpyAsync");
    ASSERT_OK(gpu_->Copy(bench.stream(), copies, SourceOrder::kAny));
    if (driver.call[0] != '\0') {
      EXPECT_EQ(driver_.FakeCudaCalls(driver.call), 1u);
      EXPECT_EQ(driver_.FakeCudaCalls("cuMemcpyAsync"), singles);
    } else {
      EXPECT_EQ(driver_.FakeCudaCalls("cuMemcpyAsync"), singles + 2);
    }
    const auto got = bench.Read(slab->at + 4096, 1000);
    ASSERT_OK(got.status());
    EXPECT_EQ(*got, bytes);
  }
}

TEST_F(CudaGpuTest, ADriverThatIsTooOldIsNamed) {
  driver_.FakeCudaVersion(11030);
  const auto gpus = OpenGpus();
  EXPECT_EQ(gpus.status().code(), Code::kMismatch);
  EXPECT_THAT(gpus.status().message(), AllOf(HasSubstr("11.3"), HasSubstr("cuDeviceGetUuid")));
}

TEST_F(CudaGpuTest, NoDriverAndNoDriversLibraryAreNamed) {
  const auto none = OpenCudaGpus({.library = "libcuda-that-is-not-there.so.1"});
  EXPECT_EQ(none.status().code(), Code::kNotFound);
  EXPECT_THAT(none.status().message(),
              AllOf(HasSubstr("no CUDA driver"), HasSubstr("libcuda-that-is-not-there.so.1")));
  const auto other = OpenCudaGpus({.library = "libc.so.6"});
  EXPECT_EQ(other.status().code(), Code::kMismatch);
  EXPECT_THAT(other.status().message(), HasSubstr("libc.so.6 is not a CUDA driver"));
  EXPECT_EQ(OpenCudaGpus({.registration_bytes = 100}).status().code(), Code::kInvalidArgument);
}

TEST_F(CudaGpuTest, ADriverThatFindsNoGpuSaysSo) {
  driver_.FakeCudaFail("cuInit", 0, CUDA_ERROR_NO_DEVICE);
  const Status status = OpenGpus().status();
  EXPECT_THAT(status.message(), HasSubstr("the CUDA driver finds no GPU"));
  EXPECT_TRUE(status.code() == Code::kNotFound || status.code() == Code::kPermissionDenied);
  // What it says where a file of the device may not be opened; there is no context yet.
  driver_.FakeCudaFail("cuInit", 0, CUDA_ERROR_UNKNOWN);
  const Code unknown = OpenGpus().status().code();
  EXPECT_TRUE(unknown == Code::kUnavailable || unknown == Code::kPermissionDenied);
  driver_.FakeCudaFail("cuInit", 0, CUDA_ERROR_SYSTEM_DRIVER_MISMATCH);
  EXPECT_EQ(OpenGpus().status().code(), Code::kMismatch);
}

TEST_F(CudaGpuTest, ADeviceThatRefusesContextsIsUnavailable) {
  const auto gpus = OpenGpus();
  ASSERT_OK(gpus.status());
  driver_.FakeCudaFail("cuDevicePrimaryCtxRetain", 0, CUDA_ERROR_DEVICE_UNAVAILABLE);
  const auto refused = (*gpus)->Open((*gpus)->devices().front().uuid);
  EXPECT_EQ(refused.status().code(), Code::kUnavailable);
  EXPECT_THAT(refused.status().message(), HasSubstr("cuDevicePrimaryCtxRetain"));
  EXPECT_OK((*gpus)->Open((*gpus)->devices().front().uuid).status());
}

TEST_F(CudaGpuTest, ErrorsAreToldApart) {
  Open();
  struct Case {
    CUresult result;
    Code code;
  };
  for (const Case& error : {Case{CUDA_ERROR_OUT_OF_MEMORY, Code::kExhausted},
                            Case{CUDA_ERROR_INVALID_VALUE, Code::kInvalidArgument},
                            Case{CUDA_ERROR_NOT_PERMITTED, Code::kPermissionDenied},
                            Case{CUDA_ERROR_NOT_SUPPORTED, Code::kMismatch},
                            Case{CUDA_ERROR_MAP_FAILED, Code::kInternal}}) {
    driver_.FakeCudaFail("cuMemCreate", 0, error.result);
    const Status status = gpu_->CreateSlab(kGranule).status();
    EXPECT_EQ(status.code(), error.code) << status.ToString();
    EXPECT_THAT(status.message(), HasSubstr("cuMemCreate"));
    EXPECT_OK(gpu_->CreateSlab(kGranule).status());  // The context is sound.
  }
}

TEST_F(CudaGpuTest, AfterAStickyErrorTheDriverIsAskedNothingMore) {
  for (const CUresult sticky :
       {CUDA_ERROR_ILLEGAL_ADDRESS, CUDA_ERROR_ECC_UNCORRECTABLE, CUDA_ERROR_LAUNCH_FAILED,
        CUDA_ERROR_CONTEXT_IS_DESTROYED, CUDA_ERROR_UNKNOWN}) {
    Open();
    const auto event = gpu_->CreateEvent();
    const auto stream = gpu_->CreateStream();
    ASSERT_OK(event.status());
    ASSERT_OK(gpu_->RecordEvent(*event, *stream));
    driver_.FakeCudaFail("cuEventQuery", 0, sticky);
    EXPECT_EQ(gpu_->QueryEvent(*event).status().code(), Code::kStale);
    const unsigned asked = driver_.FakeCudaCalls("cuMemCreate");
    const Status status = gpu_->CreateSlab(kGranule).status();
    EXPECT_EQ(status.code(), Code::kStale);
    EXPECT_THAT(status.message(), HasSubstr("cuEventQuery"));  // What it died of.
    EXPECT_EQ(driver_.FakeCudaCalls("cuMemCreate"), asked);
  }
  Open();
  driver_.FakeCudaFail("cuMemGetInfo", 0, CUDA_ERROR_DEVICE_UNAVAILABLE);
  EXPECT_EQ(gpu_->Memory().status().code(), Code::kUnavailable);
  EXPECT_EQ(gpu_->Memory().status().code(), Code::kUnavailable);
}

TEST_F(CudaGpuTest, ARegistrationThatFailsHalfWayUnregistersWhatItHad) {
  Open();
  const HostPages pages(5 * kPiece + 4096);
  driver_.FakeCudaFail("cuMemHostRegister", 3, CUDA_ERROR_OUT_OF_MEMORY);
  const auto failed = gpu_->RegisterHost(pages.bytes(), GpuAccess::kReadWrite);
  EXPECT_EQ(failed.status().code(), Code::kExhausted);
  EXPECT_THAT(failed.status().message(), HasSubstr("at 3145728 of 5246976 bytes"));
  EXPECT_EQ(driver_.FakeCudaCalls("cuMemHostUnregister"), 3u);
  EXPECT_EQ(driver_.FakeCudaRegistrations(), 0u);
  const auto region = gpu_->RegisterHost(pages.bytes(), GpuAccess::kReadWrite);
  ASSERT_OK(region.status());
  EXPECT_EQ(driver_.FakeCudaRegistrations(), 6u);
  EXPECT_OK(gpu_->UnregisterHost(*region));
  EXPECT_EQ(driver_.FakeCudaRegistrations(), 0u);
}

TEST_F(CudaGpuTest, AMappingThatFailsLeavesItsAddressesReservedAndEmpty) {
  Open();
  const auto range = gpu_->ReserveRange(kGranule);
  const auto slab = gpu_->CreateSlab(kGranule);
  ASSERT_OK(range.status());
  ASSERT_OK(slab.status());
  driver_.FakeCudaFail("cuMemMap", 0, CUDA_ERROR_OUT_OF_MEMORY);
  EXPECT_EQ(gpu_->MapSlab(*range, *slab).code(), Code::kExhausted);
  EXPECT_EQ(gpu_->UnmapSlab(*range).code(), Code::kInvalidArgument);
  EXPECT_OK(gpu_->MapSlab(*range, *slab));
  driver_.FakeCudaFail("cuMemSetAccess", 0, CUDA_ERROR_INVALID_VALUE);
  EXPECT_EQ(gpu_->SetAccess(*range, kGranule, GpuAccess::kReadWrite).code(),
            Code::kInvalidArgument);
  GpuBench bench(*gpu_);
  EXPECT_EQ(bench.Read(*range, 16).status().code(), Code::kInvalidArgument);
  EXPECT_OK(gpu_->SetAccess(*range, kGranule, GpuAccess::kReadWrite));
  EXPECT_OK(bench.Read(*range, 16).status());
}

TEST_F(CudaGpuTest, ADeviceWithoutSlabsHasAllocations) {
  for (const CUdevice_attribute lacking :
       {CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED,
        CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED}) {
    driver_.FakeCudaReset(size_t{1} << 30);
    driver_.FakeCudaAttribute(lacking, 0);
    Open();
    EXPECT_FALSE(gpu_->facts().slabs);
    EXPECT_EQ(gpu_->CreateSlab(kGranule).status().code(), Code::kMismatch);
    EXPECT_EQ(gpu_->ReserveRange(kGranule).status().code(), Code::kMismatch);
    EXPECT_EQ(driver_.FakeCudaCalls("cuMemCreate"), 0u);
    const auto at = gpu_->Allocate(kGranule);
    ASSERT_OK(at.status());
    EXPECT_OK(gpu_->ExportAllocation(*at).status());
    GpuBench bench(*gpu_);
    EXPECT_OK(bench.Write(*at, RandomBytes(1000, 2)));
  }
}

TEST_F(CudaGpuTest, ADeviceWithoutReadOnlyRegistrationRefusesIt) {
  driver_.FakeCudaAttribute(CU_DEVICE_ATTRIBUTE_READ_ONLY_HOST_REGISTER_SUPPORTED, 0);
  Open();
  const HostPages pages(4096);
  EXPECT_EQ(gpu_->RegisterHost(pages.bytes(), GpuAccess::kRead).status().code(), Code::kMismatch);
  EXPECT_OK(gpu_->RegisterHost(pages.bytes(), GpuAccess::kReadWrite).status());
}

TEST_F(CudaGpuTest, WithoutKernelsTheRestWorks) {
  static const std::vector<uint64_t> bases = {0};
  const PagedLayout layout = {
      .bases = bases, .block_stride = 16, .block_bytes = 16, .segment_stride = 16};
  const auto gather = [&] {
    const auto stream = gpu_->CreateStream();
    EXPECT_OK(stream.status());
    return gpu_->GatherPages(*stream, layout, {}).code();
  };
  driver_.FakeCudaAttribute(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, 7);
  Open();
  EXPECT_FALSE(gpu_->facts().paged_copies);
  EXPECT_EQ(gather(), Code::kMismatch);
  EXPECT_EQ(driver_.FakeCudaCalls("cuModuleLoadData"), 0u);
  EXPECT_OK(gpu_->CreateSlab(kGranule).status());

  driver_.FakeCudaReset(size_t{1} << 30);
  driver_.FakeCudaFail("cuModuleLoadData", 0, CUDA_ERROR_NO_BINARY_FOR_GPU);
  Open();
  EXPECT_FALSE(gpu_->facts().paged_copies);
  EXPECT_EQ(gather(), Code::kMismatch);
  EXPECT_OK(gpu_->CreateSlab(kGranule).status());
}

TEST_F(CudaGpuTest, MemoryOfOthersIsSharedByItsHandleOrTheLegacyOne) {
  Open();
  // Whoever made it: the driver knows one context of the process.
  auto owner = gpus_->Open(gpus_->devices().front().uuid);
  ASSERT_OK(owner.status());
  const auto slab = MapNewSlab(**owner, 2 * kGranule);
  ASSERT_OK(slab.status());
  const unsigned released = driver_.FakeCudaCalls("cuMemRelease");
  const auto shared = gpu_->ShareForeign(slab->at + kGranule + 4096);
  ASSERT_OK(shared.status());
  EXPECT_EQ(shared->base, slab->at);
  EXPECT_EQ(shared->bytes, 2 * kGranule);
  EXPECT_EQ(driver_.FakeCudaCalls("cuMemRelease"), released + 1) << "what was retained";
  ASSERT_TRUE(static_cast<bool>(shared->slab));
  const auto imported = gpu_->ImportSlab(shared->slab.get(), shared->bytes);
  ASSERT_OK(imported.status());
  const auto range = gpu_->ReserveRange(shared->bytes);
  ASSERT_OK(range.status());
  ASSERT_OK(gpu_->MapSlab(*range, *imported));
  ASSERT_OK(gpu_->SetAccess(*range, shared->bytes, GpuAccess::kReadWrite));
  const std::vector<uint8_t> bytes = RandomBytes(1000, 1);
  GpuBench there(**owner);
  ASSERT_OK(there.Write(slab->at + kGranule, bytes));
  GpuBench here(*gpu_);
  const auto read = here.Read(*range + kGranule, bytes.size());
  ASSERT_OK(read.status());
  EXPECT_EQ(*read, bytes);

  const auto allocation = (*owner)->Allocate(kGranule);
  ASSERT_OK(allocation.status());
  const auto legacy = gpu_->ShareForeign(*allocation + 64);
  ASSERT_OK(legacy.status());
  EXPECT_EQ(legacy->base, *allocation);
  EXPECT_EQ(legacy->bytes, kGranule);
  EXPECT_FALSE(static_cast<bool>(legacy->slab));
  EXPECT_EQ(legacy->handle, *(*owner)->ExportAllocation(*allocation));
}

TEST_F(CudaGpuTest, MemoryThatCannotBeSharedIsAMismatch) {
  Open();
  EXPECT_EQ(gpu_->ShareForeign(4096).status().code(), Code::kInvalidArgument);
  const auto slab = MapNewSlab(*gpu_, kGranule);
  ASSERT_OK(slab.status());
  driver_.FakeCudaFail("cuMemExportToShareableHandle", 0, CUDA_ERROR_INVALID_VALUE);
  const unsigned released = driver_.FakeCudaCalls("cuMemRelease");
  EXPECT_EQ(gpu_->ShareForeign(slab->at).status().code(), Code::kMismatch);
  EXPECT_EQ(driver_.FakeCudaCalls("cuMemRelease"), released + 1);
  const auto allocation = gpu_->Allocate(kGranule);
  ASSERT_OK(allocation.status());
  driver_.FakeCudaFail("cuIpcGetMemHandle", 0, CUDA_ERROR_NOT_SUPPORTED);
  EXPECT_EQ(gpu_->ShareForeign(*allocation).status().code(), Code::kMismatch);
  driver_.FakeCudaFail("cuIpcGetMemHandle", 0, CUDA_ERROR_ILLEGAL_ADDRESS);
  EXPECT_EQ(gpu_->ShareForeign(*allocation).status().code(), Code::kStale);
}

TEST_F(CudaGpuTest, ANotificationThatFailsLeavesNoDescriptor) {
  Open();
  const auto stream = gpu_->CreateStream();
  ASSERT_OK(stream.status());
  UniqueFd eventfd(::eventfd(0, EFD_CLOEXEC));
  const UniqueFd before = *eventfd.Duplicate();
  driver_.FakeCudaFail("cuLaunchHostFunc", 0, CUDA_ERROR_OUT_OF_MEMORY);
  EXPECT_EQ(gpu_->Notify(*stream, eventfd.get()).code(), Code::kExhausted);
  const UniqueFd after = *eventfd.Duplicate();
  EXPECT_EQ(after.get(), before.get() + 1);
}

}  // namespace
}  // namespace terrace
