// Engines on a device through libkvclient and a real terraced: what they share, and what is left
// when one of them, or the daemon, is killed.
#include <signal.h>

#include <vector>

#include "bench/content.h"
#include "bench/device_engine.h"
#include "bench/gpu_check/question.h"
#include "bench/processes.h"
#include "bench/statistics.h"

namespace terrace::bench {
namespace {

constexpr uint32_t kPageTokens = 16;
constexpr uint64_t kPageBytes = 256u << 10;
constexpr size_t kPages = 64;
constexpr double kBackSeconds = 60;

std::vector<kvc_key> Keys() {
  std::vector<kvc_key> keys;
  for (uint64_t i = 0; i < kPages; ++i)
    keys.push_back(SyntheticKey(i));
  return keys;
}

Result<Space> PagesOf(const DeviceEngine& engine) {
  return OpenSpace(
      engine.client(),
      {.layout = PlainLayout(kPageBytes, kPageTokens), .weights = nullptr, .salt = "gpu-check"});
}

// The first engine: attaches, publishes, and waits to be killed.
Status Publisher(Link& link, const DeviceModel& model) {
  RETURN_IF_ERROR(link.Receive<Go>().status());
  ASSIGN_OR_RETURN(const DeviceEngine engine, DeviceEngine::Open(model, "first"));
  ASSIGN_OR_RETURN(const Weights weights, engine.Attach());
  RETURN_IF_ERROR(engine.CheckWeights(weights.get(), model));
  ASSIGN_OR_RETURN(const Space space, PagesOf(engine));
  RETURN_IF_ERROR(engine.Publish(space.get(), Keys()));
  RETURN_IF_ERROR(link.Send(Go{}));
  return link.Receive<Go>().status();
}

// The second one, which outlives the first and the daemon. It is told when each is gone.
Status Survivor(Link& link, const DeviceModel& model) {
  RETURN_IF_ERROR(link.Receive<Go>().status());
  ASSIGN_OR_RETURN(const DeviceEngine engine, DeviceEngine::Open(model, "second"));
  Weights weights;
  ASSIGN_OR_RETURN(weights, engine.Attach());
  ASSIGN_OR_RETURN(const Space space, PagesOf(engine));
  for (const char* when : {"beside the first engine", "after the first engine's end"}) {
    RETURN_IF_ERROR(engine.CheckWeights(weights.get(), model).WithContext(when));
    RETURN_IF_ERROR(engine.CheckPages(space.get(), Keys()).WithContext(when));
    RETURN_IF_ERROR(link.Send(Go{}));
    RETURN_IF_ERROR(link.Receive<Go>().status());
  }
  // Memory with a descriptor is kept by whoever maps it; that of a legacy handle went with the
  // mover, and is not to be touched.
  const uint64_t epoch = kvc_epoch(engine.client());
  ASSIGN_OR_RETURN(kvc_device_info info, engine.Info());
  if (info.slabs != 0) {
    RETURN_IF_ERROR(
        engine.CheckWeights(weights.get(), model).WithContext("after the daemon's end"));
  }
  RETURN_IF_ERROR(link.Send(Go{}));
  const Stopwatch watch;
  do {
    if (watch.Seconds() > kBackSeconds) {
      return {Code::kDeadlineExceeded, "the next daemon does not have the device"};
    }
    kvc_error error{};
    (void)kvc_ping(engine.client(), 1000, &error);
    ASSIGN_OR_RETURN(info, engine.Info());
  } while (kvc_epoch(engine.client()) == 0 || kvc_epoch(engine.client()) == epoch ||
           info.number == 0);
  weights.reset();
  ASSIGN_OR_RETURN(weights, engine.Attach());
  RETURN_IF_ERROR(engine.CheckWeights(weights.get(), model).WithContext("in the next daemon life"));
  ASSIGN_OR_RETURN(const Space again, PagesOf(engine));
  RETURN_IF_ERROR(engine.Publish(again.get(), Keys()));
  return engine.CheckPages(again.get(), Keys());
}

Result<Answer> Engines(const CheckOptions& options) {
  const uint64_t bytes = options.quick ? 64u << 20 : 512u << 20;
  ASSIGN_OR_RETURN(DeviceModel model,
                   DeviceModel::Start({.device = options.device, .bytes = bytes}));
  ASSIGN_OR_RETURN(Child first, Child::Start("first engine",
                                             [&](Link& link) { return Publisher(link, model); }));
  ASSIGN_OR_RETURN(Child second, Child::Start("second engine",
                                              [&](Link& link) { return Survivor(link, model); }));
  RETURN_IF_ERROR(first.link().Send(Go{}));
  RETURN_IF_ERROR(first.link().Receive<Go>().status().WithContext("the first engine"));
  RETURN_IF_ERROR(second.link().Send(Go{}));
  RETURN_IF_ERROR(second.link().Receive<Go>().status().WithContext("the second engine"));
  first.Kill();
  (void)first.Wait();
  RETURN_IF_ERROR(second.link().Send(Go{}));
  RETURN_IF_ERROR(second.link().Receive<Go>().status().WithContext("an engine was killed"));
  RETURN_IF_ERROR(model.daemon.KillAndLaunch());
  RETURN_IF_ERROR(second.link().Send(Go{}));
  RETURN_IF_ERROR(second.link().Receive<Go>().status().WithContext("the daemon was killed"));
  RETURN_IF_ERROR(second.Wait());
  return Answer{.pass = true,
                .words = "weights and " + std::to_string(kPages) +
                         " pages compared beside each other, after an engine's end, after the "
                         "daemon's, and in its next life",
                .figures = {}};
}

constexpr Question kQuestions[] = {
    {"engines", "two engines share weights and pages; one is killed, then the daemon", 120,
     Engines},
};

}  // namespace

std::span<const Question> EngineQuestions() {
  return kQuestions;
}

}  // namespace terrace::bench
