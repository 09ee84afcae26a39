// Connection: calls over one frame socket, from many threads, with deadlines.
//
// Whoever waits for a reply receives for all: the first waiting caller takes the receiving role,
// hands out what comes, and gives the role on when it has its own reply. Only while no caller waits
// does the client's thread receive (Serve). So a round trip has no hop between threads of this
// process, which would cost as much as the daemon's half of it.
//
// The daemon stops reading while its replies are not taken, so a caller whose request does not go
// out receives meanwhile, unless another does; and nobody holds the role while he waits for his
// turn to send.
//
// Shared by the client and the calls under way; every method from any thread, Serve from one.
// At most kMaxPending calls at a time; a reply that comes after its caller's deadline goes to
// ConnectionEvents::LateReply, for it may name something that must be given back.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/mutex.h"
#include "base/status.h"
#include "base/unique_fd.h"
#include "libclient/deadline.h"
#include "libclient/frame_socket.h"
#include "libclient/messages.h"

namespace terrace::messages {
struct ProgressEvent;
}

namespace terrace::client {

class Connection;

// What a connection tells its client. Called on whichever thread receives, without locks held;
// must not wait for calls of this connection.
class ConnectionEvents {
 public:
  virtual ~ConnectionEvents() = default;
  virtual void Event(const Connection& from, const Frame& frame) = 0;
  virtual void LateReply(const Connection& from, const Frame& frame) = 0;
  virtual void Broken(const Connection& which) = 0;  // Once a connection.
};

template <class Reply>
struct Answer {
  Reply reply;
  std::vector<UniqueFd> fds;
};

class Connection {
 public:
  static constexpr size_t kMaxPending = 256;
  static constexpr size_t kMaxLate = 1024;  // Beyond, the oldest late reply is no longer expected.

  // `wake` is an eventfd that ends Serve; it and `events` outlive the connection.
  static Result<std::shared_ptr<Connection>> Make(FrameSocket socket, int wake,
                                                  ConnectionEvents& events);

  // Told of the progress events of a call, on the calling thread.
  using Progress = std::function<void(uint64_t done_bytes, uint64_t total_bytes)>;

  // The reply to `request`; an Error reply comes back as its status.
  template <class Request>
  Result<Answer<typename Request::Reply>> Call(const Request& request, Deadline deadline,
                                               std::span<const int> fds = {},
                                               const Progress& progress = {}) {
    std::string body;
    messages::Encode(request, &body);
    ASSIGN_OR_RETURN(std::vector<Frame> frames,
                     Exchange(Request::kType, body, fds, deadline, progress));
    Answer<typename Request::Reply> answer;
    if (!messages::Decode(frames.front().body, &answer.reply)) return BadReply();
    answer.fds = std::move(frames.front().fds);
    return answer;
  }
  // All frames of a reply that may have several, at least one.
  Result<std::vector<Frame>> Exchange(wire::Type type, std::string_view body,
                                      std::span<const int> fds, Deadline deadline,
                                      const Progress& progress);

  // A call whose reply is waited for later. It counts among the calls at a time until it is
  // destroyed, which gives the reply up. Used by one thread at a time.
  struct Slot;
  struct EndCall {
    void operator()(Slot* slot) const;
  };
  using Begun = std::unique_ptr<Slot, EndCall>;
  template <class Request>
  Result<Begun> Begin(const Request& request, Deadline deadline) {
    std::string body;
    messages::Encode(request, &body);
    return Start(Request::kType, body, deadline);
  }
  // The reply to a request of that kind. After `deadline_exceeded` it may be waited for again, else
  // not.
  template <class Request>
  Result<typename Request::Reply> End(Slot& begun, Deadline deadline) {
    ASSIGN_OR_RETURN(const std::vector<Frame> frames, Wait(begun, deadline, {}, AtDeadline::kKeep));
    typename Request::Reply reply;
    if (!messages::Decode(frames.front().body, &reply)) return BadReply();
    return reply;
  }

  // Until one of those has its reply, or none is to come any more: which one. nullopt: at the
  // deadline none had. None of them is waited for by another thread meanwhile.
  std::optional<size_t> WaitAny(std::span<Slot* const> begun, Deadline deadline) EXCLUDES(mu_);

  // Receives while no caller does; returns when `wake` is signalled, the connection is broken, or
  // after `limit_ms`, if it is not negative.
  void Serve(int limit_ms);
  // Fails every call, now and later, with `why`. Never waits.
  void Break(const Status& why) EXCLUDES(mu_);
  Status broken() const EXCLUDES(mu_);

 private:
  // What a caller that waits for its reply has to do next.
  enum class Step { kReceive, kReport, kEnd };

  Connection(FrameSocket socket, UniqueFd unread, int wake, ConnectionEvents& events)
      : socket_(std::move(socket)), unread_(std::move(unread)), wake_(wake), events_(events) {}

  Status BadReply();
  Result<Begun> Start(wire::Type type, std::string_view body, Deadline deadline);
  Status Register(Slot& slot) EXCLUDES(mu_);
  // What a caller leaves behind in any case: no pointer to its slot, and not the role.
  void Leave(Slot& slot) EXCLUDES(mu_);
  // Its reply, if one is to come, will be late.
  void GiveUp(Slot& slot) REQUIRES(mu_);
  void ReturnRole(Slot& slot) REQUIRES(mu_);
  // Takes the role too, if it is free: then the reply wakes this thread alone.
  Status Send(Slot& slot, std::string_view body, std::span<const int> fds, Deadline deadline)
      EXCLUDES(mu_);
  // Until the socket takes more of a request; receives meanwhile.
  Status AwaitRoom(Slot& slot, Deadline deadline) EXCLUDES(mu_);
  // Whether a call that got no reply in time may be waited for again.
  enum class AtDeadline : uint8_t { kGiveUp, kKeep };
  Result<std::vector<Frame>> Wait(Slot& slot, Deadline deadline, const Progress& progress,
                                  AtDeadline then);
  // kReceive: with the role. kReport: without it, with the progress in `news`.
  Step Next(Slot& slot, Deadline deadline, messages::ProgressEvent* news) EXCLUDES(mu_);
  // Its number; nullopt: none has a reply yet.
  std::optional<size_t> FindEnded(std::span<Slot* const> slots) const REQUIRES(mu_);
  // Reads once and hands out all frames that are there: none may stay behind when the role is given
  // up, for nothing would tell of it. Breaks the connection where that fails, and throws nothing.
  void Receive(std::optional<Deadline> deadline) noexcept;
  void Dispatch(Frame frame) EXCLUDES(mu_);
  bool TakeRole() REQUIRES(mu_);
  void GiveRole() REQUIRES(mu_);
  // Wakes one caller that waits for the role. If there is none, the socket does so by `unread_`.
  void OfferRole() REQUIRES(mu_);
  void Watch(bool on) REQUIRES(mu_);

  FrameSocket socket_;
  // An epoll that is readable when the socket is and nobody has the role.
  const UniqueFd unread_;
  const int wake_;
  ConnectionEvents& events_;

  mutable Mutex mu_;
  bool sending_ GUARDED_BY(mu_) = false;  // One frame at a time, so that they stay whole.
  CondVar sent_;
  Status broken_ GUARDED_BY(mu_);
  bool receiving_ GUARDED_BY(mu_) = false;  // While false, unread_ watches the socket.
  uint64_t next_request_ GUARDED_BY(mu_) = 1;
  std::map<uint64_t, Slot*> pending_ GUARDED_BY(mu_);
  std::map<uint64_t, wire::Type> late_ GUARDED_BY(mu_);
};

}  // namespace terrace::client
