#include "tests/systemd/service_manager.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <csignal>
#include <fstream>
#include <sstream>

namespace terrace {

namespace {

constexpr int kDeadlineMs = 60'000;

UniqueFd MakeSocket(const ServiceManagerOptions::Socket& options) {
  UniqueFd socket(::socket(AF_UNIX, options.type | SOCK_CLOEXEC, 0));
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path, options.path.data(),
              std::min(options.path.size(), sizeof address.sun_path - 1));
  const int on = options.pass_credentials ? 1 : 0;
  ::setsockopt(socket.get(), SOL_SOCKET, SO_PASSCRED, &on, sizeof on);
  if (::bind(socket.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) != 0) return {};
  if (options.listens && ::listen(socket.get(), 64) != 0) return {};
  return socket;
}

}  // namespace

ServiceManager::ServiceManager(ServiceManagerOptions options) : options_(std::move(options)) {
  notify_address_ = options_.abstract_notify_socket ? "@" + folder_.path() + "/notify"
                                                    : folder_.path() + "/notify";
  notify_ = std::make_unique<DatagramReceiver>(notify_address_);
  for (ServiceManagerOptions::Socket socket : options_.sockets) {
    if (socket.path.front() != '/') socket.path = folder() + "/" + socket.path;
    sockets_.push_back(MakeSocket(socket));
  }
}

ServiceManager::~ServiceManager() {
  if (pid_ < 0) return;
  ::kill(pid_, SIGKILL);
  (void)AwaitExit();
}

void ServiceManager::WriteConfig(const std::string& more, const std::string& daemon,
                                 const std::string& capacity) const {
  const std::string fresh = config_file() + ".new";
  std::ofstream(fresh) << "[daemon]\nstate_dir = \"" << folder() << "/state\"\n"
                       << daemon << "\n[host]\ncapacity = \"" << capacity
                       << "\"\nslab = \"2MiB\"\nblock = \"2MiB\"\npretouch = \"none\"\n"
                       << more << "\n";
  ::rename(fresh.c_str(), config_file().c_str());
}

Status ServiceManager::Launch(std::vector<std::string> arguments) {
  if (arguments.empty()) arguments = {"--config", config_file()};
  pid_ = ::fork();
  if (pid_ < 0) return SystemError("fork", errno);
  if (pid_ == 0) {
    const Status status = Exec(arguments);
    ::dprintf(STDERR_FILENO, "%s\n", status.message().c_str());
    ::_exit(127);
  }
  process_ = UniqueFd(static_cast<int>(::syscall(SYS_pidfd_open, pid_, 0)));
  return {};
}

Status ServiceManager::Exec(const std::vector<std::string>& arguments) const {
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  const std::string log = folder() + "/log";
  const int error = options_.standard_error >= 0
                        ? options_.standard_error
                        : ::open(log.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
  ::dup2(error, STDERR_FILENO);
  // Above those numbers first: one of them may stand where another has to go.
  std::vector<int> high;
  for (const UniqueFd& socket : sockets_)
    high.push_back(::fcntl(socket.get(), F_DUPFD_CLOEXEC, 1000));
  for (size_t i = 0; i < high.size(); ++i)
    ::dup2(high[i], 3 + static_cast<int>(i));

  std::vector<std::string> environment = options_.environment;
  environment.push_back("NOTIFY_SOCKET=" + notify_address_);
  if (!sockets_.empty()) {
    environment.push_back("LISTEN_PID=" + std::to_string(::getpid()));
    environment.push_back("LISTEN_FDS=" + std::to_string(sockets_.size()));
    std::string names = "LISTEN_FDNAMES=";
    for (size_t i = 0; i < options_.sockets.size(); ++i)
      names.append(i == 0 ? "" : ":").append(options_.sockets[i].name);
    environment.push_back(names);
  }
  for (const char* name : {"ASAN_OPTIONS", "UBSAN_OPTIONS", "LSAN_OPTIONS", "TSAN_OPTIONS"}) {
    const char* value = std::getenv(name);
    if (value != nullptr) environment.push_back(std::string(name) + "=" + value);
  }
  std::vector<char*> argv = {const_cast<char*>("terraced")};
  for (const std::string& argument : arguments)
    argv.push_back(const_cast<char*>(argument.c_str()));
  argv.push_back(nullptr);
  std::vector<char*> envp;
  for (std::string& line : environment)
    envp.push_back(line.data());
  envp.push_back(nullptr);
  if (options_.in_child && !options_.in_child()) return SystemError("in_child", errno);
  ::execve(TERRACED_PATH, argv.data(), envp.data());
  return SystemError("execve", errno);
}

void ServiceManager::Signal(int number) const {
  if (pid_ > 0) ::kill(pid_, number);
}

Result<int> ServiceManager::AwaitExit() {
  pollfd entry{process_.get(), POLLIN, 0};
  if (::poll(&entry, 1, kDeadlineMs) != 1) {
    return Status(Code::kDeadlineExceeded, "terraced did not end: " + Log());
  }
  int status = 0;
  if (::waitpid(pid_, &status, 0) != pid_) return SystemError("waitpid", errno);
  pid_ = -1;
  process_.Reset();
  return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

std::string ServiceManager::Log() const {
  std::ifstream stream(folder() + "/log", std::ios::binary);
  std::ostringstream text;
  text << stream.rdbuf();
  return text.str();
}

bool ServiceManager::AwaitLog(const std::string& part) const {
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::milliseconds(kDeadlineMs);
  while (Log().find(part) == std::string::npos) {
    if (std::chrono::steady_clock::now() > deadline) return false;
    ::poll(nullptr, 0, 5);
  }
  return true;
}

}  // namespace terrace
