// When the index counts as broken and when as well again: who erases for room, and who writes
// pages, goes by that.
#include "tiers/nvme/index_queue.h"

#include <gtest/gtest.h>

#include <atomic>

#include "tiers/sim/sim_executor.h"

namespace terrace::nvme {
namespace {

struct Disk {
  std::atomic<bool> full = false;
  std::atomic<int> resumed = 0;
  std::atomic<int> reads = 0;
};

// Closed by a write that fails until it is resumed, as the one on RocksDB.
class FullIndex final : public Index {
 public:
  explicit FullIndex(Disk& disk) : disk_(disk) {}
  Result<std::vector<std::string>> Visit(const std::function<void(const IndexEntry&)>&) override {
    return std::vector<std::string>();
  }
  Result<std::string> List(const std::string&, size_t,
                           const std::function<void(const IndexEntry&)>&, uint64_t*) override {
    return std::string();
  }
  Result<std::optional<IndexEntry>> Find(const StoredName&) override {
    ++disk_.reads;
    return std::optional<IndexEntry>();
  }
  Status Put(std::span<const IndexEntry>, bool) override { return Write(); }
  Status Erase(std::span<const StoredPage>, bool) override { return Write(); }
  Status Drop(std::span<const std::string>) override { return Write(); }
  Result<uint64_t> ReserveSerials(uint64_t, uint64_t beyond) override { return beyond + 1; }
  Status Sync() override { return Write(); }
  Status Resume() override {
    ++disk_.resumed;
    closed_ = false;
    return {};
  }
  uint64_t bytes_on_disk() override { return 0; }
  uint64_t syncs() override { return 0; }

 private:
  Status Write() {
    if (closed_) return {Code::kUnavailable, "closed"};
    closed_ = disk_.full;
    return closed_ ? Status(Code::kExhausted, "no space left") : Status();
  }
  Disk& disk_;
  bool closed_ = false;
};

class IndexQueueTest : public testing::Test {
 protected:
  void SetUp() override { ASSERT_TRUE(queue_.Start().ok()); }
  void TearDown() override {
    queue_.Stop();
    (void)box_->Close({});
  }
  Status Put() {
    std::optional<Status> answer;
    queue_.Put({}, [&](const Status& status) { answer = status; });
    EXPECT_TRUE(owner_.RunUntil([&] { return answer.has_value(); }));
    return answer.value_or(Status(Code::kInternal, "no answer"));
  }
  void Read() {
    bool done = false;
    queue_.Read([](Index& index) { (void)index.Find({}); }, [&] { done = true; });
    EXPECT_TRUE(owner_.RunUntil([&] { return done; }));
  }

  Disk disk_;
  ManualClock clock_;
  ManualExecutor owner_;
  const std::shared_ptr<Mailbox> box_ = std::make_shared<Mailbox>(owner_);
  IndexQueue queue_{
      {.retry_ns = 5 * kNsPerSecond}, std::make_unique<FullIndex>(disk_), clock_, box_};
};

TEST_F(IndexQueueTest, AWriteThatFailsBreaksItUntilItIsTriedAgain) {
  EXPECT_TRUE(Put().ok());
  EXPECT_TRUE(queue_.healthy());
  disk_.full = true;
  EXPECT_EQ(Put().code(), Code::kExhausted);
  EXPECT_FALSE(queue_.healthy());
  EXPECT_EQ(queue_.why(), "no space left");
  clock_.Advance(5 * kNsPerSecond);
  EXPECT_TRUE(queue_.healthy()) << "worth a try";
  disk_.full = false;
  EXPECT_TRUE(Put().ok()) << "it was resumed before";
  EXPECT_EQ(disk_.resumed, 1);
}

TEST_F(IndexQueueTest, ThatItCanBeReadDoesNotHealIt) {
  disk_.full = true;
  EXPECT_FALSE(Put().ok());
  Read();
  EXPECT_EQ(disk_.reads, 1);
  EXPECT_FALSE(queue_.healthy());
  EXPECT_FALSE(Put().ok());
  disk_.full = false;
  EXPECT_TRUE(Put().ok()) << "a write that failed before reads is still resumed from";
  EXPECT_TRUE(queue_.healthy());
}

TEST_F(IndexQueueTest, GivenUpItIsBrokenUntilItAnswers) {
  bool answered = false;
  queue_.Put({}, [&](const Status&) { answered = true; });
  queue_.GiveUp("it hangs");
  clock_.Advance(3600 * kNsPerSecond);
  EXPECT_FALSE(queue_.healthy());
  EXPECT_EQ(queue_.why(), "it hangs");
  EXPECT_TRUE(owner_.RunUntil([&] { return answered; }));
  EXPECT_TRUE(queue_.healthy());
}

}  // namespace
}  // namespace terrace::nvme
