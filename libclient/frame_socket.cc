#include "libclient/frame_socket.h"

#include <poll.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <utility>

namespace terrace::client {
namespace {

constexpr size_t kReadBytes = 64 << 10;

// A read that blocks gives up after this long (SO_RCVTIMEO): it saves the poll before it, as long
// as the deadline is not nearer.
constexpr int kReadSliceMs = 100;

// False: the deadline passed first.
Result<bool> WaitFor(int fd, short events, Deadline deadline) {
  pollfd item{.fd = fd, .events = events, .revents = 0};
  const timespec left = deadline.left();
  const int ready = ::ppoll(&item, 1, &left, nullptr);
  if (ready < 0 && errno != EINTR) return SystemError("poll", errno);
  return ready != 0;
}

// Where everybody may make a folder, somebody else may have been there first.
Status CheckListener(int fd, const std::string& path) {
  ucred peer{};
  socklen_t size = sizeof peer;
  if (::getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) != 0) {
    return SystemError("credentials of the daemon", errno);
  }
  if (peer.uid == 0 || peer.uid == ::geteuid()) return {};
  return {Code::kPermissionDenied, "the listener at " + path + " is of user " +
                                       std::to_string(peer.uid) +
                                       ": name its socket to use it all the same"};
}

Status SetTimeout(int fd, int option, int64_t microseconds) {
  const timeval limit{.tv_sec = microseconds / 1'000'000, .tv_usec = microseconds % 1'000'000};
  if (::setsockopt(fd, SOL_SOCKET, option, &limit, sizeof limit) == 0) return {};
  return SystemError("socket timeout", errno);
}

}  // namespace

Result<FrameSocket> FrameSocket::Connect(const std::string& path, Listener listener,
                                         Deadline deadline) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.empty() || path.size() >= sizeof address.sun_path) {
    return Status(Code::kInvalidArgument,
                  "socket_path '" + path + "' is empty or longer than 107 bytes");
  }
  std::memcpy(address.sun_path, path.data(), path.size());
  UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!fd) return SystemError("socket", errno);
  // Connecting waits while the listener's queue is full; poll cannot wait for that, but the send
  // timeout bounds it.
  RETURN_IF_ERROR(SetTimeout(fd.get(), SO_SNDTIMEO, deadline.left_ms() * 1000 + 1));
  RETURN_IF_ERROR(SetTimeout(fd.get(), SO_RCVTIMEO, int64_t{kReadSliceMs} * 1000));
  if (::connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) {
    const int error = errno;
    if (error == EAGAIN || error == EINTR) {
      return Status(Code::kDeadlineExceeded, "the daemon at " + path + " takes no connections now");
    }
    const Status why = SystemError("connect to " + path, error);
    if (error != ENOENT && error != ECONNREFUSED) return why;
    return Status(Code::kUnavailable, why.message() + "; is terraced running?");
  }
  if (listener == Listener::kOwnUserOrRoot) RETURN_IF_ERROR(CheckListener(fd.get(), path));
  return FrameSocket(std::move(fd));
}

FrameSocket::Outgoing::Outgoing(wire::FrameHeader header, std::string_view its_body,
                                std::span<const int> its_fds)
    : body(its_body), fds(its_fds) {
  header.length = static_cast<uint32_t>(body.size());
  header.fds = static_cast<uint16_t>(fds.size());
  wire::EncodeHeader(header, head);
}

FrameSocket::FrameSocket(UniqueFd socket) : socket_(std::move(socket)) {
  buffer_.resize(kReadBytes);
}

Result<bool> FrameSocket::SendSome(Outgoing& frame) {
  alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(int) * wire::kMaxFds)> control{};
  const size_t head = frame.head.size();
  const size_t total = head + frame.body.size();
  while (frame.sent < total) {
    std::array<iovec, 2> parts;
    size_t count = 0;
    if (frame.sent < head) parts[count++] = {frame.head.data() + frame.sent, head - frame.sent};
    const size_t body_sent = frame.sent > head ? frame.sent - head : 0;
    if (body_sent < frame.body.size()) {
      parts[count++] = {const_cast<char*>(frame.body.data()) + body_sent,
                        frame.body.size() - body_sent};
    }
    msghdr message{};
    message.msg_iov = parts.data();
    message.msg_iovlen = count;
    if (frame.sent == 0 && !frame.fds.empty()) {
      message.msg_control = control.data();
      message.msg_controllen = CMSG_SPACE(frame.fds.size_bytes());
      cmsghdr* item = CMSG_FIRSTHDR(&message);
      item->cmsg_level = SOL_SOCKET;
      item->cmsg_type = SCM_RIGHTS;
      item->cmsg_len = CMSG_LEN(frame.fds.size_bytes());
      std::memcpy(CMSG_DATA(item), frame.fds.data(), frame.fds.size_bytes());
    }
    const ssize_t bytes = ::sendmsg(socket_.get(), &message, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (bytes > 0) {
      frame.sent += static_cast<size_t>(bytes);
    } else if (errno == EAGAIN) {
      return false;
    } else if (errno != EINTR) {
      return Status(Code::kUnavailable, SystemError("send to the daemon", errno).message());
    }
  }
  return true;
}

Status FrameSocket::Send(wire::FrameHeader header, std::string_view body, std::span<const int> fds,
                         Deadline deadline) {
  if (body.size() > wire::kMaxFrameBytes || fds.size() > wire::kMaxFds) {
    return {Code::kInvalidArgument, "the request is longer than a frame may be"};
  }
  Outgoing frame(header, body, fds);
  for (;;) {
    ASSIGN_OR_RETURN(const bool whole, SendSome(frame));
    if (whole) return {};
    ASSIGN_OR_RETURN(const bool writable, WaitFor(socket_.get(), POLLOUT, deadline));
    if (!writable) return {Code::kDeadlineExceeded, "the other end does not read its socket"};
  }
}

// For the rest of a frame that is there in part.
void FrameSocket::MakeRoom() {
  if (begin_ > 0) {
    std::copy(buffer_.begin() + static_cast<ptrdiff_t>(begin_),
              buffer_.begin() + static_cast<ptrdiff_t>(end_), buffer_.begin());
    end_ -= begin_;
    begin_ = 0;
    if (end_ == 0 && buffer_.size() > 16 * kReadBytes) {  // A rare long reply is not kept.
      buffer_.resize(kReadBytes);
      buffer_.shrink_to_fit();
    }
  }
  if (end_ == buffer_.size()) buffer_.resize(buffer_.size() + kReadBytes);
}

Status FrameSocket::Read(std::optional<Deadline> deadline) {
  MakeRoom();
  int flags = MSG_CMSG_CLOEXEC;
  if (!deadline) {
    flags |= MSG_DONTWAIT;
  } else if (deadline->left_ms() <= kReadSliceMs) {
    ASSIGN_OR_RETURN(const bool readable, WaitFor(socket_.get(), POLLIN, *deadline));
    if (!readable) return {};
    flags |= MSG_DONTWAIT;
  }
  iovec part{buffer_.data() + end_, buffer_.size() - end_};
  alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(int) * wire::kMaxFds)> control;
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control.data();
  message.msg_controllen = control.size();
  const ssize_t bytes = ::recvmsg(socket_.get(), &message, flags);
  if (bytes < 0) {
    if (errno == EAGAIN || errno == EINTR) return {};
    return Status(Code::kUnavailable, SystemError("receive from the daemon", errno).message());
  }
  // Every descriptor is taken over before anything can go wrong with them.
  for (cmsghdr* item = CMSG_FIRSTHDR(&message); item != nullptr;
       item = CMSG_NXTHDR(&message, item)) {
    if (item->cmsg_level != SOL_SOCKET || item->cmsg_type != SCM_RIGHTS) continue;
    const size_t count = (item->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (size_t i = 0; i < count; ++i) {
      int fd;
      std::memcpy(&fd, CMSG_DATA(item) + i * sizeof fd, sizeof fd);
      fds_.emplace_back(fd);
    }
  }
  if (bytes == 0) return Status(Code::kUnavailable, "the daemon closed the connection");
  if ((message.msg_flags & MSG_CTRUNC) != 0) {
    return Status(Code::kExhausted, "descriptors of the daemon were lost: too many open files");
  }
  end_ += static_cast<size_t>(bytes);
  return {};
}

Result<std::optional<Frame>> FrameSocket::Next() {
  const size_t have = end_ - begin_;
  if (have < wire::kFrameHeaderBytes) {
    // Descriptors travel with a frame's first byte: without one they belong to nothing.
    if (have == 0 && !fds_.empty()) {
      return Status(Code::kDataLoss, "the daemon sent descriptors without a frame");
    }
    return std::optional<Frame>();
  }
  Frame frame;
  frame.header = wire::DecodeHeader(std::span<const uint8_t, wire::kFrameHeaderBytes>(
      buffer_.data() + begin_, wire::kFrameHeaderBytes));
  if (frame.header.length > wire::kMaxFrameBytes || frame.header.fds > wire::kMaxFds) {
    return Status(Code::kDataLoss, "the daemon sent a frame over the limits");
  }
  if (fds_.size() < frame.header.fds) {
    return Status(Code::kDataLoss, "the daemon sent fewer descriptors than it announced");
  }
  const size_t bytes = wire::kFrameHeaderBytes + frame.header.length;
  if (have < bytes) return std::optional<Frame>();
  frame.body.assign(
      reinterpret_cast<const char*>(buffer_.data()) + begin_ + wire::kFrameHeaderBytes,
      frame.header.length);
  for (uint16_t i = 0; i < frame.header.fds; ++i) {
    frame.fds.push_back(std::move(fds_.front()));
    fds_.pop_front();
  }
  begin_ += bytes;
  return std::optional<Frame>(std::move(frame));
}

void FrameSocket::Shutdown() {
  ::shutdown(socket_.get(), SHUT_RDWR);
}

}  // namespace terrace::client
