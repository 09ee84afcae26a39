// A daemon with an honest client that publishes, looks up and verifies all the time, and what is
// needed to misbehave beside it: a client by the bare protocol, its channel as words.
#pragma once

#include <sys/socket.h>
#include <sys/stat.h>

#include <atomic>
#include <functional>
#include <optional>

#include "base/random.h"
#include "proto/shared_memory.h"
#include "tests/integration/effort.h"
#include "tests/integration/integration_test.h"

namespace terrace {

inline constexpr uint64_t kPageBytes = 4u << 10;
inline constexpr uint64_t kKeys = 8192;  // Twice what the memory holds.

struct HonestWords {
  std::atomic<uint64_t> rounds{};
  std::atomic<bool> stop{};
};

// Publishes, looks up and verifies until told to stop.
inline Status WorkHonestly(kvc_client* client, HonestWords& words) {
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

// Says hello and maps what it is given.
inline Result<Intruder> Intrude(const std::string& socket) {
  Intruder intruder;
  intruder.wire = WireClient::Connect(socket);
  std::vector<UniqueFd> fds;
  ASSIGN_OR_RETURN(intruder.hello, intruder.wire.Hello("intruder", true, &fds));
  RETURN_UNLESS(fds.size() == 2, "channel and directory");
  ASSIGN_OR_RETURN(intruder.channel_memory,
                   Mapping::Of(fds[0].get(), 0, shm::kChannelBytes, Protection::kReadWrite));
  struct stat facts {};
  RETURN_UNLESS(::fstat(fds[1].get(), &facts) == 0, "fstat");
  ASSIGN_OR_RETURN(
      intruder.directory_memory,
      Mapping::Of(fds[1].get(), 0, static_cast<size_t>(facts.st_size), Protection::kRead));
  return intruder;
}

class HostileTest : public IntegrationTest {
 protected:
  void StartWithHonestClient(const std::string& limits = "") {
    StartDaemon("16MiB", limits);
    HonestWords& words = *words_;
    honest_.emplace(StartClient("honest", [&words](kvc_client* client, bench::Link&) {
      return WorkHonestly(client, words);
    }));
    AwaitRounds(300);  // The memory is full.
  }
  // The honest client has got on by so much.
  void AwaitRounds(uint64_t rounds) {
    const uint64_t until = words_->rounds + rounds;
    ASSERT_TRUE(Await([&] { return words_->rounds >= until || !Runs(*honest_); }));
    ASSERT_TRUE(Runs(*honest_));
    ASSERT_TRUE(daemon().Running());
  }
  void ExpectHonestClientUnharmed() {
    AwaitRounds(50);
    words_->stop = true;
    ExpectDone(*honest_);
    EXPECT_TRUE(daemon().Running());
  }
  // A process that marks all its lines, pins by `pin`, which gets the handles of all pages there
  // are, and tells so; it tells, too, when the daemon has closed its connection.
  bench::Child StartPinning(
      const std::function<void(const Intruder&, const std::vector<shm::Handle>&)>& pin) {
    return StartProcess("intruder", [path = socket(), pin](bench::Link& link) -> Status {
      ASSIGN_OR_RETURN(Intruder intruder, Intrude(path));
      intruder.MarkAllLines();
      pin(intruder, intruder.Handles());
      RETURN_IF_ERROR(link.Send(bench::Go{}));
      const bool cut = intruder.wire.AwaitClosed();
      RETURN_IF_ERROR(link.Send(cut));
      return link.Receive<bench::Go>().status();
    });
  }

  SharedWords<HonestWords> words_;
  std::optional<bench::Child> honest_;
};

}  // namespace terrace
