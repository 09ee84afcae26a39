#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <csignal>
#include <thread>
#include <vector>

#include "daemon/service/owner_loop.h"

namespace terrace {
namespace {

using std::chrono::milliseconds;

struct Pipe {
  Pipe() {
    int ends[2];
    EXPECT_EQ(::pipe2(ends, O_CLOEXEC | O_NONBLOCK), 0);
    read_end.Reset(ends[0]);
    write_end.Reset(ends[1]);
  }
  UniqueFd read_end;
  UniqueFd write_end;
};

TEST(OwnerLoop, PostedTasksRunInOrderOnTheThreadThatRuns) {
  OwnerLoop loop;
  std::vector<int> order;
  std::thread::id ran_on;
  std::thread poster([&] {
    for (int i = 0; i < 1000; ++i) {
      loop.Post([&order, i] { order.push_back(i); });
    }
    loop.Post([&] {
      ran_on = std::this_thread::get_id();
      loop.Stop();
    });
  });
  loop.Run();
  poster.join();
  ASSERT_EQ(order.size(), 1000u);
  for (int i = 0; i < 1000; ++i)
    EXPECT_EQ(order[i], i);
  EXPECT_EQ(ran_on, std::this_thread::get_id());
}

TEST(OwnerLoop, EveryCallbackIsTimed) {
  OwnerLoop loop;
  Pipe pipe;
  ASSERT_EQ(::write(pipe.write_end.get(), "x", 1), 1);
  Result<OwnerLoop::Watch> watch = loop.NewWatch(std::move(pipe.read_end), [&] {
    // Longer than some bound, whatever the machine.
    const auto until = std::chrono::steady_clock::now() + milliseconds(2);
    while (std::chrono::steady_clock::now() < until)
      continue;
    loop.Stop();
  });
  ASSERT_EQ(watch.status(), Status());
  OwnerLoop::Timer timer = loop.NewTimer([&] { watch->ArmRead(); });
  loop.Post([&] { timer.Start(milliseconds(1)); });
  loop.Run();
  const LoopTimes& times = loop.times();
  uint64_t callbacks = 0;
  uint64_t long_ones = 0;
  for (size_t i = 0; i < times.counts.size(); ++i) {
    callbacks += times.counts[i];
    if (i > 0 && LoopTimes::kBoundsNs[i - 1] >= 2'000'000) long_ones += times.counts[i];
  }
  EXPECT_EQ(callbacks, 3u) << "a task, a timer, a watch";
  EXPECT_GE(long_ones, 1u);
  EXPECT_GE(times.total_ns, 2'000'000u);
}

TEST(OwnerLoop, AWatchCallsOnceForEachTimeItIsArmed) {
  OwnerLoop loop;
  Pipe pipe;
  int calls = 0;
  Result<OwnerLoop::Watch> watch = loop.NewWatch(std::move(pipe.read_end), [&] {
    ++calls;
    loop.Post([&] { loop.Stop(); });
  });
  ASSERT_EQ(watch.status(), Status());
  watch->ArmRead();
  watch->ArmRead();
  ASSERT_EQ(::write(pipe.write_end.get(), "x", 1), 1);
  loop.Run();
  EXPECT_EQ(calls, 1);
}

TEST(OwnerLoop, AWatchMayBeDestroyedByItsOwnCallback) {
  OwnerLoop loop;
  Pipe pipe;
  OwnerLoop::Watch watch;
  Result<OwnerLoop::Watch> made = loop.NewWatch(std::move(pipe.read_end), [&] {
    watch = OwnerLoop::Watch();
    loop.Stop();
  });
  ASSERT_EQ(made.status(), Status());
  watch = *std::move(made);
  watch.ArmRead();
  ASSERT_EQ(::write(pipe.write_end.get(), "x", 1), 1);
  loop.Run();
  EXPECT_FALSE(watch);
}

TEST(OwnerLoop, ADestroyedWatchCallsNobody) {
  OwnerLoop loop;
  Pipe pipe;
  {
    Result<OwnerLoop::Watch> watch =
        loop.NewWatch(std::move(pipe.read_end), [] { FAIL() << "called"; });
    ASSERT_EQ(watch.status(), Status());
    watch->ArmRead();
    ASSERT_EQ(::write(pipe.write_end.get(), "x", 1), 1);
  }
  OwnerLoop::Timer timer = loop.NewTimer([&] { loop.Stop(); });
  timer.Start(milliseconds(1));
  loop.Run();
}

TEST(OwnerLoop, ADescriptorThatCannotBeWaitedForIsAnError) {
  OwnerLoop loop;
  const Result<OwnerLoop::Watch> watch = loop.NewWatch(UniqueFd(), [] {});
  EXPECT_FALSE(watch.has_value());
}

TEST(OwnerLoop, ATimerFiresOnceAndTheLastStartCounts) {
  OwnerLoop loop;
  int fired = 0;
  OwnerLoop::Timer timer = loop.NewTimer([&] { ++fired; });
  OwnerLoop::Timer cancelled = loop.NewTimer([] { FAIL() << "fired"; });
  OwnerLoop::Timer end = loop.NewTimer([&] { loop.Stop(); });
  timer.Start(milliseconds(0));
  timer.Start(milliseconds(1));
  cancelled.Start(milliseconds(1));
  cancelled.Cancel();
  end.Start(milliseconds(20));
  loop.Run();
  EXPECT_EQ(fired, 1);
}

TEST(OwnerLoop, SignalsAreTakenOnTheLoop) {
  OwnerLoop loop;
  int received = 0;
  loop.OnSignals({SIGUSR1, SIGUSR2}, [&](int number) {
    received = number;
    loop.Stop();
  });
  ASSERT_EQ(::raise(SIGUSR2), 0);
  loop.Run();
  EXPECT_EQ(received, SIGUSR2);
}

}  // namespace
}  // namespace terrace
