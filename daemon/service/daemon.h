// Daemon: the parts of terraced, made in their order and ended in the reverse one.
//
// Made, run and destroyed by main's thread, which is the owner thread.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <vector>

#include "base/clock.h"
#include "base/worker_pool.h"
#include "daemon/engine/engine.h"
#include "daemon/service/config.h"
#include "daemon/service/devices.h"
#include "daemon/service/host_capacity.h"
#include "daemon/service/journal_drain.h"
#include "daemon/service/listener.h"
#include "daemon/service/memfd/memfd_directory.h"
#include "daemon/service/metrics/collector.h"
#include "daemon/service/metrics/server.h"
#include "daemon/service/owner_loop.h"
#include "daemon/service/service.h"
#include "daemon/service/systemd/activation.h"
#include "daemon/service/systemd/notify.h"
#include "tiers/device_tier.h"
#include "tiers/io/disk_io.h"
#include "tiers/page_store.h"
#include "tiers/source/block_reader.h"
#include "tiers/tier.h"

namespace terrace {

struct DaemonStart {
  Config config;
  // The configuration as it is now, for a reload; empty: there is no file to read.
  std::function<Result<Config>()> read_config;
  Notifier notifier;
  std::vector<ActivatedSocket> sockets;
};

class Daemon {
 public:
  explicit Daemon(DaemonStart start)
      : configured_(start.config),
        config_(std::move(start.config)),
        read_config_(std::move(start.read_config)),
        given_(std::move(start.sockets)),
        notifier_(std::move(start.notifier)) {}
  ~Daemon();
  Daemon(const Daemon&) = delete;
  Daemon& operator=(const Daemon&) = delete;

  // Everything up to the listening sockets. An error leaves nothing behind.
  Status Start();
  // Of a start that failed: what the configuration says of devices does not fit those that there
  // are, so that only another configuration helps.
  bool misconfigured() const { return misconfigured_; }
  // Serves until SIGTERM or SIGINT, then until everybody has been answered and what was being
  // written is written. SIGHUP reads the configuration again.
  void Run();

 private:
  Status FillDefaults();
  Status StartTiers();
  Status StartReading();
  Status StartStore();
  Status StartDevices();
  Status StartEngine();
  Status Listen();
  Result<std::unique_ptr<Listener>> ListenOn(const SocketConfig& socket,
                                             std::optional<ActivatedSocket> given);
  // Keeps open what the configuration does not know: whoever connects is refused, until a reload
  // brings a [[socket]] for it.
  Status KeepUnserved(ActivatedSocket given);
  void TellWithoutAdmin() const;
  void CheckTheHost();
  void KeepAlive();
  std::string StatusLine() const;
  Status StartMetrics();
  QueueFigures Queues() const;
  void Sweep();
  void Stop(int signal);
  // Calls `idle` when no page waits to be written to the store, or kSpillLimit later.
  void DrainStore(MonotonicNs since, std::function<void()> idle);

  ServiceLimits ServiceLimitsNow() const;
  ClientLimits ClientLimitsNow() const;
  // reload.cc
  void Reload();
  Status Apply(Config next);
  Status ApplySockets(const Config& next);
  // The present configuration with the sockets and peers of `next`, as far as they may change.
  Config WithSocketsOf(const Config& next);
  // The paths of the [[socket]] tables of `wanted` that given sockets are for.
  using Places = std::map<const Listener*, std::string>;
  Result<Places> PlacesOfGiven(const std::vector<SocketConfig>& wanted) const;
  // Listeners for those of `wanted` that have none.
  Result<std::vector<std::unique_ptr<Listener>>> OpenMissing(
      const std::vector<SocketConfig>& wanted, const Places& places);
  void KeepListenersOf(const std::vector<SocketConfig>& wanted, const Places& places);
  void TellSockets(const Config& wanted);
  void TellChange(std::string_view field, std::string_view from, std::string_view to, bool applied);

  // As last read, but for what only a restart changes: that is as it was at the start.
  Config configured_;
  Config config_;  // With every default filled in.
  const std::function<Result<Config>()> read_config_;
  std::vector<ActivatedSocket> given_;
  Notifier notifier_;
  const SystemClock clock_;
  // In the order in which they depend on each other: each outlives those below it, but for what
  // reads files, the store and devices, which end before the engine into whose memory they read.
  OwnerLoop loop_;
  std::unique_ptr<HostCapacity> capacity_;
  std::unique_ptr<WorkerPool> touch_pool_;
  std::unique_ptr<HostTier> host_;
  std::unique_ptr<Journal> journal_;
  std::unique_ptr<JournalDrain> journal_drain_;
  MemfdDirectory directory_memory_;
  std::unique_ptr<WorkerPool> read_pool_;
  std::unique_ptr<DiskIo> disk_io_;
  std::unique_ptr<WorkerPool> copy_pool_;
  std::unique_ptr<BlockReader> block_reader_;
  std::unique_ptr<WeightSources> sources_;
  std::unique_ptr<WeightImages> images_;
  std::unique_ptr<PageStore> store_;  // Null: none is configured. Ends before the engine.
  ChosenDevices chosen_devices_;
  bool misconfigured_ = false;
  std::vector<std::unique_ptr<DeviceTier>> devices_;  // Of those. End before the engine.
  std::unique_ptr<Service> service_;
  std::unique_ptr<Engine> engine_;
  std::vector<std::unique_ptr<Listener>> listeners_;
  std::unique_ptr<Collector> collector_;
  std::unique_ptr<MetricsServer> metrics_;
  bool stopping_ = false;
  OwnerLoop::Timer alive_;
  OwnerLoop::Timer drain_;   // While stopping.
  std::string status_line_;  // As last told.
  int changes_applied_ = 0;  // By the reload that is under way, or the last one.
  int changes_left_ = 0;     // Likewise: those that need a restart.
  MonotonicNs capacity_checked_ = 0;
};

}  // namespace terrace
