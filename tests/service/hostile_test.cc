// Whatever bytes come: a clear error, at most that connection closed, and everybody else served.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/random.h"
#include "proto/shared_memory.h"
#include "tests/service/wire_client.h"
#include "tests/support/daemon_process.h"

namespace terrace {
namespace {

using testing::HasSubstr;

class HostileTest : public testing::Test {
 protected:
  void SetUp() override {
    Result<std::unique_ptr<DaemonProcess>> daemon = DaemonProcess::Start({.log_level = "warning"});
    ASSERT_EQ(daemon.status(), Status());
    daemon_ = *std::move(daemon);
    good_ = WireClient::Connect(daemon_->socket());
    ASSERT_EQ(good_.Hello("good").status(), Status());
  }
  void TearDown() override {
    EXPECT_EQ(good_.Call<wire::PingReply>(wire::Type::kPing, wire::Ping()).status(), Status());
    EXPECT_EQ(*daemon_->Stop(), 0) << daemon_->Log();
  }
  WireClient Connect(bool hello = true) {
    WireClient client = WireClient::Connect(daemon_->socket());
    if (hello) {
      EXPECT_EQ(client.Hello("hostile").status(), Status());
    }
    return client;
  }
  static Status Answer(WireClient& client, const std::string& bytes,
                       const std::vector<int>& fds = {}) {
    if (!client.SendBytes(bytes, fds)) return Status(Code::kUnavailable, "not sent");
    std::optional<ReceivedFrame> frame = client.Receive();
    if (!frame) return Status(Code::kUnavailable, "no answer");
    return WireClient::Parse<wire::PingReply>(*std::move(frame)).status();
  }

  std::unique_ptr<DaemonProcess> daemon_;
  WireClient good_;
};

TEST_F(HostileTest, UnknownTypesAndMalformedMessagesAreAnsweredAndTheConnectionGoesOn) {
  WireClient client = Connect();
  EXPECT_THAT(Answer(client, WireClient::Encode(static_cast<wire::Type>(60'000), 1, "")).message(),
              HasSubstr("type: 60000"));
  EXPECT_THAT(Answer(client, WireClient::Encode(wire::Type::kPingReply, 1, "")).message(),
              HasSubstr("type: 5"));
  EXPECT_THAT(
      Answer(client, WireClient::Encode(wire::Type::kGrant, 1, "\xff\xff\xff\xff")).message(),
      HasSubstr("terrace.wire.Grant"));
  const UniqueFd null(::open("/dev/null", O_RDONLY | O_CLOEXEC));
  EXPECT_THAT(
      Answer(client, WireClient::Encode(wire::Type::kPing, 1, "", 1), {null.get()}).message(),
      HasSubstr("fds: this message takes no descriptors"));
  // What an answer quotes of a request is cut, but stays UTF-8.
  wire::ModelAdd add;
  std::string name = "x";
  for (int i = 0; i < 200; ++i)
    name += "\xc3\xa9";
  add.add_files(name);
  EXPECT_THAT(Answer(client, WireClient::Encode(wire::Type::kModelAdd, 2, add)).message(),
              HasSubstr("is no absolute path"));
  EXPECT_EQ(Answer(client, WireClient::Encode(wire::Type::kPing, 2, "")), Status());
  // Text that is no UTF-8 is malformed, and no reason to write to the log.
  EXPECT_EQ(Answer(client, WireClient::Encode(wire::Type::kReport, 3, "\x0a\x02\xff\xff")).code(),
            Code::kInvalidArgument);
  EXPECT_THAT(daemon_->Log(), testing::Not(HasSubstr("libprotobuf")));
}

TEST_F(HostileTest, NothingIsServedBeforeHello) {
  WireClient client = Connect(false);
  for (const wire::Type type : {wire::Type::kPing, wire::Type::kReport, wire::Type::kGoodbye,
                                wire::Type::kLoad, wire::Type::kEvict}) {
    EXPECT_THAT(Answer(client, WireClient::Encode(type, 1, "")).message(), HasSubstr("hello: "));
  }
  EXPECT_THAT(
      Answer(client, WireClient::Encode(wire::Type::kHello, 1, std::string(5000, 'x'))).message(),
      HasSubstr("length: a frame of 5000 bytes"));
  EXPECT_TRUE(client.AwaitClosed());
}

TEST_F(HostileTest, AHelloThatCannotBeIsRefusedByItsField) {
  WireClient client = Connect(false);
  const auto refused = [&](const wire::Hello& hello) {
    return client.Call<wire::HelloReply>(wire::Type::kHello, hello).status();
  };
  wire::Hello hello;
  hello.set_version_min(wire::kProtocolVersion + 1);
  hello.set_version_max(wire::kProtocolVersion + 7);
  EXPECT_EQ(refused(hello).code(), Code::kMismatch);
  hello.set_version_min(wire::kProtocolVersion);
  hello.set_name(std::string(65, 'n'));
  EXPECT_THAT(refused(hello).message(), HasSubstr("name: 65 bytes"));
  hello.set_name("a\nb");
  EXPECT_THAT(refused(hello).message(), HasSubstr("name: it may have no control characters"));
  hello.set_name("fine");
  EXPECT_EQ(refused(hello), Status());
  EXPECT_THAT(refused(hello).message(), HasSubstr("hello: this connection has said it already"));
}

TEST_F(HostileTest, SeededNoiseOfFramesHarmsNobodyElse) {
  for (uint64_t seed = 1; seed <= 60; ++seed) {
    Random random(seed);
    WireClient client = Connect(random.Chance(3, 4));
    std::string bytes;
    for (int i = 0; i < 40; ++i) {
      std::string message(random.Below(200), '\0');
      for (char& c : message)
        c = static_cast<char>(random());
      // Even noise is mostly of types that exist.
      const auto type =
          static_cast<wire::Type>(random.Chance(9, 10) ? 2 * (1 + random.Below(20)) : random());
      if (type == wire::Type::kEvict) continue;
      bytes += WireClient::Encode(type, random(), message);
      if (random.Chance(1, 30)) bytes.resize(bytes.size() - random.Below(bytes.size()));
    }
    client.SendBytes(bytes);
    ::shutdown(client.fd(), SHUT_WR);
    EXPECT_TRUE(client.AwaitClosed()) << "seed " << seed;
    ASSERT_EQ(good_.Call<wire::PingReply>(wire::Type::kPing, wire::Ping()).status(), Status())
        << "seed " << seed << daemon_->Log();
  }
}

TEST_F(HostileTest, NumbersOutOfEverythingAreAnsweredNotBelieved) {
  WireClient client = Connect();
  Random random(5);
  for (int i = 0; i < 200; ++i) {
    const auto number = [&] { return random.Chance(1, 2) ? random() : random.Below(5); };
    wire::Grant grant;
    grant.set_slot(static_cast<uint32_t>(number()));
    grant.set_epoch(static_cast<uint32_t>(number()));
    grant.set_part(static_cast<uint32_t>(number()));
    grant.set_deadline_ms(static_cast<uint32_t>(number()));
    grant.set_keys(std::string(32 * random.Below(4), 'k'));
    ASSERT_TRUE(client.Ask(wire::Type::kGrant, grant).has_value());
    wire::Commit commit;
    commit.add_grants(number());
    commit.add_valid_tokens(static_cast<uint32_t>(number()));
    ASSERT_TRUE(client.Ask(wire::Type::kCommit, commit).has_value());
    wire::Abort abort;
    abort.add_grants(number());
    ASSERT_TRUE(client.Ask(wire::Type::kAbort, abort).has_value());
    wire::CloseSpace close;
    close.set_slot(static_cast<uint32_t>(number()));
    close.set_epoch(static_cast<uint32_t>(number()));
    ASSERT_TRUE(client.Ask(wire::Type::kCloseSpace, close).has_value());
    wire::Arenas arenas;
    arenas.add_ids(static_cast<uint32_t>(number()));
    ASSERT_TRUE(client.Ask(wire::Type::kArenas, arenas).has_value());
    wire::AttachBlocks blocks;
    blocks.set_attachment(number());
    blocks.add_blocks(static_cast<uint32_t>(number()));
    ASSERT_TRUE(client.Ask(wire::Type::kAttachBlocks, blocks).has_value());
    wire::Detach detach;
    detach.set_attachment(number());
    ASSERT_TRUE(client.Ask(wire::Type::kDetach, detach).has_value());
    wire::OpenSpace open;
    open.mutable_layout()->set_dtype("bf16");
    open.mutable_layout()->set_layers(static_cast<uint32_t>(number()));
    open.mutable_layout()->set_kv_heads(static_cast<uint32_t>(number()));
    open.mutable_layout()->set_head_size(static_cast<uint32_t>(number()));
    open.mutable_layout()->set_page_tokens(static_cast<uint32_t>(number()));
    open.mutable_layout()->set_planes(static_cast<uint32_t>(number()));
    open.mutable_layout()->set_order("layer,plane,token,head,dim");
    ASSERT_TRUE(client.Ask(wire::Type::kOpenSpace, open).has_value());
  }
}

TEST_F(HostileTest, AChannelFullOfNoiseHarmsNobodyElse) {
  WireClient client = WireClient::Connect(daemon_->socket());
  std::vector<UniqueFd> fds;
  ASSERT_EQ(client.Hello("noise", true, &fds).status(), Status());
  Result<Mapping> channel =
      Mapping::Of(fds.at(0).get(), 0, shm::kChannelBytes, Protection::kReadWrite);
  ASSERT_EQ(channel.status(), Status());
  Random random(3);
  for (size_t at = 0; at + 8 <= channel->size(); at += 8) {
    const uint64_t word = random.Chance(1, 4) ? random() : random.Below(3);
    std::memcpy(channel->data() + at, &word, sizeof word);
  }
  // Eviction scans pins; turns drain rings and fold counters in.
  for (int i = 0; i < 50; ++i) {
    wire::Report report;
    report.set_what(i % 2 == 0 ? "clients" : "status");
    ASSERT_EQ(good_.Call<wire::ReportReply>(wire::Type::kReport, report).status(), Status());
    ASSERT_EQ(good_.Call<wire::EvictReply>(wire::Type::kEvict, wire::Evict()).status(), Status());
  }
}

TEST_F(HostileTest, AFileThatIsNoModelIsRefusedWithItsName) {
  WireClient client = Connect();
  wire::ModelAdd add;
  add.set_name("bad");
  add.set_version("v1");
  add.add_files("/dev/zero");
  const Status status = client.Call<wire::ModelAddReply>(wire::Type::kModelAdd, add).status();
  EXPECT_FALSE(status.ok());
  EXPECT_THAT(status.message(), HasSubstr("/dev/zero"));
  const UniqueFd pipe_like(::open("/dev/null", O_RDONLY | O_CLOEXEC));
  EXPECT_FALSE(client
                   .Call<wire::ModelAddReply>(wire::Type::kModelAdd, add, nullptr,
                                              {pipe_like.get(), pipe_like.get()})
                   .has_value());
}

}  // namespace
}  // namespace terrace
