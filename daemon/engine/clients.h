// Clients: who is served, with which budgets, and what each holds.
//
// Owned by the engine; owner thread only. Limits: kMaxClients.
#pragma once

#include <cstdint>
#include <map>
#include <string>

#include "base/status.h"
#include "daemon/engine/engine.h"

namespace terrace {

struct Client {
  ClientSpec spec;
  ClientGiven given;
  // Found over its pin budget: its pins count no more, its verbs are refused.
  bool cut = false;
  std::string cut_why;
  // permission_denied for a client that was cut.
  Status Served() const;
  // At the last scan.
  uint64_t pins = 0;
  uint64_t pinned_bytes = 0;
  // Now, abandoned ones included.
  uint32_t grants = 0;
  uint64_t granted_bytes = 0;
};

class Clients {
 public:
  static constexpr size_t kMaxClients = 4096;

  // Null if there is no such client.
  Client* Find(ClientId id);
  // not_found, or permission_denied for a client that was cut.
  Result<Client*> Serving(ClientId id);
  // Likewise, and it may write.
  Result<Client*> Writing(ClientId id);

  Result<Client*> Add(const ClientSpec& spec, const EngineOptions& options,
                      uint64_t host_capacity_bytes);
  void Remove(ClientId id) { clients_.erase(id); }
  const std::map<ClientId, Client>& all() const { return clients_; }

 private:
  std::map<ClientId, Client> clients_;
  ClientId last_id_ = 0;
};

}  // namespace terrace
