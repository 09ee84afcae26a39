// terrace-bench: benchmarks, each scored against the machine's own limit in the same run, and
// workloads that check every byte.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <fstream>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>

#include "bench/chat.h"
#include "bench/make_model.h"
#include "bench/play.h"
#include "bench/suites.h"
#include "bench/weight_share.h"

namespace terrace::bench {
namespace {

constexpr const char* kFooter = R"(
Suites start a terraced of their own and end it. --json prints one object: suite, machine, figures
(name -> number) and units; docs/benchmarks.md says what the figures mean and must reach.
Exit codes: 0 done; 1 failed (also: a wrong byte was mapped); 2 wrong usage.)";

struct Arguments {
  bool json = false;
  SuiteOptions suite;
  uint32_t hit_clients = 0;
  std::string trace;
  uint64_t requests = UINT64_MAX;
  PlayOptions play;
  ChatOptions chat;
  ShareOptions share;
};

struct Suite {
  const char* name;
  const char* description;
  Result<Figures> (*run)(const SuiteOptions&);
  bool on_device = false;  // Takes --device.
  bool of_set = false;     // Takes --set-bytes.
};
constexpr Suite kSuites[] = {
    {"hit", "A lookup of a resident page, against a bare table", RunHit},
    {"evict", "Eviction while 64 clients hold 10,000 pins each", RunEvict},
    {"prefix", "128Ki tokens hashed and looked up", RunPrefix},
    {"put", "Batches of 64 pages of 2 MiB, against memcpy", RunPut},
    {"attach", "A model of 4,000 tensors attached by 4 processes", RunAttach},
    {"cold-load", "A model of 2.5 GB from files that are not in the page cache", RunColdLoad},
    {"touch", "First touch of a resident page of 2 MiB", RunTouch},
    {"crash", "What a killed client held is free again", RunCrash},
    {"connect", "Connect, first hit, disconnect, 100,000 times", RunConnect},
    {"flood", "56 clients with and without 8 hostile ones", RunFlood},
    {"control", "Round trips and commits, against a bare echo", RunControl},
    {"spill", "Pages written to the store, against the bare disk", RunSpill},
    {"promote", "Pages read back from the store, against the bare disk", RunPromote},
    {"restart", "SIGKILL with 1,000,000 stored pages, to the first hit", RunRestart},
    {"verify", "What checking the bytes of stored pages costs", RunVerify},
    {"metrics", "Scrapes of 32 tenants with 1,000 spaces under load", RunMetrics},
    {"gpu-copy", "Pages and blocks to and from a GPU, against plain pinned copies", RunGpuCopy,
     true},
    {"gpu-gather", "Gather and scatter of KV blocks, against a copy within the device",
     RunGpuGather, true},
    {"overlap", "From a file to a GPU, against the slower of reading and copying", RunOverlap,
     true},
    {"gpu-attach", "Weights on a GPU, attached by one more process", RunGpuAttach, true, true},
    {"gpu-load", "Weights from host memory to a GPU by a daemon, against plain pinned copies",
     RunGpuLoad, true, true},
};

void AddSuites(CLI::App& app, Arguments& arguments) {
  for (const Suite& suite : kSuites) {
    CLI::App* verb = app.add_subcommand(suite.name, suite.description);
    verb->fallthrough();
    verb->add_flag("--quick", arguments.suite.quick,
                   "A hundredth of the work: to see that it runs, the figures mean nothing");
    if (suite.on_device) {
      verb->add_option("--device", arguments.suite.device,
                       "host (the processor: no thresholds), cuda, or cuda:UUID")
          ->capture_default_str();
    }
    if (suite.of_set) {
      verb->add_option("--set-bytes", arguments.suite.set_bytes,
                       "Of the weights; default 16GiB on a GPU, 256MiB on the host")
          ->transform(CLI::AsSizeValue(false));
    }
    if (std::string_view(suite.name) == "hit") {
      verb->add_option("--clients", arguments.hit_clients,
                       "So many processes at once instead, and fewer for comparison")
          ->check(CLI::Range(1, 64));
    }
  }
}

void AddWorkloads(CLI::App& app, Arguments& arguments) {
  CLI::App* play = app.add_subcommand(
      "play", "Plays a Mooncake trace through client processes and checks every byte they map");
  play->fallthrough();
  play->add_option("--trace", arguments.trace, "JSON lines")->required()->check(CLI::ExistingFile);
  play->add_option("--clients", arguments.play.clients, "Processes")
      ->check(CLI::Range(1, 64))
      ->capture_default_str();
  play->add_option("--requests", arguments.requests, "Only the first so many");
  play->add_option("--speedup", arguments.play.speedup,
                   "Times as fast as the timestamps; 0: as fast as it goes")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  play->add_option("--page-bytes", arguments.play.page_bytes,
                   "For a block of 512 tokens: a multiple of 512")
      ->check(CLI::Range(uint64_t{512}, uint64_t{64} << 20))
      ->capture_default_str();
  play->add_option("--capacity", arguments.play.capacity_bytes, "Of a daemon of our own")
      ->transform(CLI::AsSizeValue(false));
  play->add_option("--socket", arguments.play.socket, "A daemon that runs; else one of our own");

  CLI::App* chat = app.add_subcommand(
      "chat", "Multi-turn conversations that share a system prompt, Llama-3.2-1B pages");
  chat->fallthrough();
  chat->add_option("--clients", arguments.chat.clients, "Engine processes")
      ->check(CLI::Range(1, 64))
      ->capture_default_str();
  chat->add_option("--conversations", arguments.chat.conversations)->capture_default_str();
  chat->add_option("--turns", arguments.chat.turns)->capture_default_str();
  chat->add_option("--page-tokens", arguments.chat.page_tokens)
      ->check(CLI::Range(16, 64))
      ->capture_default_str();
  chat->add_option("--seed", arguments.chat.seed)->capture_default_str();
  chat->add_option("--model", arguments.chat.model, "Attach this model: the KV belongs to it");
  chat->add_option("--capacity", arguments.chat.capacity_bytes, "Of a daemon of our own")
      ->transform(CLI::AsSizeValue(false));
  chat->add_option("--socket", arguments.chat.socket, "A daemon that runs; else one of our own");

  CLI::App* share = app.add_subcommand(
      "share", "Attaches a model from several processes and counts its copies in memory (PSS)");
  share->fallthrough();
  share->add_option("--model", arguments.share.model, "Registered; loaded if it is not")
      ->required();
  share->add_option("--clients", arguments.share.clients, "Processes")
      ->check(CLI::Range(1, 64))
      ->capture_default_str();
  share->add_option("--socket", arguments.share.socket, "The daemon's; default the user's");
}

Result<Figures> RunPlay(const Arguments& arguments) {
  std::ifstream file(arguments.trace);
  Result<std::vector<TraceRequest>> requests = ParseTrace(file, arguments.requests);
  if (!requests) return std::move(requests).error().WithContext(arguments.trace);
  if (requests->empty()) {
    return Status(Code::kInvalidArgument, arguments.trace + " holds no request");
  }
  return Play(*requests, arguments.play);
}

Result<Figures> RunVerb(const std::string& name, const Arguments& arguments) {
  if (name == "play") return RunPlay(arguments);
  if (name == "chat") return Chat(arguments.chat);
  if (name == "share") {
    ASSIGN_OR_RETURN(const SharedWeights shared, ShareWeights(arguments.share));
    return ToFigures(shared);
  }
  if (name == "hit" && arguments.hit_clients > 0) {
    SuiteOptions options = arguments.suite;
    options.clients = arguments.hit_clients;
    return RunHitClients(options);
  }
  for (const Suite& suite : kSuites) {
    if (name == suite.name) return suite.run(arguments.suite);
  }
  return Status(Code::kInvalidArgument, "no suite " + name);
}

int Main(int argc, char** argv) {
  CLI::App app("Benchmarks and workloads of Terrace.", "terrace-bench");
  app.footer(kFooter);
  app.require_subcommand(1);
  Arguments arguments;
  app.add_flag("--json", arguments.json, "One object for programs");
  app.add_option("--terraced", arguments.suite.terraced,
                 "The daemon to start; default the one beside this program")
      ->check(CLI::ExistingFile);
  AddSuites(app, arguments);
  AddWorkloads(app, arguments);
  int made = 0;
  AddMakeModel(app, made);  // Runs while arguments are parsed.
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  const std::string name = app.get_subcommands().front()->get_name();
  if (name == "make-model") return made;
  arguments.play.terraced = arguments.suite.terraced;
  arguments.chat.terraced = arguments.suite.terraced;
  const Result<Figures> figures = RunVerb(name, arguments);
  if (!figures) {
    std::fprintf(stderr, "terrace-bench %s: %s\n", name.c_str(),
                 figures.error().ToString().c_str());
    return 1;
  }
  const std::string text =
      arguments.json ? FiguresJson(name, *figures).dump(2) + "\n" : FiguresText(name, *figures);
  return std::fputs(text.c_str(), stdout) >= 0 && std::fflush(stdout) == 0 ? 0 : 1;
}

}  // namespace
}  // namespace terrace::bench

int main(int argc, char** argv) {
  return terrace::bench::Main(argc, argv);
}
