#include "bench/processes.h"

#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>

namespace terrace::bench {

Status Link::SendBytes(const void* bytes, size_t count) {
  const auto* next = static_cast<const uint8_t*>(bytes);
  while (count > 0) {
    const ssize_t sent = send(fd_.get(), next, count, MSG_NOSIGNAL);
    if (sent < 0 && errno == EINTR) continue;
    if (sent < 0) return SystemError("send to the other process", errno);
    next += sent;
    count -= static_cast<size_t>(sent);
  }
  return {};
}

Status Link::ReceiveBytes(void* bytes, size_t count) {
  auto* next = static_cast<uint8_t*>(bytes);
  while (count > 0) {
    const ssize_t received = recv(fd_.get(), next, count, 0);
    if (received < 0 && errno == EINTR) continue;
    if (received < 0) return SystemError("receive from the other process", errno);
    if (received == 0) return {Code::kUnavailable, "the other process has ended"};
    next += received;
    count -= static_cast<size_t>(received);
  }
  return {};
}

Result<Child> Child::Start(std::string name, const std::function<Status(Link&)>& body) {
  int ends[2];
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0) {
    return SystemError("socketpair", errno);
  }
  Link parent_end{UniqueFd(ends[0])};
  Link child_end{UniqueFd(ends[1])};
  std::fflush(nullptr);
  const pid_t parent = getpid();
  const pid_t pid = fork();
  if (pid < 0) return SystemError("fork", errno);
  if (pid == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent) _exit(1);  // It died before the line above took effect.
    parent_end = Link();
    const Status status = body(child_end);
    if (!status.ok()) std::fprintf(stderr, "%s: %s\n", name.c_str(), status.ToString().c_str());
    std::fflush(nullptr);
    _exit(status.ok() ? 0 : 1);
  }
  Child child(std::move(name), pid);
  child.link_ = std::move(parent_end);
  child.pidfd_.Reset(static_cast<int>(syscall(SYS_pidfd_open, pid, 0)));
  if (!child.pidfd_) return SystemError("pidfd_open", errno);
  return child;
}

Child::~Child() {
  if (pid_ < 0) return;
  Kill();
  (void)Wait();
}

Status Child::Wait() {
  int state = 0;
  pid_t waited = 0;
  do {
    waited = waitpid(pid_, &state, 0);
  } while (waited < 0 && errno == EINTR);
  pid_ = -1;
  if (waited < 0) return SystemError("waitpid", errno);
  if (WIFEXITED(state) && WEXITSTATUS(state) == 0) return {};
  return {Code::kInternal,
          name_ + (WIFSIGNALED(state) ? " was ended by signal " + std::to_string(WTERMSIG(state))
                                      : " exited with " + std::to_string(WEXITSTATUS(state)))};
}

void Child::Kill() {
  if (pid_ > 0) kill(pid_, SIGKILL);
}

Status TellAll(std::vector<Child>& children, Go go) {
  for (Child& child : children)
    RETURN_IF_ERROR(child.link().Send(go));
  return {};
}

Status HearAll(std::vector<Child>& children) {
  for (Child& child : children)
    RETURN_IF_ERROR(child.link().Receive<Go>().status());
  return {};
}

Status WaitAll(std::vector<Child>& children) {
  for (Child& child : children)
    RETURN_IF_ERROR(child.Wait());
  return {};
}

}  // namespace terrace::bench
