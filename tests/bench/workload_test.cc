// EngineWorker against a real daemon: a wrong byte must not go unseen.
#include "bench/workload.h"

#include <gmock/gmock.h>
#include <sys/socket.h>

#include "bench/content.h"
#include "bench/residents.h"
#include "tests/support/daemon_process.h"

namespace terrace::bench {
namespace {

constexpr uint32_t kTokens = 16;

class Worker : public ::testing::Test {
 protected:
  void SetUp() override {
    auto daemon = DaemonProcess::Start();
    ASSERT_TRUE(daemon) << daemon.error().ToString();
    daemon_ = *std::move(daemon);
    auto engine = StartEngine({.socket = daemon_->socket(), .salt = "test"}, "engine", false);
    ASSERT_TRUE(engine) << engine.error().ToString();
    engine_ = *std::move(engine);
    for (uint64_t i = 0; i < 4; ++i)
      keys_.push_back(SyntheticKey(i));
    tokens_.assign(keys_.size(), kTokens);
  }
  EngineWorker NewWorker() {
    return {engine_.client.get(), engine_.space.get(), engine_.reader.get()};
  }

  std::unique_ptr<DaemonProcess> daemon_;
  Engine engine_;
  std::vector<kvc_key> keys_;
  std::vector<uint32_t> tokens_;
};

TEST_F(Worker, FindsWhatItPublished) {
  EngineWorker worker = NewWorker();
  ASSERT_TRUE(worker.Serve(keys_, tokens_).ok());
  EXPECT_EQ(worker.totals().hits, 0u);
  EXPECT_EQ(worker.totals().published, 4u);
  ASSERT_TRUE(worker.Serve(keys_, tokens_).ok());
  EXPECT_EQ(worker.totals().hits, 4u);
  EXPECT_EQ(worker.totals().pages, 8u);
  EXPECT_EQ(worker.totals().tokens, 8u * kTokens);
  EXPECT_EQ(worker.totals().tokens_reused, 4u * kTokens);
  EXPECT_EQ(worker.totals().verified_bytes, 4u * 4096);
  EXPECT_EQ(worker.totals().wrong_bytes, 0u);
}

TEST_F(Worker, SeesOneWrongByteOfAPageAndTellsTheParent) {
  const auto published =
      Put(engine_.client.get(), engine_.space.get(), {.keys = keys_, .valid_tokens = tokens_},
          [&](size_t index, std::span<uint8_t> page) {
            FillContent(keys_[index], page);
            if (index == 2) page[1234] ^= 0x10;
          });
  ASSERT_TRUE(published) << published.error().ToString();
  EngineWorker worker = NewWorker();
  ASSERT_TRUE(worker.Serve(keys_, tokens_).ok());
  EXPECT_EQ(worker.totals().wrong_bytes, 1u);

  int ends[2];
  ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0);
  Link child{UniqueFd(ends[0])};
  Link parent{UniqueFd(ends[1])};
  WorkOutcome outcome;
  ASSERT_TRUE(worker.Tell(child).ok());
  ASSERT_TRUE(outcome.Hear(parent).ok());
  EXPECT_EQ(outcome.totals().hits, 4u);
  EXPECT_EQ(outcome.Check().code(), Code::kDataLoss);
}

TEST_F(Worker, SeesAWrongNumberOfValidTokens) {
  EngineWorker worker = NewWorker();
  ASSERT_TRUE(worker.Serve(keys_, tokens_).ok());
  tokens_[3] = 7;
  ASSERT_TRUE(worker.Serve(keys_, tokens_).ok());
  EXPECT_EQ(worker.totals().wrong_tokens, 1u);
}

TEST_F(Worker, ADeadDaemonIsAnErrorAndNoMiss) {
  EngineWorker worker = NewWorker();
  daemon_->Kill();
  EXPECT_FALSE(worker.Serve(keys_, tokens_).ok());
}

}  // namespace
}  // namespace terrace::bench
