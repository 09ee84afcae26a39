#include "bench/device_bench.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <optional>
#include <thread>
#include <utility>

#include "base/random.h"
#include "kernels/cuda_kernels.h"
#include "tiers/device/cuda_gpu.h"
#include "tiers/device/host_gpu.h"
#include "tiers/device/supervisor/mover_tier.h"

namespace terrace::bench {
namespace {

namespace fs = std::filesystem;

constexpr uint64_t kHuge = 2u << 20;
constexpr int kAdviseCollapse = 25;  // MADV_COLLAPSE, which this libc has no name for.
constexpr auto kLimit = std::chrono::minutes(2);

}  // namespace

Result<ChosenDevice> ChooseDevice(const std::string& words, uint64_t host_bytes) {
  ChosenDevice device;
  if (words == "host") {
    device.host_bytes = host_bytes;
    ASSIGN_OR_RETURN(device.gpus,
                     OpenHostGpus({.devices = {{.uuid = HostGpuUuid(0), .bytes = host_bytes}}}));
    device.facts = device.gpus->devices().front();
    return device;
  }
  std::optional<GpuUuid> uuid;
  if (words.starts_with("cuda:")) uuid = ParseGpuUuid(words.substr(5));
  if (words != "cuda" && !uuid) {
    return Status(Code::kInvalidArgument, "device: '" + words + "' is not host, cuda or cuda:UUID");
  }
  device.kind = MoverKind::kCuda;
  ASSIGN_OR_RETURN(device.gpus, OpenCudaGpus({.kernels = PagedCopyFatbin()}));
  for (const GpuFacts& facts : device.gpus->devices()) {
    if (uuid && facts.uuid != *uuid) continue;
    device.facts = facts;
    return device;
  }
  return Status(Code::kNotFound, "device: no GPU is " + words);
}

Result<DeviceWork> DeviceWork::Open(const ChosenDevice& device) {
  DeviceWork work;
  ASSIGN_OR_RETURN(work.gpu_, device.gpus->Open(device.facts.uuid));
  ASSIGN_OR_RETURN(work.stream_, work.gpu_->CreateStream());
  ASSIGN_OR_RETURN(work.event_, work.gpu_->CreateEvent());
  return work;
}

Status DeviceWork::Finish() const {
  RETURN_IF_ERROR(gpu_->RecordEvent(event_, stream_));
  for (;;) {
    ASSIGN_OR_RETURN(const bool done, gpu_->QueryEvent(event_));
    if (done) return {};
    std::this_thread::yield();
  }
}

Result<GpuAddress> DeviceWork::Allocate(uint64_t bytes) const {
  if (!gpu_->facts().slabs) return gpu_->Allocate(bytes);
  ASSIGN_OR_RETURN(const GpuSlab slab, gpu_->CreateSlab(bytes));
  ASSIGN_OR_RETURN(const GpuAddress at, gpu_->ReserveRange(bytes));
  RETURN_IF_ERROR(gpu_->MapSlab(at, slab));
  RETURN_IF_ERROR(gpu_->SetAccess(at, bytes, GpuAccess::kReadWrite));
  return at;
}

Result<HostFile> HostFile::Make(uint64_t bytes, uint64_t seed) {
  HostFile file;
  ASSIGN_OR_RETURN(file.fd_, CreateMemfd("terrace-bench", bytes));
  ASSIGN_OR_RETURN(file.mapping_, Mapping::Of(file.fd_.get(), 0, bytes, Protection::kReadWrite));
  uint8_t* const data = file.mapping_.data();
  for (uint64_t at = 0; at < bytes; at += kHuge)
    data[at] = 1;
  // Where the kernel has none it stays on small pages; the same for all that is compared.
  (void)::madvise(data, bytes, kAdviseCollapse);
  Random random(seed);
  for (uint64_t at = 0; at + 8 <= bytes; at += 8) {
    const uint64_t word = random();
    std::memcpy(data + at, &word, sizeof word);
  }
  return file;
}

Result<std::string> FindMover() {
  std::error_code failed;
  const fs::path self = fs::read_symlink("/proc/self/exe", failed).parent_path();
  for (const char* place :
       {"terrace-mover", "../tiers/device/terrace-mover", "../../tiers/device/terrace-mover"}) {
    const fs::path candidate = self / place;
    if (::access(candidate.c_str(), X_OK) == 0) return fs::canonical(candidate, failed).string();
  }
  return Status(Code::kNotFound, "no terrace-mover beside " + self.string() + ": build it");
}

Result<std::unique_ptr<TierBench>> TierBench::Start(const ChosenDevice& device,
                                                    const Options& options) {
  MoverTierOptions mover;
  mover.program = options.mover;
  if (mover.program.empty()) {
    ASSIGN_OR_RETURN(mover.program, FindMover());
  }
  mover.mover.kind = device.kind;
  mover.mover.device = device.facts.uuid;
  mover.mover.host_bytes = device.host_bytes;
  if (options.staged) mover.mover.options.registration_bytes = 0;
  std::unique_ptr<TierBench> bench(new TierBench());
  bench->staged_ = options.staged;
  ASSIGN_OR_RETURN(bench->tier_,
                   StartMoverTier(mover, bench->owner_, bench->clock_, [](ArenaId) {}));
  return bench;
}

Status TierBench::AwaitCall(const std::function<void(DeviceTier::Done)>& call) {
  std::optional<Status> status;
  call([&status](Status said) { status = std::move(said); });
  if (!owner_.RunUntil([&] { return status.has_value(); }, kLimit)) {
    return {Code::kInternal, "the device tier gives no answer"};
  }
  return *status;
}

Result<ArenaId> TierBench::Create(uint64_t bytes) {
  const ArenaId arena = NextArena();
  RETURN_IF_ERROR(AwaitCall([&](DeviceTier::Done done) {
    tier_->Create(
        arena, bytes, Deadline(),
        [done = std::move(done)](const Result<DeviceMemory>& made) { done(made.status()); });
  }));
  return arena;
}

Result<ArenaId> TierBench::AddHost(const HostFile& file) {
  const ArenaId arena = NextArena();
  ASSIGN_OR_RETURN(UniqueFd fd, file.Descriptor());
  RETURN_IF_ERROR(AwaitCall([&](DeviceTier::Done done) {
    tier_->AddHost(arena, file.bytes().size(), std::move(fd), Protection::kReadWrite,
                   Registration::kInBackground, Deadline(), std::move(done));
  }));
  return arena;
}

Status TierBench::Release(ArenaId arena) {
  return AwaitCall(
      [&](DeviceTier::Done done) { tier_->Release(arena, Deadline(), std::move(done)); });
}

Status TierBench::AwaitRegistration() {
  if (staged_) return {};
  const auto registered = [this] {
    const DeviceTierReport report = tier_->Report();
    return !report.registration.empty() ||
           (report.host_bytes > 0 && report.registered_bytes == report.host_bytes);
  };
  if (!owner_.RunUntil(registered, kLimit)) {
    return {Code::kInternal, "host arenas are not registered in time"};
  }
  const std::string refused = tier_->Report().registration;
  return refused.empty() ? Status() : Status(Code::kInternal, "registration: " + refused);
}

void TierBench::CountCopy(const Status& status) {
  --under_way_;
  if (failed_.ok()) failed_ = status;
}

void TierBench::Copy(std::vector<DeviceCopy> copies) {
  BeginCopy();
  tier_->Copy(std::move(copies), /*complete=*/true, Deadline(),
              [this](const Status& status) { CountCopy(status); });
}

Status TierBench::Await(size_t under_way) {
  if (!owner_.RunUntil([&] { return under_way_ <= under_way; }, kLimit)) {
    return {Code::kInternal, "copies are not done in time"};
  }
  return failed_;
}

void AddDevice(Figures* figures, const ChosenDevice& device) {
  const bool gpu = device.kind == MoverKind::kCuda;
  figures->push_back({"has_thresholds", gpu ? 1.0 : 0.0, "count"});
  figures->push_back({"device_bytes", static_cast<double>(device.facts.total_bytes), "bytes"});
}

}  // namespace terrace::bench
