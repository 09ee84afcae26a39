#include "daemon/service/tenants.h"

#include <unistd.h>

#include <algorithm>

namespace terrace {

Status Tenants::Replace(const Config& config) {
  std::vector<SocketConfig> sockets = SocketsOf(config);
  std::map<std::string, TenantId> ids;
  const auto add = [&](const std::string& name) -> Status {
    if (name.empty() || ids.contains(name)) return {};
    ASSIGN_OR_RETURN(ids[name], add_(name));
    return {};
  };
  for (const SocketConfig& socket : sockets)
    RETURN_IF_ERROR(add(socket.tenant).WithContext("socket.tenant"));
  for (const PeerConfig& peer : config.peers)
    RETURN_IF_ERROR(add(peer.tenant).WithContext("peer.tenant"));
  user_mode_ = config.sockets.empty();
  sockets_ = std::move(sockets);
  peers_ = config.peers;
  ids_ = std::move(ids);
  return {};
}

const PeerConfig* Tenants::FindPeer(const Origin& origin) const {
  for (const PeerConfig& peer : peers_) {
    if (peer.uid == origin.uid) return &peer;
  }
  for (const PeerConfig& peer : peers_) {
    if (!peer.gid) continue;
    if (*peer.gid == origin.gid) return &peer;
    if (std::find(origin.groups.begin(), origin.groups.end(), *peer.gid) != origin.groups.end()) {
      return &peer;
    }
  }
  return nullptr;
}

Result<Identity> Tenants::IdentityOf(const Origin& origin) const {
  const auto socket = std::find_if(sockets_.begin(), sockets_.end(), [&](const SocketConfig& each) {
    return each.path == origin.socket;
  });
  if (socket == sockets_.end()) {
    return Status(Code::kPermissionDenied,
                  "peer: the socket it came by is not in the configuration");
  }
  const PeerConfig* peer = FindPeer(origin);
  const std::string who = "peer: user " + std::to_string(origin.uid);
  if (peer == nullptr && socket->tenant.empty()) {
    return Status(Code::kPermissionDenied,
                  who + " has no tenant here: no [[peer]] names it or a group of it");
  }
  if (peer != nullptr && !socket->tenant.empty() && peer->tenant != socket->tenant) {
    return Status(Code::kPermissionDenied, who + " is of tenant '" + peer->tenant +
                                               "', and this socket is of tenant '" +
                                               socket->tenant + "' alone");
  }
  const Role role = peer != nullptr ? peer->role : socket->role;
  Identity identity;
  identity.tenant_name = peer != nullptr ? peer->tenant : socket->tenant;
  identity.tenant = ids_.at(identity.tenant_name);
  identity.may_write = role != Role::kReader;
  identity.may_administer = role == Role::kAdmin && socket->admin;
  return identity;
}

std::string Tenants::Isolation() const {
  if (user_mode_) {
    return "user mode: tenants are not isolated from each other; whoever can open the socket is "
           "tenant 'default' and may do everything";
  }
  const auto own = static_cast<uid_t>(::geteuid());
  const bool same_user = std::any_of(peers_.begin(), peers_.end(), [&](const PeerConfig& peer) {
    return peer.uid == own || peer.uid == uid_t{0};
  });
  return std::to_string(ids_.size()) + " tenants, told apart by user, group and socket" +
         (same_user
              ? "; a [[peer]] is root or the daemon's own user, from whom nothing unsealed is safe"
              : "");
}

}  // namespace terrace
