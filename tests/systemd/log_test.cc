// Where the real daemon's log goes, and in which form.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "tests/systemd/service_manager.h"

namespace terrace {
namespace {

using nlohmann::json;
using testing::AllOf;
using testing::HasSubstr;
using testing::Not;

std::string Socket(const ServiceManager& manager) {
  return "socket = \"" + manager.folder() + "/t.sock\"\n";
}

TEST(LogOutput, JsonIsOneObjectALine) {
  ServiceManager manager;
  manager.WriteConfig("", Socket(manager) + "log_level = \"debug\"\nlog_format = \"json\"\n");
  ASSERT_EQ(manager.Launch(), Status());
  ASSERT_TRUE(manager.AwaitReady().has_value()) << manager.Log();
  manager.Signal(SIGTERM);
  ASSERT_EQ(manager.AwaitExit().status(), Status());
  std::istringstream lines(manager.Log());
  std::vector<std::string> events;
  for (std::string line; std::getline(lines, line);) {
    const json object = json::parse(line, nullptr, false);
    ASSERT_TRUE(object.is_object()) << line;
    EXPECT_TRUE(object.contains("time") && object.contains("level")) << line;
    events.push_back(object.value("event", ""));
    if (events.back() == "serving") {
      EXPECT_EQ(object["level"], "info");
      EXPECT_EQ(object["state_dir"], manager.folder() + "/state");
    }
  }
  EXPECT_THAT(events, AllOf(testing::Contains("serving"), testing::Contains("stopping")));
}

TEST(LogOutput, AReloadChangesTheForm) {
  ServiceManager manager;
  manager.WriteConfig("", Socket(manager));
  ASSERT_EQ(manager.Launch(), Status());
  ASSERT_TRUE(manager.AwaitReady().has_value()) << manager.Log();
  EXPECT_THAT(manager.Log(), HasSubstr(" info serving version="));
  manager.WriteConfig("", Socket(manager) + "log_format = \"json\"\n");
  manager.Signal(SIGHUP);
  ASSERT_TRUE(manager.AwaitReady().has_value());
  EXPECT_THAT(manager.Log(), HasSubstr("\"event\":\"reloaded\""));
}

// ---- The journal --------------------------------------------------------------------------------

// Whether this process may give a child mounts of its own.
bool MayMount() {
  const pid_t pid = ::fork();
  if (pid == 0) {
    const bool may = ::unshare(CLONE_NEWNS) == 0 &&
                     ::mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) == 0;
    ::_exit(may ? 0 : 1);
  }
  int status = 1;
  ::waitpid(pid, &status, 0);
  return status == 0;
}

// In the child: `folder`, of /tmp, appears as /run/systemd/journal, in a /run of its own.
bool PutJournalInPlace(const std::string& folder) {
  constexpr char kPlace[] = "/run/systemd/journal";
  return ::unshare(CLONE_NEWNS) == 0 &&
         ::mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) == 0 &&
         ::mount("none", "/run", "tmpfs", 0, nullptr) == 0 && ::mkdir("/run/systemd", 0755) == 0 &&
         ::mkdir(kPlace, 0755) == 0 &&
         ::mount(folder.c_str(), kPlace, nullptr, MS_BIND, nullptr) == 0;
}

class JournalTest : public testing::Test {
 protected:
  void SetUp() override {
    if (!MayMount()) GTEST_SKIP() << "no mount namespace: CAP_SYS_ADMIN is missing";
    int ends[2];
    ASSERT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0);
    error_.Reset(ends[0]);
    heard_.Reset(ends[1]);
  }
  // The device and inode of the daemon's standard error, as systemd says it.
  std::string Stream() const {
    struct stat info {};
    ::fstat(error_.get(), &info);
    return "JOURNAL_STREAM=" + std::to_string(info.st_dev) + ":" + std::to_string(info.st_ino);
  }
  ServiceManagerOptions Options(const std::string& stream) const {
    ServiceManagerOptions options;
    options.environment = {stream};
    options.standard_error = error_.get();
    options.in_child = [folder = folder_.path()] { return PutJournalInPlace(folder); };
    return options;
  }
  std::string Heard() const {
    std::string text(1u << 16, '\0');
    const ssize_t got = ::recv(heard_.get(), text.data(), text.size(), MSG_DONTWAIT);
    text.resize(got > 0 ? static_cast<size_t>(got) : 0);
    return text;
  }

  const TemporaryFolder folder_;
  UniqueFd error_;
  UniqueFd heard_;
};

TEST_F(JournalTest, UnderTheJournalEachFieldIsItsOwn) {
  const DatagramReceiver journal(folder_.path() + "/socket");
  ASSERT_TRUE(journal.bound());
  ServiceManager manager(Options(Stream()));
  manager.WriteConfig("", Socket(manager));
  ASSERT_EQ(manager.Launch(), Status());
  ASSERT_TRUE(manager.AwaitReady().has_value()) << Heard();
  const std::optional<std::string> serving = journal.ReceiveWith("TERRACE_EVENT=serving\n");
  ASSERT_TRUE(serving.has_value());
  EXPECT_THAT(*serving,
              AllOf(testing::StartsWith("MESSAGE=serving version="), HasSubstr("\nPRIORITY=6\n"),
                    HasSubstr("\nSYSLOG_IDENTIFIER=terraced\n"),
                    HasSubstr("\nTERRACE_STATE_DIR=" + manager.folder() + "/state\n")));
  EXPECT_EQ(Heard(), "");
  // The operator may want lines all the same.
  manager.WriteConfig("", Socket(manager) + "log_format = \"text\"\n");
  manager.Signal(SIGHUP);
  ASSERT_TRUE(manager.AwaitReady().has_value());
  EXPECT_THAT(Heard(), HasSubstr(" info reloaded "));
}

TEST_F(JournalTest, AStandardErrorThatIsNotTheJournalsGetsLines) {
  const DatagramReceiver journal(folder_.path() + "/socket");
  ASSERT_TRUE(journal.bound());
  ServiceManager manager(Options("JOURNAL_STREAM=1:2"));
  manager.WriteConfig("", Socket(manager));
  ASSERT_EQ(manager.Launch(), Status());
  ASSERT_TRUE(manager.AwaitReady().has_value()) << Heard();
  EXPECT_THAT(Heard(), HasSubstr(" info serving "));
  EXPECT_EQ(journal.Receive(0), std::nullopt);
}

TEST_F(JournalTest, WhileTheJournalIsAwayStandardErrorHasTheLines) {
  ServiceManager manager(Options(Stream()));  // Nothing is bound in the folder.
  manager.WriteConfig("", Socket(manager));
  ASSERT_EQ(manager.Launch(), Status());
  ASSERT_TRUE(manager.AwaitReady().has_value()) << Heard();
  EXPECT_THAT(Heard(), HasSubstr(" info serving "));
}

TEST_F(JournalTest, AJournalThatIsBehindDoesNotStopTheDaemon) {
  const DatagramReceiver journal(folder_.path() + "/socket");
  ASSERT_TRUE(journal.bound());
  ServiceManager manager(Options(Stream()));
  manager.WriteConfig("", Socket(manager));
  ASSERT_EQ(manager.Launch(), Status());
  ASSERT_TRUE(manager.AwaitReady().has_value()) << Heard();
  // More records than its queue takes, two at least a reload, and nobody reads.
  int queue = 0;
  std::ifstream("/proc/sys/net/unix/max_dgram_qlen") >> queue;
  ASSERT_GT(queue, 0);
  std::string level = "debug";
  for (int i = 0; i < queue; ++i) {
    level = level == "debug" ? "info" : "debug";
    manager.WriteConfig("", Socket(manager) + "log_level = \"" + level + "\"\n");
    manager.Signal(SIGHUP);
    ASSERT_TRUE(manager.AwaitReady().has_value());
  }
  while (journal.Receive(0)) {
  }
  manager.Signal(SIGHUP);
  ASSERT_TRUE(manager.AwaitReady().has_value());
  // The first that it takes again says how many it did not.
  EXPECT_THAT(journal.Receive().value_or(""), HasSubstr("TERRACE_LEFT_OUT="));
}

}  // namespace
}  // namespace terrace
