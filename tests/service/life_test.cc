// Who a client is, and when what it holds ends: processes, forks, lost connections, resumption.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>

#include <csignal>
#include <nlohmann/json.hpp>

#include "proto/shared_memory.h"
#include "tests/service/wire_client.h"
#include "tests/support/daemon_process.h"

namespace terrace {
namespace {

using nlohmann::json;
using testing::HasSubstr;

wire::OpenSpace SpaceMessage() {
  wire::OpenSpace open;
  wire::Layout* layout = open.mutable_layout();
  layout->set_dtype("bf16");
  layout->set_layers(2);
  layout->set_kv_heads(2);
  layout->set_head_size(16);
  layout->set_page_tokens(16);
  layout->set_planes(2);
  layout->set_order("layer,plane,token,head,dim");
  return open;
}

Result<wire::GrantReply> GrantPages(WireClient& client, size_t count,
                                    std::vector<UniqueFd>* fds = nullptr) {
  ASSIGN_OR_RETURN(const wire::OpenSpaceReply space,
                   client.Call<wire::OpenSpaceReply>(wire::Type::kOpenSpace, SpaceMessage()));
  wire::Grant grant;
  grant.set_slot(space.slot());
  grant.set_epoch(space.epoch());
  std::string keys(32 * count, 'k');
  for (size_t i = 0; i < count; ++i)
    std::memcpy(keys.data() + 32 * i, &i, sizeof i);
  grant.set_keys(keys);
  return client.Call<wire::GrantReply>(wire::Type::kGrant, grant, fds);
}

class LifeTest : public testing::Test {
 protected:
  void Start(const std::string& limits = "") {
    DaemonProcessOptions options;
    options.limits = limits;
    Result<std::unique_ptr<DaemonProcess>> daemon = DaemonProcess::Start(options);
    ASSERT_EQ(daemon.status(), Status());
    daemon_ = *std::move(daemon);
    watcher_ = WireClient::Connect(daemon_->socket());
    ASSERT_EQ(watcher_.Hello("watcher").status(), Status());
  }
  json Report(const std::string& what) {
    wire::Report report;
    report.set_what(what);
    const Result<wire::ReportReply> reply =
        watcher_.Call<wire::ReportReply>(wire::Type::kReport, report);
    EXPECT_EQ(reply.status(), Status());
    return reply ? json::parse(reply->json()) : json();
  }
  // Asks again until the status says so, for at most 10 s.
  template <typename Condition>
  bool Eventually(Condition condition) {
    for (int i = 0; i < 2000; ++i) {
      if (condition(Report("status"))) return true;
      ::poll(nullptr, 0, 5);
    }
    return false;
  }

  std::unique_ptr<DaemonProcess> daemon_;
  WireClient watcher_;
};

wire::Hello ResumeMessage(const wire::HelloReply& client, uint64_t token) {
  wire::Hello hello;
  hello.set_version_min(wire::kProtocolVersion);
  hello.set_version_max(wire::kProtocolVersion);
  hello.set_writer(true);
  hello.set_resume_client(client.client());
  hello.set_resume_token(token);
  return hello;
}

TEST_F(LifeTest, AKilledClientLosesItsGrantsAndPins) {
  Start();
  int ready[2];
  ASSERT_EQ(::pipe2(ready, O_CLOEXEC), 0);
  const pid_t child = ::fork();
  if (child == 0) {
    WireClient client = WireClient::Connect(daemon_->socket());
    std::vector<UniqueFd> fds;
    const bool ok =
        client.Hello("victim", true, &fds).has_value() && GrantPages(client, 10).has_value();
    Result<Mapping> channel =
        Mapping::Of(fds.at(0).get(), 0, shm::kChannelBytes, Protection::kReadWrite);
    // It also claims a page, as a reader does (docs/shared_memory.md).
    auto* shared = reinterpret_cast<shm::Channel*>(channel->data());
    shared->upper_summary[0].store(1);
    shared->summary[0].store(1);
    shared->lines[0].pins[0].store(shm::MakeHandle(1, 0, 1));
    const char byte = ok ? 'y' : 'n';
    if (::write(ready[1], &byte, 1) != 1) ::_exit(1);
    for (;;)
      ::pause();
  }
  char byte = 0;
  ASSERT_EQ(::read(ready[0], &byte, 1), 1);
  ASSERT_EQ(byte, 'y');
  EXPECT_EQ(Report("status")["pages"]["grants"], 10);
  const json clients = Report("clients")["clients"];
  EXPECT_EQ(clients[1]["name"], "victim");
  EXPECT_EQ(clients[1]["pins"], 1);
  ASSERT_EQ(::kill(child, SIGKILL), 0);
  EXPECT_TRUE(Eventually([](const json& status) {
    return status["pages"]["grants"] == 0 && status["clients"]["count"] == 1;
  })) << Report("status");
  EXPECT_EQ(Report("status")["host"]["granted_bytes"], 0);
  ASSERT_EQ(::waitpid(child, nullptr, 0), child);
  ::close(ready[0]);
  ::close(ready[1]);
}

TEST_F(LifeTest, AClosedConnectionEndsNothingAndTheSameProcessComesBack) {
  Start();
  WireClient client = WireClient::Connect(daemon_->socket());
  std::vector<UniqueFd> fds;
  const Result<wire::HelloReply> hello = client.Hello("comes back", true, &fds);
  ASSERT_EQ(hello.status(), Status());
  const Result<wire::GrantReply> granted = GrantPages(client, 3);
  ASSERT_EQ(granted.status(), Status());
  client.Close();
  ASSERT_TRUE(Eventually([](const json& status) { return status["clients"]["away"] == 1; }));
  EXPECT_EQ(Report("status")["pages"]["grants"], 3);

  client = WireClient::Connect(daemon_->socket());
  EXPECT_EQ(
      client.Call<wire::HelloReply>(wire::Type::kHello, ResumeMessage(*hello, hello->token() ^ 1))
          .status()
          .code(),
      Code::kStale);
  const Result<wire::HelloReply> resumed = client.Call<wire::HelloReply>(
      wire::Type::kHello, ResumeMessage(*hello, hello->token()), &fds);
  ASSERT_EQ(resumed.status(), Status());
  EXPECT_TRUE(resumed->resumed());
  EXPECT_EQ(resumed->client(), hello->client());
  EXPECT_EQ(fds.size(), 1u);  // The directory; the channel is mapped already.
  EXPECT_EQ(Report("status")["clients"]["away"], 0);
  wire::Commit commit;
  *commit.mutable_grants() = granted->grants();
  const Result<wire::CommitReply> committed =
      client.Call<wire::CommitReply>(wire::Type::kCommit, commit);
  ASSERT_EQ(committed.status(), Status());
  EXPECT_THAT(committed->codes(), testing::Each(0));
  // Descriptors whose reply may have been lost are given again.
  ASSERT_EQ(GrantPages(client, 5, &fds).status(), Status());
  EXPECT_EQ(fds.size(), 1u);
}

TEST_F(LifeTest, WhatExpiresWhileAClientIsAwayIsToldWhenItComesBack) {
  Start("grant_deadline = \"1s\"");
  WireClient client = WireClient::Connect(daemon_->socket());
  const Result<wire::HelloReply> hello = client.Hello("away");
  ASSERT_EQ(hello.status(), Status());
  const Result<wire::GrantReply> granted = GrantPages(client, 2);
  ASSERT_EQ(granted.status(), Status());
  client.Close();
  ASSERT_TRUE(Eventually([](const json& status) { return status["clients"]["away"] == 1; }));
  ASSERT_EQ(Report("status")["pages"]["abandoned_grants"], 0);
  ASSERT_TRUE(
      Eventually([](const json& status) { return status["pages"]["abandoned_grants"] == 2; }));
  client = WireClient::Connect(daemon_->socket());
  ASSERT_EQ(client.Call<wire::HelloReply>(wire::Type::kHello, ResumeMessage(*hello, hello->token()))
                .status(),
            Status());
  const std::optional<ReceivedFrame> frame = client.Receive();
  ASSERT_TRUE(frame.has_value());
  ASSERT_EQ(frame->header.type, wire::Type::kGrantExpiredEvent);
  wire::GrantExpiredEvent event;
  ASSERT_TRUE(event.ParseFromString(frame->message));
  EXPECT_THAT(event.grants(),
              testing::UnorderedElementsAre(granted->grants(0), granted->grants(1)));
  wire::Abort abort;
  *abort.mutable_grants() = event.grants();
  ASSERT_EQ(client.Call<wire::AbortReply>(wire::Type::kAbort, abort).status(), Status());
  EXPECT_EQ(Report("status")["pages"]["abandoned_grants"], 0);
}

TEST_F(LifeTest, AClientOverItsPinBudgetIsCutAndItsPinsCountNoMore) {
  Start("pinned_bytes = \"4KiB\"");
  WireClient greedy = WireClient::Connect(daemon_->socket());
  std::vector<UniqueFd> fds;
  const Result<wire::HelloReply> hello = greedy.Hello("greedy", true, &fds);
  ASSERT_EQ(hello.status(), Status());
  EXPECT_EQ(hello->max_pinned_bytes(), 4096u);
  Result<Mapping> channel =
      Mapping::Of(fds.at(0).get(), 0, shm::kChannelBytes, Protection::kReadWrite);
  ASSERT_EQ(channel.status(), Status());
  const Result<wire::GrantReply> granted = GrantPages(greedy, 4);  // Of 4 KiB each.
  ASSERT_EQ(granted.status(), Status());
  wire::Commit commit;
  *commit.mutable_grants() = granted->grants();
  ASSERT_EQ(greedy.Call<wire::CommitReply>(wire::Type::kCommit, commit).status(), Status());
  auto* shared = reinterpret_cast<shm::Channel*>(channel->data());
  shared->upper_summary[0].store(1);
  shared->summary[0].store(1);
  for (int i = 0; i < 3; ++i)
    shared->lines[0].pins[i].store(granted->handles(i) | 1);
  // Eviction scans the pins, and does not count those of whoever is over the budget.
  ASSERT_TRUE(Eventually([&](const json& status) {
    EXPECT_EQ(watcher_.Call<wire::EvictReply>(wire::Type::kEvict, wire::Evict()).status(),
              Status());
    return status["clients"]["away"] == 1 && status["pages"]["count"] == 0;
  })) << Report("status");
  std::optional<ReceivedFrame> frame = greedy.Receive();
  ASSERT_TRUE(frame.has_value());
  EXPECT_EQ(frame->header.request, 0u);
  EXPECT_EQ(WireClient::Parse<wire::PingReply>(*std::move(frame)).status().code(),
            Code::kExhausted);
  EXPECT_TRUE(greedy.AwaitClosed());
}

// Cut is not gone: who pins too much may be writing into its slots at this moment.
TEST_F(LifeTest, ACutClientsSlotsStayItsOwnUntilItsProcessEnds) {
  Start("pinned_bytes = \"4KiB\"\nclients_per_process = 2");
  int ready[2];
  ASSERT_EQ(::pipe2(ready, O_CLOEXEC), 0);
  const pid_t child = ::fork();
  if (child == 0) {
    WireClient client = WireClient::Connect(daemon_->socket());
    std::vector<UniqueFd> fds;
    const Result<wire::HelloReply> hello = client.Hello("greedy", true, &fds);
    const Result<wire::GrantReply> granted = GrantPages(client, 5);
    wire::Commit commit;
    for (int i = 0; i < 2; ++i)
      commit.add_grants(granted->grants(i));
    bool ok = client.Call<wire::CommitReply>(wire::Type::kCommit, commit).has_value();
    Result<Mapping> channel =
        Mapping::Of(fds.at(0).get(), 0, shm::kChannelBytes, Protection::kReadWrite);
    auto* shared = reinterpret_cast<shm::Channel*>(channel->data());
    shared->upper_summary[0].store(1);
    shared->summary[0].store(1);
    for (int i = 0; i < 2; ++i)
      shared->lines[0].pins[i].store(granted->handles(i) | 1);
    if (::write(ready[1], "p", 1) != 1) ::_exit(1);
    ok = ok && client.AwaitClosed();
    // It may not come back, and counts among the clients of its process.
    client = WireClient::Connect(daemon_->socket());
    const Status back =
        client.Call<wire::HelloReply>(wire::Type::kHello, ResumeMessage(*hello, hello->token()))
            .status();
    ok = ok && back.code() == Code::kStale && client.Hello("second").has_value();
    WireClient third = WireClient::Connect(daemon_->socket());
    ok = ok && third.Hello("third").status().code() == Code::kExhausted;
    const char byte = ok ? 'y' : 'n';
    if (::write(ready[1], &byte, 1) != 1) ::_exit(1);
    for (;;)
      ::pause();
  }
  char byte = 0;
  ASSERT_EQ(::read(ready[0], &byte, 1), 1);
  ASSERT_EQ(byte, 'p');
  ASSERT_TRUE(Eventually([&](const json& status) {
    EXPECT_EQ(watcher_.Call<wire::EvictReply>(wire::Type::kEvict, wire::Evict()).status(),
              Status());
    return status["pages"]["committed"] == 2 && status["pages"]["count"] == 0;
  })) << Report("status");
  ASSERT_EQ(::read(ready[0], &byte, 1), 1);
  EXPECT_EQ(byte, 'y');
  const json cut = Report("status");
  EXPECT_EQ(cut["pages"]["grants"], 3);
  EXPECT_EQ(cut["pages"]["abandoned_grants"], 3);
  EXPECT_EQ(cut["host"]["granted_bytes"], 3 * 4096);
  EXPECT_EQ(cut["clients"]["count"], 3);  // The watcher, the one that was cut, and its second.
  // Another writer is given other slots.
  WireClient other = WireClient::Connect(daemon_->socket());
  ASSERT_EQ(other.Hello("other").status(), Status());
  ASSERT_EQ(GrantPages(other, 8).status(), Status());
  EXPECT_EQ(Report("status")["host"]["granted_bytes"], 11 * 4096);
  ASSERT_EQ(::kill(child, SIGKILL), 0);
  EXPECT_TRUE(Eventually([](const json& status) {
    return status["pages"]["grants"] == 8 && status["clients"]["count"] == 2;
  })) << Report("status");
  ASSERT_EQ(::waitpid(child, nullptr, 0), child);
  ::close(ready[0]);
  ::close(ready[1]);
}

TEST_F(LifeTest, AnotherProcessCannotComeBackAsAClient) {
  Start();
  WireClient client = WireClient::Connect(daemon_->socket());
  const Result<wire::HelloReply> hello = client.Hello("mine");
  ASSERT_EQ(hello.status(), Status());
  const pid_t child = ::fork();
  if (child == 0) {
    WireClient thief = WireClient::Connect(daemon_->socket());
    const Status status =
        thief.Call<wire::HelloReply>(wire::Type::kHello, ResumeMessage(*hello, hello->token()))
            .status();
    ::_exit(status.code() == Code::kStale ? 0 : 1);
  }
  int status = -1;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
  EXPECT_EQ(client.Call<wire::PingReply>(wire::Type::kPing, wire::Ping()).status(), Status());
}

TEST_F(LifeTest, AResumedClientsOldConnectionIsClosed) {
  Start();
  WireClient first = WireClient::Connect(daemon_->socket());
  const Result<wire::HelloReply> hello = first.Hello("twice");
  ASSERT_EQ(hello.status(), Status());
  WireClient second = WireClient::Connect(daemon_->socket());
  ASSERT_EQ(second.Call<wire::HelloReply>(wire::Type::kHello, ResumeMessage(*hello, hello->token()))
                .status(),
            Status());
  EXPECT_TRUE(first.AwaitClosed());
  EXPECT_EQ(second.Call<wire::PingReply>(wire::Type::kPing, wire::Ping()).status(), Status());
}

TEST_F(LifeTest, AForkedChildIsRefusedAndTheClientLivesOn) {
  Start();
  WireClient client = WireClient::Connect(daemon_->socket());
  const Result<wire::HelloReply> hello = client.Hello("parent");
  ASSERT_EQ(hello.status(), Status());
  ASSERT_EQ(GrantPages(client, 2).status(), Status());
  const pid_t child = ::fork();
  if (child == 0) ::_exit(client.Send(wire::Type::kPing, 99, wire::Ping()) ? 0 : 1);
  int status = -1;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  ASSERT_EQ(status, 0);
  std::optional<ReceivedFrame> frame = client.Receive();
  ASSERT_TRUE(frame.has_value());
  EXPECT_EQ(WireClient::Parse<wire::PingReply>(*std::move(frame)).status().code(),
            Code::kPermissionDenied);
  EXPECT_TRUE(client.AwaitClosed());
  EXPECT_EQ(Report("status")["pages"]["grants"], 2);
  client = WireClient::Connect(daemon_->socket());
  EXPECT_EQ(client.Call<wire::HelloReply>(wire::Type::kHello, ResumeMessage(*hello, hello->token()))
                .status(),
            Status());
}

TEST_F(LifeTest, GoodbyeEndsEverything) {
  Start();
  WireClient client = WireClient::Connect(daemon_->socket());
  const Result<wire::HelloReply> hello = client.Hello("leaves");
  ASSERT_EQ(hello.status(), Status());
  ASSERT_EQ(GrantPages(client, 2).status(), Status());
  EXPECT_EQ(client.Call<wire::GoodbyeReply>(wire::Type::kGoodbye, wire::Goodbye()).status(),
            Status());
  EXPECT_TRUE(client.AwaitClosed());
  EXPECT_EQ(Report("status")["pages"]["grants"], 0);
  EXPECT_EQ(Report("status")["clients"]["count"], 1);
  client = WireClient::Connect(daemon_->socket());
  EXPECT_EQ(client.Call<wire::HelloReply>(wire::Type::kHello, ResumeMessage(*hello, hello->token()))
                .status()
                .code(),
            Code::kStale);
}

TEST_F(LifeTest, ClientsAndConnectionsAreBounded) {
  Start("clients = 4\nclients_per_process = 3\nconnections = 6");
  std::vector<WireClient> clients;
  for (int i = 0; i < 2; ++i) {
    clients.push_back(WireClient::Connect(daemon_->socket()));
    ASSERT_EQ(clients.back().Hello("one of us").status(), Status());
  }
  // The watcher is of this process too.
  clients.push_back(WireClient::Connect(daemon_->socket()));
  const Status too_many = clients.back().Hello("too many").status();
  EXPECT_EQ(too_many.code(), Code::kExhausted);
  EXPECT_THAT(too_many.message(), HasSubstr("limits.clients_per_process"));
  // A connection that ends does not make room for a client: its pins may be in use.
  ASSERT_EQ(clients[0].Call<wire::PingReply>(wire::Type::kPing, wire::Ping()).status(), Status());
  clients[0].Close();
  ASSERT_TRUE(Eventually([](const json& status) { return status["clients"]["away"] == 1; }));
  EXPECT_EQ(clients.back().Hello("still too many").status().code(), Code::kExhausted);
  // But for one that has sent nothing but its hello.
  clients[1].Close();
  ASSERT_TRUE(Eventually([](const json& status) { return status["clients"]["count"] == 2; }));
  EXPECT_EQ(clients.back().Hello("in its place").status(), Status());
  while (clients.size() < 8)
    clients.push_back(WireClient::Connect(daemon_->socket()));
  std::optional<ReceivedFrame> refused = clients.back().Receive();
  ASSERT_TRUE(refused.has_value());
  EXPECT_THAT(WireClient::Parse<wire::Error>(*std::move(refused)).status().message(),
              HasSubstr("limits.connections"));
  EXPECT_TRUE(clients.back().AwaitClosed());
}

TEST_F(LifeTest, AConnectionWithoutHelloIsClosedInTime) {
  Start("hello_deadline = \"100ms\"");
  WireClient silent = WireClient::Connect(daemon_->socket());
  EXPECT_TRUE(silent.AwaitClosed());
  EXPECT_EQ(watcher_.Call<wire::PingReply>(wire::Type::kPing, wire::Ping()).status(), Status());
}

TEST_F(LifeTest, ASlowReaderIsCutAndItsGrantsLiveOn) {
  Start("reader_stall = \"100ms\"");
  WireClient slow = WireClient::Connect(daemon_->socket());
  const Result<wire::HelloReply> hello = slow.Hello("slow");
  ASSERT_EQ(hello.status(), Status());
  ASSERT_EQ(GrantPages(slow, 4).status(), Status());
  wire::Report report;
  report.set_what("status");
  const std::string request = WireClient::Encode(wire::Type::kReport, 5, report);
  for (pollfd entry{slow.fd(), POLLOUT, 0}; ::poll(&entry, 1, 20'000) == 1;) {
    if (::send(slow.fd(), request.data(), request.size(), MSG_DONTWAIT | MSG_NOSIGNAL) < 0 &&
        errno != EAGAIN) {
      break;  // It was cut.
    }
  }
  ASSERT_TRUE(Eventually([](const json& status) {
    return status["traffic"]["slow_readers_cut"] == 1 && status["clients"]["away"] == 1;
  }));
  EXPECT_EQ(Report("status")["pages"]["grants"], 4);
  slow = WireClient::Connect(daemon_->socket());
  EXPECT_EQ(slow.Call<wire::HelloReply>(wire::Type::kHello, ResumeMessage(*hello, hello->token()))
                .status(),
            Status());
}

}  // namespace
}  // namespace terrace
