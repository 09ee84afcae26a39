// Clients that do not keep the protocol, beside one that does: the daemon goes on, and the honest
// one sees no wrong byte, no failure and no wait.
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include <array>
#include <atomic>

#include "base/random.h"
#include "proto/shared_memory.h"
#include "tests/integration/effort.h"
#include "tests/integration/integration_test.h"

namespace terrace {
namespace {

constexpr uint64_t kPageBytes = 4u << 10;
constexpr uint64_t kKeys = 8192;  // Twice what the memory holds.

struct Words {
  std::atomic<uint64_t> rounds{};
  std::atomic<bool> stop{};
};

// Publishes, looks up and verifies until told to stop.
Status WorkHonestly(kvc_client* client, Words& words) {
  ASSIGN_OR_RETURN(const bench::Space space, OpenPlainSpace(client, kPageBytes));
  ASSIGN_OR_RETURN(const bench::Reader reader, bench::NewReader(client));
  Random random(1);
  for (; !words.stop; ++words.rounds) {
    const std::vector<kvc_key> keys = Keys(random.Below(kKeys), 16, kKeys);
    ASSIGN_OR_RETURN(const bench::Published published, PutPages(client, space.get(), keys));
    RETURN_UNLESS(published.refused == 0, "the honest client gets its memory");
    kvc_pages* found = nullptr;
    RETURN_UNLESS(
        kvc_lookup_each(reader.get(), space.get(), keys.data(), keys.size(), &found) == KVC_OK,
        "lookup");
    const bench::Pages pages(found);
    RETURN_IF_ERROR(CheckPages(found, keys));
    RETURN_UNLESS(kvc_epoch(client) == 1, "it was never disconnected");
  }
  return {};
}

// A client by the bare protocol: its channel as words, and the directory.
struct Intruder {
  WireClient wire;
  wire::HelloReply hello;
  Mapping channel_memory;
  Mapping directory_memory;

  std::span<shm::Word> words() const {
    return {reinterpret_cast<shm::Word*>(channel_memory.data()),
            channel_memory.size() / sizeof(shm::Word)};
  }
  shm::Channel& channel() const { return *reinterpret_cast<shm::Channel*>(channel_memory.data()); }
  // Handles of pages that are there now.
  std::vector<shm::Handle> Handles() const {
    const auto* header = reinterpret_cast<shm::DirectoryHeader*>(directory_memory.data());
    const auto* entries =
        reinterpret_cast<const shm::Entry*>(directory_memory.data() + shm::kEntriesOffset);
    std::vector<shm::Handle> handles;
    for (uint64_t i = 0; i < header->capacity.load(); ++i) {
      if (const shm::Handle handle = entries[i].handle.load()) handles.push_back(handle);
    }
    return handles;
  }
  // As a client that leases every line of its budget.
  void MarkAllLines() const {
    for (shm::Word& word : channel().upper_summary)
      word.store(UINT64_MAX);
    for (shm::Word& word : channel().summary)
      word.store(UINT64_MAX);
  }
  void Pin(uint32_t index, shm::Handle handle) const {
    channel().lines[index / shm::kPinsPerLine].pins[index % shm::kPinsPerLine].store(handle);
  }
};

class HostileTest : public IntegrationTest {
 protected:
  void StartWithHonestClient(const std::string& limits = "") {
    StartDaemon("16MiB", limits);
    Words& words = *words_;
    honest_.push_back(StartClient("honest", [&words](kvc_client* client, bench::Link&) {
      return WorkHonestly(client, words);
    }));
    AwaitRounds(300);  // The memory is full.
  }
  // The honest client has got on by so much.
  void AwaitRounds(uint64_t rounds) {
    const uint64_t until = words_->rounds + rounds;
    ASSERT_TRUE(Await([&] { return words_->rounds >= until || !Runs(honest_[0]); }));
    ASSERT_TRUE(Runs(honest_[0]));
    ASSERT_TRUE(daemon().Running());
  }
  void ExpectHonestClientUnharmed() {
    AwaitRounds(50);
    words_->stop = true;
    ExpectDone(honest_[0]);
    EXPECT_TRUE(daemon().Running());
  }

  Result<Intruder> Intrude() {
    Intruder intruder;
    intruder.wire = WireClient::Connect(socket());
    std::vector<UniqueFd> fds;
    ASSIGN_OR_RETURN(intruder.hello, intruder.wire.Hello("intruder", true, &fds));
    RETURN_UNLESS(fds.size() == 2, "channel and directory");
    ASSIGN_OR_RETURN(intruder.channel_memory,
                     Mapping::Of(fds[0].get(), 0, shm::kChannelBytes, Protection::kReadWrite));
    // The whole of the directory, as it is now.
    struct stat facts {};
    RETURN_UNLESS(::fstat(fds[1].get(), &facts) == 0, "fstat");
    ASSIGN_OR_RETURN(
        intruder.directory_memory,
        Mapping::Of(fds[1].get(), 0, static_cast<size_t>(facts.st_size), Protection::kRead));
    return intruder;
  }

  SharedWords<Words> words_;
  std::vector<bench::Child> honest_;
};

TEST_F(HostileTest, AChannelOfRandomWordsHarmsNobody) {
  StartWithHonestClient();
  Random random(3);
  const uint64_t fills = Effort(60, 10);
  for (uint64_t fill = 0; fill < fills; ++fill) {
    Result<Intruder> intruder = Intrude();
    ASSERT_TRUE(intruder) << intruder.error().ToString();
    const std::vector<shm::Handle> handles = intruder->Handles();
    for (shm::Word& word : intruder->words()) {
      // Noise, and sometimes what would make sense elsewhere.
      const uint64_t kind = random.Below(8);
      word.store(kind == 0 && !handles.empty() ? handles[random.Below(handles.size())]
                 : kind == 1                   ? UINT64_MAX
                 : kind == 2                   ? random.Below(1 << 20)
                                               : random());
    }
    AwaitRounds(5);  // Scans, drains and reports meet it.
    EXPECT_FALSE(Report("clients").is_null());
    EXPECT_FALSE(Report("status").is_null());
  }
  // Those that were found over their budget are gone; the others end with their connection's
  // process, which is this one.
  ExpectHonestClientUnharmed();
}

TEST_F(HostileTest, PinsOfArenasThatAreNotItsOwnHoldNothing) {
  StartWithHonestClient();
  Result<Intruder> intruder = Intrude();
  ASSERT_TRUE(intruder) << intruder.error().ToString();
  intruder->MarkAllLines();
  for (uint32_t i = 0; i < 4096; ++i)
    intruder->Pin(i, shm::MakeHandle(1000 + i, i, 1));  // No such arena.
  AwaitRounds(100);
  EXPECT_EQ(ClientNamed("intruder")["pinned_bytes"], 0);
  EXPECT_TRUE(intruder->wire.Call<wire::PingReply>(wire::Type::kPing, wire::Ping()))
      << "it is within its budget, and no bytes are pinned";
  ExpectHonestClientUnharmed();
}

TEST_F(HostileTest, AClientOverItsBudgetOfBytesIsCut) {
  StartWithHonestClient("pinned_bytes = \"1MiB\"");
  Result<Intruder> intruder = Intrude();
  ASSERT_TRUE(intruder) << intruder.error().ToString();
  EXPECT_EQ(intruder->hello.max_pinned_bytes(), 1u << 20);
  const std::vector<shm::Handle> handles = intruder->Handles();
  ASSERT_GT(handles.size(), (1u << 20) / kPageBytes);
  intruder->MarkAllLines();
  for (uint32_t i = 0; i < handles.size(); ++i)
    intruder->Pin(i, handles[i]);
  EXPECT_TRUE(intruder->wire.AwaitClosed());
  EXPECT_TRUE(Await([&] { return OtherClients() == 1; }));
  // All it had pinned is to be had again.
  AwaitRounds(200);
  ExpectHonestClientUnharmed();
}

TEST_F(HostileTest, PinsBeyondTheLinesOfItsBudgetCountForNothing) {
  StartWithHonestClient("pins = 64");
  Result<Intruder> intruder = Intrude();
  ASSERT_TRUE(intruder) << intruder.error().ToString();
  EXPECT_EQ(intruder->hello.max_pins(), 64u);
  const std::vector<shm::Handle> handles = intruder->Handles();
  intruder->MarkAllLines();
  for (uint32_t i = 0; i < handles.size(); ++i)
    intruder->Pin(64 + i, handles[i]);
  AwaitRounds(200);
  EXPECT_EQ(ClientNamed("intruder")["pins"], 0);
  ExpectHonestClientUnharmed();
}

TEST_F(HostileTest, GarbageClosesOnlyItsOwnConnection) {
  StartWithHonestClient();
  Random random(8);
  const uint64_t tries = Effort(200, 40);
  for (uint64_t i = 0; i < tries; ++i) {
    WireClient wire = WireClient::Connect(socket());
    ASSERT_GE(wire.fd(), 0);
    const bool hello = random.Chance(1, 2);
    if (hello) {
      ASSERT_TRUE(wire.Hello("garbage"));
    }
    std::string bytes(random.Below(4000), '\0');
    for (char& byte : bytes)
      byte = static_cast<char>(random());
    if (random.Chance(1, 2)) {
      // A frame that begins well and has another length, or ends in the middle.
      bytes = WireClient::Encode(wire::Type::kPing, 1, bytes).substr(0, random.Below(64) + 1);
    }
    wire.SendBytes(bytes);
    if (random.Chance(1, 2)) ::shutdown(wire.fd(), SHUT_WR);
    // It closes by itself, or is closed here in the middle of a frame.
  }
  AwaitRounds(20);
  EXPECT_GT(StatusNumber("/traffic/protocol_violations"), 0u);
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
