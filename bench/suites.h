// The suites of terrace-bench. Each starts a daemon of its own, measures against a ceiling or rival
// in the same run, and answers figures. docs/benchmarks.md says what they must reach.
#pragma once

#include <cstdint>
#include <string>

#include "base/status.h"
#include "bench/figures.h"

namespace terrace::bench {

struct SuiteOptions {
  std::string terraced;         // Empty: the one that belongs to this program.
  uint32_t clients = 4;         // RunHitClients: up to so many at once.
  std::string device = "host";  // Of the suites on GPUs: host, cuda or cuda:UUID.
  uint64_t set_bytes = 0;       // RunGpuAttach, RunGpuLoad: of the weights; 0: by the device.
  bool quick = false;  // About a hundredth of the work, for tests: the figures mean nothing.
};

Result<Figures> RunHit(const SuiteOptions& options);
Result<Figures> RunHitClients(const SuiteOptions& options);
Result<Figures> RunEvict(const SuiteOptions& options);
Result<Figures> RunPrefix(const SuiteOptions& options);
Result<Figures> RunPut(const SuiteOptions& options);
Result<Figures> RunAttach(const SuiteOptions& options);
Result<Figures> RunTouch(const SuiteOptions& options);
Result<Figures> RunCrash(const SuiteOptions& options);
Result<Figures> RunControl(const SuiteOptions& options);
Result<Figures> RunMetrics(const SuiteOptions& options);
Result<Figures> RunColdLoad(const SuiteOptions& options);
Result<Figures> RunConnect(const SuiteOptions& options);
Result<Figures> RunFlood(const SuiteOptions& options);
Result<Figures> RunSpill(const SuiteOptions& options);
Result<Figures> RunPromote(const SuiteOptions& options);
Result<Figures> RunRestart(const SuiteOptions& options);
Result<Figures> RunVerify(const SuiteOptions& options);
// On a GPU; these start no daemon, but a terrace-mover.
Result<Figures> RunGpuCopy(const SuiteOptions& options);
Result<Figures> RunGpuGather(const SuiteOptions& options);
Result<Figures> RunOverlap(const SuiteOptions& options);
// On a GPU, through a daemon.
Result<Figures> RunGpuAttach(const SuiteOptions& options);
Result<Figures> RunGpuLoad(const SuiteOptions& options);

}  // namespace terrace::bench
