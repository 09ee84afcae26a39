// WireClient: the socket's protocol as a test writes it by hand: any frame, any descriptors, any
// bytes. Every wait has a deadline of 10 s.
#pragma once

#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstring>
#include <deque>
#include <optional>
#include <string>
#include <vector>

#include "base/fd_message.h"
#include "base/unique_fd.h"
#include "proto/frame.h"
#include "proto/wire.pb.h"

namespace terrace {

struct ReceivedFrame {
  wire::FrameHeader header;
  std::string message;
  std::vector<UniqueFd> fds;
};

class WireClient {
 public:
  WireClient() = default;
  explicit WireClient(UniqueFd socket) : socket_(std::move(socket)) {}
  static WireClient Connect(const std::string& path) {
    WireClient client(UniqueFd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)));
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::memcpy(address.sun_path, path.c_str(), path.size());
    if (::connect(client.fd(), reinterpret_cast<sockaddr*>(&address), sizeof address) != 0) {
      client.Close();
    }
    return client;
  }

  int fd() const { return socket_.get(); }
  void Close() { socket_.Reset(); }

  static std::string Encode(wire::Type type, uint64_t request, const std::string& message,
                            uint16_t fds = 0) {
    wire::FrameHeader header;
    header.length = static_cast<uint32_t>(message.size());
    header.type = type;
    header.fds = fds;
    header.request = request;
    std::string frame(wire::kFrameHeaderBytes, '\0');
    std::memcpy(frame.data(), &header, sizeof header);
    return frame + message;
  }
  static std::string Encode(wire::Type type, uint64_t request,
                            const google::protobuf::MessageLite& message, uint16_t fds = 0) {
    return Encode(type, request, message.SerializeAsString(), fds);
  }

  // False when the daemon does not take them in time, or has closed.
  bool SendBytes(const std::string& bytes, const std::vector<int>& fds = {}) {
    size_t sent = 0;
    while (sent < bytes.size()) {
      iovec vector{const_cast<char*>(bytes.data()) + sent, bytes.size() - sent};
      msghdr message{};
      message.msg_iov = &vector;
      message.msg_iovlen = 1;
      FdMessage<wire::kMaxFds> control;
      if (sent == 0) control.Attach(fds, message);
      const ssize_t count = ::sendmsg(fd(), &message, MSG_NOSIGNAL | MSG_DONTWAIT);
      if (count > 0) {
        sent += static_cast<size_t>(count);
      } else if (errno != EAGAIN || !Wait(POLLOUT)) {
        return false;
      }
    }
    return true;
  }
  bool Send(wire::Type type, uint64_t request, const google::protobuf::MessageLite& message) {
    return SendBytes(Encode(type, request, message));
  }

  // Nothing at end of file, and when nothing comes in time.
  std::optional<ReceivedFrame> Receive() {
    for (;;) {
      if (std::optional<ReceivedFrame> frame = Take()) return frame;
      if (!Wait(POLLIN) || !ReadSome()) return std::nullopt;
    }
  }
  // Whether the daemon has closed; frames before that are skipped.
  bool AwaitClosed() {
    for (;;) {
      while (Take()) {
      }
      if (!Wait(POLLIN)) return false;
      if (!ReadSome()) return true;
    }
  }

  // Sends and gives back the frame that answers it; events in between are kept in `events`.
  std::optional<ReceivedFrame> Ask(wire::Type type, const google::protobuf::MessageLite& message,
                                   const std::vector<int>& fds = {}) {
    const uint64_t request = ++last_request_;
    if (!SendBytes(Encode(type, request, message, static_cast<uint16_t>(fds.size())), fds)) {
      return std::nullopt;
    }
    for (;;) {
      std::optional<ReceivedFrame> frame = Receive();
      if (!frame ||
          (frame->header.request == request && frame->header.type != wire::Type::kProgressEvent)) {
        return frame;
      }
      events.push_back(*std::move(frame));
    }
  }
  // The reply, or the Error in its place.
  template <typename Reply>
  Result<Reply> Call(wire::Type type, const google::protobuf::MessageLite& message,
                     std::vector<UniqueFd>* reply_fds = nullptr, const std::vector<int>& fds = {}) {
    std::optional<ReceivedFrame> frame = Ask(type, message, fds);
    if (!frame) return Status(Code::kUnavailable, "no reply");
    return Parse<Reply>(*std::move(frame), reply_fds);
  }
  template <typename Reply>
  static Result<Reply> Parse(ReceivedFrame frame, std::vector<UniqueFd>* reply_fds = nullptr) {
    if (frame.header.type == wire::Type::kError) {
      wire::Error error;
      error.ParseFromString(frame.message);
      return Status(static_cast<Code>(error.code()), error.message());
    }
    Reply reply;
    if (!reply.ParseFromString(frame.message)) return Status(Code::kDataLoss, "malformed reply");
    if (reply_fds != nullptr) *reply_fds = std::move(frame.fds);
    return reply;
  }

  Result<wire::HelloReply> Hello(const std::string& name, bool writer = true,
                                 std::vector<UniqueFd>* fds = nullptr) {
    wire::Hello hello;
    hello.set_version_min(wire::kProtocolVersion);
    hello.set_version_max(wire::kProtocolVersion);
    hello.set_name(name);
    hello.set_writer(writer);
    return Call<wire::HelloReply>(wire::Type::kHello, hello, fds);
  }

  std::deque<ReceivedFrame> events;

 private:
  bool Wait(short what) {
    pollfd entry{fd(), what, 0};
    return ::poll(&entry, 1, 10'000) == 1;
  }
  bool ReadSome() {
    char bytes[65536];
    iovec vector{bytes, sizeof bytes};
    msghdr message{};
    message.msg_iov = &vector;
    message.msg_iovlen = 1;
    alignas(cmsghdr) char control[CMSG_SPACE(wire::kMaxFds * sizeof(int))];
    message.msg_control = control;
    message.msg_controllen = sizeof control;
    const ssize_t count = ::recvmsg(fd(), &message, MSG_CMSG_CLOEXEC);
    if (count <= 0) return false;
    input_.append(bytes, static_cast<size_t>(count));
    for (cmsghdr* item = CMSG_FIRSTHDR(&message); item != nullptr;
         item = CMSG_NXTHDR(&message, item)) {
      if (item->cmsg_type != SCM_RIGHTS) continue;
      for (size_t at = 0; at + CMSG_LEN(0) < item->cmsg_len; at += sizeof(int)) {
        int received = -1;
        std::memcpy(&received, CMSG_DATA(item) + at, sizeof received);
        fds_.emplace_back(received);
      }
    }
    return true;
  }
  std::optional<ReceivedFrame> Take() {
    if (input_.size() < wire::kFrameHeaderBytes) return std::nullopt;
    ReceivedFrame frame;
    std::memcpy(&frame.header, input_.data(), sizeof frame.header);
    const size_t whole = wire::kFrameHeaderBytes + frame.header.length;
    if (input_.size() < whole || fds_.size() < frame.header.fds) return std::nullopt;
    frame.message = input_.substr(wire::kFrameHeaderBytes, frame.header.length);
    input_.erase(0, whole);
    for (uint16_t i = 0; i < frame.header.fds; ++i) {
      frame.fds.push_back(std::move(fds_.front()));
      fds_.pop_front();
    }
    return frame;
  }

  UniqueFd socket_;
  std::string input_;
  std::deque<UniqueFd> fds_;
  uint64_t last_request_ = 0;
};

}  // namespace terrace
