#include "tests/support/daemon_process.h"

#include <fcntl.h>
#include <grp.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <sstream>

namespace terrace {

namespace {

using std::chrono::steady_clock;
constexpr std::chrono::seconds kDeadline{20};

std::string ReadAll(const std::string& path) {
  std::ifstream stream(path, std::ios::binary);
  std::ostringstream text;
  text << stream.rdbuf();
  return text.str();
}

std::string InFolder(std::string text, const std::string& folder) {
  for (size_t at = 0; (at = text.find('@', at)) != std::string::npos;)
    text.replace(at, 1, folder);
  return text;
}

// Starts terraced with standard output and error appended to files, as `user` and with
// `descriptors` at most unless these are 0.
Result<pid_t> Spawn(const std::vector<std::string>& arguments, const std::string& output,
                    const std::string& error, uid_t user = 0, uint64_t descriptors = 0) {
  std::vector<char*> argv;
  argv.push_back(const_cast<char*>("terraced"));
  for (const std::string& argument : arguments)
    argv.push_back(const_cast<char*>(argument.c_str()));
  argv.push_back(nullptr);
  const int flags = O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC;
  const UniqueFd output_fd(::open(output.c_str(), flags, 0600));
  const UniqueFd error_fd(::open(error.c_str(), flags, 0600));
  if (!output_fd || !error_fd) return SystemError("opening " + output, errno);
  // By descriptor: the user need not be able to reach the folder it is in.
  const UniqueFd program(::open(TERRACED_PATH, O_PATH | O_CLOEXEC));
  if (!program) return SystemError("opening " TERRACED_PATH, errno);
  const pid_t pid = ::fork();
  if (pid < 0) return SystemError("fork", errno);
  if (pid == 0) {
    const rlimit limit{descriptors, descriptors};
    if (descriptors != 0 && ::setrlimit(RLIMIT_NOFILE, &limit) != 0) ::_exit(126);
    if (user != 0 && (::setgroups(0, nullptr) != 0 || ::setresgid(user, user, user) != 0 ||
                      ::setresuid(user, user, user) != 0)) {
      ::_exit(126);
    }
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    ::dup2(output_fd.get(), STDOUT_FILENO);
    ::dup2(error_fd.get(), STDERR_FILENO);
    ::fexecve(program.get(), argv.data(), environ);
    ::_exit(127);
  }
  return pid;
}

Result<int> AwaitEnd(pid_t pid, const UniqueFd& process) {
  pollfd entry{process.get(), POLLIN, 0};
  const auto wait_ms = std::chrono::duration_cast<std::chrono::milliseconds>(kDeadline).count();
  if (::poll(&entry, 1, static_cast<int>(wait_ms)) != 1) {
    return Status(Code::kDeadlineExceeded, "terraced did not end");
  }
  int status = 0;
  if (::waitpid(pid, &status, 0) != pid) return SystemError("waitpid", errno);
  return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

UniqueFd ProcessOf(pid_t pid) {
  return UniqueFd(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0)));
}

bool Answers(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path, path.c_str(), std::min(path.size(), sizeof address.sun_path - 1));
  const UniqueFd socket(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  return ::connect(socket.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) == 0;
}

// The directories that `store` names, which the daemon does not make. They may be there.
Status MakeDirectories(const std::string& store, uid_t user) {
  constexpr std::string_view kPath = "path = \"";
  for (size_t at = 0; (at = store.find(kPath, at)) != std::string::npos;) {
    at += kPath.size();
    const std::string path = store.substr(at, store.find('"', at) - at);
    if (::mkdir(path.c_str(), 0700) != 0) {
      if (errno == EEXIST) continue;
      return SystemError("mkdir of " + path, errno);
    }
    if (user != 0 && ::chown(path.c_str(), user, user) != 0) {
      return SystemError("chown of " + path, errno);
    }
  }
  return {};
}

}  // namespace

TemporaryFolder::TemporaryFolder() {
  std::string name = "/tmp/terrace-test-XXXXXX";  // Short: it goes into a socket's path.
  const char* made = ::mkdtemp(name.data());
  if (made != nullptr) path_ = made;
}

TemporaryFolder::~TemporaryFolder() {
  std::error_code ignored;
  if (!path_.empty()) std::filesystem::remove_all(path_, ignored);
}

Result<std::unique_ptr<DaemonProcess>> DaemonProcess::Start(const DaemonProcessOptions& options) {
  std::unique_ptr<DaemonProcess> daemon(new DaemonProcess());
  std::string name = "/tmp/terrace-test-XXXXXX";
  if (::mkdtemp(name.data()) == nullptr) return SystemError("mkdtemp", errno);
  daemon->folder_ = name;
  const std::string tables = InFolder(options.tables, name);
  daemon->user_ = options.user;
  daemon->descriptors_ = options.descriptors;
  if (!tables.empty()) ::chmod(name.c_str(), 0755);
  if (options.user != 0 && ::chown(name.c_str(), options.user, options.user) != 0) {
    return SystemError("chown of " + name, errno);
  }
  const std::string store = InFolder(options.store, name);
  RETURN_IF_ERROR(MakeDirectories(store, options.user));
  std::ofstream config(daemon->config_file());
  config << "[daemon]\n";
  if (tables.empty()) config << "socket = \"" << daemon->socket() << "\"\n";
  config << "state_dir = \"" << daemon->state_dir() << "\"\nlog_level = \"" << options.log_level
         << "\"\n[host]\ncapacity = \"" << options.capacity << "\"\nslab = \"" << options.slab
         << "\"\nblock = \"" << options.block << "\"\npretouch = \"" << options.pretouch
         << "\"\n[limits]\n"
         << options.limits << "\n";
  if (options.metrics) config << "[metrics]\nlisten = \"" << daemon->metrics() << "\"\n";
  config << store << tables << "\n";
  config.close();
  daemon->arguments_ = {"--config", daemon->config_file()};
  daemon->arguments_.insert(daemon->arguments_.end(), options.arguments.begin(),
                            options.arguments.end());
  RETURN_IF_ERROR(daemon->Launch());
  return daemon;
}

DaemonProcess::~DaemonProcess() {
  Kill();
  std::error_code ignored;
  std::filesystem::remove_all(folder_, ignored);
}

Status DaemonProcess::Launch() {
  ASSIGN_OR_RETURN(pid_,
                   Spawn(arguments_, folder_ + "/output", folder_ + "/log", user_, descriptors_));
  process_ = ProcessOf(pid_);
  if (!process_) return SystemError("pidfd_open", errno);
  return AwaitServing();
}

Status DaemonProcess::AwaitServing() {
  const auto deadline = steady_clock::now() + kDeadline;
  while (!Answers(socket())) {
    if (!Running()) {
      const Result<int> code = AwaitExit();
      return {Code::kUnavailable,
              "terraced ended with " + std::to_string(code ? *code : -1) + ": " + Log()};
    }
    if (steady_clock::now() > deadline) {
      return {Code::kDeadlineExceeded, "terraced does not serve: " + Log()};
    }
    ::poll(nullptr, 0, 5);
  }
  return {};
}

bool DaemonProcess::Running() const {
  if (pid_ < 0) return false;
  pollfd entry{process_.get(), POLLIN, 0};
  return ::poll(&entry, 1, 0) == 0;
}

Result<int> DaemonProcess::AwaitExit() {
  if (pid_ < 0) return Status(Code::kInvalidArgument, "terraced is not running");
  ASSIGN_OR_RETURN(const int code, AwaitEnd(pid_, process_));
  pid_ = -1;
  process_.Reset();
  return code;
}

Result<int> DaemonProcess::Stop() {
  if (pid_ > 0) ::kill(pid_, SIGTERM);
  return AwaitExit();
}

void DaemonProcess::Kill() {
  if (pid_ < 0) return;
  ::kill(pid_, SIGKILL);
  (void)AwaitExit();
}

std::string DaemonProcess::Log() const {
  return ReadAll(folder_ + "/log");
}

CommandOutput RunTerraced(const std::vector<std::string>& arguments) {
  const TemporaryFolder folder;
  CommandOutput output;
  const Result<pid_t> pid = Spawn(arguments, folder.path() + "/output", folder.path() + "/error");
  if (!pid) return output;
  const UniqueFd process = ProcessOf(*pid);
  Result<int> code = AwaitEnd(*pid, process);
  if (!code) {
    ::kill(*pid, SIGKILL);
    (void)AwaitEnd(*pid, process);
  } else {
    output.exit_code = *code;
  }
  output.standard_output = ReadAll(folder.path() + "/output");
  output.standard_error = ReadAll(folder.path() + "/error");
  return output;
}

bool KillTerracedWithin(const std::vector<std::string>& arguments, std::chrono::microseconds time) {
  const auto until = steady_clock::now() + time;
  const Result<pid_t> pid = Spawn(arguments, "/dev/null", "/dev/null");
  if (!pid) return false;
  const UniqueFd process = ProcessOf(*pid);
  pollfd entry{process.get(), POLLIN, 0};
  bool runs = true;
  while (runs && steady_clock::now() < until)
    runs = ::poll(&entry, 1, 0) == 0;
  ::kill(*pid, SIGKILL);
  (void)AwaitEnd(*pid, process);
  return runs;
}

}  // namespace terrace
