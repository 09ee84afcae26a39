// Suite `gpu-copy`: pages and weight blocks into a device and out of it, by a DeviceTier over a
// real terrace-mover, against the same bytes by the driver directly from registered memory of this
// process.
//
// Pages of 2 MiB go in requests of 64, in random order, four requests under way; blocks go in one
// copy each. The rival is the best of three: all copies in one call, a call a copy, and the bytes
// of a request in one copy. Rounds take turns, and both wait for the last byte only. At the end
// everything is compared: what went in is read back.
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

constexpr uint64_t kPageBytes = 2u << 20;
constexpr size_t kBatch = 64;
constexpr size_t kUnderWay = 4;

struct Sizes {
  uint64_t bytes = uint64_t{2} << 30;  // Of the device's memory, and of the host's.
  uint64_t block_bytes = 256u << 20;
  int rounds = 15;
  int staged_rounds = 5;
};

enum class Shape : uint8_t { kPages, kBlocks };

// From place to place, equally far from both begins; a request's worth together.
struct Piece {
  uint64_t from = 0;
  uint64_t to = 0;
  uint64_t bytes = 0;
};
using Request = std::vector<Piece>;

// Every byte once: pages in an order of their own, so that no two copies of a request touch.
std::vector<Request> Cut(const Sizes& sizes, Shape shape) {
  std::vector<Request> requests;
  if (shape == Shape::kBlocks) {
    for (uint64_t at = 0; at < sizes.bytes; at += sizes.block_bytes)
      requests.push_back({{.from = at, .to = at, .bytes = sizes.block_bytes}});
    return requests;
  }
  const uint64_t pages = sizes.bytes / kPageBytes;
  Shuffled order(pages, 7);
  for (uint64_t i = 0; i < pages; ++i) {
    if (i % kBatch == 0) requests.emplace_back();
    const uint64_t at = order.Take() * kPageBytes;
    requests.back().push_back({.from = at, .to = at, .bytes = kPageBytes});
  }
  return requests;
}

// The driver by itself, from this process.
class Plain {
 public:
  enum class Way : uint8_t { kBatches, kSingles, kWhole };

  static Result<Plain> Make(const ChosenDevice& device, const Sizes& sizes) {
    Plain plain;
    ASSIGN_OR_RETURN(plain.work_, DeviceWork::Open(device));
    ASSIGN_OR_RETURN(plain.device_, plain.work_.Allocate(sizes.bytes));
    ASSIGN_OR_RETURN(plain.host_, HostFile::Make(sizes.bytes, 11));
    RETURN_IF_ERROR(
        plain.work_.gpu().RegisterHost(plain.host_.bytes(), GpuAccess::kReadWrite).status());
    return plain;
  }

  Result<double> Move(const std::vector<Request>& requests, bool in, Way way) const {
    const auto host = reinterpret_cast<GpuAddress>(host_.bytes().data());
    const Stopwatch watch;
    uint64_t whole_at = 0;
    for (const Request& request : requests) {
      std::vector<GpuCopy> copies;
      for (const Piece& piece : request) {
        copies.push_back({.dst = in ? device_ + piece.to : host + piece.from,
                          .src = in ? host + piece.from : device_ + piece.to,
                          .bytes = piece.bytes});
      }
      if (way == Way::kWhole) {
        const uint64_t bytes = copies.size() * copies.front().bytes;
        copies = {{.dst = (in ? device_ : host) + whole_at,
                   .src = (in ? host : device_) + whole_at,
                   .bytes = bytes}};
        whole_at += bytes;
      }
      if (way != Way::kSingles) {
        RETURN_IF_ERROR(work_.gpu().Copy(work_.stream(), copies, SourceOrder::kAny));
        continue;
      }
      for (const GpuCopy& copy : copies)
        RETURN_IF_ERROR(work_.gpu().Copy(work_.stream(), {&copy, 1}, SourceOrder::kAny));
    }
    RETURN_IF_ERROR(work_.Finish());
    return watch.Seconds();
  }

  Result<Way> Best(const std::vector<Request>& requests, bool in) const {
    Way best = Way::kBatches;
    double least = 0;
    for (const Way way : {Way::kBatches, Way::kSingles, Way::kWhole}) {
      std::vector<double> seconds;
      for (int i = 0; i < 3; ++i) {
        ASSIGN_OR_RETURN(const double once, Move(requests, in, way));
        seconds.push_back(once);
      }
      const double median = Median(seconds);
      if (least > 0 && median >= least) continue;
      least = median;
      best = way;
    }
    return best;
  }

 private:
  HostFile host_;  // Registered: it outlives the context.
  DeviceWork work_;
  GpuAddress device_ = 0;
};

// The tier with one arena of the device and one of the host.
class Ours {
 public:
  static Result<Ours> Make(const ChosenDevice& device, const Sizes& sizes, bool staged) {
    Ours ours;
    ASSIGN_OR_RETURN(ours.file_, HostFile::Make(sizes.bytes, 12));
    ASSIGN_OR_RETURN(ours.tier_, TierBench::Start(device, {.mover = "", .staged = staged}));
    ASSIGN_OR_RETURN(ours.device_, ours.tier_->Create(sizes.bytes));
    ASSIGN_OR_RETURN(ours.host_, ours.tier_->AddHost(ours.file_));
    RETURN_IF_ERROR(ours.tier_->AwaitRegistration());
    return ours;
  }

  Result<double> Move(const std::vector<Request>& requests, bool in) const {
    const Stopwatch watch;
    for (const Request& request : requests) {
      std::vector<DeviceCopy> copies;
      for (const Piece& piece : request) {
        const DevicePlace host{.arena = host_, .offset = piece.from};
        const DevicePlace device{.arena = device_, .offset = piece.to};
        copies.push_back(
            {.dst = in ? device : host, .src = in ? host : device, .bytes = piece.bytes});
      }
      RETURN_IF_ERROR(tier_->Await(kUnderWay - 1));
      tier_->Copy(std::move(copies));
    }
    RETURN_IF_ERROR(tier_->Await(0));
    return watch.Seconds();
  }

  // What the device has is what the host had: in, wiped here, out again.
  Status Check(const std::vector<Request>& requests) const {
    const std::vector<uint8_t> before(file_.bytes().begin(), file_.bytes().end());
    RETURN_IF_ERROR(Move(requests, true).status());
    std::memset(file_.bytes().data(), 0xa5, file_.bytes().size());
    RETURN_IF_ERROR(Move(requests, false).status());
    if (std::ranges::equal(before, file_.bytes())) return {};
    return {Code::kDataLoss, "what came back from the device is not what went in"};
  }

 private:
  HostFile file_;
  ArenaId device_ = 0;
  ArenaId host_ = 0;
  std::unique_ptr<TierBench> tier_;
};

struct Measured {
  std::vector<double> over, gb_s, plain_gb_s, staged_gb_s;
};

Status Measure(const Sizes& sizes, const std::vector<Request>& requests, bool in,
               const Plain& plain, const Ours& ours, Measured* measured) {
  const double gigabytes = static_cast<double>(sizes.bytes) / 1e9;
  ASSIGN_OR_RETURN(const Plain::Way way, plain.Best(requests, in));
  RETURN_IF_ERROR(ours.Move(requests, in).status());
  for (int i = 0; i < sizes.rounds; ++i) {
    double seconds = 0, bare = 0;
    for (const bool first : {i % 2 == 0, i % 2 != 0}) {
      ASSIGN_OR_RETURN((first ? bare : seconds),
                       first ? plain.Move(requests, in, way) : ours.Move(requests, in));
    }
    measured->over.push_back(bare / seconds);
    measured->gb_s.push_back(gigabytes / seconds);
    measured->plain_gb_s.push_back(gigabytes / bare);
  }
  return {};
}

Status MeasureStaged(const Sizes& sizes, const std::vector<Request>& requests, bool in,
                     const Ours& staged, Measured* measured) {
  for (int i = 0; i < sizes.staged_rounds; ++i) {
    ASSIGN_OR_RETURN(const double seconds, staged.Move(requests, in));
    measured->staged_gb_s.push_back(static_cast<double>(sizes.bytes) / 1e9 / seconds);
  }
  return {};
}

}  // namespace

Result<Figures> RunGpuCopy(const SuiteOptions& options) {
  Sizes sizes;
  if (options.device == "host") sizes.bytes = 512u << 20;
  if (options.quick) {
    sizes = {.bytes = 256u << 20, .block_bytes = 64u << 20, .rounds = 3, .staged_rounds = 2};
  }
  ASSIGN_OR_RETURN(const ChosenDevice device, ChooseDevice(options.device, 4 * sizes.bytes));
  Measured measured[2][2];  // By shape, and into the device or out of it.
  const Shape shapes[] = {Shape::kPages, Shape::kBlocks};
  {
    ASSIGN_OR_RETURN(const Plain plain, Plain::Make(device, sizes));
    ASSIGN_OR_RETURN(const Ours ours, Ours::Make(device, sizes, false));
    for (size_t shape = 0; shape < 2; ++shape) {
      const std::vector<Request> requests = Cut(sizes, shapes[shape]);
      for (const bool in : {true, false})
        RETURN_IF_ERROR(Measure(sizes, requests, in, plain, ours, &measured[shape][in ? 0 : 1]));
      RETURN_IF_ERROR(ours.Check(requests));
    }
  }
  ASSIGN_OR_RETURN(const Ours staged, Ours::Make(device, sizes, true));
  for (size_t shape = 0; shape < 2; ++shape) {
    const std::vector<Request> requests = Cut(sizes, shapes[shape]);
    for (const bool in : {true, false})
      RETURN_IF_ERROR(MeasureStaged(sizes, requests, in, staged, &measured[shape][in ? 0 : 1]));
    RETURN_IF_ERROR(staged.Check(requests));
  }

  Figures figures;
  AddDevice(&figures, device);
  const char* ways[] = {"h2d", "d2h"};
  for (size_t way = 0; way < 2; ++way) {
    figures.push_back({std::string(ways[way]) + "_over_plain",
                       std::min(Median(measured[0][way].over), Median(measured[1][way].over)),
                       "ratio"});
  }
  const char* names[] = {"_pages", "_blocks"};
  for (size_t shape = 0; shape < 2; ++shape) {
    for (size_t way = 0; way < 2; ++way) {
      const Measured& of = measured[shape][way];
      const std::string name = ways[way];
      const std::string behind = names[shape];
      AddSpread(&figures, name + "_over_plain" + behind, of.over, "ratio");
      figures.push_back({name + "_gb_s" + behind, Median(of.gb_s), "GB/s"});
      figures.push_back({"plain_" + name + "_gb_s" + behind, Median(of.plain_gb_s), "GB/s"});
      figures.push_back({"staged_" + name + "_gb_s" + behind, Median(of.staged_gb_s), "GB/s"});
    }
  }
  return figures;
}

}  // namespace terrace::bench
