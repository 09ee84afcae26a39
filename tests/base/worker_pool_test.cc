#include "base/worker_pool.h"

#include <gtest/gtest.h>
#include <sched.h>
#include <sys/resource.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <fstream>
#include <future>
#include <memory>
#include <thread>
#include <vector>

#include "tiers/sim/sim_executor.h"

namespace terrace {
namespace {

std::unique_ptr<WorkerPool> Start(WorkerPoolOptions options) {
  auto pool = WorkerPool::Start(std::move(options));
  TERRACE_CHECK(pool.has_value());
  return *std::move(pool);
}

// Keeps one thread of a pool busy until it is opened.
class Gate {
 public:
  explicit Gate(WorkerPool& pool) {
    TERRACE_CHECK(pool.Submit([this] {
                        entered_.set_value();
                        opened_.get_future().wait();
                      })
                      .ok());
    entered_.get_future().wait();
  }
  void Open() { opened_.set_value(); }

 private:
  std::promise<void> entered_;
  std::promise<void> opened_;
};

TEST(WorkerPool, RunsEveryTaskOnce) {
  std::vector<std::atomic<int>> runs(1000);
  std::atomic<int> left{1000};
  std::promise<void> all;
  const auto pool = Start({.threads = 4});
  for (auto& run : runs) {
    ASSERT_TRUE(pool->Submit([&] {
                      ++run;
                      if (--left == 0) all.set_value();
                    })
                    .ok());
  }
  all.get_future().wait();
  for (const auto& run : runs)
    EXPECT_EQ(run, 1);
}

TEST(WorkerPool, OneThreadKeepsTheOrder) {
  std::vector<int> order;
  std::promise<void> last;
  const auto pool = Start({.threads = 1});
  for (int i = 0; i < 100; ++i)
    ASSERT_TRUE(pool->Submit([&order, i] { order.push_back(i); }).ok());
  ASSERT_TRUE(pool->Submit([&] { last.set_value(); }).ok());
  last.get_future().wait();
  for (int i = 0; i < 100; ++i)
    EXPECT_EQ(order[i], i);
}

TEST(WorkerPool, FullQueueRefusesAndTakesAgainWhenThereIsRoom) {
  const auto pool = Start({.name = "narrow", .threads = 1, .queue_limit = 2});
  Gate gate(*pool);
  std::promise<void> second;
  EXPECT_TRUE(pool->Submit([] {}).ok());
  EXPECT_TRUE(pool->Submit([&] { second.set_value(); }).ok());
  const Status refused = pool->Submit([] { FAIL() << "was refused"; });
  EXPECT_EQ(refused.code(), Code::kExhausted);
  EXPECT_EQ(refused.message(), "worker pool 'narrow': 2 tasks are waiting");
  gate.Open();
  second.get_future().wait();
  EXPECT_TRUE(pool->Submit([] {}).ok());
}

TEST(WorkerPool, CompletionRunsOnTheOwnerThread) {
  ManualExecutor owner;
  const auto pool = Start({.threads = 2});
  std::thread::id worked;
  std::thread::id done;
  ASSERT_TRUE(pool->Submit([&] { worked = std::this_thread::get_id(); }, owner,
                           [&] { done = std::this_thread::get_id(); })
                  .ok());
  ASSERT_TRUE(owner.RunUntil([&] { return done != std::thread::id(); }));
  EXPECT_EQ(done, std::this_thread::get_id());
  EXPECT_NE(worked, std::this_thread::get_id());
}

TEST(WorkerPool, StoppingFinishesWhatRunsAndDropsWhatWaits) {
  const auto held = std::make_shared<int>(0);
  bool finished = false;
  ManualExecutor owner;
  auto pool = Start({.threads = 1});
  WorkerPool* const raw = pool.get();
  std::promise<void> entered;
  std::promise<void> queued;
  ASSERT_TRUE(pool->Submit([&] {
                    entered.set_value();
                    queued.get_future().wait();
                    // A pool that stops takes no more work: what is submitted is gone at once.
                    for (bool stopping = false; !stopping;) {
                      const auto probe = std::make_shared<int>(0);
                      const Status taken = raw->Submit([probe] {});
                      stopping = taken.ok() && probe.use_count() == 1;
                      std::this_thread::yield();
                    }
                    finished = true;
                  })
                  .ok());
  entered.get_future().wait();
  ASSERT_TRUE(pool->Submit([held] { ADD_FAILURE() << "ran"; }, owner, [held] {}).ok());
  EXPECT_EQ(held.use_count(), 3);
  queued.set_value();
  pool.reset();
  EXPECT_TRUE(finished);
  EXPECT_EQ(held.use_count(), 1);
  EXPECT_EQ(owner.queued(), 0u);
}

TEST(WorkerPool, TaskMaySubmitWhileThePoolStops) {
  std::atomic<int> submitted{0};
  auto pool = Start({.threads = 2});
  WorkerPool* const raw = pool.get();
  // A task that keeps submitting itself ends with the pool.
  std::function<void()> again = [&] {
    ++submitted;
    EXPECT_TRUE(raw->Submit(again).ok());
  };
  ASSERT_TRUE(pool->Submit(again).ok());
  while (submitted < 100)
    std::this_thread::yield();
  pool.reset();
  EXPECT_GE(submitted, 100);
}

TEST(WorkerPool, ThreadsCarryTheirNameAndPriority) {
  const auto pool = Start({.name = "pretouch", .threads = 1, .low_priority = true});
  std::promise<void> seen;
  std::string name;
  int scheduler = -1;
  int nice = 0;
  ASSERT_TRUE(pool->Submit([&] {
                    std::ifstream("/proc/thread-self/comm") >> name;
                    scheduler = ::sched_getscheduler(0);
                    nice = ::getpriority(PRIO_PROCESS, static_cast<id_t>(::gettid()));
                    seen.set_value();
                  })
                  .ok());
  seen.get_future().wait();
  EXPECT_EQ(name, "pretouch-0");
  EXPECT_EQ(scheduler, SCHED_BATCH);
  EXPECT_GE(nice, 10);
  EXPECT_LT(::getpriority(PRIO_PROCESS, static_cast<id_t>(::gettid())), nice);
}

TEST(WorkerPool, NeedsAThread) {
  EXPECT_EQ(WorkerPool::Start({.threads = 0}).error().code(), Code::kInvalidArgument);
}

}  // namespace
}  // namespace terrace
