// AccessLists: which tenants may attach a model's weights, by the model's name.
//
// A list is made when the first version of a name is registered, with the tenant of who did that,
// and goes with the last version. It is journalled:
//   key "access/" NAME; value, numbers little-endian: u32 format (1), u32 tenants, and for each u32
//   length of its name, name. Nothing follows.
// A part of the engine: owner thread only. Changes hold at once; completions say whether they also
// survive a restart, and are dropped when the object is destroyed.
//
// Limits: kMaxTenants of one model.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "tiers/tier.h"

namespace terrace {

class AccessLists {
 public:
  static constexpr size_t kMaxTenants = 1024;
  static constexpr std::string_view kPrefix = "access/";

  explicit AccessLists(Journal& journal) : journal_(journal) {}

  // Reads the lists of the models that `known` knows; those of others are deleted. Where there is
  // none, because the daemon ended between the two records, or one that cannot be read, nobody may
  // attach the model until it is granted; `problems` says so.
  Status Restore(const std::vector<std::string>& models, std::vector<std::string>* problems);

  // The model was registered by somebody of this tenant. A model that has a list keeps it.
  void Registered(const std::string& model, const std::string& tenant,
                  std::function<void(Status)> done);
  void Removed(const std::string& model);
  // Both are content when it is so already.
  void Set(const std::string& model, const std::string& tenant, bool granted,
           std::function<void(Status)> done);

  bool Allows(const std::string& model, const std::string& tenant) const;
  std::vector<std::string> TenantsOf(const std::string& model) const;

 private:
  using List = std::set<std::string>;
  void Save(const std::string& model, std::function<void(Status)> done);

  Journal& journal_;
  std::map<std::string, List> lists_;
  std::shared_ptr<char> alive_ = std::make_shared<char>();  // Completions hold it weakly.
};

}  // namespace terrace
