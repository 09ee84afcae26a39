// Suite `put`: batches of 64 pages of 2 MiB: grants, the client's own writing, commit.
//
// The rival is a memcpy from the same source into the very same pages, between the grants and the
// commit, when this process has touched them before: both copy 128 MiB a batch, and who goes first
// alternates. The tier is full, so every batch also evicts 64 pages. Batches before the measured
// ones walk over the whole tier twice, so that nothing is touched for the first time.
#include <sys/mman.h>

#include <cstring>

#include "bench/content.h"
#include "bench/daemon.h"
#include "bench/residents.h"
#include "bench/statistics.h"
#include "bench/suites.h"

namespace terrace::bench {
namespace {

constexpr uint64_t kPageBytes = 2u << 20;

struct Sizes {
  size_t batch_pages = 64;
  uint64_t capacity_bytes = 2u << 30;
  int batches = 21;
};

// Memory to copy from, touched, on huge pages where they are to be had.
class SourceBuffer {
 public:
  SourceBuffer() = default;
  SourceBuffer(const SourceBuffer&) = delete;
  SourceBuffer& operator=(const SourceBuffer&) = delete;
  ~SourceBuffer() {
    if (data_ != nullptr) munmap(data_, bytes_);
  }
  Status Allocate(size_t bytes) {
    void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) return SystemError("mmap", errno);
    madvise(memory, bytes, MADV_HUGEPAGE);
    std::memset(memory, 0x5a, bytes);
    data_ = static_cast<uint8_t*>(memory);
    bytes_ = bytes;
    return {};
  }
  const uint8_t* page(size_t index) const { return data_ + index * kPageBytes; }

 private:
  uint8_t* data_ = nullptr;
  size_t bytes_ = 0;
};

struct BatchTimes {
  double put_s = 0;     // Grants, copy and commit.
  double memcpy_s = 0;  // The rival's copy.
  double grant_s = 0;
  double commit_s = 0;
};

class PutBatches {
 public:
  PutBatches(const Engine& engine, const SourceBuffer& source, size_t batch_pages)
      : engine_(engine), source_(source), keys_(batch_pages) {}

  Result<BatchTimes> Run(bool rival_first) {
    for (kvc_key& key : keys_)
      key = SyntheticKey(next_++);
    BatchTimes times;
    const Stopwatch granting;
    ASSIGN_OR_RETURN(const Grants grants, Grant(engine_.client.get(), engine_.space.get(), keys_));
    times.grant_s = granting.Seconds();
    for (size_t i = 0; i < keys_.size(); ++i) {
      if (kvc_grants_data(grants.get(), i) == nullptr) {
        return Status(Code::kExhausted, "a page was not granted");
      }
    }
    if (rival_first) times.memcpy_s = CopyInto(grants.get());
    const double copy_s = CopyInto(grants.get());
    if (!rival_first) times.memcpy_s = CopyInto(grants.get());
    kvc_error error{};
    const Stopwatch committing;
    RETURN_IF_ERROR(ToStatus(kvc_commit(grants.get(), nullptr, 0, &error), error));
    times.commit_s = committing.Seconds();
    times.put_s = times.grant_s + copy_s + times.commit_s;
    for (size_t i = 0; i < keys_.size(); ++i) {
      if (kvc_grants_code(grants.get(), i) != KVC_OK) {
        return Status(Code::kInternal, "a page was not committed");
      }
    }
    return times;
  }

 private:
  double CopyInto(kvc_grants* grants) const {
    const Stopwatch watch;
    for (size_t i = 0; i < keys_.size(); ++i) {
      std::memcpy(kvc_grants_data(grants, i), source_.page(i), kPageBytes);
    }
    return watch.Seconds();
  }

  const Engine& engine_;
  const SourceBuffer& source_;
  std::vector<kvc_key> keys_;
  uint64_t next_ = 0;
};

}  // namespace

Result<Figures> RunPut(const SuiteOptions& options) {
  const Sizes sizes =
      options.quick ? Sizes{.batch_pages = 4, .capacity_bytes = 64u << 20, .batches = 3} : Sizes{};
  ASSIGN_OR_RETURN(const Daemon daemon, Daemon::Start({.binary = options.terraced,
                                                       .capacity_bytes = sizes.capacity_bytes}));
  const Residents residents{.socket = daemon.socket(),
                            .salt = "put",
                            .pages = 0,
                            .page_bytes = kPageBytes,
                            .page_tokens = 64};
  ASSIGN_OR_RETURN(const Engine engine, StartEngine(residents, "put", /*read_only=*/false));
  SourceBuffer source;
  RETURN_IF_ERROR(source.Allocate(sizes.batch_pages * kPageBytes));
  PutBatches batches(engine, source, sizes.batch_pages);
  const uint64_t batch_bytes = sizes.batch_pages * kPageBytes;
  for (uint64_t i = 0; i < 2 * sizes.capacity_bytes / batch_bytes; ++i) {
    RETURN_IF_ERROR(batches.Run(false).status());
  }
  std::vector<double> ratio, put, copy, grant, commit;
  ASSIGN_OR_RETURN(const uint64_t frames_before, FramesReceived(engine.client.get()));
  for (int i = 0; i < sizes.batches; ++i) {
    ASSIGN_OR_RETURN(const BatchTimes times, batches.Run(i % 2 == 0));
    ratio.push_back(times.memcpy_s / times.put_s);
    put.push_back(times.put_s);
    copy.push_back(times.memcpy_s);
    grant.push_back(times.grant_s * 1e6);
    commit.push_back(times.commit_s * 1e6);
  }
  ASSIGN_OR_RETURN(const uint64_t frames_after, FramesReceived(engine.client.get()));
  const double messages = static_cast<double>(frames_after - frames_before);
  const double gigabytes = static_cast<double>(batch_bytes) / 1e9;
  return Figures{{"put_over_memcpy", Median(ratio), "ratio"},
                 {"put_gb_per_second", gigabytes / Median(put), "GB/s"},
                 {"memcpy_gb_per_second", gigabytes / Median(copy), "GB/s"},
                 {"grant_us", Median(grant), "us"},
                 {"commit_us", Median(commit), "us"},
                 {"messages_per_batch", messages / sizes.batches, "count"},
                 {"batch_pages", static_cast<double>(sizes.batch_pages), "count"}};
}

}  // namespace terrace::bench
