// Lookups: what a reader is told, what it holds then, and how it is counted.
#include "libclient/lookup.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <vector>

#include "daemon/engine/index/index_on.h"
#include "tests/heart/plain_memory.h"

namespace terrace {
namespace {

// Lets the daemon act between two steps of a reader: `between` runs after each store of a pin.
struct StepAtomics : shm::StdAtomics {
  static inline std::function<void()> between;
  static bool CompareExchange(shm::Word& word, uint64_t expected, uint64_t wanted,
                              std::memory_order order) {
    const bool stored = StdAtomics::CompareExchange(word, expected, wanted, order);
    if (!stored || !between) return stored;
    const auto act = std::exchange(between, nullptr);
    act();
    if (!between) between = act;
    return stored;
  }
};

class Lookups : public testing::Test {
 protected:
  using View = DirectoryView<StepAtomics>;

  void SetUp() override {
    index_ = *IndexOn<shm::StdAtomics>::Make(memory_);
    space_.slot = *index_->AddSpace(KeyOf(1), 3, 4096, &space_.epoch);
    space_.generation_index = 3;
    index_->AddChannel(1, channel_.span(), 64);
    pool_.emplace(channel_.channel(), 1u << 20);
    lane_.emplace(*pool_, 0);
    Fetch();
  }
  void TearDown() override { StepAtomics::between = nullptr; }

  void Fetch() { view_ = *View::Of(memory_.region(memory_.regions() - 1)); }
  Lookup<StepAtomics> Look() { return Lookup<StepAtomics>(view_, *lane_, {space_, 0}); }

  LinkedPage Page(uint64_t key, uint32_t sequence = 1) const {
    return {.name = {space_.slot, space_.epoch, 0, KeyOf(key)},
            .handle = shm::MakeHandle(1, static_cast<uint32_t>(key), sequence),
            .bytes = 100,
            .valid_tokens = 16};
  }
  void Link(uint64_t key, uint32_t sequence = 1) {
    ASSERT_TRUE(index_->Link(Page(key, sequence)).ok());
  }
  // The copy in the memory of device `place`: an arena of its own, and a life of its own.
  LinkedPage Copy(uint64_t key, uint32_t place, uint32_t sequence = 1) const {
    LinkedPage page = Page(key);
    page.name.place = place;
    page.handle = shm::MakeHandle(100 + place, static_cast<uint32_t>(key), sequence);
    page.tier = shm::Tier::kDevice;
    return page;
  }
  static uint32_t PlaceOf(const Pinned& page) {
    return page.tier == shm::Tier::kDevice ? shm::ArenaOf(page.handle) - 100 : 0;
  }
  void LinkCopy(uint64_t key, uint32_t place, uint32_t sequence = 1) {
    ASSERT_TRUE(index_->Link(Copy(key, place, sequence)).ok());
  }
  void UnlinkCopy(uint64_t key, uint32_t place, uint32_t sequence = 1) {
    const LinkedPage copy = Copy(key, place, sequence);
    ASSERT_TRUE(index_->Unlink(copy.name, copy.handle));
  }
  Lookup<StepAtomics, true> LookOn(uint32_t device) {
    return Lookup<StepAtomics, true>(view_, *lane_, {space_, 0}, device);
  }
  void Unlink(uint64_t key, uint32_t sequence = 1) {
    ASSERT_TRUE(index_->Unlink(Page(key).name, Page(key, sequence).handle));
  }
  static std::vector<Digest> Keys(uint64_t count) {
    std::vector<Digest> keys;
    for (uint64_t i = 0; i < count; ++i)
      keys.push_back(KeyOf(i));
    return keys;
  }
  uint64_t Pins() {
    uint64_t pins = 0;
    for (const auto& client : index_->ScanPins([](ClientId, std::span<const uint64_t>) {})) {
      pins += client.pins;
    }
    return pins;
  }
  uint64_t Hits() const { return index_->totals().hits[static_cast<int>(shm::Tier::kHost)]; }
  uint64_t Misses(shm::Miss reason) const {
    return index_->totals().misses[static_cast<int>(reason)];
  }
  uint64_t LookupsCounted() const { return index_->totals().lookups; }
  std::vector<TenantIndex::RingVisit> Ring() {
    std::vector<TenantIndex::RingVisit> visits;
    index_->DrainRings(10'000, [&](const auto& visit) { visits.push_back(visit); });
    return visits;
  }
  // Links until the directory has been replaced by a larger one.
  void GrowDirectory() {
    const uint64_t id = index_->directory_id();
    for (uint64_t key = 100'000; index_->directory_id() == id; ++key)
      Link(key);
  }

  PlainDirectory memory_;
  PlainChannel channel_;
  std::unique_ptr<TenantIndex> index_;
  SpaceRef space_;
  std::optional<PinPool<StepAtomics>> pool_;
  std::optional<Lane<StepAtomics>> lane_;
  View view_;
};

TEST_F(Lookups, HitIsPinnedUntilReleased) {
  Link(7);
  Pinned page;
  const LookupResult result = Look().One(KeyOf(7), &page);
  EXPECT_EQ(result.outcome, Outcome::kHit);
  EXPECT_EQ(page.handle, Page(7).handle);
  EXPECT_EQ(page.bytes, 100u);
  EXPECT_EQ(page.valid_tokens, 16u);
  EXPECT_EQ(Pins(), 1u);
  lane_->Release({&page, 1});
  EXPECT_EQ(Pins(), 0u);
  EXPECT_EQ(Hits(), 1u);
  EXPECT_EQ(LookupsCounted(), 1u);
  const auto ring = Ring();
  ASSERT_EQ(ring.size(), 1u);
  EXPECT_EQ(ring[0].kind, shm::RingKind::kTouch);
  EXPECT_EQ(ring[0].handle, page.handle);
  EXPECT_EQ(ring[0].space_slot, space_.slot);
}

TEST_F(Lookups, MissIsCountedAndTold) {
  Pinned page;
  const LookupResult result = Look().One(KeyOf(7), &page);
  EXPECT_EQ(result.outcome, Outcome::kMiss);
  EXPECT_EQ(result.reason, shm::Miss::kAbsent);
  EXPECT_EQ(page.pin, nullptr);
  EXPECT_EQ(Misses(shm::Miss::kAbsent), 1u);
  const auto ring = Ring();
  ASSERT_EQ(ring.size(), 1u);
  EXPECT_EQ(ring[0].kind, shm::RingKind::kMiss);
  EXPECT_EQ(ring[0].key[0], KeyOf(7).Word(0));
  EXPECT_EQ(ring[0].handle, 0u);
}

TEST_F(Lookups, PageThatChangesAtEveryTryIsBusy) {
  Link(7);
  uint32_t sequence = 1;
  StepAtomics::between = [&] {
    Unlink(7, sequence);
    Link(7, ++sequence);
  };
  Pinned page;
  const LookupResult result = Look().One(KeyOf(7), &page);
  EXPECT_EQ(result.outcome, Outcome::kMiss);
  EXPECT_EQ(result.reason, shm::Miss::kBusy);
  EXPECT_EQ(sequence, 1u + shm::kMaxRetries);
  EXPECT_EQ(Misses(shm::Miss::kBusy), 1u);
  EXPECT_EQ(Pins(), 0u);
  EXPECT_EQ(lane_->pins(), 0u);
}

TEST_F(Lookups, PageThatChangedOnceIsTriedAgain) {
  Link(7);
  StepAtomics::between = [&] {
    Unlink(7);
    Link(7, 2);
    StepAtomics::between = [] {};
  };
  Pinned page;
  EXPECT_EQ(Look().One(KeyOf(7), &page).outcome, Outcome::kHit);
  EXPECT_EQ(page.handle, Page(7, 2).handle);
  EXPECT_EQ(Pins(), 1u);
}

TEST_F(Lookups, PageThatGoesBetweenFindAndPinIsAMiss) {
  Link(7);
  StepAtomics::between = [&] {
    Unlink(7);
    StepAtomics::between = [] {};
  };
  Pinned page;
  EXPECT_EQ(Look().One(KeyOf(7), &page).reason, shm::Miss::kAbsent);
  EXPECT_EQ(Pins(), 0u);
}

TEST_F(Lookups, FenceBetweenPinAndConfirmationIsStale) {
  Link(7);
  StepAtomics::between = [&] { index_->SetGeneration(3, 1); };
  Pinned page;
  const LookupResult result = Look().One(KeyOf(7), &page);
  EXPECT_EQ(result.outcome, Outcome::kMiss);
  EXPECT_EQ(result.reason, shm::Miss::kStale);
  EXPECT_EQ(page.pin, nullptr);
  EXPECT_EQ(Pins(), 0u);
  EXPECT_EQ(Misses(shm::Miss::kStale), 1u);
  // With the new generation it is found again.
  StepAtomics::between = nullptr;
  space_.generation = 1;
  EXPECT_EQ(Look().One(KeyOf(7), &page).outcome, Outcome::kHit);
}

TEST_F(Lookups, RetiredSpaceIsStale) {
  Link(7);
  index_->RetireSpace(space_.slot);
  Pinned page;
  EXPECT_EQ(Look().One(KeyOf(7), &page).reason, shm::Miss::kStale);
  std::vector<Pinned> pages(1);
  EXPECT_EQ(Look().Prefix(Keys(1), pages).reason, shm::Miss::kStale);
}

TEST_F(Lookups, SupersededIsToldOnHitAndMissAndNotCounted) {
  Link(7);
  GrowDirectory();
  Pinned page;
  EXPECT_EQ(Look().One(KeyOf(7), &page).outcome, Outcome::kSuperseded);
  EXPECT_EQ(Look().One(KeyOf(8), &page).outcome, Outcome::kSuperseded);
  std::vector<Pinned> pages(10);
  EXPECT_EQ(Look().Prefix(Keys(10), pages).outcome, Outcome::kSuperseded);
  EXPECT_EQ(Look().Each(Keys(10), pages).outcome, Outcome::kSuperseded);
  for (const Pinned& each : pages)
    EXPECT_EQ(each.pin, nullptr);
  EXPECT_EQ(LookupsCounted(), 0u);
  EXPECT_EQ(Pins(), 0u);
  Fetch();
  EXPECT_EQ(Look().One(KeyOf(7), &page).outcome, Outcome::kHit);
}

TEST_F(Lookups, PrefixEndsAtTheFirstMissingPage) {
  for (const uint64_t key : {0, 1, 2, 4, 5})
    Link(key);
  std::vector<Pinned> pages(8);
  const LookupResult result = Look().Prefix(Keys(8), pages);
  EXPECT_EQ(result.outcome, Outcome::kMiss);
  EXPECT_EQ(result.reason, shm::Miss::kAbsent);
  EXPECT_EQ(result.hits, 3u);
  for (size_t i = 0; i < 8; ++i)
    EXPECT_EQ(pages[i].pin != nullptr, i < 3) << i;
  EXPECT_EQ(Pins(), 3u);
  EXPECT_EQ(LookupsCounted(), 8u);
  EXPECT_EQ(Hits(), 3u);
  EXPECT_EQ(Misses(shm::Miss::kAbsent), 1u);
  EXPECT_EQ(Misses(shm::Miss::kBeyond), 4u);
  EXPECT_EQ(Ring().size(), 4u);
}

TEST_F(Lookups, WholePrefixIsAHit) {
  for (uint64_t key = 0; key < 200; ++key)
    Link(key);
  std::vector<Pinned> pages(200);
  const LookupResult result = Look().Prefix(Keys(200), pages);
  EXPECT_EQ(result.outcome, Outcome::kHit);
  EXPECT_EQ(result.hits, 200u);
  for (uint64_t key = 0; key < 200; ++key)
    EXPECT_EQ(pages[key].handle, Page(key).handle);
  lane_->Release(pages);
  EXPECT_EQ(Pins(), 0u);
}

TEST_F(Lookups, EmptyPrefixIsAHitOfNothing) {
  EXPECT_EQ(Look().Prefix({}, {}).outcome, Outcome::kHit);
  EXPECT_EQ(LookupsCounted(), 0u);
}

TEST_F(Lookups, SetToleratesHoles) {
  for (const uint64_t key : {1, 2, 5})
    Link(key);
  std::vector<Pinned> pages(7);
  const LookupResult result = Look().Each(Keys(7), pages);
  EXPECT_EQ(result.outcome, Outcome::kMiss);
  EXPECT_EQ(result.hits, 3u);
  for (const size_t i : {1, 2, 5})
    EXPECT_NE(pages[i].pin, nullptr) << i;
  for (const size_t i : {0, 3, 4, 6})
    EXPECT_EQ(pages[i].pin, nullptr) << i;
  EXPECT_EQ(Misses(shm::Miss::kAbsent), 4u);
  EXPECT_EQ(Misses(shm::Miss::kBeyond), 0u);
  EXPECT_EQ(LookupsCounted(), 7u);
  lane_->Release(pages);
  EXPECT_EQ(Pins(), 0u);
  EXPECT_EQ(lane_->pins(), 0u);
}

TEST_F(Lookups, HitsAreCountedByTheTierOfEachPage) {
  for (uint64_t key = 0; key < 6; ++key) {
    LinkedPage page = Page(key);
    page.tier = key < 2 ? shm::Tier::kDevice : shm::Tier::kRemote;
    ASSERT_TRUE(index_->Link(page).ok());
  }
  // What the caller's room holds before must not matter.
  std::vector<Pinned> pages(6, Pinned{.handle = UINT64_MAX, .tier = static_cast<shm::Tier>(77)});
  EXPECT_EQ(Look().Prefix(Keys(6), pages).hits, 6u);
  EXPECT_EQ(Look().One(KeyOf(0), pages.data()).hits, 1u);
  const ChannelTotals totals = index_->totals();
  EXPECT_THAT(totals.hits, testing::ElementsAre(3, 0, 0, 4));
  EXPECT_EQ(totals.lookups, 7u);
}

TEST_F(Lookups, PrefixAcrossAFenceIsAllOrNothing) {
  for (uint64_t key = 0; key < 5; ++key)
    Link(key);
  int pins = 0;
  StepAtomics::between = [&] {
    if (++pins == 3) index_->SetGeneration(3, 1);
  };
  std::vector<Pinned> pages(8);
  const LookupResult result = Look().Prefix(Keys(8), pages);
  EXPECT_EQ(result.reason, shm::Miss::kStale);
  EXPECT_EQ(result.hits, 0u);
  for (const Pinned& page : pages)
    EXPECT_EQ(page.pin, nullptr);
  EXPECT_EQ(Pins(), 0u);
  EXPECT_EQ(lane_->pins(), 0u);
  EXPECT_EQ(Misses(shm::Miss::kStale), 1u);
  EXPECT_EQ(Misses(shm::Miss::kBeyond), 7u);
  EXPECT_EQ(Hits(), 0u);
}

TEST_F(Lookups, PrefixAcrossAGrowthIsAllOrNothing) {
  for (uint64_t key = 0; key < 5; ++key)
    Link(key);
  StepAtomics::between = [&] {
    GrowDirectory();
    StepAtomics::between = [] {};
  };
  std::vector<Pinned> pages(5);
  EXPECT_EQ(Look().Prefix(Keys(5), pages).outcome, Outcome::kSuperseded);
  EXPECT_EQ(Pins(), 0u);
  Fetch();
  EXPECT_EQ(Look().Prefix(Keys(5), pages).outcome, Outcome::kHit);
}

TEST_F(Lookups, BudgetEndsAPrefixAndKeepsWhatIsPinned) {
  for (uint64_t key = 0; key < 600; ++key)
    Link(key);
  Fetch();  // The directory may have grown.
  std::vector<Pinned> pages(600);
  const LookupResult result = Look().Prefix(Keys(600), pages);
  EXPECT_EQ(result.reason, shm::Miss::kBudget);
  EXPECT_EQ(result.hits, 512u);  // 64 lines of eight.
  EXPECT_EQ(Misses(shm::Miss::kBudget), 1u);
  EXPECT_EQ(Misses(shm::Miss::kBeyond), 87u);
  Pinned page;
  EXPECT_EQ(Look().One(KeyOf(1), &page).reason, shm::Miss::kBudget);
  lane_->Release(pages);
  EXPECT_EQ(Look().One(KeyOf(1), &page).outcome, Outcome::kHit);
}

// ---- Places

TEST_F(Lookups, CopyOnTheDeviceIsPreferred) {
  Link(7);
  LinkCopy(7, 2);
  Pinned page;
  EXPECT_EQ(LookOn(2).One(KeyOf(7), &page).outcome, Outcome::kHit);
  EXPECT_EQ(page.handle, Copy(7, 2).handle);
  EXPECT_EQ(PlaceOf(page), 2u);
  lane_->Release({&page, 1});
  EXPECT_THAT(index_->totals().hits, testing::ElementsAre(1, 0, 0, 0));
  EXPECT_EQ(LookupsCounted(), 1u);
}

TEST_F(Lookups, PageThatIsNotOnTheDeviceIsTakenFromHostMemory) {
  Link(7);
  LinkCopy(7, 1);
  Pinned page;
  EXPECT_EQ(LookOn(2).One(KeyOf(7), &page).outcome, Outcome::kHit);
  EXPECT_EQ(page.handle, Page(7).handle);
  EXPECT_EQ(PlaceOf(page), 0u);
  EXPECT_EQ(Hits(), 1u);
}

TEST_F(Lookups, WithoutADeviceMemoryOfDevicesIsNotMet) {
  LinkCopy(7, 1);
  Pinned page;
  EXPECT_EQ(Look().One(KeyOf(7), &page).reason, shm::Miss::kAbsent);
  Link(7);
  EXPECT_EQ(Look().One(KeyOf(7), &page).outcome, Outcome::kHit);
  EXPECT_EQ(page.handle, Page(7).handle);
}

TEST_F(Lookups, EvictionOfOneCopyLeavesTheOther) {
  Link(7);
  LinkCopy(7, 1);
  UnlinkCopy(7, 1);
  Pinned page;
  EXPECT_EQ(LookOn(1).One(KeyOf(7), &page).outcome, Outcome::kHit);
  EXPECT_EQ(PlaceOf(page), 0u);
  lane_->Release({&page, 1});
  LinkCopy(7, 1, 2);
  Unlink(7);
  EXPECT_EQ(LookOn(1).One(KeyOf(7), &page).outcome, Outcome::kHit);
  EXPECT_EQ(page.handle, Copy(7, 1, 2).handle);
  lane_->Release({&page, 1});
  UnlinkCopy(7, 1, 2);
  EXPECT_EQ(LookOn(1).One(KeyOf(7), &page).reason, shm::Miss::kAbsent);
  EXPECT_EQ(Pins(), 0u);
}

TEST_F(Lookups, CopyThatGoesBetweenFindAndPinFallsBackToHostMemory) {
  Link(7);
  LinkCopy(7, 1);
  StepAtomics::between = [&] {
    UnlinkCopy(7, 1);
    StepAtomics::between = [] {};
  };
  Pinned page;
  EXPECT_EQ(LookOn(1).One(KeyOf(7), &page).outcome, Outcome::kHit);
  EXPECT_EQ(page.handle, Page(7).handle);
  EXPECT_EQ(Pins(), 1u) << "the pin of the copy that went is taken back";
  EXPECT_EQ(LookupsCounted(), 1u);
}

TEST_F(Lookups, CopyThatChangesAtEveryTryFallsBackToHostMemory) {
  Link(7);
  LinkCopy(7, 1);
  uint32_t sequence = 1;
  StepAtomics::between = [&] {
    if (sequence > shm::kMaxRetries) return;
    UnlinkCopy(7, 1, sequence);
    LinkCopy(7, 1, ++sequence);
  };
  Pinned page;
  EXPECT_EQ(LookOn(1).One(KeyOf(7), &page).outcome, Outcome::kHit);
  EXPECT_EQ(PlaceOf(page), 0u);
  EXPECT_EQ(sequence, 1u + shm::kMaxRetries);
  EXPECT_EQ(Pins(), 1u);
}

TEST_F(Lookups, PrefixIsMadeOfBothPlaces) {
  for (const uint64_t key : {0, 1, 4})
    Link(key);
  for (const uint64_t key : {1, 2, 3, 4})
    LinkCopy(key, 3);
  std::vector<Pinned> pages(6);
  const LookupResult result = LookOn(3).Prefix(Keys(6), pages);
  EXPECT_EQ(result.hits, 5u);
  EXPECT_EQ(result.reason, shm::Miss::kAbsent);
  const uint32_t places[] = {0, 3, 3, 3, 3};
  for (size_t i = 0; i < 5; ++i)
    EXPECT_EQ(PlaceOf(pages[i]), places[i]) << i;
  EXPECT_THAT(index_->totals().hits, testing::ElementsAre(4, 1, 0, 0));
  lane_->Release(pages);
  EXPECT_EQ(Look().Prefix(Keys(6), pages).hits, 2u) << "of host memory alone";
  lane_->Release(pages);
  EXPECT_EQ(LookOn(3).Each(Keys(6), pages).hits, 5u);
  lane_->Release(pages);
  EXPECT_EQ(Pins(), 0u);
}

TEST_F(Lookups, FenceIsOneForAllPlaces) {
  Link(7);
  LinkCopy(7, 1);
  StepAtomics::between = [&] { index_->SetGeneration(3, 1); };
  Pinned page;
  EXPECT_EQ(LookOn(1).One(KeyOf(7), &page).reason, shm::Miss::kStale);
  EXPECT_EQ(page.pin, nullptr);
  EXPECT_EQ(Pins(), 0u);
}

TEST_F(Lookups, BudgetIsNotLookedForInAnotherPlace) {
  for (uint64_t key = 0; key < 600; ++key) {
    Link(key);
    LinkCopy(key, 1);
  }
  Fetch();  // The directory may have grown.
  std::vector<Pinned> pages(600);
  const LookupResult result = LookOn(1).Prefix(Keys(600), pages);
  EXPECT_EQ(result.reason, shm::Miss::kBudget);
  EXPECT_EQ(result.hits, 512u);
  EXPECT_THAT(index_->totals().hits, testing::ElementsAre(512, 0, 0, 0));
}

}  // namespace
}  // namespace terrace
