// Suite `overlap`: a file on a device of the host to the memory of a GPU, block by block: read past
// the page cache into host arenas, which the device tier is given when their reads begin, copied as
// each is whole.
//
// A round runs the pipeline and each stage alone, in turn: the reads by themselves into the same
// arenas, and the tier by itself (arenas given, all blocks copied) over bytes that are there
// already. The pipeline can take no less than the slower stage; what it takes beyond it is the last
// block's copy, and whatever one stage costs the other. The first round and the last read all of
// the device back and compare it with the file.
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <memory>
#include <vector>

#include "bench/device_bench.h"
#include "bench/raw_disk.h"
#include "bench/raw_reads.h"
#include "bench/statistics.h"
#include "bench/store_pages.h"
#include "bench/suites.h"
#include "bench/temporary_folder.h"
#include "kernels/crc32c.h"
#include "tiers/io/disk_io.h"

namespace terrace::bench {
namespace {

struct Sizes {
  uint64_t block_bytes = 64u << 20;
  uint32_t blocks = 32;
  int rounds = 9;
};
constexpr uint64_t kReadBytes = 2u << 20;
constexpr uint32_t kDepth = 16;
constexpr MonotonicNs kReadNs = 60 * kNsPerSecond;

class Pipeline {
 public:
  static Result<std::unique_ptr<Pipeline>> Make(const ChosenDevice& device, const Sizes& sizes) {
    std::unique_ptr<Pipeline> pipeline(new Pipeline(sizes));
    RETURN_IF_ERROR(pipeline->MakeFile());
    for (uint32_t i = 0; i < sizes.blocks; ++i) {
      ASSIGN_OR_RETURN(HostFile block, HostFile::Make(sizes.block_bytes, 100 + i));
      pipeline->host_.push_back(std::move(block));
    }
    ASSIGN_OR_RETURN(pipeline->tier_, TierBench::Start(device, {.mover = "", .staged = false}));
    ASSIGN_OR_RETURN(pipeline->device_, pipeline->tier_->Create(pipeline->bytes()));
    return pipeline;
  }
  uint64_t bytes() const { return sizes_.blocks * sizes_.block_bytes; }

  Result<double> ReadAlone() {
    RETURN_IF_ERROR(DropFromCache({path_}));
    const Stopwatch watch;
    RETURN_IF_ERROR(Read([](uint32_t) {}, [](uint32_t) {}));
    return watch.Seconds();
  }

  Result<double> CopyAlone() {
    const Stopwatch watch;
    for (uint32_t block = 0; block < sizes_.blocks; ++block) {
      Add(block);
      Whole(block);
    }
    RETURN_IF_ERROR(tier_->Await(0));
    const double seconds = watch.Seconds();
    RETURN_IF_ERROR(ReleaseAll());
    return seconds;
  }

  Result<double> Together() {
    for (const HostFile& block : host_)
      std::memset(block.bytes().data(), 0, block.bytes().size());
    RETURN_IF_ERROR(DropFromCache({path_}));
    const Stopwatch watch;
    RETURN_IF_ERROR(
        Read([this](uint32_t block) { Add(block); }, [this](uint32_t block) { Whole(block); }));
    RETURN_IF_ERROR(tier_->Await(0));
    return watch.Seconds();
  }

  // After Together: what the device has is what the file has.
  Status Check() {
    for (uint32_t block = 0; block < sizes_.blocks; ++block) {
      std::memset(host_[block].bytes().data(), 0xa5, sizes_.block_bytes);
      tier_->Copy({{.dst = {.arena = arenas_[block], .offset = 0},
                    .src = {.arena = device_, .offset = block * sizes_.block_bytes},
                    .bytes = sizes_.block_bytes}});
      RETURN_IF_ERROR(tier_->Await(0));
      if (Crc32c(host_[block].bytes()) == checksums_[block]) continue;
      return {Code::kDataLoss, "block " + std::to_string(block) + " came with other bytes"};
    }
    return {};
  }
  Status ReleaseAll() {
    for (const ArenaId arena : arenas_) {
      if (arena != 0) RETURN_IF_ERROR(tier_->Release(arena));
    }
    std::ranges::fill(arenas_, ArenaId{0});
    return {};
  }

 private:
  explicit Pipeline(const Sizes& sizes)
      : sizes_(sizes), arenas_(sizes.blocks, 0), places_(sizes.blocks) {}

  Status MakeFile() {
    ASSIGN_OR_RETURN(folder_, TemporaryFolder::Make());
    path_ = folder_.path() + "/blocks";
    const UniqueFd file(::open(path_.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0600));
    if (!file) return SystemError("open " + path_, errno);
    for (uint32_t block = 0; block < sizes_.blocks; ++block) {
      ASSIGN_OR_RETURN(const HostFile content, HostFile::Make(sizes_.block_bytes, 1000 + block));
      checksums_.push_back(Crc32c(content.bytes()));
      for (std::span<uint8_t> left = content.bytes(); !left.empty();) {
        const ssize_t wrote = ::write(file.get(), left.data(), left.size());
        if (wrote <= 0) return SystemError("write " + path_, wrote < 0 ? errno : EIO);
        left = left.subspan(static_cast<size_t>(wrote));
      }
    }
    if (::fsync(file.get()) != 0) return SystemError("fsync " + path_, errno);
    direct_.Reset(::open(path_.c_str(), O_RDONLY | O_DIRECT | O_CLOEXEC));
    if (!direct_) return SystemError("open past the page cache " + path_, errno);
    ASSIGN_OR_RETURN(disk_, StartDiskIo({.depth = kDepth}, clock_));
    ASSIGN_OR_RETURN(file_, disk_->AddFile(direct_.get()));
    return {};
  }

  // Reads all blocks in their order, kDepth requests at a time; `begun` of each before its first
  // request and `whole` when it is complete, on this thread.
  Status Read(const std::function<void(uint32_t)>& begun,
              const std::function<void(uint32_t)>& whole) {
    std::vector<uint64_t> left(sizes_.blocks, sizes_.block_bytes / kReadBytes);
    uint64_t next = 0;
    uint64_t answered = 0;
    uint32_t with_device = 0;
    const uint64_t all = bytes() / kReadBytes;
    Status failed;
    // What came of a request, posted here by the DiskIo's thread.
    const auto answer = [&](uint64_t read, const Status& status) {
      ++answered;
      --with_device;
      if (failed.ok()) failed = status;
      const auto block = static_cast<uint32_t>(read * kReadBytes / sizes_.block_bytes);
      if (--left[block] == 0 && failed.ok()) whole(block);
    };
    while (answered < next || (next < all && failed.ok())) {
      while (with_device < kDepth && next < all && failed.ok()) {
        const uint64_t read = next++;
        ++with_device;
        if (read * kReadBytes % sizes_.block_bytes == 0) {
          begun(static_cast<uint32_t>(read * kReadBytes / sizes_.block_bytes));
        }
        if (Status submitted = Submit(read, answer); !submitted.ok()) answer(read, submitted);
      }
      const uint64_t before = answered;
      if (!tier_->owner().RunUntil([&] { return answered != before || answered == next; })) {
        return {Code::kInternal, "the disk gives no answer"};
      }
    }
    return failed;
  }

  template <typename Answer>
  Status Submit(uint64_t read, const Answer& answer) {
    const uint64_t at = read * kReadBytes;
    IoRequest request;
    request.file = file_;
    request.offset = at;
    request.memory = {
        {host_[at / sizes_.block_bytes].bytes().data() + at % sizes_.block_bytes, kReadBytes}};
    request.deadline = clock_.Now() + kReadNs;
    request.done = [this, read, &answer](const Status& status) {
      tier_->owner().Post([read, status, &answer] { answer(read, status); });
    };
    std::vector<IoRequest> requests;
    requests.push_back(std::move(request));
    return disk_->Submit(std::move(requests));
  }

  // The arena to the tier, which registers it meanwhile.
  void Add(uint32_t block) {
    arenas_[block] = tier_->NextArena();
    places_[block] = Place{};
    tier_->BeginCopy();
    Result<UniqueFd> fd = host_[block].Descriptor();
    if (!fd) return tier_->CountCopy(fd.error());
    tier_->tier().AddHost(arenas_[block], sizes_.block_bytes, *std::move(fd),
                          Protection::kReadWrite, Registration::kInBackground, tier_->Deadline(),
                          [this, block](const Status& status) {
                            places_[block].known = status.ok();
                            if (places_[block].known && places_[block].whole) Copy(block);
                            tier_->CountCopy(status);
                          });
  }
  // Its bytes are there: to the device as soon as the arena is known to the tier.
  void Whole(uint32_t block) {
    places_[block].whole = true;
    if (places_[block].known) Copy(block);
  }
  void Copy(uint32_t block) {
    tier_->Copy({{.dst = {.arena = device_, .offset = block * sizes_.block_bytes},
                  .src = {.arena = arenas_[block], .offset = 0},
                  .bytes = sizes_.block_bytes}});
  }

  const Sizes sizes_;
  const SystemClock clock_;
  TemporaryFolder folder_;
  std::string path_;
  UniqueFd direct_;
  std::vector<uint32_t> checksums_;  // Of the file's blocks.
  std::vector<HostFile> host_;
  std::vector<ArenaId> arenas_;
  struct Place {
    bool known = false;  // To the tier.
    bool whole = false;
  };
  std::vector<Place> places_;
  ArenaId device_ = 0;
  std::unique_ptr<TierBench> tier_;
  IoFileId file_ = 0;
  std::unique_ptr<DiskIo> disk_;  // Goes first: its requests write the blocks.
};

}  // namespace

Result<Figures> RunOverlap(const SuiteOptions& options) {
  const Sizes sizes =
      options.quick ? Sizes{.block_bytes = 16u << 20, .blocks = 8, .rounds = 2} : Sizes{};
  ASSIGN_OR_RETURN(const ChosenDevice device,
                   ChooseDevice(options.device, 2 * sizes.blocks * sizes.block_bytes));
  ASSIGN_OR_RETURN(const std::unique_ptr<Pipeline> pipeline, Pipeline::Make(device, sizes));
  std::vector<double> over, total, read, copy;
  for (int i = 0; i < sizes.rounds; ++i) {
    ASSIGN_OR_RETURN(const double before, pipeline->ReadAlone());
    ASSIGN_OR_RETURN(const double copied, pipeline->CopyAlone());
    ASSIGN_OR_RETURN(const double together, pipeline->Together());
    if (i == 0 || i + 1 == sizes.rounds) RETURN_IF_ERROR(pipeline->Check());
    RETURN_IF_ERROR(pipeline->ReleaseAll());
    // The rate of a disk changes within seconds: reads stand on both sides of the pipeline.
    ASSIGN_OR_RETURN(const double after, pipeline->ReadAlone());
    read.push_back((before + after) / 2);
    copy.push_back(copied);
    total.push_back(together);
    over.push_back(together / std::max(read.back(), copied));
  }
  const double gigabytes = static_cast<double>(pipeline->bytes()) / 1e9;
  Figures figures;
  AddDevice(&figures, device);
  AddSpread(&figures, "total_over_slower_stage", over, "ratio");
  figures.push_back({"total_gb_s", gigabytes / Median(total), "GB/s"});
  figures.push_back({"read_gb_s", gigabytes / Median(read), "GB/s"});
  figures.push_back({"copy_gb_s", gigabytes / Median(copy), "GB/s"});
  figures.push_back({"bytes", static_cast<double>(pipeline->bytes()), "bytes"});
  figures.push_back({"block_bytes", static_cast<double>(sizes.block_bytes), "bytes"});
  return figures;
}

}  // namespace terrace::bench
