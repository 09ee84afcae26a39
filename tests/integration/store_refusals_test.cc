// What stands where a store should be, and what became of its files: nothing foreign is touched,
// and nothing that does not check out is served.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "tests/integration/store_steps.h"

namespace terrace {
namespace {

using testing::AllOf;
using testing::HasSubstr;

constexpr uint64_t kPage = 64u << 10;
constexpr uint64_t kHeaderBytes = 4096;  // Before a page in its slot (docs/nvme_format.md).
constexpr uint64_t kKeyAt = 64;          // In the header.
constexpr const char* kHeaderMagic = "TerrSlot";

// Where the page of that key lies, as the slot files say.
struct SlotAt {
  std::string path;
  uint64_t offset = 0;
};
SlotAt SlotOf(const std::string& folder, const kvc_key& key) {
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    if (!entry.path().filename().string().starts_with("slots-")) continue;
    std::ifstream file(entry.path(), std::ios::binary);
    char header[kKeyAt + sizeof key];
    for (uint64_t offset = 0;
         file.seekg(static_cast<std::streamoff>(offset)) && file.read(header, sizeof header);
         offset += kHeaderBytes) {
      if (std::memcmp(header, kHeaderMagic, 8) == 0 &&
          std::memcmp(header + kKeyAt, key.bytes, sizeof key) == 0) {
        return {entry.path().string(), offset};
      }
    }
  }
  ADD_FAILURE() << "no slot in " << folder << " has that key";
  return {};
}

// Another byte, on the disk itself: nobody's page cache has it afterwards.
void Damage(const SlotAt& slot, uint64_t at) {
  const UniqueFd file(::open(slot.path.c_str(), O_RDWR | O_CLOEXEC));
  ASSERT_TRUE(file);
  uint8_t byte = 0;
  const auto offset = static_cast<off_t>(slot.offset + at);
  ASSERT_EQ(::pread(file.get(), &byte, 1, offset), 1);
  byte ^= 0x10;
  ASSERT_EQ(::pwrite(file.get(), &byte, 1, offset), 1);
  ASSERT_EQ(::fsync(file.get()), 0);
}

std::vector<std::string> NamesIn(const std::string& folder) {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(folder))
    names.push_back(entry.path().filename().string());
  std::sort(names.begin(), names.end());
  return names;
}

class StoreRefusalsTest : public StoreTest {
 protected:
  // A daemon's configuration on another socket and state folder, with the same store.
  CommandOutput SecondDaemon() {
    return RunTerraced({"--config", daemon().config_file(), "--socket", other_.path() + "/s.sock",
                        "--state-dir", other_.path() + "/state"});
  }
  CommandOutput Fsck(const std::string& how) {
    return RunTerraced({"--config", daemon().config_file(), "--fsck=" + how});
  }
  void PutDurably(const std::vector<kvc_key>& keys) {
    Run([&](kvc_client* client) -> Status {
      ASSIGN_OR_RETURN(const StoreSteps steps, StoreSteps::Open(client, kPage));
      return steps.PutPersistAndDemote(keys);
    });
  }
  void Stop() {
    const Result<int> code = daemon().Stop();
    ASSERT_TRUE(code) << code.error().ToString();
    ASSERT_EQ(*code, 0);
  }

 private:
  TemporaryFolder other_;
};

// ---- Directories

TEST_F(StoreRefusalsTest, ASecondDaemonOnTheSameStoreIsRefused) {
  StartStore();
  const CommandOutput output = SecondDaemon();
  EXPECT_EQ(output.exit_code, 1);
  EXPECT_THAT(output.standard_error, HasSubstr(store_folder() + ": is in use by process " +
                                               std::to_string(daemon().pid())));
  const CommandOutput fsck = Fsck("index");
  EXPECT_EQ(fsck.exit_code, 1);
  EXPECT_THAT(fsck.standard_error, HasSubstr("is in use by process"));
  PutDurably(Keys(0, 8));  // The first serves on.
}

TEST_F(StoreRefusalsTest, ADirectoryOfSomethingElseIsLeftAsItIs) {
  StartStore();
  Stop();
  const std::string foreign = store_folder();
  std::filesystem::remove_all(foreign);
  ASSERT_TRUE(std::filesystem::create_directory(foreign));
  ASSERT_EQ(::chmod(foreign.c_str(), 0700), 0);
  std::ofstream(foreign + "/holiday.jpg") << "a picture";
  const CommandOutput output = SecondDaemon();
  EXPECT_EQ(output.exit_code, 1);
  EXPECT_THAT(output.standard_error,
              HasSubstr(foreign + ": holds files (holiday.jpg), but no Terrace store"));
  EXPECT_EQ(NamesIn(foreign), std::vector<std::string>{"holiday.jpg"});
}

TEST_F(StoreRefusalsTest, ADirectoryOfAnotherVersionOfTheFormatIsLeftAsItIs) {
  StartStore();
  PutDurably(Keys(0, 4));
  Stop();
  Damage({store_folder() + "/TERRACE-STORE", 0}, 8);
  const std::vector<std::string> names = NamesIn(store_folder());
  const CommandOutput output = SecondDaemon();
  EXPECT_EQ(output.exit_code, 1);
  EXPECT_THAT(output.standard_error, HasSubstr(store_folder() + "/TERRACE-STORE"));
  EXPECT_EQ(NamesIn(store_folder()), names);
}

TEST_F(StoreRefusalsTest, AStoreThatOthersCouldReadIsRefused) {
  StartStore();
  Stop();
  ASSERT_EQ(::chmod(store_folder().c_str(), 0777), 0);
  const CommandOutput output = SecondDaemon();
  EXPECT_EQ(output.exit_code, 1);
  EXPECT_THAT(output.standard_error, HasSubstr("is writable by others"));
}

TEST_F(StoreRefusalsTest, TheFilesAreTheDaemonsAlone) {
  StartStore();
  PutDurably(Keys(0, 4));
  for (const auto& entry : std::filesystem::recursive_directory_iterator(store_folder())) {
    struct stat facts {};
    ASSERT_EQ(::stat(entry.path().c_str(), &facts), 0);
    EXPECT_EQ(facts.st_mode & 0022, 0u) << entry.path();
    if (entry.path().filename().string().starts_with("slots-")) {
      EXPECT_EQ(facts.st_mode & 0777, 0600u) << entry.path();
    }
  }
  struct stat facts {};
  ASSERT_EQ(::stat(store_folder().c_str(), &facts), 0);
  EXPECT_EQ(facts.st_mode & 0777, 0700u);
}

// ---- Damage

TEST_F(StoreRefusalsTest, ADamagedPageIsAMissThatIsCountedAndErased) {
  StartStore();
  const std::vector<kvc_key> keys = Keys(0, 8);
  PutDurably(keys);
  Damage(SlotOf(store_folder(), keys[3]), kHeaderBytes + 1000);
  Damage(SlotOf(store_folder(), keys[5]), 200);
  Run([&](kvc_client* client) -> Status {
    ASSIGN_OR_RETURN(const StoreSteps steps, StoreSteps::Open(client, kPage));
    ASSIGN_OR_RETURN(const Fetched fetched, steps.Prefetch(keys));
    for (size_t i = 0; i < keys.size(); ++i) {
      const kvc_code wanted = i == 3 || i == 5 ? KVC_DATA_LOSS : KVC_OK;
      RETURN_UNLESS(fetched.codes[i] == wanted,
                    std::to_string(i) + ": " + kvc_code_name(fetched.codes[i]));
    }
    ASSIGN_OR_RETURN(const uint64_t found, steps.Found(keys));
    RETURN_UNLESS(found == keys.size() - 2, std::to_string(found));
    // It is put again like any other, and comes back whole.
    RETURN_IF_ERROR(steps.Put({keys[3], keys[5]}));
    RETURN_IF_ERROR(steps.Persist(keys));
    RETURN_IF_ERROR(steps.Demote(keys));
    return steps.ExpectStored(keys);
  });
  const Json tier = StoreTier();
  EXPECT_EQ(At(tier, "/faults/data"), 1u);
  EXPECT_EQ(At(tier, "/faults/header"), 1u);
  EXPECT_EQ(At(tier, "/erased/fault/pages"), 2u);
  EXPECT_EQ(tier["devices"][0]["state"], "serving") << "one bad page is no bad device";
}

TEST_F(StoreRefusalsTest, FsckFindsAndRepairs) {
  StartStore();
  const std::vector<kvc_key> keys = Keys(0, 16);
  PutDurably(keys);
  Stop();
  CommandOutput output = Fsck("data");
  EXPECT_EQ(output.exit_code, 0) << output.standard_output << output.standard_error;
  Damage(SlotOf(store_folder(), keys[2]), 100);                  // Its header.
  Damage(SlotOf(store_folder(), keys[9]), kHeaderBytes + 5000);  // Its bytes.
  output = Fsck("index");
  EXPECT_EQ(output.exit_code, 3) << output.standard_output;
  EXPECT_THAT(output.standard_output, testing::ContainsRegex("with a damaged header +1\n"));
  output = Fsck("data");
  EXPECT_EQ(output.exit_code, 3);
  EXPECT_THAT(output.standard_output, AllOf(testing::ContainsRegex("with a damaged header +1\n"),
                                            testing::ContainsRegex("with damaged bytes +1\n")));
  output = Fsck("repair");
  EXPECT_EQ(output.exit_code, 0);
  EXPECT_THAT(output.standard_output, testing::ContainsRegex("entries dropped +1\n"));
  output = Fsck("index");
  EXPECT_EQ(output.exit_code, 0) << output.standard_output;
  ASSERT_TRUE(daemon().Launch().ok());
  EXPECT_EQ(At(StoreTier(), "/pages"), 15u);
  Run([&](kvc_client* client) -> Status {
    ASSIGN_OR_RETURN(const StoreSteps steps, StoreSteps::Open(client, kPage));
    ASSIGN_OR_RETURN(const Fetched gone, steps.Prefetch({keys[2]}));
    RETURN_UNLESS(gone.codes[0] == KVC_NOT_FOUND, kvc_code_name(gone.codes[0]));
    ASSIGN_OR_RETURN(const Fetched bad, steps.Prefetch({keys[9]}));
    RETURN_UNLESS(bad.codes[0] == KVC_DATA_LOSS, kvc_code_name(bad.codes[0]));
    return steps.ExpectStored(Keys(10, 6));
  });
}

// What the daemon's own check says; an error for a failure of the call.
Result<Json> Check(kvc_client* client, bool read_data, bool repair) {
  kvc_fsck_options options{};
  options.struct_size = sizeof options;
  options.read_data = read_data ? 1 : 0;
  options.repair = repair ? 1 : 0;
  char* text = nullptr;
  kvc_error error{};
  RETURN_IF_ERROR(
      bench::ToStatus(kvc_fsck(client, &options, nullptr, nullptr, 60'000, &text, &error), error));
  Json report = Json::parse(text);
  kvc_free(text);
  return report;
}

TEST_F(StoreRefusalsTest, AStoreThatServesIsCheckedAndRepaired) {
  StartStore();
  const std::vector<kvc_key> keys = Keys(0, 16);
  PutDurably(keys);
  Damage(SlotOf(store_folder(), keys[2]), 100);                  // Its header.
  Damage(SlotOf(store_folder(), keys[9]), kHeaderBytes + 5000);  // Its bytes.
  Run([&](kvc_client* client) -> Status {
    ASSIGN_OR_RETURN(const StoreSteps steps, StoreSteps::Open(client, kPage));
    ASSIGN_OR_RETURN(const Json books, Check(client, false, false));
    RETURN_UNLESS(books["clean"] == true && books["entries"] == 16 && books["pages"] == 16,
                  books.dump());
    ASSIGN_OR_RETURN(const Json found, Check(client, true, false));
    RETURN_UNLESS(found["clean"] == false && found["read_pages"] == 16, found.dump());
    RETURN_UNLESS(found["findings"]["header"] == 1 && found["findings"]["data"] == 1, found.dump());
    RETURN_UNLESS(found["examples"].size() == 2 && found["repaired"] == 0, found.dump());
    ASSIGN_OR_RETURN(const Json mended, Check(client, true, true));
    RETURN_UNLESS(mended["repaired"] == 2, mended.dump());
    ASSIGN_OR_RETURN(const Json clean, Check(client, true, false));
    RETURN_UNLESS(clean["clean"] == true, clean.dump());
    ASSIGN_OR_RETURN(const Fetched gone, steps.Prefetch({keys[2]}));
    RETURN_UNLESS(gone.codes[0] == KVC_NOT_FOUND, kvc_code_name(gone.codes[0]));
    return steps.ExpectStored(Keys(10, 6));
  });
  EXPECT_EQ(At(StoreTier(), "/erased/fault/pages"), 2u);
  EXPECT_EQ(At(StoreTier(), "/pages"), 14u);
  Stop();
  EXPECT_EQ(Fsck("data").exit_code, 0) << "and the one that looks from outside agrees";
}

TEST_F(StoreRefusalsTest, TheScrubFindsAndErasesADamagedPage) {
  StartStore(std::string(kOneDirectory) + "[store]\nscrub_bytes_per_second = \"64MiB\"\n");
  const std::vector<kvc_key> keys = Keys(0, 16);
  PutDurably(keys);
  Stop();
  Damage(SlotOf(store_folder(), keys[9]), kHeaderBytes + 5000);
  ASSERT_TRUE(daemon().Launch().ok());
  EXPECT_TRUE(Await([&] { return At(StoreTier(), "/erased/fault/pages") == 1; }));
  const Json tier = StoreTier();
  EXPECT_EQ(At(tier, "/scrub/faults/data"), 1u);
  EXPECT_EQ(At(tier, "/scrub/pages"), 16u);
  EXPECT_EQ(At(tier, "/scrub/rounds"), 1u);
  EXPECT_EQ(At(tier, "/pages"), 15u);
}

TEST_F(StoreRefusalsTest, ADamagedIndexIsBuiltAnewFromThePages) {
  StartStore();
  const std::vector<kvc_key> keys = Keys(0, 32);
  PutDurably(keys);
  Stop();
  for (const auto& entry : std::filesystem::directory_iterator(store_folder() + "/index")) {
    if (entry.path().filename().string().starts_with("MANIFEST")) {
      std::filesystem::resize_file(entry.path(), 1);
    }
  }
  const CommandOutput refused = SecondDaemon();
  EXPECT_EQ(refused.exit_code, 1);
  EXPECT_THAT(refused.standard_error, HasSubstr("--fsck"));
  EXPECT_EQ(Fsck("index").exit_code, 3);
  const CommandOutput rebuilt = Fsck("rebuild");
  EXPECT_EQ(rebuilt.exit_code, 0) << rebuilt.standard_output << rebuilt.standard_error;
  EXPECT_THAT(rebuilt.standard_output, testing::ContainsRegex("entries added +32\n"));
  ASSERT_TRUE(daemon().Launch().ok());
  Run([&](kvc_client* client) -> Status {
    ASSIGN_OR_RETURN(const StoreSteps steps, StoreSteps::Open(client, kPage));
    return steps.ExpectStored(keys);
  });
}

// ---- File systems that take no write

// A small file system for the test's store, in a mount namespace of the test's own.
class SmallFileSystemTest : public StoreRefusalsTest {
 protected:
  void SetUp() override {
    if (::unshare(CLONE_NEWNS) != 0 ||
        ::mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0) {
      GTEST_SKIP() << "needs a mount namespace of its own: " << std::strerror(errno);
    }
    if (::mount("terrace-test", at_.path().c_str(), "tmpfs", 0, "size=24m") != 0) {
      GTEST_SKIP() << "needs to mount a tmpfs: " << std::strerror(errno);
    }
    mounted_ = true;
    const std::string probe = at_.path() + "/probe";
    const UniqueFd direct(::open(probe.c_str(), O_RDWR | O_CREAT | O_DIRECT | O_CLOEXEC, 0600));
    ::unlink(probe.c_str());
    if (!direct) GTEST_SKIP() << "this kernel's tmpfs knows no O_DIRECT";
  }
  void TearDown() override {
    if (mounted_) ::umount2(at_.path().c_str(), MNT_DETACH);
  }
  std::string Table() const {
    return "[[nvme]]\npath = \"" + at_.path() + "/nvme\"\ncapacity = \"64MiB\"\n";
  }
  const std::string& mount_point() const { return at_.path(); }

 private:
  TemporaryFolder at_;
  bool mounted_ = false;
};

TEST_F(SmallFileSystemTest, AFullFileSystemStopsNoPut) {
  StartStore(Table());
  const std::vector<kvc_key> last = Keys(5000, 32);  // Of some 180 that there is room for.
  Run([&](kvc_client* client) -> Status {
    ASSIGN_OR_RETURN(const StoreSteps steps, StoreSteps::Open(client, kPage));
    RETURN_IF_ERROR(steps.PutPersistAndDemote(Keys(0, 16)));
    // Far more than there is room for.
    for (uint64_t key = 1000; key < 2000; key += 100)
      RETURN_IF_ERROR(steps.Put(Keys(key, 100)));
    return {};
  });
  EXPECT_TRUE(Await([this] { return At(StoreTier(), "/queued_pages") == 0; }));
  EXPECT_GT(At(StoreTier(), "/devices/0/write_errors"), 0);
  EXPECT_LE(At(StoreTier(), "/devices/0/file_bytes"), 24u << 20);
  // They make room for what is to be durable: who waits for that is answered when there is some.
  Run([&](kvc_client* client) -> Status {
    ASSIGN_OR_RETURN(const StoreSteps steps, StoreSteps::Open(client, kPage));
    RETURN_IF_ERROR(steps.Put(last));
    RETURN_IF_ERROR(steps.Persist(last));
    return steps.ExpectStored(last);
  });
  // After a restart what was durable is there.
  KillAndLaunch();
  Run([&](kvc_client* client) -> Status {
    ASSIGN_OR_RETURN(const StoreSteps steps, StoreSteps::Open(client, kPage));
    return steps.ExpectStored(last);
  });
}

TEST_F(SmallFileSystemTest, AReadOnlyFileSystemIsRefusedWithItsName) {
  StartStore(Table());
  PutDurably(Keys(0, 16));
  Stop();
  ASSERT_EQ(::mount(nullptr, mount_point().c_str(), nullptr, MS_REMOUNT | MS_RDONLY, nullptr), 0)
      << std::strerror(errno);
  const CommandOutput output = SecondDaemon();
  EXPECT_EQ(output.exit_code, 1);
  EXPECT_THAT(output.standard_error,
              AllOf(HasSubstr(mount_point()), HasSubstr("Read-only file system")));
}

}  // namespace
}  // namespace terrace
