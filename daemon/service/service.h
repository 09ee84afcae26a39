// Service: the connections and clients of the daemon, between the loop and the engine.
//
// It accepts, hands frames to Verbs, turns the engine's clock, forwards what the engine tells, and
// ends clients whose process is gone. Owner thread only; owned by main, and outlives the engine,
// whose events it takes.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/clock.h"
#include "daemon/engine/engine.h"
#include "daemon/service/client_record.h"
#include "daemon/service/config.h"
#include "daemon/service/connection.h"
#include "daemon/service/owner_loop.h"
#include "daemon/service/reports.h"
#include "daemon/service/tenants.h"
#include "daemon/service/verbs.h"

namespace terrace {

struct ServiceLimits {
  VerbLimits verbs;
  uint32_t connections = 2048;
  uint32_t connections_without_hello = 256;  // Of one user.
  uint32_t hello_deadline_ms = 10'000;
};

struct ServiceOptions {
  ServiceLimits limits;
  std::string state_dir;         // For reports.
  uint64_t descriptors = 65536;  // RLIMIT_NOFILE: replies may hold a part of it.
};

class Service final : public EngineEvents, private Connection::Owner {
 public:
  Service(ServiceOptions options, OwnerLoop& loop, const Clock& clock, HostTier& host);
  ~Service() override;
  Service(const Service&) = delete;
  Service& operator=(const Service&) = delete;

  // To be called once, before Accept. Of `config`: the sockets and peers.
  Status Start(Engine& engine, const Config& config);
  // `path`: the configured socket that it came by.
  void Accept(UniqueFd socket, const std::string& path);
  // Who is who from now on. A client that would not get again what it has (its tenant, the writing)
  // is cut: it may come back as who it is now. An error changes nothing.
  Status ReplaceTenants(const Config& config);
  // From now on: nobody who is there already is sent away for being one too many.
  void SetLimits(const ServiceLimits& limits) { options_.limits = limits; }
  // Called about once a second.
  void OnSweep(std::function<void()> sweep) { on_sweep_ = std::move(sweep); }
  // For status reports.
  void SetCapacityReport(std::function<void(ServiceReport*)> fill) {
    fill_capacity_ = std::move(fill);
  }

  // For metrics.
  ServiceFigures Figures() const;

  // Answers what waits with `unavailable`, closes every connection after its replies were taken, or
  // after kStopMs, and calls `stopped`.
  static constexpr int64_t kStopMs = 2000;
  void Stop(std::function<void()> stopped);

  // ---- EngineEvents: may come from within a verb.
  void GrantsExpired(ClientId client, std::span<const uint64_t> grants) override;
  void ArenasGone(TenantId tenant, std::span<const ArenaId> arenas) override;
  void ClientCut(ClientId client, const Status& why) override;
  void UnmapWanted(ClientId client, const UnmapRequest& request) override;

 private:
  void OnFrame(Connection& connection, Frame& frame) override;
  size_t FdsOfReply(const wire::FrameHeader& header) const override;
  void OnClosed(Connection& connection, const Status& why) override;
  void Refuse(int socket, const Peer& peer, const std::string& path, const Status& why);
  Result<Identity> IdentityOf(int socket, const Peer& peer, const std::string& path) const;
  // `exhausted`, naming the limit, when this user's connections are too many that say nothing.
  Status RoomFor(const Peer& peer) const;
  void Turn();
  void Sweep();
  // Of who has no client in time: it was silent, or its hello waits for room for descriptors.
  void EndUnserved(Connection& connection);
  void StoppedIfEmpty();
  ServiceReport Report() const;

  ServiceOptions options_;
  OwnerLoop& loop_;
  const Clock& clock_;
  HostTier& host_;
  const MonotonicNs started_;
  const uint64_t life_;

  Engine* engine_ = nullptr;
  Tenants tenants_;
  std::string sockets_;  // For reports.
  Traffic traffic_;
  uint64_t requests_in_flight_ = 0;  // At the last sweep.
  ConnectionBudgets budgets_;
  uint64_t last_caller_ = 0;
  ClientTable clients_;
  CallerTable callers_;
  std::unique_ptr<Verbs> verbs_;
  OwnerLoop::Timer turn_;
  OwnerLoop::Timer sweep_;
  OwnerLoop::Timer stop_;
  int turns_in_a_row_ = 0;
  std::function<void()> on_sweep_;
  std::function<void(ServiceReport*)> fill_capacity_;
  std::function<void()> stopped_;
};

}  // namespace terrace
