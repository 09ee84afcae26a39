// FdBudget: the descriptors that replies hold until their peers have taken them, of all
// connections.
//
// A descriptor that was sent and not received is "in flight": the kernel counts it against the user
// of the sender, which is the daemon, and beyond that user's RLIMIT_NOFILE refuses to pass any to
// anybody. Neither the end of the connection nor that of the peer's process says that it is gone:
// it stays in the peer's queue until somebody reads that or closes the last copy of the peer's
// socket, which may have been handed on to anyone. What does tell is the daemon's own end, which
// has unread bytes (SIOCOUTQ) as long as such a queue has. So the end of a connection whose
// descriptors are not taken is kept, shut down, and charged until they are.
//
// Charged are: descriptors that are queued, those in flight, and an end that is kept, as one. All
// together they are at most `total` and the ends kept, well below RLIMIT_NOFILE, so that neither
// the kernel's count nor the daemon's table is used up. Shares need no setting: a user may hold as
// much as stays free beside it, half of the total when it is alone, and of that a connection as
// much as stays free beside it. A user that holds nothing may have one reply of any size that fits
// what is free. Of a user kMaxEndsKept ends are kept, and those of the connections that are open
// by then: it is given no descriptor while there are so many.
//
// So who hoards takes half at most of what is free from other users, and all from its own: that
// one's requests for descriptors are not served until its processes take theirs or end.
//
// A look costs a system call. Who is short looks at kLooksAtATime connections of its own user, not
// more often than every kLookEvery; ends are looked at by Sweep alone, kEndsAtATime of them.
//
// Owner thread only; owned by Service, and outlives its connections.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <map>
#include <set>
#include <vector>

#include "base/clock.h"
#include "base/status.h"
#include "base/unique_fd.h"

namespace terrace {

class FdBudget {
 public:
  // Of RLIMIT_NOFILE, so that the rest is for clients, slabs and blocks.
  static constexpr uint64_t kPartOfLimit = 4;
  static size_t TotalOf(uint64_t limit) { return limit / kPartOfLimit; }
  static constexpr size_t kMaxEndsKept = 256;  // Of a user.
  static constexpr size_t kLooksAtATime = 16;
  static constexpr MonotonicNs kLookEvery = 10 * kNsPerMs;
  static constexpr size_t kEndsAtATime = 512;

  // Of one connection.
  class Account {
   public:
    Account(FdBudget& budget, uid_t user) : budget_(budget), user_(user) {}
    Account(const Account&) = delete;
    Account& operator=(const Account&) = delete;
    ~Account();

    // Whether so many more may be queued. Looks again at what some of its user may have taken.
    bool MayQueue(size_t count, MonotonicNs now);
    // Its user has too many ends kept: waiting will hardly help.
    bool TooManyEnds() const;
    // `exhausted`: what its user holds.
    Status WhyShort() const;
    void Queue(size_t count);  // Whether they may or not.
    void DropQueued();         // Closed without being sent.
    // After each send, before which there was a Look: `count` of those queued have left with it.
    void Sent(int socket, size_t count, MonotonicNs now);
    // Looks at the socket: whether all are taken, or since when the peer takes nothing.
    void Look(MonotonicNs now);
    // The connection has ended. Closes its socket, or keeps it until the peer's queue is empty.
    void Leave(UniqueFd socket, MonotonicNs now);

    size_t held() const { return queued_ + in_flight_; }
    size_t in_flight() const { return in_flight_; }
    MonotonicNs idle_since() const { return idle_since_; }  // While something is in flight.

   private:
    friend class FdBudget;
    void Land();  // Nothing of it is in flight any more.

    FdBudget& budget_;
    const uid_t user_;
    size_t queued_ = 0;
    size_t in_flight_ = 0;  // At most: the peer may have taken some since the last look.
    int socket_ = -1;       // While something is in flight.
    int unread_ = 0;        // What SIOCOUTQ said last.
    int later_ = 0;         // Of that what was sent after the last descriptor, at least.
    MonotonicNs idle_since_ = 0;
  };

  void SetTotal(size_t total) { total_ = total; }
  size_t total() const { return total_; }
  size_t used() const { return used_; }
  size_t ends_kept() const { return ends_.size(); }
  // Lets go of ends whose peers' queues are empty, looking at the next of them in turn. To be
  // called about once a second.
  void Sweep();

 private:
  // A socket whose connection has ended.
  struct End {
    UniqueFd socket;
    uid_t user = 0;
    size_t charge = 0;
  };
  // Who holds something.
  struct User {
    size_t used = 0;
    size_t ends = 0;
    std::set<Account*> in_flight;
    Account* looked_at = nullptr;  // The last of those; it may be gone.
    MonotonicNs looked = 0;
  };
  bool HasRoom(const Account& account, size_t count) const;
  const User* Find(uid_t user) const;
  void LookAtSome(uid_t user, MonotonicNs now);
  void Charge(uid_t user, size_t count);
  void Return(uid_t user, size_t count);

  size_t total_ = 16384;
  size_t used_ = 0;
  std::map<uid_t, User> users_;
  std::vector<End> ends_;
  size_t next_end_ = 0;  // To be looked at.
};

}  // namespace terrace
