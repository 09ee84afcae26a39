#include "tiers/sim/faulty_gpu.h"

#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

#include <deque>
#include <functional>
#include <set>
#include <string>
#include <unordered_map>
#include <utility>

#include "base/mutex.h"
#include "base/unique_fd.h"

namespace terrace {
namespace {

constexpr MonotonicNs kNever = std::numeric_limits<MonotonicNs>::max();

void SignalSelf(GpuFault fault) {
  (void)::kill(::getpid(), fault == GpuFault::kCrash ? SIGKILL : SIGSTOP);
}

}  // namespace

// What the Gpus of one FaultyGpus share: the rules, and what came of them.
class FaultyGpus::Schedule {
 public:
  explicit Schedule(const Clock& clock) : clock_(clock) {}

  void Add(GpuFaultRule rule) EXCLUDES(mu_) {
    MutexLock lock(mu_);
    rules_.push_back({.rule = rule, .seen = 0});
  }
  void ClearRules() EXCLUDES(mu_) {
    MutexLock lock(mu_);
    rules_.clear();
  }
  uint64_t made(GpuFault fault) const EXCLUDES(mu_) {
    MutexLock lock(mu_);
    return made_[static_cast<size_t>(fault)];
  }
  uint64_t calls(GpuVerb verb) const EXCLUDES(mu_) {
    MutexLock lock(mu_);
    return calls_[static_cast<size_t>(verb)];
  }
  const Clock& clock() const { return clock_; }

  std::optional<GpuFaultRule> Match(GpuVerb verb) EXCLUDES(mu_) {
    MutexLock lock(mu_);
    ++calls_[static_cast<size_t>(verb)];
    for (Rule& rule : rules_) {
      if (rule.rule.verb && *rule.rule.verb != verb) continue;
      const uint64_t nth = rule.seen++;
      if (nth < rule.rule.skip || nth - rule.rule.skip >= rule.rule.times) continue;
      ++made_[static_cast<size_t>(rule.rule.fault)];
      return rule.rule;
    }
    return std::nullopt;
  }

  void Lose(const GpuUuid& uuid) EXCLUDES(mu_) {
    MutexLock lock(mu_);
    lost_.insert(uuid);
  }
  bool IsLost(const GpuUuid& uuid) const EXCLUDES(mu_) {
    MutexLock lock(mu_);
    return lost_.contains(uuid);
  }
  void Restore() EXCLUDES(mu_) {
    MutexLock lock(mu_);
    lost_.clear();
  }

  // Runs `resume` at the next Release.
  void Hold(std::function<void()> resume) EXCLUDES(mu_) {
    MutexLock lock(mu_);
    held_.push_back(std::move(resume));
  }
  uint64_t releases() const EXCLUDES(mu_) {
    MutexLock lock(mu_);
    return releases_;
  }
  void Release() EXCLUDES(mu_) {
    std::vector<std::function<void()>> resumed;
    {
      MutexLock lock(mu_);
      ++releases_;
      resumed.swap(held_);
    }
    for (const std::function<void()>& resume : resumed)
      resume();
  }

 private:
  struct Rule {
    GpuFaultRule rule;
    uint64_t seen = 0;
  };

  const Clock& clock_;
  mutable Mutex mu_;
  std::deque<Rule> rules_ GUARDED_BY(mu_);
  std::array<uint64_t, kGpuFaults> made_ GUARDED_BY(mu_) = {};
  std::array<uint64_t, kGpuVerbs> calls_ GUARDED_BY(mu_) = {};
  std::set<GpuUuid> lost_ GUARDED_BY(mu_);
  std::vector<std::function<void()>> held_ GUARDED_BY(mu_);
  uint64_t releases_ GUARDED_BY(mu_) = 0;
};

class FaultyGpus::FaultyGpu final : public Gpu {
 public:
  FaultyGpu(std::unique_ptr<Gpu> gpu, std::shared_ptr<Schedule> schedule)
      : gpu_(std::move(gpu)), schedule_(std::move(schedule)) {}

  const GpuFacts& facts() const override { return gpu_->facts(); }
  Result<GpuMemory> Memory() override {
    RETURN_IF_ERROR(Before(GpuVerb::kMemory));
    return gpu_->Memory();
  }

  // ---- Slabs
  Result<GpuSlab> CreateSlab(uint64_t bytes) override {
    RETURN_IF_ERROR(Before(GpuVerb::kCreateSlab));
    return gpu_->CreateSlab(bytes);
  }
  Result<UniqueFd> ExportSlab(GpuSlab slab) override {
    RETURN_IF_ERROR(Before(GpuVerb::kExportSlab));
    return gpu_->ExportSlab(slab);
  }
  Result<GpuSlab> ImportSlab(int fd, uint64_t bytes) override {
    RETURN_IF_ERROR(Before(GpuVerb::kImportSlab));
    return gpu_->ImportSlab(fd, bytes);
  }
  Status ReleaseSlab(GpuSlab slab) override {
    RETURN_IF_ERROR(Before(GpuVerb::kReleaseSlab));
    return gpu_->ReleaseSlab(slab);
  }

  // ---- Ranges
  Result<GpuAddress> ReserveRange(uint64_t bytes) override {
    RETURN_IF_ERROR(Before(GpuVerb::kReserveRange));
    return gpu_->ReserveRange(bytes);
  }
  Status FreeRange(GpuAddress range) override {
    RETURN_IF_ERROR(Before(GpuVerb::kFreeRange));
    return gpu_->FreeRange(range);
  }
  Status MapSlab(GpuAddress at, GpuSlab slab) override {
    RETURN_IF_ERROR(Before(GpuVerb::kMapSlab));
    return gpu_->MapSlab(at, slab);
  }
  Status SetAccess(GpuAddress at, uint64_t bytes, GpuAccess access) override {
    RETURN_IF_ERROR(Before(GpuVerb::kSetAccess));
    return gpu_->SetAccess(at, bytes, access);
  }
  Status UnmapSlab(GpuAddress at) override {
    RETURN_IF_ERROR(Before(GpuVerb::kUnmapSlab));
    return gpu_->UnmapSlab(at);
  }

  // ---- Allocations
  Result<GpuAddress> Allocate(uint64_t bytes) override {
    RETURN_IF_ERROR(Before(GpuVerb::kAllocate));
    return gpu_->Allocate(bytes);
  }
  Status FreeAllocation(GpuAddress allocation) override {
    RETURN_IF_ERROR(Before(GpuVerb::kFreeAllocation));
    return gpu_->FreeAllocation(allocation);
  }
  Result<IpcHandle> ExportAllocation(GpuAddress allocation) override {
    RETURN_IF_ERROR(Before(GpuVerb::kExportAllocation));
    return gpu_->ExportAllocation(allocation);
  }
  Result<GpuAddress> OpenAllocation(const IpcHandle& handle, uint64_t bytes) override {
    RETURN_IF_ERROR(Before(GpuVerb::kOpenAllocation));
    return gpu_->OpenAllocation(handle, bytes);
  }
  Status CloseAllocation(GpuAddress opened) override {
    RETURN_IF_ERROR(Before(GpuVerb::kCloseAllocation));
    return gpu_->CloseAllocation(opened);
  }

  Result<GpuForeign> ShareForeign(GpuAddress at) override {
    RETURN_IF_ERROR(Before(GpuVerb::kShareForeign));
    return gpu_->ShareForeign(at);
  }

  // ---- Host memory
  Result<HostRegion> RegisterHost(std::span<uint8_t> memory, GpuAccess access) override {
    RETURN_IF_ERROR(Before(GpuVerb::kRegisterHost));
    return gpu_->RegisterHost(memory, access);
  }
  Status UnregisterHost(HostRegion region) override {
    RETURN_IF_ERROR(Before(GpuVerb::kUnregisterHost));
    return gpu_->UnregisterHost(region);
  }

  // ---- Streams and events
  Result<GpuStream> CreateStream() override {
    RETURN_IF_ERROR(Before(GpuVerb::kCreateStream));
    return gpu_->CreateStream();
  }
  Status DestroyStream(GpuStream stream) override {
    RETURN_IF_ERROR(Before(GpuVerb::kDestroyStream));
    return gpu_->DestroyStream(stream);
  }
  Result<GpuEvent> CreateEvent() override {
    RETURN_IF_ERROR(Before(GpuVerb::kCreateEvent));
    return gpu_->CreateEvent();
  }
  Status DestroyEvent(GpuEvent event) override {
    RETURN_IF_ERROR(Before(GpuVerb::kDestroyEvent));
    return gpu_->DestroyEvent(event);
  }
  Status RecordEvent(GpuEvent event, GpuStream stream) override {
    Held held;
    RETURN_IF_ERROR(Before(GpuVerb::kRecordEvent, &held));
    RETURN_IF_ERROR(gpu_->RecordEvent(event, stream));
    MutexLock lock(mu_);
    held_.erase(event);
    if (held.until != 0) held_.emplace(event, held);
    return {};
  }
  Status WaitEvent(GpuStream stream, GpuEvent event) override {
    RETURN_IF_ERROR(Before(GpuVerb::kWaitEvent));
    return gpu_->WaitEvent(stream, event);
  }
  Result<bool> QueryEvent(GpuEvent event) override {
    RETURN_IF_ERROR(Before(GpuVerb::kQueryEvent));
    {
      MutexLock lock(mu_);
      const auto held = held_.find(event);
      if (held != held_.end() && held->second.releases == schedule_->releases() &&
          schedule_->clock().Now() < held->second.until) {
        return false;
      }
    }
    return gpu_->QueryEvent(event);
  }
  Status Notify(GpuStream stream, int eventfd) override {
    Held held;
    RETURN_IF_ERROR(Before(GpuVerb::kNotify, &held));
    if (held.until == 0) return gpu_->Notify(stream, eventfd);
    const auto own = std::make_shared<UniqueFd>(::fcntl(eventfd, F_DUPFD_CLOEXEC, 0));
    const std::weak_ptr<Gpu> gpu = gpu_;
    schedule_->Hold([gpu, stream, own] {
      // A stream that is gone meanwhile notifies nobody.
      if (const std::shared_ptr<Gpu> there = gpu.lock()) (void)there->Notify(stream, own->get());
    });
    return {};
  }

  // ---- Work
  Status Copy(GpuStream stream, std::span<const GpuCopy> copies, SourceOrder order) override {
    RETURN_IF_ERROR(Before(GpuVerb::kCopy));
    return gpu_->Copy(stream, copies, order);
  }
  Status Clear(GpuStream stream, GpuAddress at, uint64_t bytes) override {
    RETURN_IF_ERROR(Before(GpuVerb::kClear));
    return gpu_->Clear(stream, at, bytes);
  }
  Status GatherPages(GpuStream stream, const PagedLayout& layout,
                     std::span<const PagedBlock> blocks) override {
    RETURN_IF_ERROR(Before(GpuVerb::kGatherPages));
    return gpu_->GatherPages(stream, layout, blocks);
  }
  Status ScatterPages(GpuStream stream, const PagedLayout& layout,
                      std::span<const PagedBlock> blocks) override {
    RETURN_IF_ERROR(Before(GpuVerb::kScatterPages));
    return gpu_->ScatterPages(stream, layout, blocks);
  }

 private:
  // Not done before that time, nor before the next release.
  struct Held {
    MonotonicNs until = 0;
    uint64_t releases = 0;
  };

  // What the call shall answer, Ok for going on. `held`: the verb can be slow.
  Status Before(GpuVerb verb, Held* held = nullptr) EXCLUDES(mu_) {
    MutexLock lock(mu_);
    if (dead_.ok() && schedule_->IsLost(facts().uuid)) dead_ = Lost();
    RETURN_IF_ERROR(dead_);
    const std::optional<GpuFaultRule> rule = schedule_->Match(verb);
    if (!rule) return {};
    switch (rule->fault) {
      case GpuFault::kOutOfMemory:
        return {Code::kExhausted, "fault: out of memory"};
      case GpuFault::kSticky:
        dead_ = Status(Code::kStale, "fault: the context is dead");
        return dead_;
      case GpuFault::kLost:
        schedule_->Lose(facts().uuid);
        dead_ = Lost();
        return dead_;
      case GpuFault::kCrash:
      case GpuFault::kStop:
        SignalSelf(rule->fault);
        return {};
      case GpuFault::kNever:
      case GpuFault::kLate:
        if (held == nullptr) return {};
        held->releases = schedule_->releases();
        held->until =
            rule->fault == GpuFault::kNever ? kNever : schedule_->clock().Now() + rule->late_ns;
        return {};
    }
    return {};
  }
  Status Lost() const { return {Code::kUnavailable, "fault: " + facts().uuid.Text() + " is lost"}; }

  const std::shared_ptr<Gpu> gpu_;
  const std::shared_ptr<Schedule> schedule_;
  Mutex mu_;
  Status dead_ GUARDED_BY(mu_);
  std::unordered_map<GpuEvent, Held> held_ GUARDED_BY(mu_);
};

FaultyGpus::FaultyGpus(std::unique_ptr<Gpus> gpus, const Clock& clock)
    : gpus_(std::move(gpus)), schedule_(std::make_shared<Schedule>(clock)) {}

FaultyGpus::~FaultyGpus() = default;

void FaultyGpus::Add(GpuFaultRule rule) {
  schedule_->Add(rule);
}
void FaultyGpus::ClearRules() {
  schedule_->ClearRules();
}
void FaultyGpus::Release() {
  schedule_->Release();
}
void FaultyGpus::Restore() {
  schedule_->Restore();
}
uint64_t FaultyGpus::made(GpuFault fault) const {
  return schedule_->made(fault);
}
uint64_t FaultyGpus::calls(GpuVerb verb) const {
  return schedule_->calls(verb);
}

const std::vector<GpuFacts>& FaultyGpus::devices() const {
  return gpus_->devices();
}

Result<std::unique_ptr<Gpu>> FaultyGpus::Open(const GpuUuid& uuid) {
  const std::optional<GpuFaultRule> rule = schedule_->Match(GpuVerb::kOpen);
  if (rule && rule->fault == GpuFault::kLost) schedule_->Lose(uuid);
  if (schedule_->IsLost(uuid)) {
    return Status(Code::kUnavailable, "fault: " + uuid.Text() + " is lost");
  }
  if (rule && rule->fault == GpuFault::kOutOfMemory) {
    return Status(Code::kExhausted, "fault: out of memory");
  }
  if (rule && (rule->fault == GpuFault::kCrash || rule->fault == GpuFault::kStop)) {
    SignalSelf(rule->fault);
  }
  if (rule && rule->fault == GpuFault::kSticky) {
    return Status(Code::kStale, "fault: the context is dead");
  }
  ASSIGN_OR_RETURN(std::unique_ptr<Gpu> gpu, gpus_->Open(uuid));
  return std::unique_ptr<Gpu>(new FaultyGpu(std::move(gpu), schedule_));
}

}  // namespace terrace
