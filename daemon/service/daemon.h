// Daemon: the parts of terraced, made in their order and ended in the reverse one.
//
// Made, run and destroyed by main's thread, which is the owner thread.
#pragma once

#include <memory>
#include <vector>

#include "base/clock.h"
#include "base/worker_pool.h"
#include "daemon/engine/engine.h"
#include "daemon/service/config.h"
#include "daemon/service/host_capacity.h"
#include "daemon/service/journal_drain.h"
#include "daemon/service/listener.h"
#include "daemon/service/memfd/memfd_directory.h"
#include "daemon/service/owner_loop.h"
#include "daemon/service/service.h"
#include "tiers/tier.h"

namespace terrace {

class Daemon {
 public:
  explicit Daemon(Config config) : config_(std::move(config)) {}
  ~Daemon();
  Daemon(const Daemon&) = delete;
  Daemon& operator=(const Daemon&) = delete;

  // Everything up to the listening sockets. An error leaves nothing behind.
  Status Start();
  // Serves until SIGTERM or SIGINT, then until everybody has been answered and what was being
  // written is written.
  void Run();

 private:
  Status FillDefaults();
  Status StartTiers();
  Status StartEngine();
  Status Listen();
  void Sweep();
  void Stop(int signal);

  Config config_;
  const SystemClock clock_;
  // In the order in which they depend on each other: each outlives those below it, but for the pool
  // that reads files, which ends before the engine into whose blocks it reads.
  OwnerLoop loop_;
  std::unique_ptr<HostCapacity> capacity_;
  std::unique_ptr<WorkerPool> touch_pool_;
  std::unique_ptr<HostTier> host_;
  std::unique_ptr<Journal> journal_;
  std::unique_ptr<JournalDrain> journal_drain_;
  MemfdDirectory directory_memory_;
  std::unique_ptr<WorkerPool> read_pool_;
  std::unique_ptr<WeightSources> sources_;
  std::unique_ptr<Service> service_;
  std::unique_ptr<Engine> engine_;
  std::vector<std::unique_ptr<Listener>> listeners_;
  bool stopping_ = false;
  MonotonicNs capacity_checked_ = 0;
};

}  // namespace terrace
