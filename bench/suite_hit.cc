// Suite `hit`: what a lookup of a resident page costs one thread.
//
// The chain. Step i looks up key number Pick(value + i), where `value` is what step i - 1 read, so
// that a step cannot begin before the last one has its answer. Keys are computed from their number
// (content.h), so neither side reads memory for them. Pick adds i: without it the chain would run
// into a cycle of some hundred keys, which a processor cache holds.
//
// What is read. Terrace (kvc_pin, then kvc_unpin): the page's directory entry, 64 bytes that are
// not in the processor's caches, and words that are: the two summary lines, the pin line, counters
// and ring of the channel, the superseded and generation words, and the library's own tables. The
// rival reads its bucket, 64 bytes that are likewise not in the caches, compares the whole key and
// nothing else: no pin, no other memory. Its table has as many lines as the directory, on huge
// pages where the machine gives them, and no collisions.
//
// `hit_over_bare` takes as `value` what a lookup answers: the page's address. `hit_read_over_bare`
// goes on and takes the first word of the page, on both sides from the same page of the same arena:
// one more line that is not in the caches.
#include <sys/mman.h>

#include <cstring>
#include <new>

#include "base/unique_fd.h"
#include "bench/content.h"
#include "bench/daemon.h"
#include "bench/memory_maps.h"
#include "bench/processes.h"
#include "bench/residents.h"
#include "bench/statistics.h"
#include "bench/suites.h"
#include "bench/syscall_count.h"

namespace terrace::bench {
namespace {

struct Sizes {
  uint64_t pages = 500'000;
  uint64_t chain_steps = 300'000;
  int rounds = 9;
  uint64_t timed_hits = 200'000;
  uint64_t counted_hits = 1'000'000;
};

Sizes SizesOf(const SuiteOptions& options) {
  if (!options.quick) return {};
  return {
      .pages = 5000, .chain_steps = 5000, .rounds = 3, .timed_hits = 5000, .counted_hits = 20'000};
}

// A number below `bound`, scattered.
uint64_t Pick(uint64_t value, uint64_t bound) {
  __extension__ using Wide = unsigned __int128;
  return static_cast<uint64_t>((static_cast<Wide>(Mix(value)) * bound) >> 64);
}

uint64_t FirstWord(const void* data) {
  uint64_t word;
  std::memcpy(&word, data, sizeof word);
  return word;
}

// The rival: one bucket a key, found by bits of the key that have no collisions.
class BareTable {
 public:
  struct alignas(64) Bucket {
    uint64_t key[4];
    const void* data;
    uint64_t bytes;
  };

  BareTable() = default;
  BareTable(const BareTable&) = delete;
  BareTable& operator=(const BareTable&) = delete;
  ~BareTable() {
    if (buckets_ != nullptr) munmap(buckets_, capacity_ * sizeof(Bucket));
  }

  // `capacity` is a power of two.
  Status Allocate(uint64_t capacity) {
    void* memory = mmap(nullptr, capacity * sizeof(Bucket), PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) return SystemError("mmap", errno);
    madvise(memory, capacity * sizeof(Bucket), MADV_HUGEPAGE);
    std::memset(memory, 0, capacity * sizeof(Bucket));
    buckets_ = static_cast<Bucket*>(memory);
    capacity_ = capacity;
    return {};
  }

  void Insert(const kvc_key& key, const kvc_page& page) {
    Bucket& bucket = BucketOf(key);
    std::memcpy(bucket.key, key.bytes, sizeof bucket.key);
    bucket.data = page.data;
    bucket.bytes = page.bytes;
  }

  const void* Find(const kvc_key& key) const {
    const Bucket& bucket = BucketOf(key);
    return std::memcmp(bucket.key, key.bytes, sizeof bucket.key) == 0 ? bucket.data : nullptr;
  }

 private:
  Bucket& BucketOf(const kvc_key& key) const {
    return buckets_[FirstWord(key.bytes + 8) & (capacity_ - 1)];
  }

  Bucket* buckets_ = nullptr;
  uint64_t capacity_ = 0;
};

enum class Value { kAddress, kFirstWord };

// A chain is timed in pieces of so many steps, about 100 us, and the median piece counts: what the
// scheduler does to this process for milliseconds falls on few of them.
constexpr uint64_t kStepsOfPiece = 1000;

// What became of a chain: `last` keeps the compiler from leaving it out, misses must be 0.
struct ChainEnd {
  double ns_per_step = 0;
  uint64_t last = 0;
  uint64_t misses = 0;
};

template <Value kValue>
uint64_t ValueOf(const void* data) {
  return kValue == Value::kAddress ? reinterpret_cast<uintptr_t>(data) : FirstWord(data);
}

// Runs `step(i)` for every i below `steps` and answers the median time of one.
template <typename Step>
double TimeSteps(uint64_t steps, const Step& step) {
  std::vector<double> pieces;
  for (uint64_t first = 0; first < steps; first += kStepsOfPiece) {
    const Stopwatch watch;
    for (uint64_t i = first; i < first + kStepsOfPiece; ++i)
      step(i);
    pieces.push_back(watch.Ns() / static_cast<double>(kStepsOfPiece));
  }
  return Median(std::move(pieces));
}

template <Value kValue>
ChainEnd HitChain(const Engine& engine, const Sizes& sizes, uint64_t seed) {
  ChainEnd end{.ns_per_step = 0, .last = seed, .misses = 0};
  kvc_reader* const reader = engine.reader.get();
  const kvc_space* const space = engine.space.get();
  end.ns_per_step = TimeSteps(sizes.chain_steps, [&](uint64_t i) {
    const kvc_key key = SyntheticKey(Pick(end.last + i, sizes.pages));
    kvc_page page;
    const kvc_ticket ticket = kvc_pin(reader, space, &key, &page, nullptr);
    if (ticket == 0) {
      ++end.misses;
      return;
    }
    end.last = ValueOf<kValue>(page.data);
    kvc_unpin(reader, ticket);
  });
  return end;
}

template <Value kValue>
ChainEnd BareChain(const BareTable& table, const Sizes& sizes, uint64_t seed) {
  ChainEnd end{.ns_per_step = 0, .last = seed, .misses = 0};
  end.ns_per_step = TimeSteps(sizes.chain_steps, [&](uint64_t i) {
    const void* data = table.Find(SyntheticKey(Pick(end.last + i, sizes.pages)));
    if (data == nullptr) {
      ++end.misses;
      return;
    }
    end.last = ValueOf<kValue>(data);
  });
  return end;
}

struct ChainFigures {
  double hit_ns = 0;
  double bare_ns = 0;
  double ratio = 0;  // The median of the rounds' ratios.
};

// Both chains in turn, so that whatever else the machine does meets both. Round 0 is not counted.
template <Value kValue>
Result<ChainFigures> CompareChains(const Engine& engine, const BareTable& table,
                                   const Sizes& sizes) {
  std::vector<double> hit, bare, ratio;
  uint64_t misses = 0;
  for (int round = 0; round <= sizes.rounds; ++round) {
    const uint64_t seed = Mix(static_cast<uint64_t>(round));
    const ChainEnd ours = HitChain<kValue>(engine, sizes, seed);
    const ChainEnd rival = BareChain<kValue>(table, sizes, seed);
    misses += ours.misses + rival.misses;
    if (ours.last != rival.last) {
      return Status(Code::kDataLoss, "the two chains read different values");
    }
    if (round == 0) continue;
    hit.push_back(ours.ns_per_step);
    bare.push_back(rival.ns_per_step);
    ratio.push_back(ours.ns_per_step / rival.ns_per_step);
  }
  if (misses > 0) return Status(Code::kInternal, std::to_string(misses) + " lookups missed");
  return ChainFigures{Median(hit), Median(bare), Median(ratio)};
}

// Single hits of random pages, each between two readings of the time-stamp counter; what two
// readings with nothing in between take is taken off.
struct SingleFigures {
  double p50_ns = 0;
  double p99_ns = 0;
  double clock_ns = 0;
};
SingleFigures TimeSingleHits(const Engine& engine, const Sizes& sizes) {
  const TickScale scale = MeasureTicks();
  std::vector<double> ns;
  uint64_t value = 1;
  for (uint64_t i = 0; i < sizes.timed_hits; ++i) {
    const kvc_key key = SyntheticKey(Pick(value + i, sizes.pages));
    kvc_page page;
    const uint64_t start = Ticks();
    const kvc_ticket ticket =
        kvc_pin(engine.reader.get(), engine.space.get(), &key, &page, nullptr);
    if (ticket != 0) kvc_unpin(engine.reader.get(), ticket);
    const double ticks = static_cast<double>(Ticks() - start) - scale.empty_ticks;
    if (ticket != 0) value = reinterpret_cast<uintptr_t>(page.data);
    ns.push_back(std::max(ticks, 0.0) * scale.ns_per_tick);
  }
  return {Percentile(ns, 0.5), Percentile(ns, 0.99), scale.empty_ticks * scale.ns_per_tick};
}

// Keys that do not wait for each other: lookups overlap as far as the processor can. The mean of
// all lookups of a round, whatever became of them; of the rounds the median.
double TimeIndependentHits(const Engine& engine, const Sizes& sizes) {
  uint64_t number = Mix(77);
  std::vector<double> means;
  for (int round = 0; round < sizes.rounds; ++round) {
    const Stopwatch watch;
    for (uint64_t i = 0; i < sizes.chain_steps; ++i) {
      const kvc_key key = SyntheticKey(Pick(++number, sizes.pages));
      kvc_page page;
      const kvc_ticket ticket =
          kvc_pin(engine.reader.get(), engine.space.get(), &key, &page, nullptr);
      if (ticket != 0) kvc_unpin(engine.reader.get(), ticket);
    }
    means.push_back(watch.Ns() / static_cast<double>(sizes.chain_steps));
  }
  return Median(std::move(means));
}

// What the counted process does: all it needs is met before the section begins.
Status CountedHits(const Residents& residents, const Sizes& sizes, CountedSection& section,
                   Link& link) {
  ASSIGN_OR_RETURN(const Engine engine, StartEngine(residents, "counted", /*read_only=*/true));
  (void)TimeIndependentHits(engine, sizes);
  RETURN_IF_ERROR(link.Send(Go{}));
  while (section.go.load() == 0) {
  }
  uint64_t missed = 0;
  for (uint64_t i = 0; i < sizes.counted_hits; ++i) {
    const kvc_key key = SyntheticKey(Pick(i, sizes.pages));
    kvc_page page;
    const kvc_ticket ticket =
        kvc_pin(engine.reader.get(), engine.space.get(), &key, &page, nullptr);
    missed += ticket == 0;
    if (ticket != 0) kvc_unpin(engine.reader.get(), ticket);
  }
  section.done.store(missed == 0 ? 1 : 2);
  while (true) {
  }
}

Result<double> SystemCallsPerMillionHits(const Residents& residents, const Sizes& sizes) {
  void* memory = mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) return SystemError("mmap", errno);
  auto* section = new (memory) CountedSection;
  Result<double> outcome = [&]() -> Result<double> {
    ASSIGN_OR_RETURN(Child child, Child::Start("counted client", [&](Link& link) {
                       return CountedHits(residents, sizes, *section, link);
                     }));
    RETURN_IF_ERROR(child.link().Receive<Go>().status());
    ASSIGN_OR_RETURN(const uint64_t calls, CountSystemCalls(child.pid(), *section));
    if (section->done.load() != 1) return Status(Code::kInternal, "counted lookups missed");
    return static_cast<double>(calls) * 1e6 / static_cast<double>(sizes.counted_hits);
  }();
  munmap(memory, 4096);
  return outcome;
}

// The rival's table, filled with what the directory says: the same keys and addresses.
Status CopyDirectory(const Engine& engine, const Sizes& sizes, BareTable* table) {
  ASSIGN_OR_RETURN(const uint64_t capacity, MappedDirectoryCapacity());
  RETURN_IF_ERROR(table->Allocate(capacity));
  for (uint64_t i = 0; i < sizes.pages; ++i) {
    const kvc_key key = SyntheticKey(i);
    kvc_page page;
    const kvc_ticket ticket =
        kvc_pin(engine.reader.get(), engine.space.get(), &key, &page, nullptr);
    if (ticket == 0) return {Code::kNotFound, "page " + std::to_string(i) + " is not resident"};
    table->Insert(key, page);
    kvc_unpin(engine.reader.get(), ticket);
  }
  return {};
}

}  // namespace

Result<Figures> RunHit(const SuiteOptions& options) {
  const Sizes sizes = SizesOf(options);
  const uint64_t page_bytes = 4096;
  ASSIGN_OR_RETURN(const Daemon daemon,
                   Daemon::Start({.binary = options.terraced,
                                  .capacity_bytes = sizes.pages * page_bytes + (1u << 30)}));
  const Residents residents{.socket = daemon.socket(), .salt = "hit", .pages = sizes.pages};
  RETURN_IF_ERROR(MakeResident(residents, [](uint64_t index, std::span<uint8_t> page) {
    const uint64_t word = Mix(index + 12345);
    std::memcpy(page.data(), &word, sizeof word);
  }));
  ASSIGN_OR_RETURN(const double system_calls, SystemCallsPerMillionHits(residents, sizes));
  ASSIGN_OR_RETURN(const Engine engine, StartEngine(residents, "hit", /*read_only=*/true));
  BareTable table;
  RETURN_IF_ERROR(CopyDirectory(engine, sizes, &table));
  ASSIGN_OR_RETURN(const uint64_t lines, MappedDirectoryCapacity());
  ASSIGN_OR_RETURN(const ChainFigures chain, CompareChains<Value::kAddress>(engine, table, sizes));
  ASSIGN_OR_RETURN(const ChainFigures read, CompareChains<Value::kFirstWord>(engine, table, sizes));
  const SingleFigures single = TimeSingleHits(engine, sizes);
  return Figures{{"hit_over_bare", chain.ratio, "ratio"},
                 {"hit_chain_ns", chain.hit_ns, "ns"},
                 {"bare_chain_ns", chain.bare_ns, "ns"},
                 {"hit_read_over_bare", read.ratio, "ratio"},
                 {"hit_read_chain_ns", read.hit_ns, "ns"},
                 {"bare_read_chain_ns", read.bare_ns, "ns"},
                 {"hit_ns_p50", single.p50_ns, "ns"},
                 {"hit_ns_p99", single.p99_ns, "ns"},
                 {"clock_ns_taken_off", single.clock_ns, "ns"},
                 {"hit_ns_mean", TimeIndependentHits(engine, sizes), "ns"},
                 {"syscalls_per_million_hits", system_calls, "count"},
                 {"pages", static_cast<double>(sizes.pages), "count"},
                 {"directory_lines", static_cast<double>(lines), "count"}};
}

}  // namespace terrace::bench
