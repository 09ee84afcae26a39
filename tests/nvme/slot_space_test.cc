// Places: runs of neighbours, every slot given once, and books that add up whatever is asked for.
#include "tiers/nvme/slot_space.h"

#include <gtest/gtest.h>

#include <map>
#include <set>

#include "base/random.h"

namespace terrace::nvme {
namespace {

constexpr uint64_t kSlot = 8192;

TEST(SlotSpace, GivesNeighboursInTheirOrder) {
  SlotSpace space(3, 16u << 20);
  FileChanges changes;
  const auto places = space.Allocate(kSlot, 100, changes);
  ASSERT_EQ(places.size(), 100U);
  for (size_t i = 0; i < places.size(); ++i)
    EXPECT_EQ(FromPlaceId(places[i]), (Place{3, 1, static_cast<uint32_t>(i)}));
  EXPECT_EQ(changes.make.size(), 1U);
}

TEST(SlotSpace, PrefersARunToTheFirstHole) {
  SlotSpace space(0, 16u << 20);
  FileChanges changes;
  const auto places = space.Allocate(kSlot, 100, changes);
  space.Free(Place{0, 1, 10}, 1);
  for (uint32_t slot = 40; slot < 60; ++slot)
    space.Free(Place{0, 1, slot}, 1);
  const auto run = space.Allocate(kSlot, 20, changes);
  ASSERT_EQ(run.size(), 20U);
  EXPECT_EQ(FromPlaceId(run[0]).slot, 40U);
  EXPECT_EQ(FromPlaceId(run[19]).slot, 59U);
  EXPECT_EQ(FromPlaceId(space.Allocate(kSlot, 1, changes)[0]).slot, 10U);
}

TEST(SlotSpace, GivesHolesWhenThereIsNothingElse) {
  SlotSpace space(0, 1u << 20);
  FileChanges changes;
  auto places = space.Allocate(kSlot, 1000, changes);
  EXPECT_EQ(places.size(), (1u << 20) / kSlot);
  for (size_t i = 0; i < places.size(); i += 2)
    space.Free(FromPlaceId(places[i]), 1);
  EXPECT_EQ(space.Allocate(kSlot, 1000, changes).size(), places.size() / 2);
  EXPECT_TRUE(space.Allocate(kSlot, 1, changes).empty());
  EXPECT_EQ(space.free_bytes(), 0U);
}

TEST(SlotSpace, AFileThatIsHeldOrClosedIsTreatedSo) {
  SlotSpace space(0, 1u << 20);
  FileChanges changes;
  const Place place = FromPlaceId(space.Allocate(kSlot, 1, changes)[0]);
  space.Hold(place.file);
  space.Free(place, 1);
  changes = {};
  space.RemoveEmpty(100, changes);
  EXPECT_TRUE(changes.remove.empty());
  space.Unhold(place.file);
  space.Close(place.file);
  EXPECT_NE(FromPlaceId(space.Allocate(kSlot, 1, changes)[0]).file, place.file);
  space.RemoveEmpty(0, changes);
  EXPECT_EQ(changes.remove, std::vector<uint32_t>{place.file});
}

TEST(SlotSpace, TheBooksAddUpWhateverIsAskedFor) {
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    Random random(seed);
    SlotSpace space(0, 4u << 20);
    std::map<PlaceId, uint64_t> taken;
    std::map<uint32_t, uint64_t> files;
    for (int step = 0; step < 3000; ++step) {
      FileChanges changes;
      if (random.Chance(1, 2) || taken.empty()) {
        const uint64_t slot = kHeaderBytes * (2 + random.Below(6));
        for (const PlaceId place : space.Allocate(slot, 1 + random.Below(40), changes))
          ASSERT_TRUE(taken.emplace(place, slot).second);
      } else if (random.Chance(1, 20)) {
        space.RemoveEmpty(step, changes);
      } else {
        for (uint64_t n = random.Below(60); n > 0 && !taken.empty(); --n) {
          auto at = taken.lower_bound(random() >> 20);
          if (at == taken.end()) at = taken.begin();
          space.Free(FromPlaceId(at->first), step);
          taken.erase(at);
        }
      }
      for (const uint32_t file : changes.remove)
        ASSERT_EQ(files.erase(file), 1U);
      for (const SlotFileName& name : changes.make)
        ASSERT_TRUE(files.emplace(name.number, name.bytes()).second);
      uint64_t file_bytes = 0;
      for (const auto& [number, bytes] : files)
        file_bytes += bytes;
      uint64_t allocated = 0;
      for (const auto& [place, slot] : taken) {
        ASSERT_TRUE(files.contains(FromPlaceId(place).file));
        allocated += slot;
      }
      ASSERT_EQ(space.file_bytes(), file_bytes);
      ASSERT_EQ(space.allocated_bytes(), allocated);
      ASSERT_LE(file_bytes, space.capacity_bytes());
    }
  }
}

}  // namespace
}  // namespace terrace::nvme
