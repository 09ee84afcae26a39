#include "daemon/service/fd_budget.h"

#include <linux/sockios.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <string>
#include <utility>

namespace terrace {

namespace {

// What the peer's queue has of this socket, as the kernel counts it; 0 when it cannot be told.
int Unread(int socket) {
  int bytes = 0;
  return ::ioctl(socket, SIOCOUTQ, &bytes) == 0 ? bytes : 0;
}

// What the peer has sent holds its descriptors too, perhaps the peer's own end of this socket,
// which would then never be closed. After the shutdown no more can come.
void ShutDownAndDrain(int socket) {
  (void)::shutdown(socket, SHUT_RDWR);
  std::array<char, 16384> bytes;
  for (;;) {
    const ssize_t count = ::recv(socket, bytes.data(), bytes.size(), MSG_DONTWAIT);
    if (count == 0 || (count < 0 && errno != EINTR)) return;
  }
}

}  // namespace

FdBudget::Account::~Account() {
  DropQueued();
  Land();
}

bool FdBudget::Account::MayQueue(size_t count, MonotonicNs now) {
  if (budget_.HasRoom(*this, count)) return true;
  Look(now);
  budget_.LookAtSome(user_, now);
  return budget_.HasRoom(*this, count);
}

bool FdBudget::Account::TooManyEnds() const {
  const User* user = budget_.Find(user_);
  return user != nullptr && user->ends >= kMaxEndsKept;
}

Status FdBudget::Account::WhyShort() const {
  const User* user = budget_.Find(user_);
  return {Code::kExhausted,
          "descriptors: the connections of user " + std::to_string(user_) + " have not taken " +
              std::to_string(user == nullptr ? 0 : user->used) +
              " that were sent to them, of at most " + std::to_string(budget_.total_) +
              " of all users; " + std::to_string(user == nullptr ? 0 : user->ends) +
              " of them have ended: retry when its processes have taken theirs, "
              "or have ended"};
}

void FdBudget::Account::Queue(size_t count) {
  queued_ += count;
  budget_.Charge(user_, count);
}

void FdBudget::Account::DropQueued() {
  budget_.Return(user_, queued_);
  queued_ = 0;
}

void FdBudget::Account::Sent(int socket, size_t count, MonotonicNs now) {
  if (count == 0 && in_flight_ == 0) return;
  if (in_flight_ == 0) {
    budget_.users_[user_].in_flight.insert(this);  // Charged for what is queued.
    socket_ = socket;
    idle_since_ = now;
    unread_ = 0;
  }
  queued_ -= count;
  in_flight_ += count;
  const int unread = Unread(socket_);
  if (unread < unread_) idle_since_ = now;
  later_ = count > 0 ? 0 : later_ + std::max(unread - unread_, 0);
  unread_ = unread;
}

void FdBudget::Account::Look(MonotonicNs now) {
  if (in_flight_ == 0) return;
  const int unread = Unread(socket_);
  // What we send adds to it, so less than before means that the peer has taken something.
  if (unread < unread_) idle_since_ = now;
  unread_ = unread;
  // It reads in order: what is left may be younger than every descriptor.
  if (unread > later_) return;
  Land();
}

void FdBudget::Account::Leave(UniqueFd socket, MonotonicNs now) {
  DropQueued();
  Look(now);
  if (in_flight_ == 0) return;
  ShutDownAndDrain(socket.get());
  const size_t charge = in_flight_ + 1;
  budget_.Charge(user_, charge);
  ++budget_.users_[user_].ends;
  budget_.ends_.push_back({std::move(socket), user_, charge});
  Land();
}

void FdBudget::Account::Land() {
  if (in_flight_ == 0) return;
  budget_.users_[user_].in_flight.erase(this);
  budget_.Return(user_, in_flight_);
  in_flight_ = 0;
  later_ = 0;
}

void FdBudget::Sweep() {
  for (size_t left = std::min(kEndsAtATime, ends_.size()); left > 0; --left) {
    if (next_end_ >= ends_.size()) next_end_ = 0;
    End& end = ends_[next_end_];
    if (Unread(end.socket.get()) != 0) {
      ++next_end_;
      continue;
    }
    --users_[end.user].ends;
    Return(end.user, end.charge);
    std::swap(end, ends_.back());
    ends_.pop_back();
  }
}

void FdBudget::LookAtSome(uid_t uid, MonotonicNs now) {
  const auto found = users_.find(uid);
  if (found == users_.end() || found->second.in_flight.empty()) return;
  User& user = found->second;
  if (user.looked != 0 && now - user.looked < kLookEvery) return;
  user.looked = now;
  // The last look may end the user.
  for (size_t left = std::min(kLooksAtATime, user.in_flight.size()); left > 0; --left) {
    auto next = user.in_flight.upper_bound(user.looked_at);
    if (next == user.in_flight.end()) next = user.in_flight.begin();
    user.looked_at = *next;
    (*next)->Look(now);
  }
}

const FdBudget::User* FdBudget::Find(uid_t user) const {
  const auto found = users_.find(user);
  return found == users_.end() ? nullptr : &found->second;
}

bool FdBudget::HasRoom(const Account& account, size_t count) const {
  const User* user = Find(account.user_);
  const size_t free = total_ - std::min(total_, used_);
  if (user == nullptr) return count <= free;
  if (user->ends >= kMaxEndsKept) return false;
  const size_t share = (free + user->used) / 2;  // What it holds then, and what is free beside it.
  const size_t held = user->used + count;
  return held <= share && account.held() + count <= share - held;
}

void FdBudget::Charge(uid_t user, size_t count) {
  if (count == 0) return;
  used_ += count;
  users_[user].used += count;
}

void FdBudget::Return(uid_t user, size_t count) {
  if (count == 0) return;
  used_ -= count;
  const auto found = users_.find(user);
  found->second.used -= count;
  if (found->second.used == 0) users_.erase(found);
}

}  // namespace terrace
