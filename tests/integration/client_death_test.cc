// SIGKILL of client processes at any point of their life, while others read and verify every byte.
#include <poll.h>

#include <array>
#include <atomic>
#include <cstring>
#include <deque>
#include <optional>

#include "base/random.h"
#include "tests/integration/effort.h"
#include "tests/integration/integration_test.h"

namespace terrace {
namespace {

// 2,048 keys for a memory of a thousand pages: what is granted and dropped is used again at once.
constexpr uint64_t kKeys = 2048;
constexpr uint64_t kPageBytes = 16u << 10;
constexpr uint64_t kPages = (16u << 20) / kPageBytes;
constexpr const char* kCapacity = "16MiB";
constexpr size_t kVictims = 3;

struct Words {
  // Steps that each victim has begun; where it is killed is chosen among them.
  std::array<std::atomic<uint64_t>, kVictims> steps{};
  std::atomic<uint64_t> pages_verified{};
  std::atomic<uint64_t> pages_committed{};
  std::atomic<uint64_t> failures{};  // Of victims, whose exit status nobody sees.
};

// What engines do, at random: look up, hold, publish, give grants back, drop.
class Player {
 public:
  // `steps` may be null.
  Player(kvc_client* client, uint64_t seed, Words& words, std::atomic<uint64_t>* steps)
      : client_(client), random_(seed), words_(words), steps_(steps) {}

  Status Open() {
    ASSIGN_OR_RETURN(space_, OpenPlainSpace(client_, kPageBytes));
    Count();
    ASSIGN_OR_RETURN(reader_, bench::NewReader(client_));
    return {};
  }

  Status Step() {
    Count();
    switch (random_.Below(6)) {
      case 0:
        return PinOne();
      case 1:
        return LookupMany();
      case 2:
        return VerifyHeld();
      case 3:
      case 4:
        return Publish();
      default:
        return Drop();
    }
  }

  Status VerifyHeld() {
    for (const Held& held : held_) {
      uint64_t found = 0;
      RETURN_IF_ERROR(CheckPages(held.pages.get(), held.keys, &found));
      words_.pages_verified += found;
    }
    return {};
  }

  Status LookupMany() {
    Held held;
    held.keys = SomeKeys(32);
    kvc_pages* found = nullptr;
    RETURN_UNLESS(kvc_lookup_each(reader_.get(), space_.get(), held.keys.data(), held.keys.size(),
                                  &found) == KVC_OK,
                  "lookup");
    held.pages.reset(found);
    Count();
    held_.push_back(std::move(held));
    RETURN_IF_ERROR(VerifyHeld());
    if (held_.size() > kHeldSets) held_.pop_front();
    return {};
  }

  void ReleaseAll() { held_.clear(); }

 private:
  static constexpr size_t kHeldSets = 4;
  struct Held {
    std::vector<kvc_key> keys;
    bench::Pages pages;
  };

  void Count() {
    if (steps_ != nullptr) ++*steps_;
  }
  std::vector<kvc_key> SomeKeys(uint64_t most) {
    const uint64_t count = 1 + random_.Below(most);
    return Keys(random_.Below(kKeys), count, kKeys);
  }

  Status PinOne() {
    const kvc_key key = SomeKeys(1)[0];
    kvc_page page{};
    const kvc_ticket ticket = kvc_pin(reader_.get(), space_.get(), &key, &page, nullptr);
    if (ticket == 0) return {};
    Count();
    RETURN_IF_ERROR(CheckPage(key, page));
    ++words_.pages_verified;
    kvc_unpin(reader_.get(), ticket);
    return {};
  }

  // Every page is garbage until just before its commit: were one visible that was not committed,
  // or to be seen while it is written, its reader would tell.
  Status Publish() {
    const std::vector<kvc_key> keys = SomeKeys(16);
    ASSIGN_OR_RETURN(const bench::Grants grants, bench::Grant(client_, space_.get(), keys));
    for (size_t i = 0; i < keys.size(); ++i) {
      auto* page = static_cast<uint8_t*>(kvc_grants_data(grants.get(), i));
      if (page == nullptr) continue;
      std::memset(page, 0xee, kPageBytes);
      Count();
      bench::FillContent(keys[i], {page, kPageBytes / 2});
      Count();
      if (random_.Chance(1, 64)) return {};  // Given back half-written.
      bench::FillContent(keys[i], {page, kPageBytes});
    }
    Count();
    kvc_error error{};
    RETURN_IF_ERROR(bench::ToStatus(kvc_commit(grants.get(), nullptr, 0, &error), error));
    for (size_t i = 0; i < keys.size(); ++i) {
      const kvc_code code = kvc_grants_code(grants.get(), i);
      words_.pages_committed += code == KVC_OK;
      RETURN_UNLESS(code == KVC_OK || code == KVC_ALREADY_EXISTS || code == KVC_EXHAUSTED,
                    kvc_code_name(code));
    }
    return {};
  }

  Status Drop() {
    const std::vector<kvc_key> keys = SomeKeys(8);
    kvc_error error{};
    return bench::ToStatus(
        kvc_drop(client_, space_.get(), keys.data(), keys.size(), 0, nullptr, &error), error);
  }

  kvc_client* client_;
  Random random_;
  Words& words_;
  std::atomic<uint64_t>* steps_;
  bench::Space space_;
  bench::Reader reader_;
  std::deque<Held> held_;
};

Status PlayForEver(Words& words, size_t place, uint64_t seed, const std::string& path) {
  ASSIGN_OR_RETURN(const bench::Client client,
                   bench::Connect({.socket = path, .name = "victim", .read_only = false}));
  std::atomic<uint64_t>& steps = words.steps[place];
  ++steps;
  Player player(client.get(), seed, words, &steps);
  RETURN_IF_ERROR(player.Open());
  for (;;)
    RETURN_IF_ERROR(player.Step());
}

class ClientDeathTest : public IntegrationTest {
 protected:
  // Repeats a step until it is told something.
  bench::Child StartSurvivor(uint64_t seed, Status (Player::*step)()) {
    Words& words = *words_;
    return StartClient("survivor", [&words, seed, step](kvc_client* client, bench::Link& link) {
      Player player(client, seed, words, nullptr);
      RETURN_IF_ERROR(player.Open());
      for (pollfd end{link.fd(), POLLIN, 0}; ::poll(&end, 1, 0) == 0;)
        RETURN_IF_ERROR((player.*step)());
      return Status();
    });
  }

  // Looks up some sets, and only verifies them from then on.
  bench::Child StartHolder(uint64_t seed) {
    Words& words = *words_;
    return StartClient("survivor", [&words, seed](kvc_client* client, bench::Link& link) -> Status {
      Player player(client, seed, words, nullptr);
      RETURN_IF_ERROR(player.Open());
      for (int i = 0; i < 4; ++i)
        RETURN_IF_ERROR(player.LookupMany());
      for (pollfd end{link.fd(), POLLIN, 0}; ::poll(&end, 1, 1) == 0;)
        RETURN_IF_ERROR(player.VerifyHeld());
      RETURN_IF_ERROR(link.Receive<bench::Go>().status());
      player.ReleaseAll();
      RETURN_IF_ERROR(link.Send(bench::Go{}));
      return link.Receive<bench::Go>().status();
    });
  }

  void StartVictim(size_t place) {
    Victim& victim = victims_[place];
    words_->steps[place] = 0;
    // From before its hello to far into its work.
    victim.kill_at = random_.Chance(1, 8) ? 0 : random_.Below(400);
    Words& words = *words_;
    const uint64_t seed = random_();
    victim.child.emplace(
        StartProcess("victim", [&words, place, seed, path = socket()](bench::Link&) {
          const Status status = PlayForEver(words, place, seed, path);
          ++words.failures;
          return status;
        }));
  }

  // Kills one victim where it was to be killed; its pins and grants are gone before the next.
  void KillOne() {
    const size_t place = random_.Below(kVictims);
    Victim& victim = victims_[place];
    ASSERT_TRUE(
        Await([&] { return words_->steps[place] >= victim.kill_at || words_->failures > 0; }));
    ASSERT_EQ(words_->failures, 0u);
    const pid_t pid = victim.child->pid();
    victim.child->Kill();
    ASSERT_TRUE(Await([&] { return ClientOf(pid).is_null(); }));
    StartVictim(place);
  }

  // Nobody pins, nothing is granted or in limbo, and all bytes are accounted for.
  void ExpectNothingHeld() {
    const Json clients = Report("clients");
    for (const Json& client : clients["clients"]) {
      EXPECT_EQ(client["pins"], 0);
      EXPECT_EQ(client["grants"], 0);
    }
    EXPECT_TRUE(Await([&] { return StatusNumber("/pages/limbo") == 0; }));
    const Json status = Report("status");
    EXPECT_EQ(status["clients"]["pins"], 0);
    EXPECT_EQ(status["pages"]["grants"], 0);
    EXPECT_EQ(status["host"]["granted_bytes"], 0);
    EXPECT_EQ(status["host"]["limbo_bytes"], 0);
    EXPECT_EQ(status["host"]["linked_bytes"],
              status["pages"]["count"].get<uint64_t>() * kPageBytes);
  }

  struct Victim {
    std::optional<bench::Child> child;
    uint64_t kill_at = 0;  // Steps.
  };
  Random random_{2};
  SharedWords<Words> words_;
  std::array<Victim, kVictims> victims_;
};

TEST_F(ClientDeathTest, KilledClientsLeaveNothingBehindAndHarmNobody) {
  StartDaemon(kCapacity);
  bench::Child reader = StartSurvivor(11, &Player::LookupMany);
  bench::Child writer = StartSurvivor(12, &Player::Step);
  ASSERT_TRUE(Await([&] { return words_->pages_committed > 500; }));
  bench::Child holder = StartHolder(13);
  for (size_t place = 0; place < kVictims; ++place)
    StartVictim(place);
  const uint64_t kills = Effort(400, 40);
  for (uint64_t kill = 0; kill < kills; ++kill) {
    SCOPED_TRACE("kill " + std::to_string(kill));
    KillOne();
    if (HasFatalFailure()) return;
    ASSERT_TRUE(Runs(reader) && Runs(writer) && Runs(holder) && daemon().Running());
  }
  const uint64_t verified = words_->pages_verified;
  EXPECT_TRUE(Await([&] { return words_->pages_verified > verified; }));
  for (Victim& victim : victims_)
    victim.child.reset();
  for (bench::Child* survivor : {&reader, &writer}) {
    Tell(*survivor);
    ExpectDone(*survivor);
  }
  Tell(holder);
  Hear<bench::Go>(holder);
  EXPECT_TRUE(Await([&] { return OtherClients() == 1; }));
  ExpectNothingHeld();
  EXPECT_GT(StatusNumber("/pages/evicted"), 0u) << "the memory was meant to be too small";
  EXPECT_EQ(words_->failures, 0u);
  Tell(holder);
  ExpectDone(holder);
}

TEST_F(ClientDeathTest, GrantsOfAKilledWriterAreFreeAgain) {
  StartDaemon(kCapacity);
  bench::Child greedy = StartClient("greedy", [](kvc_client* client, bench::Link& link) -> Status {
    ASSIGN_OR_RETURN(const bench::Space space, OpenPlainSpace(client, kPageBytes));
    std::vector<bench::Grants> all;
    uint64_t granted = 0;
    for (uint64_t next = 0; next < kKeys; next += 128) {
      ASSIGN_OR_RETURN(bench::Grants grants, bench::Grant(client, space.get(), Keys(next, 128)));
      for (size_t i = 0; i < 128; ++i)
        granted += kvc_grants_code(grants.get(), i) == KVC_OK;
      all.push_back(std::move(grants));
    }
    RETURN_IF_ERROR(link.Send(granted));
    return link.Receive<bench::Go>().status();
  });
  ASSERT_EQ(Hear<uint64_t>(greedy), kPages) << "all of the capacity";
  EXPECT_EQ(StatusNumber("/host/granted_bytes"), kPages * kPageBytes);
  greedy.Kill();
  EXPECT_TRUE(Await([&] { return StatusNumber("/host/granted_bytes") == 0; }));
  ExpectNothingHeld();
  bench::Child next = StartClient("next", [](kvc_client* client, bench::Link&) -> Status {
    ASSIGN_OR_RETURN(const bench::Space space, OpenPlainSpace(client, kPageBytes));
    return PutNewPages(client, space.get(), Keys(0, kPages));
  });
  ExpectDone(next);
}

}  // namespace
}  // namespace terrace
