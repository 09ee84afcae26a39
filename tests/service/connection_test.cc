// Frames over a socket pair, against a Connection whose owner echoes.
#include "daemon/service/connection.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/ioctl.h>
#include <sys/wait.h>

#include <future>
#include <thread>

#include "base/random.h"
#include "tests/service/wire_client.h"

namespace terrace {
namespace {

using testing::HasSubstr;

// Answers each frame with its own message (as a LoadReply) and descriptors; "late" frames are
// answered when the next one comes.
class Echo final : public Connection::Owner {
 public:
  explicit Echo(size_t large_input = kLargeInputBudget, bool may_pass_fds = true) {
    budgets_.large_input_left = large_input;
    int ends[2];
    EXPECT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0);
    client = WireClient(UniqueFd(ends[0]));
    UniqueFd served(ends[1]);
    const int on = 1;
    ::setsockopt(served.get(), SOL_SOCKET, SO_PASSCRED, &on, sizeof on);
    ::fcntl(served.get(), F_SETFL, O_NONBLOCK);
    Result<Peer> peer = PeerOf(served.get());
    EXPECT_EQ(peer.status(), Status());
    const ConnectionEnvironment environment{&loop_, &clock_, &traffic, &budgets_};
    Connection::Owner& owner = *this;
    connection_ = std::make_unique<Connection>(1, *std::move(peer), environment, owner);
    EXPECT_EQ(connection_->Open(std::move(served)), Status());
    connection_->AllowLargeFrames();
    connection_->AllowDescriptors(may_pass_fds);
    thread_ = std::thread([this] { loop_.Run(); });
  }
  ~Echo() override {
    Post([this] { connection_->Close(Status(Code::kUnavailable, "the test ends")); });
    loop_.Stop();
    thread_.join();
  }

  // Runs `task` on the loop's thread and waits for it.
  template <typename Task>
  void Post(Task task) {
    std::promise<void> done;
    loop_.Post([&] {
      task();
      done.set_value();
    });
    done.get_future().wait();
  }
  Connection& connection() { return *connection_; }
  ConnectionBudgets& budgets() { return budgets_; }                 // Likewise.
  size_t& large_input_left() { return budgets_.large_input_left; }  // On the loop's thread.
  Status AwaitClosed() { return closed_.get_future().get(); }

  WireClient client;
  Traffic traffic;
  uint64_t handled_at_turn = 0;  // Frames, when what the loop was asked to do had its turn.

 private:
  void OnFrame(Connection& connection, Frame& frame) override {
    wire::LoadReply reply;
    reply.set_digest(std::string(frame.message.begin(), frame.message.end()));
    if (reply.digest() == "late") return connection.BeginRequest(frame.header.request);
    ++handled_;
    if (reply.digest() == "ask for a turn") {
      loop_.Post([this] { handled_at_turn = handled_; });
    }
    connection.Send(wire::Type::kLoadReply, frame.header.request, reply, std::move(frame.fds));
  }
  size_t FdsOfReply(const wire::FrameHeader& header) const override { return header.fds; }
  void OnClosed(Connection&, const Status& why) override { closed_.set_value(why); }

  OwnerLoop loop_;
  const SystemClock clock_;
  ConnectionBudgets budgets_;
  uint64_t handled_ = 0;
  std::promise<Status> closed_;
  std::unique_ptr<Connection> connection_;
  std::thread thread_;
};

std::string EchoFrame(uint64_t request, const std::string& text, uint16_t fds = 0) {
  return WireClient::Encode(wire::Type::kLoad, request, text, fds);
}

void ExpectEcho(Echo& echo, uint64_t request, const std::string& text) {
  std::optional<ReceivedFrame> frame = echo.client.Receive();
  ASSERT_TRUE(frame.has_value()) << request;
  EXPECT_EQ(frame->header.request, request);
  const Result<wire::LoadReply> reply = WireClient::Parse<wire::LoadReply>(*std::move(frame));
  ASSERT_EQ(reply.status(), Status());
  EXPECT_EQ(reply->digest() == text, true) << request;
}

// What is left of the connection is one Error frame, and then its end.
void ExpectViolation(Echo& echo, Code code, const std::string& message) {
  std::optional<ReceivedFrame> frame = echo.client.Receive();
  ASSERT_TRUE(frame.has_value());
  const Result<wire::Error> error = WireClient::Parse<wire::Error>(*std::move(frame));
  EXPECT_EQ(error.status().code(), code);
  EXPECT_THAT(error.status().message(), HasSubstr(message));
  EXPECT_TRUE(echo.client.AwaitClosed());
  EXPECT_EQ(echo.AwaitClosed().code(), code);
  EXPECT_EQ(echo.traffic.protocol_violations, 1u);
}

TEST(Connection, AFrameMayComeByteByByte) {
  Echo echo;
  for (const char byte : EchoFrame(7, "split")) {
    ASSERT_TRUE(echo.client.SendBytes(std::string(1, byte)));
  }
  ExpectEcho(echo, 7, "split");
}

TEST(Connection, ManyFramesMayComeAtOnceAndInPieces) {
  Echo echo;
  Random random(11);
  std::string bytes;
  std::vector<std::string> texts;
  for (uint64_t i = 0; i < 500; ++i) {
    texts.emplace_back(random.Below(2000), static_cast<char>('a' + i % 26));
    bytes += EchoFrame(i, texts.back());
  }
  std::jthread sender([&] {
    for (size_t at = 0; at < bytes.size();) {
      const size_t piece = std::min(bytes.size() - at, size_t{1} + random.Below(40'000));
      ASSERT_TRUE(echo.client.SendBytes(bytes.substr(at, piece)));
      at += piece;
    }
  });
  for (uint64_t i = 0; i < texts.size(); ++i)
    ExpectEcho(echo, i, texts[i]);
}

TEST(Connection, AFrameMayHaveEightMebibytes) {
  Echo echo;
  const std::string text(wire::kMaxFrameBytes - 16, 'x');
  std::jthread sender([&] { ASSERT_TRUE(echo.client.SendBytes(EchoFrame(1, text))); });
  ExpectEcho(echo, 1, text);
  ASSERT_TRUE(echo.client.SendBytes(EchoFrame(2, "small again")));
  ExpectEcho(echo, 2, "small again");
}

TEST(Connection, DescriptorsStayWithTheirFrames) {
  Echo echo;
  std::vector<UniqueFd> kept;
  const auto numbered = [&](int number) {
    Result<UniqueFd> memfd = CreateMemfd("test", 4096);
    EXPECT_EQ(::pwrite(memfd->get(), &number, sizeof number, 0),
              static_cast<ssize_t>(sizeof number));
    kept.push_back(*std::move(memfd));
    return kept.back().get();
  };
  // Two with descriptors back to back, one of them cut in the middle, one without between others.
  const std::string third = EchoFrame(3, "three", 253);
  ASSERT_TRUE(echo.client.SendBytes(EchoFrame(1, "one", 2), {numbered(10), numbered(11)}));
  ASSERT_TRUE(echo.client.SendBytes(EchoFrame(2, "two")));
  std::vector<int> many;
  for (int i = 0; i < 253; ++i)
    many.push_back(numbered(100 + i));
  ASSERT_TRUE(echo.client.SendBytes(third.substr(0, 18), many));
  ASSERT_TRUE(echo.client.SendBytes(third.substr(18)));
  ASSERT_TRUE(echo.client.SendBytes(EchoFrame(4, "four", 1), {numbered(999)}));
  const std::vector<std::vector<int>> expected = {{10, 11}, {}, {}, {999}};
  for (uint64_t request = 1; request <= 4; ++request) {
    std::optional<ReceivedFrame> frame = echo.client.Receive();
    ASSERT_TRUE(frame.has_value());
    ASSERT_EQ(frame->header.request, request);
    ASSERT_EQ(frame->fds.size(), request == 3 ? 253u : expected[request - 1].size());
    for (size_t i = 0; i < frame->fds.size(); ++i) {
      int number = 0;
      ASSERT_EQ(::pread(frame->fds[i].get(), &number, sizeof number, 0),
                static_cast<ssize_t>(sizeof number));
      EXPECT_EQ(number, request == 3 ? 100 + static_cast<int>(i) : expected[request - 1][i]);
    }
  }
}

TEST(Connection, ALengthOverTheLimitIsRefusedBeforeItsBytesCome) {
  Echo echo;
  wire::FrameHeader header;
  header.length = wire::kMaxFrameBytes + 1;
  header.type = wire::Type::kLoad;
  std::string bytes(sizeof header, '\0');
  std::memcpy(bytes.data(), &header, sizeof header);
  ASSERT_TRUE(echo.client.SendBytes(bytes));
  ExpectViolation(echo, Code::kInvalidArgument,
                  "length: a frame of 8388609 bytes, at most 8388608");
}

TEST(Connection, MoreDescriptorsThanAMessageCanHaveAreRefused) {
  Echo echo;
  ASSERT_TRUE(echo.client.SendBytes(EchoFrame(1, "x", 254)));
  ExpectViolation(echo, Code::kInvalidArgument, "fds: the header says 254 descriptors");
}

TEST(Connection, PromisedDescriptorsThatDidNotComeAreRefused) {
  Echo echo;
  const UniqueFd one(::open("/dev/null", O_RDONLY | O_CLOEXEC));
  ASSERT_TRUE(echo.client.SendBytes(EchoFrame(1, "x", 2), {one.get()}));
  ExpectViolation(echo, Code::kInvalidArgument, "fds: the header says 2 descriptors, 1 came");
}

TEST(Connection, DescriptorsThatNoFrameNamesAreRefusedAndClosed) {
  Echo echo;
  int pipe_ends[2];
  ASSERT_EQ(::pipe2(pipe_ends, O_CLOEXEC), 0);
  const UniqueFd read_end(pipe_ends[0]);
  UniqueFd write_end(pipe_ends[1]);
  ASSERT_TRUE(echo.client.SendBytes(EchoFrame(1, "x"), {write_end.get()}));
  write_end.Reset();
  ExpectEcho(echo, 1, "x");
  ExpectViolation(echo, Code::kInvalidArgument, "fds: descriptors came that no frame names");
  char byte;
  EXPECT_EQ(::read(read_end.get(), &byte, 1), 0);  // End of file: nobody has the other end.
}

TEST(Connection, DescriptorsOfWhoMayPassNoneAreClosed) {
  Echo echo(kLargeInputBudget, /*may_pass_fds=*/false);
  int pipe_ends[2];
  ASSERT_EQ(::pipe2(pipe_ends, O_CLOEXEC), 0);
  const UniqueFd read_end(pipe_ends[0]);
  UniqueFd write_end(pipe_ends[1]);
  ASSERT_TRUE(echo.client.SendBytes(EchoFrame(1, "x", 1), {write_end.get()}));
  write_end.Reset();
  ExpectViolation(echo, Code::kPermissionDenied, "fds: this client may pass no descriptors");
  char byte;
  EXPECT_EQ(::read(read_end.get(), &byte, 1), 0);
}

// Those on their way count for the whole user: the kernel would refuse to pass any to others.
TEST(Connection, DescriptorsThatAPeerDoesNotTakeAreFewAndAllComeInTheEnd) {
  Echo echo;
  constexpr int kFrames = 12;
  constexpr int kFds = 200;
  const UniqueFd null(::open("/dev/null", O_RDONLY | O_CLOEXEC));
  wire::LoadReply reply;
  echo.Post([&] {
    for (int i = 0; i < kFrames; ++i) {
      std::vector<UniqueFd> fds;
      for (int n = 0; n < kFds; ++n)
        fds.push_back(*null.Duplicate());
      echo.connection().Send(wire::Type::kLoadReply, static_cast<uint64_t>(i), reply,
                             std::move(fds));
    }
    EXPECT_TRUE(echo.connection().has_backlog());
  });
  int waiting_bytes = 0;
  ASSERT_EQ(::ioctl(echo.client.fd(), FIONREAD, &waiting_bytes), 0);
  EXPECT_LE(static_cast<size_t>(waiting_bytes) / wire::kFrameHeaderBytes * kFds, kUnreadFdsHigh);
  for (int i = 0; i < kFrames; ++i) {
    const std::optional<ReceivedFrame> frame = echo.client.Receive();
    ASSERT_TRUE(frame.has_value()) << i;
    EXPECT_EQ(frame->header.request, static_cast<uint64_t>(i));
    EXPECT_EQ(frame->fds.size(), static_cast<size_t>(kFds));
  }
}

TEST(Connection, WhoTakesNoDescriptorIsCutThoughTheSocketHasRoom) {
  Echo echo;
  const UniqueFd null(::open("/dev/null", O_RDONLY | O_CLOEXEC));
  ASSERT_TRUE(echo.client.SendBytes(EchoFrame(1, "a descriptor", 1), {null.get()}));
  pollfd entry{echo.client.fd(), POLLIN, 0};
  ASSERT_EQ(::poll(&entry, 1, 10'000), 1);
  echo.Post([&] {
    EXPECT_FALSE(echo.connection().has_backlog());
    echo.connection().Sweep(SystemClock().Now(), 3600 * kNsPerSecond);
    EXPECT_TRUE(echo.connection().open());
    echo.connection().Sweep(SystemClock().Now() + 7200 * kNsPerSecond, 3600 * kNsPerSecond);
    EXPECT_FALSE(echo.connection().open());
    // Its queue has it still: that ends with the queue, not with the connection.
    echo.budgets().fds.Sweep();
    EXPECT_EQ(echo.budgets().fds.used(), 2u);
  });
  EXPECT_EQ(echo.AwaitClosed().code(), Code::kDeadlineExceeded);
  EXPECT_EQ(echo.traffic.slow_readers_cut, 1u);
  ExpectEcho(echo, 1, "a descriptor");
  EXPECT_TRUE(echo.client.AwaitClosed());
  echo.Post([&] {
    echo.budgets().fds.Sweep();
    EXPECT_EQ(echo.budgets().fds.used(), 0u);
  });
}

TEST(Connection, WhoTookItsDescriptorsMayLeaveAnEventUnread) {
  Echo echo;
  const UniqueFd null(::open("/dev/null", O_RDONLY | O_CLOEXEC));
  wire::LoadReply message;
  echo.Post([&] {
    std::vector<UniqueFd> fds;
    fds.push_back(*null.Duplicate());
    echo.connection().Send(wire::Type::kLoadReply, 1, message, std::move(fds));
    echo.connection().Send(wire::Type::kLoadReply, 2, message);
  });
  char frame[wire::kFrameHeaderBytes + 1];
  const size_t first = wire::kFrameHeaderBytes + message.ByteSizeLong();
  ASSERT_EQ(::recv(echo.client.fd(), frame, first, MSG_WAITALL), static_cast<ssize_t>(first));
  echo.Post([&] {
    echo.connection().Sweep(SystemClock().Now() + 7200 * kNsPerSecond, 3600 * kNsPerSecond);
    EXPECT_TRUE(echo.connection().open());
    EXPECT_EQ(echo.budgets().fds.used(), 0u);
  });
}

TEST(Connection, ARequestForDescriptorsWaitsWhileTheShareIsUsedUp) {
  Echo echo;
  const UniqueFd null(::open("/dev/null", O_RDONLY | O_CLOEXEC));
  echo.Post([&] { echo.budgets().fds.SetTotal(8); });
  for (uint64_t request = 1; request <= 8; ++request) {
    ASSERT_TRUE(echo.client.SendBytes(EchoFrame(request, "one", 1), {null.get()}));
  }
  // As many as stay free of the share, and no more while none is taken.
  const auto sent = [&] {
    uint64_t frames = 0;
    echo.Post(
        [&] { frames = echo.traffic.frames_sent[static_cast<size_t>(wire::Type::kLoadReply)]; });
    return frames;
  };
  for (int turn = 0; turn < 100; ++turn)
    EXPECT_LE(sent(), 4u);
  pollfd entry{echo.client.fd(), POLLIN, 0};
  ASSERT_EQ(::poll(&entry, 1, 10'000), 1);
  for (uint64_t request = 1; request <= 8; ++request)
    ExpectEcho(echo, request, "one");
}

// Has asked for a descriptor that there is no room for.
void AskInVain(Echo& echo, uint64_t request) {
  const UniqueFd null(::open("/dev/null", O_RDONLY | O_CLOEXEC));
  echo.Post([&] { echo.budgets().fds.SetTotal(0); });
  ASSERT_TRUE(echo.client.SendBytes(EchoFrame(request, "one", 1), {null.get()}));
  bool waits = false;
  for (int turn = 0; turn < 1'000'000 && !waits; ++turn)
    echo.Post([&] { waits = echo.connection().awaits_fds(); });
  ASSERT_TRUE(waits);
}

TEST(Connection, ARequestThatWaitedTooLongForDescriptorsIsAnsweredExhausted) {
  Echo echo;
  ASSERT_NO_FATAL_FAILURE(AskInVain(echo, 1));
  ASSERT_TRUE(echo.client.SendBytes(EchoFrame(2, "behind it")));
  echo.Post([&] {
    echo.connection().Sweep(SystemClock().Now(), 3600 * kNsPerSecond);
    EXPECT_TRUE(echo.connection().awaits_fds());
    echo.connection().Sweep(SystemClock().Now() + 7200 * kNsPerSecond, 3600 * kNsPerSecond);
    EXPECT_TRUE(echo.connection().open());
  });
  std::optional<ReceivedFrame> frame = echo.client.Receive();
  ASSERT_TRUE(frame.has_value());
  EXPECT_EQ(frame->header.request, 1u);
  const Status why = WireClient::Parse<wire::LoadReply>(*std::move(frame)).status();
  EXPECT_EQ(why.code(), Code::kExhausted);
  EXPECT_THAT(why.message(), HasSubstr("descriptors: the connections of user"));
  ExpectEcho(echo, 2, "behind it");
}

TEST(Connection, AHangUpIsNoticedWhileARequestWaitsForDescriptors) {
  Echo echo;
  ASSERT_NO_FATAL_FAILURE(AskInVain(echo, 1));
  echo.client.Close();
  EXPECT_EQ(echo.AwaitClosed().code(), Code::kUnavailable);
}

TEST(Connection, LargeAnswersOfAllShareABudget) {
  Echo echo;
  wire::LoadReply large;
  large.set_digest(std::string(kSmallOutput + 1, 'x'));
  echo.Post([&] {
    echo.budgets().output_bytes += kLargeOutputBudget;  // Of others.
    echo.connection().Send(wire::Type::kLoadReply, 7, large);
  });
  std::optional<ReceivedFrame> refused = echo.client.Receive();
  ASSERT_TRUE(refused.has_value());
  EXPECT_EQ(refused->header.request, 7u);
  EXPECT_EQ(WireClient::Parse<wire::LoadReply>(*std::move(refused)).status().code(),
            Code::kExhausted);
  // Small ones have room always, and the budget is given back with what was sent.
  ASSERT_TRUE(echo.client.SendBytes(EchoFrame(8, "small")));
  ExpectEcho(echo, 8, "small");
  echo.Post([&] {
    EXPECT_EQ(echo.budgets().output_bytes, kLargeOutputBudget);
    echo.budgets().output_bytes = 0;
    echo.connection().Send(wire::Type::kLoadReply, 9, large);
  });
  ExpectEcho(echo, 9, large.digest());
}

TEST(Connection, AForkedChildClosesItByItsFirstByte) {
  Echo echo;
  ASSERT_TRUE(echo.client.SendBytes(EchoFrame(1, "parent")));
  ExpectEcho(echo, 1, "parent");
  const std::string frame = EchoFrame(2, "child");
  const pid_t child = ::fork();
  if (child == 0) {
    ::_exit(::write(echo.client.fd(), frame.data(), frame.size()) ==
                    static_cast<ssize_t>(frame.size())
                ? 0
                : 1);
  }
  int status = -1;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
  ExpectViolation(echo, Code::kPermissionDenied, "credentials");
}

TEST(Connection, WhatTheSharedBudgetCannotHoldWaitsUntilItCan) {
  Echo echo(1u << 20);
  ASSERT_TRUE(echo.client.SendBytes(EchoFrame(1, std::string(900'000, 'x'))));
  ExpectEcho(echo, 1, std::string(900'000, 'x'));
  const std::string text(2'000'000, 'y');
  std::jthread sender([&] { echo.client.SendBytes(EchoFrame(2, text) + EchoFrame(3, "next")); });
  for (uint64_t taken = 0; taken <= 900'000 + wire::kFrameHeaderBytes;) {
    echo.Post([&] { taken = echo.traffic.bytes_received; });
  }
  // However long that is: the memory that it waits for is not its own.
  echo.Post([&] {
    echo.connection().Sweep(SystemClock().Now() + 7200 * kNsPerSecond, 3600 * kNsPerSecond);
    EXPECT_TRUE(echo.connection().open());
    EXPECT_EQ(echo.traffic.frames_received[static_cast<size_t>(wire::Type::kLoad)], 1u);
    EXPECT_EQ(echo.large_input_left(), 1u << 20);  // What the first frame had is back.
    echo.large_input_left() += 1u << 20;
    echo.connection().Sweep(SystemClock().Now(), 3600 * kNsPerSecond);
  });
  ExpectEcho(echo, 2, text);
  ExpectEcho(echo, 3, "next");
  echo.Post([&] { EXPECT_EQ(echo.large_input_left(), 2u << 20); });
}

TEST(Connection, MemoryOfALargeFrameGoesBackThoughAnotherFollowsAtOnce) {
  Echo echo(1u << 20);
  const std::string text(80'000, 'x');  // What is read of it may have the next one's begin behind.
  const std::string next = EchoFrame(2, "follows");
  std::jthread sender([&] {
    ASSERT_TRUE(echo.client.SendBytes(EchoFrame(1, text) + next.substr(0, next.size() - 1)));
  });
  ExpectEcho(echo, 1, text);
  sender.join();
  for (size_t left = 0; left < 1u << 20;) {
    echo.Post([&] { left = echo.large_input_left(); });
  }
  ASSERT_TRUE(echo.client.SendBytes(next.substr(next.size() - 1)));
  ExpectEcho(echo, 2, "follows");
}

TEST(Connection, AFrameThatIsBegunAndNotEndedIsCut) {
  Echo echo;
  const std::string frame = EchoFrame(1, std::string(500'000, 'x'));
  ASSERT_TRUE(echo.client.SendBytes(frame.substr(0, 20)));
  for (size_t left = kLargeInputBudget; left == kLargeInputBudget;) {
    echo.Post([&] { left = echo.large_input_left(); });
  }
  echo.Post([&] {
    echo.connection().Sweep(SystemClock().Now(), 3600 * kNsPerSecond);
    EXPECT_TRUE(echo.connection().open());
    echo.connection().Sweep(SystemClock().Now() + 7200 * kNsPerSecond, 3600 * kNsPerSecond);
    EXPECT_FALSE(echo.connection().open());
  });
  EXPECT_EQ(echo.AwaitClosed().code(), Code::kDeadlineExceeded);
}

TEST(Connection, AConnectionWithoutAFrameUnderWayMayBeIdleForEver) {
  Echo echo;
  ASSERT_TRUE(echo.client.SendBytes(EchoFrame(1, "one")));
  ExpectEcho(echo, 1, "one");
  echo.Post([&] {
    echo.connection().Sweep(SystemClock().Now() + 7200 * kNsPerSecond, 3600 * kNsPerSecond);
    EXPECT_TRUE(echo.connection().open());
  });
}

TEST(Connection, ManyFramesAtOnceLeaveOthersTheirTurn) {
  Echo echo;
  std::string bytes = EchoFrame(0, "ask for a turn");
  constexpr uint64_t kFrames = 1000;
  for (uint64_t i = 1; i < kFrames; ++i)
    bytes += EchoFrame(i, "x");
  ASSERT_TRUE(echo.client.SendBytes(bytes));  // One piece, which one read takes.
  ExpectEcho(echo, 0, "ask for a turn");
  for (uint64_t i = 1; i < kFrames; ++i)
    ExpectEcho(echo, i, "x");
  echo.Post([&] {
    EXPECT_GE(echo.handled_at_turn, 1u);
    EXPECT_LE(echo.handled_at_turn, static_cast<uint64_t>(kFramesPerWake));
  });
}

TEST(Connection, AReaderThatTakesNothingStopsItselfAndIsThenCut) {
  Echo echo;
  // Far more than the socket and the queue hold: the daemon must stop reading, not buffer.
  const std::string text(100'000, 'x');
  std::string bytes;
  for (int i = 0; i < 100; ++i)
    bytes += EchoFrame(1, text);
  size_t sent = 0;
  for (;;) {
    const ssize_t count = ::send(echo.client.fd(), bytes.data() + sent, bytes.size() - sent,
                                 MSG_DONTWAIT | MSG_NOSIGNAL);
    if (count > 0) {
      sent += static_cast<size_t>(count);
      continue;
    }
    pollfd entry{echo.client.fd(), POLLOUT, 0};
    if (::poll(&entry, 1, 500) == 0) break;  // It takes no more: that is what is asked for.
  }
  EXPECT_LT(sent, bytes.size());
  echo.Post([&] {
    EXPECT_TRUE(echo.connection().has_backlog());
    echo.connection().Sweep(SystemClock().Now(), 3600 * kNsPerSecond);
    EXPECT_TRUE(echo.connection().open());
    echo.connection().Sweep(SystemClock().Now() + 7200 * kNsPerSecond, 3600 * kNsPerSecond);
    EXPECT_FALSE(echo.connection().open());
  });
  EXPECT_EQ(echo.AwaitClosed().code(), Code::kDeadlineExceeded);
  EXPECT_EQ(echo.traffic.slow_readers_cut, 1u);
}

TEST(Connection, EventsBeyondTheBoundCutASlowReader) {
  Echo echo;
  wire::LoadReply event;
  event.set_digest(std::string(1'000'000, 'x'));
  echo.Post([&] {
    for (int i = 0; i < 20 && echo.connection().open(); ++i) {
      echo.connection().Send(wire::Type::kLoadReply, 0, event);
    }
    EXPECT_FALSE(echo.connection().open());
  });
  EXPECT_EQ(echo.AwaitClosed().code(), Code::kExhausted);
}

TEST(Connection, RequestsInFlightAreBoundedAndGoOnWhenOneEnds) {
  Echo echo;
  std::string bytes;
  for (uint64_t i = 0; i < kMaxInFlight; ++i)
    bytes += EchoFrame(i, "late");
  bytes += EchoFrame(1000, "after");
  ASSERT_TRUE(echo.client.SendBytes(bytes));
  // The frame behind them is not handled before one of them is answered.
  for (bool all = false; !all;) {
    echo.Post([&] { all = echo.connection().in_flight().size() == kMaxInFlight; });
  }
  EXPECT_EQ(echo.traffic.frames_sent[static_cast<size_t>(wire::Type::kLoadReply)], 0u);
  echo.Post([&] {
    EXPECT_TRUE(echo.connection().EndRequest(5));
    EXPECT_FALSE(echo.connection().EndRequest(5));
    wire::LoadReply reply;
    reply.set_digest("now");
    echo.connection().Send(wire::Type::kLoadReply, 5, reply);
  });
  ExpectEcho(echo, 5, "now");
  ExpectEcho(echo, 1000, "after");
}

TEST(Connection, WhatIsQueuedIsSentBeforeItCloses) {
  Echo echo;
  wire::LoadReply reply;
  reply.set_digest(std::string(3'000'000, 'y'));
  echo.Post([&] {
    echo.connection().Send(wire::Type::kLoadReply, 1, reply);
    echo.connection().CloseAfterSending(Status(Code::kUnavailable, "done"));
  });
  ExpectEcho(echo, 1, reply.digest());
  EXPECT_TRUE(echo.client.AwaitClosed());
}

TEST(Connection, RandomBytesEndItWithAnErrorAtMost) {
  for (uint64_t seed = 1; seed <= 200; ++seed) {
    Echo echo;
    Random random(seed);
    std::string bytes;
    for (int i = 0; i < 20; ++i) {
      // Valid frames with flipped bits reach further than noise does.
      std::string frame = EchoFrame(random(), std::string(random.Below(300), 'z'));
      if (random.Chance(1, 3)) frame[random.Below(frame.size())] ^= 1 << random.Below(8);
      if (random.Chance(1, 8)) frame.resize(random.Below(frame.size()));
      bytes += frame;
    }
    echo.client.SendBytes(bytes);
    ::shutdown(echo.client.fd(), SHUT_WR);
    EXPECT_TRUE(echo.client.AwaitClosed()) << "seed " << seed;
  }
}

}  // namespace
}  // namespace terrace
