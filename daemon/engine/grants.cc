#include "daemon/engine/grants.h"

#include "base/check.h"

namespace terrace {

uint64_t GrantTable::Add(const GrantRecord& grant) {
  const Key key{grant.client, ++last_id_};
  grants_.emplace_hint(grants_.lower_bound({grant.client + 1, 0}), key, grant);
  deadlines_.emplace(grant.deadline, key);
  return last_id_;
}

GrantRecord* GrantTable::Find(ClientId client, uint64_t id) {
  const auto found = grants_.find({client, id});
  return found == grants_.end() ? nullptr : &found->second;
}

void GrantTable::Remove(ClientId client, uint64_t id) {
  const auto found = grants_.find({client, id});
  TERRACE_CHECK(found != grants_.end());
  if (!found->second.expired) deadlines_.erase({found->second.deadline, found->first});
  grants_.erase(found);
}

void GrantTable::Expire(ClientId client, uint64_t id) {
  GrantRecord* grant = Find(client, id);
  TERRACE_CHECK(grant != nullptr && !grant->expired);
  grant->expired = true;
  deadlines_.erase({grant->deadline, {client, id}});
}

std::vector<GrantTable::Key> GrantTable::Due(MonotonicNs now, size_t limit) const {
  std::vector<Key> due;
  for (const auto& [deadline, key] : deadlines_) {
    if (deadline >= now || due.size() == limit) break;
    due.push_back(key);
  }
  return due;
}

std::vector<uint64_t> GrantTable::IdsOf(ClientId client) const {
  std::vector<uint64_t> ids;
  for (auto grant = grants_.lower_bound({client, 0});
       grant != grants_.end() && grant->first.first == client; ++grant) {
    ids.push_back(grant->first.second);
  }
  return ids;
}

}  // namespace terrace
