// Suite `verify`: what it costs to check the bytes of a page that is read back.
//
// The store by itself, on real files, with 32 pages in flight; opened in turn with its checks of
// data on and off, over the same pages. They go to memory of the size of an arena, all of it in
// turn: memory that is read into over and over stays in the cache of the processor that fills it.
#include <algorithm>
#include <deque>
#include <numeric>

#include "base/check.h"
#include "base/clock.h"
#include "bench/content.h"
#include "bench/raw_disk.h"
#include "bench/statistics.h"
#include "bench/store_pages.h"
#include "bench/suites.h"
#include "bench/temporary_folder.h"
#include "tiers/io/disk_io.h"
#include "tiers/nvme/nvme_store.h"
#include "tiers/sim/sim_executor.h"

namespace terrace::bench {
namespace {

constexpr uint32_t kDepth = 32;
constexpr MonotonicNs kLongNs = 60 * kNsPerSecond;

struct Sizes {
  uint64_t stored_bytes = 1u << 30;
  uint64_t round_bytes = 512u << 20;
  uint64_t memory_bytes = 512u << 20;
  int rounds = 21;
};

// One life of the store.
class Store {
 public:
  Store(const std::string& path, const Sizes& sizes, uint32_t page_bytes, const HugeMemory& memory)
      : page_bytes_(page_bytes), memory_(memory) {
    options_.directories = {{path, 2 * sizes.stored_bytes}};
    options_.in_flight_per_device = 256;
  }
  ~Store() { store_.reset(); }

  Status Open(bool check_data) {
    options_.check_data = check_data;
    ASSIGN_OR_RETURN(io_, StartDiskIo({}, clock_));
    ASSIGN_OR_RETURN(store_, OpenNvmeStore(options_, *io_, owner_, clock_));
    return store_->Restore([this](const StoredPage& page) { pages_.push_back(page); });
  }
  size_t pages() const { return pages_.size(); }

  Status Write(size_t pages) {
    const std::vector<PlaceId> places = store_->Allocate(page_bytes_, pages);
    if (places.size() < pages) return {Code::kExhausted, "the store has no room for the pages"};
    std::vector<PageStore::PageWrite> writes;
    for (size_t i = 0; i < pages; ++i) {
      StoredPage page;
      const kvc_key key = SyntheticKey(i);
      std::copy(std::begin(key.bytes), std::end(key.bytes), page.name.key.bytes.begin());
      page.place = places[i];
      page.bytes = page_bytes_;
      writes.push_back({page, Piece(i)});
    }
    Status outcome;
    size_t ended = 0;
    store_->Write(
        std::move(writes), clock_.Now() + kLongNs,
        [&](size_t, const Result<uint64_t>& serial) {
          if (!serial) outcome = serial.status();
        },
        [&](size_t) { ++ended; });
    if (!owner_.RunUntil([&] { return ended == pages; })) return {Code::kDeadlineExceeded, "write"};
    return outcome;
  }

  // Reads the pages of those numbers, always as many at once; seconds.
  Result<double> Read(std::span<const uint64_t> numbers) {
    size_t begun = 0, ended = 0;
    Status outcome;
    std::deque<size_t> free(memory_.bytes().size() / page_bytes_);
    std::iota(free.begin(), free.end(), 0);
    const std::function<void()> next = [&] {
      const size_t piece = free.front();
      free.pop_front();
      store_->Read(
          {{pages_[numbers[begun++]], Piece(piece)}}, clock_.Now() + kLongNs,
          [&](size_t, ReadFault fault, const Status& why) {
            if (fault != ReadFault::kNone) outcome = why;
          },
          [&, piece](size_t) {
            ++ended;
            free.push_back(piece);
            if (begun < numbers.size()) next();
          });
    };
    const Stopwatch watch;
    while (begun < std::min<size_t>(kDepth, numbers.size()))
      next();
    if (!owner_.RunUntil([&] { return ended == numbers.size(); })) {
      return Status(Code::kDeadlineExceeded, "reads did not end");
    }
    const double seconds = watch.Seconds();
    RETURN_IF_ERROR(outcome);
    return seconds;
  }

 private:
  std::span<uint8_t> Piece(size_t number) const {
    return memory_.bytes().subspan(number % (memory_.bytes().size() / page_bytes_) * page_bytes_,
                                   page_bytes_);
  }

  const uint32_t page_bytes_;
  const HugeMemory& memory_;
  const SystemClock clock_;
  NvmeStoreOptions options_;
  ManualExecutor owner_;
  std::unique_ptr<DiskIo> io_;
  std::unique_ptr<PageStore> store_;
  std::vector<StoredPage> pages_;
};

struct Measured {
  std::vector<double> cost, gb_per_second;
};

Result<Measured> Measure(const Sizes& sizes, uint32_t page_bytes) {
  ASSIGN_OR_RETURN(const TemporaryFolder folder, TemporaryFolder::Make());
  ASSIGN_OR_RETURN(const HugeMemory memory, HugeMemory::Allocate(sizes.memory_bytes));
  const uint64_t pages = sizes.stored_bytes / page_bytes;
  {
    Store store(folder.path(), sizes, page_bytes, memory);
    RETURN_IF_ERROR(store.Open(true));
    RETURN_IF_ERROR(store.Write(pages));
  }
  Shuffled shuffled(pages, 3);
  Measured measured;
  for (int i = 0; i < sizes.rounds; ++i) {
    std::vector<uint64_t> numbers(sizes.round_bytes / page_bytes);
    for (uint64_t& number : numbers)
      number = shuffled.Take();
    double seconds[2] = {};
    for (const bool checked : {i % 2 == 0, i % 2 != 0}) {
      Store store(folder.path(), sizes, page_bytes, memory);
      RETURN_IF_ERROR(store.Open(checked));
      if (store.pages() != pages) return Status(Code::kDataLoss, "pages of the store are gone");
      ASSIGN_OR_RETURN(seconds[checked ? 1 : 0], store.Read(numbers));
    }
    measured.cost.push_back(1 - seconds[0] / seconds[1]);
    measured.gb_per_second.push_back(static_cast<double>(sizes.round_bytes) / 1e9 / seconds[1]);
  }
  return measured;
}

}  // namespace

Result<Figures> RunVerify(const SuiteOptions& options) {
  const Sizes sizes = options.quick ? Sizes{.stored_bytes = 128u << 20,
                                            .round_bytes = 64u << 20,
                                            .memory_bytes = 128u << 20,
                                            .rounds = 2}
                                    : Sizes{};
  ASSIGN_OR_RETURN(const Measured large, Measure(sizes, 2u << 20));
  ASSIGN_OR_RETURN(const Measured small, Measure(sizes, 256u << 10));
  Figures figures = {{"verify_cost", std::max(Median(large.cost), Median(small.cost)), "ratio"}};
  AddSpread(&figures, "verify_cost_2m", large.cost, "ratio");
  AddSpread(&figures, "verify_cost_256k", small.cost, "ratio");
  figures.push_back({"gb_per_second_2m", Median(large.gb_per_second), "GB/s"});
  figures.push_back({"gb_per_second_256k", Median(small.gb_per_second), "GB/s"});
  return figures;
}

}  // namespace terrace::bench
