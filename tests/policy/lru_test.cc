#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <list>
#include <memory>
#include <vector>

#include "base/random.h"
#include "daemon/policy/policy.h"

namespace terrace {
namespace {

using ::testing::ElementsAre;
using Verdict = Policy::Verdict;

class LruTest : public ::testing::Test {
 protected:
  void Insert(std::initializer_list<ItemId> items) {
    for (const ItemId item : items)
      lru_->Insert(item, {}, 0);
  }
  // The items offered, in their order, each answered with `verdict`.
  std::vector<ItemId> Offered(uint64_t limit, Verdict verdict) {
    std::vector<ItemId> offered;
    lru_->Victims(limit, 0, [&](ItemId item) {
      offered.push_back(item);
      return verdict;
    });
    return offered;
  }

  const std::unique_ptr<Policy> lru_ = MakeLru();
};

TEST_F(LruTest, OldestIsOfferedFirst) {
  Insert({5, 0, 900});
  EXPECT_THAT(Offered(100, Verdict::kTake), ElementsAre(5, 0, 900));
}

TEST_F(LruTest, WhatNobodyAskedForIsTheOldestUntilItIsTouched) {
  lru_->Insert(7, {.asked_for = false}, 0);
  Insert({1, 2});
  lru_->Insert(8, {.asked_for = false}, 0);
  EXPECT_THAT(Offered(100, Verdict::kSkip), ElementsAre(8, 7, 1, 2));
  lru_->Touch(7, 0);
  EXPECT_THAT(Offered(100, Verdict::kSkip), ElementsAre(8, 1, 2, 7));
  lru_->Erase(8);
  EXPECT_THAT(Offered(100, Verdict::kSkip), ElementsAre(1, 2, 7));
}

TEST_F(LruTest, TouchMakesAnItemTheNewest) {
  Insert({1, 2, 3});
  lru_->Touch(1, 0);
  EXPECT_THAT(Offered(100, Verdict::kSkip), ElementsAre(2, 3, 1));
  lru_->Touch(1, 0);  // Already the newest.
  lru_->Touch(3, 0);  // From the middle.
  EXPECT_THAT(Offered(100, Verdict::kSkip), ElementsAre(2, 1, 3));
}

TEST_F(LruTest, ErasedItemIsNotOfferedAndItsNumberCanComeBack) {
  Insert({1, 2, 3});
  lru_->Erase(2);
  EXPECT_THAT(Offered(100, Verdict::kSkip), ElementsAre(1, 3));
  lru_->Erase(1);
  lru_->Erase(3);
  EXPECT_THAT(Offered(100, Verdict::kSkip), ElementsAre());
  Insert({2});
  EXPECT_THAT(Offered(100, Verdict::kSkip), ElementsAre(2));
}

TEST_F(LruTest, WalkEndsAtItsLimitAndAtStop) {
  Insert({1, 2, 3});
  EXPECT_THAT(Offered(2, Verdict::kSkip), ElementsAre(1, 2));
  EXPECT_THAT(Offered(0, Verdict::kSkip), ElementsAre());
  EXPECT_THAT(Offered(100, Verdict::kStop), ElementsAre(1));
}

TEST_F(LruTest, ItemInUseCountsAsTouchedAndIsOfferedOnce) {
  Insert({1, 2, 3});
  EXPECT_THAT(Offered(100, Verdict::kInUse), ElementsAre(1, 2, 3));
  std::vector<ItemId> offered;
  lru_->Victims(100, 0, [&](ItemId item) {
    offered.push_back(item);
    return item == 1 ? Verdict::kInUse : Verdict::kSkip;
  });
  EXPECT_THAT(offered, ElementsAre(1, 2, 3));
  EXPECT_THAT(Offered(100, Verdict::kSkip), ElementsAre(2, 3, 1));
}

TEST_F(LruTest, AgreesWithASimpleListOverRandomUse) {
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    SCOPED_TRACE(seed);
    Random random(seed);
    const std::unique_ptr<Policy> lru = MakeLru();
    std::list<ItemId> model;  // Oldest first.
    for (int step = 0; step < 2000; ++step) {
      const auto item = static_cast<ItemId>(random.Below(64));
      const auto known = std::find(model.begin(), model.end(), item);
      if (known == model.end()) {
        lru->Insert(item, {}, step);
        model.push_back(item);
      } else if (random.Chance(1, 3)) {
        lru->Erase(item);
        model.erase(known);
      } else {
        lru->Touch(item, step);
        model.splice(model.end(), model, known);
      }
    }
    std::vector<ItemId> offered;
    lru->Victims(UINT64_MAX, 0, [&](ItemId item) {
      offered.push_back(item);
      return Verdict::kSkip;
    });
    EXPECT_EQ(offered, std::vector<ItemId>(model.begin(), model.end()));
  }
}

}  // namespace
}  // namespace terrace
