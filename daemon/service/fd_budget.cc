#include "daemon/service/fd_budget.h"

#include <linux/sockios.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cerrno>

namespace terrace {

namespace {

// A look at everything costs a system call for each peer that is behind: not more often than this.
constexpr MonotonicNs kRecountEvery = 10 * kNsPerMs;

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
  budget_.Return(user_, in_flight_);
  budget_.in_flight_.erase(this);
}

bool FdBudget::Account::MayQueue(size_t count, MonotonicNs now) {
  if (budget_.HasRoom(*this, count)) return true;
  if (now - budget_.recounted_ < kRecountEvery) return false;
  budget_.Recount(now);
  return budget_.HasRoom(*this, count);
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
    budget_.in_flight_.insert(this);
    socket_ = socket;
    idle_since_ = now;
    unread_ = 0;
  }
  queued_ -= count;
  in_flight_ += count;
  const int unread = Unread(socket_);
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
  budget_.Return(user_, in_flight_);
  in_flight_ = 0;
  later_ = 0;
  budget_.in_flight_.erase(this);
}

void FdBudget::Account::Leave(UniqueFd socket, MonotonicNs now) {
  DropQueued();
  Look(now);
  if (in_flight_ == 0) return;
  ShutDownAndDrain(socket.get());
  budget_.Charge(user_, 1);
  budget_.left_.push_back({std::move(socket), user_, in_flight_ + 1});
  in_flight_ = 0;  // The charge goes over to what is left.
  budget_.in_flight_.erase(this);
}

void FdBudget::Recount(MonotonicNs now) {
  recounted_ = now;
  for (auto next = in_flight_.begin(); next != in_flight_.end();)
    (*next++)->Look(now);
  std::erase_if(left_, [&](const Left& left) {
    if (Unread(left.socket.get()) != 0) return false;
    Return(left.user, left.charge);
    return true;
  });
}

bool FdBudget::HasRoom(const Account& account, size_t count) const {
  const auto found = used_by_.find(account.user_);
  const size_t user = found == used_by_.end() ? 0 : found->second;
  const size_t free = total_ - std::min(total_, used_);
  if (user == 0) return count <= free;
  const size_t share = (free + user) / 2;  // What it holds then, and what is free beside it.
  if (account.held() + count <= kFewFds) return user + count <= share;
  const size_t for_many = share - share / 4;
  return user + count <= for_many && account.held() + count <= for_many - (user + count);
}

void FdBudget::Charge(uid_t user, size_t count) {
  used_ += count;
  used_by_[user] += count;
}

void FdBudget::Return(uid_t user, size_t count) {
  if (count == 0) return;
  used_ -= count;
  const auto found = used_by_.find(user);
  found->second -= count;
  if (found->second == 0) used_by_.erase(found);
}

}  // namespace terrace
