// DatagramSender: a Unix datagram socket that sends to one address, which is how a process speaks
// to systemd and to its journal. A value; one thread at a time.
#pragma once

#include <sys/socket.h>
#include <sys/un.h>

#include <string_view>

#include "base/status.h"
#include "base/unique_fd.h"

namespace terrace {

class DatagramSender {
 public:
  // An absolute path, or a name in the abstract namespace after an '@'. Nobody needs to listen
  // there yet: the address is looked up at each send, so a receiver may be restarted.
  static Result<DatagramSender> To(std::string_view address);

  // 0 or an errno value. A receiver that is behind is waited for at most kPatienceMs, or not at
  // all.
  enum class Patience : uint8_t { kNone, kSome };
  static constexpr int kPatienceMs = 1000;
  int Send(std::string_view datagram, Patience patience) const;

 private:
  DatagramSender(UniqueFd socket, const sockaddr_un& address, socklen_t length)
      : socket_(std::move(socket)), address_(address), length_(length) {}

  UniqueFd socket_;
  sockaddr_un address_{};
  socklen_t length_ = 0;
};

}  // namespace terrace
