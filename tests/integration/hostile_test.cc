// Clients that do not keep the protocol, beside one that does: the daemon goes on, and the honest
// one sees no wrong byte, no failure and no wait.
#include <sys/wait.h>

#include "tests/integration/hostile_fixture.h"

namespace terrace {
namespace {

// Noise, and sometimes what would make sense elsewhere, until it is killed.
Status FillChannelForEver(const std::string& socket, uint64_t seed, bench::Link& link) {
  ASSIGN_OR_RETURN(const Intruder intruder, Intrude(socket));
  Random random(seed);
  for (;;) {
    const std::vector<shm::Handle> handles = intruder.Handles();
    for (shm::Word& word : intruder.words()) {
      const uint64_t kind = random.Below(8);
      word.store(kind == 0 && !handles.empty() ? handles[random.Below(handles.size())]
                 : kind == 1                   ? UINT64_MAX
                 : kind == 2                   ? random.Below(1 << 20)
                                               : random());
    }
    RETURN_IF_ERROR(link.Send(bench::Go{}));
  }
}

// Connections with garbage, with or without a hello, closed by either side.
Status SendGarbage(const std::string& socket, uint64_t seed) {
  Random random(seed);
  for (int i = 0; i < 30; ++i) {
    WireClient wire = WireClient::Connect(socket);
    RETURN_UNLESS(wire.fd() >= 0, "connect");
    if (random.Chance(1, 2)) RETURN_IF_ERROR(wire.Hello("garbage").status());
    std::string bytes(random.Below(4000), '\0');
    for (char& byte : bytes)
      byte = static_cast<char>(random());
    if (random.Chance(1, 2)) {
      // A frame that begins well and has another length, or ends in the middle.
      bytes = WireClient::Encode(wire::Type::kPing, 1, bytes).substr(0, random.Below(64) + 1);
    }
    wire.SendBytes(bytes);
    if (random.Chance(1, 2)) ::shutdown(wire.fd(), SHUT_WR);
  }
  return {};
}

TEST_F(HostileTest, AChannelOfRandomWordsHarmsNobody) {
  StartWithHonestClient();
  const uint64_t intruders = Effort(40, 8);
  for (uint64_t seed = 1; seed <= intruders; ++seed) {
    bench::Child intruder = StartProcess("intruder", [&, seed](bench::Link& link) {
      return FillChannelForEver(socket(), seed, link);
    });
    Hear<bench::Go>(intruder);
    AwaitRounds(10);  // Scans, drains and reports meet it.
    if (HasFatalFailure()) return;
    EXPECT_FALSE(Report("clients").is_null());
    EXPECT_FALSE(Report("status").is_null());
    intruder.Kill();
    ASSERT_TRUE(Await([&] { return ClientNamed("intruder").is_null(); }));
  }
  ExpectHonestClientUnharmed();
}

TEST_F(HostileTest, PinsOfArenasThatThereAreNotHoldNothing) {
  StartWithHonestClient();
  bench::Child intruder = StartPinning([](const Intruder& self, const auto&) {
    for (uint32_t i = 0; i < 4096; ++i)
      self.Pin(i, shm::MakeHandle(1000 + i, i, 1));
  });
  Hear<bench::Go>(intruder);
  AwaitRounds(100);
  const Json client = ClientOf(intruder.pid());
  ASSERT_FALSE(client.is_null());
  EXPECT_EQ(client["pinned_bytes"], 0);
  ExpectHonestClientUnharmed();
}

TEST_F(HostileTest, AClientOverItsBudgetOfBytesIsCut) {
  StartWithHonestClient("pinned_bytes = \"1MiB\"");
  bench::Child intruder =
      StartPinning([](const Intruder& self, const std::vector<shm::Handle>& handles) {
        for (uint32_t i = 0; i < handles.size(); ++i)
          self.Pin(i, handles[i]);
      });
  Hear<bench::Go>(intruder);
  EXPECT_TRUE(Hear<bool>(intruder)) << "its connection is closed";
  // Its words are still there; they count no more, so the honest client gets all memory in turn.
  const uint64_t evicted = StatusNumber("/pages/evicted");
  EXPECT_TRUE(
      Await([&] { return StatusNumber("/pages/evicted") > evicted + kKeys || !Runs(*honest_); }));
  EXPECT_EQ(ClientOf(intruder.pid())["pins"], 0);
  intruder.Kill();
  EXPECT_TRUE(Await([&] { return ClientOf(intruder.pid()).is_null(); }));
  ExpectHonestClientUnharmed();
}

TEST_F(HostileTest, PinsBeyondTheLinesOfItsBudgetCountForNothing) {
  constexpr uint32_t kBudget = 64;
  StartWithHonestClient("pins = " + std::to_string(kBudget));
  bench::Child intruder =
      StartPinning([](const Intruder& self, const std::vector<shm::Handle>& handles) {
        for (uint32_t i = 0; i < handles.size(); ++i)
          self.Pin(kBudget + i, handles[i]);
      });
  Hear<bench::Go>(intruder);
  AwaitRounds(200);
  const Json client = ClientOf(intruder.pid());
  ASSERT_FALSE(client.is_null());
  EXPECT_EQ(client["pins"], 0);
  ExpectHonestClientUnharmed();
}

TEST_F(HostileTest, GarbageClosesOnlyItsOwnConnection) {
  StartWithHonestClient();
  const uint64_t processes = Effort(8, 3);
  for (uint64_t seed = 1; seed <= processes; ++seed) {
    bench::Child process =
        StartProcess("garbage", [&, seed](bench::Link&) { return SendGarbage(socket(), seed); });
    ExpectDone(process);
  }
  EXPECT_GT(StatusNumber("/traffic/protocol_violations"), 0u);
  EXPECT_TRUE(Await([&] { return OtherClients() == 1; }));
  ExpectHonestClientUnharmed();
}

TEST_F(HostileTest, AChildThatInheritedASocketIsNotItsOwner) {
  StartWithHonestClient();
  WireClient wire = WireClient::Connect(socket());
  ASSERT_TRUE(wire.Hello("parent"));
  bench::Child child = StartProcess("heir", [&](bench::Link&) -> Status {
    const auto reply = wire.Call<wire::PingReply>(wire::Type::kPing, wire::Ping());
    RETURN_UNLESS(!reply, "the daemon does not answer it");
    return {};
  });
  ExpectDone(child);
  EXPECT_TRUE(wire.AwaitClosed());
  ExpectHonestClientUnharmed();
}

// ---- Fork

// In a forked child: nothing works, nothing crashes, nothing of the daemon's memory is mapped.
Status UseInheritedHandles(kvc_client* client, kvc_reader* reader, kvc_space* space,
                           kvc_pages* pages) {
  const kvc_key key = bench::SyntheticKey(1);
  kvc_page page{};
  kvc_miss why = KVC_MISS_NONE;
  RETURN_UNLESS(kvc_ping(client, 0, nullptr) == KVC_PERMISSION_DENIED, "ping");
  RETURN_UNLESS(kvc_pin(reader, space, &key, &page, &why) == 0, "pin");
  kvc_pages* found = nullptr;
  RETURN_UNLESS(kvc_lookup_prefix(reader, space, &key, 1, &found, nullptr) == KVC_PERMISSION_DENIED,
                "lookup");
  kvc_grants* grants = nullptr;
  RETURN_UNLESS(
      kvc_grant(client, space, &key, 1, nullptr, 0, &grants, nullptr) == KVC_PERMISSION_DENIED,
      "grant");
  kvc_reader* other = nullptr;
  RETURN_UNLESS(kvc_reader_create(client, &other, nullptr) == KVC_PERMISSION_DENIED, "reader");
  kvc_weights* weights = nullptr;
  RETURN_UNLESS(kvc_attach(client, "model", nullptr, 0, &weights, nullptr) == KVC_PERMISSION_DENIED,
                "attach");
  kvc_error error{};
  RETURN_UNLESS(kvc_drop(client, space, &key, 1, 0, nullptr, &error) == KVC_PERMISSION_DENIED,
                "drop");
  RETURN_UNLESS(error.message[0] != '\0', "it says why");
  kvc_pages_release(pages);
  kvc_reader_destroy(reader);
  kvc_space_close(space);
  kvc_close(client);
  return {};
}

TEST_F(HostileTest, AForkedChildCanUseNoHandleOfItsParent) {
  StartDaemon();
  bench::Child parent = StartClient("parent", [](kvc_client* client, bench::Link&) -> Status {
    ASSIGN_OR_RETURN(const bench::Space space, OpenPlainSpace(client, kPageBytes));
    ASSIGN_OR_RETURN(const bench::Reader reader, bench::NewReader(client));
    const std::vector<kvc_key> keys = Keys(1, 1);
    RETURN_IF_ERROR(PutNewPages(client, space.get(), keys));
    ASSIGN_OR_RETURN(const bench::Pages pages, PinAll(reader.get(), space.get(), keys));
    kvc_pages* found = pages.get();
    ASSIGN_OR_RETURN(bench::Child child, bench::Child::Start("child", [&](bench::Link&) {
                       return UseInheritedHandles(client, reader.get(), space.get(), found);
                     }));
    RETURN_IF_ERROR(child.Wait());
    // The parent has lost nothing by it.
    RETURN_IF_ERROR(CheckPages(found, keys));
    RETURN_UNLESS(kvc_ping(client, 0, nullptr) == KVC_OK, "ping");
    RETURN_UNLESS(kvc_epoch(client) == 1, "it was never disconnected");
    return {};
  });
  ExpectDone(parent);
}

}  // namespace
}  // namespace terrace
