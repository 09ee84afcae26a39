// terrace-gpu-check: asks a GPU what is believed of it, and prints a table and JSON. The program
// itself opens no device: every question has a process of its own.
#include <poll.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <fstream>
#include <nlohmann/json.hpp>
#include <vector>

#include "bench/device_bench.h"
#include "bench/gpu_check/question.h"
#include "bench/processes.h"
#include "bench/statistics.h"

namespace terrace::bench {
namespace {

constexpr const char* kFooter = R"(
Exit codes: 0 every question that was asked is answered well; 1 one is not; 2 wrong usage; 77 there is
no such device. docs/device_memory.md says what depends on which answer.)";
constexpr int kNoDevice = 77;
constexpr uint64_t kMostAnswer = 16u << 20;
constexpr double kDescribeSeconds = 60;

struct Arguments {
  CheckOptions check;
  std::vector<std::string> only;
  std::string json;
  double seconds = 460;
};

struct Outcome {
  std::string name;
  std::string asks;
  std::string result = "fail";  // "pass", "fail", "not asked".
  double seconds = 0;
  std::string words;
  nlohmann::ordered_json figures = nlohmann::ordered_json::object();
};

// ---- One question, in its process

nlohmann::ordered_json AnswerJson(const Result<Answer>& answer) {
  if (!answer) {
    const bool nothing = answer.error().code() == Code::kMismatch;
    return {{"result", nothing ? "not asked" : "fail"}, {"words", answer.error().ToString()}};
  }
  nlohmann::ordered_json figures = nlohmann::ordered_json::object();
  for (const Figure& figure : answer->figures)
    figures[figure.name] = {{"value", figure.value}, {"unit", figure.unit}};
  return {{"result", answer->pass ? "pass" : "fail"},
          {"words", answer->words},
          {"figures", std::move(figures)}};
}

Status SendText(Link& link, const std::string& text) {
  RETURN_IF_ERROR(link.Send(uint64_t{text.size()}));
  return link.SendBytes(text.data(), text.size());
}

// What the child says within that time.
Result<std::string> ReceiveText(Child& child, double seconds) {
  pollfd answer{.fd = child.link().fd(), .events = POLLIN, .revents = 0};
  const int ready = ::poll(&answer, 1, static_cast<int>(std::max(seconds, 0.0) * 1e3));
  if (ready == 0) return Status(Code::kDeadlineExceeded, "no answer in time: killed");
  ASSIGN_OR_RETURN(const uint64_t bytes, child.link().Receive<uint64_t>());
  if (bytes > kMostAnswer) return Status(Code::kInternal, "an answer that is too long");
  std::string text(bytes, '\0');
  RETURN_IF_ERROR(child.link().ReceiveBytes(text.data(), text.size()));
  return text;
}

// The end of the child kills those that it started.
Result<nlohmann::ordered_json> AskApart(const Question& question, const CheckOptions& options,
                                        double seconds) {
  ASSIGN_OR_RETURN(Child child, Child::Start(question.name, [&](Link& link) {
                     return SendText(link, AnswerJson(question.ask(options)).dump());
                   }));
  ASSIGN_OR_RETURN(const std::string text, ReceiveText(child, seconds));
  auto json = nlohmann::ordered_json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) return Status(Code::kInternal, "an answer that cannot be read");
  return json;
}

Outcome Ask(const Question& question, const CheckOptions& options, double seconds_left) {
  Outcome outcome;
  outcome.name = question.name;
  outcome.asks = question.asks;
  if (seconds_left <= 0) {
    outcome.words = "no time was left for it";
    return outcome;
  }
  const Stopwatch watch;
  const auto answer = AskApart(question, options, std::min(question.seconds, seconds_left));
  outcome.seconds = watch.Seconds();
  if (!answer) {
    outcome.words = answer.error().ToString();
    return outcome;
  }
  outcome.result = answer->value("result", "fail");
  outcome.words = answer->value("words", "");
  if (answer->contains("figures")) outcome.figures = (*answer)["figures"];
  return outcome;
}

// ---- The device, described by a process of its own

Result<nlohmann::ordered_json> DescribeDevice(const std::string& words) {
  ASSIGN_OR_RETURN(Child child, Child::Start("device", [&](Link& link) {
                     nlohmann::ordered_json json;
                     const Result<ChosenDevice> device = ChooseDevice(words, uint64_t{1} << 30);
                     if (device) {
                       json = {{"uuid", device->facts.uuid.Text()},
                               {"name", device->facts.name},
                               {"driver", device->facts.driver},
                               {"bytes", device->facts.total_bytes}};
                     } else {
                       json = {{"error", device.error().message()}};
                     }
                     return SendText(link, json.dump());
                   }));
  ASSIGN_OR_RETURN(const std::string text, ReceiveText(child, kDescribeSeconds));
  auto json = nlohmann::ordered_json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (json.contains("error")) return Status(Code::kNotFound, json["error"].get<std::string>());
  return json;
}

// ---- What is printed

void PrintRow(const Outcome& outcome) {
  std::printf("%-22s %-9s %6.1f s  %s\n", outcome.name.c_str(), outcome.result.c_str(),
              outcome.seconds, outcome.words.c_str());
  for (const auto& [name, figure] : outcome.figures.items()) {
    std::printf("%42s%-44s %.6g %s\n", "", name.c_str(), figure["value"].get<double>(),
                figure["unit"].get<std::string>().c_str());
  }
  std::fflush(stdout);
}

nlohmann::ordered_json ToJson(const nlohmann::ordered_json& device, bool on_gpu,
                              const std::vector<Outcome>& outcomes) {
  nlohmann::ordered_json questions = nlohmann::ordered_json::array();
  for (const Outcome& outcome : outcomes) {
    questions.push_back({{"name", outcome.name},
                         {"asks", outcome.asks},
                         {"of", on_gpu ? "gpu" : "host"},
                         {"result", outcome.result},
                         {"seconds", outcome.seconds},
                         {"answer", outcome.words},
                         {"figures", outcome.figures}});
  }
  return {{"version", TERRACE_VERSION},
          {"device", device},
          {"machine", DescribeMachine()},
          {"questions", std::move(questions)}};
}

std::vector<Question> AllQuestions() {
  std::vector<Question> all;
  for (const auto questions : {MemoryQuestions(), ProcessQuestions(), WorkQuestions(),
                               CostQuestions(), EngineQuestions(), ProgramQuestions()})
    all.insert(all.end(), questions.begin(), questions.end());
  return all;
}

int Check(const Arguments& arguments) {
  const auto device = DescribeDevice(arguments.check.device);
  if (!device) {
    std::fprintf(stderr, "terrace-gpu-check: no device: %s\n", device.error().ToString().c_str());
    return kNoDevice;
  }
  std::printf("%s, %s, %s%s\n", (*device)["name"].get<std::string>().c_str(),
              (*device)["uuid"].get<std::string>().c_str(),
              (*device)["driver"].get<std::string>().c_str(),
              arguments.check.on_gpu ? "" : ": host, so answers about hardware mean nothing");
  const Stopwatch watch;
  std::vector<Outcome> outcomes;
  for (const Question& question : AllQuestions()) {
    if (!arguments.only.empty() &&
        std::ranges::find(arguments.only, question.name) == arguments.only.end()) {
      continue;
    }
    outcomes.push_back(Ask(question, arguments.check, arguments.seconds - watch.Seconds()));
    PrintRow(outcomes.back());
  }
  const auto failed = std::ranges::count(outcomes, "fail", &Outcome::result);
  std::printf("%zu questions, %td failed, %.0f s\n", outcomes.size(), failed, watch.Seconds());
  if (!arguments.json.empty()) {
    std::ofstream file(arguments.json);
    file << ToJson(*device, arguments.check.on_gpu, outcomes).dump(2) << "\n";
    if (!file.flush()) {
      std::fprintf(stderr, "terrace-gpu-check: cannot write %s\n", arguments.json.c_str());
      return 1;
    }
  }
  return failed == 0 ? 0 : 1;
}

int Main(int argc, char** argv) {
  CLI::App app("Asks a GPU what Terrace believes of it.", "terrace-gpu-check");
  app.footer(kFooter);
  Arguments arguments;
  arguments.check.device = "cuda";
  app.add_option("--device", arguments.check.device,
                 "cuda (the first), cuda:UUID, or host: the same over memory of the host")
      ->capture_default_str();
  std::vector<std::string> names;
  for (const Question& question : AllQuestions())
    names.push_back(question.name);
  app.add_option("--only", arguments.only, "These questions alone")->check(CLI::IsMember(names));
  app.add_option("--json", arguments.json, "A file for the answers");
  app.add_option("--seconds", arguments.seconds, "For all of it; what is left then fails")
      ->capture_default_str();
  app.add_flag("--quick", arguments.check.quick, "Little memory and few rounds");
  app.add_option("--terrace-bench", arguments.check.terrace_bench, "Its suites are questions");
  app.add_option("--device-test", arguments.check.device_test, "The conformance tests");
  app.add_option("--sanitizer", arguments.check.sanitizer, "compute-sanitizer");
  app.add_option("--example", arguments.check.example, "The example of an engine, cuda_engine");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  arguments.check.on_gpu = arguments.check.device != "host";
  return Check(arguments);
}

}  // namespace
}  // namespace terrace::bench

int main(int argc, char** argv) {
  return terrace::bench::Main(argc, argv);
}
