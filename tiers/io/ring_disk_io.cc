#include "tiers/io/ring_disk_io.h"

#include <fcntl.h>
#include <liburing.h>
#include <pthread.h>
#include <sys/eventfd.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cerrno>
#include <optional>
#include <string>
#include <system_error>
#include <thread>
#include <utility>

#include "base/check.h"
#include "base/mutex.h"
#include "base/unique_fd.h"
#include "tiers/io/flights.h"
#include "tiers/io/registered_memory.h"

namespace terrace {
namespace {

// What comes back from the ring is a flight's id, which is never as small, or one of these.
constexpr uint64_t kWokenId = 1;
constexpr uint64_t kCancelId = 2;

// Completions handled before what was submitted meanwhile goes to the kernel: so many, or of so
// many bytes. A device may answer for all that it has at once, and would have nothing to do while
// one page after the other is checked.
constexpr unsigned kCompletionsATurn = 16;
constexpr size_t kBytesATurn = 256u << 10;

Status Refused(const std::string& what, int negative_error) {
  return SystemError(what, -negative_error);
}

// Rings are mapped and unmapped under it. One that outlived its DiskIo may leave its addresses to
// the next, and liburing's system calls tell nobody who comes after whom: this does.
Mutex& Lives() {
  static Mutex lives;
  return lives;
}

class Ring {
 public:
  Ring() = default;
  ~Ring() {
    if (!open_) return;
    MutexLock lock(Lives());
    ::io_uring_queue_exit(&ring_);
  }
  Ring(const Ring&) = delete;
  Ring& operator=(const Ring&) = delete;

  Status Open(const DiskIoOptions& options) {
    io_uring_params params{};
    // One thread submits and waits: nobody has to be interrupted for it to see a completion.
    params.flags = IORING_SETUP_COOP_TASKRUN;
    // A flight and a cancellation each, and the wake-up.
    const unsigned entries = std::bit_ceil(2 * options.depth + 2);
    {
      MutexLock lock(Lives());
      if (const int error = ::io_uring_queue_init_params(entries, &ring_, &params); error < 0) {
        return Refused("io_uring_setup", error);
      }
    }
    open_ = true;
    if (const int error = ::io_uring_ring_dontfork(&ring_); error < 0) {
      return Refused("madvise of the ring", error);
    }
    if (const int error = ::io_uring_register_files_sparse(&ring_, options.files); error < 0) {
      return Refused("io_uring_register of files", error);
    }
    // What hangs in a worker of the kernel must not keep others from one. Best effort: with fewer
    // workers requests wait longer.
    std::array<unsigned, 2> workers = {options.depth, 0};
    (void)::io_uring_register_iowq_max_workers(&ring_, workers.data());
    return Try();
  }
  io_uring& get() { return ring_; }

 private:
  // A filter of system calls may allow to set a ring up and not to use it.
  Status Try() {
    ::io_uring_prep_nop(::io_uring_get_sqe(&ring_));
    io_uring_cqe* completion = nullptr;
    int result = ::io_uring_submit_and_wait(&ring_, 1);
    if (result >= 0) result = ::io_uring_peek_cqe(&ring_, &completion);
    if (result < 0) return Refused("io_uring_enter", result);
    ::io_uring_cqe_seen(&ring_, completion);
    return {};
  }

  io_uring ring_{};
  bool open_ = false;
};

// All that the ring's thread needs; it keeps it alive for as long as the kernel has a request,
// which may be longer than the DiskIo lives.
class RingThread {
 public:
  RingThread(const DiskIoOptions& options, const Clock& clock) : flights_(options, clock) {}

  Status Open(const DiskIoOptions& options) {
    RETURN_IF_ERROR(ring_.Open(options));
    wake_.Reset(::eventfd(0, EFD_CLOEXEC));
    if (!wake_) return SystemError("eventfd", errno);
    memory_.emplace(ring_.get(), options.regions);
    return {};
  }

  Flights& flights() { return flights_; }
  RegisteredMemory& memory() { return *memory_; }

  // ---- Any thread
  void Enqueue(const std::vector<Flight*>& flights) EXCLUDES(mu_) {
    bool wake = false;
    {
      MutexLock lock(mu_);
      queue_.insert(queue_.end(), flights.begin(), flights.end());
      wake = std::exchange(asleep_, false);
    }
    if (wake) Wake();
  }
  bool TakeOffQueue(Flight& flight) EXCLUDES(mu_) {
    MutexLock lock(mu_);
    return std::erase(queue_, &flight) > 0;
  }
  void Cancel(const Flight& flight) EXCLUDES(mu_) {
    {
      MutexLock lock(mu_);
      cancels_.push_back(flight.id);
    }
    Wake();
  }
  void Stop() EXCLUDES(mu_) {
    {
      MutexLock lock(mu_);
      stopping_ = true;
    }
    Wake();
  }
  // 0 or an error.
  int SetFile(IoFileId file, int fd) {
    const int result = ::io_uring_register_files_update(&ring_.get(), file, &fd, 1);
    return result < 0 ? -result : 0;
  }

  // ---- The ring's thread: until Stop, and until nothing is in flight.
  void Run() EXCLUDES(mu_) {
    (void)::pthread_setname_np(::pthread_self(), "io-ring");
    PrepareWake();
    std::vector<Flight*> batch;
    std::vector<uint64_t> cancels;
    for (;;) {
      batch.clear();
      cancels.clear();
      bool stopping = false;
      {
        MutexLock lock(mu_);
        batch.swap(queue_);
        cancels.swap(cancels_);
        stopping = stopping_;
        // What is queued from here on writes to wake_. The ring reads that, so it ends the wait
        // even if it comes before the wait begins.
        asleep_ = true;
      }
      if (stopping && flights_.Empty()) return;
      for (Flight* flight : batch)
        Begin(*flight);
      for (const uint64_t id : cancels)
        PrepareCancel(id);
      Enter();
      {
        // It looks at the queue before it sleeps again.
        MutexLock lock(mu_);
        asleep_ = false;
      }
      TakeCompletions();
      // Whoever was told of them, and asks for more, may wait for this very processor.
      if (::io_uring_cq_ready(&ring_.get()) > 0) std::this_thread::yield();
    }
  }

 private:
  void Wake() {
    // Does not block: the count is far from its end.
    TERRACE_CHECK(::eventfd_write(wake_.get(), 1) == 0);
  }

  // The ring has room for every flight, and what is no flight leaves that room.
  io_uring_sqe* Entry() {
    io_uring_sqe* entry = ::io_uring_get_sqe(&ring_.get());
    TERRACE_CHECK(entry != nullptr);
    return entry;
  }

  void PrepareWake() {
    io_uring_sqe* entry = Entry();
    ::io_uring_prep_read(entry, wake_.get(), &woken_, sizeof woken_, 0);
    entry->user_data = kWokenId;
  }

  void PrepareCancel(uint64_t id) {
    // It may have ended meanwhile; then nothing has that id any more. Left out while the kernel
    // takes nothing: the room is the flights'.
    if (::io_uring_sq_ready(&ring_.get()) >= ring_.get().sq.ring_entries / 2) return;
    io_uring_sqe* entry = Entry();
    ::io_uring_prep_cancel64(entry, id, 0);
    entry->user_data = kCancelId;
  }

  void Begin(Flight& flight) {
    if (flights_.Wanted(flight)) {
      Prepare(flight);
    } else {
      Ended(flight, -ECANCELED);
    }
  }

  void Prepare(Flight& flight) {
    io_uring_sqe* entry = Entry();
    const auto file = static_cast<int>(flight.request.file);
    const std::span<const iovec> rest = flight.rest();
    const auto pieces = static_cast<unsigned>(rest.size());
    const std::optional<uint16_t> place =
        pieces == 1 && !flight.plain ? memory_->Find(rest[0]) : std::nullopt;
    flight.registered = place.has_value();
    switch (flight.request.verb) {
      case IoVerb::kRead:
        if (place) {
          ::io_uring_prep_read_fixed(entry, file, rest[0].iov_base,
                                     static_cast<unsigned>(rest[0].iov_len), flight.offset, *place);
        } else {
          ::io_uring_prep_readv(entry, file, rest.data(), pieces, flight.offset);
        }
        break;
      case IoVerb::kWrite:
        if (place) {
          ::io_uring_prep_write_fixed(entry, file, rest[0].iov_base,
                                      static_cast<unsigned>(rest[0].iov_len), flight.offset,
                                      *place);
        } else {
          ::io_uring_prep_writev(entry, file, rest.data(), pieces, flight.offset);
        }
        break;
      case IoVerb::kSync:
        ::io_uring_prep_fsync(entry, file, IORING_FSYNC_DATASYNC);
        break;
    }
    entry->flags |= IOSQE_FIXED_FILE;
    // What the kernel would not do at once goes to a worker of its, which may wait.
    if (flight.again > 0) entry->flags |= IOSQE_ASYNC;
    entry->user_data = flight.id;
  }

  // Hands over all that is prepared, and waits for a completion or a wake-up.
  void Enter() {
    const int result = ::io_uring_submit_and_wait(&ring_.get(), 1);
    // EAGAIN, ENOMEM: the kernel lacks memory for more requests now; EBUSY: completions must be
    // taken first. What it did not take is prepared still, and goes with the next turn.
    if (result == -EAGAIN || result == -ENOMEM) std::this_thread::yield();
    TERRACE_CHECK(result >= 0 || result == -EINTR || result == -EBUSY || result == -EAGAIN ||
                  result == -ENOMEM);
  }

  void TakeCompletions() {
    io_uring_cqe* completion = nullptr;
    size_t bytes = 0;
    for (unsigned i = 0; i < kCompletionsATurn && bytes < kBytesATurn; ++i) {
      if (::io_uring_peek_cqe(&ring_.get(), &completion) != 0) return;
      const uint64_t id = completion->user_data;
      const int result = completion->res;
      ::io_uring_cqe_seen(&ring_.get(), completion);
      if (id == kWokenId) {
        PrepareWake();
      } else if (id != kCancelId) {
        Flight* flight = flights_.Find(id);
        TERRACE_CHECK(flight != nullptr);
        bytes += flight->bytes;
        Ended(*flight, result);
      }
    }
  }

  void Ended(Flight& flight, int result) {
    if (result == -EFAULT && flight.registered) {
      flight.plain = true;  // Its memory was unregistered before the kernel saw it.
      Prepare(flight);
    } else if (flights_.Return(flight, result)) {
      Prepare(flight);
    }
  }

  Flights flights_;
  Ring ring_;  // Of the ring's thread, but for its registers.
  std::optional<RegisteredMemory> memory_;
  UniqueFd wake_;
  uint64_t woken_ = 0;  // The kernel's: where it reads wake_ into.

  Mutex mu_;
  std::vector<Flight*> queue_ GUARDED_BY(mu_);     // Not seen by the ring's thread yet.
  std::vector<uint64_t> cancels_ GUARDED_BY(mu_);  // Flights that are overdue, once each.
  bool asleep_ GUARDED_BY(mu_) = false;            // And nobody wrote to wake_.
  bool stopping_ GUARDED_BY(mu_) = false;
};

class RingDiskIo final : public DiskIo {
 public:
  RingDiskIo(const DiskIoOptions& options, const Clock& clock)
      : options_(options), thread_(std::make_shared<RingThread>(options, clock)) {}

  ~RingDiskIo() override {
    Flights& flights = thread_->flights();
    flights.Close();
    if (!flights.WaitUntilEmpty(options_.stop_ns)) {
      flights.Forget([this](Flight& flight) { return Withdraw(flight); });
    }
    flights.Finish();
    if (deadlines_.joinable()) deadlines_.join();
    if (!runs_.joinable()) return;
    thread_->Stop();
    // A thread that ends waits for what it has in the kernel: where that may take for ever, the
    // ring's thread stays as long.
    if (flights.Empty()) {
      runs_.join();
    } else {
      runs_.detach();
    }
  }

  Status Start() {
    RETURN_IF_ERROR(thread_->Open(options_));
    try {
      runs_ = std::thread([thread = thread_] { thread->Run(); });
      deadlines_ = std::thread([this] {
        (void)::pthread_setname_np(::pthread_self(), "io-deadlines");
        thread_->flights().WatchDeadlines([this](Flight& flight) { return Withdraw(flight); });
      });
    } catch (const std::system_error& error) {
      return SystemError("threads", error.code().value());
    }
    return {};
  }

  Result<IoFileId> AddFile(int fd) override {
    const int flags = ::fcntl(fd, F_GETFL);
    if (flags < 0) return SystemError("file I/O: fd", EINVAL);
    ASSIGN_OR_RETURN(const IoFileId file, thread_->flights().AddFile((flags & O_DIRECT) != 0));
    if (const int error = thread_->SetFile(file, fd); error != 0) {
      thread_->flights().RemoveFile(file);
      return SystemError("file I/O: fd", error);
    }
    return file;
  }

  void RemoveFile(IoFileId file) override {
    // Taking a file out of the table needs no memory of the kernel, so it does not fail.
    TERRACE_CHECK(thread_->SetFile(file, -1) == 0);
    thread_->flights().RemoveFile(file);
  }

  Status Submit(std::vector<IoRequest> requests) override {
    ASSIGN_OR_RETURN(const std::vector<Flight*> flights,
                     thread_->flights().Admit(std::move(requests)));
    if (!flights.empty()) thread_->Enqueue(flights);
    return {};
  }

  void RegisterMemory(std::span<uint8_t> memory) override { thread_->memory().Add(memory); }
  void UnregisterMemory(std::span<uint8_t> memory) override { thread_->memory().Remove(memory); }

  IoReport Report() const override {
    IoReport report = thread_->flights().Report();
    report.engine = "io_uring";
    report.registered_bytes = thread_->memory().bytes();
    return report;
  }

 private:
  bool Withdraw(Flight& flight) {
    if (thread_->TakeOffQueue(flight)) return true;
    thread_->Cancel(flight);
    return false;
  }

  const DiskIoOptions options_;
  const std::shared_ptr<RingThread> thread_;
  std::thread runs_;
  std::thread deadlines_;
};

}  // namespace

Result<std::unique_ptr<DiskIo>> StartRingDiskIo(const DiskIoOptions& options, const Clock& clock) {
  auto io = std::make_unique<RingDiskIo>(options, clock);
  RETURN_IF_ERROR(io->Start());
  return std::unique_ptr<DiskIo>(std::move(io));
}

}  // namespace terrace
