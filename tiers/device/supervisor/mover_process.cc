#include "tiers/device/supervisor/mover_process.h"

#include <poll.h>
#include <signal.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <limits>
#include <utility>
#include <vector>

#include "tiers/device/supervisor/spawn.h"

namespace terrace {
namespace {

constexpr MonotonicNs kDyingNs = kNsPerSecond;  // At most, of one that is killed.
}  // namespace

Result<MoverProcess> MoverProcess::Start(const std::string& program, MoverArguments arguments) {
  ASSIGN_OR_RETURN(auto pair, MoverSocket::Pair());
  arguments.socket = kMoverSocket;
  const std::vector<std::string> command = MoverCommand(program, arguments);
  ASSIGN_OR_RETURN(SpawnedMover spawned, SpawnMover(command, {.socket = pair.second.fd()}));
  return MoverProcess(spawned.pid, std::move(spawned.pidfd), std::move(pair.first));
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
