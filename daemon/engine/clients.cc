#include "daemon/engine/clients.h"

#include <algorithm>

namespace terrace {

Status Client::Served() const {
  return cut ? Status(Code::kPermissionDenied, "the client was cut off: " + cut_why) : Status();
}

Client* Clients::Find(ClientId id) {
  const auto found = clients_.find(id);
  return found == clients_.end() ? nullptr : &found->second;
}

Result<Client*> Clients::Serving(ClientId id) {
  Client* client = Find(id);
  if (client == nullptr) {
    return Status(Code::kNotFound, "client " + std::to_string(id) + " is not known");
  }
  RETURN_IF_ERROR(client->Served());
  return client;
}

Result<Client*> Clients::Writing(ClientId id) {
  ASSIGN_OR_RETURN(Client * client, Serving(id));
  if (!client->spec.writer) {
    return Status(Code::kPermissionDenied, "the client connected as a reader");
  }
  return client;
}

Result<Client*> Clients::Add(const ClientSpec& spec, const EngineOptions& options,
                             uint64_t host_capacity_bytes) {
  if (clients_.size() >= kMaxClients) {
    return Status(Code::kExhausted,
                  "there are " + std::to_string(kMaxClients) + " clients already");
  }
  const uint32_t wanted = spec.max_pins == 0 ? options.max_pins : spec.max_pins;
  const uint32_t pins = std::clamp<uint32_t>(std::min(wanted, options.max_pins), 1,
                                             shm::kMaxPinLines * shm::kPinsPerLine);
  // Pin words are leased by the line.
  const uint32_t lines = (pins + shm::kPinsPerLine - 1) / shm::kPinsPerLine;
  Client& client = clients_[++last_id_];
  client.spec = spec;
  client.given = {.id = last_id_,
                  .max_pins = lines * shm::kPinsPerLine,
                  .max_pinned_bytes = options.max_pinned_bytes != 0 ? options.max_pinned_bytes
                                                                    : host_capacity_bytes / 2,
                  .max_grants = options.max_grants};
  return &client;
}

}  // namespace terrace
