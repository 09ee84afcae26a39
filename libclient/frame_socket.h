// FrameSocket: one end of the Unix stream, as frames with descriptors (proto/frame.h).
//
// Owned by a Connection. One thread at a time may send and one at a time may receive; the two may
// be different threads. Received descriptors are close-on-exec and always owned: what is not handed
// out in a Frame is closed. A failed Send or Receive leaves the stream in the middle of a frame, so
// the socket is of no further use.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "base/unique_fd.h"
#include "libclient/deadline.h"
#include "proto/frame.h"

namespace terrace::client {

struct Frame {
  wire::FrameHeader header;
  std::string body;
  std::vector<UniqueFd> fds;
};

class FrameSocket {
 public:
  enum class Listener { kAnybody, kOwnUserOrRoot };
  // kUnavailable when nobody listens there; kPermissionDenied when somebody else does.
  static Result<FrameSocket> Connect(const std::string& path, Listener listener, Deadline deadline);
  // Takes a connected stream socket.
  explicit FrameSocket(UniqueFd socket);

  int fd() const { return socket_.get(); }
  // A frame that is being sent; header.length and header.fds are filled in. What it points to
  // stays with its owner.
  struct Outgoing {
    Outgoing(wire::FrameHeader header, std::string_view body, std::span<const int> fds);
    std::array<uint8_t, wire::kFrameHeaderBytes> head;
    std::string_view body;
    std::span<const int> fds;
    size_t sent = 0;  // Bytes, of both.
  };
  // Sends what goes out without waiting. False: more is left, the other end has to read first.
  Result<bool> SendSome(Outgoing& frame);
  // Sends a whole frame.
  Status Send(wire::FrameHeader header, std::string_view body, std::span<const int> fds,
              Deadline deadline);
  // Reads once what has arrived, waiting for it until the deadline; without one it does not wait.
  // kUnavailable: the other end is closed; kDataLoss: it does not speak the protocol.
  Status Read(std::optional<Deadline> deadline);
  // The next of the frames that were read whole.
  Result<std::optional<Frame>> Next();
  // Ends the stream both ways: whoever waits on it wakes up. Any thread.
  void Shutdown();

 private:
  void MakeRoom();

  UniqueFd socket_;
  std::vector<uint8_t> buffer_;  // [begin_, end_) was read and not yet handed out.
  size_t begin_ = 0;
  size_t end_ = 0;
  std::deque<UniqueFd> fds_;  // Received and not yet handed out.
};

}  // namespace terrace::client
