#include "bench/daemon.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "bench/client.h"
#include "bench/statistics.h"

namespace terrace::bench {
namespace {

namespace fs = std::filesystem;

constexpr double kStartSeconds = 30;
constexpr double kReadySeconds =
    120;  // Memory that the host has not backed yet costs seconds a GiB.
constexpr uint64_t kMiB = 1u << 20;
constexpr int kStopMs = 10'000;

// Waits for `pidfd` to say that the process ended; false at the deadline. No descriptor: a pause.
bool Ended(int pidfd, int timeout_ms) {
  pollfd watched{pidfd, POLLIN, 0};
  return poll(&watched, 1, timeout_ms) > 0;
}

}  // namespace

Result<std::string> FindTerraced() {
  std::error_code failed;
  const fs::path self = fs::read_symlink("/proc/self/exe", failed).parent_path();
  for (const char* place : {"terraced", "../daemon/service/terraced", "../daemon/terraced",
                            "../../daemon/service/terraced"}) {
    const fs::path candidate = self / place;
    if (access(candidate.c_str(), X_OK) == 0) return fs::canonical(candidate, failed).string();
  }
  return Status(Code::kNotFound, "no terraced beside " + self.string() +
                                     ": build it, or name it with --terraced PATH");
}

Result<Daemon> Daemon::Start(const DaemonOptions& options) {
  Daemon daemon;
  ASSIGN_OR_RETURN(daemon.folder_, TemporaryFolder::Make());
  daemon.binary_ = options.binary;
  if (daemon.binary_.empty()) {
    ASSIGN_OR_RETURN(daemon.binary_, FindTerraced());
  }
  RETURN_IF_ERROR(daemon.WriteConfig(options));
  RETURN_IF_ERROR(daemon.Launch());
  RETURN_IF_ERROR(daemon.AwaitReady(options));
  return daemon;
}

Status Daemon::WriteConfig(const DaemonOptions& options) const {
  std::ofstream config(folder() + "/terraced.toml");
  config << "[daemon]\nstate_dir = \"" << folder() << "/state\"\nlog_level = \"warning\"\n";
  if (options.tenants == 0) config << "socket = \"" << socket() << "\"\n";
  config << "[host]\ncapacity = \"" << options.capacity_bytes << "\"\n";
  // A small tier gets small slabs and blocks, so that it still has several of each. Blocks are whole
  // granules of a device too.
  const uint64_t eighth = options.capacity_bytes / 8 / kMiB;
  config << "slab = \"" << std::clamp<uint64_t>(eighth, 1, 64) << "MiB\"\nblock = \""
         << std::clamp<uint64_t>(eighth / 2 * 2, 2, 64) << "MiB\"\n";
  if (options.pretouch_bytes != UINT64_MAX) {
    config << "pretouch = \"" << options.pretouch_bytes << "\"\n";
  }
  // A client may pin all there is: the suites look at costs, not at budgets.
  config << "[limits]\npinned_bytes = \"" << options.capacity_bytes << "\"\n";
  if (options.tenants > 0) {
    config << "[metrics]\nlisten = \"" << metrics() << "\"\n";
  }
  if (options.store_bytes > 0) {
    // The daemon makes none: it may be on a disk that is not mounted.
    std::filesystem::create_directory(folder() + "/store");
    ::chmod((folder() + "/store").c_str(), 0700);
    config << "[[nvme]]\npath = \"" << folder() << "/store\"\ncapacity = \"" << options.store_bytes
           << "\"\n";
  }
  for (uint32_t tenant = 0; tenant < options.tenants; ++tenant) {
    config << "[[socket]]\npath = \"" << socket_of(tenant) << "\"\ntenant = \"tenant-" << tenant
           << "\"\n";
    if (tenant == 0) config << "role = \"admin\"\nadmin = true\n";
  }
  config << options.devices;
  config.close();
  if (!config) return {Code::kInternal, "the configuration could not be written in " + folder()};
  return {};
}

Status Daemon::Launch() {
  const std::string config = folder() + "/terraced.toml";
  const pid_t parent = getpid();
  pid_ = fork();
  if (pid_ < 0) return SystemError("fork", errno);
  if (pid_ == 0) {
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    if (getppid() != parent) _exit(1);
    // Its standard output would mix with the one object that a suite prints.
    dup2(STDERR_FILENO, STDOUT_FILENO);
    execl(binary_.c_str(), "terraced", "--config", config.c_str(), nullptr);
    _exit(127);
  }
  pidfd_.Reset(static_cast<int>(syscall(SYS_pidfd_open, pid_, 0)));
  if (!pidfd_) return SystemError("pidfd_open", errno);
  return {};
}

Status Daemon::AwaitReady(const DaemonOptions& options) const {
  const Stopwatch watch;
  Client client;
  while (!client) {
    Result<Client> connected = Connect({.socket = socket(), .name = "bench", .read_only = true});
    if (connected) {
      client = *std::move(connected);
    } else if (Ended(pidfd_.get(), 5)) {
      return {Code::kUnavailable, "terraced ended at its start: see above"};
    } else if (watch.Seconds() > kStartSeconds) {
      return std::move(connected).error().WithContext("terraced does not accept connections");
    }
  }
  if (options.pretouch_bytes == 0) return {};
  return AwaitReserve(1);
}

Status Daemon::AwaitReserve(uint64_t bytes) const {
  const Stopwatch watch;
  ASSIGN_OR_RETURN(const Client client,
                   Connect({.socket = socket(), .name = "bench", .read_only = true}));
  while (watch.Seconds() < kReadySeconds) {
    ASSIGN_OR_RETURN(const uint64_t done, StatusNumber(client.get(), "/host/pretouch/done_bytes"));
    ASSIGN_OR_RETURN(const uint64_t target,
                     StatusNumber(client.get(), "/host/pretouch/target_bytes"));
    if (target >= bytes && done >= target) return {};
    if (Ended(pidfd_.get(), 50)) return {Code::kUnavailable, "terraced ended: see above"};
  }
  return {Code::kDeadlineExceeded, "terraced did not make its memory ready in time"};
}

Result<double> Daemon::ProcessorSeconds() const {
  double seconds = 0;
  std::error_code failed;
  const std::string folder = "/proc/" + std::to_string(pid_) + "/task";
  for (const auto& thread : fs::directory_iterator(folder, failed)) {
    uint64_t ns = 0;  // The first number of schedstat: time on a processor.
    std::ifstream(thread.path() / "schedstat") >> ns;
    seconds += static_cast<double>(ns) / 1e9;
  }
  if (seconds == 0) return Status(Code::kUnavailable, folder + "/*/schedstat cannot be read");
  return seconds;
}

Status Daemon::KillAndLaunch() {
  kill(pid_, SIGKILL);
  int state = 0;
  AwaitEnd(&state);
  return Launch();
}

void Daemon::AwaitEnd(int* state) {
  while (waitpid(pid_, state, 0) < 0 && errno == EINTR) {
  }
  pid_ = -1;
}

Daemon::~Daemon() {
  (void)Stop();
}

Status Daemon::Stop() {
  Status outcome;
  if (pid_ > 0) {
    kill(pid_, SIGTERM);
    if (!Ended(pidfd_.get(), kStopMs)) {
      outcome = {Code::kDeadlineExceeded, "terraced did not end within ten seconds of SIGTERM"};
      kill(pid_, SIGKILL);
    }
    int state = 0;
    AwaitEnd(&state);
    if (outcome.ok() && !(WIFEXITED(state) && WEXITSTATUS(state) == 0)) {
      outcome = {Code::kInternal,
                 "terraced did not end well: wait status " + std::to_string(state)};
    }
  }
  folder_.Remove();
  return outcome;
}

}  // namespace terrace::bench
