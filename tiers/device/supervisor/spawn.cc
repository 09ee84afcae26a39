#include "tiers/device/supervisor/spawn.h"

#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include <cerrno>

namespace terrace {
namespace {

// What the child does before it becomes the program.
class Preparation {
 public:
  explicit Preparation(const SpawnDescriptors& descriptors) {
    Keep(::posix_spawn_file_actions_init(&actions_));
    Keep(::posix_spawnattr_init(&attributes_));
    Keep(::posix_spawn_file_actions_addopen(&actions_, STDIN_FILENO, "/dev/null", O_RDONLY, 0));
    // Also of the same number it is not closed on exec after that.
    Give(descriptors.output, STDOUT_FILENO);
    Give(descriptors.error, STDERR_FILENO);
    Give(descriptors.socket, kMoverSocket);
    const int open = descriptors.socket < 0 ? kMoverSocket : kMoverSocket + 1;
    Keep(::posix_spawn_file_actions_addclosefrom_np(&actions_, open));
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
  void Give(int descriptor, int as) {
    if (descriptor >= 0) Keep(::posix_spawn_file_actions_adddup2(&actions_, descriptor, as));
  }
  posix_spawn_file_actions_t actions_;
  posix_spawnattr_t attributes_;
  int error_ = 0;
};

}  // namespace

Result<SpawnedMover> SpawnMover(const std::vector<std::string>& command,
                                const SpawnDescriptors& descriptors) {
  std::vector<char*> argv;
  for (const std::string& argument : command)
    argv.push_back(const_cast<char*>(argument.c_str()));
  argv.push_back(nullptr);
  const Preparation preparation(descriptors);
  int error = preparation.error();
  SpawnedMover spawned;
  if (error == 0) {
    error = ::posix_spawn(&spawned.pid, argv.front(), preparation.actions(),
                          preparation.attributes(), argv.data(), environ);
  }
  if (error != 0) return SystemError("start " + command.front(), error);
  // Not reaped yet, so the number is its.
  spawned.pidfd = UniqueFd(static_cast<int>(::syscall(SYS_pidfd_open, spawned.pid, 0)));
  if (!spawned.pidfd) {
    const int why = errno;
    ::kill(spawned.pid, SIGKILL);
    while (::waitpid(spawned.pid, nullptr, 0) < 0 && errno == EINTR) {
    }
    return SystemError("pidfd_open of a mover", why);
  }
  return spawned;
}

}  // namespace terrace
