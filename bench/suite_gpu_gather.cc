// Suite `gpu-gather`: blocks of an engine's pool into pages and back, within the device, against
// one copy of as many bytes within the device. Both read and write every byte once.
//
// The layout is Llama-3-8B's: 16 tokens a block, 32 layers with K and V apart, 8 heads of 128 bf16:
// 64 segments of 32 KiB, 2 MiB a block. The blocks are a random half of the pool, their pages lie
// side by side. Rounds take turns; each puts the same work on the stream several times and waits
// once. Before and after, gathered pages are compared with the pool byte by byte on the processor,
// and scattered ones are read back; what is not named must stay as it was poisoned.
#include <algorithm>
#include <cstring>
#include <vector>

#include "bench/device_bench.h"
#include "bench/raw_disk.h"
#include "bench/statistics.h"
#include "bench/store_pages.h"
#include "bench/suites.h"

namespace terrace::bench {
namespace {

constexpr size_t kSegments = 64;
constexpr uint64_t kSegmentBytes = 32u << 10;
constexpr uint64_t kBlockBytes = kSegments * kSegmentBytes;

struct Sizes {
  uint32_t blocks = 512;  // Of pages; the pool has twice as many.
  int repeats = 8;
  int rounds = 21;
};

class BlockPool {
 public:
  static Result<BlockPool> Make(const ChosenDevice& device, const Sizes& sizes) {
    BlockPool pages(sizes);
    ASSIGN_OR_RETURN(pages.work_, DeviceWork::Open(device));
    if (!pages.work_.gpu().facts().paged_copies) {
      return Status(Code::kMismatch, "this device or build has no kernels");
    }
    ASSIGN_OR_RETURN(pages.pool_, pages.work_.Allocate(2 * pages.bytes()));
    ASSIGN_OR_RETURN(pages.pages_, pages.work_.Allocate(pages.bytes()));
    ASSIGN_OR_RETURN(pages.other_, pages.work_.Allocate(pages.bytes()));
    ASSIGN_OR_RETURN(pages.content_, HostFile::Make(2 * pages.bytes(), 21));
    ASSIGN_OR_RETURN(pages.window_, HostFile::Make(2 * pages.bytes(), 22));
    for (const HostFile* file : {&pages.content_, &pages.window_}) {
      RETURN_IF_ERROR(
          pages.work_.gpu().RegisterHost(file->bytes(), GpuAccess::kReadWrite).status());
    }
    pages.bases_ = EvenBases(pages.pool_, kSegments, 2 * uint64_t{sizes.blocks} * kSegmentBytes);
    Shuffled order(2 * sizes.blocks, 23);
    for (uint32_t i = 0; i < sizes.blocks; ++i) {
      pages.blocks_.push_back({.page = pages.pages_ + i * kBlockBytes,
                               .block = static_cast<uint32_t>(order.Take()),
                               .bytes = kSegmentBytes});
    }
    RETURN_IF_ERROR(pages.Put(pages.pool_, pages.content_));
    return pages;
  }

  uint64_t bytes() const { return sizes_.blocks * kBlockBytes; }

  Result<double> Gather() const {
    return Time([this] { return Launch(true); });
  }
  Result<double> Scatter() const {
    return Time([this] { return Launch(false); });
  }
  Result<double> Copy() const {
    return Time([this] {
      const GpuCopy copy{.dst = other_, .src = pages_, .bytes = bytes()};
      return work_.gpu().Copy(work_.stream(), {&copy, 1}, SourceOrder::kStream);
    });
  }

  // The pool has its content, and gathering it puts every segment where it belongs.
  Status CheckGather() const {
    RETURN_IF_ERROR(work_.gpu().Clear(work_.stream(), pages_, bytes()));
    RETURN_IF_ERROR(Launch(true));
    RETURN_IF_ERROR(Get(pages_, bytes()));
    for (size_t i = 0; i < blocks_.size(); ++i) {
      for (size_t segment = 0; segment < kSegments; ++segment) {
        if (std::memcmp(window_.bytes().data() + i * kBlockBytes + segment * kSegmentBytes,
                        content_.bytes().data() + PlaceInPool(i, segment), kSegmentBytes) != 0) {
          return {Code::kDataLoss, "gather: segment " + std::to_string(segment) + " of page " +
                                       std::to_string(i) + " has other bytes"};
        }
      }
    }
    return {};
  }

  // Pages of the content's first half over a poisoned pool: named blocks have them, the others are
  // poison still. The pool has its content again afterwards.
  Status CheckScatter() const {
    RETURN_IF_ERROR(Put(pages_, content_, bytes()));
    std::memset(window_.bytes().data(), 0x5a, window_.bytes().size());
    RETURN_IF_ERROR(Put(pool_, window_));
    std::vector<uint8_t> wanted(2 * bytes(), 0x5a);
    for (size_t i = 0; i < blocks_.size(); ++i) {
      for (size_t segment = 0; segment < kSegments; ++segment) {
        std::memcpy(wanted.data() + PlaceInPool(i, segment),
                    content_.bytes().data() + i * kBlockBytes + segment * kSegmentBytes,
                    kSegmentBytes);
      }
    }
    RETURN_IF_ERROR(Launch(false));
    RETURN_IF_ERROR(Get(pool_, 2 * bytes()));
    if (!std::ranges::equal(wanted, window_.bytes())) {
      return {Code::kDataLoss, "scatter: the pool has other bytes"};
    }
    return Put(pool_, content_);
  }

 private:
  explicit BlockPool(const Sizes& sizes) : sizes_(sizes) {}

  uint64_t PlaceInPool(size_t page, size_t segment) const {
    return segment * 2 * sizes_.blocks * kSegmentBytes + blocks_[page].block * kSegmentBytes;
  }
  Status Launch(bool gather) const {
    const PagedLayout layout = {.bases = bases_,
                                .block_stride = kSegmentBytes,
                                .block_bytes = kSegmentBytes,
                                .segment_stride = kSegmentBytes};
    return gather ? work_.gpu().GatherPages(work_.stream(), layout, blocks_)
                  : work_.gpu().ScatterPages(work_.stream(), layout, blocks_);
  }
  // Seconds of one.
  template <typename Put>
  Result<double> Time(Put put) const {
    const Stopwatch watch;
    for (int i = 0; i < sizes_.repeats; ++i)
      RETURN_IF_ERROR(put());
    RETURN_IF_ERROR(work_.Finish());
    return watch.Seconds() / sizes_.repeats;
  }
  Status Put(GpuAddress to, const HostFile& from) const {
    return Put(to, from, from.bytes().size());
  }
  Status Put(GpuAddress to, const HostFile& from, uint64_t bytes) const {
    const GpuCopy copy{
        .dst = to, .src = reinterpret_cast<GpuAddress>(from.bytes().data()), .bytes = bytes};
    RETURN_IF_ERROR(work_.gpu().Copy(work_.stream(), {&copy, 1}, SourceOrder::kStream));
    return work_.Finish();
  }
  Status Get(GpuAddress from, uint64_t bytes) const {
    const GpuCopy copy{
        .dst = reinterpret_cast<GpuAddress>(window_.bytes().data()), .src = from, .bytes = bytes};
    RETURN_IF_ERROR(work_.gpu().Copy(work_.stream(), {&copy, 1}, SourceOrder::kStream));
    return work_.Finish();
  }

  Sizes sizes_;
  HostFile content_;  // Of the pool. Registered, as the window: they outlive the context.
  HostFile window_;
  DeviceWork work_;
  GpuAddress pool_ = 0;
  GpuAddress pages_ = 0;
  GpuAddress other_ = 0;
  std::vector<uint64_t> bases_;
  std::vector<PagedBlock> blocks_;
};

}  // namespace

Result<Figures> RunGpuGather(const SuiteOptions& options) {
  Sizes sizes;
  if (options.device == "host") sizes = {.blocks = 128, .repeats = 1, .rounds = 9};
  if (options.quick) sizes = {.blocks = 16, .repeats = 1, .rounds = 3};
  ASSIGN_OR_RETURN(const ChosenDevice device,
                   ChooseDevice(options.device, 8 * sizes.blocks * kBlockBytes));
  ASSIGN_OR_RETURN(const BlockPool pages, BlockPool::Make(device, sizes));
  RETURN_IF_ERROR(pages.CheckGather());
  RETURN_IF_ERROR(pages.CheckScatter());

  const double moved = 2 * static_cast<double>(pages.bytes()) / 1e9;  // Read and written.
  std::vector<double> gather_over, scatter_over, gather_gb_s, scatter_gb_s, copy_gb_s;
  for (int i = 0; i < sizes.rounds; ++i) {
    ASSIGN_OR_RETURN(const double gather, pages.Gather());
    ASSIGN_OR_RETURN(const double copy, pages.Copy());
    ASSIGN_OR_RETURN(const double scatter, pages.Scatter());
    gather_over.push_back(copy / gather);
    scatter_over.push_back(copy / scatter);
    gather_gb_s.push_back(moved / gather);
    scatter_gb_s.push_back(moved / scatter);
    copy_gb_s.push_back(moved / copy);
  }
  RETURN_IF_ERROR(pages.CheckGather());

  Figures figures;
  AddDevice(&figures, device);
  AddSpread(&figures, "gather_over_copy", gather_over, "ratio");
  AddSpread(&figures, "scatter_over_copy", scatter_over, "ratio");
  figures.push_back({"gather_gb_s", Median(gather_gb_s), "GB/s"});
  figures.push_back({"scatter_gb_s", Median(scatter_gb_s), "GB/s"});
  figures.push_back({"copy_gb_s", Median(copy_gb_s), "GB/s"});
  figures.push_back({"block_bytes", static_cast<double>(kBlockBytes), "bytes"});
  figures.push_back({"moved_bytes", static_cast<double>(pages.bytes()), "bytes"});
  return figures;
}

}  // namespace terrace::bench
