#include "tests/cli/run_program.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>

#include "base/unique_fd.h"

namespace terrace {
namespace {

constexpr int kDeadlineMs = 60'000;

// An anonymous file for one stream of the program: it never blocks, whatever is written.
UniqueFd Stream(const std::string& content) {
  Result<UniqueFd> file = CreateMemfd("stream", 0);
  if (!file) return {};
  if (::write(file->get(), content.data(), content.size()) < 0) return {};
  ::lseek(file->get(), 0, SEEK_SET);
  return *std::move(file);
}

std::string ContentOf(const UniqueFd& file) {
  std::string content;
  char part[4096];
  ssize_t count = 0;
  ::lseek(file.get(), 0, SEEK_SET);
  while ((count = ::read(file.get(), part, sizeof part)) > 0) {
    content.append(part, static_cast<size_t>(count));
  }
  return content;
}

[[noreturn]] void Become(const ProgramCall& call, int input, int output, int error) {
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  ::dup2(input, STDIN_FILENO);
  ::dup2(output, STDOUT_FILENO);
  ::dup2(error, STDERR_FILENO);
  std::vector<char*> argv;
  argv.push_back(const_cast<char*>(call.program.c_str()));
  for (const std::string& argument : call.arguments) {
    argv.push_back(const_cast<char*>(argument.c_str()));
  }
  argv.push_back(nullptr);
  for (const std::string& variable : call.environment) {
    ::putenv(const_cast<char*>(variable.c_str()));
  }
  ::execv(call.program.c_str(), argv.data());
  ::_exit(127);
}

}  // namespace

ProgramOutput RunProgram(const ProgramCall& call) {
  ProgramOutput result;
  const UniqueFd input = Stream(call.standard_input);
  const UniqueFd output = call.output_file.empty()
                              ? Stream("")
                              : UniqueFd(::open(call.output_file.c_str(), O_WRONLY | O_CLOEXEC));
  const UniqueFd error = Stream("");
  if (!input || !output || !error) return result;
  const pid_t pid = ::fork();
  if (pid < 0) return result;
  if (pid == 0) Become(call, input.get(), output.get(), error.get());
  const UniqueFd process(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0)));
  pollfd ended{process.get(), POLLIN, 0};
  const bool in_time = ::poll(&ended, 1, kDeadlineMs) == 1;
  if (!in_time) ::kill(pid, SIGKILL);
  int state = 0;
  while (::waitpid(pid, &state, 0) < 0 && errno == EINTR) {
  }
  if (in_time) result.exit_code = WIFSIGNALED(state) ? 128 + WTERMSIG(state) : WEXITSTATUS(state);
  if (call.output_file.empty()) result.standard_output = ContentOf(output);
  result.standard_error = ContentOf(error);
  return result;
}

}  // namespace terrace
