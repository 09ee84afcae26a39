// Pin against evict with real processes, under a memory far too small for what is asked of it.
#include <signal.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <deque>
#include <functional>
#include <optional>
#include <thread>

#include "base/random.h"
#include "tests/integration/effort.h"
#include "tests/integration/integration_test.h"

namespace terrace {
namespace {

constexpr uint64_t kPageBytes = 8u << 10;
constexpr uint64_t kCapacity = 16u << 20;  // 2,048 pages for
constexpr uint64_t kKeys = 4096;           // twice as many keys.
constexpr size_t kReaders = 3;
constexpr int kThreads = 2;

struct Words {
  std::atomic<uint64_t> lookups{};  // Of readers.
  std::atomic<uint64_t> hits{};
  std::atomic<uint64_t> failures{};
  std::atomic<bool> stop{};
};

// One thread of a reader process: pins, verifies, holds for a while, verifies again, releases.
Status ReadUnderPressure(kvc_client* client, const kvc_space* space, uint64_t seed, Words& words) {
  struct Held {
    kvc_key key;
    kvc_page page;
    kvc_ticket ticket;
  };
  constexpr size_t kHeld = 96;
  constexpr uint64_t kReportEvery = 256;
  ASSIGN_OR_RETURN(const bench::Reader reader, bench::NewReader(client));
  Random random(seed);
  std::deque<Held> held;
  uint64_t hits = 0;
  for (uint64_t lookups = 1; !words.stop; ++lookups) {
    // Half of the lookups go to few keys, so that the policy has a choice. Between its two scans
    // the evictor meets a new pin dozens of times in a million lookups.
    const uint64_t range = random.Chance(1, 2) ? kKeys / 8 : kKeys;
    Held one{bench::SyntheticKey(random.Below(range)), {}, 0};
    kvc_miss why = KVC_MISS_NONE;
    one.ticket = kvc_pin(reader.get(), space, &one.key, &one.page, &why);
    if (one.ticket != 0) {
      ++hits;
      RETURN_IF_ERROR(CheckPage(one.key, one.page));
      held.push_back(one);
    } else {
      RETURN_UNLESS(why == KVC_MISS_ABSENT || why == KVC_MISS_BUSY, "miss " + std::to_string(why));
    }
    if (held.size() > kHeld) {
      RETURN_IF_ERROR(CheckPage(held.front().key, held.front().page));
      kvc_unpin(reader.get(), held.front().ticket);
      held.pop_front();
    }
    if (lookups % kReportEvery != 0) continue;
    words.lookups += kReportEvery;
    words.hits += std::exchange(hits, 0);
  }
  for (const Held& one : held)
    kvc_unpin(reader.get(), one.ticket);
  return {};
}

class PressureTest : public IntegrationTest {
 protected:
  bench::Child StartReader(uint64_t seed) {
    Words& words = *words_;
    return StartProcess("reader", [&words, seed, path = socket()](bench::Link&) {
      const Status status = ReadWithThreads(words, seed, path);
      if (!status.ok()) ++words.failures;
      return status;
    });
  }

  static Status ReadWithThreads(Words& words, uint64_t seed, const std::string& path) {
    ASSIGN_OR_RETURN(const bench::Client client,
                     bench::Connect({.socket = path, .name = "reader", .read_only = true}));
    ASSIGN_OR_RETURN(const bench::Space space, OpenPlainSpace(client.get(), kPageBytes));
    std::array<Status, kThreads> ends;
    std::vector<std::thread> threads;
    for (int i = 0; i < kThreads; ++i) {
      threads.emplace_back([&, i] {
        ends[i] = ReadUnderPressure(client.get(), space.get(), seed + i, words);
        if (!ends[i].ok()) words.stop = true;
      });
    }
    for (std::thread& thread : threads)
      thread.join();
    for (const Status& end : ends)
      RETURN_IF_ERROR(end);
    return {};
  }

  bench::Child StartWriter(uint64_t seed) {
    Words& words = *words_;
    return StartClient("writer", [&words, seed](kvc_client* client, bench::Link&) -> Status {
      ASSIGN_OR_RETURN(const bench::Space space, OpenPlainSpace(client, kPageBytes));
      Random random(seed);
      while (!words.stop) {
        const uint64_t range = random.Chance(1, 4) ? kKeys / 8 : kKeys;
        ASSIGN_OR_RETURN(const bench::Published published,
                         PutPages(client, space.get(), Keys(random.Below(range), 32, range)));
        RETURN_UNLESS(published.refused == 0, "far less than the capacity is pinned");
      }
      return {};
    });
  }

  // Stops a reader in the middle of what it does, lets it go on, or kills it.
  void DisturbOne() {
    const size_t place = random_.Below(kReaders);
    Reader& reader = readers_[place];
    if (reader.stopped) {
      ::kill(reader.child->pid(), SIGCONT);
      reader.stopped = false;
    } else if (random_.Chance(1, 3)) {
      ::kill(reader.child->pid(), SIGKILL);
      reader.child.emplace(StartReader(random_()));
      ++killed_;
    } else if (std::count_if(readers_.begin(), readers_.end(), [](const Reader& other) {
                 return other.stopped;
               }) < static_cast<ptrdiff_t>(kReaders) - 1) {
      ::kill(reader.child->pid(), SIGSTOP);
      reader.stopped = true;
    }
  }

  struct Reader {
    std::optional<bench::Child> child;
    bool stopped = false;
  };
  Random random_{4};
  SharedWords<Words> words_;
  std::array<Reader, kReaders> readers_;
  uint64_t killed_ = 0;
};

TEST_F(PressureTest, NoReaderSeesAWrongByteWhileItsPagesAreEvicted) {
  StartDaemon(std::to_string(kCapacity));
  Words& words = *words_;
  std::vector<bench::Child> writers;
  for (uint64_t seed = 1; seed <= 2; ++seed)
    writers.push_back(StartWriter(seed));
  ASSERT_TRUE(Await([&] { return StatusNumber("/pages/evicted") > 0; }));  // It is full.
  for (Reader& reader : readers_)
    reader.child.emplace(StartReader(random_()));
  const uint64_t target = Effort(4'000'000, 100'000);
  const uint64_t disturb_every = target / Effort(200, 20);
  for (uint64_t next = disturb_every; words.lookups < target; next += disturb_every) {
    ASSERT_TRUE(Await([&] { return words.lookups >= next || words.failures > 0; }))
        << words.lookups << " lookups";
    ASSERT_EQ(words.failures, 0u);
    ASSERT_TRUE(Runs(writers[0]) && Runs(writers[1]) && daemon().Running());
    DisturbOne();
  }
  words.stop = true;
  for (Reader& reader : readers_) {
    ::kill(reader.child->pid(), SIGCONT);
    ExpectDone(*reader.child);
  }
  for (bench::Child& writer : writers)
    ExpectDone(writer);
  EXPECT_EQ(words.failures, 0u);
  EXPECT_GT(killed_, 0u);
  EXPECT_GT(words.hits, words.lookups / 20) << "hits are what this is about";
  EXPECT_GT(StatusNumber("/pages/evicted"), kCapacity / kPageBytes);
  EXPECT_TRUE(Await([&] { return OtherClients() == 0; }));
  EXPECT_EQ(StatusNumber("/pages/grants"), 0u);
  EXPECT_TRUE(Await([&] { return StatusNumber("/pages/limbo") == 0; }));
}

// ---- Promise 4

// Says how many it holds, releases as many as it is told to, until that is none.
Status ReleaseAsTold(bench::Link& link, uint64_t held, const std::function<void()>& release) {
  RETURN_IF_ERROR(link.Send(held));
  for (;;) {
    ASSIGN_OR_RETURN(const bench::Go go, link.Receive<bench::Go>());
    if (go.number == 0) return {};
    for (uint32_t i = 0; i < go.number; ++i)
      release();
    RETURN_IF_ERROR(link.Send(go));
  }
}

Status PinEverything(kvc_client* client, bench::Link& link) {
  ASSIGN_OR_RETURN(const bench::Space space, OpenPlainSpace(client, kPageBytes));
  ASSIGN_OR_RETURN(const bench::Reader reader, bench::NewReader(client));
  std::vector<kvc_ticket> pins;
  for (const kvc_key& key : Keys(0, kKeys)) {
    kvc_page page{};
    const kvc_ticket ticket = kvc_pin(reader.get(), space.get(), &key, &page, nullptr);
    if (ticket == 0) break;
    RETURN_IF_ERROR(CheckPage(key, page));
    pins.push_back(ticket);
  }
  return ReleaseAsTold(link, pins.size(), [&] {
    kvc_unpin(reader.get(), pins.back());
    pins.pop_back();
  });
}

Status GrantEverything(kvc_client* client, bench::Link& link) {
  ASSIGN_OR_RETURN(const bench::Space space, OpenPlainSpace(client, kPageBytes));
  std::vector<bench::Grants> grants;
  for (const kvc_key& key : Keys(kKeys, kKeys)) {
    ASSIGN_OR_RETURN(bench::Grants grant, bench::Grant(client, space.get(), {&key, 1}));
    if (kvc_grants_code(grant.get(), 0) != KVC_OK) break;
    grants.push_back(std::move(grant));
  }
  return ReleaseAsTold(link, grants.size(), [&] { grants.pop_back(); });
}

// Answers each number with how many of so many new pages it could publish.
Status PublishAsTold(kvc_client* client, bench::Link& link) {
  ASSIGN_OR_RETURN(const bench::Space space, OpenPlainSpace(client, kPageBytes));
  for (uint64_t next = 0;;) {
    ASSIGN_OR_RETURN(const bench::Go go, link.Receive<bench::Go>());
    if (go.number == 0) return {};
    ASSIGN_OR_RETURN(const bench::Published published,
                     PutPages(client, space.get(), Keys(next, go.number)));
    next += go.number;
    RETURN_UNLESS(published.committed + published.refused == go.number, "new keys");
    RETURN_IF_ERROR(link.Send(published.committed));
  }
}

TEST_F(PressureTest, AllocationFailsOnlyWhenEverythingIsPinnedOrGranted) {
  StartDaemon(std::to_string(kCapacity), "pinned_bytes = \"1GiB\"\ngrants = 16384");
  constexpr uint64_t kPages = kCapacity / kPageBytes;
  constexpr uint64_t kPinned = kPages * 3 / 4;
  bench::Child writer = StartClient("writer", PublishAsTold);
  const auto publish = [&](uint32_t count) {
    Tell(writer, count);
    return Hear<uint64_t>(writer);
  };
  ASSERT_EQ(publish(kPinned), kPinned);
  bench::Child pinning = StartClient("pinning", PinEverything);
  ASSERT_EQ(Hear<uint64_t>(pinning), kPinned);
  bench::Child granted = StartClient("granted", GrantEverything);
  ASSERT_EQ(Hear<uint64_t>(granted), kPages - kPinned);

  EXPECT_EQ(publish(3), 0u) << "everything is pinned or granted";
  for (bench::Child* holder : {&pinning, &granted}) {
    for (const uint32_t released : {1u, 5u}) {
      Tell(*holder, released);
      Hear<bench::Go>(*holder);
      EXPECT_EQ(publish(1), 1u) << "one was released";
      EXPECT_EQ(publish(1), 1u) << "and what is published since can be evicted again";
    }
  }
  EXPECT_EQ(StatusNumber("/host/capacity_bytes"), kCapacity);
  EXPECT_LE(StatusNumber("/host/used_bytes"), kCapacity);
  // A holder's death releases all it had.
  pinning.Kill();
  EXPECT_TRUE(Await([&] { return ClientOf(pinning.pid()).is_null(); }));
  EXPECT_EQ(publish(kPinned), kPinned);
  for (bench::Child* holder : {&granted, &writer}) {
    Tell(*holder);
    ExpectDone(*holder);
  }
}

}  // namespace
}  // namespace terrace
