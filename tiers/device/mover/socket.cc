#include "tiers/device/mover/socket.h"

#include <sys/socket.h>

#include <cerrno>
#include <cstring>
#include <string>

#include "base/fd_message.h"

namespace terrace {
namespace {

// With room for one more than may come, so that more than one is seen, and closed.
constexpr size_t kMostDescriptors = 2;

// Those that came along, each owned.
std::vector<UniqueFd> Descriptors(msghdr& message) {
  std::vector<UniqueFd> fds;
  for (cmsghdr* header = CMSG_FIRSTHDR(&message); header != nullptr;
       header = CMSG_NXTHDR(&message, header)) {
    if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS) continue;
    const size_t count = (header->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (size_t i = 0; i < count; ++i) {
      int fd = -1;
      std::memcpy(&fd, CMSG_DATA(header) + i * sizeof fd, sizeof fd);
      fds.emplace_back(fd);
    }
  }
  return fds;
}

}  // namespace

Result<std::pair<MoverSocket, MoverSocket>> MoverSocket::Pair() {
  int fds[2] = {-1, -1};
  if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, fds) != 0) {
    return SystemError("socketpair for a mover", errno);
  }
  return std::pair(MoverSocket(UniqueFd(fds[0])), MoverSocket(UniqueFd(fds[1])));
}

Status MoverSocket::Send(std::span<const uint8_t> packet, int fd) const {
  iovec data{.iov_base = const_cast<uint8_t*>(packet.data()), .iov_len = packet.size()};
  msghdr message{};
  message.msg_iov = &data;
  message.msg_iovlen = 1;
  FdMessage<1> control;
  if (fd >= 0) control.Attach({&fd, 1}, message);
  ssize_t sent = -1;
  do {
    sent = ::sendmsg(fd_.get(), &message, MSG_NOSIGNAL | MSG_DONTWAIT);
  } while (sent < 0 && errno == EINTR);
  if (sent >= 0) return {};
  if (errno == EAGAIN || errno == ENOBUFS) {
    return {Code::kExhausted, "the other end of a mover's socket has too much to read"};
  }
  if (errno == EPIPE || errno == ECONNRESET || errno == ENOTCONN) {
    return {Code::kUnavailable, "the other end of a mover's socket is closed"};
  }
  return SystemError("send to the other end of a mover's socket", errno);
}

Result<std::optional<MoverSocket::Packet>> MoverSocket::Receive() const {
  Packet packet;
  packet.bytes.resize(kMostMoverBytes);
  iovec data{.iov_base = packet.bytes.data(), .iov_len = packet.bytes.size()};
  alignas(cmsghdr) char control[CMSG_SPACE(kMostDescriptors * sizeof(int))] = {};
  msghdr message{};
  message.msg_iov = &data;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof control;
  ssize_t got = -1;
  // An end that is closed with packets unread resets the other one, which is told so once, before
  // what it can still read.
  do {
    got = ::recvmsg(fd_.get(), &message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
  } while (got < 0 && (errno == EINTR || errno == ECONNRESET));
  if (got < 0 && errno == EAGAIN) return std::optional<Packet>();
  if (got < 0) {
    return SystemError("receive from the other end of a mover's socket", errno);
  }
  // Nobody sends packets of no bytes.
  if (got == 0) return Status(Code::kUnavailable, "the other end of a mover's socket is closed");
  std::vector<UniqueFd> fds = Descriptors(message);
  if ((message.msg_flags & MSG_TRUNC) != 0) {
    return Status(Code::kInvalidArgument,
                  "packet: of more than " + std::to_string(kMostMoverBytes) + " bytes");
  }
  if ((message.msg_flags & MSG_CTRUNC) != 0 || fds.size() > 1) {
    return Status(Code::kInvalidArgument, "packet: with more than one descriptor");
  }
  packet.bytes.resize(static_cast<size_t>(got));
  if (!fds.empty()) packet.fd = std::move(fds.front());
  return std::optional(std::move(packet));
}

}  // namespace terrace
