// Work whose every byte is compared: kernels, a slab that two processes share, a mover that is
// killed.
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <memory>

#include "base/random.h"
#include "bench/gpu_check/station.h"
#include "bench/processes.h"
#include "bench/raw_disk.h"
#include "bench/statistics.h"

namespace terrace::bench {
namespace {

struct Shape {
  size_t segments = 0;
  uint32_t pool_blocks = 0;
  uint32_t blocks = 0;
  uint64_t block_bytes = 0;
  bool page_first = false;  // Else layer-first, one page a block.
};

// Pool and pages of one shape, at these addresses.
struct Layout {
  Layout(const Shape& shape, uint64_t pool, uint64_t pages, uint64_t seed)
      : bases(shape.page_first
                  ? EvenBases(pool, shape.segments, shape.block_bytes)
                  : EvenBases(pool, shape.segments, shape.pool_blocks * shape.block_bytes)) {
    layout = {
        .bases = bases,
        .block_stride = shape.page_first ? shape.segments * shape.block_bytes : shape.block_bytes,
        .block_bytes = shape.block_bytes,
        .segment_stride = shape.block_bytes};
    Shuffled order(shape.pool_blocks, seed);
    Random random(seed);
    for (uint32_t i = 0; i < shape.blocks; ++i) {
      // Every third is filled in part.
      const uint64_t vectors = shape.block_bytes / kPagedAlignment;
      const uint64_t some = i % 3 == 2 ? 1 + random.Below(vectors) : vectors;
      blocks.push_back({.page = pages + i * shape.segments * shape.block_bytes,
                        .block = static_cast<uint32_t>(order.Take()),
                        .bytes = static_cast<uint32_t>(some * kPagedAlignment)});
    }
  }
  std::vector<uint64_t> bases;
  std::vector<PagedBlock> blocks;
  PagedLayout layout;
};

uint64_t Whole(uint64_t bytes) {
  return (bytes + 4095) / 4096 * 4096;
}

// Random sources, poisoned destinations; then all of both is compared with what the processor does.
Status TryShape(const Station& station, const Shape& shape, bool gather, uint64_t seed) {
  const uint64_t pool_bytes = Whole(shape.segments * shape.pool_blocks * shape.block_bytes);
  const uint64_t page_bytes = Whole(shape.segments * shape.blocks * shape.block_bytes);
  ASSIGN_OR_RETURN(const HostFile wanted, HostFile::Make(pool_bytes + page_bytes, seed));
  ASSIGN_OR_RETURN(const HostFile got, HostFile::Make(pool_bytes + page_bytes, seed + 1));
  ASSIGN_OR_RETURN(const HostRegion region,
                   station.gpu().RegisterHost(got.bytes(), GpuAccess::kReadWrite));
  const auto poisoned =
      gather ? wanted.bytes().subspan(pool_bytes) : wanted.bytes().first(pool_bytes);
  std::ranges::fill(poisoned, uint8_t{0x5a});
  std::ranges::copy(wanted.bytes(), got.bytes().begin());

  const uint64_t bytes = station.Granules(pool_bytes + page_bytes);
  ASSIGN_OR_RETURN(const Mapped memory, station.MapNew(bytes));
  const auto host = reinterpret_cast<GpuAddress>(wanted.bytes().data());
  const auto back = reinterpret_cast<GpuAddress>(got.bytes().data());
  RETURN_IF_ERROR(station.CopyNow(memory.at, back, pool_bytes + page_bytes));
  std::ranges::fill(got.bytes(), uint8_t{0xa5});

  const Layout here(shape, host, host + pool_bytes, seed);
  const Layout there(shape, memory.at, memory.at + pool_bytes, seed);
  const GpuStream stream = station.work().stream();
  if (gather) {
    GatherPages(here.layout, here.blocks);
    RETURN_IF_ERROR(station.gpu().GatherPages(stream, there.layout, there.blocks));
  } else {
    ScatterPages(here.layout, here.blocks);
    RETURN_IF_ERROR(station.gpu().ScatterPages(stream, there.layout, there.blocks));
  }
  RETURN_IF_ERROR(station.work().Finish());
  RETURN_IF_ERROR(station.CopyNow(back, memory.at, pool_bytes + page_bytes));
  const bool same = std::ranges::equal(wanted.bytes(), got.bytes());
  RETURN_IF_ERROR(station.gpu().UnregisterHost(region));
  RETURN_IF_ERROR(station.Drop(memory));
  if (same) return {};
  return {Code::kDataLoss, std::string(gather ? "gather" : "scatter") + " of " +
                               std::to_string(shape.segments) + " segments of " +
                               std::to_string(shape.block_bytes) + " bytes and " +
                               std::to_string(shape.blocks) + " blocks: other bytes"};
}

Result<Answer> Kernels(const CheckOptions& options) {
  ASSIGN_OR_RETURN(const Station station, Station::Open(options));
  if (!station.facts().paged_copies) {
    return Status(options.on_gpu ? Code::kInternal : Code::kMismatch, "no kernels");
  }
  // One 16, short rows, a tile and a half, Llama-3-8B's, more segments and more blocks than a
  // launch takes, MLA's row of 576 bf16.
  const Shape shapes[] = {{1, 3, 2, 16, false},        {6, 20, 7, 48, false},
                          {4, 9, 5, 24'576, false},    {64, 24, 12, 32'768, false},
                          {300, 5, 3, 1'024, false},   {2, 500, 400, 512, false},
                          {61, 40, 20, 18'432, false}, {64, 24, 12, 4'096, true}};
  Answer answer;
  uint64_t tried = 0;
  for (const Shape& shape : shapes) {
    for (const bool gather : {true, false}) {
      for (uint64_t round = 0; round < (options.quick ? 1 : 4); ++round, ++tried)
        RETURN_IF_ERROR(TryShape(station, shape, gather, 100 * tried + 17));
    }
  }
  answer.words = "every byte as the processor's, poison untouched";
  answer.figures = {{"copies_compared", static_cast<double>(tried), "count"}};
  return answer;
}

// Two processes write in turn what the other reads.
Result<Answer> SharedSlab(const CheckOptions& options) {
  constexpr uint64_t kBytes = 8u << 20;
  const uint32_t rounds = options.quick ? 3 : 20;
  ASSIGN_OR_RETURN(Child peer, Child::Start("sharing", [&](Link& link) -> Status {
                     ASSIGN_OR_RETURN(const UniqueFd fd, ReceiveFd(link.fd()));
                     ASSIGN_OR_RETURN(const Station station, Station::Open(options));
                     ASSIGN_OR_RETURN(const Mapped slab,
                                      station.MapImport(fd.get(), station.Granules(kBytes),
                                                        GpuAccess::kReadWrite));
                     for (uint32_t i = 0; i < rounds; ++i) {
                       ASSIGN_OR_RETURN(const Go go, link.Receive<Go>());
                       RETURN_IF_ERROR(station.Holds(slab.at, kBytes, go.number));
                       RETURN_IF_ERROR(station.Put(slab.at, kBytes, go.number + 1));
                       RETURN_IF_ERROR(link.Send(Go{go.number + 1}));
                     }
                     return {};
                   }));
  ASSIGN_OR_RETURN(const Station station, Station::Open(options));
  ASSIGN_OR_RETURN(const Mapped slab, station.MapNew(station.Granules(kBytes)));
  ASSIGN_OR_RETURN(const UniqueFd fd, station.gpu().ExportSlab(slab.slab));
  RETURN_IF_ERROR(SendFd(peer.link().fd(), fd.get()));
  for (uint32_t i = 0; i < rounds; ++i) {
    RETURN_IF_ERROR(station.Put(slab.at, kBytes, 1000 + 2 * i));
    RETURN_IF_ERROR(peer.link().Send(Go{1000 + 2 * i}));
    ASSIGN_OR_RETURN(const Go go, peer.link().Receive<Go>());
    RETURN_IF_ERROR(station.Holds(slab.at, kBytes, go.number));
  }
  RETURN_IF_ERROR(peer.Wait());
  Answer answer;
  answer.words = "each saw what the other wrote";
  answer.figures = {{"rounds", static_cast<double>(rounds), "count"}};
  return answer;
}

// SIGKILL while copies are under way, several times: they are done all the same, by the next
// process, and what lies on the device stays.
Result<Answer> KilledMover(const CheckOptions& options) {
  const uint64_t bytes = options.quick ? 32u << 20 : 512u << 20;
  ASSIGN_OR_RETURN(const ChosenDevice device, ChooseDevice(options.device, uint64_t{4} << 30));
  ASSIGN_OR_RETURN(const HostFile file, HostFile::Make(bytes, 31));
  const std::vector<uint8_t> content(file.bytes().begin(), file.bytes().end());
  ASSIGN_OR_RETURN(const std::unique_ptr<TierBench> tier,
                   TierBench::Start(device, {.mover = "", .staged = false}));
  ASSIGN_OR_RETURN(const ArenaId memory, tier->Create(bytes));
  ASSIGN_OR_RETURN(const ArenaId host, tier->AddHost(file));
  const uint64_t kills = 2;
  const Stopwatch watch;
  for (uint64_t i = 0; i < kills; ++i) {
    for (uint64_t at = 0; at < bytes; at += 2u << 20) {
      tier->Copy({{.dst = {.arena = memory, .offset = at},
                   .src = {.arena = host, .offset = at},
                   .bytes = 2u << 20}});
    }
    const pid_t mover = tier->tier().Report().process;
    if (mover > 0) (void)::kill(mover, SIGKILL);
    RETURN_IF_ERROR(tier->Await(0));
  }
  std::memset(file.bytes().data(), 0xa5, bytes);
  tier->Copy({{.dst = {.arena = host, .offset = 0},
               .src = {.arena = memory, .offset = 0},
               .bytes = bytes}});
  RETURN_IF_ERROR(tier->Await(0));
  // That a process is gone may be noticed after the last answer that it gave.
  (void)tier->owner().RunUntil([&] { return tier->tier().Report().crashes >= kills; },
                               std::chrono::seconds(10));
  const DeviceTierReport report = tier->tier().Report();
  Answer answer;
  answer.pass = std::ranges::equal(content, file.bytes()) && report.lost_arenas == 0 &&
                report.crashes == kills;
  answer.words = answer.pass
                     ? "the next mover did what was under way; no byte is wrong, nothing lost"
                     : "bytes are wrong or arenas lost";
  answer.figures = {{"crashes", static_cast<double>(report.crashes), "count"},
                    {"replayed", static_cast<double>(report.replayed), "count"},
                    {"lost_arenas", static_cast<double>(report.lost_arenas), "count"},
                    {"seconds", watch.Seconds(), "s"}};
  return answer;
}

constexpr Question kQuestions[] = {
    {"kernels", "gather and scatter against the processor's, random data, poisoned outputs", 60,
     Kernels},
    {"shared-slab", "two processes that write and read one slab in turn", 40, SharedSlab},
    {"killed-mover", "SIGKILL of a mover with copies under way", 60, KilledMover},
};

}  // namespace

std::span<const Question> WorkQuestions() {
  return kQuestions;
}

}  // namespace terrace::bench
