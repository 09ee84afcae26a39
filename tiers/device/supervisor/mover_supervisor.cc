#include "tiers/device/supervisor/mover_supervisor.h"

#include <sys/socket.h>

#include <algorithm>
#include <iterator>
#include <limits>
#include <utility>
#include <variant>

#include "kernels/paged_copy.h"

namespace terrace {

static_assert(kDeviceBlockAlignment == kPagedAlignment);
static_assert(kMostDeviceSegments == kMostPagedSegments);
namespace {

constexpr MonotonicNs kNever = std::numeric_limits<MonotonicNs>::max();
constexpr int kPacketsOfATurn = 64;
constexpr int kLastPackets = 4096;  // Of a process that is gone: more than a socket holds.
constexpr int kMostDoublings = 20;

// Words of another process end up in reports and on terminals.
std::string Plain(std::string text) {
  for (char& letter : text) {
    if (letter < ' ' || letter > '~') letter = '?';
  }
  return text;
}
Status Plain(const Status& status) {
  return status.ok() ? status : Status(status.code(), Plain(status.message()));
}

Status NoArena(ArenaId arena, Code code, const char* why) {
  return {code, "arena " + std::to_string(arena) + why};
}

bool IsRelease(const MoverTask& task) {
  return std::holds_alternative<MoverRelease>(task.body);
}

// The arena that a request brings, none for work and releases.
std::optional<ArenaId> ArenaMadeBy(const MoverBody& body) {
  if (const auto* create = std::get_if<MoverCreate>(&body)) return create->arena;
  if (const auto* import = std::get_if<MoverImport>(&body)) return import->arena;
  if (const auto* open = std::get_if<MoverOpen>(&body)) return open->arena;
  if (const auto* host = std::get_if<MoverHost>(&body)) return host->arena;
  return std::nullopt;
}

// Until `visit` says no.
template <typename Visit>
void ForEachPlace(const MoverBody& body, const Visit& visit) {
  if (const auto* copies = std::get_if<MoverCopies>(&body)) {
    for (const DeviceCopy& copy : copies->copies) {
      if (!visit(copy.dst.arena) || !visit(copy.src.arena)) return;
    }
  } else if (const auto* clear = std::get_if<MoverClear>(&body)) {
    visit(clear->at.arena);
  } else if (const auto* pages = std::get_if<MoverPages>(&body)) {
    for (const DevicePlace& base : pages->bases) {
      if (!visit(base.arena)) return;
    }
    for (const DevicePages::Block& block : pages->blocks) {
      if (!visit(block.page.arena)) return;
    }
  }
}

// Another process of this build would say the same at once.
bool IsLasting(const Status& status) {
  return status.code() == Code::kNotFound || status.code() == Code::kPermissionDenied ||
         status.code() == Code::kMismatch || status.code() == Code::kInvalidArgument;
}

}  // namespace

MoverSupervisor::~MoverSupervisor() {
  if (!process_) return;
  // The end of file is how it is asked to.
  ::shutdown(process_->socket().fd(), SHUT_RDWR);
  (void)process_->AwaitEnd(options_.stop_ns);
}

// ---- Requests

void MoverSupervisor::Accept(MoverTask task) {
  Status refused = Admit(task);
  if (!refused.ok()) {
    // It has changed nothing, so there is nothing to undo.
    ++counts_.failed;
    task.done(std::move(refused), {});
    return;
  }
  if (IsRelease(task)) {
    const ArenaState state = arenas_.at(std::get<MoverRelease>(task.body).arena).state;
    // No process has anything of it.
    if (!process_ || state == ArenaState::kLost) {
      Finish(std::move(task), {}, true);
      return;
    }
    arenas_.at(std::get<MoverRelease>(task.body).arena).state = ArenaState::kGoing;
  }
  earliest_ = std::min(earliest_, task.deadline);
  waiting_.push_back(std::move(task));
}

Status MoverSupervisor::Admit(const MoverTask& task) {
  if (const auto* release = std::get_if<MoverRelease>(&task.body)) {
    const auto found = arenas_.find(release->arena);
    if (found == arenas_.end()) return NoArena(release->arena, Code::kNotFound, " is unknown");
    if (found->second.state == ArenaState::kComing || found->second.state == ArenaState::kGoing) {
      return NoArena(release->arena, Code::kNotFound, " is on its way");
    }
    return {};
  }
  if (resting_) return {Code::kUnavailable, "no mover: " + why_};
  if (const auto* copies = std::get_if<MoverCopies>(&task.body)) {
    if (copies->copies.size() > kMostDeviceCopies) {
      return {Code::kInvalidArgument, "copies: more than " + std::to_string(kMostDeviceCopies)};
    }
  } else if (const auto* pages = std::get_if<MoverPages>(&task.body)) {
    if (pages->blocks.size() > kMostDeviceBlocks || pages->bases.size() > kMostPagedSegments) {
      return {Code::kInvalidArgument, "pages: more blocks or bases than a request has"};
    }
  } else if (const std::optional<ArenaId> arena = ArenaMadeBy(task.body)) {
    const bool sent = std::holds_alternative<MoverImport>(task.body) ||
                      std::holds_alternative<MoverHost>(task.body);
    if (sent && (task.fd == nullptr || !*task.fd)) {
      return {Code::kInvalidArgument, "descriptor: is none"};
    }
    return AdmitArena(*arena, !std::holds_alternative<MoverHost>(task.body));
  }
  return {};
}

Status MoverSupervisor::AdmitArena(ArenaId arena, bool of_device) {
  if (arenas_.size() >= options_.mover.options.arenas) {
    return {Code::kExhausted, std::to_string(arenas_.size()) + " arenas are known"};
  }
  Arena coming;
  coming.of_device = of_device;
  if (!arenas_.emplace(arena, std::move(coming)).second) {
    return NoArena(arena, Code::kAlreadyExists, " is known already");
  }
  return {};
}

Status MoverSupervisor::CheckArenas(const MoverTask& task) const {
  Status status;
  ForEachPlace(task.body, [&](ArenaId id) {
    const auto found = arenas_.find(id);
    if (found == arenas_.end()) {
      status = NoArena(id, Code::kNotFound, " is unknown");
    } else if (found->second.state == ArenaState::kLost) {
      status = NoArena(id, Code::kStale, " was lost");
    } else if (found->second.state != ArenaState::kThere) {
      status = NoArena(id, Code::kNotFound, " is on its way");
    }
    return status.ok();
  });
  return status;
}

void MoverSupervisor::Pump() {
  while (phase_ == Phase::kRestoring && !to_restore_.empty() &&
         restoring_.size() < options_.in_flight) {
    const ArenaId id = to_restore_.front();
    const Arena& arena = arenas_.at(id);
    if (!Send(last_request_ + 1, *arena.again, arena.fd.get())) return;
    to_restore_.pop_front();
    restoring_.emplace(++last_request_, id);
  }
  if (phase_ == Phase::kRestoring && to_restore_.empty() && restoring_.empty()) {
    phase_ = Phase::kServing;
    serving_since_ = clock_.Now();
    report_at_ = serving_since_;
    resting_ = false;
  }
  if (phase_ != Phase::kServing) return;
  if (report_request_ == 0 && clock_.Now() >= report_at_) {
    if (!Send(last_request_ + 1, MoverReport{}, nullptr)) return;
    report_request_ = ++last_request_;
    report_at_ = clock_.Now() + options_.report_ns;
  }
  while (!waiting_.empty() && in_flight_.size() < options_.in_flight) {
    MoverTask& next = waiting_.front();
    if (Status status = CheckArenas(next); !status.ok()) {
      MoverTask refused = std::move(next);
      waiting_.pop_front();
      Finish(std::move(refused), std::move(status), false);
      continue;
    }
    const auto* create = std::get_if<MoverCreate>(&next.body);
    const bool allocates = create != nullptr && !facts_.slabs;
    const MoverBody allocation =
        allocates ? MoverBody(MoverAllocate{create->arena, create->bytes}) : MoverBody();
    if (!Send(last_request_ + 1, allocates ? allocation : next.body, next.fd.get())) return;
    ++next.attempts;
    in_flight_.emplace(++last_request_, std::move(next));
    waiting_.pop_front();
  }
}

bool MoverSupervisor::Send(uint64_t request, const MoverBody& body, const UniqueFd* fd) {
  const uint16_t descriptors = fd == nullptr ? 0 : 1;
  const Status sent = process_->socket().Send(
      EncodeMover({.request = request, .descriptors = descriptors, .body = body}),
      fd == nullptr ? -1 : fd->get());
  if (sent.code() == Code::kExhausted) {
    full_ = true;
  } else if (!sent.ok()) {
    Kill(End::kCrash, {});
  }
  return sent.ok();
}

void MoverSupervisor::Finish(MoverTask task, Status status, bool answered, MoverAnswer answer,
                             UniqueFd fd) {
  ++(answered ? counts_.completed : counts_.failed);
  DeviceMemory memory;
  if (const auto* release = std::get_if<MoverRelease>(&task.body)) {
    // A mover that answered has nothing of it any more, whatever it says of the way there. One that
    // was told of it in vain never had.
    if (answered) {
      arenas_.erase(release->arena);
      if (status.code() == Code::kNotFound) status = Status();
    } else {
      arenas_.at(release->arena).state = ArenaState::kThere;
    }
  } else if (const std::optional<ArenaId> arena = ArenaMadeBy(task.body)) {
    if (status.ok()) {
      memory = Keep(task, answer, std::move(fd));
    } else {
      arenas_.erase(*arena);
    }
  }
  task.done(std::move(status), std::move(memory));
}

// An arena that came: how the next process gets it.
DeviceMemory MoverSupervisor::Keep(const MoverTask& task, const MoverAnswer& answer, UniqueFd fd) {
  Arena& arena = arenas_.at(*ArenaMadeBy(task.body));
  arena.state = ArenaState::kThere;
  DeviceMemory memory;
  if (const auto* create = std::get_if<MoverCreate>(&task.body)) {
    if (fd) {
      memory.slab = std::make_shared<const UniqueFd>(std::move(fd));
      arena.fd = memory.slab;
      arena.again = MoverImport{.arena = create->arena, .bytes = create->bytes};
    }
    memory.handle = answer.handle;
  } else {
    arena.fd = task.fd;
    arena.again = task.body;
  }
  return memory;
}

void MoverSupervisor::Lose(ArenaId id, Arena& arena) {
  if (arena.state != ArenaState::kThere) return;
  arena.state = ArenaState::kLost;
  arena.again.reset();
  arena.fd.reset();
  ++counts_.lost_arenas;
  lost_(id);
}

void MoverSupervisor::CheckDeadlines(MonotonicNs now) {
  if ((phase_ == Phase::kStarting || phase_ == Phase::kRestoring) && now >= phase_deadline_) {
    Kill(End::kHang, "did not get ready in time");
  }
  if (report_request_ != 0 && now >= report_at_) Kill(End::kHang, "did not say how it is in time");
  if (now < earliest_) return;
  earliest_ = kNever;
  std::deque<MoverTask> left;
  std::vector<MoverTask> late;
  for (MoverTask& task : waiting_) {
    if (task.deadline <= now) {
      late.push_back(std::move(task));
    } else {
      earliest_ = std::min(earliest_, task.deadline);
      left.push_back(std::move(task));
    }
  }
  waiting_.swap(left);
  for (MoverTask& task : late)
    Finish(std::move(task), {Code::kDeadlineExceeded, "no mover had it in time"}, false);
  for (const auto& [request, task] : in_flight_) {
    if (task.deadline <= now) {
      Kill(End::kHang, "did not do a request in time");
    } else {
      earliest_ = std::min(earliest_, task.deadline);
    }
  }
}

void MoverSupervisor::FailWaiting(const Status& status) {
  for (MoverTask& task : std::exchange(waiting_, {}))
    Finish(std::move(task), status, false);
}

// ---- The process

void MoverSupervisor::StartProcess(MonotonicNs now) {
  starts_.push_back(now);
  ++counts_.starts;
  Result<MoverProcess> process = MoverProcess::Start(options_.program, options_.mover);
  if (!process) {
    why_ = process.error().ToString();
    resting_ = resting_ || IsLasting(process.error());
    ++failures_;
    PlanStart(now);
    return;
  }
  process_.emplace(*std::move(process));
  phase_ = Phase::kStarting;
  phase_deadline_ = now + options_.start_ns;
  deaf_ = false;
  full_ = false;
  end_.reset();
  ending_ = Status();
  serving_since_ = 0;
}

void MoverSupervisor::Turn() {
  full_ = false;
  if (process_) {
    Receive();
    if (process_->AwaitEnd(0)) Ended(clock_.Now());
  }
  const MonotonicNs now = clock_.Now();
  CheckDeadlines(now);
  if (!process_ && now >= next_start_) StartProcess(now);
  Pump();
}

void MoverSupervisor::Receive() {
  for (int i = 0; i < kPacketsOfATurn && !deaf_; ++i) {
    Result<std::optional<MoverSocket::Packet>> packet = process_->socket().Receive();
    if (packet && !packet->has_value()) return;
    if (!packet && packet.error().code() != Code::kInvalidArgument) {
      deaf_ = true;
      Kill(End::kCrash, {});
      return;
    }
    const Status taken = packet ? Take(*std::move(*packet)) : packet.error();
    if (!taken.ok()) {
      deaf_ = true;
      Kill(End::kDistrusted, "said what cannot be: " + Plain(taken.message()));
    }
  }
}

Status MoverSupervisor::Take(MoverSocket::Packet packet) {
  ASSIGN_OR_RETURN(MoverMessage message, DecodeMover(packet.bytes));
  if (message.descriptors != (packet.fd ? 1 : 0)) {
    return {Code::kInvalidArgument, "descriptors: not as many as the header says"};
  }
  if (const auto* ready = std::get_if<MoverReady>(&message.body)) return TakeReady(*ready);
  if (auto* answer = std::get_if<MoverAnswer>(&message.body)) {
    return TakeAnswer(message.request, std::move(*answer), std::move(packet.fd));
  }
  return {Code::kInvalidArgument, "type: is the daemon's to send"};
}

Status MoverSupervisor::TakeReady(const MoverReady& ready) {
  if (phase_ == Phase::kEnding) return {};
  if (phase_ != Phase::kStarting) return {Code::kInvalidArgument, "ready: was said before"};
  if (!ready.status.ok()) {
    ending_ = Plain(ready.status);
    Kill(End::kUnready, ending_.ToString());
    return {};
  }
  if (ready.facts.uuid != options_.mover.device) {
    return {Code::kInvalidArgument, "ready: uuid: of another device"};
  }
  facts_ = ready.facts;
  facts_.name = Plain(facts_.name);
  facts_.driver = Plain(facts_.driver);
  phase_ = Phase::kRestoring;
  phase_deadline_ = clock_.Now() + options_.start_ns;
  for (auto& [id, arena] : arenas_) {
    if (arena.state != ArenaState::kThere) continue;
    to_restore_.push_back(id);
  }
  return {};
}

Status MoverSupervisor::TakeAnswer(uint64_t request, MoverAnswer answer, UniqueFd fd) {
  const auto found = in_flight_.find(request);
  const auto restored = restoring_.find(request);
  const bool of_report = request != 0 && request == report_request_;
  if (found == in_flight_.end() && restored == restoring_.end() && !of_report) {
    return {Code::kInvalidArgument, "answer: to no request"};
  }
  if (answer.status.code() == Code::kStale || answer.status.code() == Code::kUnavailable) {
    // Its last words, and no answer: the request is done again.
    if (fd) return {Code::kInvalidArgument, "answer: brings a descriptor"};
    ending_ = Plain(answer.status);
    Kill(End::kBroken, ending_.ToString());
    return {};
  }
  const bool brings = found != in_flight_.end() && facts_.slabs && answer.status.ok() &&
                      std::holds_alternative<MoverCreate>(found->second.body);
  if (brings != static_cast<bool>(fd)) {
    return {Code::kInvalidArgument, "answer: brings a descriptor, or none"};
  }
  if (of_report) {
    figures_ = std::move(answer.figures);
    figures_.registration = Plain(std::move(figures_.registration));
    report_request_ = 0;
    report_at_ = clock_.Now() + options_.report_every_ns;
  } else if (restored != restoring_.end()) {
    if (!answer.status.ok()) Lose(restored->second, arenas_.at(restored->second));
    restoring_.erase(restored);
  } else {
    MoverTask task = std::move(found->second);
    in_flight_.erase(found);
    Status status = Plain(answer.status);
    Finish(std::move(task), std::move(status), true, std::move(answer), std::move(fd));
  }
  return {};
}

void MoverSupervisor::Kill(End end, std::string why) {
  if (end_) return;
  end_ = end;
  why_ = std::move(why);
  phase_ = Phase::kEnding;
  report_request_ = 0;
  process_->Kill();
}

void MoverSupervisor::Ended(MonotonicNs now) {
  // What it did before counts.
  for (int i = 0; i < kLastPackets && !deaf_; i += kPacketsOfATurn)
    Receive();
  const End end = end_.value_or(End::kCrash);
  std::string reaped = process_->Reap();
  if (why_.empty() || !end_) why_ = std::move(reaped);
  process_.reset();
  phase_ = Phase::kNone;
  report_request_ = 0;
  to_restore_.clear();
  restoring_.clear();
  figures_ = MoverFigures();
  if (end == End::kCrash) ++counts_.crashes;
  if (end == End::kHang) ++counts_.hangs;
  if (end == End::kBroken) ++counts_.broken;
  if (end == End::kDistrusted) ++counts_.distrusted;
  const bool device_lost = end == End::kBroken && ending_.code() == Code::kUnavailable;
  for (auto& [id, arena] : arenas_) {
    if (!arena.again || (device_lost && arena.of_device)) Lose(id, arena);
  }
  const bool steady = serving_since_ != 0 && now - serving_since_ >= options_.window_ns;
  failures_ = steady ? 1 : failures_ + 1;
  resting_ = resting_ || (end == End::kUnready && IsLasting(ending_));
  Requeue(now);
  PlanStart(now);
}

// What it had not answered: again by the next one, but for what is late or has had its share.
void MoverSupervisor::Requeue(MonotonicNs now) {
  std::vector<MoverTask> again;
  for (auto& [request, task] : std::exchange(in_flight_, {})) {
    if (IsRelease(task)) {
      Finish(std::move(task), {}, true);
    } else if (task.deadline <= now) {
      Finish(std::move(task), {Code::kDeadlineExceeded, "the mover did not do it in time"}, false);
    } else if (task.attempts >= options_.attempts) {
      Finish(std::move(task),
             {Code::kUnavailable,
              std::to_string(options_.attempts) + " movers ended with it: the last " + why_},
             false);
    } else {
      ++counts_.replayed;
      earliest_ = std::min(earliest_, task.deadline);
      again.push_back(std::move(task));
    }
  }
  // Releases that it never got.
  for (MoverTask& task : std::exchange(waiting_, {})) {
    if (IsRelease(task)) {
      Finish(std::move(task), {}, true);
    } else {
      again.push_back(std::move(task));
    }
  }
  waiting_.assign(std::make_move_iterator(again.begin()), std::make_move_iterator(again.end()));
}

void MoverSupervisor::PlanStart(MonotonicNs now) {
  const int doublings = std::min(failures_ - 1, kMostDoublings);
  const MonotonicNs pause = resting_
                                ? options_.most_pause_ns
                                : std::min(options_.pause_ns << doublings, options_.most_pause_ns);
  next_start_ = now + pause;
  std::erase_if(starts_, [&](MonotonicNs at) { return now - at >= options_.window_ns; });
  if (starts_.size() >= options_.starts) {
    resting_ = true;
    next_start_ = std::max(next_start_, starts_.front() + options_.window_ns);
  }
  if (resting_) FailWaiting({Code::kUnavailable, "no mover: " + why_});
}

void MoverSupervisor::AddWaits(std::vector<pollfd>& waits) const {
  if (!process_) return;
  waits.push_back({.fd = process_->pidfd(), .events = POLLIN, .revents = 0});
  if (deaf_) return;
  waits.push_back({.fd = process_->socket().fd(),
                   .events = static_cast<short>(full_ ? POLLIN | POLLOUT : POLLIN),
                   .revents = 0});
}

MonotonicNs MoverSupervisor::NextTurn() const {
  switch (phase_) {
    case Phase::kNone:
      return std::min(earliest_, next_start_);
    case Phase::kStarting:
    case Phase::kRestoring:
      return std::min(earliest_, phase_deadline_);
    case Phase::kServing:
      return std::min(earliest_, report_at_);
    case Phase::kEnding:
      return earliest_;
  }
  return earliest_;
}

DeviceTierReport MoverSupervisor::Report() const {
  DeviceTierReport report = counts_;
  report.state = phase_ == Phase::kServing  ? DeviceTierState::kServing
                 : phase_ == Phase::kEnding ? DeviceTierState::kEnding
                 : resting_                 ? DeviceTierState::kResting
                                            : DeviceTierState::kStarting;
  report.why = why_;
  report.process = process_ ? process_->pid() : 0;
  report.uuid = options_.mover.device.Text();
  report.name = facts_.name;
  report.driver = facts_.driver;
  report.slabs = facts_.slabs;
  report.granularity = facts_.granularity;
  report.free_bytes = figures_.memory.free_bytes;
  report.total_bytes = facts_.total_bytes;
  report.host_bytes = figures_.host_bytes;
  report.registered_bytes = figures_.registered_bytes;
  report.direct_bytes = figures_.direct_bytes;
  report.staged_bytes = figures_.staged_bytes;
  report.registration = figures_.registration;
  report.arenas = arenas_.size();
  report.waiting = waiting_.size();
  report.in_flight = in_flight_.size();
  return report;
}

}  // namespace terrace
