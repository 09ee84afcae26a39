// MoverSupervisor: keeps a mover running, and requests going through whatever becomes of it.
//
// It starts the process, says what memory there is, sends requests in their order within a window,
// and watches: a process that ended, closed its socket, let a deadline pass, lost its context or
// said what cannot be is killed and, when it is gone, followed by another after a pause. What a
// process had not answered goes to the next one, each request to a bounded number of them. What a
// process says is checked as it comes: an answer is to a request that it has, with a descriptor
// where there must be one; a message that cannot be ends it.
//
// Of the arenas it knows what is needed to make them known again: descriptors of slabs and host
// arenas, handles of engines' allocations. Those that a next process cannot have are lost.
//
// Thread safety: one thread's. It waits for nothing but a process that ends with it.
#pragma once

#include <poll.h>

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "base/clock.h"
#include "base/status.h"
#include "base/unique_fd.h"
#include "tiers/device/mover/messages.h"
#include "tiers/device/supervisor/mover_process.h"
#include "tiers/device/supervisor/mover_tier.h"
#include "tiers/device_tier.h"

namespace terrace {

// A request, until it is done.
struct MoverTask {
  MoverBody body;
  std::shared_ptr<const UniqueFd> fd;  // That goes with it.
  MonotonicNs deadline = 0;
  int attempts = 0;  // Processes that had it.
  // Once. What a MoverCreate made comes with it.
  std::function<void(Status, DeviceMemory)> done;
};

class MoverSupervisor {
 public:
  // `lost`: of an arena, before any `done` that says so.
  MoverSupervisor(const MoverTierOptions& options, const Clock& clock,
                  std::function<void(ArenaId)> lost)
      : options_(options), clock_(clock), lost_(std::move(lost)) {}
  // The process gets `stop_ns` to end, and is killed. Tasks are dropped.
  ~MoverSupervisor();

  void Accept(MoverTask task);
  // All that can be done now.
  void Turn();
  // What makes a next turn worth it: one of these, or the time.
  void AddWaits(std::vector<pollfd>& waits) const;
  MonotonicNs NextTurn() const;

  DeviceTierReport Report() const;

 private:
  enum class Phase : uint8_t {
    kNone,       // No process; the next one starts at next_start_.
    kStarting,   // It has not said what it is.
    kRestoring,  // It is told what there is.
    kServing,
    kEnding,  // It was killed.
  };
  enum class ArenaState : uint8_t { kComing, kThere, kLost, kGoing };
  struct Arena {
    ArenaState state = ArenaState::kComing;
    std::optional<MoverBody> again;  // How a next process gets it.
    std::shared_ptr<const UniqueFd> fd;
    bool of_device = false;
  };
  enum class End : uint8_t { kCrash, kHang, kBroken, kDistrusted, kUnready };

  // ---- Requests
  Status Admit(const MoverTask& task);
  Status AdmitArena(ArenaId arena, bool of_device);
  Status CheckArenas(const MoverTask& task) const;
  void Pump();
  // False: the socket is full, or the process ends.
  bool Send(uint64_t request, const MoverBody& body, const UniqueFd* fd);
  // `answered`: by a process.
  void Finish(MoverTask task, Status status, bool answered, MoverAnswer answer = {},
              UniqueFd fd = {});
  DeviceMemory Keep(const MoverTask& task, const MoverAnswer& answer, UniqueFd fd);
  void Lose(ArenaId id, Arena& arena);
  void CheckDeadlines(MonotonicNs now);
  void FailWaiting(const Status& status);

  // ---- The process
  void StartProcess(MonotonicNs now);
  void Receive();
  // Not ok: it cannot be.
  Status Take(MoverSocket::Packet packet);
  Status TakeReady(const MoverReady& ready);
  Status TakeAnswer(uint64_t request, MoverAnswer answer, UniqueFd fd);
  void Kill(End end, std::string why);
  // It is gone.
  void Ended(MonotonicNs now);
  void Requeue(MonotonicNs now);
  void PlanStart(MonotonicNs now);

  const MoverTierOptions options_;
  const Clock& clock_;
  const std::function<void(ArenaId)> lost_;

  Phase phase_ = Phase::kNone;
  std::optional<MoverProcess> process_;
  bool deaf_ = false;               // It is not listened to any more.
  bool full_ = false;               // Its socket is.
  MonotonicNs phase_deadline_ = 0;  // Of kStarting and kRestoring.
  std::optional<End> end_;          // Why it is killed, and in words.
  std::string why_;
  Status ending_;  // `stale` or `unavailable`: its last words.

  MonotonicNs next_start_ = 0;
  std::deque<MonotonicNs> starts_;  // Of the last window.
  int failures_ = 0;                // Ends since a process served for a window.
  MonotonicNs serving_since_ = 0;
  bool resting_ = false;

  uint64_t last_request_ = 0;
  std::deque<MoverTask> waiting_;
  std::map<uint64_t, MoverTask> in_flight_;
  // A bound from below on the deadlines of both.
  MonotonicNs earliest_ = std::numeric_limits<MonotonicNs>::max();

  std::unordered_map<ArenaId, Arena> arenas_;
  std::deque<ArenaId> to_restore_;
  std::map<uint64_t, ArenaId> restoring_;

  uint64_t report_request_ = 0;  // Under way, or 0.
  MonotonicNs report_at_ = 0;    // Its deadline, or when the next is asked for.

  GpuFacts facts_;
  MoverFigures figures_;
  DeviceTierReport counts_;  // What is counted of it.
};

}  // namespace terrace
