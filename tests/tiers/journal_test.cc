#include "tiers/journal/journal.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <rocksdb/db.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <map>
#include <thread>

#include "base/mutex.h"
#include "base/random.h"
#include "tiers/sim/sim_executor.h"

namespace terrace {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Pair;
namespace fs = std::filesystem;

class JournalTest : public ::testing::Test {
 protected:
  JournalTest()
      : folder_(::testing::TempDir() + "terrace-journal-" + std::to_string(SecretWord())) {
    fs::create_directories(folder_);
  }
  ~JournalTest() override {
    journal_.reset();
    fs::remove_all(folder_);
  }

  std::string path() const { return folder_ + "/journal"; }
  Status Open() {
    journal_.reset();
    auto opened = OpenJournal(path(), owner_);
    if (!opened) return opened.error();
    journal_ = *std::move(opened);
    return {};
  }
  Status Put(const std::string& key, const std::string& value) {
    std::optional<Status> result;
    journal_->Put(key, value, [&](const Status& status) { result = status; });
    EXPECT_FALSE(result.has_value());
    EXPECT_TRUE(owner_.RunUntil([&] { return result.has_value(); }));
    return result.value_or(Status(Code::kInternal, "never completed"));
  }
  Status Delete(const std::string& key) {
    std::optional<Status> result;
    journal_->Delete(key, [&](const Status& status) { result = status; });
    EXPECT_TRUE(owner_.RunUntil([&] { return result.has_value(); }));
    return result.value_or(Status(Code::kInternal, "never completed"));
  }
  std::vector<std::string> Load(const std::string& prefix = "") {
    std::vector<std::string> lines;
    const auto records = journal_->Load(prefix);
    EXPECT_TRUE(records.has_value());
    for (const auto& record : *records)
      lines.push_back(record.key + "=" + record.value);
    return lines;
  }
  // Names and contents of all files below the journal's folder, its lock aside.
  std::map<std::string, std::string> Contents() const {
    std::map<std::string, std::string> contents;
    for (const auto& entry : fs::recursive_directory_iterator(folder_)) {
      if (!entry.is_regular_file()) continue;
      std::ifstream file(entry.path(), std::ios::binary);
      contents[entry.path().string()] = {std::istreambuf_iterator<char>(file), {}};
    }
    return contents;
  }
  // The journal's files whose name ends with `suffix`, the newest last.
  std::vector<fs::path> Files(const std::string& prefix, const std::string& suffix) const {
    std::vector<fs::path> files;
    for (const auto& entry : fs::directory_iterator(path())) {
      const std::string name = entry.path().filename().string();
      if (name.starts_with(prefix) && name.ends_with(suffix)) files.push_back(entry.path());
    }
    std::sort(files.begin(), files.end());
    return files;
  }

  const std::string folder_;
  ManualExecutor owner_;
  std::unique_ptr<Journal> journal_;
};

TEST_F(JournalTest, RecordsSurviveReopeningInKeyOrder) {
  ASSERT_TRUE(Open().ok());
  EXPECT_THAT(Load(), ElementsAre());
  EXPECT_TRUE(Put("model/b", "2").ok());
  EXPECT_TRUE(Put("model/a", "1").ok());
  EXPECT_TRUE(Put("model/c", std::string("\0x", 2)).ok());
  EXPECT_TRUE(Put("other", "3").ok());
  EXPECT_TRUE(Put("model/a", "new").ok());
  EXPECT_TRUE(Delete("model/b").ok());
  EXPECT_TRUE(Delete("never there").ok());
  for (int life = 0; life < 2; ++life) {
    EXPECT_THAT(Load("model/"), ElementsAre("model/a=new", std::string("model/c=\0x", 10)));
    EXPECT_THAT(Load("model/a"), ElementsAre("model/a=new"));
    EXPECT_EQ(Load().size(), 3u);
    EXPECT_THAT(Load("x"), ElementsAre());
    ASSERT_TRUE(Open().ok());
  }
}

TEST_F(JournalTest, WritesTakeEffectInTheirOrder) {
  ASSERT_TRUE(Open().ok());
  int completed = 0;
  for (int i = 0; i < 200; ++i) {
    journal_->Put("key", std::to_string(i), [&, i](const Status& status) {
      EXPECT_TRUE(status.ok());
      EXPECT_EQ(completed++, i);
    });
  }
  ASSERT_TRUE(owner_.RunUntil([&] { return completed == 200; }));
  EXPECT_THAT(Load(), ElementsAre("key=199"));
}

TEST_F(JournalTest, NoKeyReachesTheMarker) {
  ASSERT_TRUE(Open().ok());
  EXPECT_TRUE(Put("terrace-journal-format", "9").ok());
  EXPECT_TRUE(Delete("errace-journal-format").ok());
  ASSERT_TRUE(Open().ok());
  EXPECT_THAT(Load(), ElementsAre("terrace-journal-format=9"));
}

TEST_F(JournalTest, EmptyDirectoryThatIsThereAlreadyIsUsed) {
  fs::create_directory(path());
  ASSERT_TRUE(Open().ok());
  EXPECT_TRUE(Put("a", "1").ok());
}

TEST_F(JournalTest, SlashAtTheEndOfThePathChangesNothing) {
  ASSERT_TRUE(OpenJournal(path() + "//", owner_).has_value());
  EXPECT_TRUE(fs::exists(path() + "/CURRENT"));
  EXPECT_TRUE(Open().ok());
}

TEST_F(JournalTest, LeftoverOfACrashWhileCreatingIsReplaced) {
  fs::create_directory(path() + ".new");
  std::ofstream(path() + ".new/LOCK").flush();
  ASSERT_TRUE(Open().ok());
  EXPECT_FALSE(fs::exists(path() + ".new"));
}

TEST_F(JournalTest, AcknowledgedWritesSurviveSigkill) {
  int acknowledged[2];
  ASSERT_EQ(::pipe2(acknowledged, O_CLOEXEC), 0);
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    if (!Open().ok()) ::_exit(1);
    for (int i = 0;; ++i) {
      if (!Put("key/" + std::to_string(1000 + i), "value").ok()) ::_exit(1);
      if (::write(acknowledged[1], &i, sizeof i) != sizeof i) ::_exit(1);
    }
  }
  ::close(acknowledged[1]);
  int last = -1;
  while (last < 50 && ::read(acknowledged[0], &last, sizeof last) == sizeof last) {
  }
  ASSERT_EQ(::kill(child, SIGKILL), 0);
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  ASSERT_TRUE(WIFSIGNALED(status));
  while (::read(acknowledged[0], &last, sizeof last) == sizeof last) {
  }
  ::close(acknowledged[0]);
  ASSERT_GE(last, 50);
  ASSERT_TRUE(Open().ok());
  EXPECT_GE(Load("key/").size(), static_cast<size_t>(last + 1));
  EXPECT_TRUE(Put("after", "it").ok());
}

TEST_F(JournalTest, SecondDaemonIsToldWhoHasIt) {
  int ready[2];
  int end[2];
  ASSERT_EQ(::pipe2(ready, O_CLOEXEC), 0);
  ASSERT_EQ(::pipe2(end, O_CLOEXEC), 0);
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    ::close(end[1]);
    const char opened = Open().ok() ? 'y' : 'n';
    (void)!::write(ready[1], &opened, 1);
    char byte = 0;
    (void)!::read(end[0], &byte, 1);
    ::_exit(0);
  }
  ::close(ready[1]);
  char opened = 0;
  ASSERT_EQ(::read(ready[0], &opened, 1), 1);
  ASSERT_EQ(opened, 'y');
  const Status status = Open();
  EXPECT_EQ(status.code(), Code::kUnavailable);
  EXPECT_THAT(status.message(), HasSubstr("process " + std::to_string(child)));
  ::close(end[1]);
  ASSERT_EQ(::waitpid(child, nullptr, 0), child);
  for (const int fd : {ready[0], ready[1], end[0]})
    ::close(fd);
  EXPECT_TRUE(Open().ok());
}

TEST_F(JournalTest, OneProcessOpensItOnce) {
  ASSERT_TRUE(Open().ok());
  EXPECT_EQ(OpenJournal(path(), owner_).error().code(), Code::kUnavailable);
  EXPECT_TRUE(Put("still", "works").ok());
}

TEST_F(JournalTest, ForeignDirectoryIsRefusedAndLeftAsItIs) {
  fs::create_directory(path());
  std::ofstream(path() + "/letters.txt") << "dear";
  const auto before = Contents();
  EXPECT_EQ(Open().code(), Code::kMismatch);
  EXPECT_EQ(Contents(), before);
}

TEST_F(JournalTest, FileInItsPlaceIsRefused) {
  std::ofstream(path()) << "a file";
  EXPECT_EQ(Open().code(), Code::kMismatch);
}

TEST_F(JournalTest, ForeignRocksDbIsRefusedAndLeftAsItIs) {
  rocksdb::Options options;
  options.create_if_missing = true;
  rocksdb::DB* db = nullptr;
  ASSERT_TRUE(rocksdb::DB::Open(options, path(), &db).ok());
  ASSERT_TRUE(db->Put({}, "somebody", "else").ok());
  delete db;
  const auto before = Contents();
  const Status status = Open();
  EXPECT_EQ(status.code(), Code::kMismatch);
  EXPECT_THAT(status.message(), HasSubstr("something else"));
  EXPECT_EQ(Contents(), before);
}

TEST_F(JournalTest, OtherFormatIsRefused) {
  rocksdb::Options options;
  options.create_if_missing = true;
  rocksdb::DB* db = nullptr;
  ASSERT_TRUE(rocksdb::DB::Open(options, path(), &db).ok());
  ASSERT_TRUE(db->Put({}, "terrace-journal-format", "2").ok());
  delete db;
  const Status status = Open();
  EXPECT_EQ(status.code(), Code::kMismatch);
  EXPECT_THAT(status.message(), HasSubstr("format 2"));
}

TEST_F(JournalTest, DamagedManifestIsDataLossAndLeftAsItIs) {
  ASSERT_TRUE(Open().ok());
  ASSERT_TRUE(Put("a", "1").ok());
  journal_.reset();
  const auto manifests = Files("MANIFEST", "");
  ASSERT_EQ(manifests.size(), 1u);
  std::fstream file(manifests[0], std::ios::in | std::ios::out | std::ios::binary);
  file.seekp(20);
  file.write("XXXXXXXX", 8);
  file.close();
  const auto before = Contents();
  EXPECT_EQ(Open().code(), Code::kDataLoss);
  EXPECT_EQ(Contents(), before);
}

TEST_F(JournalTest, DamageInTheMiddleOfTheLogIsNotSkippedOver) {
  ASSERT_TRUE(Open().ok());
  for (int i = 10; i < 30; ++i)
    ASSERT_TRUE(Put("key", "value" + std::to_string(i)).ok());
  journal_.reset();
  const auto logs = Files("", ".log");
  ASSERT_FALSE(logs.empty());
  const size_t at = Contents()[logs.back().string()].find("value20");
  ASSERT_NE(at, std::string::npos);
  std::fstream file(logs.back(), std::ios::in | std::ios::out | std::ios::binary);
  file.seekp(static_cast<std::streamoff>(at));
  file.put('X');
  file.close();
  EXPECT_EQ(Open().code(), Code::kDataLoss);
}

TEST_F(JournalTest, WriteCutOffAtTheEndOfTheLogLosesOnlyItself) {
  ASSERT_TRUE(Open().ok());
  for (int i = 0; i < 20; ++i)
    ASSERT_TRUE(Put("key" + std::to_string(i), "value").ok());
  journal_.reset();
  const auto logs = Files("", ".log");
  ASSERT_FALSE(logs.empty());
  fs::resize_file(logs.back(), fs::file_size(logs.back()) - 3);
  ASSERT_TRUE(Open().ok());
  EXPECT_EQ(Load("key").size(), 19u);
}

TEST_F(JournalTest, MissingFolderAboveIsReported) {
  EXPECT_EQ(OpenJournal(folder_ + "/not/there", owner_).error().code(), Code::kNotFound);
}

// An owner that takes nothing from other threads until it is opened: so the journal's own thread
// stays where it is, as if the disk did.
class GatedExecutor final : public Executor {
 public:
  void Post(std::function<void()> task) override {
    if (std::this_thread::get_id() != owner_) {
      MutexLock lock(mu_);
      waiting_ = true;
      changed_.notify_all();
      while (!open_)
        changed_.wait(mu_);
    }
    tasks.Post(std::move(task));
  }
  void Open() {
    MutexLock lock(mu_);
    open_ = true;
    changed_.notify_all();
  }
  void AwaitWriter() {
    MutexLock lock(mu_);
    while (!waiting_)
      changed_.wait(mu_);
  }

  ManualExecutor tasks;

 private:
  const std::thread::id owner_ = std::this_thread::get_id();
  Mutex mu_;
  CondVar changed_;
  bool open_ GUARDED_BY(mu_) = false;
  bool waiting_ GUARDED_BY(mu_) = false;
};

TEST_F(JournalTest, WritesBeyondThoseThatMayWaitAreRefusedAndLaterOnesTaken) {
  GatedExecutor owner;
  Result<std::unique_ptr<Journal>> journal = OpenJournal(path(), owner);
  ASSERT_EQ(journal.status(), Status());
  std::map<Code, size_t> ended;
  const auto note = [&](const Status& status) { ++ended[status.code()]; };
  (*journal)->Put("first", "1", note);
  owner.AwaitWriter();
  for (size_t i = 0; i < kMaxWaitingWrites; ++i)
    (*journal)->Put("waits/" + std::to_string(i), "1", note);
  owner.tasks.RunAll();
  EXPECT_THAT(ended, IsEmpty());
  (*journal)->Put("beyond/put", "1", note);
  (*journal)->Delete("first", note);
  owner.tasks.RunAll();
  EXPECT_THAT(ended, ElementsAre(Pair(Code::kExhausted, 2)));

  owner.Open();
  ASSERT_TRUE(owner.tasks.RunUntil([&] { return ended[Code::kOk] == kMaxWaitingWrites + 1; }));
  (*journal)->Put("later", "1", note);
  ASSERT_TRUE(owner.tasks.RunUntil([&] { return ended[Code::kOk] == kMaxWaitingWrites + 2; }));
  EXPECT_EQ(ended[Code::kExhausted], 2u);
  journal->reset();
  ASSERT_TRUE(Open().ok());
  EXPECT_EQ(Load("waits/").size(), kMaxWaitingWrites);
  EXPECT_THAT(Load("beyond/"), IsEmpty());
  EXPECT_THAT(Load("first"), ElementsAre("first=1"));
  EXPECT_THAT(Load("later"), ElementsAre("later=1"));
}

TEST_F(JournalTest, AWriteThatTheDiskRefusesIsReportedAndLaterOnesAreTaken) {
  // A child of its own, for the limit on file sizes holds for the whole process.
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    if (!Open().ok() || !Put("small", "1").ok()) ::_exit(1);
    ::signal(SIGXFSZ, SIG_IGN);
    const rlimit limit{65536, RLIM_INFINITY};
    const rlimit none{RLIM_INFINITY, RLIM_INFINITY};
    if (::setrlimit(RLIMIT_FSIZE, &limit) != 0) ::_exit(2);
    for (int i = 0; i < 3; ++i) {
      if (Put("large", std::string(200'000, 'x')).ok()) ::_exit(3);
    }
    if (Load("small").size() != 1) ::_exit(4);
    if (::setrlimit(RLIMIT_FSIZE, &none) != 0) ::_exit(5);
    if (!Put("later", "2").ok()) ::_exit(6);
    ::_exit(0);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 0);
  ASSERT_TRUE(Open().ok());
  EXPECT_THAT(Load(), ElementsAre("later=2", "small=1"));
}

}  // namespace
}  // namespace terrace
