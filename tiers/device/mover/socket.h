// MoverSocket: an end of the socketpair between the daemon and a mover. Packets keep their borders,
// and may bring one descriptor.
//
// Does not wait: who has nothing to do waits for the descriptor by poll. Thread safety: Send and
// Receive by any thread, each packet whole.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "base/status.h"
#include "base/unique_fd.h"
#include "tiers/device/mover/messages.h"

namespace terrace {

class MoverSocket {
 public:
  explicit MoverSocket(UniqueFd fd) : fd_(std::move(fd)) {}  // Of such a pair.
  // Both ends, closed on exec: the mover's is passed on by whoever starts it.
  static Result<std::pair<MoverSocket, MoverSocket>> Pair();

  int fd() const { return fd_.get(); }

  // `fd`: the descriptor that goes along, which stays the caller's; -1 for none. `exhausted`: the
  // other end has too much to read, and nothing was sent; `unavailable`: it is closed.
  Status Send(std::span<const uint8_t> packet, int fd = -1) const;

  struct Packet {
    std::vector<uint8_t> bytes;
    UniqueFd fd;  // None where none came along.
  };
  // None: nothing has come yet. `unavailable`: the other end is closed, and all it sent was read.
  // `invalid_argument`: a packet that is too long, or with more than one descriptor; it is gone.
  Result<std::optional<Packet>> Receive() const;

 private:
  UniqueFd fd_;
};

}  // namespace terrace
