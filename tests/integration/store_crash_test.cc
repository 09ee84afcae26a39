// The daemon is killed at any moment of its work with the store, again and again: every page that
// kvc_persist said to be durable comes back byte by byte, and no lookup ever finds a wrong byte.
// TERRACE_STORE_KILLS says how often.
#include <array>
#include <atomic>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <filesystem>

#include "base/random.h"
#include "tests/integration/effort.h"
#include "tests/integration/store_steps.h"

namespace terrace {
namespace {

constexpr size_t kWorkers = 3;
constexpr uint64_t kKeys = 300;  // Of each.
constexpr uint64_t kMostKeysAStep = 16;

// What is known of the pages of one worker. It writes before it asks for what may take a page away,
// and after it was told that one is durable.
using Durable = std::array<std::atomic<bool>, kKeys>;
struct Words {
  std::array<Durable, kWorkers> durable{};
  std::array<std::atomic<uint64_t>, kWorkers> acknowledged{};
  std::atomic<uint64_t> steps{};  // Of all, in this life of the daemon.
};

uint64_t PageBytesOf(size_t worker) {
  return uint64_t{16u << 10} << worker;
}

// The daemon was killed: this process has done its work.
bool IsOfADeath(Code code) {
  return code == Code::kUnavailable || code == Code::kStale;
}

// One worker in one life of the daemon.
class Worker {
 public:
  Worker(Words& words, size_t number, uint64_t seed)
      : words_(words), number_(number), random_(seed) {}

  Status Work(const StoreSteps& steps) {
    for (;;) {
      const uint64_t first = random_.Below(kKeys);
      const uint64_t count = 1 + random_.Below(kMostKeysAStep);
      const Status status = Step(steps, first, count);
      if (IsOfADeath(status.code())) return {};
      RETURN_IF_ERROR(status);
      ++words_.steps;
    }
  }

 private:
  Status Step(const StoreSteps& steps, uint64_t first, uint64_t count) {
    const std::vector<kvc_key> keys = Keys(first, count, kKeys);
    switch (random_.Below(8)) {
      case 0:
      case 1:
        return PutPages(steps.client(), steps.space(), keys).status();
      case 2:
      case 3:
        RETURN_IF_ERROR(PutPages(steps.client(), steps.space(), keys).status());
        return Persist(steps, first, keys);
      case 4:
        RETURN_IF_ERROR(steps.Prefetch(keys).status());
        return steps.Found(keys).status();
      case 5:
        return Drop(steps, first, {keys.begin(), keys.begin() + 1});
      case 6:
        return Evict(steps);
      default:
        return steps.Found(keys).status();
    }
  }

  Status Persist(const StoreSteps& steps, uint64_t first, const std::vector<kvc_key>& keys) {
    std::vector<kvc_code> codes(keys.size());
    kvc_error error{};
    RETURN_IF_ERROR(bench::ToStatus(kvc_persist(steps.client(), steps.space(), keys.data(),
                                                keys.size(), 60'000, codes.data(), &error),
                                    error));
    for (size_t i = 0; i < keys.size(); ++i) {
      if (codes[i] != KVC_OK) continue;
      words_.durable[number_][(first + i) % kKeys] = true;
      ++words_.acknowledged[number_];
    }
    return {};
  }

  Status Drop(const StoreSteps& steps, uint64_t first, const std::vector<kvc_key>& keys) {
    for (size_t i = 0; i < keys.size(); ++i)
      words_.durable[number_][(first + i) % kKeys] = false;
    kvc_error error{};
    return bench::ToStatus(
        kvc_drop(steps.client(), steps.space(), keys.data(), keys.size(), 0, nullptr, &error),
        error);
  }

  Status Evict(const StoreSteps& steps) {
    kvc_error error{};
    if (random_.Chance(1, 2)) {
      return bench::ToStatus(kvc_evict(steps.client(), 1u << 20, 0, nullptr, &error), error);
    }
    const kvc_code code = kvc_demote(steps.client(), 1u << 20, 60'000, nullptr, &error);
    // Another worker is at it.
    return code == KVC_EXHAUSTED ? Status() : bench::ToStatus(code, error);
  }

  Words& words_;
  const size_t number_;
  Random random_;
};

class StoreCrashTest : public StoreTest {
 protected:
  // Workers at it until the daemon is ended in this round's way at this round's moment.
  void WorkAndDie(uint64_t round, Random& random) {
    words_->steps = 0;
    std::vector<bench::Child> workers;
    for (size_t number = 0; number < kWorkers; ++number) {
      const uint64_t seed = round * kWorkers + number;
      workers.push_back(StartProcess("worker", [&, number, seed](bench::Link&) -> Status {
        // Others may have done enough before it is connected.
        const Result<bench::Client> client =
            bench::Connect({.socket = socket(), .name = "worker", .read_only = false});
        if (!client) return IsOfADeath(client.error().code()) ? Status() : client.error();
        const Result<StoreSteps> steps = StoreSteps::Open(client->get(), PageBytesOf(number));
        if (!steps) return IsOfADeath(steps.error().code()) ? Status() : steps.error();
        return Worker(*words_, number, seed).Work(*steps);
      }));
    }
    const uint64_t until = random.Below(400);
    ASSERT_TRUE(Await([&] {
      return words_->steps >= until || !Runs(workers[0]) || !Runs(workers[1]) || !Runs(workers[2]);
    }));
    const auto moment =
        std::chrono::steady_clock::now() + std::chrono::microseconds(random.Below(5000));
    while (std::chrono::steady_clock::now() < moment) {
    }
    // Now and then it is told to end, and killed while it does.
    if (random.Chance(1, 4)) ::kill(daemon().pid(), SIGTERM);
    daemon().Kill();
    for (bench::Child& worker : workers)
      ExpectDone(worker);
  }

  // What was acknowledged is there.
  void Verify() {
    for (size_t number = 0; number < kWorkers; ++number) {
      std::vector<kvc_key> keys;
      for (uint64_t i = 0; i < kKeys; ++i) {
        if (words_->durable[number][i]) keys.push_back(bench::SyntheticKey(i));
      }
      checked_ += keys.size();
      Run([&](kvc_client* client) -> Status {
        ASSIGN_OR_RETURN(const StoreSteps steps, StoreSteps::Open(client, PageBytesOf(number)));
        return steps.ExpectStored(keys);
      });
    }
  }

  SharedWords<Words> words_;
  uint64_t checked_ = 0;
};

// The index is built anew, or mended, and killed at it, until it is let to end.
TEST_F(StoreCrashTest, WhatWasAcknowledgedSurvivesTheDeathOfFsckAtAnyMoment) {
  StartStore(kOneDirectory, "16MiB");
  const uint64_t rounds = Effort(32, 4);
  uint64_t killed = 0;
  auto whole = std::chrono::microseconds(100'000);  // What the last one took that ended.
  for (uint64_t round = 1; round <= rounds; ++round) {
    SCOPED_TRACE("round " + std::to_string(round));
    Random random(round * 15'485'863);
    WorkAndDie(round, random);
    ASSERT_FALSE(HasFailure());
    const std::vector<std::string> arguments = {
        "--config", daemon().config_file(),
        random.Chance(1, 2) ? "--fsck=rebuild" : "--fsck=repair"};
    // Now and then there is no index to begin with.
    if (random.Chance(1, 3)) std::filesystem::remove_all(store_folder() + "/index");
    for (uint64_t death = 0; death < 3; ++death)
      killed += KillTerracedWithin(
          arguments, std::chrono::microseconds(random.Below(static_cast<uint64_t>(whole.count()))));
    const auto begin = std::chrono::steady_clock::now();
    const CommandOutput fsck = RunTerraced(arguments);
    whole = std::chrono::duration_cast<std::chrono::microseconds>(std::chrono::steady_clock::now() -
                                                                  begin);
    ASSERT_EQ(fsck.exit_code, 0) << fsck.standard_output << fsck.standard_error;
    const Status launched = daemon().Launch();
    ASSERT_TRUE(launched.ok()) << launched.ToString();
    Verify();
    ASSERT_FALSE(HasFailure()) << daemon().Log();
  }
  EXPECT_GT(killed, 0u);
  std::printf("%llu deaths of fsck, %llu pages read back\n",
              static_cast<unsigned long long>(killed), static_cast<unsigned long long>(checked_));
}

TEST_F(StoreCrashTest, WhatWasAcknowledgedSurvivesADeathAtAnyMoment) {
  StartStore(kOneDirectory, "16MiB");
  const char* const asked = std::getenv("TERRACE_STORE_KILLS");
  const uint64_t kills = asked != nullptr ? std::strtoull(asked, nullptr, 10) : Effort(80, 4);
  for (uint64_t round = 1; round <= kills; ++round) {
    SCOPED_TRACE("round " + std::to_string(round));
    Random random(round * 7919);
    WorkAndDie(round, random);
    ASSERT_FALSE(HasFailure());
    if (round % 5 == 0) {
      const CommandOutput fsck = RunTerraced({"--config", daemon().config_file(), "--fsck=data"});
      ASSERT_EQ(fsck.exit_code, 0) << fsck.standard_output << fsck.standard_error;
    }
    const Status launched = daemon().Launch();
    ASSERT_TRUE(launched.ok()) << launched.ToString();
    Verify();
    ASSERT_FALSE(HasFailure()) << daemon().Log();
  }
  uint64_t acknowledged = 0;
  for (const auto& of_worker : words_->acknowledged)
    acknowledged += of_worker;
  EXPECT_GT(acknowledged, 0u);
  std::printf("%llu deaths, %llu pages acknowledged, %llu read back\n",
              static_cast<unsigned long long>(kills), static_cast<unsigned long long>(acknowledged),
              static_cast<unsigned long long>(checked_));
}

}  // namespace
}  // namespace terrace
