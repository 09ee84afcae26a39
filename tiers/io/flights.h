// Flights: what DiskIo promises and what is the same for every way to the kernel: which requests
// are taken, which are in flight, who is answered, when and with what. An engine (threads, ring)
// brings the requests to the kernel and tells here what it said.
//
// A flight is one accepted request until it ends. Ends come one at a time, under `ends_mu_`, with
// their callbacks: so callbacks need no lock of their own, and a request that comes back while its
// deadline passes is answered once. Deadlines have a thread that never enters the kernel for a
// request, so they hold although every other thread hangs there.
//
// Order of the mutexes: ends_mu_, then mu_ or one of the engine. Callbacks run under ends_mu_
// alone: they may submit, which takes mu_, but not destroy the DiskIo.
//
// Thread safety: all of it, but for Flight, which its engine hands from thread to thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "base/mutex.h"
#include "base/status.h"
#include "tiers/io/disk_io.h"

namespace terrace {

inline constexpr uint32_t kMaxIoDepth = 8192;
inline constexpr size_t kMaxIoBytes = 1u << 30;  // Of one request.

struct Flight {
  uint64_t id = 0;  // Never used twice; the lowest bits are the place.
  // The pieces before `piece` are done, and its iovec is what is left of it.
  IoRequest request;
  size_t piece = 0;
  uint64_t offset = 0;  // In the file, of what is left.
  size_t bytes = 0;     // Of all pieces.
  bool direct = false;
  uint32_t again = 0;  // How often the kernel wanted to be asked again.
  // Of the ring: it was last told by a place of RegisteredMemory; it shall not be any more.
  bool registered = false;
  bool plain = false;

  std::span<const iovec> rest() const { return std::span(request.memory).subspan(piece); }
};

class Flights {
 public:
  // The engine's side of a deadline: true when the kernel does not know of the flight yet and never
  // will. Otherwise the engine does what it can to end it. On the thread of deadlines.
  using Withdraw = std::function<bool(Flight&)>;

  Flights(const DiskIoOptions& options, const Clock& clock);
  Flights(const Flights&) = delete;
  Flights& operator=(const Flights&) = delete;

  Result<IoFileId> AddFile(bool direct) EXCLUDES(mu_);
  void RemoveFile(IoFileId file) EXCLUDES(mu_);

  // All of them or none, as DiskIo::Submit says. Flights stay where they are until they end.
  Result<std::vector<Flight*>> Admit(std::vector<IoRequest> requests) EXCLUDES(mu_);
  // Null when it ended.
  Flight* Find(uint64_t id) EXCLUDES(mu_);

  // False: it has its answer already and need not be started; Return it as cancelled.
  bool Wanted(const Flight& flight) EXCLUDES(mu_);
  // The kernel moved that many bytes, or failed with -errno. True: what is left must be asked for
  // (again); false: the flight ended, or is somebody else's, and must not be touched.
  bool Return(Flight& flight, int64_t result) EXCLUDES(ends_mu_, mu_);

  // The thread of deadlines: returns after Finish.
  void WatchDeadlines(const Withdraw& withdraw) EXCLUDES(ends_mu_, mu_);

  // ---- The end
  // Admit refuses from here on.
  void Close() EXCLUDES(mu_);
  // Whether nothing is in flight, after at most that long.
  bool WaitUntilEmpty(MonotonicNs at_most_ns) EXCLUDES(mu_);
  bool Empty() const EXCLUDES(mu_);
  // Answers what has no answer yet, and calls nothing after that.
  void Forget(const Withdraw& withdraw) EXCLUDES(ends_mu_, mu_);
  void Finish() EXCLUDES(mu_);

  IoReport Report() const EXCLUDES(mu_);

 private:
  struct Place {
    Flight flight;
    bool used = false;
    bool answered = false;  // And not ended: it is overdue.
  };
  struct File {
    bool used = false;
    bool direct = false;
    uint32_t in_flight = 0;
  };

  Status Check(const IoRequest& request) const REQUIRES(mu_);
  // What is left after `result`; nothing: `status` is the answer.
  static bool GoesOn(Flight& flight, int64_t result, Status& status);
  void End(Flight& flight, const Status& status) EXCLUDES(ends_mu_, mu_);
  bool AnswerOverdue(const Withdraw& withdraw) EXCLUDES(ends_mu_, mu_);
  // Gives `flight` its answer, which is not ok, before its end, and ends it if it can be withdrawn.
  void AnswerEarly(Flight& flight, const Status& status, const Withdraw& withdraw)
      REQUIRES(ends_mu_) EXCLUDES(mu_);
  void Count(const Flight& flight, const Status& status) REQUIRES(mu_);
  IoRequest Free(Place& place) REQUIRES(mu_);
  Place& PlaceOf(const Flight& flight) REQUIRES(mu_);

  const DiskIoOptions options_;
  const Clock& clock_;

  // One end at a time, with its callbacks.
  Mutex ends_mu_;
  bool forgotten_ GUARDED_BY(ends_mu_) = false;

  mutable Mutex mu_;
  CondVar nearer_;                             // A deadline before watching_until_, or Finish.
  CondVar empty_;                              // Nothing is in flight any more.
  std::vector<Place> places_ GUARDED_BY(mu_);  // As many as the depth; never moved.
  std::vector<uint32_t> free_ GUARDED_BY(mu_);
  std::vector<File> files_ GUARDED_BY(mu_);
  std::vector<IoFileId> free_files_ GUARDED_BY(mu_);
  std::set<std::pair<MonotonicNs, uint32_t>> deadlines_ GUARDED_BY(mu_);  // With the place.
  MonotonicNs watching_until_ GUARDED_BY(mu_) = 0;
  uint64_t last_id_ GUARDED_BY(mu_) = 0;
  bool closed_ GUARDED_BY(mu_) = false;
  bool finished_ GUARDED_BY(mu_) = false;
  IoReport counts_ GUARDED_BY(mu_);
};

}  // namespace terrace
