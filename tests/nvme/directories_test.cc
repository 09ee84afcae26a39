// Whose a directory is: made where it is empty, refused where it is something else's, and one
// process' at a time.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "base/unique_fd.h"
#include "tests/nvme/store_fixture.h"
#include "tiers/nvme/format.h"
#include "tiers/nvme/fsck.h"

namespace terrace {
namespace {

using testing::AllOf;
using testing::HasSubstr;

class NvmeDirectoriesTest : public testing::Test {
 protected:
  NvmeStoreOptions Options(const std::vector<std::string>& paths) {
    NvmeStoreOptions options;
    for (const std::string& path : paths)
      options.directories.push_back({path, 8u << 20});
    return options;
  }
  Status Try(const std::vector<std::string>& paths) {
    return OpenStore(Options(paths), clock).status;
  }
  void Patch(const std::string& path, off_t offset, std::string_view bytes) {
    const UniqueFd fd(::open(path.c_str(), O_WRONLY | O_CLOEXEC));
    ASSERT_EQ(::pwrite(fd.get(), bytes.data(), bytes.size(), offset),
              static_cast<ssize_t>(bytes.size()));
  }

  TempFolder folder;
  SystemClock clock;
  const std::string a = folder.Make("a");
  const std::string b = folder.Make("b");
  const std::string c = folder.Make("c");
};

TEST_F(NvmeDirectoriesTest, ADirectoryOfSomethingElseIsRefusedAndLeftAlone) {
  std::ofstream(a + "/photos.zip") << "mine";
  const Status status = Try({a});
  EXPECT_EQ(status.code(), Code::kMismatch);
  EXPECT_THAT(status.message(), AllOf(HasSubstr(a), HasSubstr("photos.zip")));
  size_t files = 0;
  for ([[maybe_unused]] const auto& entry : std::filesystem::directory_iterator(a))
    ++files;
  EXPECT_EQ(files, 1U);
}

TEST_F(NvmeDirectoriesTest, AMissingDirectoryIsNotMade) {
  const Status status = Try({folder.path() + "/nowhere"});
  EXPECT_EQ(status.code(), Code::kNotFound);
  EXPECT_THAT(status.message(), AllOf(HasSubstr("/nowhere"), HasSubstr("none is made")));
  EXPECT_FALSE(std::filesystem::exists(folder.path() + "/nowhere"));
}

TEST_F(NvmeDirectoriesTest, AnUnknownVersionIsRefused) {
  ASSERT_TRUE(Try({a}).ok());
  Patch(a + "/TERRACE-STORE", 8, std::string_view("\x02\0\0\0", 4));
  const Status status = Try({a});
  EXPECT_EQ(status.code(), Code::kMismatch);
  EXPECT_THAT(status.message(), AllOf(HasSubstr(a), HasSubstr("format 2")));
}

TEST_F(NvmeDirectoriesTest, ADamagedMarkerIsRefused) {
  ASSERT_TRUE(Try({a}).ok());
  Patch(a + "/TERRACE-STORE", 30, "x");
  EXPECT_EQ(Try({a}).code(), Code::kDataLoss);
  std::filesystem::resize_file(a + "/TERRACE-STORE", 100);
  EXPECT_EQ(Try({a}).code(), Code::kDataLoss);
  std::filesystem::resize_file(a + "/TERRACE-STORE", 0);
  EXPECT_EQ(Try({a}).code(), Code::kMismatch);
}

TEST_F(NvmeDirectoriesTest, IsOpenOnceAtATime) {
  const OpenStore first(Options({a, b}), clock);
  ASSERT_TRUE(first.status.ok());
  const Status second = Try({a, b});
  EXPECT_EQ(second.code(), Code::kUnavailable);
  EXPECT_THAT(second.message(), AllOf(HasSubstr(a), HasSubstr(std::to_string(::getpid()))));
  EXPECT_EQ(FsckNvmeStore({.directories = {a, b}}, clock).status().code(), Code::kUnavailable);
}

TEST_F(NvmeDirectoriesTest, DirectoriesOfTwoStoresDoNotMix) {
  ASSERT_TRUE(Try({a, b}).ok());
  ASSERT_TRUE(Try({c}).ok());
  EXPECT_EQ(Try({a, c}).code(), Code::kMismatch);
  EXPECT_EQ(Try({b, a}).code(), Code::kMismatch);
  EXPECT_EQ(Try({a}).code(), Code::kMismatch);  // It has two.
  EXPECT_EQ(Try({c, a}).code(), Code::kMismatch);
}

TEST_F(NvmeDirectoriesTest, ADeviceCanBeAdded) {
  std::vector<StoredPage> pages;
  {
    OpenStore open(Options({a}), clock);
    pages.push_back(open.Write(PageOf(1, 4096), 1).page);
  }
  {
    OpenStore open(Options({a, b}), clock);
    ASSERT_TRUE(open.status.ok()) << open.status.ToString();
    for (uint64_t id = 2; id < 6; ++id)
      pages.push_back(open.Write(PageOf(id, 4096), 1).page);
    EXPECT_GT(open.store->Report().devices[1].allocated_bytes, 0U);
  }
  OpenStore open(Options({a, b}), clock);
  EXPECT_EQ(open.found.size(), 5U);
  for (const StoredPage& page : pages)
    EXPECT_EQ(open.Read(page).bytes, BytesOf(page, 1));
}

TEST_F(NvmeDirectoriesTest, WithoutOneDeviceItsPagesMissAndComeBackWithIt) {
  std::vector<StoredPage> pages;
  {
    OpenStore open(Options({a, b}), clock);
    for (uint64_t id = 0; id < 10; ++id)
      pages.push_back(open.Write(PageOf(id, 4096), 1).page);
  }
  std::filesystem::rename(b, b + "-away");
  for (const bool empty : {false, true}) {
    if (empty) std::filesystem::create_directory(b);  // Where it would be mounted.
    OpenStore open(Options({a, b}), clock);
    ASSERT_TRUE(open.status.ok()) << open.status.ToString();
    const PageStoreReport report = open.store->Report();
    EXPECT_EQ(report.devices[1].state, DeviceState::kOff);
    EXPECT_THAT(report.devices[1].why, HasSubstr(b));
    EXPECT_EQ(open.found.size(), pages.size());
    EXPECT_EQ(report.orphans, 0U);
    for (const StoredPage& page : pages) {
      const bool there = nvme::FromPlaceId(page.place).device == 0;
      EXPECT_EQ(open.store->Readable(page.place), there);
      EXPECT_EQ(open.Read(page).fault, there ? ReadFault::kNone : ReadFault::kRefused);
    }
    // Written without it, and erased without it.
    const bool first_there = nvme::FromPlaceId(pages.back().place).device == 0;
    if (!first_there) {
      ASSERT_TRUE(open.Erase({pages.back()}).ok());
      pages.pop_back();
    }
    pages.push_back(open.Write(PageOf(200 + uint64_t{empty}, 4096), 1).page);
    EXPECT_TRUE(!empty || std::filesystem::is_empty(b));
  }
  std::filesystem::remove(b);
  std::filesystem::rename(b + "-away", b);
  OpenStore open(Options({a, b}), clock);
  EXPECT_EQ(open.store->Report().orphans, 0U);
  for (const StoredPage& page : pages)
    EXPECT_EQ(open.Read(page).bytes, BytesOf(page, 1));
}

TEST_F(NvmeDirectoriesTest, AFurtherDirectoryThatCannotBeUsedIsOffAndTheFirstIsRefused) {
  ASSERT_TRUE(Try({a, b}).ok());
  const auto why_off = [&] {
    OpenStore open(Options({a, b}), clock);
    EXPECT_TRUE(open.status.ok()) << open.status.ToString();
    const DeviceReport device = open.store->Report().devices[1];
    EXPECT_EQ(device.state, DeviceState::kOff);
    return device.why;
  };
  for (const std::string name : {"TERRACE-STORE", "LOCK"}) {
    // As one that cannot be read.
    std::filesystem::rename(b + "/" + name, folder.path() + "/kept");
    std::filesystem::create_directory(b + "/" + name);
    EXPECT_THAT(why_off(), HasSubstr(b + "/" + name));
    std::filesystem::remove(b + "/" + name);
    std::filesystem::rename(folder.path() + "/kept", b + "/" + name);
  }
  ASSERT_EQ(::chmod(b.c_str(), 0777), 0);
  EXPECT_THAT(why_off(), HasSubstr("writable by others"));
  ASSERT_EQ(::chmod(b.c_str(), 0700), 0);
  if (::chown(b.c_str(), 1234, 1234) == 0) {
    EXPECT_THAT(why_off(), HasSubstr("belongs to user 1234"));
    ASSERT_EQ(::chown(b.c_str(), ::geteuid(), ::getegid()), 0);
  }
  EXPECT_TRUE(Try({a, b}).ok());
  ASSERT_EQ(::chmod(a.c_str(), 0777), 0);
  EXPECT_EQ(Try({a, b}).code(), Code::kPermissionDenied);
}

TEST_F(NvmeDirectoriesTest, ADirectoryMayBeNamedByALink) {
  std::filesystem::create_directory_symlink(a, folder.path() + "/link");
  EXPECT_TRUE(Try({folder.path() + "/link"}).ok());
}

TEST_F(NvmeDirectoriesTest, FsckMakesAnEmptyDirectoryADeviceAgain) {
  std::vector<StoredPage> pages;
  {
    OpenStore open(Options({a, b}), clock);
    for (uint64_t id = 0; id < 10; ++id)
      pages.push_back(open.Write(PageOf(id, 4096), 1).page);
  }
  std::filesystem::remove_all(b);
  folder.Make("b");
  const auto looked = FsckNvmeStore({.directories = {a, b}}, clock);
  ASSERT_TRUE(looked);
  EXPECT_EQ(looked->on_off_device, 5U);
  EXPECT_EQ(looked->devices_off, 1U);
  EXPECT_FALSE(looked->clean());
  const auto mended = FsckNvmeStore({.directories = {a, b}, .repair = FsckRepair::kMend}, clock);
  ASSERT_TRUE(mended) << mended.status().ToString();
  EXPECT_EQ(mended->dropped, 5U);
  OpenStore open(Options({a, b}), clock);
  EXPECT_EQ(open.store->Report().devices[1].state, DeviceState::kServing);
  EXPECT_EQ(open.found.size(), 5U);
}

TEST_F(NvmeDirectoriesTest, AMakingThatWasCutOffIsContinued) {
  ASSERT_TRUE(Try({a, b}).ok());
  // As it is just before the first directory's marker gets its name.
  std::filesystem::rename(a + "/TERRACE-STORE", a + "/TERRACE-STORE.new");
  EXPECT_TRUE(Try({a, b}).ok());
  // And in the middle of writing it.
  std::ofstream(c + "/TERRACE-STORE.new") << "torn";
  EXPECT_TRUE(Try({c}).ok());
}

}  // namespace
}  // namespace terrace
