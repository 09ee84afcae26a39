#include "daemon/service/host_check.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cerrno>

namespace terrace {
namespace {

using testing::AllOf;
using testing::HasSubstr;

HostFacts GoodHost() {
  HostFacts facts;
  facts.memory = MemoryLimit{64ull << 30, 60ull << 30, "the machine"};
  facts.memlock_bytes = UINT64_MAX;
  facts.descriptors = 1u << 20;
  facts.shmem_huge_pages = "never";
  return facts;
}

HostFinding Finding(std::string_view subject, const HostFacts& facts, const Config& config = {}) {
  for (HostFinding& finding : CheckHost(config, facts)) {
    if (finding.subject == subject) return std::move(finding);
  }
  ADD_FAILURE() << "nothing about " << subject;
  return {};
}

TEST(HostCheck, AGoodHostLacksNothing) {
  for (const HostFinding& finding : CheckHost(Config(), GoodHost())) {
    EXPECT_FALSE(finding.lacking) << finding.subject << ": " << finding.text;
  }
}

TEST(HostCheck, ThisHostCanBeRead) {
  const HostFacts facts = ReadHostFacts({});
  ASSERT_EQ(facts.memory.status(), Status());
  EXPECT_GT(facts.memory->limit_bytes, 0u);
  EXPECT_GT(facts.descriptors, 0u);
  EXPECT_EQ(CheckHost(Config(), facts).size(), 5u);
}

TEST(HostCheck, TooLittleMemlockIsToldWithWhatFollows) {
  HostFacts facts = GoodHost();
  facts.memlock_bytes = 8u << 20;
  const HostFinding finding = Finding("memlock", facts);
  EXPECT_TRUE(finding.lacking);
  EXPECT_THAT(finding.text, AllOf(HasSubstr("RLIMIT_MEMLOCK is 8.0MiB and the capacity 16.0GiB"),
                                  HasSubstr("swaps it out"), HasSubstr("LimitMEMLOCK=infinity")));
  facts.may_lock_all = true;
  EXPECT_FALSE(Finding("memlock", facts).lacking);
  facts.may_lock_all = false;
  Config config;
  config.lock = LockChoice::kNever;
  EXPECT_FALSE(Finding("memlock", facts, config).lacking);
}

TEST(HostCheck, HugePagesLackOnlyWhenNoWayWorks) {
  HostFacts facts = GoodHost();
  facts.collapse_error = EINVAL;
  const HostFinding finding = Finding("huge pages", facts);
  EXPECT_TRUE(finding.lacking);
  EXPECT_THAT(finding.text,
              AllOf(HasSubstr("MADV_COLLAPSE fails (Invalid argument)"),
                    HasSubstr("twenty times more"), HasSubstr("Set vm.nr_hugepages to 8192")));
  facts.shmem_huge_pages = "advise";
  EXPECT_FALSE(Finding("huge pages", facts).lacking);
  facts.shmem_huge_pages = "never";
  facts.hugetlb_pages = 8192;
  EXPECT_FALSE(Finding("huge pages", facts).lacking);
  facts.hugetlb_pages = 8191;
  EXPECT_TRUE(Finding("huge pages", facts).lacking);
  Config config;
  config.huge_pages = HugePagesChoice::kNever;
  EXPECT_FALSE(Finding("huge pages", facts, config).lacking);
}

Config WithStore(uint64_t capacity_bytes = 64u << 20) {
  Config config;
  config.nvme.push_back({"/mnt/n", capacity_bytes});
  return config;
}

TEST(HostCheck, AMissingIoUringIsToldWhereAStoreWouldUseIt) {
  HostFacts facts = GoodHost();
  facts.io_uring_error = EPERM;
  EXPECT_FALSE(Finding("io_uring", facts).lacking);
  Config config = WithStore();
  const HostFinding finding = Finding("io_uring", facts, config);
  EXPECT_TRUE(finding.lacking);
  EXPECT_THAT(finding.text, AllOf(HasSubstr("Operation not permitted"), HasSubstr("uses threads"),
                                  HasSubstr("kernel.io_uring_disabled")));
  config.io_uring = IoUringChoice::kNever;
  EXPECT_FALSE(Finding("io_uring", facts, config).lacking);
  EXPECT_FALSE(Finding("io_uring", GoodHost(), WithStore()).lacking);
}

TEST(HostCheck, ADirectoryOfTheStoreIsLookedAt) {
  HostFacts facts = GoodHost();
  facts.nvme = {{.path = "/mnt/n", .direct_error = 0, .total_bytes = 1ull << 40}};
  EXPECT_FALSE(Finding("nvme", facts, WithStore()).lacking);
  const HostFinding small = Finding("nvme", facts, WithStore(2ull << 40));
  EXPECT_TRUE(small.lacking);
  EXPECT_THAT(small.text, HasSubstr("/mnt/n: nvme.capacity is 2.0TiB"));
  facts.nvme[0].direct_error = EACCES;
  EXPECT_FALSE(Finding("nvme", facts, WithStore()).lacking);
  facts.nvme[0].direct_error = EINVAL;
  const HostFinding none = Finding("nvme", facts, WithStore());
  EXPECT_TRUE(none.lacking);
  EXPECT_THAT(none.text, HasSubstr("knows no O_DIRECT"));
}

TEST(HostCheck, ADirectoryThatIsNotThereYetIsProbedWhereItWouldBeMade) {
  Config config;
  config.nvme.push_back({"/tmp/terrace-not-there/nor/this", 64u << 20});
  const HostFacts facts = ReadHostFacts(config);
  ASSERT_EQ(facts.nvme.size(), 1u);
  EXPECT_GT(facts.nvme[0].total_bytes, 0u);
  EXPECT_EQ(CheckHost(config, facts).size(), 6u);
}

TEST(HostCheck, TooLittleMemoryIsTold) {
  HostFacts facts = GoodHost();
  facts.memory = MemoryLimit{8ull << 30, 2ull << 30, "/sys/fs/cgroup/engines"};
  Config config;
  config.capacity = {16ull << 30, 0};
  const HostFinding finding = Finding("memory", facts, config);
  EXPECT_TRUE(finding.lacking);
  EXPECT_THAT(finding.text, AllOf(HasSubstr("the capacity is 16.0GiB"),
                                  HasSubstr("8.0GiB by /sys/fs/cgroup/engines, 2.0GiB of it free"),
                                  HasSubstr("starts with less")));
  facts.memory = Status(Code::kUnavailable, "no /proc");
  EXPECT_TRUE(Finding("memory", facts, config).lacking);
}

TEST(HostCheck, TooFewDescriptorsAreCounted) {
  HostFacts facts = GoodHost();
  facts.descriptors = 1024;
  const HostFinding finding = Finding("descriptors", facts);
  EXPECT_TRUE(finding.lacking);
  // Two a client, one a further connection, one a slab of 128 MiB, and the daemon's own.
  // Files of weights twice. A quarter of the limit is for replies under way.
  constexpr int kOpen = 2048 + 1024 + 128 + 128 + 2 * 1024;
  EXPECT_THAT(finding.text, HasSubstr("may need " + std::to_string((kOpen * 4 + 2) / 3)));
  // And of a store the slot files and the marker twice, and the index.
  EXPECT_THAT(Finding("descriptors", facts, WithStore()).text,
              HasSubstr("may need " + std::to_string(((kOpen + 2 * 513 + 512) * 4 + 2) / 3)));
}

}  // namespace
}  // namespace terrace
