#include "tiers/io/thread_disk_io.h"

#include <fcntl.h>
#include <pthread.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <deque>
#include <mutex>
#include <system_error>
#include <thread>
#include <utility>

#include "base/mutex.h"
#include "base/unique_fd.h"
#include "tiers/io/flights.h"

namespace terrace {
namespace {

// What the threads share; one that hangs in the kernel keeps it alive after the DiskIo is gone.
struct Shared {
  Shared(const DiskIoOptions& options, const Clock& clock)
      : flights(options, clock), files(options.files) {}

  Flights flights;

  Mutex mu;
  CondVar work;  // Something is queued, or it stops.
  std::deque<Flight*> queue GUARDED_BY(mu);
  // Our own descriptors: the caller may close its own while a thread hangs, and the number may
  // name another file when the thread comes back.
  std::vector<UniqueFd> files GUARDED_BY(mu);
  std::vector<bool> busy GUARDED_BY(mu);  // By thread.
  bool stopping GUARDED_BY(mu) = false;
};

int64_t Ask(const Flight& flight, int fd) {
  const std::span<const iovec> rest = flight.rest();
  const int pieces = static_cast<int>(rest.size());
  const auto offset = static_cast<off_t>(flight.offset);
  ssize_t result = -1;
  switch (flight.request.verb) {
    case IoVerb::kRead:
      result = ::preadv(fd, rest.data(), pieces, offset);
      break;
    case IoVerb::kWrite:
      result = ::pwritev(fd, rest.data(), pieces, offset);
      break;
    case IoVerb::kSync:
      result = ::fdatasync(fd);
      break;
  }
  return result < 0 ? -errno : result;
}

void Serve(const std::shared_ptr<Shared>& shared, size_t index) {
  const std::string name = "io-" + std::to_string(index);
  (void)::pthread_setname_np(::pthread_self(), name.c_str());
  for (;;) {
    Flight* flight = nullptr;
    int fd = -1;
    {
      MutexLock lock(shared->mu);
      shared->busy[index] = false;
      while (shared->queue.empty() && !shared->stopping)
        shared->work.wait(shared->mu);
      if (shared->stopping) return;
      flight = shared->queue.front();
      shared->queue.pop_front();
      shared->busy[index] = true;
      fd = shared->files[flight->request.file].get();
    }
    int64_t result = 0;
    do {
      result = shared->flights.Wanted(*flight) ? Ask(*flight, fd) : -ECANCELED;
    } while (shared->flights.Return(*flight, result));
  }
}

class ThreadDiskIo final : public DiskIo {
 public:
  ThreadDiskIo(const DiskIoOptions& options, const Clock& clock, std::string why)
      : options_(options),
        engine_("threads: " + std::move(why)),
        shared_(std::make_shared<Shared>(options, clock)) {}

  ~ThreadDiskIo() override {
    Flights& flights = shared_->flights;
    flights.Close();
    const auto withdraw = [this](Flight& flight) { return TakeOffQueue(flight); };
    if (!flights.WaitUntilEmpty(options_.stop_ns)) flights.Forget(withdraw);
    flights.Finish();
    if (deadlines_.joinable()) deadlines_.join();
    std::vector<bool> busy;
    {
      MutexLock lock(shared_->mu);
      shared_->stopping = true;
      if (!flights.Empty()) busy = shared_->busy;
    }
    shared_->work.notify_all();
    // A thread that was not busy takes nothing any more. One that was may hang for ever; nothing is
    // called by it.
    for (size_t i = 0; i < threads_.size(); ++i) {
      if (i < busy.size() && busy[i]) {
        threads_[i].detach();
      } else {
        threads_[i].join();
      }
    }
  }

  Status Start() {
    for (int i = 0; i < options_.threads; ++i) {
      if (const int error = AddThread(); error != 0) return SystemError("file I/O: threads", error);
    }
    try {
      deadlines_ = std::thread([this] {
        (void)::pthread_setname_np(::pthread_self(), "io-deadlines");
        shared_->flights.WatchDeadlines([this](Flight& flight) { return Withdraw(flight); });
      });
    } catch (const std::system_error& error) {
      return SystemError("file I/O: threads", error.code().value());
    }
    return {};
  }

  Result<IoFileId> AddFile(int fd) override {
    const int flags = ::fcntl(fd, F_GETFL);
    if (flags < 0) return SystemError("file I/O: fd", EINVAL);
    UniqueFd own(::fcntl(fd, F_DUPFD_CLOEXEC, 0));
    if (!own) return SystemError("file I/O: fd", errno);
    ASSIGN_OR_RETURN(const IoFileId file, shared_->flights.AddFile((flags & O_DIRECT) != 0));
    MutexLock lock(shared_->mu);
    shared_->files[file] = std::move(own);
    return file;
  }

  void RemoveFile(IoFileId file) override {
    UniqueFd own;
    {
      MutexLock lock(shared_->mu);
      own = std::exchange(shared_->files[file], UniqueFd());
    }
    shared_->flights.RemoveFile(file);
  }

  Status Submit(std::vector<IoRequest> requests) override {
    ASSIGN_OR_RETURN(const std::vector<Flight*> flights,
                     shared_->flights.Admit(std::move(requests)));
    {
      MutexLock lock(shared_->mu);
      shared_->queue.insert(shared_->queue.end(), flights.begin(), flights.end());
    }
    if (flights.size() == 1) {
      shared_->work.notify_one();
    } else {
      shared_->work.notify_all();
    }
    return {};
  }

  // The kernel looks memory up at every call: there is nothing to keep.
  void RegisterMemory(std::span<uint8_t>) override {}
  void UnregisterMemory(std::span<uint8_t>) override {}

  IoReport Report() const override {
    IoReport report = shared_->flights.Report();
    report.engine = engine_;
    return report;
  }

 private:
  // 0, or why the system gives no thread.
  int AddThread() {
    const size_t index = threads_.size();
    {
      MutexLock lock(shared_->mu);
      shared_->busy.push_back(false);
    }
    try {
      threads_.emplace_back([shared = shared_, index] { Serve(shared, index); });
    } catch (const std::system_error& error) {
      return error.code().value();
    }
    return 0;
  }

  bool TakeOffQueue(Flight& flight) {
    MutexLock lock(shared_->mu);
    const auto place = std::find(shared_->queue.begin(), shared_->queue.end(), &flight);
    if (place == shared_->queue.end()) return false;
    shared_->queue.erase(place);
    return true;
  }

  bool Withdraw(Flight& flight) {
    if (TakeOffQueue(flight)) return true;
    // Without another thread the pool only gets smaller, so a failure needs no answer.
    if (threads_.size() < 2 * static_cast<size_t>(options_.threads)) (void)AddThread();
    return false;
  }

  const DiskIoOptions options_;
  const std::string engine_;
  const std::shared_ptr<Shared> shared_;
  std::thread deadlines_;
  std::vector<std::thread> threads_;  // Of Start, then of the thread of deadlines until its end.
};

}  // namespace

Result<std::unique_ptr<DiskIo>> StartThreadDiskIo(const DiskIoOptions& options, const Clock& clock,
                                                  std::string why) {
  auto io = std::make_unique<ThreadDiskIo>(options, clock, std::move(why));
  RETURN_IF_ERROR(io->Start());
  return std::unique_ptr<DiskIo>(std::move(io));
}

}  // namespace terrace
