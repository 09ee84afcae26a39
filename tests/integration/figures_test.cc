// Promise 6 on the real daemon: what it counts adds up, and to what its clients did.
#include <sys/wait.h>

#include <array>
#include <atomic>

#include "base/random.h"
#include "tests/integration/effort.h"
#include "tests/integration/integration_test.h"

namespace terrace {
namespace {

constexpr uint64_t kSmallPage = 4u << 10;
constexpr uint64_t kLargePage = 96u << 10;

// Lookups of one client, by its own count.
struct Counted {
  uint64_t lookups = 0;
  uint64_t hits = 0;
  uint64_t misses = 0;
};

// Looks up what may be there or not, in every way there is, and publishes meanwhile.
Status Work(kvc_client* client, uint64_t seed, uint64_t rounds, Counted* counted) {
  ASSIGN_OR_RETURN(const bench::Reader reader, bench::NewReader(client));
  ASSIGN_OR_RETURN(const bench::Space small, OpenPlainSpace(client, kSmallPage));
  ASSIGN_OR_RETURN(const bench::Space large, OpenPlainSpace(client, kLargePage));
  Random random(seed);
  for (uint64_t round = 0; round < rounds; ++round) {
    const kvc_space* space = random.Chance(1, 2) ? small.get() : large.get();
    const uint64_t first = random.Below(1000);
    const std::vector<kvc_key> keys = Keys(first, 8);
    RETURN_IF_ERROR(PutPages(client, space, Keys(first, random.Below(8))).status());
    kvc_pages* found = nullptr;
    RETURN_UNLESS(
        kvc_lookup_prefix(reader.get(), space, keys.data(), keys.size(), &found, nullptr) == KVC_OK,
        "lookup");
    counted->lookups += keys.size();
    counted->hits += kvc_pages_found(found);
    kvc_pages_release(found);
    RETURN_UNLESS(kvc_lookup_each(reader.get(), space, keys.data(), keys.size(), &found) == KVC_OK,
                  "lookup");
    counted->lookups += keys.size();
    counted->hits += kvc_pages_found(found);
    kvc_pages_release(found);
    kvc_page page{};
    const kvc_ticket ticket = kvc_pin(reader.get(), space, &keys[0], &page, nullptr);
    ++counted->lookups;
    counted->hits += ticket != 0;
    kvc_unpin(reader.get(), ticket);
  }
  counted->misses = counted->lookups - counted->hits;
  return {};
}

Status CheckInfo(kvc_client* client, const Counted& counted) {
  kvc_client_info info{};
  info.struct_size = sizeof info;
  RETURN_UNLESS(kvc_client_get_info(client, &info) == KVC_OK, "info");
  RETURN_UNLESS(info.lookups == counted.lookups, "lookups");
  RETURN_UNLESS(info.hits == counted.hits, "hits");
  RETURN_UNLESS(info.misses == counted.misses, "misses");
  return {};
}

class FiguresTest : public IntegrationTest {
 protected:
  static uint64_t Sum(const Json& parts) {
    uint64_t sum = 0;
    for (const auto& [name, part] : parts.items())
      sum += part.get<uint64_t>();
    return sum;
  }
  // What must hold whenever the daemon is asked.
  void ExpectBytesAddUp() {
    const Json host = Report("status")["host"];
    EXPECT_EQ(host["used_bytes"].get<uint64_t>(),
              host["linked_bytes"].get<uint64_t>() + host["granted_bytes"].get<uint64_t>() +
                  host["limbo_bytes"].get<uint64_t>() + host["filling_bytes"].get<uint64_t>() + host["free_bytes"].get<uint64_t>() +
                  host["block_bytes"].get<uint64_t>());
    EXPECT_LE(host["used_bytes"], host["capacity_bytes"]);
  }
};

TEST_F(FiguresTest, HitsAndMissesAreTheLookupsOfAllClientsThatEnded) {
  StartDaemon("16MiB");
  const uint64_t rounds = Effort(1000, 100);
  constexpr size_t kClients = 3;
  std::vector<bench::Child> clients;
  for (size_t i = 0; i < kClients; ++i) {
    clients.push_back(
        StartClient("worker", [&, i](kvc_client* client, bench::Link& link) -> Status {
          Counted counted;
          RETURN_IF_ERROR(Work(client, i + 1, rounds, &counted));
          RETURN_IF_ERROR(CheckInfo(client, counted));
          RETURN_IF_ERROR(link.Send(counted));
          // One is killed here, the others say goodbye.
          return link.Receive<bench::Go>().status();
        }));
  }
  Counted all;
  for (bench::Child& client : clients) {
    for (int i = 0; i < 20; ++i)
      ExpectBytesAddUp();
    const auto counted = Hear<Counted>(client);
    all.lookups += counted.lookups;
    all.hits += counted.hits;
    all.misses += counted.misses;
    EXPECT_GT(counted.hits, 0u);
    EXPECT_GT(counted.misses, 0u);
  }
  clients[0].Kill();
  for (size_t i = 1; i < kClients; ++i) {
    Tell(clients[i]);
    ExpectDone(clients[i]);
  }
  ASSERT_TRUE(Await([&] { return OtherClients() == 0; }));
  const Json lookups = Report("status")["lookups"];
  EXPECT_EQ(lookups["lookups"], all.lookups);
  EXPECT_EQ(Sum(lookups["hits"]), all.hits);
  EXPECT_EQ(lookups["hits"]["host"], all.hits) << "there is one tier";
  EXPECT_EQ(Sum(lookups["misses"]), all.misses);
  ExpectBytesAddUp();
}

// A client may die between two of its counters.
TEST_F(FiguresTest, TheyAddUpWhereverAClientIsKilled) {
  StartDaemon("16MiB");
  SharedWords<std::array<std::atomic<uint64_t>, 1>> rounds;
  Random random(9);
  const uint64_t kills = Effort(100, 20);
  for (uint64_t kill = 0; kill < kills; ++kill) {
    (*rounds)[0] = 0;
    bench::Child client = StartClient("victim", [&](kvc_client* connected, bench::Link&) -> Status {
      ASSIGN_OR_RETURN(const bench::Reader reader, bench::NewReader(connected));
      ASSIGN_OR_RETURN(const bench::Space space, OpenPlainSpace(connected, kSmallPage));
      const std::vector<kvc_key> keys = Keys(1, 2);  // One that is there, and one that is not.
      RETURN_IF_ERROR(PutPages(connected, space.get(), {keys[0]}).status());
      for (;; ++(*rounds)[0]) {
        kvc_page page{};
        for (const kvc_key& key : keys)
          kvc_unpin(reader.get(), kvc_pin(reader.get(), space.get(), &key, &page, nullptr));
      }
    });
    const uint64_t until = 1 + random.Below(2000);
    ASSERT_TRUE(Await([&] { return (*rounds)[0] >= until; }));
    client.Kill();
    ASSERT_TRUE(Await([&] { return OtherClients() == 0; }));
    const Json lookups = Report("status")["lookups"];
    ASSERT_EQ(lookups["lookups"], Sum(lookups["hits"]) + Sum(lookups["misses"])) << "kill " << kill;
  }
}

}  // namespace
}  // namespace terrace
