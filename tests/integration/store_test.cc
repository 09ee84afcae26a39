// Pages in the store: they leave memory and the daemon's life and come back as they were.
#include <gmock/gmock.h>

#include <algorithm>

#include "tests/integration/store_steps.h"

namespace terrace {
namespace {

using testing::AllOf;
using testing::HasSubstr;

constexpr uint64_t kPage = 64u << 10;

// ---- There and back

TEST_F(StoreTest, PagesThatLeftMemoryComeBackByteForByte) {
  StartStore();
  const std::vector<kvc_key> keys = Keys(0, 64);
  Run([&](kvc_client* client) -> Status {
    ASSIGN_OR_RETURN(const StoreSteps steps, StoreSteps::Open(client, kPage));
    RETURN_IF_ERROR(steps.PutPersistAndDemote(keys));
    ASSIGN_OR_RETURN(const Fetched fetched, steps.Prefetch(keys));
    RETURN_UNLESS(fetched.worth == keys.size(), std::to_string(fetched.worth));
    RETURN_UNLESS(fetched.codes == std::vector<kvc_code>(keys.size(), KVC_OK), "codes");
    ASSIGN_OR_RETURN(const uint64_t found, steps.Found(keys));
    RETURN_UNLESS(found == keys.size(), std::to_string(found));
    return {};
  });
  const Json tier = StoreTier();
  EXPECT_EQ(At(tier, "/pages"), keys.size());
  EXPECT_EQ(At(tier, "/spilled/pages"), keys.size());
  EXPECT_EQ(At(tier, "/spilled/bytes"), keys.size() * kPage);
  EXPECT_EQ(At(tier, "/promoted/pages"), keys.size());
  EXPECT_EQ(At(tier, "/faults/data"), 0u);
  EXPECT_EQ(At(tier, "/tenants/default/kv/pages"), keys.size());
  EXPECT_EQ(At(tier, "/tenants/default/kv/bytes"), At(tier, "/used_bytes"));
  EXPECT_EQ(tier["durability"], "process");
  EXPECT_EQ(tier["devices"][0]["state"], "serving");
  EXPECT_EQ(tier["devices"][0]["path"], store_folder());
}

TEST_F(StoreTest, EvictedPagesComeBackToo) {
  StartStore();
  const std::vector<kvc_key> keys = Keys(0, 32);
  Run([&](kvc_client* client) -> Status {
    ASSIGN_OR_RETURN(const StoreSteps steps, StoreSteps::Open(client, kPage));
    RETURN_IF_ERROR(steps.Put(keys));
    RETURN_IF_ERROR(steps.Persist(keys));
    kvc_error error{};
    RETURN_IF_ERROR(bench::ToStatus(kvc_evict(client, 0, 0, nullptr, &error), error));
    ASSIGN_OR_RETURN(const uint64_t found, steps.Found(keys));
    RETURN_UNLESS(found == 0, "evicted");
    return steps.ExpectStored(keys);
  });
}

// More than memory has room for: what was put first is in the store when it is wanted again.
TEST_F(StoreTest, MemoryIsNotTheLimit) {
  StartStore(kOneDirectory, "16MiB");
  const std::vector<kvc_key> keys = Keys(0, 1000);
  Run([&](kvc_client* client) -> Status {
    ASSIGN_OR_RETURN(const StoreSteps steps, StoreSteps::Open(client, kPage));
    for (size_t first = 0; first < keys.size(); first += 50) {
      const std::vector<kvc_key> some(keys.begin() + static_cast<ptrdiff_t>(first),
                                      keys.begin() + static_cast<ptrdiff_t>(first + 50));
      RETURN_IF_ERROR(steps.Put(some));
      RETURN_IF_ERROR(steps.Persist(some));
    }
    return steps.ExpectStored(keys);
  });
  EXPECT_GT(StatusNumber("/pages/evicted"), 500u);
}

TEST_F(StoreTest, SpacesDoNotMix) {
  StartStore();
  const std::vector<kvc_key> keys = Keys(0, 16);
  Run([&](kvc_client* client) -> Status {
    ASSIGN_OR_RETURN(const StoreSteps one, StoreSteps::Open(client, kPage, "one"));
    ASSIGN_OR_RETURN(const StoreSteps other, StoreSteps::Open(client, kPage, "other"));
    RETURN_IF_ERROR(one.PutPersistAndDemote(keys));
    ASSIGN_OR_RETURN(const Fetched none, other.Prefetch(keys));
    RETURN_UNLESS(none.codes == std::vector<kvc_code>(keys.size(), KVC_NOT_FOUND), "of another");
    RETURN_UNLESS(none.worth == 0, "of another");
    return one.ExpectStored(keys);
  });
  EXPECT_EQ(At(StoreTier(), "/spaces"), 1u);
}

TEST_F(StoreTest, DroppedPagesAreGoneFromTheStore) {
  StartStore();
  const std::vector<kvc_key> keys = Keys(0, 8);
  Run([&](kvc_client* client) -> Status {
    ASSIGN_OR_RETURN(const StoreSteps steps, StoreSteps::Open(client, kPage));
    RETURN_IF_ERROR(steps.PutPersistAndDemote(keys));
    uint32_t dropped = 0;
    kvc_error error{};
    RETURN_IF_ERROR(bench::ToStatus(
        kvc_drop(client, steps.space(), keys.data(), keys.size(), 0, &dropped, &error), error));
    RETURN_UNLESS(dropped == keys.size(), "of the store alone: " + std::to_string(dropped));
    ASSIGN_OR_RETURN(const Fetched fetched, steps.Prefetch(keys));
    RETURN_UNLESS(fetched.codes == std::vector<kvc_code>(keys.size(), KVC_NOT_FOUND), "dropped");
    return {};
  });
  EXPECT_TRUE(Await([&] { return At(StoreTier(), "/pages") == 0; }));
  EXPECT_EQ(At(StoreTier(), "/erased/dropped/pages"), keys.size());
}

TEST_F(StoreTest, PromotionBringsPagesIntoFreeMemory) {
  StartStore();
  const std::vector<kvc_key> keys = Keys(0, 64);
  Run([&](kvc_client* client) -> Status {
    ASSIGN_OR_RETURN(const StoreSteps steps, StoreSteps::Open(client, kPage));
    RETURN_IF_ERROR(steps.PutPersistAndDemote(keys));
    kvc_promote_options options{};
    options.struct_size = sizeof options;
    options.bytes = 16 * kPage;
    kvc_promoted promoted{};
    promoted.struct_size = sizeof promoted;
    kvc_error error{};
    const auto promote = [&] {
      return bench::ToStatus(
          kvc_promote(client, &options, nullptr, nullptr, 60'000, &promoted, &error), error);
    };
    RETURN_IF_ERROR(promote());
    RETURN_UNLESS(promoted.pages == 16 && promoted.bytes == 16 * kPage,
                  std::to_string(promoted.pages));
    options.bytes = 0;
    RETURN_IF_ERROR(promote());
    RETURN_UNLESS(promoted.pages == 48, std::to_string(promoted.pages));
    ASSIGN_OR_RETURN(const uint64_t found, steps.Found(keys));
    RETURN_UNLESS(found == keys.size(), std::to_string(found));
    options.tenant = "nobody";
    const Status refused = promote();
    RETURN_UNLESS(refused.code() == Code::kNotFound, refused.message());
    return {};
  });
}

// ---- Fetches

TEST_F(StoreTest, AFetchThatNobodyWaitsForBringsThePages) {
  StartStore();
  const std::vector<kvc_key> keys = Keys(0, 32);
  Run([&](kvc_client* client) -> Status {
    ASSIGN_OR_RETURN(const StoreSteps steps, StoreSteps::Open(client, kPage));
    RETURN_IF_ERROR(steps.PutPersistAndDemote(keys));
    ASSIGN_OR_RETURN(Fetch fetch, steps.Ask(keys));
    fetch.reset();
    Result<uint64_t> found = uint64_t{0};
    RETURN_UNLESS(Await([&] {
                    found = steps.Found(keys);
                    return !found || *found == keys.size();
                  }),
                  "they come");
    return found.status();
  });
}

TEST_F(StoreTest, OnlyWhatIsWorthItIsFetched) {
  StartStore();
  const std::vector<kvc_key> stored = Keys(0, 10);
  const std::vector<kvc_key> asked = Keys(0, 20);
  Run([&](kvc_client* client) -> Status {
    ASSIGN_OR_RETURN(const StoreSteps steps, StoreSteps::Open(client, kPage));
    RETURN_IF_ERROR(steps.PutPersistAndDemote(stored));
    kvc_prefetch_options options{};
    options.min_percent = 51;
    ASSIGN_OR_RETURN(const Fetched none, steps.Prefetch(asked, options));
    RETURN_UNLESS(none.worth == 0, std::to_string(none.worth));
    RETURN_UNLESS(none.codes == std::vector<kvc_code>(asked.size(), KVC_NOT_FOUND), "too few");
    ASSIGN_OR_RETURN(const uint64_t found, steps.Found(stored));
    RETURN_UNLESS(found == 0, "nothing was fetched");
    options.min_percent = 50;
    ASSIGN_OR_RETURN(const Fetched half, steps.Prefetch(asked, options));
    RETURN_UNLESS(half.worth == stored.size(), std::to_string(half.worth));
    for (size_t i = 0; i < asked.size(); ++i)
      RETURN_UNLESS(half.codes[i] == (i < stored.size() ? KVC_OK : KVC_NOT_FOUND), "half");
    // By now the daemon knows how long a fetch takes: no page is computed in a microsecond less.
    RETURN_UNLESS(Await([&] { return *steps.Found(stored) == stored.size(); }), "pinned");
    RETURN_IF_ERROR(steps.Demote(stored));
    options.min_percent = 0;
    options.recompute_us = 1;
    ASSIGN_OR_RETURN(const Fetched cheap, steps.Prefetch(stored, options));
    RETURN_UNLESS(cheap.worth == 0, "computing is faster: " + std::to_string(cheap.worth));
    options.recompute_us = 100'000'000;
    ASSIGN_OR_RETURN(const Fetched dear, steps.Prefetch(stored, options));
    RETURN_UNLESS(dear.worth == stored.size(), "fetching is faster");
    return {};
  });
}

TEST_F(StoreTest, AFetchEndsWithTheDaemon) {
  StartStore();
  const std::vector<kvc_key> keys = Keys(0, 32);
  bench::Child engine = StartClient("engine", [&](kvc_client* client, bench::Link& link) -> Status {
    ASSIGN_OR_RETURN(const StoreSteps steps, StoreSteps::Open(client, kPage));
    RETURN_IF_ERROR(steps.PutPersistAndDemote(keys));
    ASSIGN_OR_RETURN(const Fetch fetch, steps.Ask(keys));
    RETURN_IF_ERROR(link.Send(bench::Go{}));
    RETURN_IF_ERROR(link.Receive<bench::Go>().status());
    // Of the daemon that is gone: it was answered before, or never will be.
    const kvc_code code = kvc_wait(fetch.get(), 0, nullptr, nullptr, nullptr);
    RETURN_UNLESS(code == KVC_OK || code == KVC_UNAVAILABLE, kvc_code_name(code));
    kvc_error error{};
    RETURN_IF_ERROR(bench::ToStatus(kvc_wait_connected(client, 60'000, &error), error));
    return steps.ExpectStored(keys);
  });
  Hear<bench::Go>(engine);
  KillAndLaunch();
  Tell(engine);
  ExpectDone(engine);
}

// ---- Restarts

TEST_F(StoreTest, DurablePagesSurviveSigkill) {
  StartStore();
  const std::vector<kvc_key> keys = Keys(0, 300);
  Run([&](kvc_client* client) -> Status {
    ASSIGN_OR_RETURN(const StoreSteps steps, StoreSteps::Open(client, kPage));
    RETURN_IF_ERROR(steps.Put(keys));
    return steps.Persist(keys);
  });
  KillAndLaunch();
  const Json tier = StoreTier();
  EXPECT_EQ(At(tier, "/pages"), keys.size());
  EXPECT_EQ(At(tier, "/spaces"), 1u);
  Run([&](kvc_client* client) -> Status {
    ASSIGN_OR_RETURN(const StoreSteps steps, StoreSteps::Open(client, kPage));
    ASSIGN_OR_RETURN(const uint64_t found, steps.Found(keys));
    RETURN_UNLESS(found == 0, "memory is new");
    return steps.ExpectStored(keys);
  });
}

TEST_F(StoreTest, SigtermKeepsWhatWasQueued) {
  StartStore();
  const std::vector<kvc_key> keys = Keys(0, 400);
  bench::Child engine = StartClient("engine", [&](kvc_client* client, bench::Link& link) -> Status {
    ASSIGN_OR_RETURN(const StoreSteps steps, StoreSteps::Open(client, kPage));
    RETURN_IF_ERROR(steps.Put(keys));
    return link.Send(bench::Go{});
  });
  Hear<bench::Go>(engine);
  const Result<int> code = daemon().Stop();
  ASSERT_TRUE(code) << code.error().ToString();
  EXPECT_EQ(*code, 0);
  ExpectDone(engine);
  ASSERT_TRUE(daemon().Launch().ok());
  EXPECT_EQ(At(StoreTier(), "/pages"), keys.size());
  Run([&](kvc_client* client) -> Status {
    ASSIGN_OR_RETURN(const StoreSteps steps, StoreSteps::Open(client, kPage));
    return steps.ExpectStored(keys);
  });
}

TEST_F(StoreTest, ItTakesDirectoriesOnSeveralDevicesAndOneMore) {
  const std::string two = R"(
[[nvme]]
path = "@/nvme"
capacity = "64MiB"
[[nvme]]
path = "@/second"
capacity = "64MiB"
)";
  StartStore(two);
  const std::vector<kvc_key> keys = Keys(0, 200);
  Run([&](kvc_client* client) -> Status {
    ASSIGN_OR_RETURN(const StoreSteps steps, StoreSteps::Open(client, kPage));
    RETURN_IF_ERROR(steps.PutPersistAndDemote(keys));
    return steps.ExpectStored(keys);
  });
  const Json tier = StoreTier();
  ASSERT_EQ(tier["devices"].size(), 2u);
  EXPECT_EQ(At(tier, "/capacity_bytes"), 128u << 20);
  for (const Json& device : tier["devices"])
    EXPECT_GT(At(device, "/allocated_bytes"), 0u) << device.dump();
}

// ---- Tenants

TEST_F(StoreTest, TenantsDoNotSeeEachOthersPages) {
  DaemonProcessOptions options;
  options.capacity = "32MiB";
  options.store = kOneDirectory;
  options.tables = R"(
[[socket]]
path = "@/terraced.sock"
tenant = "a"
role = "admin"
admin = true
[[socket]]
path = "@/b.sock"
tenant = "b"
)";
  StartDaemon(options);
  const std::vector<kvc_key> keys = Keys(0, 16);
  const std::vector<kvc_key> of_b = Keys(8, 16);
  const auto run_as_b = [&](const std::function<Status(const StoreSteps&)>& body) {
    bench::Child b = StartProcess("b", [&](bench::Link&) -> Status {
      ASSIGN_OR_RETURN(const bench::Client client,
                       bench::Connect({.socket = daemon().folder() + "/b.sock", .name = "b"}));
      ASSIGN_OR_RETURN(const StoreSteps steps, StoreSteps::Open(client.get(), kPage));
      return body(steps);
    });
    ExpectDone(b);
  };
  Run([&](kvc_client* client) -> Status {
    ASSIGN_OR_RETURN(const StoreSteps steps, StoreSteps::Open(client, kPage));
    return steps.PutPersistAndDemote(keys);
  });
  run_as_b([&](const StoreSteps& steps) -> Status {
    ASSIGN_OR_RETURN(const Fetched none, steps.Prefetch(keys));
    RETURN_UNLESS(none.codes == std::vector<kvc_code>(keys.size(), KVC_NOT_FOUND), "pages of a");
    RETURN_IF_ERROR(steps.Put(of_b));
    RETURN_IF_ERROR(steps.Persist(of_b));
    uint32_t dropped = 0;
    RETURN_UNLESS(
        kvc_drop(steps.client(), steps.space(), keys.data(), 8, 0, &dropped, nullptr) == KVC_OK,
        "drop");
    RETURN_UNLESS(dropped == 0, "pages of a");
    RETURN_UNLESS(kvc_demote(steps.client(), 0, 0, nullptr, nullptr) == KVC_PERMISSION_DENIED,
                  "demote");
    RETURN_UNLESS(kvc_flush(steps.client(), 0, nullptr) == KVC_PERMISSION_DENIED, "flush");
    kvc_report_options report{};
    report.struct_size = sizeof report;
    report.what = "tiers";
    char* json = nullptr;
    const kvc_code code = kvc_report(steps.client(), &report, 0, &json, nullptr);
    kvc_free(json);
    RETURN_UNLESS(code == KVC_PERMISSION_DENIED, kvc_code_name(code));
    return {};
  });
  KillAndLaunch();
  const Json tier = StoreTier();
  EXPECT_EQ(At(tier, "/tenants/a/kv/pages"), 16u);
  EXPECT_EQ(At(tier, "/tenants/b/kv/pages"), 16u);
  Run([&](kvc_client* client) -> Status {
    ASSIGN_OR_RETURN(const StoreSteps steps, StoreSteps::Open(client, kPage));
    return steps.ExpectStored(keys);
  });
  run_as_b([&](const StoreSteps& steps) -> Status {
    ASSIGN_OR_RETURN(const Fetched fetched, steps.Prefetch(Keys(0, 8)));
    RETURN_UNLESS(fetched.codes == std::vector<kvc_code>(8, KVC_NOT_FOUND), "pages of a");
    return steps.ExpectStored(of_b);
  });
}

// ---- Bounds

TEST_F(StoreTest, AFullStoreMakesRoomAndPutsGoOn) {
  StartStore(R"(
[[nvme]]
path = "@/nvme"
capacity = "64MiB"
)",
             "16MiB");
  Run([&](kvc_client* client) -> Status {
    ASSIGN_OR_RETURN(const StoreSteps steps, StoreSteps::Open(client, kPage));
    // More than twice what it has room for, as fast as it comes. A page that finds no room at that
    // moment is told so.
    for (uint64_t first = 0; first < 2000; first += 100) {
      const std::vector<kvc_key> keys = Keys(first, 100);
      RETURN_IF_ERROR(steps.Put(keys));
      std::vector<kvc_code> codes(keys.size());
      kvc_error error{};
      RETURN_IF_ERROR(bench::ToStatus(kvc_persist(client, steps.space(), keys.data(), keys.size(),
                                                  60'000, codes.data(), &error),
                                      error));
    }
    // What is said to be durable is made room for.
    const std::vector<kvc_key> last = Keys(5000, 100);
    RETURN_IF_ERROR(steps.Put(last));
    std::vector<kvc_code> codes(last.size());
    RETURN_UNLESS(Await([&] {
                    const kvc_code code = kvc_persist(client, steps.space(), last.data(),
                                                      last.size(), 60'000, codes.data(), nullptr);
                    return code == KVC_OK && codes == std::vector<kvc_code>(last.size(), KVC_OK);
                  }),
                  "room is made");
    return steps.ExpectStored(last);
  });
  const Json tier = StoreTier();
  EXPECT_LE(At(tier, "/used_bytes"), At(tier, "/capacity_bytes"));
  EXPECT_EQ(tier["devices"][0]["state"], "serving") << tier.dump();
  EXPECT_GT(At(tier, "/erased/room/pages"), 0u) << tier.dump();
}

TEST_F(StoreTest, WithoutABudgetOfWritesNothingMoreIsStored) {
  StartStore(std::string(kOneDirectory) + "[store]\nwrite_per_day = \"1MiB\"\n");
  Run([&](kvc_client* client) -> Status {
    ASSIGN_OR_RETURN(const StoreSteps steps, StoreSteps::Open(client, kPage));
    const std::vector<kvc_key> keys = Keys(0, 64);
    RETURN_IF_ERROR(steps.Put(keys));
    std::vector<kvc_code> codes(keys.size());
    kvc_error error{};
    RETURN_IF_ERROR(bench::ToStatus(
        kvc_persist(client, steps.space(), keys.data(), keys.size(), 60'000, codes.data(), &error),
        error));
    const auto durable = std::count(codes.begin(), codes.end(), KVC_OK);
    const auto refused = std::count(codes.begin(), codes.end(), KVC_EXHAUSTED);
    RETURN_UNLESS(durable > 0 && durable <= 16, std::to_string(durable));
    RETURN_UNLESS(durable + refused == 64, std::to_string(refused));
    ASSIGN_OR_RETURN(const uint64_t found, steps.Found(keys));
    RETURN_UNLESS(found == keys.size(), "all are in memory");
    return {};
  });
  const Json tier = StoreTier();
  EXPECT_LT(At(tier, "/write_budget_bytes"), 2 * kPage);
  EXPECT_GT(At(tier, "/unspilled/budget"), 0u);
}

// ---- Without io_uring, without durability

TEST_F(StoreTest, WithoutIoUringThreadsReadAndWrite) {
  StartStore(std::string(kOneDirectory) + "[store]\nio_uring = \"never\"\n");
  const std::vector<kvc_key> keys = Keys(0, 64);
  Run([&](kvc_client* client) -> Status {
    ASSIGN_OR_RETURN(const StoreSteps steps, StoreSteps::Open(client, kPage));
    RETURN_IF_ERROR(steps.PutPersistAndDemote(keys));
    return steps.ExpectStored(keys);
  });
  EXPECT_THAT(StoreTier()["io"].get<std::string>(), HasSubstr("threads"));
}

TEST_F(StoreTest, AStoreThatPromisesNothingStoresAllTheSame) {
  StartStore(std::string(kOneDirectory) + "[store]\ndurability = \"none\"\n");
  const std::vector<kvc_key> keys = Keys(0, 16);
  Run([&](kvc_client* client) -> Status {
    ASSIGN_OR_RETURN(const StoreSteps steps, StoreSteps::Open(client, kPage));
    RETURN_IF_ERROR(steps.Put(keys));
    const kvc_code code =
        kvc_persist(client, steps.space(), keys.data(), keys.size(), 0, nullptr, nullptr);
    RETURN_UNLESS(code == KVC_MISMATCH, kvc_code_name(code));
    RETURN_IF_ERROR(steps.Demote(keys));
    return steps.ExpectStored(keys);
  });
  EXPECT_EQ(StoreTier()["durability"], "none");
}

TEST_F(StoreTest, ADaemonWithoutAStoreSaysSo) {
  StartDaemon("32MiB");
  const std::vector<kvc_key> keys = Keys(0, 4);
  Run([&](kvc_client* client) -> Status {
    ASSIGN_OR_RETURN(const StoreSteps steps, StoreSteps::Open(client, kPage));
    RETURN_IF_ERROR(steps.Put({keys[0], keys[1]}));
    const kvc_code code =
        kvc_persist(client, steps.space(), keys.data(), keys.size(), 0, nullptr, nullptr);
    RETURN_UNLESS(code == KVC_UNAVAILABLE, kvc_code_name(code));
    RETURN_UNLESS(kvc_demote(client, 0, 0, nullptr, nullptr) == KVC_UNAVAILABLE, "demote");
    RETURN_UNLESS(kvc_flush(client, 0, nullptr) == KVC_UNAVAILABLE, "flush");
    // What is in memory is told.
    ASSIGN_OR_RETURN(const Fetched fetched, steps.Prefetch(keys));
    RETURN_UNLESS(fetched.worth == 2, std::to_string(fetched.worth));
    const std::vector<kvc_code> codes = {KVC_OK, KVC_OK, KVC_NOT_FOUND, KVC_NOT_FOUND};
    RETURN_UNLESS(fetched.codes == codes, "codes");
    return {};
  });
  EXPECT_EQ(Report("tiers")["tiers"].size(), 1u);
}

TEST_F(StoreTest, FlushMakesProcessDurabilityThatOfPower) {
  StartStore();
  Run([&](kvc_client* client) -> Status {
    ASSIGN_OR_RETURN(const StoreSteps steps, StoreSteps::Open(client, kPage));
    RETURN_IF_ERROR(steps.Put(Keys(0, 8)));
    RETURN_IF_ERROR(steps.Persist(Keys(0, 8)));
    kvc_error error{};
    std::pair<uint64_t, uint64_t> told;  // Done, of.
    const auto tell = [](void* context, uint64_t done, uint64_t total) {
      *static_cast<std::pair<uint64_t, uint64_t>*>(context) = {done, total};
    };
    RETURN_IF_ERROR(
        bench::ToStatus(kvc_flush_with_progress(client, tell, &told, 60'000, &error), error));
    RETURN_UNLESS(told.first > 0 && told.first <= told.second, std::to_string(told.first));
    RETURN_UNLESS(told.second == 8 * kPage, std::to_string(told.second));
    return bench::ToStatus(kvc_flush(client, 60'000, &error), error);
  });
}

}  // namespace
}  // namespace terrace
