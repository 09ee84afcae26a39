#include "daemon/engine/weights/access.h"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <optional>
#include <utility>

namespace terrace {

namespace {

constexpr uint32_t kFormat = 1;

std::string KeyOf(const std::string& model) {
  return std::string(AccessLists::kPrefix) + model;
}

void Append(std::string& out, uint32_t number) {
  out.append(reinterpret_cast<const char*>(&number), sizeof number);
}

std::optional<uint32_t> TakeNumber(std::string_view& in) {
  uint32_t number = 0;
  if (in.size() < sizeof number) return std::nullopt;
  std::memcpy(&number, in.data(), sizeof number);
  in.remove_prefix(sizeof number);
  return number;
}

std::string Encode(const std::set<std::string>& list) {
  std::string out;
  Append(out, kFormat);
  Append(out, static_cast<uint32_t>(list.size()));
  for (const std::string& tenant : list) {
    Append(out, static_cast<uint32_t>(tenant.size()));
    out += tenant;
  }
  return out;
}

std::optional<std::set<std::string>> Decode(std::string_view in) {
  if (TakeNumber(in) != kFormat) return std::nullopt;
  const auto count = TakeNumber(in);
  if (!count || *count > AccessLists::kMaxTenants) return std::nullopt;
  std::set<std::string> list;
  for (uint32_t i = 0; i < *count; ++i) {
    const auto bytes = TakeNumber(in);
    if (!bytes || *bytes > in.size()) return std::nullopt;
    list.emplace(in.substr(0, *bytes));
    in.remove_prefix(*bytes);
  }
  return in.empty() ? std::optional(std::move(list)) : std::nullopt;
}

}  // namespace

Status AccessLists::Restore(const std::vector<std::string>& models,
                            std::vector<std::string>* problems) {
  std::set<std::string> without(models.begin(), models.end());
  for (const std::string& model : models)
    lists_[model] = {};
  ASSIGN_OR_RETURN(const std::vector<Journal::Record> records, journal_.Load(kPrefix));
  for (const Journal::Record& record : records) {
    const std::string model = record.key.substr(kPrefix.size());
    const auto found = lists_.find(model);
    if (found == lists_.end()) {
      // Of a model that could not be journalled. What stays is only ignored once more.
      journal_.Delete(record.key, [](const Status&) {});
      continue;
    }
    without.erase(model);
    std::optional<List> list = Decode(record.value);
    if (!list) {
      problems->push_back("journal record '" + record.key +
                          "': it cannot be read, so no tenant may attach this model");
    }
    found->second = list.value_or(List());
  }
  for (const std::string& model : without) {
    problems->push_back("model '" + model +
                        "': nobody was recorded who may attach it, so no tenant may until granted");
  }
  return {};
}

void AccessLists::Registered(const std::string& model, const std::string& tenant,
                             std::function<void(Status)> done) {
  const auto [entry, fresh] = lists_.try_emplace(model);
  if (!fresh) return done(Status());
  if (!tenant.empty()) entry->second.insert(tenant);
  Save(model, std::move(done));
}

void AccessLists::Removed(const std::string& model) {
  if (lists_.erase(model) == 0) return;
  // Without its model the record means nothing: the next start deletes it if this fails.
  journal_.Delete(KeyOf(model), [](const Status&) {});
}

void AccessLists::Set(const std::string& model, const std::string& tenant, bool granted,
                      std::function<void(Status)> done) {
  const auto found = lists_.find(model);
  if (found == lists_.end()) {
    return done(Status(Code::kNotFound, "model '" + model + "' is not registered"));
  }
  List& list = found->second;
  if (granted && list.size() >= kMaxTenants && !list.contains(tenant)) {
    return done(Status(Code::kExhausted, "model '" + model + "' is granted to " +
                                             std::to_string(kMaxTenants) + " tenants already"));
  }
  if (granted) {
    list.insert(tenant);
  } else {
    list.erase(tenant);
  }
  // Also when nothing changed: an earlier writing may have failed.
  Save(model, std::move(done));
}

void AccessLists::Save(const std::string& model, std::function<void(Status)> done) {
  journal_.Put(KeyOf(model), Encode(lists_.at(model)),
               [alive = std::weak_ptr(alive_), done = std::move(done)](Status saved) {
                 if (alive.expired()) return;
                 done(std::move(saved).WithContext(
                     "in force until the daemon ends, for the journal failed"));
               });
}

bool AccessLists::Allows(const std::string& model, const std::string& tenant) const {
  const auto found = lists_.find(model);
  return found != lists_.end() && found->second.contains(tenant);
}

std::vector<std::string> AccessLists::TenantsOf(const std::string& model) const {
  const auto found = lists_.find(model);
  if (found == lists_.end()) return {};
  return {found->second.begin(), found->second.end()};
}

}  // namespace terrace
