// Other programs, each a question: the conformance tests, the sanitizer of CUDA over the kernels,
// and the suites of terrace-bench with what they must reach.
#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <nlohmann/json.hpp>
#include <regex>
#include <vector>

#include "base/unique_fd.h"
#include "bench/device_engine.h"
#include "bench/gpu_check/question.h"

extern char** environ;

namespace terrace::bench {
namespace {

constexpr size_t kMostOutput = 4u << 20;  // More is read and dropped.

struct Output {
  int exit_code = 0;  // 128 and the signal for what was killed.
  std::string text;   // Of standard output.
};

Result<Output> Run(std::vector<std::string> words) {
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) return SystemError("pipe", errno);
  const UniqueFd ours(ends[0]);
  UniqueFd theirs(ends[1]);
  std::vector<char*> argv;
  for (std::string& word : words)
    argv.push_back(word.data());
  argv.push_back(nullptr);
  posix_spawn_file_actions_t actions;
  ::posix_spawn_file_actions_init(&actions);
  ::posix_spawn_file_actions_adddup2(&actions, theirs.get(), STDOUT_FILENO);
  pid_t process = -1;
  const int failed =
      ::posix_spawn(&process, words[0].c_str(), &actions, nullptr, argv.data(), environ);
  ::posix_spawn_file_actions_destroy(&actions);
  if (failed != 0) return SystemError(words[0], failed);
  theirs.Reset();
  Output output;
  char some[4096];
  for (;;) {
    const ssize_t got = ::read(ours.get(), some, sizeof some);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) break;
    if (output.text.size() < kMostOutput) output.text.append(some, static_cast<size_t>(got));
  }
  int state = 0;
  if (::waitpid(process, &state, 0) < 0) return SystemError("waitpid", errno);
  output.exit_code = WIFEXITED(state) ? WEXITSTATUS(state) : 128 + WTERMSIG(state);
  return output;
}

std::string LastLine(const std::string& text) {
  const size_t end = text.find_last_not_of('\n');
  if (end == text.npos) return "no output";
  const size_t begin = text.rfind('\n', end);
  return text.substr(begin == text.npos ? 0 : begin + 1, end - (begin == text.npos ? 0 : begin));
}

Status NoProgram(const std::string& path, const char* name) {
  if (!path.empty() && ::access(path.c_str(), X_OK) == 0) return {};
  return {Code::kMismatch, std::string("no ") + name + " to be run"};
}

Result<Answer> Conformance(const CheckOptions& options) {
  RETURN_IF_ERROR(NoProgram(options.device_test, "device_test"));
  ASSIGN_OR_RETURN(const Output output,
                   Run({options.device_test,
                        std::string("--gtest_filter=*/") + (options.on_gpu ? "Cuda" : "Host")}));
  std::smatch passed;
  static const std::regex kPassed(R"(\[  PASSED  \] ([0-9]+) test)");
  const bool some = std::regex_search(output.text, passed, kPassed) && passed[1] != "0";
  Answer answer;
  answer.pass = output.exit_code == 0 && some;
  answer.words = answer.pass ? passed[1].str() + " tests passed" : LastLine(output.text);
  return answer;
}

Result<Answer> Sanitizer(const CheckOptions& options) {
  if (!options.on_gpu) return Status(Code::kMismatch, "it looks at kernels of a GPU");
  RETURN_IF_ERROR(NoProgram(options.sanitizer, "compute-sanitizer"));
  RETURN_IF_ERROR(NoProgram(options.device_test, "device_test"));
  Answer answer;
  for (const char* tool : {"memcheck", "racecheck"}) {
    ASSIGN_OR_RETURN(
        const Output output,
        Run({options.sanitizer, "--tool", tool, "--error-exitcode", "9", options.device_test,
             "--gtest_filter=*GatherAndScatterDoWhatTheProcessorDoes/Cuda"}));
    answer.pass = answer.pass && output.exit_code == 0;
    answer.words +=
        std::string(answer.words.empty() ? "" : "; ") + tool + ": " + LastLine(output.text);
  }
  return answer;
}

// Publishes, and finds what it published: each compares by kernels of its own.
Result<Answer> Example(const CheckOptions& options) {
  if (!options.on_gpu) return Status(Code::kMismatch, "it runs kernels of a GPU");
  RETURN_IF_ERROR(NoProgram(options.example, "cuda_engine"));
  // It takes CUDA's device 0.
  if (options.device.starts_with("cuda:")) {
    ::setenv("CUDA_VISIBLE_DEVICES", options.device.substr(5).c_str(), 1);
  }
  ASSIGN_OR_RETURN(const DeviceModel model,
                   DeviceModel::Start({.device = options.device, .bytes = 64u << 20}));
  Answer answer;
  for (const char* which : {"first", "second"}) {
    ASSIGN_OR_RETURN(const Output output,
                     Run({options.example, kDeviceModel, model.daemon.socket()}));
    answer.pass = answer.pass && output.exit_code == 0;
    answer.words +=
        (answer.words.empty() ? "" : "; ") + std::string(which) + ": " + LastLine(output.text);
  }
  return answer;
}

struct Threshold {
  const char* figure;
  double least;
  double most;
};

Result<Answer> RunSuite(const CheckOptions& options, const char* suite,
                        std::span<const Threshold> thresholds) {
  RETURN_IF_ERROR(NoProgram(options.terrace_bench, "terrace-bench"));
  std::vector<std::string> words = {options.terrace_bench, suite, "--json", "--device",
                                    options.device};
  if (options.quick) words.push_back("--quick");
  ASSIGN_OR_RETURN(const Output output, Run(std::move(words)));
  const auto json = nlohmann::json::parse(output.text, nullptr, /*allow_exceptions=*/false);
  if (output.exit_code != 0 || !json.is_object() || !json.contains("figures")) {
    return Status(Code::kInternal,
                  std::string(suite) + " ended with " + std::to_string(output.exit_code));
  }
  Answer answer;
  for (const auto& [name, value] : json["figures"].items()) {
    answer.figures.push_back({name, value.get<double>(), json["units"].value(name, std::string())});
  }
  for (const Threshold& threshold : thresholds) {
    const double value = json["figures"].value(threshold.figure, -1.0);
    const bool reached = value >= threshold.least && value <= threshold.most;
    if (options.on_gpu && !reached) answer.pass = false;
    char text[96];
    std::snprintf(text, sizeof text, "%s%s %.3f%s", answer.words.empty() ? "" : ", ",
                  threshold.figure, value,
                  options.on_gpu && !reached ? " does not reach what it must" : "");
    answer.words += text;
  }
  return answer;
}

Result<Answer> GpuCopy(const CheckOptions& options) {
  static constexpr Threshold kThresholds[] = {{"h2d_over_plain", 0.95, 1e9},
                                              {"d2h_over_plain", 0.95, 1e9}};
  return RunSuite(options, "gpu-copy", kThresholds);
}
Result<Answer> GpuGather(const CheckOptions& options) {
  static constexpr Threshold kThresholds[] = {{"gather_over_copy", 0.85, 1e9},
                                              {"scatter_over_copy", 0.85, 1e9}};
  return RunSuite(options, "gpu-gather", kThresholds);
}
Result<Answer> GpuAttach(const CheckOptions& options) {
  static constexpr Threshold kThresholds[] = {{"attach_ms", 0, 50}, {"hbm_copies", 0.99, 1.01}};
  return RunSuite(options, "gpu-attach", kThresholds);
}
Result<Answer> GpuLoad(const CheckOptions& options) {
  static constexpr Threshold kThresholds[] = {{"load_over_h2d", 0.95, 1e9}};
  return RunSuite(options, "gpu-load", kThresholds);
}
Result<Answer> Overlap(const CheckOptions& options) {
  static constexpr Threshold kThresholds[] = {{"total_over_slower_stage", 0, 1.1}};
  return RunSuite(options, "overlap", kThresholds);
}

constexpr Question kQuestions[] = {
    {"conformance", "the conformance tests of tiers/device/gpu.h", 120, Conformance},
    {"sanitizer", "compute-sanitizer over the kernels", 90, Sanitizer},
    {"example", "an engine in CUDA C++ publishes pages, and another finds them", 90, Example},
    {"gpu-copy", "the suite of terrace-bench", 90, GpuCopy},
    {"gpu-gather", "the suite of terrace-bench", 60, GpuGather},
    {"gpu-attach", "the suite of terrace-bench", 100, GpuAttach},
    {"gpu-load", "the suite of terrace-bench", 100, GpuLoad},
    {"overlap", "the suite of terrace-bench", 150, Overlap},
};

}  // namespace

std::span<const Question> ProgramQuestions() {
  return kQuestions;
}

}  // namespace terrace::bench
