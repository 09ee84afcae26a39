// Clients that stop, flood, never read, exec, send what nobody asked for, or tamper with what they
// were handed: the honest one sees nothing of it, and nothing of theirs stays with the daemon.
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>

#include "tests/integration/hostile_fixture.h"
#include "tests/support/process_facts.h"

namespace terrace {
namespace {

class MisbehaveTest : public HostileTest {
 protected:
  ProcessFacts Facts() { return FactsOf(daemon().pid()); }
  // Descriptors of the daemon, without slabs: the honest client makes and empties those.
  uint64_t Descriptors() {
    ProcessFacts facts = Facts();
    facts.descriptors.erase("memfd:terrace-arena");
    return facts.descriptor_count();
  }
};

// Sends as much of `bytes`, again and again, as is taken; true when the connection was cut.
bool FloodUntilCut(int fd, const std::string& bytes) {
  for (pollfd entry{fd, POLLOUT, 0}; ::poll(&entry, 1, 60'000) == 1;) {
    if (::send(fd, bytes.data(), bytes.size(), MSG_DONTWAIT | MSG_NOSIGNAL) < 0 &&
        errno != EAGAIN) {
      return true;
    }
  }
  return false;
}

TEST_F(MisbehaveTest, AStoppedClientDelaysNobody) {
  StartWithHonestClient();
  // It stops with requests sent and replies unread, pages pinned and granted.
  bench::Child stopped = StartProcess("stopped", [path = socket()](bench::Link& link) -> Status {
    ASSIGN_OR_RETURN(Intruder self, Intrude(path));
    self.MarkAllLines();
    uint32_t next = 0;
    for (const shm::Handle handle : self.Handles()) {
      if (next < 64) self.Pin(next++, handle);
    }
    for (uint64_t i = 0; i < 100; ++i)
      RETURN_UNLESS(self.wire.Send(wire::Type::kDirectory, i, wire::Directory()), "sent");
    RETURN_IF_ERROR(link.Send(bench::Go{}));
    ::raise(SIGSTOP);
    return {};
  });
  Hear<bench::Go>(stopped);
  siginfo_t info{};
  ASSERT_EQ(::waitid(P_PID, static_cast<id_t>(stopped.pid()), &info, WSTOPPED | WNOWAIT), 0);
  AwaitRounds(300);
  if (HasFatalFailure()) return;
  EXPECT_EQ(ClientOf(stopped.pid())["pins"], 64) << "its pins live on";
  stopped.Kill();
  EXPECT_TRUE(Await([&] { return ClientOf(stopped.pid()).is_null(); }));
  ExpectHonestClientUnharmed();
}

TEST_F(MisbehaveTest, FloodsWithoutAReaderAreBoundedAndCut) {
  StartWithHonestClient("reader_stall = \"1s\"");
  const uint64_t resident = StatusBytes(daemon().pid(), "VmRSS");
  std::vector<bench::Child> floods;
  for (const char* what : {"pages", "clients", "status", "models"}) {
    floods.push_back(StartProcess("flood", [path = socket(), what](bench::Link&) -> Status {
      WireClient wire = WireClient::Connect(path);
      RETURN_IF_ERROR(wire.Hello("flood").status());
      wire::Report report;
      report.set_what(what);
      report.set_limit(10'000);
      RETURN_UNLESS(FloodUntilCut(wire.fd(), WireClient::Encode(wire::Type::kReport, 1, report)),
                    "it is cut");
      return {};
    }));
  }
  AwaitRounds(100);
  for (bench::Child& flood : floods)
    ExpectDone(flood);
  EXPECT_GE(StatusNumber("/traffic/slow_readers_cut"), floods.size());
  EXPECT_TRUE(Await([&] { return OtherClients() == 1; }));
  // Some answers of a report of 4,096 pages are a few MiB; pages of the honest client are the rest.
  if (kMemoryIsTelling) {
    EXPECT_LT(StatusBytes(daemon().pid(), "VmRSS"), resident + (64u << 20));
  }
  ExpectHonestClientUnharmed();
}

// The kernel counts descriptors on their way for the whole user: who takes none must not keep the
// daemon from passing them to others.
TEST_F(MisbehaveTest, DescriptorsThatNobodyTakesAreFew) {
  StartWithHonestClient("reader_stall = \"2s\"");
  bench::Child taker = StartProcess("taker", [path = socket()](bench::Link& link) -> Status {
    WireClient wire = WireClient::Connect(path);
    RETURN_IF_ERROR(wire.Hello("taker").status());
    const bool cut = FloodUntilCut(wire.fd(), WireClient::Encode(wire::Type::kDirectory, 1, ""));
    RETURN_UNLESS(cut, "it is cut");
    // What it could have taken.
    size_t descriptors = 0;
    while (const std::optional<ReceivedFrame> frame = wire.Receive())
      descriptors += frame->fds.size();
    RETURN_IF_ERROR(link.Send(descriptors));
    return {};
  });
  const auto descriptors = Hear<size_t>(taker);
  EXPECT_GT(descriptors, 0u);
  EXPECT_LE(descriptors, 1024u);
  ExpectDone(taker);
  ExpectHonestClientUnharmed();
}

TEST_F(MisbehaveTest, DescriptorsThatNobodyAskedForAreClosed) {
  StartWithHonestClient();
  const uint64_t before = Descriptors();
  const UniqueFd null(::open("/dev/null", O_RDONLY | O_CLOEXEC));
  const std::vector<int> many(wire::kMaxFds, null.get());
  std::vector<WireClient> senders;
  // Before the hello, with a frame that names them, and with one that does not.
  for (const uint16_t named : {uint16_t{0}, uint16_t{wire::kMaxFds}}) {
    senders.push_back(WireClient::Connect(socket()));
    ASSERT_TRUE(
        senders.back().SendBytes(WireClient::Encode(wire::Type::kPing, 1, "", named), many));
    const std::optional<ReceivedFrame> refused = senders.back().Receive();
    ASSERT_TRUE(refused.has_value());
    EXPECT_EQ(refused->header.type, wire::Type::kError);
    EXPECT_TRUE(senders.back().AwaitClosed());
  }
  // After it, on a verb that takes none; and with a frame that never ends.
  senders.push_back(WireClient::Connect(socket()));
  ASSERT_TRUE(senders.back().Hello("sender"));
  ASSERT_TRUE(
      senders.back().SendBytes(WireClient::Encode(wire::Type::kPing, 1, "", wire::kMaxFds), many));
  ASSERT_TRUE(senders.back().Receive().has_value());
  const uint64_t nulls = Facts().descriptors["/dev/null"];
  ASSERT_TRUE(senders.back().SendBytes(
      WireClient::Encode(wire::Type::kModelAdd, 2, std::string(10, 'x'), 200).substr(0, 20),
      std::vector<int>(200, null.get())));
  EXPECT_TRUE(Await([&] { return Facts().descriptors["/dev/null"] == nulls + 200; }));
  senders.clear();
  EXPECT_TRUE(Await([&] { return Facts().descriptors["/dev/null"] == nulls; }));
  // The sender was a client of this process; its channel and pidfd stay until that ends.
  EXPECT_TRUE(Await([&] { return Descriptors() <= before + 3; })) << Facts();
  ExpectHonestClientUnharmed();
}

// After exec it is the same process, so what it held stays charged to it until it ends.
TEST_F(MisbehaveTest, AClientThatExecsHoldsWhatItHadUntilItEnds) {
  StartWithHonestClient();
  bench::Child child = StartProcess("exec", [path = socket()](bench::Link& link) -> Status {
    WireClient wire = WireClient::Connect(path);
    RETURN_IF_ERROR(wire.Hello("exec").status());
    // Whoever asks for something has learned who it is; else it would end with its connection.
    RETURN_IF_ERROR(wire.Call<wire::PingReply>(wire::Type::kPing, wire::Ping()).status());
    RETURN_IF_ERROR(link.Send(bench::Go{}));
    ::execl("/bin/sleep", "sleep", "600", nullptr);
    return SystemError("exec", errno);
  });
  Hear<bench::Go>(child);
  EXPECT_TRUE(Await([&] { return StatusNumber("/clients/away") == 1; }));
  EXPECT_FALSE(ClientOf(child.pid()).is_null());
  AwaitRounds(50);
  child.Kill();
  EXPECT_TRUE(Await([&] { return ClientOf(child.pid()).is_null(); }));
  ExpectHonestClientUnharmed();
}

// With the socket, too: the new program's bytes are of the same process, and no protocol.
TEST_F(MisbehaveTest, AProgramThatInheritsASocketIsAnsweredByTheProtocol) {
  StartWithHonestClient();
  bench::Child child = StartProcess("exec", [path = socket()](bench::Link&) -> Status {
    WireClient wire = WireClient::Connect(path);
    RETURN_IF_ERROR(wire.Hello("exec").status());
    ::dup2(wire.fd(), STDOUT_FILENO);
    ::execl("/bin/sh", "sh", "-c", "while echo no protocol at all, but many bytes; do :; done",
            nullptr);
    return SystemError("exec", errno);
  });
  EXPECT_TRUE(Await([&] { return StatusNumber("/traffic/protocol_violations") == 1; }));
  EXPECT_TRUE(Await([&] { return ClientOf(child.pid()).is_null(); })) << "it ends by SIGPIPE";
  ExpectHonestClientUnharmed();
}

TEST_F(MisbehaveTest, WhatAClientIsHandedCanBeNeitherResizedNorSealed) {
  StartWithHonestClient();
  bench::Child child = StartProcess("tamper", [path = socket()](bench::Link&) -> Status {
    WireClient wire = WireClient::Connect(path);
    std::vector<UniqueFd> given;
    RETURN_IF_ERROR(wire.Hello("tamper", true, &given).status());
    ASSIGN_OR_RETURN(const Intruder other, Intrude(path));
    wire::Arenas arenas;
    arenas.set_writable(true);
    for (const shm::Handle handle : other.Handles())
      if (arenas.ids_size() < 4) arenas.add_ids(shm::ArenaOf(handle));
    std::vector<UniqueFd> slabs;
    RETURN_IF_ERROR(wire.Call<wire::ArenasReply>(wire::Type::kArenas, arenas, &slabs).status());
    RETURN_UNLESS(!slabs.empty(), "slabs");
    for (UniqueFd& slab : slabs)
      given.push_back(std::move(slab));
    for (const UniqueFd& fd : given) {
      RETURN_UNLESS(::ftruncate(fd.get(), 0) != 0, "shrinks");
      RETURN_UNLESS(::ftruncate(fd.get(), 1 << 30) != 0, "grows");
      RETURN_UNLESS(::fcntl(fd.get(), F_ADD_SEALS, F_SEAL_WRITE) != 0, "seals");
      RETURN_UNLESS(::fcntl(fd.get(), F_ADD_SEALS, F_SEAL_SEAL) != 0, "seals seals");
    }
    // The directory (given[1]) is nobody's to write.
    RETURN_UNLESS(!Mapping::Of(given[1].get(), 0, 4096, Protection::kReadWrite), "maps");
    RETURN_UNLESS(
        ::fallocate(given[1].get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 4096) != 0,
        "punches");
    RETURN_UNLESS(::pwrite(given[1].get(), "x", 1, 0) != 1, "writes");
    return {};
  });
  ExpectDone(child);
  ExpectHonestClientUnharmed();
}

// ---- Limits

TEST_F(MisbehaveTest, SilentConnectionsOfOneUserKeepNoOtherOut) {
  if (::geteuid() != 0) GTEST_SKIP() << "another user is only to be had as root";
  StartDaemon("16MiB", "connections_without_hello = 8\nhello_deadline = \"10min\"");
  ASSERT_EQ(::chmod(daemon().folder().c_str(), 0755), 0);
  ASSERT_EQ(::chmod(socket().c_str(), 0777), 0);
  std::vector<WireClient> silent;
  for (int i = 0; i < 8; ++i)
    silent.push_back(WireClient::Connect(socket()));
  WireClient ninth = WireClient::Connect(socket());
  std::optional<ReceivedFrame> refused = ninth.Receive();
  ASSERT_TRUE(refused.has_value());
  const Status why = WireClient::Parse<wire::Error>(*std::move(refused)).status();
  EXPECT_EQ(why.code(), Code::kExhausted);
  EXPECT_NE(why.message().find("limits.connections_without_hello"), std::string::npos);
  bench::Child other = StartProcess("other", [path = socket()](bench::Link&) -> Status {
    RETURN_UNLESS(::setresgid(4242, 4242, 4242) == 0 && ::setresuid(4242, 4242, 4242) == 0,
                  "another user");
    WireClient wire = WireClient::Connect(path);
    return wire.Hello("other").status();
  });
  ExpectDone(other);
  // One that speaks at last makes room.
  ASSERT_TRUE(silent[0].Hello("late"));
  WireClient again = WireClient::Connect(socket());
  EXPECT_TRUE(again.Hello("again"));
}

TEST_F(MisbehaveTest, ClientsOfOneUserKeepNoOtherOut) {
  if (::geteuid() != 0) GTEST_SKIP() << "another user is only to be had as root";
  StartDaemon("16MiB", "clients = 6\nclients_per_user = 4");
  ASSERT_EQ(::chmod(daemon().folder().c_str(), 0755), 0);
  ASSERT_EQ(::chmod(socket().c_str(), 0777), 0);
  std::vector<WireClient> clients;
  for (int i = 0; i < 4; ++i) {
    clients.push_back(WireClient::Connect(socket()));
    ASSERT_TRUE(clients.back().Hello("one of them"));
  }
  WireClient fifth = WireClient::Connect(socket());
  const Status why = fifth.Hello("fifth").status();
  EXPECT_EQ(why.code(), Code::kExhausted);
  EXPECT_NE(why.message().find("limits.clients_per_user"), std::string::npos);
  bench::Child other = StartProcess("other", [path = socket()](bench::Link&) -> Status {
    RETURN_UNLESS(::setresgid(4242, 4242, 4242) == 0 && ::setresuid(4242, 4242, 4242) == 0,
                  "another user");
    WireClient wire = WireClient::Connect(path);
    return wire.Hello("other").status();
  });
  ExpectDone(other);
}

TEST_F(MisbehaveTest, OneClientCannotTakeAllSpaces) {
  StartDaemon("16MiB", "spaces = 4");
  WireClient greedy = WireClient::Connect(socket());
  ASSERT_TRUE(greedy.Hello("greedy", false));
  wire::OpenSpace open;
  wire::Layout* layout = open.mutable_layout();
  layout->set_dtype("bf16");
  layout->set_layers(1);
  layout->set_kv_heads(1);
  layout->set_head_size(64);
  layout->set_page_tokens(16);
  layout->set_planes(2);
  layout->set_order("layer,plane,token,head,dim");
  const auto answer = [&](WireClient& client, int salt) {
    open.set_salt(std::to_string(salt));
    return client.Call<wire::OpenSpaceReply>(wire::Type::kOpenSpace, open).status();
  };
  for (int salt = 0; salt < 4; ++salt)
    ASSERT_EQ(answer(greedy, salt), Status());
  const Status why = answer(greedy, 4);
  EXPECT_EQ(why.code(), Code::kExhausted);
  EXPECT_NE(why.message().find("limits.spaces"), std::string::npos);
  WireClient other = WireClient::Connect(socket());
  ASSERT_TRUE(other.Hello("other"));
  EXPECT_EQ(answer(other, 4), Status());
}

// An eviction by hand goes in steps, and a grant of large pages too: whoever asks meanwhile is
// answered in between.
TEST_F(MisbehaveTest, LongVerbsLeaveOthersTheirTurn) {
  constexpr uint32_t kPages = 128;
  StartDaemon("256MiB");
  WireClient writer = WireClient::Connect(socket());
  ASSERT_TRUE(writer.Hello("writer"));
  wire::OpenSpace open;
  wire::Layout* layout = open.mutable_layout();
  layout->set_dtype("i8");
  layout->set_layers(1);
  layout->set_kv_heads(1);
  layout->set_head_size(65536);
  layout->set_page_tokens(16);
  layout->set_planes(1);
  layout->set_order("layer,plane,token,head,dim");  // 1 MiB a page.
  const auto space = writer.Call<wire::OpenSpaceReply>(wire::Type::kOpenSpace, open);
  ASSERT_EQ(space.status(), Status());
  wire::Grant grant;
  grant.set_slot(space->slot());
  grant.set_epoch(space->epoch());
  std::string keys(32 * kPages, '\0');
  for (uint32_t i = 0; i < kPages; ++i)
    std::memcpy(keys.data() + 32 * i, &i, sizeof i);
  grant.set_keys(keys);
  // In one piece, so that the second request is there before the first is done: the order stays.
  std::vector<UniqueFd> fds;
  ASSERT_TRUE(writer.SendBytes(WireClient::Encode(wire::Type::kGrant, 71, grant) +
                               WireClient::Encode(wire::Type::kPing, 72, "")));
  std::optional<ReceivedFrame> first = writer.Receive();
  ASSERT_TRUE(first.has_value());
  EXPECT_EQ(first->header.request, 71u);
  const Result<wire::GrantReply> granted =
      WireClient::Parse<wire::GrantReply>(*std::move(first), &fds);
  ASSERT_EQ(granted.status(), Status());
  ASSERT_EQ(granted->codes_size(), static_cast<int>(kPages));
  for (const uint32_t code : granted->codes())
    EXPECT_EQ(code, 0u);
  EXPECT_FALSE(fds.empty());
  std::optional<ReceivedFrame> second = writer.Receive();
  ASSERT_TRUE(second.has_value());
  EXPECT_EQ(second->header.request, 72u);
  wire::Commit commit;
  *commit.mutable_grants() = granted->grants();
  ASSERT_EQ(writer.Call<wire::CommitReply>(wire::Type::kCommit, commit).status(), Status());
  // 128 MiB are more than one step.
  const Result<wire::EvictReply> evicted =
      writer.Call<wire::EvictReply>(wire::Type::kEvict, wire::Evict());
  ASSERT_EQ(evicted.status(), Status());
  EXPECT_EQ(evicted->pages(), kPages);
  EXPECT_EQ(evicted->bytes(), uint64_t{kPages} << 20);
  EXPECT_EQ(StatusNumber("/pages/count"), 0u);
}

}  // namespace
}  // namespace terrace
