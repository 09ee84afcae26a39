#include "tiers/host/memory_limit.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "base/random.h"

namespace terrace {
namespace {

// A small /proc and /sys of its own.
class MemoryLimitTest : public ::testing::Test {
 protected:
  MemoryLimitTest()
      : root_(::testing::TempDir() + "terrace-limit-" + std::to_string(SecretWord())) {
    Write("/proc/meminfo",
          "MemTotal:       1000000 kB\nMemFree: 1 kB\nMemAvailable:   600000 kB\n");
  }
  ~MemoryLimitTest() override { std::filesystem::remove_all(root_); }

  void Write(const std::string& path, const std::string& text) {
    const std::filesystem::path file = root_ + path;
    std::filesystem::create_directories(file.parent_path());
    std::ofstream(file) << text;
  }
  void MountV2(const std::string& group, const std::string& mount_root = "/") {
    Write("/proc/self/cgroup", "0::" + group + "\n");
    Write("/proc/self/mountinfo",
          "22 1 0:20 / / rw - ext4 /dev/vda rw\n"
          "31 22 0:28 " +
              mount_root + " /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw\n");
  }
  void MountV1(const std::string& group, const std::string& mount_root = "/") {
    Write("/proc/self/cgroup", "9:name=systemd:/x\n4:cpu,memory:" + group + "\n3:cpuset:/\n0::/\n");
    Write("/proc/self/mountinfo",
          "32 31 0:29 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset\n"
          "35 31 0:32 " +
              mount_root +
              " /sys/fs/cgroup/memory rw - cgroup cgroup rw,cpu,memory\n"
              "41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n");
  }

  const std::string root_;
};

constexpr uint64_t kKiB = 1024;

TEST_F(MemoryLimitTest, WithoutControlGroupsTheMachineDecides) {
  const auto limit = ReadMemoryLimit(root_);
  ASSERT_TRUE(limit.has_value());
  EXPECT_EQ(limit->limit_bytes, 1'000'000 * kKiB);
  EXPECT_EQ(limit->available_bytes, 600'000 * kKiB);
  EXPECT_EQ(limit->source, "the machine");
}

TEST_F(MemoryLimitTest, V2TakesTheTightestGroupOnTheWayUp) {
  MountV2("/kube/pod/engine");
  const std::string base = "/sys/fs/cgroup";
  Write(base + "/kube/memory.max", "max\n");
  Write(base + "/kube/pod/memory.max", "200000000\n");
  Write(base + "/kube/pod/memory.current", "150000000\n");
  Write(base + "/kube/pod/memory.stat", "anon 1\ninactive_file 50000000\nactive_file 7\n");
  Write(base + "/kube/pod/engine/memory.max", "300000000\n");
  Write(base + "/kube/pod/engine/memory.current", "250000000\n");
  const auto limit = ReadMemoryLimit(root_);
  ASSERT_TRUE(limit.has_value());
  EXPECT_EQ(limit->limit_bytes, 200'000'000u);
  EXPECT_EQ(limit->source, "/sys/fs/cgroup/kube/pod");
  // The pod has 100 MB left when its cache is dropped; the group inside it only 50.
  EXPECT_EQ(limit->available_bytes, 50'000'000u);
}

TEST_F(MemoryLimitTest, V2ThrottlingLimitCountsToo) {
  MountV2("/a");
  Write("/sys/fs/cgroup/a/memory.max", "500000000\n");
  Write("/sys/fs/cgroup/a/memory.high", "400000000\n");
  Write("/sys/fs/cgroup/a/memory.current", "450000000\n");
  const auto limit = ReadMemoryLimit(root_);
  ASSERT_TRUE(limit.has_value());
  EXPECT_EQ(limit->limit_bytes, 400'000'000u);
  EXPECT_EQ(limit->available_bytes, 0u);
}

TEST_F(MemoryLimitTest, V1IsFoundAmongOtherHierarchies) {
  MountV1("/docker/abc");
  Write("/sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
  Write("/sys/fs/cgroup/memory/docker/abc/memory.limit_in_bytes", "300000000\n");
  Write("/sys/fs/cgroup/memory/docker/abc/memory.usage_in_bytes", "100000000\n");
  Write("/sys/fs/cgroup/memory/docker/abc/memory.stat",
        "inactive_file 1\ntotal_inactive_file 40000000\n");
  const auto limit = ReadMemoryLimit(root_);
  ASSERT_TRUE(limit.has_value());
  EXPECT_EQ(limit->limit_bytes, 300'000'000u);
  EXPECT_EQ(limit->available_bytes, 240'000'000u);
  EXPECT_EQ(limit->source, "/sys/fs/cgroup/memory/docker/abc");
}

TEST_F(MemoryLimitTest, ContainerThatSeesOnlyItsOwnGroupReadsTheMountsRoot) {
  MountV1("/docker/abc/inner", "/docker/abc");
  Write("/sys/fs/cgroup/memory/memory.limit_in_bytes", "300000000\n");
  Write("/sys/fs/cgroup/memory/inner/memory.limit_in_bytes", "250000000\n");
  EXPECT_EQ(ReadMemoryLimit(root_)->limit_bytes, 250'000'000u);
  MountV1("/elsewhere", "/docker/abc");
  EXPECT_EQ(ReadMemoryLimit(root_)->limit_bytes, 300'000'000u);
  MountV2("/../outside");
  Write("/sys/fs/cgroup/memory.max", "123456789\n");
  EXPECT_EQ(ReadMemoryLimit(root_)->limit_bytes, 123'456'789u);
}

TEST_F(MemoryLimitTest, LimitAboveTheMachineIsNoLimit) {
  MountV2("/a");
  Write("/sys/fs/cgroup/a/memory.max", "99999999999999\n");
  Write("/sys/fs/cgroup/a/memory.current", "5\n");
  const auto limit = ReadMemoryLimit(root_);
  ASSERT_TRUE(limit.has_value());
  EXPECT_EQ(limit->limit_bytes, 1'000'000 * kKiB);
  EXPECT_EQ(limit->available_bytes, 600'000 * kKiB);
  EXPECT_EQ(limit->source, "the machine");
}

TEST_F(MemoryLimitTest, FilesThatDoNotParseAreIgnored) {
  MountV2("/a");
  for (const char* text : {"", "lots", "-5", "12x", "99999999999999999999999"}) {
    Write("/sys/fs/cgroup/a/memory.max", text);
    EXPECT_EQ(ReadMemoryLimit(root_)->limit_bytes, 1'000'000 * kKiB) << text;
  }
  Write("/proc/self/cgroup", "garbage\n\n:\n0:\n");
  Write("/proc/self/mountinfo", "1 2\n- cgroup2\n\n");
  EXPECT_TRUE(ReadMemoryLimit(root_).has_value());
}

TEST_F(MemoryLimitTest, WithoutTheMachinesMemoryThereIsNoAnswer) {
  Write("/proc/meminfo", "MemTotal: 5 kB\n");
  EXPECT_EQ(ReadMemoryLimit(root_).error().code(), Code::kUnavailable);
}

TEST(MemoryLimit, ThisMachineHasOne) {
  const auto limit = ReadMemoryLimit();
  ASSERT_TRUE(limit.has_value());
  EXPECT_GT(limit->limit_bytes, 0u);
  EXPECT_LE(limit->available_bytes, limit->limit_bytes);
}

}  // namespace
}  // namespace terrace
