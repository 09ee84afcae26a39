#include "daemon/service/journal_drain.h"

#include <gtest/gtest.h>

#include <deque>

namespace terrace {
namespace {

// Acknowledges when told.
class HeldJournal final : public Journal {
 public:
  Result<std::vector<Record>> Load(std::string_view) override {
    return std::vector<Record>{{"k", "v"}};
  }
  void Put(std::string, std::string, std::function<void(Status)> done) override {
    waiting.push_back(std::move(done));
  }
  void Delete(std::string, std::function<void(Status)> done) override {
    waiting.push_back(std::move(done));
  }
  void Acknowledge(const Status& status) {
    const auto done = std::move(waiting.front());
    waiting.pop_front();
    done(status);
  }
  std::deque<std::function<void(Status)>> waiting;
};

TEST(JournalDrain, IdleComesAfterTheLastAcknowledgement) {
  HeldJournal below;
  JournalDrain drain(below);
  EXPECT_EQ(drain.Load("")->size(), 1u);
  int acknowledged = 0;
  bool idle = false;
  drain.Put("a", "1", [&](const Status& status) { acknowledged += status.ok(); });
  drain.Delete("a", [&](const Status& status) { acknowledged += !status.ok(); });
  drain.WhenIdle([&] {
    EXPECT_EQ(acknowledged, 2);
    idle = true;
  });
  EXPECT_FALSE(idle);
  below.Acknowledge(Status());
  EXPECT_FALSE(idle);
  below.Acknowledge(Status(Code::kExhausted, "disk full"));
  EXPECT_TRUE(idle);
}

TEST(JournalDrain, NothingUnderWayIsIdleAtOnce) {
  HeldJournal below;
  JournalDrain drain(below);
  bool idle = false;
  drain.WhenIdle([&] { idle = true; });
  EXPECT_TRUE(idle);
}

TEST(JournalDrain, AWriteThatAnAcknowledgementStartsIsWaitedForToo) {
  HeldJournal below;
  JournalDrain drain(below);
  bool idle = false;
  drain.Put("a", "1", [&](const Status&) { drain.Put("b", "2", [](const Status&) {}); });
  drain.WhenIdle([&] { idle = true; });
  below.Acknowledge(Status());
  EXPECT_FALSE(idle);
  below.Acknowledge(Status());
  EXPECT_TRUE(idle);
}

}  // namespace
}  // namespace terrace
