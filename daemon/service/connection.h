// Connection: one accepted socket, as frames with descriptors in both directions.
//
// It reads what has come, hands complete frames to its Owner one after the other, and sends the
// replies of such a batch with one sendmsg. The sender of every byte must be the process that
// connected: a child that inherited the socket closes it by its first message. What breaks the
// framing is answered with an Error frame and closes this connection only.
//
// Bounds. Time: kFramesPerWake frames, or as many as take kTurnNs, then other connections have
// their turn. Input: one frame, whose memory beyond kSmallInput comes out of a budget that all
// connections share: while that is used up the connection is not read, and a peer that begins a
// frame and does not end it within Sweep's `stall_limit` is cut, so that nobody holds the budget
// for ever. Descriptors are taken from those only who may pass any (AllowDescriptors); from others
// they are closed, and the connection too. Output: while more than kOutputHigh bytes or
// kOutputFdsHigh descriptors wait to be sent, no further frame is handled; events and late replies
// may add to that up to kOutputMax, then the connection is cut. Of large replies no more wait than
// kLargeOutputBudget, of all connections. A peer that takes nothing for `stall_limit` is cut.
// Descriptors that were sent and not yet taken come out of a budget of all connections
// (fd_budget.h): while its share is used up, no frame is handled whose reply needs more, and the
// first such is answered `exhausted` after `stall_limit`. Beyond kUnreadFdsHigh no more are sent
// before the peer has taken all, and a peer that takes none for `stall_limit` is cut. Requests in
// flight: beyond kMaxInFlight no further frame is handled until one is answered.
//
// Owner thread only. Closing it never destroys it: its Owner does that, later.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <span>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/status.h"
#include "base/unique_fd.h"
#include "daemon/service/byte_queue.h"
#include "daemon/service/fd_budget.h"
#include "daemon/service/owner_loop.h"
#include "daemon/service/peer.h"
#include "proto/frame.h"

struct msghdr;
namespace google::protobuf {
class MessageLite;
}

namespace terrace {

inline constexpr size_t kSmallInput = 64u << 10;
inline constexpr size_t kLargeInputBudget = 128u << 20;  // All connections together.
inline constexpr size_t kOutputHigh = 256u << 10;
inline constexpr size_t kOutputMax = 16u << 20;
inline constexpr size_t kOutputFdsHigh = 512;
inline constexpr size_t kSmallOutput = 256u << 10;        // A reply up to this always has room.
inline constexpr size_t kLargeOutputBudget = 128u << 20;  // All connections together.
inline constexpr size_t kUnreadFdsHigh = 1024;
inline constexpr size_t kMaxInFlight = 64;
inline constexpr int kReadsPerWake = 8;
inline constexpr int kFramesPerWake = 32;
inline constexpr MonotonicNs kTurnNs = kNsPerMs;
inline constexpr size_t kHelloFrameBytes = 4096;  // Until a connection has said hello.

// Frames by type and bytes, of all connections since the daemon started.
struct Traffic {
  static constexpr size_t kTypes = 128;
  std::array<uint64_t, kTypes> frames_received{};
  std::array<uint64_t, kTypes> frames_sent{};
  uint64_t bytes_received = 0;
  uint64_t bytes_sent = 0;
  uint64_t connections_accepted = 0;
  uint64_t connections_refused = 0;  // Over the limit, or of a peer that cannot be told.
  uint64_t protocol_violations = 0;  // Each closed a connection.
  uint64_t slow_readers_cut = 0;     // Slow writers too: of a frame that was begun.
};

struct ConnectionBudgets {
  size_t large_input_left = kLargeInputBudget;
  size_t output_bytes = 0;  // That wait to be sent, of all connections.
  FdBudget fds;
};

// What all connections share.
struct ConnectionEnvironment {
  OwnerLoop* loop = nullptr;
  const Clock* clock = nullptr;
  Traffic* traffic = nullptr;
  ConnectionBudgets* budgets = nullptr;
};

struct Frame {
  wire::FrameHeader header;
  std::span<const uint8_t> message;  // Valid during the call.
  std::vector<UniqueFd> fds;         // As many as the header says. What is left in it is closed.
};

class Connection {
 public:
  class Owner {
   public:
    virtual ~Owner() = default;
    virtual void OnFrame(Connection& connection, Frame& frame) = 0;
    // How many descriptors OnFrame may Send at most, at once, without asking MayQueueFds: the frame
    // waits until there is room for them.
    virtual size_t FdsOfReply(const wire::FrameHeader& header) const = 0;
    // Called once; the connection sends and receives nothing more.
    virtual void OnClosed(Connection& connection, const Status& why) = 0;
  };

  Connection(uint64_t id, Peer peer, const ConnectionEnvironment& environment, Owner& owner)
      : id_(id),
        environment_(environment),
        owner_(owner),
        peer_(std::move(peer)),
        fds_(environment.budgets->fds, peer_.uid) {}
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;
  ~Connection();

  // Begins to read. `socket` is non-blocking and has SO_PASSCRED.
  Status Open(UniqueFd socket);

  // Tries once to send an Error frame on a socket that gets no Connection.
  static void SendLastWord(int socket, const Status& why);

  uint64_t id() const { return id_; }
  Peer& peer() { return peer_; }
  bool open() const { return static_cast<bool>(watch_); }
  int socket() const { return watch_.fd(); }  // While it is open.

  // Queues a frame; sends it at once unless a batch of frames is being handled. At most kMaxFds
  // descriptors.
  void Send(wire::Type type, uint64_t request, const google::protobuf::MessageLite& message,
            std::vector<UniqueFd> fds = {});
  void SendError(uint64_t request, const Status& status);
  bool has_backlog() const { return !output_.empty(); }
  // Whether its share of the budget has room for so many descriptors more. Whoever is answered no
  // asks again later.
  bool MayQueueFds(size_t count);
  // `exhausted`: why it has none.
  Status WhyShortOfFds() const { return fds_.WhyShort(); }
  // A complete frame waits for that room.
  bool awaits_fds() const { return awaits_fds_since_ != 0; }
  // Answers that frame with WhyShortOfFds.
  void RefuseAwaiting();

  // A request whose reply comes later, at the end of which EndRequest must be called. False from
  // EndRequest: it was answered otherwise in the meantime.
  void BeginRequest(uint64_t request) { in_flight_.push_back(request); }
  bool EndRequest(uint64_t request);
  const std::vector<uint64_t>& in_flight() const { return in_flight_; }

  // While paused it handles no frame: for a verb that is carried out in pieces, other connections
  // having their turn in between.
  void PauseFrames() { paused_ = true; }
  void ResumeFrames();

  void AllowLargeFrames() { max_frame_bytes_ = wire::kMaxFrameBytes; }
  void AllowDescriptors(bool allowed) { may_pass_fds_ = allowed; }
  // Sends what is queued and closes then, or when the peer does not take it in time.
  void CloseAfterSending(Status why);
  void Close(const Status& why);
  // To be called about once a second: enforces `stall_limit` and tries again what had no room.
  void Sweep(MonotonicNs now, MonotonicNs stall_limit);

  MonotonicNs opened_at() const { return opened_at_; }

 private:
  enum class Received : uint8_t { kMore, kDrained, kClosed };

  void BeginTurn();
  void OnReadable();
  Received ReceiveOnce();
  Status TakeControl(msghdr& message, bool* from_peer);
  // Hands over the frames that are complete, as far as the bounds allow.
  void HandleFrames();
  // After them: what the rest of the input means.
  void SettleInput();
  // 0: not complete yet. Otherwise its whole size; an error when the framing is lost.
  Result<size_t> CompleteFrame();
  bool MustWait() const;
  void Violation(uint64_t request, const Status& status);
  void FlushNow();
  void ContinueIfWaiting();
  void OnTurn();
  void Continue();
  void Flush();
  size_t NextSegment(std::span<const UniqueFd>* fds) const;
  // Whether so many more descriptors may be sent before the peer has taken those on their way.
  bool MaySendFds(size_t count);
  // That the next frame's reply may have descriptors, as far as that is needed: it waits.
  bool AwaitsFds();
  // Takes the next frame, which has come whole, from the input.
  Frame TakeFrame();
  // Its peer has closed: noticed though it is not read.
  bool HungUp() const;
  void ForgetOutput();
  bool GrowInput(size_t frame_bytes);
  void ReturnInput();

  const uint64_t id_;
  const ConnectionEnvironment environment_;
  Owner& owner_;
  Peer peer_;
  OwnerLoop::Watch watch_;
  OwnerLoop::Timer again_;  // For frames that gave others their turn.
  MonotonicNs opened_at_ = 0;

  ByteQueue input_;
  size_t large_input_ = 0;  // Taken out of the shared budget.
  bool starved_ =
      false;  // The budget has no room for its frame: it is not read, Sweep tries again.
  MonotonicNs incomplete_since_ = 0;  // Since when the rest of a frame is awaited; 0: it is not.
  int frames_left_ = 0;               // To be handled before other connections have their turn.
  MonotonicNs turn_ends_ = 0;         // Likewise; a frame that was begun is ended.
  std::deque<UniqueFd> input_fds_;
  size_t max_frame_bytes_ = kHelloFrameBytes;
  bool may_pass_fds_ = false;

  // Descriptors leave with the first byte of their frame: `at` counts all bytes ever queued.
  struct FdsMark {
    uint64_t at = 0;
    std::vector<UniqueFd> fds;
  };
  ByteQueue output_;
  uint64_t sent_ = 0;  // Bytes ever sent.
  std::deque<FdsMark> output_fds_;
  size_t output_fd_count_ = 0;
  FdBudget::Account fds_;
  // Since when the share has no room for the next frame's reply, which is tried again soon; 0: it
  // has.
  MonotonicNs awaits_fds_since_ = 0;
  MonotonicNs stalled_since_ = 0;  // Since when the oldest waiting byte has waited; 0: none waits.

  std::vector<uint64_t> in_flight_;
  bool waiting_ = false;  // Frames may be left in `input_`, or on the socket, that MustWait.
  bool paused_ = false;
  bool batch_ = false;    // Frames are being handled: replies are sent at the end.
  bool closing_ = false;  // Reads no more.
  Status closing_why_;
};

}  // namespace terrace
