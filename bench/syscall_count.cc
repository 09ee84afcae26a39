#include "bench/syscall_count.h"

#include <signal.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <string>
#include <vector>

#include "bench/statistics.h"

namespace terrace::bench {
namespace {

// glibc declares it for its own struct; this is the kernel's.
constexpr int kSyscallStop = SIGTRAP | 0x80;  // With PTRACE_O_TRACESYSGOOD.
constexpr double kSettleSeconds = 0.1;
constexpr double kDeadlineSeconds = 120;

std::vector<pid_t> ThreadsOf(pid_t pid) {
  std::vector<pid_t> threads;
  std::error_code failed;
  const std::string folder = "/proc/" + std::to_string(pid) + "/task";
  for (const auto& entry : std::filesystem::directory_iterator(folder, failed)) {
    threads.push_back(static_cast<pid_t>(std::stol(entry.path().filename().string())));
  }
  return threads;
}

// Lets every stopped thread go on to its next system call; answers how many stood at an entry.
Result<uint64_t> Pump(const std::vector<pid_t>& threads) {
  uint64_t entries = 0;
  for (const pid_t thread : threads) {
    int state = 0;
    const pid_t waited = waitpid(thread, &state, __WALL | WNOHANG);
    if (waited < 0) return SystemError("waitpid of a traced thread", errno);
    if (waited == 0) continue;
    if (!WIFSTOPPED(state)) return Status(Code::kInternal, "the counted process ended");
    int signal = 0;
    if (WSTOPSIG(state) == kSyscallStop) {
      __ptrace_syscall_info info{};
      if (ptrace(PTRACE_GET_SYSCALL_INFO, thread, sizeof info, &info) > 0 &&
          info.op == PTRACE_SYSCALL_INFO_ENTRY) {
        ++entries;
      }
    } else if (state >> 16 == 0) {
      signal = WSTOPSIG(state);  // Its own; a ptrace event has none to deliver.
    }
    if (ptrace(PTRACE_SYSCALL, thread, 0, signal) != 0) {
      return SystemError("ptrace(PTRACE_SYSCALL)", errno);
    }
  }
  return entries;
}

// Ends a traced process. Its first thread can be waited for only when its tracer has taken note of
// the end of all others.
class EndOfTracing {
 public:
  EndOfTracing(pid_t pid, const std::vector<pid_t>& threads) : pid_(pid), threads_(threads) {}
  EndOfTracing(const EndOfTracing&) = delete;
  EndOfTracing& operator=(const EndOfTracing&) = delete;
  ~EndOfTracing() {
    kill(pid_, SIGKILL);
    for (const pid_t thread : threads_) {
      if (thread != pid_) waitpid(thread, nullptr, __WALL);
    }
  }

 private:
  const pid_t pid_;
  const std::vector<pid_t>& threads_;
};

}  // namespace

Result<uint64_t> CountSystemCalls(pid_t pid, CountedSection& section) {
  const std::vector<pid_t> threads = ThreadsOf(pid);
  const EndOfTracing end(pid, threads);
  for (const pid_t thread : threads) {
    if (ptrace(PTRACE_SEIZE, thread, 0, PTRACE_O_TRACESYSGOOD) != 0) {
      return SystemError("ptrace(PTRACE_SEIZE)", errno);
    }
    if (ptrace(PTRACE_INTERRUPT, thread, 0, 0) != 0) {
      return SystemError("ptrace(PTRACE_INTERRUPT)", errno);
    }
  }
  // Being interrupted makes a thread leave and enter again the call that it is blocked in: that is
  // our doing and over before `go`.
  for (const Stopwatch settle; settle.Seconds() < kSettleSeconds;) {
    RETURN_IF_ERROR(Pump(threads).status());
  }
  section.go.store(1);
  uint64_t entries = 0;
  for (const Stopwatch watch; section.done.load() == 0;) {
    ASSIGN_OR_RETURN(const uint64_t more, Pump(threads));
    entries += more;
    if (watch.Seconds() > kDeadlineSeconds) {
      return Status(Code::kDeadlineExceeded, "the counted section does not end");
    }
  }
  ASSIGN_OR_RETURN(const uint64_t more, Pump(threads));
  return entries + more;
}

}  // namespace terrace::bench
