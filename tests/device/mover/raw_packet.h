// A packet such as no MoverSocket sends: of any length, with any number of descriptors.
#pragma once

#include <sys/socket.h>

#include <cstdint>
#include <vector>

#include "base/fd_message.h"
#include "tiers/device/mover/socket.h"

namespace terrace {

// Up to 16 copies of a descriptor. Whether all of it went.
inline bool SendRaw(const MoverSocket& socket, size_t bytes, size_t descriptors) {
  std::vector<uint8_t> packet(bytes, 1);
  const std::vector<int> fds(descriptors, socket.fd());
  iovec data{.iov_base = packet.data(), .iov_len = bytes};
  msghdr message{};
  message.msg_iov = &data;
  message.msg_iovlen = 1;
  FdMessage<16> control;
  control.Attach(fds, message);
  return ::sendmsg(socket.fd(), &message, MSG_NOSIGNAL) == static_cast<ssize_t>(bytes);
}

}  // namespace terrace
