// Pages come back byte by byte, in this life of the store and the next, whatever their size and the
// memory they lie in.
#include <gmock/gmock.h>

#include <map>

#include "tests/nvme/store_fixture.h"

namespace terrace {
namespace {

using testing::HasSubstr;

class NvmeStoreTest : public testing::TestWithParam<Durability> {
 protected:
  NvmeStoreOptions Options(size_t devices = 1, uint64_t capacity = 64u << 20) {
    NvmeStoreOptions options;
    for (size_t i = 0; i < devices; ++i)
      options.directories.push_back({folder.Make("d" + std::to_string(i)), capacity});
    options.durability = GetParam();
    return options;
  }

  TempFolder folder;
  SystemClock clock;
};

TEST_P(NvmeStoreTest, ReturnsEveryPageAsItWasWritten) {
  OpenStore open(Options(2), clock);
  ASSERT_TRUE(open.status.ok()) << open.status.ToString();
  std::vector<OpenStore::Wanted> wanted;
  uint64_t id = 0;
  for (const uint32_t bytes : {1U, 100U, 4095U, 4096U, 4097U, 65536U, 100'000U, 1U << 20, 2U << 20})
    for (const size_t misaligned : {size_t{0}, size_t{64}, size_t{4095}})
      wanted.push_back({PageOf(++id, bytes), id, misaligned});
  const auto written = open.Write(wanted);
  std::vector<StoredPage> pages;
  for (const auto& answer : written) {
    ASSERT_TRUE(answer.status.ok()) << answer.status.ToString();
    pages.push_back(answer.page);
  }
  for (const size_t misaligned : {size_t{0}, size_t{8}}) {
    const auto read = open.Read(pages, misaligned);
    for (size_t i = 0; i < read.size(); ++i) {
      ASSERT_EQ(read[i].fault, ReadFault::kNone) << read[i].status.ToString();
      ASSERT_EQ(read[i].bytes, BytesOf(pages[i], wanted[i].version)) << pages[i].bytes;
    }
  }
}

TEST_P(NvmeStoreTest, FindsAllPagesAfterARestart) {
  const NvmeStoreOptions options = Options(3);
  std::map<std::string, StoredPage> written;
  uint64_t allocated = 0;
  uint64_t last_serial = 0;
  {
    OpenStore open(options, clock);
    ASSERT_TRUE(open.status.ok()) << open.status.ToString();
    EXPECT_TRUE(open.found.empty());
    std::vector<OpenStore::Wanted> wanted;
    for (uint64_t id = 1; id <= 200; ++id)
      wanted.push_back({PageOf(id, id % 5 == 0 ? 100'000 : 65'536), id});
    std::vector<StoredPage> erased;
    for (const auto& answer : open.Write(wanted)) {
      ASSERT_TRUE(answer.status.ok());
      last_serial = std::max(last_serial, answer.page.serial);
      if (answer.page.position % 7 == 0) {
        erased.push_back(answer.page);
      } else {
        written[answer.page.name.key.Hex()] = answer.page;
      }
    }
    ASSERT_TRUE(open.Erase(erased).ok());
    allocated = open.allocated();
  }
  OpenStore open(options, clock);
  ASSERT_TRUE(open.status.ok()) << open.status.ToString();
  EXPECT_EQ(open.found.size(), written.size());
  EXPECT_EQ(open.allocated(), allocated);
  EXPECT_EQ(open.store->Report().orphans, 0U);
  const auto read = open.Read(open.found);
  for (size_t i = 0; i < read.size(); ++i) {
    const StoredPage& page = open.found[i];
    const StoredPage& was = written.at(page.name.key.Hex());
    EXPECT_EQ(page.name, was.name);
    EXPECT_EQ(page.place, was.place);
    EXPECT_EQ(page.serial, was.serial);
    EXPECT_EQ(page.parent, was.parent);
    EXPECT_EQ(page.generation, was.generation);
    EXPECT_EQ(page.committed_ms, was.committed_ms);
    ASSERT_EQ(read[i].fault, ReadFault::kNone) << read[i].status.ToString();
    ASSERT_EQ(read[i].bytes, BytesOf(page, page.position));
  }
  // Serials go on where no page ever was, erased ones included.
  EXPECT_GT(open.Write(PageOf(500, 4096), 1).page.serial, last_serial);
}

TEST_P(NvmeStoreTest, ReusesThePlacesOfErasedPages) {
  OpenStore open(Options(1, 4u << 20), clock);
  std::vector<StoredPage> pages;
  for (uint64_t id = 0; id < 500; ++id) {
    auto answer = open.Write(PageOf(id, 60'000), id);
    if (!answer.status.ok()) {
      ASSERT_EQ(answer.status.code(), Code::kExhausted);
      ASSERT_TRUE(open.Erase({pages[id % pages.size()]}).ok());
      pages.erase(pages.begin() + static_cast<ptrdiff_t>(id % pages.size()));
      answer = open.Write(PageOf(id, 60'000), id);
    }
    ASSERT_TRUE(answer.status.ok()) << answer.status.ToString();
    pages.push_back(answer.page);
  }
  EXPECT_LE(open.store->Report().devices[0].file_bytes, 4U << 20);
  EXPECT_EQ(open.allocated(), pages.size() * open.store->PlaceBytes(60'000));
  for (const StoredPage& page : pages)
    ASSERT_EQ(open.Read(page).bytes, BytesOf(page, page.position));
}

TEST_P(NvmeStoreTest, GivesTheRoomOfOneSizeToAnother) {
  OpenStore open(Options(1, 4u << 20), clock);
  std::vector<StoredPage> small;
  for (uint64_t id = 0;; ++id) {
    const auto answer = open.Write(PageOf(id, 4096), id);
    if (!answer.status.ok()) break;
    small.push_back(answer.page);
  }
  EXPECT_TRUE(open.store->Allocate(1u << 20, 1).empty());
  ASSERT_TRUE(open.Erase(small).ok());
  const auto large = open.Write(PageOf(9999, 1u << 20), 1);
  ASSERT_TRUE(large.status.ok()) << large.status.ToString();
  EXPECT_EQ(open.Read(large.page).bytes, BytesOf(large.page, 1));
}

TEST_P(NvmeStoreTest, AnErasedPageStaysErased) {
  const NvmeStoreOptions options = Options();
  {
    OpenStore open(options, clock);
    const auto first = open.Write(PageOf(1, 8192), 1);
    // Written anew elsewhere before the old one goes: that erase must not take the new one.
    const auto second = open.Write(PageOf(1, 8192), 2);
    const auto other = open.Write(PageOf(2, 8192), 1);
    ASSERT_TRUE(open.Erase({first.page, other.page}).ok());
    EXPECT_EQ(open.Read(second.page).bytes, BytesOf(second.page, 2));
  }
  OpenStore open(options, clock);
  ASSERT_EQ(open.found.size(), 1U);
  EXPECT_EQ(open.Read(open.found[0]).bytes, BytesOf(open.found[0], 2));
}

TEST_P(NvmeStoreTest, FlushIsAnswered) {
  OpenStore open(Options(2), clock);
  ASSERT_TRUE(open.Flush().ok());
  std::vector<OpenStore::Wanted> wanted;
  for (uint64_t id = 0; id < 20; ++id)
    wanted.push_back({PageOf(id, 4096), id});
  open.Write(wanted);
  EXPECT_TRUE(open.Flush().ok());
}

TEST_P(NvmeStoreTest, FlushTellsHowMuchIsDone) {
  OpenStore open(Options(), clock);
  // Of three sizes, which have files of their own.
  for (const uint32_t bytes : {4096, 8192, 65536})
    open.Write(PageOf(bytes, bytes), 0);
  std::vector<std::pair<uint64_t, uint64_t>> told;
  const auto tell = [&](uint64_t done, uint64_t total) { told.emplace_back(done, total); };
  ASSERT_TRUE(open.Flush(tell).ok());
  if (open.store->Report().durability == Durability::kPower) {
    EXPECT_TRUE(told.empty()) << "nothing was left to do";
    return;
  }
  constexpr uint64_t kAll = 4096 + 8192 + 65536;
  ASSERT_EQ(told.size(), 3U);
  for (size_t i = 0; i < told.size(); ++i) {
    EXPECT_EQ(told[i].second, kAll);
    EXPECT_GT(told[i].first, i == 0 ? 0 : told[i - 1].first);
  }
  EXPECT_EQ(told.back().first, kAll);
  told.clear();
  ASSERT_TRUE(open.Flush(tell).ok());
  EXPECT_TRUE(told.empty()) << "all of it is done";
}

TEST_P(NvmeStoreTest, ReadsOfWhatIsNotThereMiss) {
  OpenStore open(Options(), clock);
  const auto written = open.Write(PageOf(1, 8192), 1);
  StoredPage page = written.page;
  page.name = PageOf(2, 8192).name;
  EXPECT_EQ(open.Read(page).fault, ReadFault::kName);
  page = written.page;
  page.serial += 1;
  EXPECT_EQ(open.Read(page).fault, ReadFault::kStale);
  page = written.page;
  page.generation += 1;
  EXPECT_EQ(open.Read(page).fault, ReadFault::kStale);
  page = written.page;
  page.place += uint64_t{1} << 32;
  EXPECT_EQ(open.Read(page).fault, ReadFault::kIo);
  page = written.page;
  page.place += uint64_t{1} << 56;
  EXPECT_EQ(open.Read(page).fault, ReadFault::kIo);
  EXPECT_EQ(open.faults(ReadFault::kStale), 2U);
}

TEST_P(NvmeStoreTest, RefusesWhatIsTooMuch) {
  NvmeStoreOptions options = Options();
  options.waiting_writes = 8;
  OpenStore open(options, clock);
  std::vector<OpenStore::Wanted> wanted;
  for (uint64_t id = 0; id < 20; ++id)
    wanted.push_back({PageOf(id, 4096), id});
  size_t refused = 0;
  size_t kept = 0;
  for (const auto& answer : open.Write(wanted)) {
    refused += answer.status.code() == Code::kExhausted ? 1 : 0;
    kept += answer.status.ok() ? 1 : 0;
  }
  EXPECT_EQ(kept, 8U);
  EXPECT_EQ(refused, 12U);
  EXPECT_EQ(open.allocated(), 8 * open.store->PlaceBytes(4096));
  EXPECT_EQ(open.store->Report().waiting, 0U);
}

INSTANTIATE_TEST_SUITE_P(Durabilities, NvmeStoreTest,
                         testing::Values(Durability::kNone, Durability::kProcess,
                                         Durability::kPower));

}  // namespace
}  // namespace terrace
