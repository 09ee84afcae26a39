// SIGKILL of the daemon while its clients read what they have mapped.
#include <unistd.h>

#include <array>
#include <atomic>

#include "base/random.h"
#include "bench/memory_maps.h"
#include "bench/model_writer.h"
#include "tests/integration/effort.h"
#include "tests/integration/integration_test.h"

namespace terrace {
namespace {

constexpr uint32_t kTokens = 16;
constexpr uint64_t kPageBytes = 64u << 10;
constexpr uint64_t kSeed = 5;

bench::SpaceOptions PageSpace() {
  return {.layout = bench::PlainLayout(kPageBytes, kTokens), .weights = nullptr, .salt = ""};
}

std::vector<kvc_key> Keys(uint64_t first, uint64_t count) {
  std::vector<kvc_key> keys;
  for (uint64_t i = 0; i < count; ++i)
    keys.push_back(bench::SyntheticKey(first + i));
  return keys;
}

Status PublishAll(kvc_client* client, const kvc_space* space, const std::vector<kvc_key>& keys) {
  const auto fill = [&](size_t i, std::span<uint8_t> page) { bench::FillContent(keys[i], page); };
  ASSIGN_OR_RETURN(const bench::Published published,
                   bench::Put(client, space, {.keys = keys}, fill));
  RETURN_UNLESS(published.committed == keys.size(), "all committed");
  return {};
}

Result<bench::Pages> PinAll(kvc_reader* reader, const kvc_space* space,
                            const std::vector<kvc_key>& keys) {
  kvc_pages* found = nullptr;
  RETURN_UNLESS(
      kvc_lookup_prefix(reader, space, keys.data(), keys.size(), &found, nullptr) == KVC_OK,
      "lookup");
  bench::Pages pages(found);
  RETURN_UNLESS(kvc_pages_found(found) == keys.size(), "all found");
  return pages;
}

Status CheckAll(const kvc_pages* pages, const std::vector<kvc_key>& keys) {
  for (size_t i = 0; i < keys.size(); ++i) {
    kvc_page page{};
    RETURN_UNLESS(kvc_pages_get(pages, i, &page) == KVC_OK, "page");
    RETURN_IF_ERROR(CheckPage(keys[i], page));
  }
  return {};
}

Status CheckWeights(const kvc_weights* weights, const std::vector<ModelTensor>& tensors) {
  for (const ModelTensor& expected : tensors) {
    kvc_tensor tensor{};
    tensor.struct_size = sizeof tensor;
    RETURN_UNLESS(kvc_weights_find(weights, expected.name.c_str(), &tensor) == KVC_OK,
                  expected.name);
    std::vector<uint8_t> bytes(expected.bytes());
    FillTensor(TensorSeed(kSeed, expected.name), expected.dtype, 0, bytes);
    RETURN_UNLESS(std::memcmp(bytes.data(), tensor.data, bytes.size()) == 0, expected.name);
  }
  return {};
}

Result<bench::Weights> Attach(kvc_client* client) {
  kvc_attach_options options{};
  options.struct_size = sizeof options;
  options.load = 1;
  kvc_weights* weights = nullptr;
  kvc_error error{};
  RETURN_IF_ERROR(
      bench::ToStatus(kvc_attach(client, "durable", &options, 0, &weights, &error), error));
  return bench::Weights(weights);
}

// Every verb fails with the same clear code while there is no daemon.
Status CheckAllUnavailable(kvc_client* client, kvc_reader* reader, const kvc_space* space) {
  const kvc_key key = bench::SyntheticKey(0);
  kvc_page page{};
  kvc_miss why = KVC_MISS_NONE;
  RETURN_UNLESS(kvc_pin(reader, space, &key, &page, &why) == 0, "a lookup");
  RETURN_UNLESS(why == KVC_MISS_DISCONNECTED, "a lookup");
  kvc_pages* pages = nullptr;
  RETURN_UNLESS(kvc_lookup_prefix(reader, space, &key, 1, &pages, &why) == KVC_OK, "a lookup");
  RETURN_UNLESS(kvc_pages_found(pages) == 0 && why == KVC_MISS_DISCONNECTED, "a lookup");
  kvc_pages_release(pages);
  RETURN_UNLESS(kvc_ping(client, 0, nullptr) == KVC_UNAVAILABLE, "ping");
  kvc_grants* grants = nullptr;
  RETURN_UNLESS(kvc_grant(client, space, &key, 1, nullptr, 0, &grants, nullptr) == KVC_UNAVAILABLE,
                "grant");
  RETURN_UNLESS(kvc_drop(client, space, &key, 1, 0, nullptr, nullptr) == KVC_UNAVAILABLE, "drop");
  kvc_weights* weights = nullptr;
  RETURN_UNLESS(kvc_attach(client, "durable", nullptr, 0, &weights, nullptr) == KVC_UNAVAILABLE,
                "attach");
  kvc_space_options options{};
  options.struct_size = sizeof options;
  options.layout = bench::PlainLayout(kPageBytes, 2 * kTokens);
  kvc_space* other = nullptr;
  RETURN_UNLESS(kvc_space_open(client, &options, 0, &other, nullptr) == KVC_UNAVAILABLE, "open");
  kvc_error error{};
  RETURN_UNLESS(kvc_ping(client, 0, &error) == KVC_UNAVAILABLE, "ping");
  RETURN_UNLESS(error.code == KVC_UNAVAILABLE && error.message[0] != '\0', "its message");
  return {};
}

// Bytes of shared memory that hold `address`'s file in this process.
Result<bool> StillMapped(const void* address) {
  ASSIGN_OR_RETURN(const std::vector<bench::MappedRange> ranges, bench::MapsOf(::getpid()));
  const auto at = reinterpret_cast<uint64_t>(address);
  for (const bench::MappedRange& range : ranges) {
    if (range.start <= at && at < range.end) return range.shared;
  }
  return false;
}

// What one engine lives through; it is told when the daemon was killed, and when it was started.
Status LiveThroughDeath(kvc_client* client, bench::Link& link,
                        const std::vector<ModelTensor>& tensors) {
  RETURN_UNLESS(kvc_epoch(client) == 1, "the first life");
  ASSIGN_OR_RETURN(const bench::Space space, bench::OpenSpace(client, PageSpace()));
  ASSIGN_OR_RETURN(const bench::Reader reader, bench::NewReader(client));
  ASSIGN_OR_RETURN(bench::Weights weights, Attach(client));
  const std::vector<kvc_key> keys = Keys(0, 64);
  RETURN_IF_ERROR(PublishAll(client, space.get(), keys));
  ASSIGN_OR_RETURN(bench::Pages pages, PinAll(reader.get(), space.get(), keys));
  const std::vector<kvc_key> unwritten = Keys(1000, 4);
  ASSIGN_OR_RETURN(bench::Grants grants, bench::Grant(client, space.get(), unwritten));
  const kvc_key other = bench::SyntheticKey(2000);
  ASSIGN_OR_RETURN(bench::Grants later, bench::Grant(client, space.get(), {&other, 1}));
  RETURN_IF_ERROR(link.Send(bench::Go{}));

  RETURN_IF_ERROR(link.Receive<bench::Go>().status());  // Killed.
  RETURN_UNLESS(Await([&] { return kvc_epoch(client) == 0; }), "it learns of the death");
  RETURN_IF_ERROR(CheckAllUnavailable(client, reader.get(), space.get()));
  RETURN_IF_ERROR(CheckAll(pages.get(), keys));
  RETURN_IF_ERROR(CheckWeights(weights.get(), tensors));
  for (size_t i = 0; i < unwritten.size(); ++i) {
    // The memory is still there to be written, and goes with the set.
    bench::FillContent(unwritten[i],
                       {static_cast<uint8_t*>(kvc_grants_data(grants.get(), i)), kPageBytes});
  }
  RETURN_UNLESS(kvc_commit(grants.get(), nullptr, 0, nullptr) == KVC_UNAVAILABLE, "commit");
  RETURN_IF_ERROR(link.Send(bench::Go{}));

  RETURN_IF_ERROR(link.Receive<bench::Go>().status());  // Started again.
  kvc_error error{};
  RETURN_IF_ERROR(bench::ToStatus(kvc_wait_connected(client, 60'000, &error), error));
  RETURN_UNLESS(kvc_epoch(client) == 2, "the second life");
  RETURN_UNLESS(kvc_pages_epoch(pages.get()) == 1, "what is held is of the first");
  RETURN_UNLESS(kvc_weights_epoch(weights.get()) == 1, "what is held is of the first");
  RETURN_IF_ERROR(CheckAll(pages.get(), keys));
  RETURN_IF_ERROR(CheckWeights(weights.get(), tensors));
  const kvc_code stale = kvc_commit(later.get(), nullptr, 0, nullptr);
  RETURN_UNLESS(
      stale == KVC_STALE || (stale == KVC_OK && kvc_grants_code(later.get(), 0) == KVC_STALE),
      "a grant of the first life");

  // The space was opened again, the reader goes on, the memory is empty.
  kvc_pages* found = nullptr;
  kvc_miss why = KVC_MISS_NONE;
  RETURN_UNLESS(kvc_lookup_prefix(reader.get(), space.get(), keys.data(), keys.size(), &found,
                                  &why) == KVC_OK,
                "lookup");
  RETURN_UNLESS(kvc_pages_found(found) == 0 && why == KVC_MISS_ABSENT, "the memory is new");
  kvc_pages_release(found);
  RETURN_IF_ERROR(PublishAll(client, space.get(), keys));
  ASSIGN_OR_RETURN(const bench::Pages present, PinAll(reader.get(), space.get(), keys));
  RETURN_UNLESS(kvc_pages_epoch(present.get()) == 2, "of the second life");
  RETURN_IF_ERROR(CheckAll(present.get(), keys));
  RETURN_IF_ERROR(CheckAll(pages.get(), keys));
  ASSIGN_OR_RETURN(const bench::Weights loaded, Attach(client));
  RETURN_UNLESS(kvc_weights_epoch(loaded.get()) == 2, "of the second life");
  RETURN_IF_ERROR(CheckWeights(loaded.get(), tensors));

  // Old mappings go with what holds them.
  kvc_page old{};
  RETURN_UNLESS(kvc_pages_get(pages.get(), 0, &old) == KVC_OK, "page");
  ASSIGN_OR_RETURN(const bool mapped, StillMapped(old.data));
  RETURN_UNLESS(mapped, "while it is pinned");
  pages.reset();
  weights.reset();
  grants.reset();
  later.reset();
  const kvc_key absent = bench::SyntheticKey(3000);
  RETURN_UNLESS(Await([&] {
                  // A reader lets go of its past while it is used.
                  (void)kvc_pin(reader.get(), space.get(), &absent, nullptr, nullptr);
                  const Result<bool> still = StillMapped(old.data);
                  return still && !*still;
                }),
                "after its release");
  RETURN_IF_ERROR(CheckAll(present.get(), keys));
  RETURN_IF_ERROR(CheckWeights(loaded.get(), tensors));
  RETURN_IF_ERROR(link.Send(bench::Go{}));
  return link.Receive<bench::Go>().status();
}

class DaemonDeathTest : public IntegrationTest {
 protected:
  // Adds a model that a restarted daemon can read again.
  void AddDurableModel(const std::vector<ModelTensor>& tensors) {
    const std::string path = models_.path() + "/durable";
    ASSERT_TRUE(WriteModel(path, tensors, {.seed = kSeed, .shards = 2, .config_json = ""}));
    bench::Child adder = StartClient("adder", [&](kvc_client* client, bench::Link&) -> Status {
      kvc_model_added added{};
      added.struct_size = sizeof added;
      kvc_error error{};
      RETURN_IF_ERROR(bench::ToStatus(
          kvc_model_add(client, "durable", "1", path.c_str(), 0, &added, &error), error));
      RETURN_UNLESS(added.durable == 1, added.why_not);
      return {};
    });
    ExpectDone(adder);
  }

 private:
  TemporaryFolder models_;
};

TEST_F(DaemonDeathTest, ClientsReadOnAndComeBack) {
  StartDaemon();
  const std::vector<ModelTensor> tensors = ManyTensors(400);
  AddDurableModel(tensors);
  std::vector<bench::Child> engines;
  engines.push_back(StartClient("engine-0", [&](kvc_client* client, bench::Link& link) {
    return LiveThroughDeath(client, link, tensors);
  }));
  Hear<bench::Go>(engines[0]);
  daemon().Kill();
  Tell(engines[0]);
  Hear<bench::Go>(engines[0]);
  const Status launched = daemon().Launch();
  ASSERT_TRUE(launched.ok()) << launched.ToString();
  const Json models = Report("models");
  ASSERT_EQ(models["models"].size(), 1u);
  EXPECT_EQ(models["models"][0]["name"], "durable");
  EXPECT_EQ(models["models"][0]["versions"][0]["state"], "registered");
  Tell(engines[0]);
  Hear<bench::Go>(engines[0]);
  const Json client = ClientOf(engines[0].pid());
  EXPECT_EQ(client["pins"], 64);
  EXPECT_EQ(client["grants"], 0);
  EXPECT_EQ(client["attachments"], 1);
  Tell(engines[0]);
  ExpectDone(engines[0]);
}

// ---- Again and again

struct Words {
  std::array<std::atomic<uint64_t>, 3> epochs{};  // Of each engine, as it saw it last.
  std::array<std::atomic<uint64_t>, 3> rounds{};
  std::atomic<bool> stop{};
};

bool IsOfADeath(kvc_code code) {
  return code == KVC_UNAVAILABLE || code == KVC_STALE;
}

// Publishes, looks up, holds and verifies, whatever becomes of the daemon.
Status WorkThroughDeaths(kvc_client* client, size_t place, Words& words) {
  ASSIGN_OR_RETURN(const bench::Space space, bench::OpenSpace(client, PageSpace()));
  ASSIGN_OR_RETURN(const bench::Reader reader, bench::NewReader(client));
  Random random(place + 1);
  std::vector<kvc_key> held_keys;
  bench::Pages held;
  for (; !words.stop; ++words.rounds[place]) {
    const std::vector<kvc_key> keys = Keys(random.Below(256), 16);
    kvc_grants* granted = nullptr;
    const kvc_code code =
        kvc_grant(client, space.get(), keys.data(), keys.size(), nullptr, 0, &granted, nullptr);
    const bench::Grants grants(granted);
    RETURN_UNLESS(code == KVC_OK || IsOfADeath(code), kvc_code_name(code));
    if (code == KVC_OK) {
      for (size_t i = 0; i < keys.size(); ++i) {
        auto* page = static_cast<uint8_t*>(kvc_grants_data(granted, i));
        if (page != nullptr) bench::FillContent(keys[i], {page, kPageBytes});
      }
      const kvc_code committed = kvc_commit(granted, nullptr, 0, nullptr);
      RETURN_UNLESS(committed == KVC_OK || IsOfADeath(committed), kvc_code_name(committed));
    }
    kvc_pages* found = nullptr;
    RETURN_UNLESS(
        kvc_lookup_each(reader.get(), space.get(), keys.data(), keys.size(), &found) == KVC_OK,
        "lookup");
    bench::Pages pages(found);
    for (size_t i = 0; i < keys.size(); ++i) {
      kvc_page page{};
      RETURN_UNLESS(kvc_pages_get(found, i, &page) == KVC_OK, "page");
      if (page.data != nullptr) RETURN_IF_ERROR(CheckPage(keys[i], page));
    }
    for (size_t i = 0; i < held_keys.size(); ++i) {
      kvc_page page{};
      RETURN_UNLESS(kvc_pages_get(held.get(), i, &page) == KVC_OK, "page");
      if (page.data != nullptr) RETURN_IF_ERROR(CheckPage(held_keys[i], page));
    }
    if (random.Chance(1, 8)) {
      held = std::move(pages);
      held_keys = keys;
    }
    words.epochs[place] = kvc_epoch(client);
  }
  return {};
}

TEST_F(DaemonDeathTest, DeathAtAnyMomentHarmsNoReader) {
  StartDaemon("16MiB");
  SharedWords<Words> shared;
  Words& words = *shared;
  std::vector<bench::Child> engines;
  for (size_t place = 0; place < words.epochs.size(); ++place) {
    engines.push_back(StartClient("engine", [&, place](kvc_client* client, bench::Link&) {
      return WorkThroughDeaths(client, place, words);
    }));
  }
  Random random(6);
  const uint64_t deaths = Effort(20, 5);
  for (uint64_t life = 1; life <= deaths; ++life) {
    SCOPED_TRACE("life " + std::to_string(life));
    for (size_t place = 0; place < engines.size(); ++place) {
      // Some rounds into its work in this life.
      const uint64_t until = words.rounds[place] + random.Below(50);
      ASSERT_TRUE(Await([&] {
        return (words.epochs[place] == life && words.rounds[place] >= until) ||
               !Runs(engines[place]);
      })) << "epoch "
          << words.epochs[place];
      ASSERT_TRUE(Runs(engines[place]));
    }
    daemon().Kill();
    const Status launched = daemon().Launch();
    ASSERT_TRUE(launched.ok()) << launched.ToString();
  }
  for (const auto& epoch : words.epochs)
    EXPECT_TRUE(Await([&] { return epoch == deaths + 1; }));
  words.stop = true;
  for (bench::Child& engine : engines)
    ExpectDone(engine);
  EXPECT_TRUE(Await([&] { return OtherClients() == 0; }));
  EXPECT_EQ(StatusNumber("/pages/grants"), 0u);
}

// Without the will to reconnect, the end is final, and what is held stays.
TEST_F(DaemonDeathTest, AClientThatDoesNotReconnectKeepsWhatItHolds) {
  StartDaemon();
  bench::Child engine = StartProcess("engine", [path = socket()](bench::Link& link) -> Status {
    kvc_client_options options{};
    options.struct_size = sizeof options;
    options.socket_path = path.c_str();
    options.no_reconnect = 1;
    kvc_client* connected = nullptr;
    kvc_error error{};
    RETURN_IF_ERROR(bench::ToStatus(kvc_connect(&options, &connected, &error), error));
    const bench::Client client(connected);
    ASSIGN_OR_RETURN(const bench::Space space, bench::OpenSpace(connected, PageSpace()));
    ASSIGN_OR_RETURN(const bench::Reader reader, bench::NewReader(connected));
    const std::vector<kvc_key> keys = Keys(0, 8);
    RETURN_IF_ERROR(PublishAll(connected, space.get(), keys));
    ASSIGN_OR_RETURN(const bench::Pages pages, PinAll(reader.get(), space.get(), keys));
    RETURN_IF_ERROR(link.Send(bench::Go{}));
    RETURN_IF_ERROR(link.Receive<bench::Go>().status());
    RETURN_UNLESS(Await([&] { return kvc_epoch(connected) == 0; }), "it learns of the death");
    RETURN_UNLESS(kvc_wait_connected(connected, 60'000, nullptr) == KVC_UNAVAILABLE, "never again");
    RETURN_UNLESS(kvc_epoch(connected) == 0, "no daemon");
    return CheckAll(pages.get(), keys);
  });
  Hear<bench::Go>(engine);
  daemon().Kill();
  ASSERT_TRUE(daemon().Launch().ok());
  Tell(engine);
  ExpectDone(engine);
}

}  // namespace
}  // namespace terrace
