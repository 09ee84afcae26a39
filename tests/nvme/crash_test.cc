// The store's process is killed at any instruction, again and again: every page that was
// acknowledged is there and reads back byte by byte, and nothing else is ever read.
#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <map>
#include <set>

#include "base/unique_fd.h"
#include "tests/nvme/store_fixture.h"
#include "tests/nvme/writer_records.h"
#include "tiers/nvme/fsck.h"

extern char** environ;

namespace terrace {
namespace {

// What may be found of a page.
struct Expected {
  std::set<uint64_t> versions;
  bool may_be_absent = true;
};

class StoreCrashTest : public testing::TestWithParam<Durability> {
 protected:
  // Runs a writer until it has told `records` and `more` microseconds have passed, and kills it.
  void RunAndKill(uint64_t seed, uint64_t records, std::chrono::microseconds more) {
    int pipe_ends[2];
    ASSERT_EQ(::pipe(pipe_ends), 0);
    const UniqueFd out(pipe_ends[0]);
    UniqueFd in(pipe_ends[1]);
    const pid_t child = Spawn(seed, in.get());
    in.Reset();
    uint64_t told = 0;
    WriterRecord record;
    while (told < records && ::read(out.get(), &record, sizeof record) == sizeof record) {
      Note(record);
      ++told;
    }
    const auto until = std::chrono::steady_clock::now() + more;
    while (std::chrono::steady_clock::now() < until) {
    }
    ::kill(child, SIGKILL);
    int how = 0;
    ASSERT_EQ(::waitpid(child, &how, 0), child);
    ASSERT_TRUE(WIFSIGNALED(how)) << "the writer ended by itself: " << how;
    while (::read(out.get(), &record, sizeof record) == sizeof record)
      Note(record);
    told_ += told;
  }

  pid_t Spawn(uint64_t seed, int out) {
    std::vector<std::string> words = {STORE_WRITER, std::to_string(seed),
                                      std::to_string(static_cast<int>(GetParam()))};
    words.insert(words.end(), paths.begin(), paths.end());
    std::vector<char*> argv;
    for (std::string& word : words)
      argv.push_back(word.data());
    argv.push_back(nullptr);
    posix_spawn_file_actions_t actions;
    ::posix_spawn_file_actions_init(&actions);
    ::posix_spawn_file_actions_adddup2(&actions, out, STDOUT_FILENO);
    pid_t child = 0;
    EXPECT_EQ(::posix_spawn(&child, STORE_WRITER, &actions, nullptr, argv.data(), environ), 0);
    ::posix_spawn_file_actions_destroy(&actions);
    return child;
  }

  void Note(const WriterRecord& record) {
    Expected& page = expected[record.id];
    switch (record.event) {
      case WriterEvent::kWriteBegun:
        page.versions.insert(record.version);
        break;
      case WriterEvent::kWritten:
        page = {{record.version}, false};
        break;
      case WriterEvent::kEraseBegun:
        page.may_be_absent = true;
        break;
      case WriterEvent::kErased:
        page = {};
        break;
    }
  }

  // What the next start finds is what was said, and becomes what is expected from then on.
  void Check() {
    NvmeStoreOptions options;
    options.durability = GetParam();
    for (const std::string& path : paths)
      options.directories.push_back({path, 2u << 20});
    uint64_t allocated = 0;
    {
      OpenStore open(options, clock);
      ASSERT_TRUE(open.status.ok()) << open.status.ToString();
      EXPECT_EQ(open.store->Report().orphans, 0U);
      std::map<uint64_t, StoredPage> found;
      for (const StoredPage& page : open.found)
        ASSERT_TRUE(found.emplace(page.position, page).second);
      for (auto& [id, page] : expected) {
        const auto is = found.find(id);
        if (is == found.end()) {
          ASSERT_TRUE(page.may_be_absent) << "page " << id << " is lost";
          page = {};
          continue;
        }
        const auto version = static_cast<uint64_t>(is->second.committed_ms);
        ASSERT_TRUE(page.versions.contains(version)) << "page " << id;
        page = {{version}, false};
      }
      const auto read = open.Read(open.found);
      for (size_t i = 0; i < read.size(); ++i) {
        const StoredPage& page = open.found[i];
        ASSERT_TRUE(expected.contains(page.position));
        ASSERT_EQ(read[i].fault, ReadFault::kNone) << read[i].status.ToString();
        ASSERT_EQ(read[i].bytes, BytesOf(page, static_cast<uint64_t>(page.committed_ms)));
      }
      checked_ += read.size();
      allocated = open.allocated();
    }
    // The index, the books and the slots say the same.
    const auto fsck = FsckNvmeStore({.directories = paths, .read_data = true}, clock);
    ASSERT_TRUE(fsck) << fsck.status().ToString();
    EXPECT_TRUE(fsck->clean()) << (fsck->findings.empty() ? "" : fsck->findings[0]);
    EXPECT_EQ(fsck->good_bytes, allocated);
  }

  TempFolder folder;
  SystemClock clock;
  const std::vector<std::string> paths = {folder.Make("a"), folder.Make("b")};
  std::map<uint64_t, Expected> expected;
  uint64_t told_ = 0;
  uint64_t checked_ = 0;
};

TEST_P(StoreCrashTest, KeepsWhatWasAcknowledgedAndNothingElse) {
  const char* const asked = std::getenv("TERRACE_NVME_KILLS");
  const int kills = asked != nullptr ? std::atoi(asked) : 20;
  for (int round = 1; round <= kills; ++round) {
    SCOPED_TRACE("round " + std::to_string(round));
    Random random(static_cast<uint64_t>(round) * 7919);
    // Now and then while it starts.
    const uint64_t records = random.Chance(1, 8) ? 0 : random.Below(600);
    RunAndKill(static_cast<uint64_t>(round), records,
               std::chrono::microseconds(random.Below(records == 0 ? 60'000 : 3'000)));
    ASSERT_FALSE(HasFatalFailure());
    Check();
    ASSERT_FALSE(HasFatalFailure());
  }
  std::printf("%d kills, %llu events, %llu pages read back\n", kills,
              static_cast<unsigned long long>(told_), static_cast<unsigned long long>(checked_));
}

INSTANTIATE_TEST_SUITE_P(Durabilities, StoreCrashTest,
                         testing::Values(Durability::kProcess, Durability::kPower));

}  // namespace
}  // namespace terrace
