// FrameSocket: one end of the Unix stream, as frames with descriptors (proto/frame.h).
//
// Owned by a Connection. One thread at a time may send and one at a time may receive; the two may
// be different threads. Received descriptors are close-on-exec and always owned: what is not handed
// out in a Frame is closed. A failed Send or Receive leaves the stream in the middle of a frame, so
// the socket is of no further use.
#pragma once

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
  // kUnavailable when nobody listens there.
  static Result<FrameSocket> Connect(const std::string& path, Deadline deadline);
  // Takes a connected stream socket.
  explicit FrameSocket(UniqueFd socket);

  int fd() const { return socket_.get(); }
  // Sends a whole frame; header.length and header.fds are filled in.
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
