// The catalogue of the store by itself: spaces that are too many, the search for pages of those
// that are served no more, places that are wanted.
#include "daemon/engine/store/stored.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "base/check.h"
#include "tests/engine/engine_world.h"

namespace terrace {
namespace {

constexpr uint32_t kPage = 4096;
constexpr Stored::Watermarks kNeverFull = {.high_bytes = UINT64_MAX, .low_bytes = UINT64_MAX};

class StoredTest : public testing::Test, private StoredWaiter {
 protected:
  StoredTest() : stored_(store_, journal_, clock_) { stored_.SetWaiter(this); }
  ~StoredTest() override { EXPECT_EQ(stored_.CheckInvariants(), Status()); }

  static SpaceSpec Spec() {
    SpaceSpec spec;
    spec.layout = LayoutOf(kPage);
    return spec;
  }
  static Digest SpaceId(uint64_t number) { return KeyOf(1'000'000 + number); }
  // Of a space of that tenant, durably; false: there is no room for the space.
  bool Put(const std::string& tenant, uint64_t space, uint64_t key) {
    const std::optional<SpaceNo> number = stored_.AddSpace(SpaceId(space), tenant, Spec());
    if (!number) return false;
    if (stored_.Prepare(*number) == Stored::Readiness::kWait) journal_.RunPending();
    const ItemId id = stored_.BeginWrite(
        *number,
        {.name = {.space = SpaceId(space), .key = KeyOf(key)}, .bytes = kPage, .parent = {}});
    const std::vector<PlaceId> places = store_.Allocate(kPage, 1);
    TERRACE_CHECK(!places.empty());
    stored_.SetPlace(id, places[0]);
    store_.Write(
        {{.page = stored_.PageOf(id), .bytes = bytes_}}, 0,
        [this, id](size_t, const Result<uint64_t>& serial) { stored_.Written(id, *serial); },
        [](size_t) {});
    store_.RunPending();
    return true;
  }
  void Turn() { more_ = stored_.Turn(kNeverFull); }
  void Settle() {
    do
      Turn();
    while (store_.RunPending() > 0);
    journal_.RunPending();
  }

  SimPageStore store_;
  SimJournal journal_;
  ManualClock clock_;
  Stored stored_;
  bool more_ = false;  // Of the last turn.
  std::vector<uint32_t> places_made_;

 private:
  void RecordAnswered(SpaceNo) override {}
  void PageGone(ItemId) override {}
  void PlacesMade(uint32_t page_bytes) override { places_made_.push_back(page_bytes); }
  void GoOn() override {}

  const std::vector<uint8_t> bytes_ = std::vector<uint8_t>(kPage);
};

TEST_F(StoredTest, OfATenantWithTooManySpacesTheOneLeavesThatWasUsedLeastLately) {
  for (uint64_t space = 0; space < Stored::kMaxSpacesOfTenant; ++space)
    ASSERT_TRUE(Put("many", space, space));
  stored_.Touch(stored_.Find(SpaceId(0), 0, KeyOf(0)));
  EXPECT_FALSE(Put("many", 5000, 5000));
  EXPECT_TRUE(Put("few", 6000, 6000)) << "it is nobody else's matter";
  Settle();
  EXPECT_TRUE(Put("many", 5000, 5000));
  EXPECT_NE(stored_.Find(SpaceId(0), 0, KeyOf(0)), kNoRecord);
  EXPECT_EQ(stored_.FindSpace(SpaceId(1)), nullptr);
  EXPECT_NE(stored_.FindSpace(SpaceId(2)), nullptr) << "one has left and no other";
}

TEST_F(StoredTest, ASpaceWithoutPagesGivesWayAtOnce) {
  for (uint64_t space = 0; space < Stored::kMaxSpacesOfTenant; ++space)
    ASSERT_TRUE(stored_.AddSpace(SpaceId(space), "many", Spec()).has_value());
  EXPECT_TRUE(Put("many", 5000, 5000));
  EXPECT_EQ(stored_.spaces(), Stored::kMaxSpacesOfTenant);
}

TEST_F(StoredTest, PagesOfADoomedSpaceAreLookedForOnceAround) {
  constexpr uint64_t kPages = 10'000;
  for (uint64_t key = 0; key < kPages; ++key)
    ASSERT_TRUE(Put("t", key % 100 == 99 ? 1 : 0, key));
  stored_.DoomSpace(SpaceId(1));
  int turns = 0;
  do {
    Turn();
    ++turns;
  } while (more_);
  EXPECT_EQ(turns, 3) << "4096 records a turn";
  store_.RunPending();
  EXPECT_EQ(stored_.pages(), kPages - 100);
  EXPECT_EQ(stored_.FindSpace(SpaceId(1)), nullptr);
  Turn();
  EXPECT_FALSE(more_);
}

TEST_F(StoredTest, PlacesAreMadeOnceForThoseWhoAskAgain) {
  for (uint64_t key = 0; key < 8; ++key)
    ASSERT_TRUE(Put("t", 0, key));
  stored_.WantPlaces(kPage, 2);
  Turn();
  EXPECT_EQ(stored_.erasing(), 2u);
  stored_.WantPlaces(kPage, 2);
  Turn();
  EXPECT_EQ(stored_.erasing(), 2u) << "two are leaving already";
  stored_.WantPlaces(kPage, 3);
  Turn();
  EXPECT_EQ(stored_.erasing(), 3u);
  EXPECT_TRUE(places_made_.empty());
  store_.RunPending();
  EXPECT_EQ(places_made_, (std::vector<uint32_t>{kPage, kPage})) << "once a call of the store";
  EXPECT_EQ(stored_.pages(), 5u);
}

TEST_F(StoredTest, WhereAPlaceWasFoundNoneIsMade) {
  for (uint64_t key = 0; key < 4; ++key)
    ASSERT_TRUE(Put("t", 0, key));
  stored_.WantPlaces(kPage, 2);
  stored_.FoundPlaces(kPage);
  Turn();
  EXPECT_EQ(stored_.erasing(), 0u);
}

TEST_F(StoredTest, OfAnotherSizeNothingLeaves) {
  ASSERT_TRUE(Put("t", 0, 0));
  stored_.WantPlaces(2 * kPage, 1);
  Turn();
  EXPECT_EQ(stored_.erasing(), 0u);
}

}  // namespace
}  // namespace terrace
