// What the real daemon exports, while clients work and after they ended.
#include "bench/scrape.h"
#include "proto/shared_memory.h"
#include "tests/cli/run_program.h"
#include "tests/integration/effort.h"
#include "tests/integration/store_steps.h"

namespace terrace {
namespace {

using bench::Scrape;

constexpr uint64_t kPage = 64u << 10;

class MetricsTest : public IntegrationTest {
 protected:
  Scrape Ask() {
    // The socket of clients answers a moment before the daemon says that it
    // serves.
    Result<Scrape> scrape = Status(Code::kUnavailable, "not asked");
    if (Await([&] { return static_cast<bool>(scrape = Scrape::From(daemon().metrics())); })) {
      return *std::move(scrape);
    }
    ADD_FAILURE() << scrape.error().ToString() << daemon().Log();
    return {};
  }
  // Promise 6, of the exported figures.
  static void ExpectItAddsUp(const Scrape& scrape) {
    for (const std::string tier : {"host", "nvme"}) {
      const bench::Labels of_tier = {{"tier", tier}};
      EXPECT_EQ(scrape.Sum("terrace_extent_bytes", of_tier),
                scrape.Sum("terrace_tier_used_bytes", of_tier));
      EXPECT_LE(scrape.Sum("terrace_tier_used_bytes", of_tier),
                scrape.Sum("terrace_tier_capacity_bytes", of_tier));
    }
    for (const bench::Sample& sample : scrape.samples()) {
      if (sample.name != "terrace_lookups_total") continue;
      const bench::Labels tenant = {{"tenant", sample.labels.at("tenant")}};
      EXPECT_EQ(sample.value, scrape.Sum("terrace_hits_total", tenant) +
                                  scrape.Sum("terrace_misses_total", tenant));
    }
    for (const std::string state : {"granted", "abandoned"}) {
      EXPECT_EQ(scrape.Sum("terrace_extents", {{"class", "kv"}, {"state", state}}),
                scrape.Sum("terrace_grants", {{"state", state == "granted" ? "open" : state}}));
    }
    EXPECT_EQ(scrape.Sum("terrace_space_bytes"),
              scrape.Sum("terrace_extent_bytes", {{"class", "kv"}, {"state", "linked"}}));
    EXPECT_EQ(scrape.Sum("terrace_space_pages"),
              scrape.Sum("terrace_extents", {{"class", "kv"}, {"state", "linked"}}));
  }
};

struct Counted {
  uint64_t lookups = 0;
  uint64_t hits = 0;
};

TEST_F(MetricsTest, WhatIsExportedAddsUpWhileClientsWork) {
  StartDaemon("16MiB");
  SharedWords<std::atomic<bool>> over;
  std::vector<bench::Child> clients;
  for (uint64_t seed = 1; seed <= 3; ++seed) {
    clients.push_back(StartClient("worker", [&, seed](kvc_client* client, bench::Link&) -> Status {
      ASSIGN_OR_RETURN(const bench::Reader reader, bench::NewReader(client));
      ASSIGN_OR_RETURN(const bench::Space space, OpenPlainSpace(client, kPage));
      for (uint64_t round = 0; !*over; ++round) {
        const std::vector<kvc_key> keys = Keys((round * 7 + seed) % 500, 16);
        RETURN_IF_ERROR(PutPages(client, space.get(), {keys.begin(), keys.begin() + 8}).status());
        kvc_pages* found = nullptr;
        RETURN_UNLESS(
            kvc_lookup_each(reader.get(), space.get(), keys.data(), keys.size(), &found) == KVC_OK,
            "lookup");
        kvc_pages_release(found);
      }
      return {};
    }));
  }
  Scrape before = Ask();
  for (int i = 0; i < 50; ++i) {
    Scrape now = Ask();
    ExpectItAddsUp(now);
    for (const char* counter :
         {"terrace_lookups_total", "terrace_hits_total", "terrace_commits_total",
          "terrace_evicted_bytes_total", "terrace_loop_duration_seconds_count"})
      EXPECT_GE(now.Sum(counter), before.Sum(counter)) << counter;
    before = std::move(now);
  }
  EXPECT_TRUE(Await([&] { return Ask().Sum("terrace_evicted_extents_total") > 0; }));
  clients[0].Kill();
  *over = true;
  for (size_t i = 1; i < clients.size(); ++i)
    ExpectDone(clients[i]);
  ASSERT_TRUE(Await([&] { return Ask().Sum("terrace_clients") == 0; }));
  const Scrape after = Ask();
  ExpectItAddsUp(after);
  EXPECT_EQ(after.Sum("terrace_grants"), 0);
  EXPECT_EQ(after.Sum("terrace_commits_total", {{"result", "linked"}}),
            after.Sum("terrace_extents", {{"class", "kv"}, {"state", "linked"}}) +
                after.Sum("terrace_evicted_extents_total", {{"class", "kv"}}));
}

TEST_F(MetricsTest, FiguresAreWhatClientsDid) {
  StartDaemon("64MiB");
  bench::Child worker = StartClient("worker", [&](kvc_client* client, bench::Link& link) -> Status {
    ASSIGN_OR_RETURN(const bench::Reader reader, bench::NewReader(client));
    ASSIGN_OR_RETURN(const bench::Space space, OpenPlainSpace(client, kPage));
    RETURN_IF_ERROR(PutNewPages(client, space.get(), Keys(0, 20)));
    Counted counted;
    kvc_page page{};
    // Ten of twenty are found, each often enough that times are told.
    for (uint64_t round = 0; round < 500; ++round) {
      for (const kvc_key& key : Keys(0, 10)) {
        const kvc_ticket ticket = kvc_pin(reader.get(), space.get(), &key, &page, nullptr);
        RETURN_UNLESS(ticket != 0, "hit");
        kvc_unpin(reader.get(), ticket);
        ++counted.lookups;
        ++counted.hits;
      }
    }
    const std::vector<kvc_key> absent = Keys(1000, 3);
    for (const kvc_key& key : absent) {
      RETURN_UNLESS(kvc_pin(reader.get(), space.get(), &key, &page, nullptr) == 0, "miss");
      ++counted.lookups;
    }
    ASSIGN_OR_RETURN(const bench::Grants open, bench::Grant(client, space.get(), absent));
    RETURN_IF_ERROR(link.Send(counted));
    return link.Receive<bench::Go>().status();
  });
  const auto counted = Hear<Counted>(worker);
  const bench::Labels tenant = {{"tenant", "default"}};
  // Rings are drained every few milliseconds.
  const auto told = [](const Scrape& scrape) {
    return scrape.Sum("terrace_space_hits_total") + scrape.Sum("terrace_space_misses_total") +
           scrape.Sum("terrace_dropped_ring_records_total");
  };
  ASSERT_TRUE(Await([&] { return told(Ask()) >= static_cast<double>(counted.lookups); }));
  const Scrape scrape = Ask();
  ExpectItAddsUp(scrape);
  EXPECT_EQ(scrape.Sum("terrace_lookups_total", tenant), static_cast<double>(counted.lookups));
  EXPECT_EQ(scrape.Sum("terrace_hits_total", {{"tier", "host"}}),
            static_cast<double>(counted.hits));
  EXPECT_EQ(scrape.Sum("terrace_misses_total", {{"reason", "absent"}}), 3);
  EXPECT_EQ(scrape.Sum("terrace_commits_total", {{"result", "linked"}}), 20);
  EXPECT_EQ(scrape.Sum("terrace_committed_bytes_total"), 20 * kPage);
  EXPECT_EQ(scrape.Sum("terrace_granted_pages_total"), 23);
  EXPECT_EQ(scrape.Sum("terrace_grants", {{"state", "open"}}), 3);
  EXPECT_EQ(scrape.Sum("terrace_reused_pages_total"), 10) << "each page once";
  EXPECT_EQ(scrape.Sum("terrace_clients", tenant), 1);
  EXPECT_EQ(scrape.Sum("terrace_spaces", tenant), 1);
  // What rings told and what they dropped are all lookups.
  EXPECT_EQ(told(scrape), static_cast<double>(counted.lookups));
  // One in 1024 was timed, in order: the first is number 1024.
  EXPECT_EQ(scrape.Sum("terrace_hit_duration_seconds_count"),
            static_cast<double>(counted.lookups / shm::kTimedEvery));
  EXPECT_GT(scrape.Sum("terrace_hit_duration_seconds_sum"), 0);
  EXPECT_GT(scrape.Sum("terrace_loop_duration_seconds_count"), 0);
  EXPECT_GT(scrape.Sum("terrace_frames_total", {{"type", "commit"}}), 0);
  Tell(worker);
  ExpectDone(worker);
}

TEST_F(MetricsTest, EvictionsAreToldByReason) {
  StartDaemon("16MiB");
  bench::Child worker = StartClient("worker", [&](kvc_client* client, bench::Link& link) -> Status {
    ASSIGN_OR_RETURN(const bench::Space space, OpenPlainSpace(client, kPage));
    RETURN_IF_ERROR(PutNewPages(client, space.get(), Keys(0, 100)));
    RETURN_IF_ERROR(link.Send(bench::Go{}));
    RETURN_IF_ERROR(link.Receive<bench::Go>().status());
    kvc_evicted evicted{};
    evicted.struct_size = sizeof evicted;
    kvc_error error{};
    return bench::ToStatus(kvc_evict(client, 0, 0, &evicted, &error), error);
  });
  Hear<bench::Go>(worker);
  EXPECT_EQ(Ask().Sum("terrace_evicted_extents_total", {{"reason", "operator"}}), 0);
  Tell(worker);
  ExpectDone(worker);
  const Scrape scrape = Ask();
  EXPECT_EQ(scrape.Sum("terrace_evicted_extents_total",
                       {{"class", "kv"}, {"tenant", "default"}, {"reason", "operator"}}),
            100);
  EXPECT_EQ(scrape.Sum("terrace_evicted_bytes_total"), 100 * kPage);
}

TEST_F(MetricsTest, TheStoreAddsUpWhilePagesComeAndGo) {
  DaemonProcessOptions options;
  options.capacity = "16MiB";
  options.metrics = true;
  options.store = kOneDirectory;
  StartDaemon(options);
  constexpr uint64_t kWorkers = 2;
  SharedWords<std::atomic<uint64_t>> ended;
  std::vector<bench::Child> clients;
  for (uint64_t seed = 0; seed < kWorkers; ++seed) {
    clients.push_back(StartClient("worker", [&, seed](kvc_client* client, bench::Link&) -> Status {
      ASSIGN_OR_RETURN(const StoreSteps steps,
                       StoreSteps::Open(client, kPage, std::to_string(seed)));
      for (uint64_t round = 0; round < 20; ++round) {
        const std::vector<kvc_key> keys = Keys(round * 16, 16);
        RETURN_IF_ERROR(PutPages(client, steps.space(), keys).status());
        RETURN_IF_ERROR(steps.Persist(keys));
        RETURN_IF_ERROR(steps.ExpectStored(Keys(round * 8, 16)));
      }
      ++*ended;
      return {};
    }));
  }
  while (*ended < kWorkers && Runs(clients[0]) && Runs(clients[1]))
    ExpectItAddsUp(Ask());
  for (bench::Child& client : clients)
    ExpectDone(client);
  const Scrape scrape = Ask();
  ExpectItAddsUp(scrape);
  const bench::Labels stored = {{"tier", "nvme"}, {"class", "kv"}, {"tenant", "default"}};
  EXPECT_EQ(scrape.Sum("terrace_extents", stored), kWorkers * 20 * 16);
  EXPECT_EQ(scrape.Sum("terrace_store_spilled_pages_total"), kWorkers * 20 * 16);
  EXPECT_EQ(scrape.Sum("terrace_transfer_bytes_total", {{"from", "host"}, {"to", "nvme"}}),
            kWorkers * 20 * 16 * kPage);
  EXPECT_GT(scrape.Sum("terrace_promoted_pages_total"), 0);
  EXPECT_EQ(scrape.Sum("terrace_transfer_duration_seconds_count", {{"to", "nvme"}}),
            kWorkers * 20 * 16);
  EXPECT_EQ(scrape.Sum("terrace_transfer_duration_seconds_count", {{"from", "nvme"}}),
            scrape.Sum("terrace_promoted_pages_total"));
  EXPECT_EQ(scrape.Sum("terrace_store_faults_total"), 0);
  EXPECT_EQ(scrape.Sum("terrace_device_state", {{"state", "serving"}}), 1);
  EXPECT_EQ(scrape.Sum("terrace_device_allocated_bytes"),
            scrape.Sum("terrace_tier_used_bytes", {{"tier", "nvme"}}));
}

TEST_F(MetricsTest, PromtoolAcceptsTheDaemonsText) {
  if (std::string_view(PROMTOOL_PATH).empty()) GTEST_SKIP() << "there is no promtool";
  DaemonProcessOptions options;
  options.metrics = true;
  options.store = kOneDirectory;
  StartDaemon(options);
  Report("status");
  ProgramCall check;
  check.program = PROMTOOL_PATH;
  check.arguments = {"check", "metrics"};
  check.standard_input = Ask().text();
  const ProgramOutput output = RunProgram(check);
  EXPECT_EQ(output.exit_code, 0) << output.standard_output << output.standard_error;
  EXPECT_EQ(output.standard_output + output.standard_error, "");
}

TEST_F(MetricsTest, HealthAndReadiness) {
  StartDaemon();
  const auto get = [&](const char* target) {
    Result<bench::HttpAnswer> answer = bench::HttpGet(daemon().metrics(), target);
    EXPECT_TRUE(answer) << answer.error().ToString();
    return answer ? answer->status : 0;
  };
  // The socket is there before the stage is told.
  EXPECT_TRUE(Await([&] { return get("/readyz") == 200; }));
  EXPECT_EQ(get("/healthz"), 200);
  const Result<int> code = daemon().Stop();
  EXPECT_TRUE(code && *code == 0);
  EXPECT_FALSE(bench::ConnectTo(daemon().metrics())) << "its socket is gone";
}

TEST_F(MetricsTest, ADaemonThatIsToldOfNoAddressListensNowhere) {
  const Result<std::unique_ptr<DaemonProcess>> plain = DaemonProcess::Start();
  ASSERT_TRUE(plain);
  EXPECT_FALSE(bench::ConnectTo((*plain)->metrics()));
  EXPECT_EQ((*plain)->Log().find(" metrics "), std::string::npos);
}

}  // namespace
}  // namespace terrace
