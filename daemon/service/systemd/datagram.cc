#include "daemon/service/systemd/datagram.h"

#include <sys/time.h>

#include <cerrno>
#include <cstddef>
#include <cstring>

namespace terrace {

Result<DatagramSender> DatagramSender::To(std::string_view address) {
  sockaddr_un to{};
  to.sun_family = AF_UNIX;
  const bool absolute = address.starts_with('/') && address.size() < sizeof to.sun_path;
  const bool abstract =
      address.starts_with('@') && address.size() > 1 && address.size() <= sizeof to.sun_path;
  if (!absolute && !abstract) {
    return Status(Code::kInvalidArgument,
                  "'" + std::string(address.substr(0, 200)) +
                      "' is neither an absolute path nor '@' and a name, of at most " +
                      std::to_string(sizeof to.sun_path - 1) + " bytes");
  }
  std::memcpy(to.sun_path, address.data(), address.size());
  // An abstract name is as long as the length says; no zero ends it.
  if (abstract) to.sun_path[0] = '\0';
  const auto length =
      static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + address.size() + (absolute ? 1 : 0));
  UniqueFd socket(::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  if (!socket) return SystemError("socket", errno);
  const timeval patience{kPatienceMs / 1000, kPatienceMs % 1000 * 1000};
  if (::setsockopt(socket.get(), SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience) != 0) {
    return SystemError("SO_SNDTIMEO", errno);
  }
  return DatagramSender(std::move(socket), to, length);
}

int DatagramSender::Send(std::string_view datagram, Patience patience) const {
  const int flags = MSG_NOSIGNAL | (patience == Patience::kNone ? MSG_DONTWAIT : 0);
  const ssize_t sent = ::sendto(socket_.get(), datagram.data(), datagram.size(), flags,
                                reinterpret_cast<const sockaddr*>(&address_), length_);
  return sent < 0 ? errno : 0;
}

}  // namespace terrace
