// The start and the end of the real daemon.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/ptrace.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <thread>

#include "tests/service/wire_client.h"
#include "tests/support/daemon_process.h"

namespace terrace {
namespace {

using testing::HasSubstr;

TEST(Daemon, SigtermEndsItWithZeroAndRemovesItsSocket) {
  Result<std::unique_ptr<DaemonProcess>> daemon = DaemonProcess::Start();
  ASSERT_EQ(daemon.status(), Status());
  struct stat info {};
  ASSERT_EQ(::stat((*daemon)->socket().c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 07777, mode_t{0600});
  const Result<int> code = (*daemon)->Stop();
  ASSERT_EQ(code.status(), Status());
  EXPECT_EQ(*code, 0) << (*daemon)->Log();
  EXPECT_FALSE(std::filesystem::exists((*daemon)->socket()));
  EXPECT_FALSE(std::filesystem::exists((*daemon)->socket() + ".lock"));
}

TEST(Daemon, SigtermWithClientsAndABlockedReaderStillEndsIt) {
  Result<std::unique_ptr<DaemonProcess>> daemon = DaemonProcess::Start();
  ASSERT_EQ(daemon.status(), Status());
  WireClient good = WireClient::Connect((*daemon)->socket());
  ASSERT_EQ(good.Hello("good").status(), Status());
  WireClient silent = WireClient::Connect((*daemon)->socket());
  WireClient blocked = WireClient::Connect((*daemon)->socket());
  ASSERT_EQ(blocked.Hello("blocked").status(), Status());
  wire::Report report;
  report.set_what("status");
  const std::string request = WireClient::Encode(wire::Type::kReport, 1, report);
  // Until the daemon takes no more of it.
  for (pollfd entry{blocked.fd(), POLLOUT, 0}; ::poll(&entry, 1, 300) == 1;) {
    if (::send(blocked.fd(), request.data(), request.size(), MSG_DONTWAIT | MSG_NOSIGNAL) < 0 &&
        errno != EAGAIN) {
      break;
    }
  }
  const Result<int> code = (*daemon)->Stop();
  ASSERT_EQ(code.status(), Status());
  EXPECT_EQ(*code, 0);
  EXPECT_TRUE(good.AwaitClosed());
  EXPECT_TRUE(silent.AwaitClosed());
}

// A thread gives itself its name some time after it was started.
pid_t AwaitThreadNamed(pid_t pid, const std::string& name) {
  const std::string folder = "/proc/" + std::to_string(pid) + "/task";
  for (int tries = 0; tries < 10'000; ++tries) {
    std::error_code failed;
    for (const auto& thread : std::filesystem::directory_iterator(folder, failed)) {
      std::ifstream file(thread.path() / "comm");
      std::string comm;
      if (std::getline(file, comm) && comm == name) {
        return static_cast<pid_t>(std::stol(thread.path().filename().string()));
      }
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return -1;
}

// As one that waits for a file system that hangs.
TEST(Daemon, AThreadThatHangsDoesNotKeepItForEver) {
  Result<std::unique_ptr<DaemonProcess>> daemon = DaemonProcess::Start();
  ASSERT_EQ(daemon.status(), Status());
  const pid_t reading = AwaitThreadNamed((*daemon)->pid(), "read-0");
  ASSERT_GT(reading, 0);
  if (::ptrace(PTRACE_SEIZE, reading, nullptr, nullptr) != 0) {
    GTEST_SKIP() << "tracing is not allowed here: " << std::strerror(errno);
  }
  ASSERT_EQ(::ptrace(PTRACE_INTERRUPT, reading, nullptr, nullptr), 0);
  ASSERT_EQ(::waitpid(reading, nullptr, __WALL), reading);
  ASSERT_EQ(::kill((*daemon)->pid(), SIGTERM), 0);
  // The end of the traced thread is its tracer's to take.
  ASSERT_EQ(::waitpid(reading, nullptr, __WALL), reading);
  const Result<int> code = (*daemon)->AwaitExit();
  ASSERT_EQ(code.status(), Status());
  EXPECT_EQ(*code, 1);
  EXPECT_THAT((*daemon)->Log(), HasSubstr("a file system hangs"));
}

TEST(Daemon, TheSocketOfAKilledDaemonIsReplaced) {
  Result<std::unique_ptr<DaemonProcess>> daemon = DaemonProcess::Start();
  ASSERT_EQ(daemon.status(), Status());
  (*daemon)->Kill();
  ASSERT_TRUE(std::filesystem::exists((*daemon)->socket()));
  ASSERT_EQ((*daemon)->Launch(), Status());
  WireClient client = WireClient::Connect((*daemon)->socket());
  EXPECT_EQ(client.Hello("after").status(), Status());
}

TEST(Daemon, ASecondOneCannotTakeTheSocketNorTheStateOfALiveOne) {
  Result<std::unique_ptr<DaemonProcess>> daemon = DaemonProcess::Start();
  ASSERT_EQ(daemon.status(), Status());
  const TemporaryFolder other;
  const CommandOutput same_socket =
      RunTerraced({"--socket", (*daemon)->socket(), "--state-dir", other.path() + "/state",
                   "--host-capacity", "16MiB"});
  EXPECT_EQ(same_socket.exit_code, 1);
  EXPECT_THAT(same_socket.standard_error, HasSubstr("another terraced is running"));
  const CommandOutput same_state =
      RunTerraced({"--socket", other.path() + "/t.sock", "--state-dir", (*daemon)->state_dir(),
                   "--host-capacity", "16MiB"});
  EXPECT_EQ(same_state.exit_code, 1);
  EXPECT_THAT(same_state.standard_error,
              HasSubstr("in use by process " + std::to_string((*daemon)->pid())));
  EXPECT_FALSE(std::filesystem::exists(other.path() + "/t.sock"));
  WireClient client = WireClient::Connect((*daemon)->socket());
  EXPECT_EQ(client.Hello("still served").status(), Status());
}

TEST(Daemon, TheCommandLineSaysWhatIsWrongAndExitsWithTwo) {
  const TemporaryFolder folder;
  std::ofstream(folder.path() + "/bad.toml") << "[host]\ncapacity = \"lots\"\n";
  const CommandOutput bad_file = RunTerraced({"--config", folder.path() + "/bad.toml"});
  EXPECT_EQ(bad_file.exit_code, 2);
  EXPECT_THAT(bad_file.standard_error, HasSubstr("bad.toml:2: host.capacity: expected a size"));
  const CommandOutput bad_option = RunTerraced({"--host-capacity", "-3"});
  EXPECT_EQ(bad_option.exit_code, 2);
  const CommandOutput bad_size = RunTerraced({"--host-capacity", "lots"});
  EXPECT_EQ(bad_size.exit_code, 2);
  EXPECT_THAT(bad_size.standard_error, HasSubstr("--host-capacity: host.capacity: expected"));
  EXPECT_EQ(RunTerraced({"--no-such-option"}).exit_code, 2);
  EXPECT_EQ(RunTerraced({"--fsck=thoroughly"}).exit_code, 2);
  EXPECT_EQ(RunTerraced({"--fsck=index", "--check-host"}).exit_code, 2);
  const CommandOutput no_store = RunTerraced({"--fsck=index"});
  EXPECT_EQ(no_store.exit_code, 2);
  EXPECT_THAT(no_store.standard_error, HasSubstr("has no [[nvme]]"));
  EXPECT_EQ(RunTerraced({"--config", folder.path() + "/missing.toml"}).exit_code, 2);
}

// It is known only when the devices are: the configuration alone may be right.
TEST(Daemon, WantingMoreThanADeviceHasExitsWithTwo) {
  const TemporaryFolder folder;
  std::ofstream(folder.path() + "/t.toml")
      << "[host]\ncapacity = \"16MiB\"\n[devices]\ndevice = \"host\"\n"
         "[[device]]\nuuid = \"host:0\"\ncapacity = 0.5\nweights_floor = \"600MiB\"\n";
  const std::vector<std::string> arguments = {"--config",    folder.path() + "/t.toml",
                                              "--socket",    folder.path() + "/t.sock",
                                              "--state-dir", folder.path() + "/state"};
  const CommandOutput output = RunTerraced(arguments);
  EXPECT_EQ(output.exit_code, 2);
  EXPECT_THAT(output.standard_error, HasSubstr("device.weights_floor: "));
}

TEST(Daemon, TheCommandLineGoesOverTheFile) {
  const TemporaryFolder folder;
  std::ofstream(folder.path() + "/t.toml")
      << "[daemon]\nsocket = \"/a.sock\"\nlog_level = \"error\"\n[limits]\npins = 64\n";
  const CommandOutput output =
      RunTerraced({"--config", folder.path() + "/t.toml", "--socket", "/b.sock", "--state-dir",
                   "/s", "--host-capacity", "32MiB", "--check-config"});
  EXPECT_EQ(output.exit_code, 0) << output.standard_error;
  EXPECT_THAT(output.standard_output, HasSubstr("socket = \"/b.sock\""));
  EXPECT_THAT(output.standard_output, HasSubstr("state_dir = \"/s\""));
  EXPECT_THAT(output.standard_output, HasSubstr("log_level = \"error\""));
  EXPECT_THAT(output.standard_output, HasSubstr("capacity = \"32MiB\""));
  EXPECT_THAT(output.standard_output, HasSubstr("pins = 64"));
  EXPECT_THAT(RunTerraced({"--version"}).standard_output, HasSubstr("terraced "));
  EXPECT_THAT(RunTerraced({"--help"}).standard_output, HasSubstr("--check-config"));
}

TEST(Daemon, AFolderItMayNotUseIsNamed) {
  const TemporaryFolder folder;
  std::filesystem::create_directory(folder.path() + "/state");
  ASSERT_EQ(::chmod((folder.path() + "/state").c_str(), 0777), 0);
  const CommandOutput output = RunTerraced({"--socket", folder.path() + "/t.sock", "--state-dir",
                                            folder.path() + "/state", "--host-capacity", "16MiB"});
  EXPECT_EQ(output.exit_code, 1);
  EXPECT_THAT(output.standard_error, HasSubstr("daemon.state_dir: "));
  EXPECT_THAT(output.standard_error, HasSubstr("writable by others"));
}

}  // namespace
}  // namespace terrace
