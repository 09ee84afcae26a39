#include "daemon/engine/weights/access.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <optional>

#include "tiers/sim/sim_journal.h"

namespace terrace {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

class AccessTest : public testing::Test {
 protected:
  AccessTest() { Restart({}); }

  // A new daemon on the same journal, which knows these models.
  void Restart(const std::vector<std::string>& models) {
    journal_.Crash(journal_.pending());
    lists_.emplace(journal_);
    problems_.clear();
    ASSERT_EQ(lists_->Restore(models, &problems_), Status());
  }
  Status Register(const std::string& model, const std::string& tenant) {
    std::optional<Status> saved;
    lists_->Registered(model, tenant, [&](Status status) { saved = std::move(status); });
    journal_.RunPending();
    return saved.value_or(Status(Code::kInternal, "it never completed"));
  }
  Status Set(const std::string& model, const std::string& tenant, bool granted) {
    std::optional<Status> saved;
    lists_->Set(model, tenant, granted, [&](Status status) { saved = std::move(status); });
    journal_.RunPending();
    return saved.value_or(Status(Code::kInternal, "it never completed"));
  }

  SimJournal journal_;
  std::optional<AccessLists> lists_;
  std::vector<std::string> problems_;
};

TEST_F(AccessTest, AModelIsOfWhoAddedItUntilItIsGranted) {
  ASSERT_EQ(Register("m", "ops"), Status());
  EXPECT_TRUE(lists_->Allows("m", "ops"));
  EXPECT_FALSE(lists_->Allows("m", "a"));
  EXPECT_FALSE(lists_->Allows("other", "ops"));
  ASSERT_EQ(Set("m", "a", true), Status());
  ASSERT_EQ(Set("m", "a", true), Status());  // Content when it is so already.
  EXPECT_TRUE(lists_->Allows("m", "a"));
  EXPECT_THAT(lists_->TenantsOf("m"), ElementsAre("a", "ops"));
  ASSERT_EQ(Set("m", "ops", false), Status());
  ASSERT_EQ(Set("m", "nobody", false), Status());
  EXPECT_THAT(lists_->TenantsOf("m"), ElementsAre("a"));
  EXPECT_EQ(Set("other", "a", true).code(), Code::kNotFound);
  // A further version does not open it to who adds that.
  ASSERT_EQ(Register("m", "b"), Status());
  EXPECT_THAT(lists_->TenantsOf("m"), ElementsAre("a"));
}

TEST_F(AccessTest, ListsSurviveARestartAndGoWithTheirModel) {
  ASSERT_EQ(Register("kept", "ops"), Status());
  ASSERT_EQ(Register("empty", "ops"), Status());
  ASSERT_EQ(Register("gone", "ops"), Status());
  ASSERT_EQ(Set("kept", "a", true), Status());
  ASSERT_EQ(Set("empty", "ops", false), Status());
  lists_->Removed("gone");
  journal_.RunPending();
  Restart({"kept", "empty", "gone"});
  EXPECT_THAT(problems_, ElementsAre(HasSubstr("model 'gone'")));
  EXPECT_THAT(lists_->TenantsOf("kept"), ElementsAre("a", "ops"));
  EXPECT_THAT(lists_->TenantsOf("empty"), IsEmpty());
  // As one whose daemon was killed between its two records: closed, and said so.
  EXPECT_THAT(lists_->TenantsOf("gone"), IsEmpty());
}

TEST_F(AccessTest, TheListOfAModelThatWasLostIsNotForTheNextOfItsName) {
  ASSERT_EQ(Register("m", "ops"), Status());
  ASSERT_EQ(Set("m", "a", true), Status());
  Restart({});  // Its files could not be opened again, so it was never journalled itself.
  journal_.RunPending();
  EXPECT_EQ(journal_.record_count(), 0u);
  ASSERT_EQ(Register("m", "b"), Status());
  EXPECT_THAT(lists_->TenantsOf("m"), ElementsAre("b"));
}

TEST_F(AccessTest, AChangeHoldsEvenIfItCannotBeWritten) {
  ASSERT_EQ(Register("m", "ops"), Status());
  const uint64_t next = 0;
  journal_.write_faults.FailAfter(next, Status(Code::kInternal, "the disk is full"));
  journal_.write_faults.FailAfter(next + 1, Status(Code::kInternal, "the disk is full"));
  const Status granted = Set("m", "a", true);
  EXPECT_FALSE(granted.ok());
  EXPECT_THAT(granted.message(), HasSubstr("in force until the daemon ends"));
  EXPECT_TRUE(lists_->Allows("m", "a"));
  EXPECT_FALSE(Set("m", "ops", false).ok());
  EXPECT_FALSE(lists_->Allows("m", "ops"));
  Restart({"m"});
  EXPECT_THAT(lists_->TenantsOf("m"), ElementsAre("ops"));
}

TEST_F(AccessTest, ARecordThatCannotBeReadShutsTheModel) {
  const std::string good("\1\0\0\0\1\0\0\0\3\0\0\0ops", 15);
  for (const std::string& bad :
       {std::string(), good.substr(0, 3), good.substr(0, 7), good.substr(0, 11), good.substr(0, 14),
        good + "x", "\2" + good.substr(1), std::string("\1\0\0\0\xff\xff\xff\xff", 8),
        std::string("\1\0\0\0\1\0\0\0\xff\xff\xff\xff", 12)}) {
    journal_.Put("access/m", bad, [](const Status&) {});
    Restart({"m"});
    EXPECT_THAT(problems_, ElementsAre(HasSubstr("access/m"))) << bad.size();
    EXPECT_THAT(lists_->TenantsOf("m"), IsEmpty());
  }
  journal_.Put("access/m", good, [](const Status&) {});
  Restart({"m"});
  EXPECT_THAT(lists_->TenantsOf("m"), ElementsAre("ops"));
}

TEST_F(AccessTest, ThereCanBeSoManyTenantsAndNoMore) {
  ASSERT_EQ(Register("m", "t0"), Status());
  for (size_t i = 1; i < AccessLists::kMaxTenants; ++i)
    ASSERT_EQ(Set("m", "t" + std::to_string(i), true), Status());
  EXPECT_EQ(Set("m", "more", true).code(), Code::kExhausted);
  EXPECT_EQ(Set("m", "t7", true), Status());
  Restart({"m"});
  EXPECT_EQ(lists_->TenantsOf("m").size(), AccessLists::kMaxTenants);
}

}  // namespace
}  // namespace terrace
