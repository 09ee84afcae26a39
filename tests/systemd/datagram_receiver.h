// DatagramReceiver: a bound Unix datagram socket that plays the service manager's or the journal's
// end. One thread.
#pragma once

#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstddef>
#include <cstring>
#include <optional>
#include <string>

#include "base/unique_fd.h"

namespace terrace {

class DatagramReceiver {
 public:
  // A path, or '@' and an abstract name.
  explicit DatagramReceiver(const std::string& address)
      : socket_(::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0)) {
    sockaddr_un at{};
    at.sun_family = AF_UNIX;
    std::memcpy(at.sun_path, address.data(), std::min(address.size(), sizeof at.sun_path));
    if (address.front() == '@') at.sun_path[0] = '\0';
    const size_t size =
        offsetof(sockaddr_un, sun_path) + address.size() + (address.front() == '@' ? 0 : 1);
    bound_ = ::bind(socket_.get(), reinterpret_cast<const sockaddr*>(&at),
                    static_cast<socklen_t>(size)) == 0;
  }

  bool bound() const { return bound_; }

  // The next datagram; none when there is none within the time.
  std::optional<std::string> Receive(int wait_ms = 20'000) const {
    pollfd entry{socket_.get(), POLLIN, 0};
    if (::poll(&entry, 1, wait_ms) != 1) return std::nullopt;
    std::string text(1u << 16, '\0');
    const ssize_t got = ::recv(socket_.get(), text.data(), text.size(), 0);
    if (got < 0) return std::nullopt;
    text.resize(static_cast<size_t>(got));
    return text;
  }
  // The first of those to come that has this in it.
  std::optional<std::string> ReceiveWith(const std::string& part) const {
    for (std::optional<std::string> text; (text = Receive());) {
      if (text->find(part) != std::string::npos) return text;
    }
    return std::nullopt;
  }

 private:
  UniqueFd socket_;
  bool bound_ = false;
};

}  // namespace terrace
