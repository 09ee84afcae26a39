#include "tiers/device/supervisor/mover_process.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <limits>
#include <utility>
#include <vector>

#include "base/check.h"

namespace terrace {
namespace {

constexpr MonotonicNs kDyingNs = kNsPerSecond;  // At most, of one that is killed.
constexpr int kSocket = STDERR_FILENO + 1;      // The mover's number for it.

// What the child does before it becomes the program.
class Preparation {
 public:
  explicit Preparation(int socket) {
    Keep(::posix_spawn_file_actions_init(&actions_));
    Keep(::posix_spawnattr_init(&attributes_));
    Keep(::posix_spawn_file_actions_addopen(&actions_, STDIN_FILENO, "/dev/null", O_RDONLY, 0));
    // Also of the same number it is not closed on exec after that.
    Keep(::posix_spawn_file_actions_adddup2(&actions_, socket, kSocket));
    Keep(::posix_spawn_file_actions_addclosefrom_np(&actions_, kSocket + 1));
    sigset_t signals;
    ::sigemptyset(&signals);
    Keep(::posix_spawnattr_setsigmask(&attributes_, &signals));
    ::sigfillset(&signals);
    Keep(::posix_spawnattr_setsigdefault(&attributes_, &signals));
    Keep(::posix_spawnattr_setpgroup(&attributes_, 0));
    Keep(::posix_spawnattr_setflags(
        &attributes_, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETPGROUP));
  }
  ~Preparation() {
    ::posix_spawn_file_actions_destroy(&actions_);
    ::posix_spawnattr_destroy(&attributes_);
  }
  Preparation(const Preparation&) = delete;
  Preparation& operator=(const Preparation&) = delete;

  int error() const { return error_; }
  const posix_spawn_file_actions_t* actions() const { return &actions_; }
  const posix_spawnattr_t* attributes() const { return &attributes_; }

 private:
  void Keep(int error) {
    if (error_ == 0) error_ = error;
  }
  posix_spawn_file_actions_t actions_;
  posix_spawnattr_t attributes_;
  int error_ = 0;
};

}  // namespace

Result<MoverProcess> MoverProcess::Start(const std::string& program, MoverArguments arguments) {
  ASSIGN_OR_RETURN(auto pair, MoverSocket::Pair());
  arguments.socket = kSocket;
  std::vector<std::string> command = MoverCommand(program, arguments);
  std::vector<char*> argv;
  for (std::string& argument : command)
    argv.push_back(argument.data());
  argv.push_back(nullptr);
  const Preparation preparation(pair.second.fd());
  int error = preparation.error();
  pid_t pid = 0;
  if (error == 0) {
    error = ::posix_spawn(&pid, program.c_str(), preparation.actions(), preparation.attributes(),
                          argv.data(), environ);
  }
  if (error != 0) return SystemError("start " + program, error);
  // Not reaped yet, so the number is its.
  UniqueFd pidfd(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0)));
  if (!pidfd) {
    const int why = errno;
    ::kill(pid, SIGKILL);
    while (::waitpid(pid, nullptr, 0) < 0 && errno == EINTR) {
    }
    return SystemError("pidfd_open of a mover", why);
  }
  return MoverProcess(pid, std::move(pidfd), std::move(pair.first));
}

MoverProcess::~MoverProcess() {
  if (!pidfd_) return;
  Kill();
  if (AwaitEnd(kDyingNs)) (void)Reap();
}

void MoverProcess::Kill() const {
  // That it is gone already is as well.
  (void)::syscall(SYS_pidfd_send_signal, pidfd_.get(), SIGKILL, nullptr, 0);
}

bool MoverProcess::AwaitEnd(MonotonicNs within_ns) const {
  pollfd wait{.fd = pidfd_.get(), .events = POLLIN, .revents = 0};
  const MonotonicNs most = std::numeric_limits<int>::max();
  return ::poll(&wait, 1, static_cast<int>(std::min(within_ns / kNsPerMs, most))) == 1;
}

std::string MoverProcess::Reap() {
  siginfo_t ended{};
  int done = -1;
  do {
    done = ::waitid(P_PIDFD, static_cast<id_t>(pidfd_.get()), &ended, WEXITED);
  } while (done != 0 && errno == EINTR);
  pidfd_.Reset();
  if (done != 0) return "ended";
  return (ended.si_code == CLD_EXITED ? "ended with exit code " : "ended by signal ") +
         std::to_string(ended.si_status);
}

}  // namespace terrace
