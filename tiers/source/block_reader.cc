#include "tiers/source/block_reader.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <deque>
#include <new>
#include <string>
#include <utility>
#include <vector>

#include "base/check.h"
#include "base/mutex.h"
#include "tiers/source/printable.h"

namespace terrace {
namespace {

uint64_t AlignDown(uint64_t value) {
  return value - value % kDirectAlignment;
}
uint64_t AlignUp(uint64_t value) {
  return AlignDown(value + kDirectAlignment - 1);
}

// Anonymous memory on huge pages, where the system gives them.
class Buffers {
 public:
  Buffers() = default;
  ~Buffers() {
    if (mapping_ != MAP_FAILED) munmap(mapping_, mapped_);
  }
  Buffers(const Buffers&) = delete;
  Buffers& operator=(const Buffers&) = delete;

  Status Make(size_t bytes) {
    // One more, to begin at a huge page.
    mapped_ = bytes + kChunkBytes;
    mapping_ = mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapping_ == MAP_FAILED) return SystemError("memory for buffers", errno);
    const auto address = reinterpret_cast<uintptr_t>(mapping_);
    const uintptr_t begin = (address + kChunkBytes - 1) / kChunkBytes * kChunkBytes;
    bytes_ = {reinterpret_cast<uint8_t*>(begin), bytes};
    // Best effort, all of it: small pages are slower, and a fault populates as well.
    (void)madvise(bytes_.data(), bytes_.size(), MADV_HUGEPAGE);
    (void)madvise(bytes_.data(), bytes_.size(), MADV_POPULATE_WRITE);
    (void)madvise(mapping_, mapped_, MADV_DONTFORK);
    (void)madvise(mapping_, mapped_, MADV_DONTDUMP);
    return {};
  }
  std::span<uint8_t> bytes() const { return bytes_; }

 private:
  void* mapping_ = MAP_FAILED;
  size_t mapped_ = 0;
  std::span<uint8_t> bytes_;
};

Status WriteAt(int fd, uint64_t offset, std::span<const uint8_t> bytes) {
  while (!bytes.empty()) {
    const ssize_t put = pwrite(fd, bytes.data(), bytes.size(), static_cast<off_t>(offset));
    if (put < 0 && errno == EINTR) continue;
    if (put < 0) return SystemError("writing at byte " + std::to_string(offset), errno);
    offset += static_cast<size_t>(put);
    bytes = bytes.subspan(static_cast<size_t>(put));
  }
  return {};
}

}  // namespace

// What workers and callbacks of the DiskIo hold: it lasts as long as the device has a buffer.
class BlockReader::Core : public std::enable_shared_from_this<Core> {
 public:
  Core(const BlockReaderParts& parts, const BlockReaderOptions& options)
      : parts_(parts),
        options_(options),
        door_(std::make_shared<DiskDoor>(parts.disk)),
        slots_(options.buffers) {
    for (size_t slot = options.buffers; slot > 0; --slot)
      free_.push_back(slot - 1);
  }

  void Start(std::shared_ptr<BlockJob> job) EXCLUDES(mu_) {
    job->busy = 1;
    MutexLock lock(mu_);
    if (closed_) return;
    new_jobs_.push_back(job);
    jobs_.push_back(job);
    if (const Status called = CallWorker(); !called.ok() && workers_ == 0) {
      std::erase(new_jobs_, job);
      Fail(*job, called);
      job->busy = 0;
      FinishIfQuiet(job);
    }
  }

  void Close() EXCLUDES(mu_) {
    std::deque<std::shared_ptr<BlockJob>> dropped;
    {
      MutexLock lock(mu_);
      closed_ = true;
      dropped.swap(jobs_);
      new_jobs_.clear();
      const auto until =
          std::chrono::steady_clock::now() + std::chrono::nanoseconds(options_.stop_ns);
      while (workers_ > 0 || free_.size() + arrived_.size() < slots_.size()) {
        // Workers that hang in a file system are waited for: they have nothing but the pool's time.
        if (workers_ > 0) {
          quiet_.wait(mu_);
        } else if (quiet_.wait_until(mu_, until) == std::cv_status::timeout) {
          break;
        }
      }
    }
    door_->Unregister(buffers_.bytes());
    door_->Close();
  }

  const std::shared_ptr<DiskDoor>& door() const { return door_; }
  const BlockReaderParts& parts() const { return parts_; }
  const BlockReaderOptions& options() const { return options_; }

 private:
  struct Slot {
    std::shared_ptr<BlockJob> job;
    size_t chunk = 0;
    bool failed = false;  // And not ended: out of use.
  };
  // What a worker does next.
  struct Task {
    enum class What : uint8_t { kNothing, kPlan, kArrived, kChunk } what = What::kNothing;
    std::shared_ptr<BlockJob> job;
    size_t chunk = 0;
    size_t slot = kNoSlot;
  };
  static constexpr size_t kNoSlot = SIZE_MAX;

  // ---- Workers
  Status CallWorker() REQUIRES(mu_) {
    if (closed_ || workers_ >= parts_.pool->threads()) return {};
    RETURN_IF_ERROR(parts_.pool->Submit([core = shared_from_this()] { core->Work(); }));
    ++workers_;
    return {};
  }

  // This one is about to copy, and another chunk may be copied meanwhile.
  void CallAnother() EXCLUDES(mu_) {
    MutexLock lock(mu_);
    (void)CallWorker();
  }

  void Work() EXCLUDES(mu_) {
    for (;;) {
      std::vector<std::shared_ptr<DirectFile>> unused;  // Closed here, without the mutex.
      Task task;
      {
        MutexLock lock(mu_);
        unused.swap(unused_files_);
        task = Next();
        if (task.what == Task::What::kNothing) {
          if (--workers_ == 0) quiet_.notify_all();
          return;
        }
      }
      Do(task);
    }
  }

  Task Next() REQUIRES(mu_) {
    using What = Task::What;
    if (closed_) return {};
    if (!new_jobs_.empty()) {
      const std::shared_ptr<BlockJob> job = std::move(new_jobs_.front());
      new_jobs_.pop_front();
      return {What::kPlan, job, 0, kNoSlot};
    }
    // The device first: it may have answered for all that it had at once, and would have nothing to
    // do while one chunk after the other is copied and checked. Unless the last chunk came out of
    // the page cache: then the device got nothing, and others have their turn.
    const bool device_waits = !std::exchange(was_cached_, false);
    if (device_waits && !free_.empty()) {
      if (const Task task = NextChunk(/*through_slots=*/true); task.job != nullptr) return task;
    }
    if (!arrived_.empty()) {
      const size_t slot = arrived_.front();
      arrived_.pop_front();
      return {What::kArrived, slots_[slot].job, slots_[slot].chunk, slot};
    }
    if (const Task task = NextChunk(/*through_slots=*/false); task.job != nullptr) return task;
    return free_.empty() ? Task{} : NextChunk(/*through_slots=*/true);
  }

  // Nothing: no job's next chunk is of that kind.
  Task NextChunk(bool through_slots) REQUIRES(mu_) {
    for (const std::shared_ptr<BlockJob>& job : jobs_) {
      if (!job->planned || !job->status.ok() || job->next == job->chunks.size()) continue;
      if (NeedsSlot(*job) != through_slots) continue;
      Task task{Task::What::kChunk, job, job->next++, kNoSlot};
      ++job->busy;
      if (through_slots) {
        task.slot = free_.back();
        free_.pop_back();
      }
      return task;
    }
    return {};
  }

  // The job's next chunk goes to the device.
  static bool NeedsSlot(const BlockJob& job) {
    const Chunk& chunk = job.chunks[job.next];
    return job.files[chunk.file].direct != nullptr && !chunk.cached_only;
  }

  void Do(const Task& task) EXCLUDES(mu_) {
    switch (task.what) {
      case Task::What::kPlan:
        return PlanJob(task.job);
      case Task::What::kArrived:
        return Unpack(task);
      default:
        return Begin(task);
    }
  }

  void PlanJob(const std::shared_ptr<BlockJob>& job) EXCLUDES(mu_) {
    Status status;
    try {
      if (status = MakeBuffers(); status.ok()) {
        if (job->prepare) job->prepare(*job);
        job->Plan();
      }
    } catch (const std::bad_alloc&) {
      status = {Code::kExhausted, "no memory to plan a read"};
    }
    MutexLock lock(mu_);
    job->planned = true;
    Fail(*job, status);
    --job->busy;
    FinishIfQuiet(job);
    if (!closed_ && overdue_ == slots_.size()) FailStuck();
  }

  // One chunk, by the way that suits it.
  void Begin(const Task& task) EXCLUDES(mu_) {
    BlockJob& job = *task.job;
    const Chunk& chunk = job.chunks[task.chunk];
    const JobFile& file = job.files[chunk.file];
    if (task.slot == kNoSlot) {
      CallAnother();
      const Status moved =
          job.kind == BlockJob::Kind::kWrite ? WriteBuffered(job, chunk) : ReadBuffered(job, chunk);
      if (moved.ok()) job.Arrived(chunk);
      return Finish(task, moved, &BlockBytes::buffered_bytes);
    }
    const bool reads = job.kind != BlockJob::Kind::kWrite;
    if (reads && IsCached(file.fd, chunk.offset, chunk.end - chunk.offset)) {
      CallAnother();
      if (ReadCached(job, chunk)) {
        job.Arrived(chunk);
        return Finish(task, Status(), &BlockBytes::cached_bytes);
      }
    }
    if (!reads) Pack(job, chunk, Memory(task.slot));
    if (Status submitted = Submit(task); !submitted.ok()) {
      Finish(task, std::move(submitted).WithContext(Printable(*file.path)), nullptr);
    }
  }

  Status Submit(const Task& task) EXCLUDES(mu_) {
    const BlockJob& job = *task.job;
    const Chunk& chunk = job.chunks[task.chunk];
    const uint64_t begin = AlignDown(chunk.offset);
    IoRequest request;
    request.verb = job.kind == BlockJob::Kind::kWrite ? IoVerb::kWrite : IoVerb::kRead;
    request.file = job.files[chunk.file].direct->id();
    request.offset = begin;
    uint8_t* const memory = job.kind == BlockJob::Kind::kStraight
                                ? job.PartsOf(chunk).front().into.data()
                                : Memory(task.slot).data();
    request.memory = {{.iov_base = memory, .iov_len = AlignUp(chunk.end) - begin}};
    request.deadline = parts_.clock->Now() + options_.deadline_ns;
    request.done = [core = shared_from_this(), slot = task.slot](const Status& status) {
      core->Answered(slot, status);
    };
    request.ended = [core = shared_from_this(), slot = task.slot] { core->Ended(slot); };
    {
      MutexLock lock(mu_);
      slots_[task.slot] = {.job = task.job, .chunk = task.chunk, .failed = false};
    }
    return door_->Submit(std::move(request));
  }

  // A chunk that the device brought, or took.
  void Unpack(const Task& task) EXCLUDES(mu_) {
    BlockJob& job = *task.job;
    const Chunk& chunk = job.chunks[task.chunk];
    if (job.kind == BlockJob::Kind::kPlaced) {
      const uint8_t* const from = Memory(task.slot).data();
      const uint64_t begin = AlignDown(chunk.offset);
      for (const ChunkPart& part : job.PartsOf(chunk))
        std::memcpy(part.into.data(), from + (part.offset - begin), part.into.size());
    }
    if (job.kind != BlockJob::Kind::kWrite) job.Arrived(chunk);
    Finish(task, Status(), &BlockBytes::direct_bytes);
  }

  static void Pack(const BlockJob& job, const Chunk& chunk, std::span<uint8_t> buffer) {
    size_t at = 0;
    for (const ChunkPart& part : job.PartsOf(chunk)) {
      std::memcpy(buffer.data() + at, part.into.data(), part.into.size());
      at += part.into.size();
    }
    std::memset(buffer.data() + at, 0, AlignUp(at) - at);
  }

  static Status ReadBuffered(const BlockJob& job, const Chunk& chunk) {
    const JobFile& file = job.files[chunk.file];
    for (const ChunkPart& part : job.PartsOf(chunk))
      RETURN_IF_ERROR(ReadAt(file.fd, part.offset, part.into).WithContext(Printable(*file.path)));
    return {};
  }
  static bool ReadCached(const BlockJob& job, const Chunk& chunk) {
    const std::span<const ChunkPart> parts = job.PartsOf(chunk);
    return std::all_of(parts.begin(), parts.end(), [&](const ChunkPart& part) {
      return ReadCachedAt(job.files[chunk.file].fd, part.offset, part.into);
    });
  }
  static Status WriteBuffered(const BlockJob& job, const Chunk& chunk) {
    const JobFile& file = job.files[chunk.file];
    for (const ChunkPart& part : job.PartsOf(chunk))
      RETURN_IF_ERROR(WriteAt(file.fd, part.offset, part.into).WithContext(Printable(*file.path)));
    return {};
  }

  // The task's chunk is through, and its slot free.
  void Finish(const Task& task, Status status, uint64_t BlockBytes::*counter) EXCLUDES(mu_) {
    const Chunk& chunk = task.job->chunks[task.chunk];
    std::shared_ptr<BlockJob> held;  // Destroyed without the mutex.
    MutexLock lock(mu_);
    if (task.slot != kNoSlot) {
      held = std::move(slots_[task.slot].job);
      free_.push_back(task.slot);
    }
    was_cached_ = counter == &BlockBytes::cached_bytes;
    if (counter != nullptr && status.ok()) task.job->result.*counter += chunk.end - chunk.offset;
    Fail(*task.job, std::move(status));
    --task.job->busy;
    FinishIfQuiet(task.job);
    // The next chunk of the job may be its first that needs a buffer.
    if (!closed_ && overdue_ == slots_.size()) FailStuck();
  }

  // ---- Callbacks of the DiskIo
  void Answered(size_t slot_index, const Status& status) EXCLUDES(mu_) {
    if (status.ok()) return;
    MutexLock lock(mu_);
    Slot& slot = slots_[slot_index];
    slot.failed = true;
    ++overdue_;
    const Status why = Explain(slot, status);
    // Outweighs what else went wrong: until `ended` the memory is the device's, and who reads
    // something else into it must know.
    if (why.code() == Code::kDeadlineExceeded && !slot.job->finished) slot.job->status = why;
    Fail(*slot.job, why);
    --slot.job->busy;
    ++slot.job->overdue;
    FinishIfQuiet(slot.job);
    if (overdue_ == slots_.size() && status.code() == Code::kDeadlineExceeded) FailStuck();
  }

  void Ended(size_t slot_index) EXCLUDES(mu_) {
    std::shared_ptr<BlockJob> held;  // Destroyed without the mutex.
    MutexLock lock(mu_);
    Slot& slot = slots_[slot_index];
    if (!slot.failed) {
      arrived_.push_back(slot_index);
    } else {
      held = std::move(slot.job);
      slot.failed = false;
      --overdue_;
      free_.push_back(slot_index);
      if (--held->overdue == 0 && held->finished) PostEnded(*held);
    }
    if (closed_) quiet_.notify_all();
    // Workers that run look here before they leave.
    if (workers_ == 0 || arrived_.size() > static_cast<size_t>(workers_)) (void)CallWorker();
  }

  // ---- Jobs
  static Status Explain(const Slot& slot, const Status& status) {
    const Chunk& chunk = slot.job->chunks[slot.chunk];
    const JobFile& file = slot.job->files[chunk.file];
    const std::string path = Printable(*file.path);
    const std::string at = std::to_string(chunk.offset);
    if (status.code() == Code::kDeadlineExceeded) {
      return {Code::kDeadlineExceeded, path + ": the device did not answer in time at byte " + at};
    }
    return Status(status).WithContext(path + ": at byte " + at);
  }

  static void Fail(BlockJob& job, Status status) {
    if (job.status.ok()) job.status = std::move(status);
  }

  // Every buffer is with a device that does not answer: who needs one would wait for ever.
  void FailStuck() REQUIRES(mu_) {
    const std::deque<std::shared_ptr<BlockJob>> jobs = jobs_;
    for (const std::shared_ptr<BlockJob>& job : jobs) {
      if (!job->planned || job->next == job->chunks.size() || !NeedsSlot(*job)) continue;
      Fail(*job, {Code::kUnavailable,
                  "all " + std::to_string(slots_.size()) +
                      " buffers are with a device that does not answer; retry when it does"});
      FinishIfQuiet(job);
    }
  }

  void FinishIfQuiet(const std::shared_ptr<BlockJob>& job) REQUIRES(mu_) {
    if (closed_ || job->finished || job->busy > 0) return;
    if (job->status.ok() && (!job->planned || job->next < job->chunks.size())) return;
    job->finished = true;
    std::erase(jobs_, job);
    parts_.executor->Post([job] {
      if (!job->status.ok()) return job->done(job->status);
      for (size_t i = 0; i < job->unit_count; ++i)
        job->result.crcs.push_back(job->units[i].crc);
      job->done(std::move(job->result));
    });
    if (job->overdue == 0) PostEnded(*job);
  }
  void PostEnded(BlockJob& job) REQUIRES(mu_) {
    for (JobFile& file : job.files) {
      if (file.direct != nullptr) unused_files_.push_back(std::move(file.direct));
    }
    if (closed_) return;
    if (job.ended) parts_.executor->Post(std::exchange(job.ended, nullptr));
    if (workers_ == 0 && !unused_files_.empty()) (void)CallWorker();
  }

  // ---- Buffers
  Status MakeBuffers() EXCLUDES(making_, mu_) {
    MutexLock lock(making_);
    if (made_ || parts_.disk == nullptr) return {};
    RETURN_IF_ERROR(buffers_.Make(options_.buffers * kChunkBytes));
    door_->Register(buffers_.bytes());
    made_ = true;
    return {};
  }
  // Made before any job had a chunk.
  std::span<uint8_t> Memory(size_t slot) const {
    return buffers_.bytes().subspan(slot * kChunkBytes, kChunkBytes);
  }

  const BlockReaderParts parts_;
  const BlockReaderOptions options_;
  const std::shared_ptr<DiskDoor> door_;

  Mutex making_;
  bool made_ GUARDED_BY(making_) = false;
  Buffers buffers_;  // Constant once made.

  Mutex mu_;
  CondVar quiet_;  // No worker runs, or, after Close, a buffer came back.
  std::vector<Slot> slots_ GUARDED_BY(mu_);
  std::vector<size_t> free_ GUARDED_BY(mu_);
  std::deque<size_t> arrived_ GUARDED_BY(mu_);  // Slots that the device is through with.
  std::deque<std::shared_ptr<BlockJob>> new_jobs_ GUARDED_BY(mu_);  // Not planned.
  std::deque<std::shared_ptr<BlockJob>> jobs_ GUARDED_BY(mu_);      // Not finished, these included.
  // Of jobs that ended. Closing one may wait for the DiskIo's thread: a worker does it.
  std::vector<std::shared_ptr<DirectFile>> unused_files_ GUARDED_BY(mu_);
  bool was_cached_ GUARDED_BY(mu_) = false;  // The chunk that was done last.
  size_t overdue_ GUARDED_BY(mu_) = 0;
  int workers_ GUARDED_BY(mu_) = 0;
  bool closed_ GUARDED_BY(mu_) = false;
};

BlockReader::BlockReader(const BlockReaderParts& parts, const BlockReaderOptions& options)
    : core_(std::make_shared<Core>(parts, options)) {
  TERRACE_CHECK(options.buffers > 0);
}

BlockReader::~BlockReader() {
  core_->Close();
}

void BlockReader::Start(std::shared_ptr<BlockJob> job) {
  core_->Start(std::move(job));
}

const std::shared_ptr<DiskDoor>& BlockReader::door() const {
  return core_->door();
}
WorkerPool& BlockReader::pool() const {
  return *core_->parts().pool;
}
Executor& BlockReader::executor() const {
  return *core_->parts().executor;
}
const Clock& BlockReader::clock() const {
  return *core_->parts().clock;
}
const BlockReaderOptions& BlockReader::options() const {
  return core_->options();
}

}  // namespace terrace
