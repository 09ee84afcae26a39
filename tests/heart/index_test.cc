// TenantIndex: what the daemon links can be found, by itself and by readers, through growth.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

#include "base/random.h"
#include "libclient/directory_view.h"
#include "tests/heart/plain_memory.h"

namespace terrace {
namespace {

using View = DirectoryView<>;

class Index : public testing::Test {
 protected:
  void SetUp() override {
    auto index = MakeTenantIndex(memory_);
    ASSERT_TRUE(index.has_value()) << index.status().ToString();
    index_ = *std::move(index);
    slot_ = OpenSpace(1);
  }

  uint32_t OpenSpace(uint64_t id) {
    auto slot = index_->AddSpace(KeyOf(id), 0, 4096, &epoch_);
    EXPECT_TRUE(slot.has_value()) << slot.status().ToString();
    return *slot;
  }
  PageName Name(uint64_t key, uint32_t part = 0) const { return {slot_, epoch_, part, KeyOf(key)}; }
  LinkedPage Page(uint64_t key, uint32_t sequence = 1) const {
    return {.name = Name(key),
            .handle = shm::MakeHandle(1, static_cast<uint32_t>(key % shm::kMaxSlots), sequence),
            .bytes = 4096,
            .valid_tokens = 16};
  }
  // The directory as a client that fetched it just now sees it.
  View Newest() const {
    auto view = View::Of(memory_.region(memory_.regions() - 1));
    // While a table is being filled it is the last region, and not handed out yet.
    for (size_t i = memory_.regions(); view && (*view).id() != index_->directory_id(); --i) {
      view = View::Of(memory_.region(i - 1));
    }
    EXPECT_TRUE(view.has_value());
    return *view;
  }
  SpaceRef Space() const { return {slot_, epoch_, 0, 0}; }
  shm::Handle Seen(const View& view, const PageName& name) const {
    return view.Find(view.Home(Space(), name.part, name.key), Space(), name.part, name.key).handle;
  }
  shm::Handle SeenByReader(const PageName& name) const { return Seen(Newest(), name); }

  PlainDirectory memory_;
  std::unique_ptr<TenantIndex> index_;
  uint32_t slot_ = 0;
  uint32_t epoch_ = 0;
};

TEST_F(Index, LinkedPageIsFoundWithAllItsFields) {
  LinkedPage page = Page(7);
  page.name.part = 0x0203;
  page.tier = shm::Tier::kDevice;
  ASSERT_TRUE(index_->Link(page).ok());
  const auto found = index_->Find(page.name);
  ASSERT_TRUE(found);
  EXPECT_EQ(found->name, page.name);
  EXPECT_EQ(found->handle, page.handle);
  EXPECT_EQ(found->bytes, 4096u);
  EXPECT_EQ(found->valid_tokens, 16u);
  EXPECT_EQ(found->tier, shm::Tier::kDevice);
  const auto match =
      Newest().Find(Newest().Home(Space(), 0x0203, KeyOf(7)), Space(), 0x0203, KeyOf(7));
  EXPECT_EQ(match.handle, page.handle);
  EXPECT_EQ(match.bytes, 4096u);
  EXPECT_EQ(shm::TokensOf(match.tokens), 16u);
  EXPECT_EQ(shm::TierOf(match.tokens), shm::Tier::kDevice);
}

TEST_F(Index, NameIsTheWholeName) {
  ASSERT_TRUE(index_->Link(Page(7)).ok());
  EXPECT_FALSE(index_->Find(Name(8)));
  EXPECT_FALSE(index_->Find(Name(7, /*part=*/1)));
  PageName other = Name(7);
  other.key.bytes[31] ^= 1;  // The last byte tells keys apart, too.
  EXPECT_FALSE(index_->Find(other));
  EXPECT_EQ(SeenByReader(other), 0u);
  other = Name(7);
  other.space_epoch += 1;
  EXPECT_FALSE(index_->Find(other));
}

TEST_F(Index, KeyIsLinkedOnce) {
  ASSERT_TRUE(index_->Link(Page(7)).ok());
  EXPECT_EQ(index_->Link(Page(7, 2)).code(), Code::kAlreadyExists);
  EXPECT_EQ(index_->linked(), 1u);
  EXPECT_EQ(SeenByReader(Name(7)), Page(7).handle);
}

TEST_F(Index, UnlinkNeedsTheHandleThatIsLinked) {
  ASSERT_TRUE(index_->Link(Page(7)).ok());
  EXPECT_FALSE(index_->Unlink(Name(7), Page(7, 2).handle));
  EXPECT_FALSE(index_->Unlink(Name(8), Page(7).handle));
  EXPECT_EQ(SeenByReader(Name(7)), Page(7).handle);
  EXPECT_TRUE(index_->Unlink(Name(7), Page(7).handle));
  EXPECT_EQ(SeenByReader(Name(7)), 0u);
  EXPECT_FALSE(index_->Unlink(Name(7), Page(7).handle));
  EXPECT_EQ(index_->linked(), 0u);
  EXPECT_EQ(index_->linked_in_space(slot_), 0u);
}

// Keys whose home line is the same.
std::vector<uint64_t> SameHome(uint64_t space_word, size_t count) {
  std::vector<uint64_t> keys;
  for (uint64_t number = 0; keys.size() < count; ++number) {
    if (shm::HomeLine(KeyOf(number).Word(0), space_word, 0, shm::kMinCapacity) == 1000) {
      keys.push_back(number);
    }
  }
  return keys;
}

TEST_F(Index, FullProbeSequenceIsRefusedAndNothingIsLost) {
  // Around the end of the table, too: line 1000 of 1024.
  const auto keys = SameHome(Space().word(), shm::kMaxProbe + 1);
  for (size_t i = 0; i < shm::kMaxProbe; ++i)
    ASSERT_TRUE(index_->Link(Page(keys[i])).ok()) << i;
  const Status status = index_->Link(Page(keys.back()));
  EXPECT_EQ(status.code(), Code::kExhausted);
  for (size_t i = 0; i < shm::kMaxProbe; ++i)
    EXPECT_NE(SeenByReader(Name(keys[i])), 0u) << i;
  // A place that becomes free is taken again.
  ASSERT_TRUE(index_->Unlink(Name(keys[5]), Page(keys[5]).handle));
  EXPECT_TRUE(index_->Link(Page(keys.back())).ok());
  EXPECT_NE(SeenByReader(Name(keys.back())), 0u);
}

TEST_F(Index, SearchEndsWhereNoPageWentOver) {
  const auto keys = SameHome(Space().word(), 100);
  for (const uint64_t key : keys)
    ASSERT_TRUE(index_->Link(Page(key)).ok());
  for (const uint64_t key : keys)
    ASSERT_TRUE(index_->Unlink(Name(key), Page(key).handle));
  // All `passed` counts are taken back: otherwise misses would grow slower over time.
  const auto* entries =
      reinterpret_cast<const shm::Entry*>(memory_.region(0).data() + shm::kEntriesOffset);
  for (uint64_t line = 0; line < shm::kMinCapacity; ++line) {
    ASSERT_EQ(shm::HighOf(entries[line].tokens_passed.load()), 0u) << line;
  }
}

TEST_F(Index, GrowthKeepsEveryPageInReachAtEveryStep) {
  Random random(1);
  std::set<uint64_t> linked;
  View view = Newest();
  uint64_t next_key = 0;
  while (index_->capacity() < 16 * shm::kMinCapacity) {
    // Two links to one unlink, so that both meet every state of a growth.
    for (int i = 0; i < 2; ++i, ++next_key) {
      ASSERT_TRUE(index_->Link(Page(next_key)).ok());
      linked.insert(next_key);
    }
    auto victim = linked.lower_bound(random.Below(next_key));
    if (victim == linked.end()) victim = linked.begin();
    ASSERT_TRUE(index_->Unlink(Name(*victim), Page(*victim).handle));
    linked.erase(victim);
    if (view.id() != index_->directory_id()) {
      EXPECT_EQ(view.StandingOf(Space()), Standing::kSuperseded);
      view = Newest();
      for (uint64_t key = 0; key < next_key; ++key) {
        ASSERT_EQ(Seen(view, Name(key)), linked.contains(key) ? Page(key).handle : 0u);
      }
    }
    EXPECT_EQ(view.StandingOf(Space()), Standing::kCurrent);
    ASSERT_EQ(Seen(view, Name(next_key - 1)) != 0, linked.contains(next_key - 1));
    ASSERT_EQ(index_->linked(), linked.size());
  }
  EXPECT_EQ(index_->directory_id(), 5u);
  std::set<uint64_t> visited;
  index_->Visit(std::nullopt, [&](const LinkedPage& page) {
    visited.insert(shm::SlotOf(page.handle));
    return true;
  });
  EXPECT_EQ(visited.size(), linked.size());
  // What is superseded is given back; clients may still map it.
  EXPECT_EQ(memory_.live, 1);
}

TEST_F(Index, GrowthTakesAFewEntriesOfALink) {
  // The table of 16,384 lines is copied in steps: no single link does it all.
  uint64_t key = 0;
  while (index_->capacity() < 16 * shm::kMinCapacity)
    ASSERT_TRUE(index_->Link(Page(key++)).ok());
  const size_t regions = memory_.regions();
  while (memory_.regions() == regions)
    ASSERT_TRUE(index_->Link(Page(key++)).ok());
  int links = 0;
  for (; index_->capacity() == 16 * shm::kMinCapacity; ++links) {
    ASSERT_TRUE(index_->Link(Page(key++)).ok());
  }
  EXPECT_GE(links, 8 * 16 * 1024 / 256);
  EXPECT_GT(memory_.populated, 0);
}

TEST_F(Index, GrowthWithoutMemoryIsTriedAgainAndRefusesInTime) {
  memory_.refuse = true;
  uint64_t key = 0;
  Status status;
  for (; key < shm::kMinCapacity; ++key) {
    status = index_->Link(Page(key));
    if (!status.ok()) break;
  }
  EXPECT_EQ(status.code(), Code::kExhausted);
  EXPECT_GE(key, shm::kMinCapacity / 2);  // It goes on past the load at which it would grow.
  for (uint64_t i = 0; i < key; ++i)
    ASSERT_EQ(SeenByReader(Name(i)), Page(i).handle);
  memory_.refuse = false;
  // Places become free by eviction; the next links carry a growth to its end.
  for (uint64_t i = 0; i < 100; ++i)
    ASSERT_TRUE(index_->Unlink(Name(i), Page(i).handle));
  for (uint64_t i = 0; i < 100; ++i)
    ASSERT_TRUE(index_->Link(Page(i, 2)).ok()) << i;
  EXPECT_EQ(index_->capacity(), 2 * shm::kMinCapacity);
  for (uint64_t i = 0; i < key; ++i) {
    ASSERT_EQ(SeenByReader(Name(i)), Page(i, i < 100 ? 2 : 1).handle);
  }
}

TEST_F(Index, SpaceSlotComesBackWithANewEpochAfterItsLastPage) {
  ASSERT_TRUE(index_->Link(Page(7)).ok());
  const PageName old = Name(7);
  const SpaceRef old_space = Space();
  const uint32_t old_epoch = epoch_;
  index_->RetireSpace(slot_);
  // Readers see it at once, before anything is unlinked.
  EXPECT_EQ(Newest().StandingOf(old_space), Standing::kStale);
  EXPECT_EQ(index_->Link(Page(8)).code(), Code::kStale);
  EXPECT_NE(OpenSpace(2), old.space_slot);
  ASSERT_TRUE(index_->Unlink(old, Page(7).handle));
  EXPECT_EQ(OpenSpace(3), old.space_slot);
  EXPECT_GT(epoch_, old_epoch);
  EXPECT_EQ(Newest().StandingOf(old_space), Standing::kStale);
}

TEST_F(Index, SpacesRunOutAndComeBack) {
  std::vector<uint32_t> slots{slot_};
  uint32_t epoch = 0;
  for (uint32_t i = 1; i < shm::kMaxSpaces; ++i) {
    auto slot = index_->AddSpace(KeyOf(i), 0, 4096, &epoch);
    ASSERT_TRUE(slot.has_value());
    slots.push_back(*slot);
  }
  EXPECT_EQ(index_->AddSpace(KeyOf(1), 0, 4096, &epoch).status().code(), Code::kExhausted);
  index_->RetireSpace(slots[100]);
  index_->RetireSpace(slots[100]);  // Once more changes nothing.
  const auto slot = index_->AddSpace(KeyOf(1), 0, 4096, &epoch);
  ASSERT_TRUE(slot.has_value());
  EXPECT_EQ(*slot, slots[100]);
  EXPECT_EQ(index_->AddSpace(KeyOf(1), 0, 4096, &epoch).status().code(), Code::kExhausted);
}

TEST_F(Index, GenerationBeyondTheLastWordIsRefused) {
  uint32_t epoch = 0;
  EXPECT_EQ(index_->AddSpace(KeyOf(2), shm::kMaxGenerations, 4096, &epoch).status().code(),
            Code::kInvalidArgument);
}

TEST_F(Index, FenceAndSpacesReachTheNextDirectory) {
  index_->SetGeneration(5, 77);
  uint64_t key = 0;
  const size_t regions = memory_.regions();
  while (memory_.regions() == regions)
    ASSERT_TRUE(index_->Link(Page(key++)).ok());
  // In the middle of a growth: both tables are told.
  index_->SetGeneration(6, 88);
  const uint32_t first_slot = slot_;
  const uint32_t first_epoch = epoch_;
  const uint32_t second = OpenSpace(2);
  const uint32_t second_epoch = epoch_;
  slot_ = first_slot;
  epoch_ = first_epoch;
  while (index_->directory_id() == 1)
    ASSERT_TRUE(index_->Link(Page(key++)).ok());
  const View view = Newest();
  EXPECT_EQ(index_->generation(5), 77u);
  EXPECT_EQ(view.StandingOf({slot_, epoch_, 5, 77}), Standing::kCurrent);
  EXPECT_EQ(view.StandingOf({slot_, epoch_, 6, 88}), Standing::kCurrent);
  EXPECT_EQ(view.StandingOf({slot_, epoch_, 6, 87}), Standing::kStale);
  EXPECT_EQ(view.StandingOf({second, second_epoch, 0, 0}), Standing::kCurrent);
}

TEST_F(Index, VisitShowsOneSpaceAndStopsWhenTold) {
  const uint32_t first = slot_;
  for (uint64_t key = 0; key < 10; ++key)
    ASSERT_TRUE(index_->Link(Page(key)).ok());
  slot_ = OpenSpace(2);
  for (uint64_t key = 0; key < 5; ++key)
    ASSERT_TRUE(index_->Link(Page(key + 100)).ok());
  int shown = 0;
  index_->Visit(first, [&](const LinkedPage& page) {
    EXPECT_EQ(page.name.space_slot, first);
    // Unlinking what is shown is allowed.
    EXPECT_TRUE(index_->Unlink(page.name, page.handle));
    return ++shown < 4;
  });
  EXPECT_EQ(shown, 4);
  EXPECT_EQ(index_->linked_in_space(first), 6u);
  EXPECT_EQ(index_->linked_in_space(slot_), 5u);
}

TEST(IndexMemory, FirstDirectoryMayFail) {
  PlainDirectory memory;
  memory.refuse = true;
  EXPECT_EQ(MakeTenantIndex(memory).status().code(), Code::kExhausted);
}

TEST(DirectoryViewOf, WhatIsNoDirectoryIsRefused) {
  PlainDirectory memory;
  auto index = MakeTenantIndex(memory);
  ASSERT_TRUE(index.has_value());
  const std::span<uint8_t> bytes = memory.region(0);
  auto& header = *reinterpret_cast<shm::DirectoryHeader*>(bytes.data());
  EXPECT_TRUE(View::Of(bytes).has_value());
  EXPECT_EQ(View::Of(bytes.first(4096)).status().code(), Code::kInvalidArgument);
  header.version = shm::kLayoutVersion + 1;
  EXPECT_EQ(View::Of(bytes).status().code(), Code::kMismatch);
  header.version = shm::kLayoutVersion;
  for (const uint64_t capacity :
       {uint64_t{0}, uint64_t{512}, uint64_t{1000}, uint64_t{2048}, uint64_t{1} << 63}) {
    header.capacity = capacity;
    EXPECT_EQ(View::Of(bytes).status().code(), Code::kInvalidArgument) << capacity;
  }
  header.capacity = shm::kMinCapacity;
  header.magic = 1;
  EXPECT_EQ(View::Of(bytes).status().code(), Code::kInvalidArgument);
}

}  // namespace
}  // namespace terrace
