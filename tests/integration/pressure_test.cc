// Pin against evict with real processes, under a memory far too small for what is asked of it.
#include <signal.h>

#include <array>
#include <atomic>
#include <deque>
#include <optional>
#include <thread>

#include "base/random.h"
#include "tests/integration/effort.h"
#include "tests/integration/integration_test.h"

namespace terrace {
namespace {

constexpr uint32_t kTokens = 16;
constexpr uint64_t kPageBytes = 2u << 10;
constexpr uint64_t kCapacity = 16u << 20;  // 8,192 pages for
constexpr uint64_t kKeys = 32'768;         // four times as many keys.
constexpr size_t kReaders = 3;
constexpr int kThreads = 2;

struct Words {
  std::atomic<uint64_t> lookups{};  // Of readers.
  std::atomic<uint64_t> hits{};
  std::atomic<uint64_t> failures{};
  std::atomic<bool> stop{};
};

bench::SpaceOptions PageSpace() {
  return {.layout = bench::PlainLayout(kPageBytes, kTokens), .weights = nullptr, .salt = ""};
}

Status PutPages(kvc_client* client, const kvc_space* space, const std::vector<kvc_key>& keys,
                bench::Published* published) {
  const auto fill = [&](size_t i, std::span<uint8_t> page) { bench::FillContent(keys[i], page); };
  ASSIGN_OR_RETURN(*published, bench::Put(client, space, {.keys = keys}, fill));
  return {};
}

// One thread of a reader process: pins, verifies, holds for a while, verifies again, releases.
Status ReadUnderPressure(kvc_client* client, const kvc_space* space, uint64_t seed, Words& words) {
  struct Held {
    kvc_key key;
    kvc_page page;
    kvc_ticket ticket;
  };
  constexpr size_t kHeld = 64;
  constexpr uint64_t kReportEvery = 256;
  ASSIGN_OR_RETURN(const bench::Reader reader, bench::NewReader(client));
  Random random(seed);
  std::deque<Held> held;
  uint64_t hits = 0;
  for (uint64_t lookups = 1; !words.stop; ++lookups) {
    // Half of the lookups go to few keys, so that readers meet on them and the policy has a choice.
    const uint64_t range = random.Chance(1, 2) ? kKeys / 64 : kKeys;
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
    ASSIGN_OR_RETURN(const bench::Space space, bench::OpenSpace(client.get(), PageSpace()));
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
      ASSIGN_OR_RETURN(const bench::Space space, bench::OpenSpace(client, PageSpace()));
      Random random(seed);
      while (!words.stop) {
        std::vector<kvc_key> keys;
        const uint64_t range = random.Chance(1, 4) ? kKeys / 64 : kKeys;
        const uint64_t first = random.Below(range);
        for (uint64_t i = 0; i < 32; ++i)
          keys.push_back(bench::SyntheticKey((first + i) % range));
        bench::Published published;
        RETURN_IF_ERROR(PutPages(client, space.get(), keys, &published));
        RETURN_UNLESS(published.refused == 0, "far less than the capacity is pinned");
      }
      return {};
    });
  }

  SharedWords<Words> words_;
};

TEST_F(PressureTest, NoReaderSeesAWrongByteWhileItsPagesAreEvicted) {
  StartDaemon(std::to_string(kCapacity));
  Random random(4);
  Words& words = *words_;
  std::vector<bench::Child> writers;
  for (uint64_t seed = 1; seed <= 2; ++seed)
    writers.push_back(StartWriter(seed));
  std::array<std::optional<bench::Child>, kReaders> readers;
  for (size_t i = 0; i < kReaders; ++i)
    readers[i].emplace(StartReader(100 * (i + 1)));

  // Meanwhile readers are stopped in the middle of a lookup for a while, or killed.
  const uint64_t target = Effort(4'000'000, 100'000);
  const uint64_t disturb_every = target / Effort(200, 20);
  std::array<bool, kReaders> stopped{};
  uint64_t killed = 0;
  for (uint64_t next = disturb_every; words.lookups < target; next += disturb_every) {
    ASSERT_TRUE(Await([&] { return words.lookups >= next || words.failures > 0; }))
        << words.lookups << " lookups";
    ASSERT_EQ(words.failures, 0u);
    for (const bench::Child& writer : writers)
      ASSERT_TRUE(Runs(writer));
    const size_t place = random.Below(kReaders);
    bench::Child& reader = *readers[place];
    if (stopped[place]) {
      ::kill(reader.pid(), SIGCONT);
      stopped[place] = false;
    } else if (random.Chance(1, 3)) {
      ::kill(reader.pid(), SIGKILL);
      readers[place].emplace(StartReader(random()));
      ++killed;
    } else if (std::count(stopped.begin(), stopped.end(), true) < 2) {
      ::kill(reader.pid(), SIGSTOP);
      stopped[place] = true;
    }
  }
  words.stop = true;
  for (auto& reader : readers) {
    ::kill(reader->pid(), SIGCONT);
    ExpectDone(*reader);
  }
  for (bench::Child& writer : writers)
    ExpectDone(writer);
  EXPECT_EQ(words.failures, 0u);
  EXPECT_GT(killed, 0u);
  EXPECT_GT(words.hits, words.lookups / 20) << "hits are what this is about";
  const Json status = Report("status");
  EXPECT_GT(status["pages"]["evicted"].get<uint64_t>(), kCapacity / kPageBytes);
  EXPECT_TRUE(Await([&] { return OtherClients() == 0; }));
  EXPECT_EQ(StatusNumber("/pages/grants"), 0u);
  EXPECT_TRUE(Await([&] { return StatusNumber("/pages/limbo") == 0; }));
}

// ---- Promise 4

// Pins every page there is, says how many, and releases as many as it is told to.
Status HoldEverything(kvc_client* client, bench::Link& link, bool grants_instead) {
  ASSIGN_OR_RETURN(const bench::Space space, bench::OpenSpace(client, PageSpace()));
  ASSIGN_OR_RETURN(const bench::Reader reader, bench::NewReader(client));
  std::vector<kvc_ticket> pins;
  std::vector<bench::Grants> grants;
  uint64_t held = 0;
  for (uint64_t i = 0; i < kKeys; ++i) {
    const kvc_key key = bench::SyntheticKey(grants_instead ? kKeys + i : i);
    if (grants_instead) {
      ASSIGN_OR_RETURN(bench::Grants grant, bench::Grant(client, space.get(), {&key, 1}));
      if (kvc_grants_code(grant.get(), 0) != KVC_OK) break;
      grants.push_back(std::move(grant));
      ++held;
      continue;
    }
    kvc_page page{};
    const kvc_ticket ticket = kvc_pin(reader.get(), space.get(), &key, &page, nullptr);
    if (ticket == 0) continue;
    RETURN_IF_ERROR(CheckPage(key, page));
    pins.push_back(ticket);
    ++held;
  }
  RETURN_IF_ERROR(link.Send(held));
  for (;;) {
    ASSIGN_OR_RETURN(const bench::Go go, link.Receive<bench::Go>());
    if (go.number == 0) break;
    for (uint32_t i = 0; i < go.number; ++i) {
      if (!grants.empty()) {
        grants.pop_back();
      } else {
        kvc_unpin(reader.get(), pins.back());
        pins.pop_back();
      }
    }
    RETURN_IF_ERROR(link.Send(go));
  }
  for (const kvc_ticket ticket : pins)
    kvc_unpin(reader.get(), ticket);
  return {};
}

TEST_F(PressureTest, AllocationFailsOnlyWhenEverythingIsPinnedOrGranted) {
  StartDaemon(std::to_string(kCapacity), "pinned_bytes = \"1GiB\"\ngrants = 16384");
  constexpr uint64_t kPages = kCapacity / kPageBytes;
  constexpr uint64_t kPinned = kPages * 3 / 4;
  // It answers each number with how many of so many new pages it could publish.
  bench::Child writer = StartClient("writer", [](kvc_client* client, bench::Link& link) -> Status {
    ASSIGN_OR_RETURN(const bench::Space space, bench::OpenSpace(client, PageSpace()));
    for (uint64_t next = 0;;) {
      ASSIGN_OR_RETURN(const bench::Go go, link.Receive<bench::Go>());
      if (go.number == 0) return {};
      std::vector<kvc_key> keys;
      for (uint32_t i = 0; i < go.number; ++i)
        keys.push_back(bench::SyntheticKey(next++));
      bench::Published published;
      RETURN_IF_ERROR(PutPages(client, space.get(), keys, &published));
      RETURN_UNLESS(published.committed + published.refused == keys.size(), "new keys");
      RETURN_IF_ERROR(link.Send(published.committed));
    }
  });
  const auto publish = [&](uint32_t count) {
    Tell(writer, count);
    return Hear<uint64_t>(writer);
  };
  ASSERT_EQ(publish(kPinned), kPinned);
  bench::Child pinning = StartClient("pinning", [](kvc_client* client, bench::Link& link) {
    return HoldEverything(client, link, false);
  });
  ASSERT_EQ(Hear<uint64_t>(pinning), kPinned);
  bench::Child granted = StartClient("granted", [](kvc_client* client, bench::Link& link) {
    return HoldEverything(client, link, true);
  });
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
    Tell(*holder, 0);
    ExpectDone(*holder);
  }
}

}  // namespace
}  // namespace terrace
