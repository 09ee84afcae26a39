// Daemon::Reload: what SIGHUP does. The whole file is read and checked before anything changes;
// what can change while clients are there is changed, and what cannot is named.
#include <algorithm>
#include <set>

#include "daemon/service/daemon.h"
#include "daemon/service/log.h"

namespace terrace {

namespace {

template <typename Sockets>
auto FindSocket(Sockets& sockets, const std::string& path) {
  return std::find_if(sockets.begin(), sockets.end(),
                      [&](const SocketConfig& socket) { return socket.path == path; });
}

// Equal in what is decided when the socket is made.
bool MadeAlike(const SocketConfig& a, const SocketConfig& b) {
  return a.name == b.name && a.owner == b.owner && a.group == b.group && a.mode == b.mode;
}

}  // namespace

ServiceLimits Daemon::ServiceLimitsNow() const {
  return {.verbs = {config_.clients, config_.clients_per_process, config_.clients_per_user,
                    capacity_->wanted_bytes(), config_.reader_stall_ms},
          .connections = config_.connections,
          .connections_without_hello = config_.connections_without_hello,
          .hello_deadline_ms = config_.hello_deadline_ms};
}

ClientLimits Daemon::ClientLimitsNow() const {
  // Of what the tier may grow to: a client keeps its budget as long as it lives.
  const uint64_t pinned_bytes =
      config_.pinned_bytes != 0 ? config_.pinned_bytes : capacity_->wanted_bytes() / 2;
  return {.max_pins = config_.pins,
          .max_pinned_bytes = pinned_bytes,
          .max_grants = config_.grants,
          .max_spaces = config_.spaces,
          .grant_deadline_ms = config_.grant_deadline_ms,
          .grant_deadline_max_ms = config_.grant_deadline_max_ms};
}

void Daemon::Reload() {
  if (stopping_) return;
  notifier_.Reloading(clock_.Now());
  changes_applied_ = 0;
  changes_left_ = 0;
  Result<Config> next = read_config_();
  const Status status = next ? Apply(*std::move(next)) : next.error();
  if (!status.ok()) {
    Log(LogLevel::kError, "reload-failed",
        {{"why", status}, {"kept", "the configuration as it was"}});
    status_line_ = "Reload failed, the configuration is as it was: " + status.message();
  } else {
    Log(LogLevel::kInfo, "reloaded", {{"applied", changes_applied_}, {"left", changes_left_}});
    status_line_ = "Reloaded: " + std::to_string(changes_applied_) + " changes applied, " +
                   std::to_string(changes_left_) + " need a restart";
  }
  notifier_.Ready(status_line_);
}

// An error changes nothing: what can fail comes first.
Status Daemon::Apply(Config next) {
  RETURN_IF_ERROR(ApplySockets(next));
  const std::vector<FieldChange> changes = ChangesBetween(configured_, next);
  for (const FieldChange& change : changes)
    TellChange(change.path, change.from, change.to, change.reloads);
  if (next.nvme != configured_.nvme) {
    TellChange("nvme", std::to_string(configured_.nvme.size()) + " tables",
               std::to_string(next.nvme.size()) + " tables", false);
  }
  if (next.devices != configured_.devices) {
    TellChange("device", std::to_string(configured_.devices.size()) + " tables",
               std::to_string(next.devices.size()) + " tables", false);
  }
  TakeReloadable(next, &configured_);
  TakeReloadable(next, &config_);
  service_->SetLimits(ServiceLimitsNow());
  TERRACE_CHECK(engine_->SetClientLimits(ClientLimitsNow()).ok());  // CheckConfig let it by.
  SetLogLevel(config_.log_level);
  SetLogFormat(config_.log_format);
  return {};
}

Status Daemon::ApplySockets(const Config& next) {
  if (next.sockets.empty() != config_.sockets.empty()) {
    // From user mode to tenants or back: everybody would be somebody else.
    TellChange("socket", std::to_string(config_.sockets.size()) + " tables",
               std::to_string(next.sockets.size()) + " tables", false);
    return {};
  }
  Config wanted = WithSocketsOf(next);
  ASSIGN_OR_RETURN(const Places places, PlacesOfGiven(wanted.sockets));
  ASSIGN_OR_RETURN(std::vector<std::unique_ptr<Listener>> opened,
                   OpenMissing(wanted.sockets, places));
  RETURN_IF_ERROR(service_->ReplaceTenants(wanted));
  KeepListenersOf(wanted.sockets, places);
  std::move(opened.begin(), opened.end(), std::back_inserter(listeners_));
  TellSockets(wanted);
  config_ = std::move(wanted);
  TellWithoutAdmin();
  return {};
}

Config Daemon::WithSocketsOf(const Config& next) {
  Config wanted = config_;
  wanted.peers = next.peers;
  wanted.sockets = next.sockets;
  for (SocketConfig& socket : wanted.sockets) {
    const auto present = FindSocket(config_.sockets, socket.path);
    if (present == config_.sockets.end() || MadeAlike(*present, socket)) continue;
    TellChange("socket", socket.path, "another name, owner, group or mode", false);
    socket.name = present->name;
    socket.owner = present->owner;
    socket.group = present->group;
    socket.mode = present->mode;
  }
  return wanted;
}

Result<Daemon::Places> Daemon::PlacesOfGiven(const std::vector<SocketConfig>& wanted) const {
  Places places;
  std::set<std::string> taken;
  for (const auto& listener : listeners_) {
    if (!listener->given()) continue;
    const size_t at = PlaceOf(*listener->given(), wanted);
    if (at == wanted.size()) continue;
    const std::string& path = wanted[at].path;
    if (!taken.insert(path).second) return SecondFor(path, *listener->given());
    places[listener.get()] = path;
  }
  return places;
}

Result<std::vector<std::unique_ptr<Listener>>> Daemon::OpenMissing(
    const std::vector<SocketConfig>& wanted, const Places& places) {
  std::set<std::string> present;
  for (const auto& [given, path] : places)
    present.insert(path);
  for (const auto& listener : listeners_) {
    if (!listener->given()) present.insert(listener->path());
  }
  std::vector<std::unique_ptr<Listener>> opened;
  for (const SocketConfig& socket : wanted) {
    if (present.contains(socket.path)) continue;
    ASSIGN_OR_RETURN(std::unique_ptr<Listener> listener, ListenOn(socket, std::nullopt));
    opened.push_back(std::move(listener));
  }
  return opened;
}

void Daemon::KeepListenersOf(const std::vector<SocketConfig>& wanted, const Places& places) {
  if (config_.sockets.empty()) return;  // User mode.
  std::erase_if(listeners_, [&](const std::unique_ptr<Listener>& listener) {
    if (!listener->given()) return FindSocket(wanted, listener->path()) == wanted.end();
    // It is the service manager's, and only given at the start: it stays, to be brought back.
    const auto place = places.find(listener.get());
    listener->ServeAs(place == places.end() ? "" : place->second);
    return false;
  });
}

void Daemon::TellSockets(const Config& wanted) {
  for (const SocketConfig& socket : config_.sockets) {
    if (FindSocket(wanted.sockets, socket.path) == wanted.sockets.end()) {
      TellChange("socket", socket.path, "none", true);
    }
  }
  for (const SocketConfig& socket : wanted.sockets) {
    const auto present = FindSocket(config_.sockets, socket.path);
    if (present == config_.sockets.end()) {
      TellChange("socket", "none", socket.path, true);
    } else if (!(*present == socket)) {
      TellChange("socket", socket.path, "another tenant, role or admin", true);
    }
  }
  if (wanted.peers != config_.peers) {
    TellChange("peer", std::to_string(config_.peers.size()) + " tables",
               std::to_string(wanted.peers.size()) + " tables", true);
  }
}

void Daemon::TellChange(std::string_view field, std::string_view from, std::string_view to,
                        bool applied) {
  ++(applied ? changes_applied_ : changes_left_);
  Log(applied ? LogLevel::kInfo : LogLevel::kWarning,
      applied ? "setting-changed" : "setting-needs-restart",
      {{"field", field}, {"from", from}, {"to", to}});
}

}  // namespace terrace
