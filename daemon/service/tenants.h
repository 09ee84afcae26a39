// Tenants: which tenant a peer is of, and what it may do there. Found from the peer's credentials
// and the socket it came by, never from a request. Owner thread only.
//
// In order: a socket with a tenant refuses everybody whom [[peer]] puts elsewhere; the first
// [[peer]] with the peer's uid counts, else the first with one of its groups, else the socket's own
// tenant and role; who is none of these is refused. An admin acts as one only on a socket that
// takes the verbs of admins, and as a writer elsewhere.
//
// In user mode (no [[socket]]) the one socket gives everybody the tenant "default" and every role:
// the kernel's file permissions on the socket are the whole of the access control.
#pragma once

#include <functional>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "base/status.h"
#include "daemon/engine/engine.h"
#include "daemon/service/config.h"

namespace terrace {

struct Identity {
  TenantId tenant = 0;
  std::string tenant_name;
  bool may_write = false;       // Grants, commits, drops.
  bool may_administer = false;  // Models, eviction, reports on other tenants.
};

class Tenants {
 public:
  // What the kernel says of a peer.
  struct Origin {
    uid_t uid = 0;
    gid_t gid = 0;
    std::span<const gid_t> groups;  // The supplementary ones.
    const std::string& socket;      // The path it came by.
  };

  // Engine::AddTenant: the same name, the same id.
  using AddTenant = std::function<Result<TenantId>(const std::string&)>;

  void Open(AddTenant add) { add_ = std::move(add); }
  // Takes sockets and peers from `config`, and adds the tenants they name to the engine. Tenants
  // are never taken away: their clients and pages may still be there. An error changes nothing.
  Status Replace(const Config& config);
  // `permission_denied` says why it is nobody here.
  Result<Identity> IdentityOf(const Origin& origin) const;
  // A plain sentence for `status`.
  std::string Isolation() const;

 private:
  const PeerConfig* FindPeer(const Origin& origin) const;

  AddTenant add_;
  bool user_mode_ = true;
  std::vector<SocketConfig> sockets_;
  std::vector<PeerConfig> peers_;
  std::map<std::string, TenantId> ids_;
};

}  // namespace terrace
