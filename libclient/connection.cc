#include "libclient/connection.h"

#include <poll.h>
#include <sys/epoll.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <new>
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

// A call under way: its caller's, reached through pending_ under mu_.
struct Connection::Slot {
  Slot(Connection& its, wire::Type its_type) : connection(its), type(its_type) {}
  ~Slot() { connection.Leave(*this); }
  Slot(const Slot&) = delete;
  Slot& operator=(const Slot&) = delete;

  Connection& connection;
  const wire::Type type;
  uint64_t request = 0;
  CondVar changed;
  Slot* told = this;  // Whose `changed` tells of its reply: that of the group it is waited for in.
  std::vector<Frame> frames;
  bool sent = false;
  bool receives = false;  // Has the role; written by its caller only.
  bool waits = false;     // Sleeps on `changed`, and would take the role.
  bool done = false;
  bool progressed = false;
  messages::ProgressEvent progress;
};

Result<std::shared_ptr<Connection>> Connection::Make(FrameSocket socket, int wake,
                                                     ConnectionEvents& events) {
  UniqueFd unread(::epoll_create1(EPOLL_CLOEXEC));
  if (!unread) return SystemError("epoll_create1", errno);
  epoll_event item{.events = EPOLLIN | EPOLLRDHUP | EPOLLONESHOT, .data = {.fd = socket.fd()}};
  if (::epoll_ctl(unread.get(), EPOLL_CTL_ADD, socket.fd(), &item) != 0) {
    return SystemError("epoll_ctl", errno);
  }
  return std::shared_ptr<Connection>(
      new Connection(std::move(socket), std::move(unread), wake, events));
}

// ---- The receiving role

void Connection::Watch(bool on) {
  epoll_event item{.events = on ? EPOLLIN | EPOLLRDHUP | EPOLLONESHOT : uint32_t{EPOLLONESHOT},
                   .data = {.fd = socket_.fd()}};
  ::epoll_ctl(unread_.get(), EPOLL_CTL_MOD, socket_.fd(), &item);
}

bool Connection::TakeRole() {
  if (receiving_) return false;
  receiving_ = true;
  Watch(false);
  return true;
}

void Connection::GiveRole() {
  receiving_ = false;
  Watch(true);
  OfferRole();
}

void Connection::OfferRole() {
  for (const auto& [request, slot] : pending_) {
    if (!slot->waits || slot->done) continue;
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
  Slot slot(*this, type);
  RETURN_IF_ERROR(Register(slot));
  RETURN_IF_ERROR(Send(slot, body, fds, deadline));
  return Wait(slot, deadline, progress, AtDeadline::kGiveUp);
}

void Connection::EndCall::operator()(Slot* slot) const {
  delete slot;
}

Result<Connection::Begun> Connection::Start(wire::Type type, std::string_view body,
                                            Deadline deadline) {
  if (body.size() > wire::kMaxFrameBytes) {
    return Status(Code::kInvalidArgument, "the request is longer than a frame may be");
  }
  Begun slot(new Slot(*this, type));
  RETURN_IF_ERROR(Register(*slot));
  RETURN_IF_ERROR(Send(*slot, body, {}, deadline));
  // Nobody waits for it yet: whoever comes next receives.
  MutexLock lock(mu_);
  ReturnRole(*slot);
  return slot;
}

Status Connection::Register(Slot& slot) {
  MutexLock lock(mu_);
  if (!broken_.ok()) return broken_;
  if (pending_.size() >= kMaxPending) return {Code::kExhausted, "more than 256 calls at once"};
  slot.request = next_request_++;
  pending_.emplace(slot.request, &slot);
  return {};
}

void Connection::Leave(Slot& slot) {
  MutexLock lock(mu_);
  GiveUp(slot);
  ReturnRole(slot);
}

void Connection::GiveUp(Slot& slot) {
  const bool awaited = pending_.erase(slot.request) > 0 && slot.sent && !slot.done;
  if (!awaited || !broken_.ok()) return;
  if (late_.size() >= kMaxLate) late_.erase(late_.begin());
  late_.emplace(slot.request, slot.type);
}

void Connection::ReturnRole(Slot& slot) {
  if (slot.receives) {
    slot.receives = false;
    GiveRole();
  } else if (!receiving_) {
    OfferRole();  // It may have been offered to this one.
  }
}

Status Connection::Send(Slot& slot, std::string_view body, std::span<const int> fds,
                        Deadline deadline) {
  {
    MutexLock lock(mu_);
    while (sending_ && !deadline.passed())
      sent_.wait_until(mu_, deadline.point());
    if (sending_) return {Code::kDeadlineExceeded, "the daemon does not read its socket"};
    sending_ = true;
    slot.receives = TakeRole();
  }
  FrameSocket::Outgoing frame({.type = slot.type, .request = slot.request}, body, fds);
  Status status;
  for (;;) {
    const Result<bool> whole = socket_.SendSome(frame);
    status = whole.status();
    if (!status.ok() || *whole) break;
    status = AwaitRoom(slot, deadline);
    if (!status.ok()) break;
  }
  // Where part of the frame is out, nothing can follow it; a request none of which is out harms
  // none.
  // The daemon may have said why it hung up.
  if (!status.ok() && slot.receives) Receive(std::nullopt);
  const bool harmless =
      status.ok() || (frame.sent == 0 && status.code() == Code::kDeadlineExceeded);
  if (!harmless) Break({Code::kUnavailable, status.message()});
  MutexLock lock(mu_);
  sending_ = false;
  sent_.notify_one();
  slot.sent = status.ok();
  // Why it broke may be known better by whoever received.
  return status.ok() || broken_.ok() ? status : broken_;
}

Status Connection::AwaitRoom(Slot& slot, Deadline deadline) {
  {
    MutexLock lock(mu_);
    if (!broken_.ok()) return broken_;
    if (!slot.receives) slot.receives = TakeRole();
    // A hang-up is told even while another has the role: this takes note of it.
    epoll_event seen;
    if (!slot.receives) ::epoll_wait(unread_.get(), &seen, 1, 0);
  }
  std::array<pollfd, 2> items{{{.fd = socket_.fd(), .events = POLLOUT, .revents = 0},
                               {.fd = unread_.get(), .events = POLLIN, .revents = 0}}};
  if (slot.receives) {
    items[0].events |= POLLIN;
    items[1].fd = -1;
  }
  const timespec left = deadline.left();
  const int ready = ::ppoll(items.data(), items.size(), &left, nullptr);
  if (ready < 0 && errno != EINTR) return SystemError("poll", errno);
  if (ready == 0) return {Code::kDeadlineExceeded, "the daemon does not read its socket"};
  if (slot.receives && (items[0].revents & POLLIN) != 0) Receive(std::nullopt);
  return {};
}

// ---- Waiting for a reply

Connection::Step Connection::Next(Slot& slot, Deadline deadline, messages::ProgressEvent* news) {
  MutexLock lock(mu_);
  for (;;) {
    if (slot.done || !broken_.ok()) return Step::kEnd;
    if (slot.progressed) {
      slot.progressed = false;
      *news = slot.progress;
      if (slot.receives) {
        slot.receives = false;
        GiveRole();
      }
      return Step::kReport;
    }
    if (deadline.passed()) return Step::kEnd;
    if (!slot.receives) slot.receives = TakeRole();
    if (slot.receives) return Step::kReceive;
    slot.waits = true;
    slot.changed.wait_until(mu_, deadline.point());
    slot.waits = false;
  }
}

Result<std::vector<Frame>> Connection::Wait(Slot& slot, Deadline deadline, const Progress& progress,
                                            AtDeadline then) {
  messages::ProgressEvent news;
  for (Step step; (step = Next(slot, deadline, &news)) != Step::kEnd;) {
    if (step == Step::kReceive) {
      Receive(deadline);
    } else if (progress) {
      progress(news.done_bytes, news.total_bytes);
    }
  }
  {
    MutexLock lock(mu_);
    if (!slot.done && !broken_.ok()) return broken_;
    if (!slot.done) {
      // Under the same lock, so that a reply that comes now is found in late_.
      if (then == AtDeadline::kGiveUp) GiveUp(slot);
      ReturnRole(slot);
      return Status(Code::kDeadlineExceeded, "no reply from the daemon in time");
    }
  }
  // An error may also end a reply of several frames.
  const Frame& last = slot.frames.back();
  if (last.header.type == wire::Type::kError) {
    messages::Error error;
    if (!messages::Decode(last.body, &error)) return BadReply();
    return StatusOf(error);
  }
  if (last.header.type != ReplyOf(slot.type)) return BadReply();
  return std::move(slot.frames);
}

std::optional<size_t> Connection::FindEnded(std::span<Slot* const> slots) const {
  if (!broken_.ok()) return 0;
  for (size_t i = 0; i < slots.size(); ++i) {
    if (slots[i]->done) return i;
  }
  return std::nullopt;
}

std::optional<size_t> Connection::WaitAny(std::span<Slot* const> begun, Deadline deadline) {
  // One of them waits and receives for all.
  Slot& first = *begun.front();
  for (;;) {
    {
      MutexLock lock(mu_);
      const std::optional<size_t> ended = FindEnded(begun);
      const bool over = ended || deadline.passed();
      for (Slot* slot : begun)
        slot->told = over ? slot : &first;
      if (over) {
        ReturnRole(first);
        return ended;
      }
      if (!first.receives) first.receives = TakeRole();
      if (!first.receives) {
        first.waits = true;
        first.changed.wait_until(mu_, deadline.point());
        first.waits = false;
        continue;
      }
    }
    Receive(deadline);
  }
}

void Connection::Receive(std::optional<Deadline> deadline) noexcept try {
  Status status = socket_.Read(deadline);
  while (status.ok()) {
    Result<std::optional<Frame>> frame = socket_.Next();
    if (frame && !*frame) return;
    status = frame.status();
    if (frame) Dispatch(std::move(**frame));
  }
  Break(status);
} catch (const std::bad_alloc&) {
  Break({Code::kExhausted, "out of memory"});  // Short enough to need none.
}

void Connection::Dispatch(Frame frame) {
  const wire::Type type = frame.header.type;
  if (type == wire::Type::kError && frame.header.request == 0) {
    // About the connection, and the last that comes by it.
    messages::Error error;
    if (messages::Decode(frame.body, &error)) Break(StatusOf(error));
    return;
  }
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
      slot.told->changed.notify_one();
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

void Connection::Serve(int limit_ms) {
  const Deadline limit = Deadline::In(limit_ms);
  while (broken().ok()) {
    const int wait_ms = limit_ms < 0 ? -1 : static_cast<int>(limit.left_ms());
    std::array<pollfd, 2> items{{{.fd = unread_.get(), .events = POLLIN, .revents = 0},
                                 {.fd = wake_, .events = POLLIN, .revents = 0}}};
    const int ready = ::poll(items.data(), items.size(), wait_ms);
    if (ready < 0) continue;
    if (ready == 0) return;
    bool mine = false;
    if (items[0].revents != 0) {
      MutexLock lock(mu_);
      mine = TakeRole();  // Else a caller was faster, and will watch the socket again.
      epoll_event seen;
      if (!mine) ::epoll_wait(unread_.get(), &seen, 1, 0);
    }
    if (mine) {
      Receive(std::nullopt);
      MutexLock lock(mu_);
      GiveRole();
    }
    if (items[1].revents != 0) return;
  }
}

}  // namespace terrace::client
