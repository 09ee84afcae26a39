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
// together they are at most `total`, well below RLIMIT_NOFILE, so that neither the kernel's count
// nor the daemon's table is used up. Shares need no setting: a user may hold as much as stays free
// beside it, half of the total when it is alone. A quarter of that is kept for connections that
// come to hold kFewFds at most, and of the rest a connection may hold as much as stays free beside
// it: so who hoards leaves its own user's others a little and other users a lot. A user that holds
// nothing may have one reply of any size that fits what is free.
//
// Owner thread only; owned by Service, and outlives its connections.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <map>
#include <set>
#include <vector>

#include "base/clock.h"
#include "base/unique_fd.h"

namespace terrace {

class FdBudget {
 public:
  // Of RLIMIT_NOFILE, so that the rest is for clients, slabs and blocks.
  static constexpr uint64_t kPartOfLimit = 4;
  static size_t TotalOf(uint64_t limit) { return limit / kPartOfLimit; }
  // A hello's, or those of a few new slabs.
  static constexpr size_t kFewFds = 4;

  // Of one connection.
  class Account {
   public:
    Account(FdBudget& budget, uid_t user) : budget_(budget), user_(user) {}
    Account(const Account&) = delete;
    Account& operator=(const Account&) = delete;
    ~Account();

    // Whether so many more may be queued. Looks again at what others may have taken.
    bool MayQueue(size_t count, MonotonicNs now);
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
  size_t ends_kept() const { return left_.size(); }
  // Looks at all that is in flight. To be called about once a second.
  void Recount(MonotonicNs now);

 private:
  // A socket whose connection has ended.
  struct Left {
    UniqueFd socket;
    uid_t user = 0;
    size_t charge = 0;
  };
  bool HasRoom(const Account& account, size_t count) const;
  void Charge(uid_t user, size_t count);
  void Return(uid_t user, size_t count);

  size_t total_ = 16384;
  size_t used_ = 0;
  std::map<uid_t, size_t> used_by_;
  std::set<Account*> in_flight_;
  std::vector<Left> left_;
  MonotonicNs recounted_ = 0;
};

}  // namespace terrace
