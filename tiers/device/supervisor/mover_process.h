// MoverProcess: a mover that was started, and its end of it: a socket, and a pidfd by which it is
// watched, killed and reaped.
//
// Thread safety: one thread's, which lives as long as the process: its end kills the mover.
#pragma once

#include <sys/types.h>

#include <string>

#include "base/clock.h"
#include "base/status.h"
#include "base/unique_fd.h"
#include "tiers/device/mover/arguments.h"
#include "tiers/device/mover/socket.h"

namespace terrace {

class MoverProcess {
 public:
  // Runs `program` with nothing open but its socket, /dev/null as standard input, and this
  // process's output and error; with its environment, default signals, and a process group of its
  // own, so that a terminal's signals go to the daemon alone. not_found and permission_denied: of
  // the file.
  static Result<MoverProcess> Start(const std::string& program, MoverArguments arguments);
  MoverProcess(MoverProcess&&) = default;
  MoverProcess& operator=(MoverProcess&&) = delete;
  // Kills and reaps what was not reaped. What does not die, a driver may be in the way, is left.
  ~MoverProcess();

  pid_t pid() const { return pid_; }
  int pidfd() const { return pidfd_.get(); }
  const MoverSocket& socket() const { return socket_; }

  void Kill() const;
  // Whether it is gone, within that time.
  bool AwaitEnd(MonotonicNs within_ns) const;
  // Of one that is gone: how it ended, in words.
  std::string Reap();

 private:
  MoverProcess(pid_t pid, UniqueFd pidfd, MoverSocket socket)
      : pid_(pid), pidfd_(std::move(pidfd)), socket_(std::move(socket)) {}

  pid_t pid_;
  UniqueFd pidfd_;  // None once it was reaped.
  MoverSocket socket_;
};

}  // namespace terrace
