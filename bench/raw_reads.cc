#include "bench/raw_reads.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <condition_variable>
#include <cstring>
#include <mutex>
#include <thread>
#include <utility>

#include "base/clock.h"
#include "base/unique_fd.h"
#include "bench/statistics.h"
#include "tiers/io/disk_io.h"

namespace terrace::bench {
namespace {

constexpr uint64_t kHuge = 2u << 20;
constexpr uint64_t kPage = 4096;
constexpr uint64_t kShare = 16u << 20;

uint64_t RoundUp(uint64_t bytes, uint64_t to) {
  return (bytes + to - 1) / to * to;
}

struct Opened {
  UniqueFd fd;
  uint64_t bytes = 0;
  uint64_t place = 0;  // In the buffer.
};
Result<std::vector<Opened>> OpenAll(const std::vector<std::string>& files, int flags) {
  std::vector<Opened> all;
  uint64_t place = 0;
  for (const std::string& path : files) {
    Opened opened;
    opened.fd.Reset(open(path.c_str(), O_RDONLY | O_CLOEXEC | flags));
    struct stat facts {};
    if (!opened.fd || fstat(opened.fd.get(), &facts) != 0) return SystemError(path, errno);
    opened.bytes = static_cast<uint64_t>(facts.st_size);
    opened.place = place;
    place += RoundUp(opened.bytes, kHuge);
    all.push_back(std::move(opened));
  }
  return all;
}

// A stretch of one of the files.
struct Stretch {
  size_t file = 0;
  uint64_t offset = 0;
  uint64_t bytes = 0;
};
std::vector<Stretch> Cut(const std::vector<Opened>& files, uint64_t bytes) {
  std::vector<Stretch> stretches;
  for (size_t i = 0; i < files.size(); ++i) {
    for (uint64_t at = 0; at < files[i].bytes; at += bytes)
      stretches.push_back({i, at, std::min(bytes, files[i].bytes - at)});
  }
  return stretches;
}

Status ReadAll(int fd, uint64_t offset, std::span<uint8_t> into) {
  while (!into.empty()) {
    const ssize_t got = pread(fd, into.data(), into.size(), static_cast<off_t>(offset));
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return SystemError("pread", got < 0 ? errno : EIO);
    offset += static_cast<uint64_t>(got);
    into = into.subspan(static_cast<size_t>(got));
  }
  return {};
}

// Keeps `depth` requests of the stretches with the device until all are answered.
class RawReader {
 public:
  RawReader(DiskIo& disk, const Clock& clock, std::vector<Stretch> stretches)
      : disk_(disk), clock_(clock), stretches_(std::move(stretches)) {}

  Status Run(const std::vector<Opened>& files, const std::vector<IoFileId>& ids,
             std::span<uint8_t> into, uint32_t depth) {
    files_ = &files;
    ids_ = &ids;
    into_ = into;
    for (uint32_t i = 0; i < depth; ++i)
      Next();
    std::unique_lock lock(mu_);
    done_.wait(lock, [this] { return answered_ == stretches_.size() || !status_.ok(); });
    return status_;
  }

 private:
  // Also from callbacks of the DiskIo.
  void Next() {
    const size_t mine = next_.fetch_add(1);
    if (mine >= stretches_.size()) return;
    const Stretch& stretch = stretches_[mine];
    IoRequest request;
    request.file = (*ids_)[stretch.file];
    request.offset = stretch.offset;
    // The last page of a file is not whole; it is read after this.
    const uint64_t bytes = stretch.bytes / kPage * kPage;
    if (bytes == 0) return Answered({});
    request.memory = {{into_.data() + (*files_)[stretch.file].place + stretch.offset, bytes}};
    request.deadline = clock_.Now() + 60 * kNsPerSecond;
    request.done = [this](const Status& status) { Answered(status); };
    std::vector<IoRequest> requests;
    requests.push_back(std::move(request));
    if (Status submitted = disk_.Submit(std::move(requests)); !submitted.ok()) Answered(submitted);
  }
  void Answered(const Status& status) {
    {
      const std::lock_guard lock(mu_);
      ++answered_;
      if (status_.ok()) status_ = status;
    }
    done_.notify_all();
    Next();
  }

  DiskIo& disk_;
  const Clock& clock_;
  const std::vector<Stretch> stretches_;
  const std::vector<Opened>* files_ = nullptr;
  const std::vector<IoFileId>* ids_ = nullptr;
  std::span<uint8_t> into_;
  std::atomic<size_t> next_ = 0;
  std::mutex mu_;
  std::condition_variable done_;
  size_t answered_ = 0;
  Status status_;
};

}  // namespace

Status DropFromCache(const std::vector<std::string>& files) {
  ASSIGN_OR_RETURN(const std::vector<Opened> opened, OpenAll(files, 0));
  for (const Opened& file : opened) {
    if (fdatasync(file.fd.get()) != 0) return SystemError("fdatasync", errno);
    if (posix_fadvise(file.fd.get(), 0, 0, POSIX_FADV_DONTNEED) != 0) {
      return SystemError("posix_fadvise", errno);
    }
    void* memory = mmap(nullptr, file.bytes, PROT_READ, MAP_SHARED, file.fd.get(), 0);
    if (memory == MAP_FAILED) return SystemError("mmap", errno);
    std::vector<unsigned char> resident((file.bytes + kPage - 1) / kPage);
    const int looked = mincore(memory, file.bytes, resident.data());
    munmap(memory, file.bytes);
    if (looked != 0) return SystemError("mincore", errno);
    const auto left = std::count_if(resident.begin(), resident.end(),
                                    [](unsigned char page) { return (page & 1) != 0; });
    if (left > 0) {
      return {Code::kInternal, std::to_string(left) + " pages of a file stay in the page cache"};
    }
  }
  return {};
}

Result<ReadBuffer> ReadBuffer::For(const std::vector<std::string>& files) {
  ASSIGN_OR_RETURN(const std::vector<Opened> opened, OpenAll(files, 0));
  uint64_t bytes = 0;
  for (const Opened& file : opened)
    bytes += RoundUp(file.bytes, kHuge);
  // Aligned by the kernel's own choice for mappings of this size, where it has huge pages for them.
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) return SystemError("memory for the rivals", errno);
  (void)madvise(memory, bytes, MADV_HUGEPAGE);
  ReadBuffer buffer;
  buffer.bytes_ = {static_cast<uint8_t*>(memory), bytes};
  std::memset(memory, 1, bytes);
  return buffer;
}

ReadBuffer::ReadBuffer(ReadBuffer&& other) noexcept : bytes_(std::exchange(other.bytes_, {})) {}

ReadBuffer::~ReadBuffer() {
  if (!bytes_.empty()) munmap(bytes_.data(), bytes_.size());
}

Result<double> ReadRaw(const std::vector<std::string>& files, const ReadBuffer& into,
                       const RawReads& how) {
  const SystemClock clock;
  DiskIoOptions options;
  options.depth = how.depth;
  ASSIGN_OR_RETURN(const std::unique_ptr<DiskIo> disk, StartDiskIo(options, clock));
  disk->RegisterMemory(into.bytes());
  const Stopwatch watch;
  ASSIGN_OR_RETURN(const std::vector<Opened> direct, OpenAll(files, O_DIRECT));
  ASSIGN_OR_RETURN(const std::vector<Opened> buffered, OpenAll(files, 0));
  std::vector<IoFileId> ids;
  for (const Opened& file : direct) {
    ASSIGN_OR_RETURN(const IoFileId id, disk->AddFile(file.fd.get()));
    ids.push_back(id);
  }
  if (direct.back().place + RoundUp(direct.back().bytes, kPage) > into.bytes().size()) {
    return Status(Code::kInternal, "the buffer for raw reads is too small");
  }
  RawReader reader(*disk, clock, Cut(direct, how.request_bytes));
  RETURN_IF_ERROR(reader.Run(direct, ids, into.bytes(), how.depth));
  for (const Opened& file : buffered) {
    const uint64_t whole = file.bytes / kPage * kPage;
    RETURN_IF_ERROR(ReadAll(file.fd.get(), whole,
                            into.bytes().subspan(file.place + whole, file.bytes - whole)));
  }
  const double seconds = watch.Seconds();
  disk->UnregisterMemory(into.bytes());
  return seconds;
}

Result<double> ReadMapped(const std::vector<std::string>& files, const ReadBuffer& into) {
  const Stopwatch watch;
  ASSIGN_OR_RETURN(const std::vector<Opened> opened, OpenAll(files, 0));
  for (const Opened& file : opened) {
    void* memory = mmap(nullptr, file.bytes, PROT_READ, MAP_PRIVATE, file.fd.get(), 0);
    if (memory == MAP_FAILED) return SystemError("mmap", errno);
    (void)madvise(memory, file.bytes, MADV_SEQUENTIAL);
    std::memcpy(into.bytes().data() + file.place, memory, file.bytes);
    munmap(memory, file.bytes);
  }
  return watch.Seconds();
}

Result<double> ReadBuffered(const std::vector<std::string>& files, const ReadBuffer& into,
                            int threads) {
  const Stopwatch watch;
  ASSIGN_OR_RETURN(const std::vector<Opened> opened, OpenAll(files, 0));
  const std::vector<Stretch> stretches = Cut(opened, kShare);
  std::atomic<size_t> next = 0;
  std::atomic<bool> failed = false;
  std::vector<std::thread> readers;
  for (int i = 0; i < threads; ++i) {
    readers.emplace_back([&] {
      for (size_t mine = next++; mine < stretches.size(); mine = next++) {
        const Stretch& stretch = stretches[mine];
        const Opened& file = opened[stretch.file];
        if (!ReadAll(file.fd.get(), stretch.offset,
                     into.bytes().subspan(file.place + stretch.offset, stretch.bytes))
                 .ok()) {
          failed = true;
        }
      }
    });
  }
  for (std::thread& reader : readers)
    reader.join();
  if (failed) return Status(Code::kDataLoss, "a buffered read failed");
  return watch.Seconds();
}

}  // namespace terrace::bench
