#include "bench/chat.h"

#include <vector>

#include "base/random.h"
#include "bench/client.h"
#include "bench/content.h"
#include "bench/daemon.h"
#include "bench/processes.h"
#include "bench/statistics.h"
#include "bench/workload.h"

namespace terrace::bench {
namespace {

constexpr uint32_t kVocabulary = 128'256;

kvc_layout Llama1bLayout(uint32_t page_tokens) {
  kvc_layout layout{};
  layout.dtype = "bf16";
  layout.layers = 16;
  layout.kv_heads = 8;
  layout.head_size = 64;
  layout.page_tokens = page_tokens;
  layout.planes = 2;
  return layout;
}

void AppendRandom(uint64_t seed, uint64_t count, std::vector<uint32_t>* tokens) {
  Random random(seed);
  for (uint64_t i = 0; i < count; ++i) {
    tokens->push_back(static_cast<uint32_t>(random.Below(kVocabulary)));
  }
}

// The script: every process can write down any conversation up to any turn.
struct Script {
  const ChatOptions& options;

  uint64_t SeedOfTurn(uint32_t conversation, uint32_t turn) const {
    return Mix(options.seed ^ Mix(uint64_t{conversation} << 32 | turn));
  }
  void AppendUser(uint32_t conversation, uint32_t turn, std::vector<uint32_t>* tokens) const {
    const uint64_t seed = SeedOfTurn(conversation, turn);
    AppendRandom(seed, 40 + seed % 160, tokens);
  }
  void AppendAnswer(uint32_t conversation, uint32_t turn, std::vector<uint32_t>* tokens) const {
    const uint64_t seed = Mix(SeedOfTurn(conversation, turn));
    AppendRandom(seed, 80 + seed % 220, tokens);
  }
  // What the engine sees when the user of `turn` has spoken.
  std::vector<uint32_t> Prompt(uint32_t conversation, uint32_t turn) const {
    std::vector<uint32_t> tokens;
    AppendRandom(options.seed, options.system_tokens, &tokens);
    for (uint32_t past = 0; past < turn; ++past) {
      AppendUser(conversation, past, &tokens);
      AppendAnswer(conversation, past, &tokens);
    }
    AppendUser(conversation, turn, &tokens);
    return tokens;
  }
};

Status CallStatus(kvc_code code, const char* call) {
  return code == KVC_OK ? Status() : Status(static_cast<Code>(code), call);
}

// One turn: the prompt is served, the answer's tokens are appended and their full pages published.
Status ServeTurn(EngineWorker& worker, const kvc_space* space, const Script& script,
                 uint32_t conversation, uint32_t turn) {
  kvc_sequence* made = nullptr;
  RETURN_IF_ERROR(CallStatus(kvc_sequence_create(space, &made), "kvc_sequence_create"));
  const Sequence sequence(made);
  const std::vector<uint32_t> prompt = script.Prompt(conversation, turn);
  RETURN_IF_ERROR(
      CallStatus(kvc_sequence_append(made, prompt.data(), prompt.size()), "kvc_sequence_append"));
  size_t pages = 0;
  const kvc_key* keys = kvc_sequence_keys(made, &pages);
  std::vector<uint32_t> tokens(pages, script.options.page_tokens);
  RETURN_IF_ERROR(worker.Serve({keys, pages}, tokens));
  // Tokens in the partly filled last page are computed every time.
  worker.totals().tokens += prompt.size() - pages * script.options.page_tokens;

  std::vector<uint32_t> answer;
  script.AppendAnswer(conversation, turn, &answer);
  RETURN_IF_ERROR(
      CallStatus(kvc_sequence_append(made, answer.data(), answer.size()), "kvc_sequence_append"));
  size_t all = 0;
  keys = kvc_sequence_keys(made, &all);
  tokens.assign(all - pages, script.options.page_tokens);
  return worker.Publish({keys + pages, all - pages}, tokens);
}

// An engine process. Rounds are in step: the parent says which turn, and turn t of conversation c
// belongs to process (c + t) % clients.
Status RunEngine(const ChatOptions& options, const std::string& socket, uint32_t process,
                 Link& link) {
  ASSIGN_OR_RETURN(const Client client,
                   Connect({.socket = socket, .name = "engine " + std::to_string(process)}));
  Weights weights;
  if (!options.model.empty()) {
    kvc_weights* attached = nullptr;
    kvc_error error{};
    RETURN_IF_ERROR(ToStatus(
        kvc_attach(client.get(), options.model.c_str(), nullptr, 0, &attached, &error), error));
    weights.reset(attached);
  }
  ASSIGN_OR_RETURN(const Space space,
                   OpenSpace(client.get(), {.layout = Llama1bLayout(options.page_tokens),
                                            .weights = weights.get(),
                                            .salt = {}}));
  ASSIGN_OR_RETURN(const Reader reader, NewReader(client.get()));
  EngineWorker worker(client.get(), space.get(), reader.get());
  const Script script{options};
  RETURN_IF_ERROR(link.Send(Go{}));
  for (uint32_t turn = 0; turn < options.turns; ++turn) {
    RETURN_IF_ERROR(link.Receive<Go>().status());
    for (uint32_t conversation = 0; conversation < options.conversations; ++conversation) {
      if ((conversation + turn) % options.clients != process) continue;
      RETURN_IF_ERROR(ServeTurn(worker, space.get(), script, conversation, turn));
    }
    RETURN_IF_ERROR(link.Send(Go{}));
  }
  return worker.Tell(link);
}

Result<Figures> ChatOn(const ChatOptions& options, const std::string& socket) {
  std::vector<Child> children;
  for (uint32_t i = 0; i < options.clients; ++i) {
    ASSIGN_OR_RETURN(Child child, Child::Start("engine", [&, i](Link& link) {
                       return RunEngine(options, socket, i, link);
                     }));
    children.push_back(std::move(child));
  }
  RETURN_IF_ERROR(HearAll(children));
  const Stopwatch watch;
  for (uint32_t turn = 0; turn < options.turns; ++turn) {
    RETURN_IF_ERROR(TellAll(children, Go{turn}));
    RETURN_IF_ERROR(HearAll(children));
  }
  const double seconds = watch.Seconds();
  WorkOutcome outcome;
  for (Child& child : children)
    RETURN_IF_ERROR(outcome.Hear(child.link()));
  RETURN_IF_ERROR(WaitAll(children));
  RETURN_IF_ERROR(outcome.Check());
  ASSIGN_OR_RETURN(const Client client,
                   Connect({.socket = socket, .name = "chat", .read_only = true}));
  ASSIGN_OR_RETURN(const Figures memory, MemoryFigures(client.get()));
  Figures figures = outcome.ToFigures();
  figures.insert(figures.end(), memory.begin(), memory.end());
  figures.push_back({"seconds", seconds, "s"});
  figures.push_back({"engines", static_cast<double>(options.clients), "count"});
  figures.push_back({"conversations", static_cast<double>(options.conversations), "count"});
  return figures;
}

}  // namespace

Result<Figures> Chat(const ChatOptions& options) {
  if (options.clients == 0 || options.conversations == 0 || options.turns == 0) {
    return Status(Code::kInvalidArgument, "clients, conversations and turns must not be 0");
  }
  if (!options.socket.empty()) return ChatOn(options, options.socket);
  ASSIGN_OR_RETURN(const Daemon daemon, Daemon::Start({.binary = options.terraced,
                                                       .capacity_bytes = options.capacity_bytes}));
  return ChatOn(options, daemon.socket());
}

}  // namespace terrace::bench
