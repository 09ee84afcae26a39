// Tenants: which tenant a peer is of, and what it may do there. Found from the peer's credentials
// and the socket it came by, never from a request. Owner thread only.
//
// In user mode, the only one so far, whoever can open the socket is the tenant "default" with every
// role; the kernel's file permissions on the socket are the whole of the access control.
#pragma once

#include <string>

#include "base/status.h"
#include "daemon/engine/engine.h"
#include "daemon/service/peer.h"

namespace terrace {

struct Identity {
  TenantId tenant = 0;
  std::string tenant_name;
  bool may_write = false;       // Grants, commits, drops.
  bool may_administer = false;  // Adds, removes and unloads models, evicts.
};

class Tenants {
 public:
  Status Open(Engine& engine) {
    ASSIGN_OR_RETURN(user_mode_.tenant, engine.AddTenant("default"));
    user_mode_ = {user_mode_.tenant, "default", true, true};
    return {};
  }
  Result<Identity> IdentityOf(const Peer&) const { return user_mode_; }
  // A plain sentence for `status`.
  static std::string Isolation() {
    return "user mode: tenants are not isolated from each other; whoever can open the socket is "
           "tenant 'default' and may do everything";
  }

 private:
  Identity user_mode_;
};

}  // namespace terrace
