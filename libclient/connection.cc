#include "libclient/connection.h"

#include <sys/epoll.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <utility>

#include "libclient/admin_messages.h"

namespace terrace::client {
namespace {

wire::Type ReplyOf(wire::Type request) {
  return static_cast<wire::Type>(static_cast<uint16_t>(request) + 1);
}

// The status that an Error message stands for; numbers of a newer daemon count as internal.
Status StatusOf(const messages::Error& error) {
  const bool known = error.code > 0 && error.code < static_cast<uint32_t>(kCodeCount);
  return {known ? static_cast<Code>(error.code) : Code::kInternal, error.message};
}

}  // namespace

// A call that waits: lives on its caller's stack, reached through pending_ under mu_.
struct Connection::Slot {
  uint64_t request = 0;
  wire::Type type = wire::Type::kError;
  CondVar changed;
  std::vector<Frame> frames;
  bool done = false;
  bool progressed = false;
  messages::ProgressEvent progress;
};

Result<std::shared_ptr<Connection>> Connection::Make(FrameSocket socket, int wake,
                                                     ConnectionEvents& events) {
  UniqueFd epoll(::epoll_create1(EPOLL_CLOEXEC));
  if (!epoll) return SystemError("epoll_create1", errno);
  epoll_event item{.events = EPOLLIN, .data = {.fd = wake}};
  if (::epoll_ctl(epoll.get(), EPOLL_CTL_ADD, wake, &item) != 0) {
    return SystemError("epoll_ctl", errno);
  }
  item = {.events = EPOLLIN | EPOLLRDHUP | EPOLLONESHOT, .data = {.fd = socket.fd()}};
  if (::epoll_ctl(epoll.get(), EPOLL_CTL_ADD, socket.fd(), &item) != 0) {
    return SystemError("epoll_ctl", errno);
  }
  return std::shared_ptr<Connection>(new Connection(std::move(socket), std::move(epoll), events));
}

// The socket is watched one-shot: after it fired, it is silent until the role is given back.
void Connection::Watch(bool on) {
  epoll_event item{.events = on ? EPOLLIN | EPOLLRDHUP | EPOLLONESHOT : uint32_t{EPOLLONESHOT},
                   .data = {.fd = socket_.fd()}};
  ::epoll_ctl(epoll_.get(), EPOLL_CTL_MOD, socket_.fd(), &item);
}

void Connection::TakeRole() {
  receiving_ = true;
  Watch(false);
}

void Connection::GiveRole() {
  receiving_ = false;
  Watch(true);
  // A waiting caller takes it over; until it has, the client's thread would do.
  for (const auto& [request, slot] : pending_) {
    if (slot->done) continue;
    slot->changed.notify_one();
    return;
  }
}

Status Connection::BadReply() {
  Status why(Code::kDataLoss, "the daemon's reply is not of the kind that was asked for");
  Break(why);
  return why;
}

Status Connection::broken() const {
  MutexLock lock(mu_);
  return broken_;
}

void Connection::Break(const Status& why) {
  {
    MutexLock lock(mu_);
    if (!broken_.ok()) return;
    broken_ = why;
    for (const auto& [request, slot] : pending_)
      slot->changed.notify_one();
  }
  socket_.Shutdown();
  events_.Broken(*this);
}

Result<std::vector<Frame>> Connection::Exchange(wire::Type type, std::string_view body,
                                                std::span<const int> fds, Deadline deadline,
                                                const Progress& progress) {
  if (body.size() > wire::kMaxFrameBytes || fds.size() > wire::kMaxFds) {
    return Status(Code::kInvalidArgument, "the request is longer than a frame may be");
  }
  Slot slot;
  slot.type = type;
  bool receiver = false;
  {
    MutexLock lock(mu_);
    if (!broken_.ok()) return broken_;
    if (pending_.size() >= kMaxPending) {
      return Status(Code::kExhausted, "more than 256 calls at once");
    }
    slot.request = next_request_++;
    pending_.emplace(slot.request, &slot);
    // Taken before sending, so that the reply wakes this thread alone.
    receiver = !receiving_;
    if (receiver) TakeRole();
  }
  const Status sent = Send(slot, body, fds, deadline);
  if (receiver) {
    if (sent.ok()) ReceiveFor(slot, deadline);
    MutexLock lock(mu_);
    GiveRole();
  }
  return Wait(slot, deadline, progress);
}

Status Connection::Send(const Slot& slot, std::string_view body, std::span<const int> fds,
                        Deadline deadline) {
  {
    MutexLock lock(mu_);
    while (sending_ && !deadline.passed())
      sent_.wait_until(mu_, deadline.point());
    if (sending_) return {Code::kDeadlineExceeded, "the daemon does not read its socket"};
    sending_ = true;
  }
  const Status sent =
      socket_.Send({.type = slot.type, .request = slot.request}, body, fds, deadline);
  // Part of the frame may be out: nothing can follow it.
  if (!sent.ok()) Break({Code::kUnavailable, sent.message()});
  MutexLock lock(mu_);
  sending_ = false;
  sent_.notify_one();
  return sent;
}

Result<std::vector<Frame>> Connection::Wait(Slot& slot, Deadline deadline,
                                            const Progress& progress) {
  mu_.lock();
  while (!slot.done && broken_.ok() && (slot.progressed || !deadline.passed())) {
    if (slot.progressed) {
      slot.progressed = false;
      const messages::ProgressEvent news = slot.progress;
      mu_.unlock();
      if (progress) progress(news.done_bytes, news.total_bytes);
      mu_.lock();
    } else if (!receiving_) {
      TakeRole();
      mu_.unlock();
      ReceiveFor(slot, deadline);
      mu_.lock();
      GiveRole();
    } else {
      slot.changed.wait_until(mu_, deadline.point());
    }
  }
  pending_.erase(slot.request);
  const Status broken = broken_;
  if (!slot.done && broken.ok()) {
    if (late_.size() >= kMaxLate) late_.erase(late_.begin());
    late_.emplace(slot.request, slot.type);
  }
  mu_.unlock();

  if (!slot.done) {
    if (!broken.ok()) return broken;
    return Status(Code::kDeadlineExceeded, "no reply from the daemon in time");
  }
  const Frame& first = slot.frames.front();
  if (first.header.type == wire::Type::kError) {
    messages::Error error;
    if (!messages::Decode(first.body, &error)) return BadReply();
    return StatusOf(error);
  }
  if (first.header.type != ReplyOf(slot.type)) return BadReply();
  return std::move(slot.frames);
}

void Connection::ReceiveFor(const Slot& slot, Deadline deadline) {
  while (Receive(deadline)) {
    MutexLock lock(mu_);
    if (slot.done || slot.progressed || !broken_.ok() || deadline.passed()) return;
  }
}

bool Connection::Receive(std::optional<Deadline> deadline) {
  Status status = socket_.Read(deadline);
  while (status.ok()) {
    Result<std::optional<Frame>> frame = socket_.Next();
    if (frame && !*frame) return true;
    status = frame.status();
    if (frame) Dispatch(std::move(**frame));
  }
  Break(status);
  return false;
}

void Connection::Dispatch(Frame frame) {
  const wire::Type type = frame.header.type;
  bool late = false;
  {
    MutexLock lock(mu_);
    const auto it = pending_.find(frame.header.request);
    if (it != pending_.end()) {
      Slot& slot = *it->second;
      if (type == wire::Type::kProgressEvent) {
        slot.progressed = messages::Decode(frame.body, &slot.progress);
      } else {
        messages::AttachBlocksReply part;
        const bool more = type == wire::Type::kAttachBlocksReply &&
                          messages::Decode(frame.body, &part) && !part.last;
        slot.frames.push_back(std::move(frame));
        slot.done = !more;
      }
      slot.changed.notify_one();
      return;
    }
    late = late_.erase(frame.header.request) > 0;
  }
  if (late) {
    events_.LateReply(*this, frame);
  } else {
    events_.Event(*this, frame);
  }
}

void Connection::Serve() {
  for (;;) {
    std::array<epoll_event, 2> fired;
    const int count = ::epoll_wait(epoll_.get(), fired.data(), fired.size(), -1);
    bool woken = false;
    bool readable = false;
    for (int i = 0; i < count; ++i) {
      (fired[static_cast<size_t>(i)].data.fd == socket_.fd() ? readable : woken) = true;
    }
    if (readable) {
      mu_.lock();
      const bool mine = !receiving_;  // Else a caller was faster, and will watch it again.
      if (mine) receiving_ = true;
      mu_.unlock();
      if (mine) {
        Receive(std::nullopt);
        MutexLock lock(mu_);
        GiveRole();
      }
    }
    if (woken || !broken().ok()) return;
  }
}

}  // namespace terrace::client
