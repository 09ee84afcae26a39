// SIGKILL of the daemon while its clients read what they have mapped.
#include <unistd.h>

#include <array>
#include <atomic>

#include "base/random.h"
#include "bench/memory_maps.h"
#include "tests/integration/effort.h"
#include "tests/integration/integration_test.h"

namespace terrace {
namespace {

constexpr uint64_t kPageBytes = 64u << 10;
constexpr uint64_t kSeed = 5;
constexpr const char* kModel = "durable";

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
  RETURN_UNLESS(kvc_attach(client, kModel, nullptr, 0, &weights, nullptr) == KVC_UNAVAILABLE,
                "attach");
  kvc_space_options options{};
  options.struct_size = sizeof options;
  options.layout = bench::PlainLayout(kPageBytes, 32);
  kvc_space* other = nullptr;
  RETURN_UNLESS(kvc_space_open(client, &options, 0, &other, nullptr) == KVC_UNAVAILABLE, "open");
  kvc_error error{};
  RETURN_UNLESS(kvc_ping(client, 0, &error) == KVC_UNAVAILABLE, "ping");
  RETURN_UNLESS(error.code == KVC_UNAVAILABLE && error.message[0] != '\0', "its message");
  return {};
}

// Whether shared memory is mapped at `address` in this process.
Result<bool> StillMapped(const void* address) {
  ASSIGN_OR_RETURN(const std::vector<bench::MappedRange> ranges, bench::MapsOf(::getpid()));
  const auto at = reinterpret_cast<uint64_t>(address);
  for (const bench::MappedRange& range : ranges) {
    if (range.start <= at && at < range.end) return range.shared;
  }
  return false;
}

// One engine, from before the daemon's death to after its return.
class Engine {
 public:
  Engine(kvc_client* client, const std::vector<ModelTensor>& tensors)
      : client_(client), tensors_(tensors) {}

  // Attached weights, pinned pages, and grants not yet committed.
  Status Begin() {
    RETURN_UNLESS(kvc_epoch(client_) == 1, "the first life");
    ASSIGN_OR_RETURN(space_, OpenPlainSpace(client_, kPageBytes));
    ASSIGN_OR_RETURN(reader_, bench::NewReader(client_));
    ASSIGN_OR_RETURN(weights_, Attach(client_, kModel));
    RETURN_IF_ERROR(PutNewPages(client_, space_.get(), keys_));
    ASSIGN_OR_RETURN(pages_, PinAll(reader_.get(), space_.get(), keys_));
    ASSIGN_OR_RETURN(grants_, bench::Grant(client_, space_.get(), unwritten_));
    ASSIGN_OR_RETURN(more_grants_, bench::Grant(client_, space_.get(), Keys(2000, 1)));
    return {};
  }

  Status LiveWithoutDaemon() {
    RETURN_UNLESS(Await([&] { return kvc_epoch(client_) == 0; }), "it learns of the death");
    RETURN_IF_ERROR(CheckAllUnavailable(client_, reader_.get(), space_.get()));
    RETURN_IF_ERROR(CheckWhatIsHeld());
    // What was granted is still there to be written, and goes with the set.
    for (size_t i = 0; i < unwritten_.size(); ++i) {
      auto* page = static_cast<uint8_t*>(kvc_grants_data(grants_.get(), i));
      RETURN_UNLESS(page != nullptr, "a granted page");
      bench::FillContent(unwritten_[i], {page, kPageBytes});
    }
    RETURN_UNLESS(kvc_commit(grants_.get(), nullptr, 0, nullptr) == KVC_UNAVAILABLE, "commit");
    return {};
  }

  Status ComeBack() {
    kvc_error error{};
    RETURN_IF_ERROR(bench::ToStatus(kvc_wait_connected(client_, 60'000, &error), error));
    RETURN_UNLESS(kvc_epoch(client_) == 2, "the second life");
    RETURN_UNLESS(kvc_pages_epoch(pages_.get()) == 1, "what is held is of the first");
    RETURN_UNLESS(kvc_weights_epoch(weights_.get()) == 1, "what is held is of the first");
    RETURN_IF_ERROR(CheckWhatIsHeld());
    const kvc_code stale = kvc_commit(more_grants_.get(), nullptr, 0, nullptr);
    RETURN_UNLESS(stale == KVC_STALE ||
                      (stale == KVC_OK && kvc_grants_code(more_grants_.get(), 0) == KVC_STALE),
                  "a grant of the first life");
    return {};
  }

  // The space was opened again by the library, the reader goes on; the memory is empty.
  Status WorkAgain() {
    kvc_pages* found = nullptr;
    kvc_miss why = KVC_MISS_NONE;
    RETURN_UNLESS(kvc_lookup_prefix(reader_.get(), space_.get(), keys_.data(), keys_.size(), &found,
                                    &why) == KVC_OK,
                  "lookup");
    RETURN_UNLESS(kvc_pages_found(found) == 0 && why == KVC_MISS_ABSENT, "the memory is new");
    kvc_pages_release(found);
    RETURN_IF_ERROR(PutNewPages(client_, space_.get(), keys_));
    ASSIGN_OR_RETURN(new_pages_, PinAll(reader_.get(), space_.get(), keys_));
    RETURN_UNLESS(kvc_pages_epoch(new_pages_.get()) == 2, "of the second life");
    ASSIGN_OR_RETURN(new_weights_, Attach(client_, kModel));
    RETURN_UNLESS(kvc_weights_epoch(new_weights_.get()) == 2, "of the second life");
    return CheckWhatIsHeld();
  }

  // Old mappings go with what holds them.
  Status LetThePastGo() {
    kvc_page old{};
    RETURN_UNLESS(kvc_pages_get(pages_.get(), 0, &old) == KVC_OK, "page");
    ASSIGN_OR_RETURN(const bool mapped, StillMapped(old.data));
    RETURN_UNLESS(mapped, "while it is pinned");
    pages_.reset();
    weights_.reset();
    grants_.reset();
    more_grants_.reset();
    const auto is_gone = [&] {
      // A reader lets go of its past while it is used.
      const kvc_key absent = bench::SyntheticKey(3000);
      (void)kvc_pin(reader_.get(), space_.get(), &absent, nullptr, nullptr);
      const Result<bool> still = StillMapped(old.data);
      return still && !*still;
    };
    RETURN_UNLESS(Await(is_gone), "after its release");
    return CheckWhatIsHeld();
  }

 private:
  Status CheckWhatIsHeld() {
    for (const bench::Pages* pages : {&pages_, &new_pages_}) {
      if (*pages != nullptr) RETURN_IF_ERROR(CheckPages(pages->get(), keys_));
    }
    for (const bench::Weights* weights : {&weights_, &new_weights_}) {
      if (*weights != nullptr) RETURN_IF_ERROR(CheckTensors(weights->get(), tensors_, kSeed));
    }
    return {};
  }

  kvc_client* client_;
  const std::vector<ModelTensor>& tensors_;
  const std::vector<kvc_key> keys_ = Keys(0, 64);
  const std::vector<kvc_key> unwritten_ = Keys(1000, 4);
  bench::Space space_;
  bench::Reader reader_;
  bench::Weights weights_;
  bench::Pages pages_;
  bench::Grants grants_;
  bench::Grants more_grants_;
  bench::Weights new_weights_;
  bench::Pages new_pages_;
};

// It is told when the daemon was killed, and when it was started again.
Status LiveThroughDeath(kvc_client* client, bench::Link& link,
                        const std::vector<ModelTensor>& tensors) {
  Engine engine(client, tensors);
  RETURN_IF_ERROR(engine.Begin());
  RETURN_IF_ERROR(link.Send(bench::Go{}));
  RETURN_IF_ERROR(link.Receive<bench::Go>().status());
  RETURN_IF_ERROR(engine.LiveWithoutDaemon());
  RETURN_IF_ERROR(link.Send(bench::Go{}));
  RETURN_IF_ERROR(link.Receive<bench::Go>().status());
  RETURN_IF_ERROR(engine.ComeBack());
  RETURN_IF_ERROR(engine.WorkAgain());
  RETURN_IF_ERROR(engine.LetThePastGo());
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
      RETURN_IF_ERROR(AddModel(client, kModel, path, &added));
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
  bench::Child engine = StartClient("engine", [&](kvc_client* client, bench::Link& link) {
    return LiveThroughDeath(client, link, tensors);
  });
  Hear<bench::Go>(engine);
  daemon().Kill();
  Tell(engine);
  Hear<bench::Go>(engine);
  const Status launched = daemon().Launch();
  ASSERT_TRUE(launched.ok()) << launched.ToString();
  const Json models = Report("models");
  ASSERT_EQ(models["models"].size(), 1u);
  EXPECT_EQ(models["models"][0]["name"], kModel);
  EXPECT_EQ(models["models"][0]["versions"][0]["state"], "registered");
  Tell(engine);
  Hear<bench::Go>(engine);
  const Json client = ClientOf(engine.pid());
  ASSERT_FALSE(client.is_null());
  EXPECT_EQ(client["pins"], 64);
  EXPECT_EQ(client["grants"], 0);
  EXPECT_EQ(client["attachments"], 1);
  Tell(engine);
  ExpectDone(engine);
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
Status PublishIfThereIsADaemon(kvc_client* client, const kvc_space* space,
                               const std::vector<kvc_key>& keys) {
  kvc_grants* granted = nullptr;
  const kvc_code code =
      kvc_grant(client, space, keys.data(), keys.size(), nullptr, 0, &granted, nullptr);
  if (IsOfADeath(code)) return {};
  RETURN_UNLESS(code == KVC_OK, kvc_code_name(code));
  const bench::Grants grants(granted);
  for (size_t i = 0; i < keys.size(); ++i) {
    auto* page = static_cast<uint8_t*>(kvc_grants_data(granted, i));
    if (page != nullptr) bench::FillContent(keys[i], {page, kPageBytes});
  }
  const kvc_code committed = kvc_commit(granted, nullptr, 0, nullptr);
  RETURN_UNLESS(committed == KVC_OK || IsOfADeath(committed), kvc_code_name(committed));
  return {};
}

// Publishes, looks up, holds and verifies, whatever becomes of the daemon.
Status WorkThroughDeaths(kvc_client* client, size_t place, Words& words) {
  ASSIGN_OR_RETURN(const bench::Space space, OpenPlainSpace(client, kPageBytes));
  ASSIGN_OR_RETURN(const bench::Reader reader, bench::NewReader(client));
  Random random(place + 1);
  std::vector<kvc_key> held_keys;
  bench::Pages held;
  for (; !words.stop; ++words.rounds[place]) {
    const std::vector<kvc_key> keys = Keys(random.Below(256), 16);
    RETURN_IF_ERROR(PublishIfThereIsADaemon(client, space.get(), keys));
    kvc_pages* found = nullptr;
    RETURN_UNLESS(
        kvc_lookup_each(reader.get(), space.get(), keys.data(), keys.size(), &found) == KVC_OK,
        "lookup");
    bench::Pages pages(found);
    RETURN_IF_ERROR(CheckPages(found, keys));
    if (held != nullptr) RETURN_IF_ERROR(CheckPages(held.get(), held_keys));
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
    ASSIGN_OR_RETURN(const bench::Space space, OpenPlainSpace(connected, kPageBytes));
    ASSIGN_OR_RETURN(const bench::Reader reader, bench::NewReader(connected));
    const std::vector<kvc_key> keys = Keys(0, 8);
    RETURN_IF_ERROR(PutNewPages(connected, space.get(), keys));
    ASSIGN_OR_RETURN(const bench::Pages pages, PinAll(reader.get(), space.get(), keys));
    RETURN_IF_ERROR(link.Send(bench::Go{}));
    RETURN_IF_ERROR(link.Receive<bench::Go>().status());
    RETURN_UNLESS(Await([&] { return kvc_epoch(connected) == 0; }), "it learns of the death");
    RETURN_UNLESS(kvc_wait_connected(connected, 60'000, nullptr) == KVC_UNAVAILABLE, "never again");
    RETURN_UNLESS(kvc_epoch(connected) == 0, "no daemon");
    return CheckPages(pages.get(), keys);
  });
  Hear<bench::Go>(engine);
  daemon().Kill();
  ASSERT_TRUE(daemon().Launch().ok());
  Tell(engine);
  ExpectDone(engine);
}

}  // namespace
}  // namespace terrace
