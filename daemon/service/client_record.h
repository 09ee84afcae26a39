// ClientRecord: what the service keeps of a client, from its hello until its process is gone.
//
// A client is not a connection. Its pins, grants and attachments end with its process (a pidfd that
// becomes readable) or with its goodbye; when only its connection broke, the record stays and the
// same process may come back to it. A client that was cut cannot come back, but its record stays as
// well: it may still be writing into its slots and reading its blocks. Owner thread only.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "base/unique_fd.h"
#include "daemon/engine/engine.h"
#include "daemon/service/connection.h"
#include "daemon/service/owner_loop.h"
#include "daemon/service/tenants.h"

namespace terrace {

struct ClientRecord;

// A connection and, once it has said hello, whose it is.
struct Caller {
  Caller(uint64_t id, Peer peer, const ConnectionEnvironment& environment, Connection::Owner& owner)
      : connection(id, std::move(peer), environment, owner) {}
  Connection connection;
  std::string socket;  // The path it came by.
  Identity identity;   // As of the present configuration.
  // As its hello agreed them.
  uint32_t version = 0;
  uint64_t capabilities = 0;
  ClientRecord* client = nullptr;
};

struct ClientRecord {
  ClientId id = 0;
  uint64_t token = 0;  // Proves that a resuming connection was told of this client.
  std::string tenant_name;
  TenantId tenant = 0;
  bool writer = false;
  bool cut = false;    // Over its pin budget: never served again.
  bool acted = false;  // Has sent more than its hello.
  pid_t pid = 0;
  uid_t uid = 0;
  ClientGiven given;
  Mapping channel;           // Outlives the engine's use of it.
  OwnerLoop::Watch process;  // Of its pidfd.
  Caller* caller = nullptr;  // Null while its connection is broken.

  // Arenas whose descriptors it got, and whether writable ones.
  std::unordered_map<ArenaId, bool> arenas;
  // Attachments that the present connection was told of and has not used yet: if it breaks, the
  // client may never have learned their numbers, and has nothing of them mapped but the manifest.
  std::vector<uint64_t> unused_attachments;
  std::vector<uint64_t> unused_pools;  // Likewise, of PoolAdd.
  // What happened while it had no connection; sent when it comes back.
  std::vector<uint64_t> missed_expired;
  std::vector<ArenaId> missed_gone;
};

// Beyond so many a client that is away is told no more: it keeps useless mappings until it ends.
inline constexpr size_t kMaxMissedArenas = 16384;

using ClientTable = std::unordered_map<ClientId, std::unique_ptr<ClientRecord>>;
using CallerTable = std::unordered_map<uint64_t, std::unique_ptr<Caller>>;

}  // namespace terrace
