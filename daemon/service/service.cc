#include "daemon/service/service.h"

#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>

#include "base/random.h"
#include "daemon/service/log.h"
#include "proto/wire.pb.h"

namespace terrace {

namespace {

constexpr std::chrono::milliseconds kTurnEvery{10};
constexpr std::chrono::milliseconds kTurnAfterBurst{1};
// So often in a row the engine may say that more is waiting before sockets come first again for a
// while. The loop looks at sockets between two turns in any case.
constexpr int kTurnBurst = 16;
constexpr std::chrono::milliseconds kSweepEvery{1000};

}  // namespace

Service::Service(ServiceOptions options, OwnerLoop& loop, const Clock& clock, HostTier& host)
    : options_(std::move(options)),
      loop_(loop),
      clock_(clock),
      host_(host),
      started_(clock.Now()),
      life_(SecretWord()),
      turn_(loop.NewTimer([this] { Turn(); })),
      sweep_(loop.NewTimer([this] { Sweep(); })),
      stop_(loop.NewTimer([this] {
        for (const auto& [id, client] : clients_)
          client->caller = nullptr;
        callers_.clear();
        StoppedIfEmpty();
      })) {
  budgets_.fds.SetTotal(FdBudget::TotalOf(options_.descriptors));
}

Service::~Service() = default;

Status Service::Start(Engine& engine, const Config& config) {
  engine_ = &engine;
  tenants_.Open([&engine](const std::string& name) { return engine.AddTenant(name); });
  RETURN_IF_ERROR(ReplaceTenants(config));
  Verbs::Parts parts;
  parts.engine = &engine;
  parts.host = &host_;
  parts.loop = &loop_;
  parts.clock = &clock_;
  parts.clients = &clients_;
  parts.callers = &callers_;
  parts.limits = &options_.limits.verbs;
  parts.life = life_;
  parts.service_report = [this] { return Report(); };
  verbs_ = std::make_unique<Verbs>(std::move(parts));
  turn_.Start(kTurnEvery);
  sweep_.Start(kSweepEvery);
  return {};
}

// ---- Connections --------------------------------------------------------------------------------

Status Service::ReplaceTenants(const Config& config) {
  RETURN_IF_ERROR(tenants_.Replace(config));
  sockets_.clear();
  for (const SocketConfig& socket : SocketsOf(config))
    sockets_.append(sockets_.empty() ? "" : ", ").append(socket.path);
  for (const auto& [id, caller] : callers_) {
    Connection& connection = caller->connection;
    if (!connection.open()) continue;
    const Result<Identity> identity =
        IdentityOf(connection.socket(), connection.peer(), caller->socket);
    Status why = identity.status();
    ClientRecord* client = caller->client;
    if (why.ok() && client != nullptr) {
      if (identity->tenant != client->tenant) {
        why = {Code::kPermissionDenied, "peer: it is of another tenant now"};
      } else if (client->writer && !identity->may_write) {
        why = {Code::kPermissionDenied, "peer: its role is reader now"};
      }
    }
    if (why.ok()) {
      caller->identity = *identity;
      connection.AllowDescriptors(client != nullptr && identity->may_administer);
      continue;
    }
    if (client != nullptr) client->cut = true;
    connection.SendError(0, why);
    connection.CloseAfterSending(why);
  }
  return {};
}

Result<Identity> Service::IdentityOf(int socket, const Peer& peer, const std::string& path) const {
  ASSIGN_OR_RETURN(const std::vector<gid_t> groups, GroupsOf(socket));
  return tenants_.IdentityOf({peer.uid, peer.gid, groups, path});
}

void Service::Accept(UniqueFd socket, const std::string& path) {
  ++traffic_.connections_accepted;
  Result<Peer> peer = PeerOf(socket.get());
  if (!peer) return Refuse(socket.get(), Peer(), path, peer.error());
  Result<Identity> identity = IdentityOf(socket.get(), *peer, path);
  if (!identity) return Refuse(socket.get(), *peer, path, identity.error());
  if (callers_.size() >= options_.limits.connections) {
    return Refuse(
        socket.get(), *peer, path,
        Status(Code::kExhausted, "limits.connections: the daemon has " +
                                     std::to_string(callers_.size()) + " connections already"));
  }
  if (const Status room = RoomFor(*peer); !room.ok()) {
    return Refuse(socket.get(), *peer, path, room);
  }
  const uint64_t id = ++last_caller_;
  const ConnectionEnvironment environment{&loop_, &clock_, &traffic_, &budgets_};
  Connection::Owner& owner = *this;
  auto caller = std::make_unique<Caller>(id, *std::move(peer), environment, owner);
  caller->socket = path;
  caller->identity = *std::move(identity);
  const Status status = caller->connection.Open(std::move(socket));
  if (!status.ok()) {
    ++traffic_.connections_refused;
    LogLimited(LogLevel::kWarning, "connection-refused", {{"why", status}});
    return;
  }
  callers_.emplace(id, std::move(caller));
}

Status Service::RoomFor(const Peer& peer) const {
  const uint32_t limit = options_.limits.connections_without_hello;
  if (callers_.size() < limit) return {};
  const auto silent = std::count_if(callers_.begin(), callers_.end(), [&](const auto& item) {
    Caller& caller = *item.second;
    return caller.client == nullptr && caller.connection.peer().uid == peer.uid;
  });
  if (static_cast<uint64_t>(silent) < limit) return {};
  return {Code::kExhausted, "limits.connections_without_hello: user " + std::to_string(peer.uid) +
                                " has " + std::to_string(silent) +
                                " connections whose hello has not come or waits"};
}

void Service::Refuse(int socket, const Peer& peer, const std::string& path, const Status& why) {
  ++traffic_.connections_refused;
  LogLimited(
      LogLevel::kWarning, "connection-refused",
      {{"socket", path}, {"pid", peer.pid}, {"uid", peer.uid}, {"gid", peer.gid}, {"why", why}});
  Connection::SendLastWord(socket, why);
}

void Service::OnFrame(Connection& connection, Frame& frame) {
  verbs_->Handle(*callers_.at(connection.id()), frame);
}

size_t Service::FdsOfReply(const wire::FrameHeader& header) const {
  return Verbs::FdsOfReply(header);
}

void Service::OnClosed(Connection& connection, const Status& why) {
  const auto found = callers_.find(connection.id());
  if (found == callers_.end()) return;
  Caller& caller = *found->second;
  Log(LogLevel::kDebug, "connection-closed",
      {{"connection", connection.id()},
       {"pid", connection.peer().pid},
       {"client", caller.client == nullptr ? 0 : caller.client->id},
       {"why", why}});
  if (why.code() == Code::kInvalidArgument || why.code() == Code::kPermissionDenied ||
      why.code() == Code::kDeadlineExceeded) {
    LogLimited(LogLevel::kWarning, "connection-cut",
               {{"connection", connection.id()}, {"pid", connection.peer().pid}, {"why", why}});
  }
  // The client lives on: it ends with its process, not with its connection.
  const ClientId client = caller.client == nullptr ? 0 : caller.client->id;
  if (caller.client != nullptr) caller.client->caller = nullptr;
  caller.client = nullptr;
  // This may be called from within the connection, or a verb: the rest is done later.
  loop_.Post([this, id = connection.id(), client] {
    const auto away = clients_.find(client);
    if (away != clients_.end() && away->second->caller == nullptr) {
      verbs_->EndUnused(*away->second);
    }
    callers_.erase(id);
    StoppedIfEmpty();
  });
}

// ---- Time ---------------------------------------------------------------------------------------

void Service::Turn() {
  if (stopped_) return;
  const bool more = engine_->Turn();
  turns_in_a_row_ = more ? turns_in_a_row_ + 1 : 0;
  if (!more) {
    turn_.Start(kTurnEvery);
  } else if (turns_in_a_row_ < kTurnBurst) {
    loop_.Post([this] { Turn(); });
  } else {
    turns_in_a_row_ = 0;
    turn_.Start(kTurnAfterBurst);
  }
}

void Service::Sweep() {
  const MonotonicNs now = clock_.Now();
  const MonotonicNs hello_limit = options_.limits.hello_deadline_ms * kNsPerMs;
  const MonotonicNs stall_limit = options_.limits.verbs.reader_stall_ms * kNsPerMs;
  requests_in_flight_ = 0;
  budgets_.fds.Sweep();
  for (const auto& [id, caller] : callers_) {
    Connection& connection = caller->connection;
    requests_in_flight_ += connection.in_flight().size();
    if (caller->client == nullptr && now - connection.opened_at() > hello_limit) {
      EndUnserved(connection);
      continue;
    }
    connection.Sweep(now, stall_limit);
  }
  if (on_sweep_ && !stopped_) on_sweep_();
  sweep_.Start(kSweepEvery);
}

void Service::EndUnserved(Connection& connection) {
  if (!connection.open()) return;
  if (!connection.awaits_fds()) {
    return connection.Close(Status(Code::kDeadlineExceeded, "it did not say hello in time"));
  }
  // It said it, and is told why it was not answered.
  const Status why = connection.WhyShortOfFds();
  connection.RefuseAwaiting();
  connection.CloseAfterSending(why);
}

// ---- What the engine tells ----------------------------------------------------------------------

void Service::GrantsExpired(ClientId client, std::span<const uint64_t> grants) {
  const auto found = clients_.find(client);
  if (found == clients_.end()) return;
  ClientRecord& record = *found->second;
  if (record.cut) return;
  if (record.caller == nullptr) {
    // As many as a client can have, whatever the engine's reasons to repeat itself.
    const size_t room = record.given.max_grants -
                        std::min<size_t>(record.given.max_grants, record.missed_expired.size());
    const auto kept = grants.first(std::min(room, grants.size()));
    record.missed_expired.insert(record.missed_expired.end(), kept.begin(), kept.end());
    return;
  }
  wire::GrantExpiredEvent event;
  event.mutable_grants()->Add(grants.begin(), grants.end());
  record.caller->connection.Send(wire::Type::kGrantExpiredEvent, 0, event);
}

void Service::ArenasGone(TenantId tenant, std::span<const ArenaId> arenas) {
  for (const auto& [id, record] : clients_) {
    if (record->tenant != tenant || record->cut) continue;
    wire::UnmapEvent event;
    for (const ArenaId arena : arenas) {
      if (record->arenas.erase(arena) > 0) event.add_arenas(arena);
    }
    if (event.arenas().empty()) continue;
    if (record->caller != nullptr) {
      record->caller->connection.Send(wire::Type::kUnmapEvent, 0, event);
    } else {
      const size_t room = kMaxMissedArenas - record->missed_gone.size();
      const size_t kept = std::min(room, static_cast<size_t>(event.arenas_size()));
      record->missed_gone.insert(record->missed_gone.end(), event.arenas().begin(),
                                 event.arenas().begin() + static_cast<ptrdiff_t>(kept));
    }
  }
}

void Service::UnmapWanted(ClientId client, const UnmapRequest& request) {
  const auto found = clients_.find(client);
  if (found == clients_.end()) return;
  // Nothing of it is given again.
  for (const ArenaId arena : request.arenas)
    found->second->arenas.erase(arena);
  if (found->second->caller == nullptr) return;
  wire::UnmapWantedEvent event;
  event.set_device(request.device);
  event.mutable_arenas()->Add(request.arenas.begin(), request.arenas.end());
  event.mutable_attachments()->Add(request.attachments.begin(), request.attachments.end());
  event.set_deadline_ms(request.deadline_ms);
  event.set_lost(request.lost);
  found->second->caller->connection.Send(wire::Type::kUnmapWantedEvent, 0, event);
}

void Service::ClientCut(ClientId client, const Status& why) {
  LogLimited(LogLevel::kWarning, "client-cut", {{"client", client}, {"why", why}});
  const auto found = clients_.find(client);
  if (found == clients_.end()) return;
  // The record stays until its process is gone: who pins too much may be writing into its slots
  // too.
  ClientRecord& record = *found->second;
  record.cut = true;
  if (record.caller == nullptr) return;
  Connection& connection = record.caller->connection;
  connection.SendError(0, why);
  connection.CloseAfterSending(why);
}

// ---- The end ------------------------------------------------------------------------------------

void Service::Stop(std::function<void()> stopped) {
  if (stopped_) return;
  stopped_ = std::move(stopped);
  const Status why(Code::kUnavailable, "the daemon is stopping");
  for (const auto& [id, caller] : callers_) {
    Connection& connection = caller->connection;
    const std::vector<uint64_t> waiting = connection.in_flight();
    for (const uint64_t request : waiting) {
      connection.EndRequest(request);
      connection.SendError(request, why);
    }
    connection.CloseAfterSending(why);
  }
  stop_.Start(std::chrono::milliseconds(kStopMs));
  loop_.Post([this] { StoppedIfEmpty(); });
}

void Service::StoppedIfEmpty() {
  if (!stopped_ || !callers_.empty()) return;
  turn_.Cancel();
  sweep_.Cancel();
  stop_.Cancel();
  stopped_();
}

ServiceFigures Service::Figures() const {
  ServiceReport report;
  if (fill_capacity_) fill_capacity_(&report);
  return {
      .connections = callers_.size(),
      .clients_away = static_cast<uint64_t>(std::count_if(
          clients_.begin(), clients_.end(), [](const auto& item) { return !item.second->caller; })),
      .capacity_wanted_bytes = report.capacity_wanted_bytes,
      .memory_limit_bytes = report.memory_limit_bytes,
      .requests_in_flight = requests_in_flight_,
      .output_bytes = budgets_.output_bytes,
      .large_input_bytes = kLargeInputBudget - budgets_.large_input_left,
      .traffic = traffic_};
}

ServiceReport Service::Report() const {
  ServiceReport report;
  report.version = TERRACE_VERSION;
  report.life = life_;
  report.pid = ::getpid();
  report.uid = ::geteuid();
  report.uptime_ms = static_cast<uint64_t>((clock_.Now() - started_) / kNsPerMs);
  report.socket = sockets_;
  report.state_dir = options_.state_dir;
  report.isolation = tenants_.Isolation();
  report.connections = callers_.size();
  report.clients_away = static_cast<uint64_t>(std::count_if(
      clients_.begin(), clients_.end(), [](const auto& item) { return !item.second->caller; }));
  if (fill_capacity_) fill_capacity_(&report);
  report.traffic = traffic_;
  return report;
}

}  // namespace terrace
