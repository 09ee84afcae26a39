#include "daemon/service/connection.h"

#include <google/protobuf/message_lite.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "proto/wire.pb.h"

namespace terrace {

namespace {

constexpr size_t kMaxQueuedInputFds = 2 * size_t{wire::kMaxFds};
// How often a peer is looked at that has not taken its descriptors: the kernel does not tell.
constexpr std::chrono::milliseconds kUnreadFdsEvery{10};
// Likewise when others are behind: of those that wait there may be many.
constexpr std::chrono::milliseconds kFdRoomEvery{50};
constexpr size_t kControlBytes =
    CMSG_SPACE(sizeof(ucred)) + CMSG_SPACE(wire::kMaxFds * sizeof(int));

void CountFrame(std::array<uint64_t, Traffic::kTypes>& counters, wire::Type type) {
  const auto number = static_cast<size_t>(type);
  if (number < counters.size()) ++counters[number];
}

// The bytes of the UTF-8 character at the start of `text`; 0 if there is none.
size_t CharacterBytes(std::string_view text) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  const size_t bytes = byte(0) < 0x80                      ? 1
                       : byte(0) >= 0xc2 && byte(0) < 0xe0 ? 2
                       : byte(0) >= 0xe0 && byte(0) < 0xf0 ? 3
                       : byte(0) >= 0xf0 && byte(0) < 0xf5 ? 4
                                                           : 0;
  if (bytes > text.size()) return 0;
  for (size_t i = 1; i < bytes; ++i) {
    if ((byte(i) & 0xc0) != 0x80) return 0;
  }
  // Overlong forms, surrogates, and beyond U+10FFFF.
  if (bytes == 3 && ((byte(0) == 0xe0 && byte(1) < 0xa0) || (byte(0) == 0xed && byte(1) > 0x9f))) {
    return 0;
  }
  if (bytes == 4 && ((byte(0) == 0xf0 && byte(1) < 0x90) || (byte(0) == 0xf4 && byte(1) > 0x8f))) {
    return 0;
  }
  return bytes;
}

// Messages quote what came from outside, perhaps cut; a peer refuses a string that is no UTF-8.
wire::Error ErrorOf(const Status& status) {
  wire::Error error;
  error.set_code(static_cast<uint32_t>(status.code()));
  std::string& message = *error.mutable_message();
  message = status.message();
  for (size_t at = 0; at < message.size();) {
    const size_t bytes = CharacterBytes(std::string_view(message).substr(at));
    if (bytes == 0) message[at] = '?';
    at += std::max<size_t>(bytes, 1);
  }
  return error;
}

}  // namespace

Connection::~Connection() {
  ReturnInput();
  ForgetOutput();
}

Status Connection::Open(UniqueFd socket) {
  opened_at_ = environment_.clock->Now();
  ASSIGN_OR_RETURN(watch_, environment_.loop->NewWatch(
                               std::move(socket), [this] { OnReadable(); }, [this] { OnTurn(); }));
  again_ = environment_.loop->NewTimer([this] { OnTurn(); });
  watch_.ArmRead();
  return {};
}

// ---- Input --------------------------------------------------------------------------------------

void Connection::OnReadable() {
  if (closing_) return;
  BeginTurn();
  fds_.Look(environment_.clock->Now());  // Who asks for more has mostly taken what it was sent.
  for (int i = 0; i < kReadsPerWake && open() && !closing_ && !MustWait(); ++i) {
    if (frames_left_ == 0 || starved_ || awaits_fds()) break;
    const Received received = ReceiveOnce();
    if (received == Received::kClosed) return;
    HandleFrames();
    if (received == Received::kDrained) break;
  }
  Continue();
}

Connection::Received Connection::ReceiveOnce() {
  // All the room there is, without growing: CompleteFrame has made place for a longer frame.
  const size_t free = input_.capacity() - input_.size();
  const std::span<uint8_t> room = input_.Room(input_.capacity() == 0 ? kSmallInput : free);
  iovec vector{room.data(), room.size()};
  alignas(cmsghdr) char control[kControlBytes];
  msghdr message{};
  message.msg_iov = &vector;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof control;
  const ssize_t bytes = ::recvmsg(watch_.fd(), &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
  if (bytes < 0) {
    if (errno == EAGAIN || errno == EINTR) return Received::kDrained;
    Close(SystemError("recvmsg", errno));
    return Received::kClosed;
  }
  bool from_peer = false;
  const Status control_status = TakeControl(message, &from_peer);
  if (bytes == 0) {
    Close(Status(Code::kUnavailable, "the peer closed the connection"));
    return Received::kClosed;
  }
  environment_.traffic->bytes_received += static_cast<uint64_t>(bytes);
  if (!from_peer) {
    Violation(0, Status(Code::kPermissionDenied,
                        "credentials: sent by another process than the one that connected"));
    return Received::kClosed;
  }
  if (!control_status.ok()) {
    Violation(0, control_status);
    return Received::kClosed;
  }
  input_.Append(static_cast<size_t>(bytes));
  return static_cast<size_t>(bytes) < room.size() ? Received::kDrained : Received::kMore;
}

Status Connection::TakeControl(msghdr& message, bool* from_peer) {
  for (cmsghdr* item = CMSG_FIRSTHDR(&message); item != nullptr;
       item = CMSG_NXTHDR(&message, item)) {
    if (item->cmsg_level != SOL_SOCKET) continue;
    if (item->cmsg_type == SCM_RIGHTS) {
      const size_t count = (item->cmsg_len - CMSG_LEN(0)) / sizeof(int);
      for (size_t i = 0; i < count; ++i) {
        int fd = -1;
        std::memcpy(&fd, CMSG_DATA(item) + i * sizeof(int), sizeof fd);
        input_fds_.emplace_back(fd);
      }
    } else if (item->cmsg_type == SCM_CREDENTIALS) {
      ucred credentials{};
      std::memcpy(&credentials, CMSG_DATA(item), sizeof credentials);
      *from_peer = credentials.pid == peer_.pid;
    }
  }
  if ((message.msg_flags & MSG_CTRUNC) != 0) {
    return {Code::kExhausted, "fds: descriptors were lost, for the daemon has too many open"};
  }
  if (!input_fds_.empty() && !may_pass_fds_) {
    input_fds_.clear();
    return {Code::kPermissionDenied, max_frame_bytes_ == kHelloFrameBytes
                                         ? "fds: no descriptors are taken before the hello"
                                         : "fds: this client may pass no descriptors"};
  }
  if (input_fds_.size() > kMaxQueuedInputFds) {
    return {Code::kInvalidArgument, "fds: more descriptors came than any frame may have"};
  }
  return {};
}

Result<size_t> Connection::CompleteFrame() {
  const std::span<const uint8_t> bytes = input_.bytes();
  if (bytes.size() < wire::kFrameHeaderBytes) return size_t{0};
  const wire::FrameHeader header = wire::DecodeHeader(bytes.first<wire::kFrameHeaderBytes>());
  if (header.length > max_frame_bytes_) {
    return Status(Code::kInvalidArgument,
                  "length: a frame of " + std::to_string(header.length) + " bytes, at most " +
                      std::to_string(max_frame_bytes_) + " are allowed" +
                      (max_frame_bytes_ == kHelloFrameBytes ? " before the hello" : ""));
  }
  if (header.fds > wire::kMaxFds) {
    return Status(Code::kInvalidArgument, "fds: the header says " + std::to_string(header.fds) +
                                              " descriptors, at most " +
                                              std::to_string(wire::kMaxFds) + " are allowed");
  }
  // They come with the frame's first byte, so none can still be on its way.
  if (header.fds > input_fds_.size()) {
    return Status(Code::kInvalidArgument, "fds: the header says " + std::to_string(header.fds) +
                                              " descriptors, " + std::to_string(input_fds_.size()) +
                                              " came");
  }
  const size_t whole = wire::kFrameHeaderBytes + header.length;
  if (bytes.size() >= whole) return whole;
  starved_ = !GrowInput(whole);
  return size_t{0};
}

void Connection::HandleFrames() {
  batch_ = true;
  starved_ = false;
  while (open() && !closing_ && !MustWait() && frames_left_ > 0) {
    const Result<size_t> whole = CompleteFrame();
    if (!whole) {
      const std::span<const uint8_t> bytes = input_.bytes();
      Violation(wire::DecodeHeader(bytes.first<wire::kFrameHeaderBytes>()).request, whole.error());
      break;
    }
    if (*whole == 0) {
      // A frame that waits for our memory is not late.
      if (starved_ || input_.empty()) {
        incomplete_since_ = 0;
      } else if (incomplete_since_ == 0) {
        incomplete_since_ = environment_.clock->Now();
      }
      break;
    }
    incomplete_since_ = 0;
    const bool short_of_fds = AwaitsFds();
    if (short_of_fds && !fds_.TooManyEnds()) break;
    --frames_left_;
    if (short_of_fds) {
      RefuseAwaiting();
      continue;
    }
    Frame frame = TakeFrame();
    owner_.OnFrame(*this, frame);
    input_.Consume(*whole);
    if (environment_.clock->Now() >= turn_ends_) frames_left_ = 0;
    if (output_.size() > kOutputHigh || output_fd_count_ > kOutputFdsHigh) Flush();
  }
  if (open() && !closing_) SettleInput();
  batch_ = false;
}

void Connection::SettleInput() {
  if (input_.empty() && !input_fds_.empty()) {
    Violation(0, Status(Code::kInvalidArgument, "fds: descriptors came that no frame names"));
    return;
  }
  if (large_input_ == 0 || input_.size() > kSmallInput) return;
  // Memory of a large frame goes back when what follows needs none, also when that follows so
  // closely that the input is never empty.
  const std::span<const uint8_t> bytes = input_.bytes();
  const bool small =
      bytes.size() < wire::kFrameHeaderBytes ||
      wire::kFrameHeaderBytes + wire::DecodeHeader(bytes.first<wire::kFrameHeaderBytes>()).length <=
          kSmallInput;
  if (small) ReturnInput();
}

Frame Connection::TakeFrame() {
  const std::span<const uint8_t> bytes = input_.bytes();
  Frame frame;
  frame.header = wire::DecodeHeader(bytes.first<wire::kFrameHeaderBytes>());
  frame.message = bytes.subspan(wire::kFrameHeaderBytes, frame.header.length);
  for (uint16_t i = 0; i < frame.header.fds; ++i) {
    frame.fds.push_back(std::move(input_fds_.front()));
    input_fds_.pop_front();
  }
  CountFrame(environment_.traffic->frames_received, frame.header.type);
  return frame;
}

bool Connection::AwaitsFds() {
  const std::span<const uint8_t> bytes = input_.bytes();
  const size_t count =
      owner_.FdsOfReply(wire::DecodeHeader(bytes.first<wire::kFrameHeaderBytes>()));
  if (count == 0 || MayQueueFds(count)) {
    awaits_fds_since_ = 0;
    return false;
  }
  if (!awaits_fds()) awaits_fds_since_ = environment_.clock->Now();
  return true;
}

void Connection::RefuseAwaiting() {
  awaits_fds_since_ = 0;
  const Frame frame = TakeFrame();
  input_.Consume(wire::kFrameHeaderBytes + frame.header.length);
  SendError(frame.header.request, fds_.WhyShort());
}

bool Connection::HungUp() const {
  pollfd entry{watch_.fd(), 0, 0};
  return ::poll(&entry, 1, 0) == 1 && (entry.revents & POLLHUP) != 0;
}

bool Connection::MustWait() const {
  return paused_ || in_flight_.size() >= kMaxInFlight || output_.size() > kOutputHigh ||
         output_fd_count_ > kOutputFdsHigh;
}

bool Connection::GrowInput(size_t frame_bytes) {
  if (frame_bytes <= input_.capacity()) return true;
  const size_t needed = std::max(frame_bytes, kSmallInput) - kSmallInput;
  if (needed > large_input_) {
    const size_t more = needed - large_input_;
    if (more > environment_.budgets->large_input_left) return false;
    environment_.budgets->large_input_left -= more;
    large_input_ = needed;
  }
  input_.Room(frame_bytes - input_.size());
  return true;
}

void Connection::ReturnInput() {
  if (large_input_ == 0) return;
  environment_.budgets->large_input_left += large_input_;
  large_input_ = 0;
  input_.ReleaseIfEmpty();
  input_.ShrinkTo(kSmallInput);
}

// ---- Output -------------------------------------------------------------------------------------

void Connection::Send(wire::Type type, uint64_t request,
                      const google::protobuf::MessageLite& message, std::vector<UniqueFd> fds) {
  if (!open()) return;
  TERRACE_CHECK(fds.size() <= wire::kMaxFds);
  const size_t length = message.ByteSizeLong();
  if (length > wire::kMaxFrameBytes) {
    SendError(request,
              Status(Code::kExhausted, "the answer has " + std::to_string(length) +
                                           " bytes, more than a frame may have: ask for less"));
    return;
  }
  if (length > kSmallOutput && environment_.budgets->output_bytes + length > kLargeOutputBudget) {
    SendError(request, Status(Code::kExhausted,
                              "the answer has " + std::to_string(length) +
                                  " bytes, and too much waits for clients that do not read: retry "
                                  "later or ask for less"));
    return;
  }
  if (output_.size() + length > kOutputMax) {
    ++environment_.traffic->slow_readers_cut;
    Close(Status(Code::kExhausted, "slow reader: too much waits to be sent"));
    return;
  }
  if (output_.empty()) stalled_since_ = environment_.clock->Now();
  wire::FrameHeader header;
  header.length = static_cast<uint32_t>(length);
  header.type = type;
  header.fds = static_cast<uint16_t>(fds.size());
  header.request = request;
  if (!fds.empty()) {
    output_fd_count_ += fds.size();
    fds_.Queue(fds.size());
    output_fds_.push_back(FdsMark{sent_ + output_.size(), std::move(fds)});
  }
  const std::span<uint8_t> room = output_.Room(wire::kFrameHeaderBytes + length);
  wire::EncodeHeader(header, room.first<wire::kFrameHeaderBytes>());
  message.SerializeWithCachedSizesToArray(room.data() + wire::kFrameHeaderBytes);
  output_.Append(wire::kFrameHeaderBytes + length);
  environment_.budgets->output_bytes += wire::kFrameHeaderBytes + length;
  CountFrame(environment_.traffic->frames_sent, type);
  if (!batch_) FlushNow();
}

void Connection::SendError(uint64_t request, const Status& status) {
  Send(wire::Type::kError, request, ErrorOf(status));
}

void Connection::SendLastWord(int socket, const Status& why) {
  const wire::Error error = ErrorOf(why);
  wire::FrameHeader header;
  header.length = static_cast<uint32_t>(error.ByteSizeLong());
  header.type = wire::Type::kError;
  std::string frame(wire::kFrameHeaderBytes, '\0');
  std::memcpy(frame.data(), &header, sizeof header);
  error.AppendToString(&frame);
  (void)::send(socket, frame.data(), frame.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
}

size_t Connection::NextSegment(std::span<const UniqueFd>* fds) const {
  size_t bytes = output_.size();
  size_t mark = 0;
  if (!output_fds_.empty() && output_fds_.front().at == sent_) {
    *fds = output_fds_.front().fds;
    mark = 1;
  }
  if (mark < output_fds_.size()) {
    bytes = static_cast<size_t>(output_fds_[mark].at - sent_);
  }
  return bytes;
}

bool Connection::MayQueueFds(size_t count) {
  const MonotonicNs now = environment_.clock->Now();
  constexpr size_t kMost = kUnreadFdsHigh + wire::kMaxFds;
  if (fds_.held() + count > kMost) fds_.Look(now);
  return fds_.held() + count <= kMost && fds_.MayQueue(count, now);
}

bool Connection::MaySendFds(size_t count) {
  if (fds_.in_flight() + count <= kUnreadFdsHigh) return true;
  fds_.Look(environment_.clock->Now());
  return fds_.in_flight() == 0;
}

void Connection::ForgetOutput() {
  environment_.budgets->output_bytes -= output_.size();
  output_.Consume(output_.size());
  output_.ReleaseIfEmpty();
  output_fds_.clear();
  output_fd_count_ = 0;
  fds_.DropQueued();
}

void Connection::Flush() {
  while (open() && !output_.empty()) {
    std::span<const UniqueFd> fds;
    iovec vector{const_cast<uint8_t*>(output_.bytes().data()), NextSegment(&fds)};
    if (!fds.empty() && !MaySendFds(fds.size())) {
      again_.Start(kUnreadFdsEvery);
      return;
    }
    msghdr message{};
    message.msg_iov = &vector;
    message.msg_iovlen = 1;
    alignas(cmsghdr) char control[CMSG_SPACE(wire::kMaxFds * sizeof(int))];
    if (!fds.empty()) {
      message.msg_control = control;
      message.msg_controllen = CMSG_SPACE(fds.size() * sizeof(int));
      cmsghdr* item = CMSG_FIRSTHDR(&message);
      item->cmsg_level = SOL_SOCKET;
      item->cmsg_type = SCM_RIGHTS;
      item->cmsg_len = CMSG_LEN(fds.size() * sizeof(int));
      for (size_t i = 0; i < fds.size(); ++i) {
        const int fd = fds[i].get();
        std::memcpy(CMSG_DATA(item) + i * sizeof(int), &fd, sizeof fd);
      }
    }
    fds_.Look(environment_.clock->Now());
    const ssize_t sent = ::sendmsg(watch_.fd(), &message, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (sent < 0) {
      // ETOOMANYREFS: too many descriptors that this user has sent, to whomever, are not taken yet.
      // That is not this peer's stall. Readiness does not tell when it ends, so Sweep tries again.
      if (errno == EAGAIN || errno == EINTR) {
        watch_.ArmWrite();
      } else if (errno == ETOOMANYREFS) {
        stalled_since_ = environment_.clock->Now();
      } else {
        Close(SystemError("sendmsg", errno));
      }
      return;
    }
    fds_.Sent(watch_.fd(), fds.size(), environment_.clock->Now());
    if (!fds.empty()) {
      output_fd_count_ -= output_fds_.front().fds.size();
      output_fds_.pop_front();
    }
    environment_.traffic->bytes_sent += static_cast<uint64_t>(sent);
    sent_ += static_cast<uint64_t>(sent);
    output_.Consume(static_cast<size_t>(sent));
    environment_.budgets->output_bytes -= static_cast<size_t>(sent);
    stalled_since_ = output_.empty() ? 0 : environment_.clock->Now();
    if (output_.capacity() > kOutputHigh) output_.ReleaseIfEmpty();
  }
}

// ---- Life ---------------------------------------------------------------------------------------

// Outside a batch the caller may be in the middle of a verb of the engine: nothing here may handle
// a further frame. Those that had to wait get a turn of their own.
void Connection::FlushNow() {
  Flush();
  if (!open()) return;
  if (closing_) {
    if (output_.empty()) Close(closing_why_);
  } else {
    ContinueIfWaiting();
  }
}

// Writability is not waited for: a peer that takes nothing must come to have a backlog, by which it
// is found.
void Connection::ContinueIfWaiting() {
  if (waiting_ && !MustWait()) again_.Start(std::chrono::milliseconds(0));
}

void Connection::BeginTurn() {
  frames_left_ = kFramesPerWake;
  turn_ends_ = environment_.clock->Now() + kTurnNs;
}

void Connection::OnTurn() {
  BeginTurn();
  Continue();
}

// Called by the loop only: sends, then goes on with frames that had to wait while both progress.
void Connection::Continue() {
  waiting_ = false;
  for (;;) {
    FlushNow();
    if (!open() || closing_) return;
    if (MustWait()) {
      waiting_ = true;
      incomplete_since_ = 0;  // It is not read meanwhile, so its rest cannot come.
      return;
    }
    if (frames_left_ == 0) {
      // Not before others had their turn.
      again_.Start(std::chrono::milliseconds(0));
      return;
    }
    const size_t before = input_.size();
    HandleFrames();
    if (input_.size() == before) break;
  }
  if (closing_) FlushNow();
  if (!open() || closing_ || starved_) return;
  if (awaits_fds()) {
    if (HungUp()) return Close(Status(Code::kUnavailable, "the peer closed the connection"));
    again_.Start(kFdRoomEvery);
  } else {
    watch_.ArmRead();
  }
}

bool Connection::EndRequest(uint64_t request) {
  const auto found = std::find(in_flight_.begin(), in_flight_.end(), request);
  if (found == in_flight_.end()) return false;
  in_flight_.erase(found);
  return true;
}

void Connection::ResumeFrames() {
  paused_ = false;
  ContinueIfWaiting();
}

void Connection::Violation(uint64_t request, const Status& status) {
  ++environment_.traffic->protocol_violations;
  closing_ = true;
  closing_why_ = status;
  SendError(request, status);
}

void Connection::CloseAfterSending(Status why) {
  if (!open() || closing_) return;
  closing_ = true;
  closing_why_ = std::move(why);
  if (!batch_) FlushNow();
}

void Connection::Close(const Status& why) {
  if (!open()) return;
  again_.Cancel();
  input_fds_.clear();
  ForgetOutput();
  fds_.Leave(watch_.Release(), environment_.clock->Now());
  owner_.OnClosed(*this, why);
}

void Connection::Sweep(MonotonicNs now, MonotonicNs stall_limit) {
  if (!open()) return;
  if (!output_.empty() && now - stalled_since_ > stall_limit) {
    ++environment_.traffic->slow_readers_cut;
    Close(Status(Code::kDeadlineExceeded, "slow reader: it took nothing of what waits for it"));
    return;
  }
  fds_.Look(now);
  if (fds_.in_flight() != 0 && now - fds_.idle_since() > stall_limit) {
    ++environment_.traffic->slow_readers_cut;
    Close(Status(Code::kDeadlineExceeded, "slow reader: it took no descriptor that it was sent"));
    return;
  }
  if (incomplete_since_ != 0 && !MustWait() && now - incomplete_since_ > stall_limit) {
    ++environment_.traffic->slow_readers_cut;
    Close(Status(Code::kDeadlineExceeded, "slow writer: it began a frame and did not end it"));
    return;
  }
  if (awaits_fds() && !closing_ && now - awaits_fds_since_ > stall_limit) {
    RefuseAwaiting();
    if (!open()) return;
  } else if (output_.empty() && !starved_) {
    return;
  }
  BeginTurn();
  Continue();
}

}  // namespace terrace
