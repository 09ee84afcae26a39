#include "tiers/device/supervisor/list_gpus.h"

#include <poll.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <limits>

#include "tiers/device/supervisor/spawn.h"

namespace terrace {
namespace {

constexpr MonotonicNs kDyingNs = kNsPerSecond;
constexpr size_t kMostText = 64u << 10;  // What is read of its output, and of its words.
constexpr size_t kMostWords = 500;

bool AwaitEnd(int pidfd, MonotonicNs within_ns) {
  pollfd wait{.fd = pidfd, .events = POLLIN, .revents = 0};
  const MonotonicNs most = std::numeric_limits<int>::max();
  return ::poll(&wait, 1, static_cast<int>(std::min(within_ns / kNsPerMs, most))) == 1;
}

std::string TextOf(const UniqueFd& file) {
  std::string text(kMostText, '\0');
  const ssize_t bytes = ::pread(file.get(), text.data(), text.size(), 0);
  text.resize(bytes > 0 ? static_cast<size_t>(bytes) : 0);
  return text;
}

// Its last line, without its name and that of the code, which the status has itself.
std::string WordsOf(const UniqueFd& file) {
  std::string text = TextOf(file);
  while (!text.empty() && text.back() == '\n')
    text.pop_back();
  text = text.substr(text.rfind('\n') + 1);  // npos + 1 is 0.
  for (int names = 0; names < 2; ++names) {
    const size_t colon = text.find(": ");
    if (colon != text.npos) text = text.substr(colon + 2);
  }
  text.resize(std::min(text.size(), kMostWords));
  std::replace_if(
      text.begin(), text.end(), [](char c) { return c < 0x20 || c > 0x7e; }, '?');
  return text;
}

// The exit codes of terrace-mover (docs/device_memory.md).
Code CodeOfExit(int exit_code) {
  switch (exit_code) {
    case 3:
      return Code::kNotFound;
    case 4:
      return Code::kPermissionDenied;
    case 5:
      return Code::kMismatch;
    case 6:
      return Code::kUnavailable;
    default:
      return Code::kInternal;
  }
}

}  // namespace

Result<std::vector<ListedGpu>> ListGpus(const std::string& program, MonotonicNs within_ns) {
  // Not pipes: what it writes waits for nobody, and is read when it has ended.
  const UniqueFd output(::memfd_create("terrace-list", MFD_CLOEXEC));
  const UniqueFd error(::memfd_create("terrace-list-error", MFD_CLOEXEC));
  if (!output || !error) return SystemError("memfd_create", errno);
  ASSIGN_OR_RETURN(const SpawnedMover child,
                   SpawnMover({program, "--list"}, {.output = output.get(), .error = error.get()}));
  const bool ended = AwaitEnd(child.pidfd.get(), within_ns);
  if (!ended) {
    (void)::syscall(SYS_pidfd_send_signal, child.pidfd.get(), SIGKILL, nullptr, 0);
    // One that does not die is left to the kernel.
    if (!AwaitEnd(child.pidfd.get(), kDyingNs)) {
      return Status(Code::kDeadlineExceeded, "the driver hangs: " + program + " does not even die");
    }
  }
  siginfo_t how{};
  while (::waitid(P_PIDFD, static_cast<id_t>(child.pidfd.get()), &how, WEXITED) != 0) {
    if (errno != EINTR) return SystemError("waitid", errno);
  }
  if (!ended) {
    return Status(Code::kDeadlineExceeded, "the driver hangs: " + program +
                                               " did not list its devices within " +
                                               std::to_string(within_ns / kNsPerSecond) + " s");
  }
  if (how.si_code != CLD_EXITED) {
    return Status(Code::kInternal,
                  program + " --list ended by signal " + std::to_string(how.si_status));
  }
  if (how.si_status != 0) return Status(CodeOfExit(how.si_status), WordsOf(error));
  return ParseGpuList(TextOf(output));
}

}  // namespace terrace
