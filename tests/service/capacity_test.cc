#include <gtest/gtest.h>

#include "daemon/service/host_capacity.h"

namespace terrace {
namespace {

constexpr uint64_t kGiB = 1ull << 30;

// A machine whose memory the test decides.
struct FakeMemory {
  uint64_t limit = 64 * kGiB;
  uint64_t available = 60 * kGiB;
  bool broken = false;

  HostCapacity::Read Reader() {
    return [this]() -> Result<MemoryLimit> {
      if (broken) return Status(Code::kUnavailable, "no /proc");
      return MemoryLimit{limit, available, "test"};
    };
  }
};

TEST(HostCapacity, AFractionIsOfTheLimit) {
  FakeMemory memory;
  const Result<HostCapacity> capacity = HostCapacity::Choose({0, 0.25}, memory.Reader());
  ASSERT_EQ(capacity.status(), Status());
  EXPECT_EQ(capacity->wanted_bytes(), 16 * kGiB);
  EXPECT_EQ(capacity->present_bytes(), 16 * kGiB);
}

TEST(HostCapacity, ItTakesWhatIsLeftAndGrowsAsOthersLetGo) {
  FakeMemory memory;
  memory.available = 5 * kGiB;
  Result<HostCapacity> capacity = HostCapacity::Choose({16 * kGiB, 0}, memory.Reader());
  ASSERT_EQ(capacity.status(), Status());
  EXPECT_EQ(capacity->wanted_bytes(), 16 * kGiB);
  EXPECT_EQ(capacity->present_bytes(), 4 * kGiB);  // One GiB stays for everything else.
  // What the daemon itself has taken since is no reason to grow, nor to shrink.
  memory.available = 2 * kGiB;
  EXPECT_FALSE(capacity->Grow(3 * kGiB));
  EXPECT_EQ(capacity->present_bytes(), 4 * kGiB);
  memory.available = 9 * kGiB;
  EXPECT_TRUE(capacity->Grow(3 * kGiB));
  EXPECT_EQ(capacity->present_bytes(), 11 * kGiB);
  memory.available = 60 * kGiB;
  EXPECT_TRUE(capacity->Grow(3 * kGiB));
  EXPECT_EQ(capacity->present_bytes(), 16 * kGiB);
  EXPECT_FALSE(capacity->Grow(16 * kGiB));
}

TEST(HostCapacity, ItNeverShrinksByItself) {
  FakeMemory memory;
  memory.available = 10 * kGiB;
  Result<HostCapacity> capacity = HostCapacity::Choose({16 * kGiB, 0}, memory.Reader());
  ASSERT_EQ(capacity.status(), Status());
  memory.available = kGiB;
  EXPECT_FALSE(capacity->Grow(0));
  EXPECT_EQ(capacity->present_bytes(), 9 * kGiB);
  memory.broken = true;
  EXPECT_FALSE(capacity->Grow(0));
}

TEST(HostCapacity, ALittleIsTakenEvenWhenNothingIsLeft) {
  FakeMemory memory;
  memory.available = 0;
  const Result<HostCapacity> capacity = HostCapacity::Choose({16 * kGiB, 0}, memory.Reader());
  ASSERT_EQ(capacity.status(), Status());
  EXPECT_EQ(capacity->present_bytes(), HostCapacity::kLeastBytes);
}

TEST(HostCapacity, WithoutALimitThereIsNoCapacity) {
  FakeMemory memory;
  memory.broken = true;
  EXPECT_EQ(HostCapacity::Choose({0, 0.25}, memory.Reader()).status().code(), Code::kUnavailable);
}

}  // namespace
}  // namespace terrace
