// What a store tells of itself while it is in use: entries, places, and pages read to check them.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <optional>
#include <set>

#include "tests/nvme/store_fixture.h"

namespace terrace {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

constexpr uint32_t kPage = 10'000;  // No multiple of a sector.

class CheckingTest : public testing::Test {
 protected:
  CheckingTest() { options.directories.push_back({folder.Make("d0"), 256u << 20}); }
  using Entries = PageStore::Entries;
  Entries List(OpenStore& open, const std::string& after, size_t limit) {
    std::optional<Result<Entries>> answer;
    open.store->ListEntries(after, limit, [&](Result<Entries> got) { answer = std::move(got); });
    EXPECT_TRUE(open.Run([&] { return answer.has_value(); }));
    return **answer;
  }
  std::vector<bool> Find(OpenStore& open, const std::vector<StoredPage>& pages) {
    std::optional<Result<std::vector<bool>>> answer;
    open.store->FindEntries(pages, [&](Result<std::vector<bool>> got) { answer = std::move(got); });
    EXPECT_TRUE(open.Run([&] { return answer.has_value(); }));
    return **answer;
  }
  std::vector<ReadFault> Check(OpenStore& open, const std::vector<StoredPage>& pages) {
    std::vector<ReadFault> faults(pages.size());
    size_t done = 0;
    open.store->Check(pages, Looks::kFirst, clock.Now() + kLong,
                      [&](size_t i, ReadFault fault, const Status&) {
                        faults[i] = fault;
                        ++done;
                      });
    EXPECT_TRUE(open.Run([&] { return done == pages.size(); }));
    return faults;
  }
  std::vector<StoredPage> WritePages(OpenStore& open, uint64_t count) {
    std::vector<StoredPage> pages;
    for (uint64_t id = 0; id < count; ++id) {
      const auto answer = open.Write(PageOf(id, kPage), 0);
      EXPECT_EQ(answer.status, Status());
      pages.push_back(answer.page);
    }
    return pages;
  }

  SystemClock clock;
  TempFolder folder;
  NvmeStoreOptions options;
};

TEST_F(CheckingTest, EveryEntryIsListedOnce) {
  OpenStore open(options, clock);
  ASSERT_EQ(open.status, Status());
  EXPECT_EQ(List(open, "", 10).last, "");
  WritePages(open, 25);
  std::set<uint64_t> serials;
  std::string after;
  for (int lists = 0; lists < 10; ++lists) {
    const Entries entries = List(open, after, 4);
    EXPECT_EQ(entries.unreadable, 0u);
    for (const StoredPage& page : entries.pages)
      EXPECT_TRUE(serials.insert(page.serial).second);
    after = entries.last;
    if (after.empty()) break;
  }
  EXPECT_EQ(after, "");
  EXPECT_EQ(serials.size(), 25u);
}

TEST_F(CheckingTest, OnlyTheVeryWritingIsFound) {
  OpenStore open(options, clock);
  std::vector<StoredPage> pages = WritePages(open, 2);
  pages.push_back(pages[0]);
  ++pages[2].serial;
  EXPECT_THAT(Find(open, pages), ElementsAre(true, true, false));
  ASSERT_EQ(open.Erase({pages[0]}), Status());
  EXPECT_THAT(Find(open, pages), ElementsAre(false, true, false));
}

TEST_F(CheckingTest, ADroppedEntryLeavesItsPlace) {
  OpenStore open(options, clock);
  const std::vector<StoredPage> pages = WritePages(open, 2);
  const uint64_t allocated = open.allocated();
  std::optional<Status> dropped;
  open.store->DropEntries({pages[0]}, [&](const Status& status) { dropped = status; });
  ASSERT_TRUE(open.Run([&] { return dropped.has_value(); }));
  EXPECT_EQ(*dropped, Status());
  EXPECT_THAT(Find(open, pages), ElementsAre(false, true));
  EXPECT_EQ(open.allocated(), allocated);
}

TEST_F(CheckingTest, ACensusTellsPlacesThatNobodyNamed) {
  OpenStore open(options, clock);
  const std::vector<StoredPage> pages = WritePages(open, 4);
  open.store->BeginCensus();
  open.store->Name(pages[0].place);
  open.store->Name(pages[1].place);
  // What changes hands meanwhile is nobody's leak.
  ASSERT_EQ(open.Erase({pages[3]}), Status());
  ASSERT_EQ(open.Write(PageOf(9, kPage), 0).status, Status());
  EXPECT_THAT(open.store->EndCensus(), ElementsAre(pages[2].place));
  EXPECT_THAT(open.store->EndCensus(), IsEmpty());
}

TEST_F(CheckingTest, PagesAreCheckedWhereTheyLie) {
  OpenStore open(options, clock);
  std::vector<StoredPage> pages = WritePages(open, 3);
  EXPECT_THAT(Check(open, pages),
              ElementsAre(ReadFault::kNone, ReadFault::kNone, ReadFault::kNone));
  pages[1].generation += 1;
  std::swap(pages[0].place, pages[2].place);
  EXPECT_THAT(Check(open, pages),
              ElementsAre(ReadFault::kName, ReadFault::kStale, ReadFault::kName));
}

}  // namespace
}  // namespace terrace
