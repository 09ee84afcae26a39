// Whatever is done to the files of a store, no byte is served that is not the page's: each page
// that was harmed is a miss, counted by its fault, and fsck finds and mends what is wrong.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <unistd.h>

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <map>
#include <set>

#include "base/unique_fd.h"
#include "tests/nvme/store_fixture.h"
#include "tiers/nvme/format.h"
#include "tiers/nvme/fsck.h"
#include "tiers/nvme/index.h"

namespace terrace {
namespace {

using testing::HasSubstr;
constexpr uint32_t kBytes = 20'000;  // No multiple of 4096: what is behind it belongs to nobody.

class NvmeDamageTest : public testing::Test {
 protected:
  void WritePages(size_t count) {
    OpenStore open(options, clock);
    ASSERT_TRUE(open.status.ok()) << open.status.ToString();
    std::vector<OpenStore::Wanted> wanted;
    for (uint64_t id = 0; id < count; ++id)
      wanted.push_back({PageOf(id, kBytes), 1});
    for (const auto& answer : open.Write(wanted)) {
      ASSERT_TRUE(answer.status.ok()) << answer.status.ToString();
      pages.push_back(answer.page);
    }
  }

  // The slot as it is on disk.
  struct Slot {
    std::string path;
    uint64_t offset = 0;
    uint64_t bytes = 0;
  };
  Slot SlotOf(const StoredPage& page) const {
    const nvme::Place place = nvme::FromPlaceId(page.place);
    for (const auto& entry : std::filesystem::directory_iterator(directory)) {
      const auto name = nvme::ParseSlotFileName(entry.path().filename().string());
      if (!name || name->number != place.file) continue;
      return {entry.path().string(), name->slot_bytes * place.slot, name->slot_bytes};
    }
    ADD_FAILURE() << "no file of the page";
    return {};
  }
  std::vector<uint8_t> Load(const StoredPage& page) const {
    const Slot slot = SlotOf(page);
    std::vector<uint8_t> bytes(slot.bytes);
    const UniqueFd fd(::open(slot.path.c_str(), O_RDONLY | O_CLOEXEC));
    EXPECT_EQ(::pread(fd.get(), bytes.data(), bytes.size(), static_cast<off_t>(slot.offset)),
              static_cast<ssize_t>(bytes.size()));
    return bytes;
  }
  void Save(const StoredPage& page, const std::vector<uint8_t>& bytes) const {
    const Slot slot = SlotOf(page);
    const UniqueFd fd(::open(slot.path.c_str(), O_WRONLY | O_CLOEXEC));
    EXPECT_EQ(::pwrite(fd.get(), bytes.data(), bytes.size(), static_cast<off_t>(slot.offset)),
              static_cast<ssize_t>(bytes.size()));
    EXPECT_EQ(::fsync(fd.get()), 0);
  }
  void Flip(const StoredPage& page, uint64_t bit) const {
    auto bytes = Load(page);
    bytes[bit / 8] ^= static_cast<uint8_t>(1U << (bit % 8));
    Save(page, bytes);
  }
  FsckReport Fsck(FsckRepair repair, bool read_data = false) {
    const auto report = FsckNvmeStore(
        {.directories = {directory}, .read_data = read_data, .repair = repair}, clock);
    EXPECT_TRUE(report) << report.status().ToString();
    return report ? *report : FsckReport();
  }

  TempFolder folder;
  SystemClock clock;
  const std::string directory = folder.Make("d");
  NvmeStoreOptions options{.directories = {{directory, 16u << 20}}};
  std::vector<StoredPage> pages;
};

TEST_F(NvmeDamageTest, ServesNoWrongByteAfterAnyDamage) {
  WritePages(200);
  // A writing of page 7 from before, in the very place that its next one takes.
  const std::vector<uint8_t> stale = Load(pages[7]);
  {
    OpenStore open(options, clock);
    ASSERT_TRUE(open.Erase({pages[7]}).ok());
    const auto again = open.Write(PageOf(7, kBytes), 2);
    ASSERT_EQ(again.page.place, pages[7].place);
    pages[7] = again.page;
  }
  Random random(42);
  std::map<size_t, ReadFault> harmed = {{7, ReadFault::kStale}};
  Save(pages[7], stale);
  for (size_t i = 10; i < 60; ++i) {
    Flip(pages[i], random.Below(8 * nvme::kHeaderBytes));
    harmed[i] = ReadFault::kHeader;
  }
  for (size_t i = 60; i < 110; ++i) {
    Flip(pages[i], 8 * (nvme::kHeaderBytes + random.Below(kBytes)) + random.Below(8));
    harmed[i] = ReadFault::kData;
  }
  for (size_t i = 110; i < 130; i += 2) {
    const auto one = Load(pages[i]);
    Save(pages[i], Load(pages[i + 1]));
    Save(pages[i + 1], one);
    harmed[i] = harmed[i + 1] = ReadFault::kName;
  }
  for (size_t i = 130; i < 140; ++i) {
    Save(pages[i], std::vector<uint8_t>(nvme::SlotBytes(kBytes)));
    harmed[i] = ReadFault::kHeader;
  }
  // The header of a page before other bytes: torn.
  for (size_t i = 140; i < 150; ++i) {
    auto bytes = Load(pages[i]);
    std::fill(bytes.begin() + 12'000, bytes.end(), uint8_t{0});
    Save(pages[i], bytes);
    harmed[i] = ReadFault::kData;
  }

  OpenStore open(options, clock);
  ASSERT_TRUE(open.status.ok()) << open.status.ToString();
  EXPECT_EQ(open.found.size(), pages.size());
  const auto read = open.Read(pages);
  std::map<ReadFault, uint64_t> counts;
  for (size_t i = 0; i < pages.size(); ++i) {
    const ReadFault expected = harmed.contains(i) ? harmed[i] : ReadFault::kNone;
    EXPECT_EQ(read[i].fault, expected) << i << ": " << read[i].status.ToString();
    ++counts[expected];
    if (read[i].fault == ReadFault::kNone) {
      ASSERT_EQ(read[i].bytes, BytesOf(pages[i], 1));
    }
  }
  for (const auto& [fault, count] : counts)
    EXPECT_EQ(open.faults(fault), count);
}

TEST_F(NvmeDamageTest, MissesInAFileThatWasCutOff) {
  WritePages(40);
  const Slot cut = SlotOf(pages[20]);
  {
    OpenStore open(options, clock);
    ASSERT_EQ(::truncate(cut.path.c_str(), static_cast<off_t>(cut.offset + 5000)), 0);
    uint64_t missed = 0;
    const auto read = open.Read(pages);
    for (size_t i = 0; i < pages.size(); ++i) {
      const Slot slot = SlotOf(pages[i]);
      const bool gone = slot.path == cut.path && slot.offset >= cut.offset;
      EXPECT_EQ(read[i].fault, gone ? ReadFault::kIo : ReadFault::kNone);
      missed += gone ? 1 : 0;
    }
    EXPECT_GT(missed, 0U);
    EXPECT_EQ(open.faults(ReadFault::kIo), missed);
    // No fault of the device.
    EXPECT_EQ(open.store->Report().devices[0].state, DeviceState::kServing);
  }
  std::filesystem::remove(cut.path);
  OpenStore open(options, clock);
  ASSERT_TRUE(open.status.ok());
  EXPECT_LT(open.found.size(), pages.size());
  EXPECT_EQ(open.found.size() + open.store->Report().orphans, pages.size());
  for (const StoredPage& page : open.found)
    EXPECT_EQ(open.Read(page).bytes, BytesOf(page, 1));
}

TEST_F(NvmeDamageTest, DataThatIsNotCheckedIsServedOnlyWhereThatWasAskedFor) {
  WritePages(2);
  Flip(pages[0], 8 * (nvme::kHeaderBytes + 10));
  Flip(pages[1], 8 * 40);
  options.check_data = false;
  OpenStore open(options, clock);
  EXPECT_EQ(open.Read(pages[0]).fault, ReadFault::kNone);
  EXPECT_EQ(open.Read(pages[1]).fault, ReadFault::kHeader);
}

TEST_F(NvmeDamageTest, FsckFindsAndDropsWhatDoesNotCheck) {
  WritePages(30);
  EXPECT_TRUE(Fsck(FsckRepair::kNothing, true).clean());
  Flip(pages[3], 100);
  Flip(pages[4], 8 * (nvme::kHeaderBytes + 7));
  Save(pages[5], Load(pages[6]));
  FsckReport report = Fsck(FsckRepair::kNothing, true);
  EXPECT_EQ(report.entries, 30U);
  EXPECT_EQ(report.good, 27U);
  EXPECT_EQ(report.bad_header, 1U);
  EXPECT_EQ(report.bad_data, 1U);
  EXPECT_EQ(report.other_page, 1U);
  ASSERT_EQ(report.findings.size(), 3U);
  EXPECT_EQ(Fsck(FsckRepair::kMend, true).dropped, 3U);
  EXPECT_TRUE(Fsck(FsckRepair::kNothing, true).clean());

  OpenStore open(options, clock);
  EXPECT_EQ(open.found.size(), 27U);
  EXPECT_EQ(open.allocated(), 27 * open.store->PlaceBytes(kBytes));
}

TEST_F(NvmeDamageTest, FsckFindsEntriesOfNoPlaceOrOfOneTwice) {
  WritePages(5);
  const nvme::StoreUuid uuid = [&] {
    nvme::SlotHeader header;
    const auto bytes = Load(pages[0]);
    return nvme::DecodeSlotHeader(std::span(bytes).first<nvme::kHeaderBytes>())->store;
  }();
  {
    const auto index = *nvme::OpenIndex(directory + "/index", uuid);
    std::vector<nvme::IndexEntry> entries(3);
    for (size_t i = 0; i < entries.size(); ++i) {
      entries[i].page = PageOf(100 + i, i == 2 ? 4096 : kBytes);
      entries[i].page.place = i == 0 ? nvme::ToPlaceId({0, 99, 0}) : pages[1].place;
      entries[i].page.serial = 1000 + i;
    }
    ASSERT_TRUE(index->Put(entries, true).ok());
  }
  FsckReport report = Fsck(FsckRepair::kNothing);
  EXPECT_EQ(report.no_such_place, 2U);  // No file, and no slot of that size.
  EXPECT_EQ(report.other_page, 1U);     // Two pages in one slot: it holds one of them.
  EXPECT_EQ(report.good, 5U);
  {
    OpenStore open(options, clock);
    EXPECT_EQ(open.store->Report().orphans, 3U);
    EXPECT_EQ(open.found.size(), 5U);
  }
  EXPECT_TRUE(Fsck(FsckRepair::kNothing).clean());
}

TEST_F(NvmeDamageTest, ADamagedIndexIsRefusedAndBuiltAnew) {
  WritePages(50);
  {
    OpenStore open(options, clock);
    // One that is written anew elsewhere, and one that is erased: its slot still says that it was.
    const auto again = open.Write(PageOf(1, kBytes), 2);
    ASSERT_TRUE(again.status.ok());
    ASSERT_TRUE(open.Erase({pages[1]}).ok());
    pages[1] = again.page;
    ASSERT_TRUE(open.Erase({pages[2]}).ok());
  }
  EXPECT_EQ(Fsck(FsckRepair::kNothing).without_entry, 2U);
  for (const auto& entry : std::filesystem::directory_iterator(directory + "/index")) {
    const std::string name = entry.path().filename().string();
    if (!name.starts_with("MANIFEST")) continue;
    std::filesystem::resize_file(entry.path(), entry.file_size() / 2);
    std::fstream file(entry.path(), std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(20);
    file << "damage";
  }
  {
    OpenStore open(options, clock);
    EXPECT_EQ(open.status.code(), Code::kDataLoss) << open.status.ToString();
    EXPECT_THAT(open.status.message(), HasSubstr(directory));
    EXPECT_THAT(open.status.message(), HasSubstr("terraced --fsck=repair"));
  }
  EXPECT_THAT(Fsck(FsckRepair::kNothing).index_damage, HasSubstr("index"));
  const FsckReport mended = Fsck(FsckRepair::kMend);
  EXPECT_TRUE(mended.rebuilt);
  EXPECT_EQ(mended.added, 50U);  // What was erased is there again.
  EXPECT_TRUE(Fsck(FsckRepair::kNothing, true).clean());

  OpenStore open(options, clock);
  ASSERT_TRUE(open.status.ok()) << open.status.ToString();
  EXPECT_EQ(open.found.size(), 50U);
  for (const StoredPage& page : open.found)  // Of two writings, the newer.
    EXPECT_EQ(open.Read(page).bytes, BytesOf(page, page.position == 1 ? 2 : 1));
  EXPECT_GT(open.Write(PageOf(500, 4096), 1).page.serial, pages[1].serial);
}

TEST_F(NvmeDamageTest, AnIndexThatIsGoneIsBuiltAnew) {
  WritePages(10);
  std::filesystem::remove_all(directory + "/index");
  {
    OpenStore open(options, clock);
    EXPECT_EQ(open.status.code(), Code::kDataLoss);
  }
  EXPECT_EQ(Fsck(FsckRepair::kMend).added, 10U);
  OpenStore open(options, clock);
  EXPECT_EQ(open.found.size(), 10U);
}

}  // namespace
}  // namespace terrace
