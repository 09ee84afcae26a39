#include "tiers/device/supervisor/mover_tier.h"

#include <poll.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "base/mutex.h"
#include "tiers/device/supervisor/mover_supervisor.h"

namespace terrace {
namespace {

// Of one wait: a clock that is not the system's is looked at that often.
constexpr MonotonicNs kMostWaitNs = kNsPerSecond;

class MoverTier final : public DeviceTier {
 public:
  MoverTier(const MoverTierOptions& options, Executor& owner, const Clock& clock,
            std::function<void(ArenaId)> lost)
      : options_(options),
        owner_(owner),
        clock_(clock),
        lost_(std::make_shared<const std::function<void(ArenaId)>>(std::move(lost))) {}

  ~MoverTier() override {
    BeginEnd();
    if (thread_.joinable()) thread_.join();
  }

  void BeginEnd() override EXCLUDES(mu_) {
    {
      MutexLock lock(mu_);
      stopping_ = true;
    }
    Ring();
  }

  Status Start() {
    bell_.Reset(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
    if (!bell_) return SystemError("eventfd of a device tier", errno);
    try {
      thread_ = std::thread([this] { Serve(); });
    } catch (const std::system_error& error) {
      return SystemError("start the thread of a device tier", error.code().value());
    }
    return {};
  }

  // ---- Arenas
  void Create(ArenaId arena, uint64_t bytes, MonotonicNs deadline,
              std::function<void(Result<DeviceMemory>)> done) override {
    Submit(MoverCreate{.arena = arena, .bytes = bytes}, {}, deadline,
           [done = std::move(done)](Status status, DeviceMemory memory) {
             if (status.ok()) {
               done(std::move(memory));
             } else {
               done(std::move(status));
             }
           });
  }
  void Import(ArenaId arena, uint64_t bytes, UniqueFd slab, MonotonicNs deadline,
              Done done) override {
    Submit(MoverImport{.arena = arena, .bytes = bytes}, std::move(slab), deadline,
           Plainly(std::move(done)));
  }
  void Open(ArenaId arena, uint64_t bytes, const DeviceHandle& handle, MonotonicNs deadline,
            Done done) override {
    Submit(MoverOpen{.arena = arena, .bytes = bytes, .handle = handle}, {}, deadline,
           Plainly(std::move(done)));
  }
  void AddHost(ArenaId arena, uint64_t bytes, UniqueFd file, Protection protection,
               Registration registration, MonotonicNs deadline, Done done) override {
    Submit(MoverHost{.arena = arena,
                     .bytes = bytes,
                     .writable = protection == Protection::kReadWrite,
                     .registered = registration == Registration::kInBackground},
           std::move(file), deadline, Plainly(std::move(done)));
  }
  void Release(ArenaId arena, MonotonicNs deadline, Done done) override {
    Submit(MoverRelease{.arena = arena}, {}, deadline, Plainly(std::move(done)));
  }

  // ---- Work
  void Copy(std::vector<DeviceCopy> copies, bool complete, MonotonicNs deadline,
            Done done) override {
    Submit(MoverCopies{.any_order = complete, .copies = std::move(copies)}, {}, deadline,
           Plainly(std::move(done)));
  }
  void Clear(DevicePlace at, uint64_t bytes, MonotonicNs deadline, Done done) override {
    Submit(MoverClear{.at = at, .bytes = bytes}, {}, deadline, Plainly(std::move(done)));
  }
  void MovePages(DevicePages pages, MonotonicNs deadline, Done done) override {
    Submit(std::move(pages), {}, deadline, Plainly(std::move(done)));
  }

  DeviceTierReport Report() const override EXCLUDES(mu_) {
    MutexLock lock(mu_);
    return report_;
  }

 private:
  using Completion = std::function<void(Status, DeviceMemory)>;

  static Completion Plainly(Done done) {
    return
        [done = std::move(done)](Status status, const DeviceMemory&) { done(std::move(status)); };
  }

  void Submit(MoverBody body, UniqueFd fd, MonotonicNs deadline, Completion done) EXCLUDES(mu_) {
    {
      MutexLock lock(mu_);
      if (open_ < options_.requests) {
        ++open_;
        MoverTask task;
        task.body = std::move(body);
        if (fd) task.fd = std::make_shared<const UniqueFd>(std::move(fd));
        task.deadline = deadline;
        // What `done` holds ends on the owner thread.
        task.done = [this, done = std::move(done)](Status status, DeviceMemory memory) mutable {
          ++ended_;
          posts_.push_back(Callback(std::move(done), std::move(status), std::move(memory)));
        };
        inbox_.push_back(std::move(task));
        done = nullptr;
      }
    }
    if (done) {
      owner_.Post(Callback(
          std::move(done),
          {Code::kExhausted, std::to_string(options_.requests) + " requests are under way"}, {}));
    } else {
      Ring();
    }
  }

  std::function<void()> Callback(Completion done, Status status, DeviceMemory memory) const {
    return [alive = std::weak_ptr<const bool>(alive_), done = std::move(done),
            status = std::move(status), memory = std::move(memory)]() mutable {
      if (!alive.expired()) done(std::move(status), std::move(memory));
    };
  }

  void Ring() {
    const uint64_t one = 1;
    // Full, it wakes its reader already.
    (void)!::write(bell_.get(), &one, sizeof one);
  }

  // ---- The thread
  void Serve() {
    (void)::pthread_setname_np(::pthread_self(), "device-tier");
    MoverSupervisor supervisor(options_, clock_, [this](ArenaId arena) {
      posts_.push_back([alive = std::weak_ptr<const bool>(alive_), lost = lost_, arena] {
        if (!alive.expired()) (*lost)(arena);
      });
    });
    std::vector<MoverTask> tasks;
    for (;;) {
      {
        MutexLock lock(mu_);
        if (stopping_) return;
        tasks.swap(inbox_);
      }
      for (MoverTask& task : tasks)
        supervisor.Accept(std::move(task));
      tasks.clear();
      supervisor.Turn();
      DeviceTierReport report = supervisor.Report();
      {
        MutexLock lock(mu_);
        report.waiting += inbox_.size();
        report_ = std::move(report);
        open_ -= std::exchange(ended_, 0);
      }
      // Who is called finds it in the report.
      for (std::function<void()>& post : posts_)
        owner_.Post(std::move(post));
      posts_.clear();
      Wait(supervisor);
    }
  }

  void Wait(const MoverSupervisor& supervisor) {
    std::vector<pollfd> waits = {{.fd = bell_.get(), .events = POLLIN, .revents = 0}};
    supervisor.AddWaits(waits);
    const MonotonicNs left =
        std::clamp<MonotonicNs>(supervisor.NextTurn() - clock_.Now(), 0, kMostWaitNs);
    // Rounded up, so that the time has come when it ends.
    (void)::poll(waits.data(), waits.size(), static_cast<int>((left + kNsPerMs - 1) / kNsPerMs));
    uint64_t rings = 0;
    (void)!::read(bell_.get(), &rings, sizeof rings);
  }

  const MoverTierOptions options_;
  Executor& owner_;
  const Clock& clock_;
  const std::shared_ptr<const std::function<void(ArenaId)>> lost_;
  // Callbacks that were posted find it gone after the tier; both are the owner thread's.
  const std::shared_ptr<const bool> alive_ = std::make_shared<const bool>(true);
  UniqueFd bell_;  // Rung for the thread.
  std::thread thread_;

  // The thread's.
  std::vector<std::function<void()>> posts_;
  size_t ended_ = 0;  // Requests that are done, and still counted in open_.

  mutable Mutex mu_;
  std::vector<MoverTask> inbox_ GUARDED_BY(mu_);
  size_t open_ GUARDED_BY(mu_) = 0;  // Requests that are not done.
  bool stopping_ GUARDED_BY(mu_) = false;
  DeviceTierReport report_ GUARDED_BY(mu_);
};

}  // namespace

Result<std::unique_ptr<DeviceTier>> StartMoverTier(const MoverTierOptions& options, Executor& owner,
                                                   const Clock& clock,
                                                   std::function<void(ArenaId)> lost) {
  auto tier = std::make_unique<MoverTier>(options, owner, clock, std::move(lost));
  RETURN_IF_ERROR(tier->Start());
  return std::unique_ptr<DeviceTier>(std::move(tier));
}

}  // namespace terrace
