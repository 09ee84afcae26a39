#include "bench/play.h"

#include <sys/mman.h>
#include <time.h>

#include <atomic>
#include <cmath>
#include <cstring>
#include <new>
#include <optional>

#include "bench/client.h"
#include "bench/content.h"
#include "bench/daemon.h"
#include "bench/processes.h"
#include "bench/statistics.h"
#include "bench/workload.h"

namespace terrace::bench {
namespace {

// What all players share: who takes the next request.
struct Turns {
  std::atomic<uint64_t> next{0};
};

// The key that an engine would bring for a block id: 32 bytes, here the id itself and a tag.
Result<kvc_key> KeyOfBlock(const kvc_space* space, uint64_t id) {
  uint8_t engine_key[32] = {};
  std::memcpy(engine_key, &id, sizeof id);
  std::memcpy(engine_key + 8, "mooncake trace block id.", 24);
  kvc_key key{};
  const kvc_code code = kvc_foreign_key(space, engine_key, &key);
  if (code != KVC_OK) return Status(static_cast<Code>(code), "kvc_foreign_key");
  return key;
}

// Waits until `ms` after `start`.
void WaitUntil(const timespec& start, double ms) {
  timespec until = start;
  const double whole = std::floor(ms / 1e3);
  until.tv_sec += static_cast<time_t>(whole);
  until.tv_nsec += static_cast<long>((ms - whole * 1e3) * 1e6);
  if (until.tv_nsec >= 1'000'000'000) {
    until.tv_nsec -= 1'000'000'000;
    ++until.tv_sec;
  }
  while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, nullptr) == EINTR) {
  }
}

struct Player {
  const std::vector<TraceRequest>& requests;
  const PlayOptions& options;
  const std::string& socket;
  Turns& turns;

  Status Run(Link& link) const {
    ASSIGN_OR_RETURN(const Client client,
                     Connect({.socket = socket, .name = "player", .read_only = false}));
    ASSIGN_OR_RETURN(
        const Space space,
        OpenSpace(client.get(), {.layout = PlainLayout(options.page_bytes, kTraceBlockTokens),
                                 .weights = nullptr,
                                 .salt = "play"}));
    ASSIGN_OR_RETURN(const Reader reader, NewReader(client.get()));
    EngineWorker worker(client.get(), space.get(), reader.get());
    RETURN_IF_ERROR(link.Send(Go{}));
    RETURN_IF_ERROR(link.Receive<Go>().status());
    timespec start{};
    clock_gettime(CLOCK_MONOTONIC, &start);
    std::vector<kvc_key> keys;
    std::vector<uint32_t> tokens;
    for (uint64_t turn = turns.next++; turn < requests.size(); turn = turns.next++) {
      const TraceRequest& request = requests[turn];
      if (options.speedup > 0) {
        const uint64_t since = request.timestamp_ms - requests.front().timestamp_ms;
        WaitUntil(start, static_cast<double>(since) / options.speedup);
      }
      keys.clear();
      tokens.clear();
      for (size_t i = 0; i < request.hash_ids.size(); ++i) {
        ASSIGN_OR_RETURN(const kvc_key key, KeyOfBlock(space.get(), request.hash_ids[i]));
        keys.push_back(key);
        tokens.push_back(TokensOfBlock(request, i));
      }
      RETURN_IF_ERROR(worker.Serve(keys, tokens));
    }
    return worker.Tell(link);
  }
};

Result<Figures> PlayOn(const std::vector<TraceRequest>& requests, const PlayOptions& options,
                       const std::string& socket, Turns& turns) {
  const Player player{requests, options, socket, turns};
  std::vector<Child> children;
  for (uint32_t i = 0; i < options.clients; ++i) {
    ASSIGN_OR_RETURN(Child child,
                     Child::Start("player", [&](Link& link) { return player.Run(link); }));
    children.push_back(std::move(child));
  }
  RETURN_IF_ERROR(HearAll(children));
  const Stopwatch watch;
  RETURN_IF_ERROR(TellAll(children));
  WorkOutcome outcome;
  for (Child& child : children)
    RETURN_IF_ERROR(outcome.Hear(child.link()));
  const double seconds = watch.Seconds();
  RETURN_IF_ERROR(WaitAll(children));
  RETURN_IF_ERROR(outcome.Check());

  ASSIGN_OR_RETURN(const Client client,
                   Connect({.socket = socket, .name = "play", .read_only = true}));
  ASSIGN_OR_RETURN(const Figures memory, MemoryFigures(client.get()));
  const TraceCeiling ceiling = CeilingOf(requests);
  Figures figures = outcome.ToFigures();
  figures.insert(figures.end(), memory.begin(), memory.end());
  figures.push_back({"hit_ratio_without_limit",
                     ceiling.blocks == 0
                         ? 0
                         : static_cast<double>(ceiling.hits) / static_cast<double>(ceiling.blocks),
                     "ratio"});
  figures.push_back({"seconds", seconds, "s"});
  figures.push_back({"clients", static_cast<double>(options.clients), "count"});
  return figures;
}

}  // namespace

Result<Figures> Play(const std::vector<TraceRequest>& requests, const PlayOptions& options) {
  if (options.page_bytes == 0 || options.page_bytes % kTraceBlockTokens != 0) {
    return Status(Code::kInvalidArgument, "page-bytes must be a multiple of 512");
  }
  void* memory = mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) return SystemError("mmap", errno);
  auto* turns = new (memory) Turns;
  Result<Figures> figures = [&]() -> Result<Figures> {
    if (!options.socket.empty()) return PlayOn(requests, options, options.socket, *turns);
    ASSIGN_OR_RETURN(
        const Daemon daemon,
        Daemon::Start({.binary = options.terraced, .capacity_bytes = options.capacity_bytes}));
    return PlayOn(requests, options, daemon.socket(), *turns);
  }();
  munmap(memory, 4096);
  return figures;
}

}  // namespace terrace::bench
