// GrantTable: slots that clients are writing, with owner and deadline.
//
// A grant whose deadline passed stays in the table, and is charged to its writer, until the writer
// says that it writes no more (Abort) or is gone: until then it may still be writing. Owned by the
// engine; owner thread only. Limits: ClientGiven::max_grants a client.
#pragma once

#include <cstdint>
#include <map>
#include <set>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "daemon/engine/placement/slab.h"
#include "daemon/engine/tenant_index.h"

namespace terrace {

struct GrantRecord {
  ClientId client = 0;
  SlotRef slot;
  PageName name;
  uint32_t page_tokens = 0;
  uint32_t position = 0;
  Digest parent;
  uint32_t generation_index = 0;
  uint64_t generation = 0;  // When it was granted.
  MonotonicNs deadline = 0;
  bool expired = false;
};

class GrantTable {
 public:
  // Returns the grant's id, which is never used again.
  uint64_t Add(const GrantRecord& grant);
  // Null if the client has no such grant.
  GrantRecord* Find(ClientId client, uint64_t id);
  void Remove(ClientId client, uint64_t id);
  // From now on the deadline passed, whatever the clock says.
  void Expire(ClientId client, uint64_t id);

  using Key = std::pair<ClientId, uint64_t>;
  // The oldest grants, at most `limit`, whose deadline passed and which are not expired yet.
  std::vector<Key> Due(MonotonicNs now, size_t limit) const;
  std::vector<uint64_t> IdsOf(ClientId client) const;
  const std::map<Key, GrantRecord>& all() const { return grants_; }

 private:
  std::map<Key, GrantRecord> grants_;
  std::set<std::pair<MonotonicNs, Key>> deadlines_;  // Of those not expired.
  uint64_t last_id_ = 0;
};

}  // namespace terrace
