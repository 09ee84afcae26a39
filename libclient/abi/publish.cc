// The C ABI: grants, commit, drop.
#include <span>
#include <string>
#include <utility>

#include "libclient/abi/abi.h"

using namespace terrace;               // NOLINT(google-build-using-namespace)
using namespace terrace::client::abi;  // NOLINT(google-build-using-namespace)
using terrace::client::Client;
using terrace::client::Deadline;
using terrace::client::GrantSet;

namespace {

// Of the verbs that take keys.
Status CheckBatch(const kvc_client* client, const kvc_space* space, const kvc_key* keys,
                  size_t count) {
  if (client == nullptr || space == nullptr || (keys == nullptr && count > 0)) {
    return Invalid("client, space or keys is NULL");
  }
  if (count == 0 || count > client::kMaxBatch) return Invalid("count is not between 1 and 512");
  if (Of(space)->client != Of(client)->client) return Invalid("space belongs to another client");
  return CheckClient(*Of(client)->client);
}

Status CheckWriter(const Client& client) {
  if (client.options().writer) return {};
  return {Code::kPermissionDenied, "this client was connected with read_only"};
}

}  // namespace

kvc_code kvc_grant(kvc_client* client, const kvc_space* space, const kvc_key* keys, size_t count,
                   const kvc_grant_options* options, int32_t timeout_ms, kvc_grants** grants,
                   kvc_error* error) {
  return Run(error, [&]() -> Status {
    if (grants == nullptr) return Invalid("grants is NULL");
    RETURN_IF_ERROR(CheckBatch(client, space, keys, count));
    const std::shared_ptr<Client>& core = Of(client)->client;
    RETURN_IF_ERROR(CheckWriter(*core));
    ASSIGN_OR_RETURN(const kvc_grant_options asked, Read(options));
    ASSIGN_OR_RETURN(const Deadline deadline, core->DeadlineOf(timeout_ms));
    ASSIGN_OR_RETURN(
        std::unique_ptr<GrantSet> set,
        GrantSet::Ask(core, *Of(space)->space, {Of(keys), count}, asked.deadline_ms, deadline));
    *grants = ToHandle<kvc_grants>(set.release());
    return {};
  });
}

size_t kvc_grants_count(const kvc_grants* grants) {
  return grants == nullptr ? 0 : Of(grants)->size();
}

kvc_code kvc_grants_code(const kvc_grants* grants, size_t index) {
  if (grants == nullptr || index >= Of(grants)->size()) return KVC_INVALID_ARGUMENT;
  return static_cast<kvc_code>(Of(grants)->code(index));
}

void* kvc_grants_data(kvc_grants* grants, size_t index) {
  if (grants == nullptr || index >= Of(grants)->size() || Of(grants)->client().in_child()) {
    return nullptr;
  }
  return Of(grants)->data(index);
}

kvc_code kvc_commit(kvc_grants* grants, const uint32_t* valid_tokens, int32_t timeout_ms,
                    kvc_error* error) {
  return Run(error, [&]() -> Status {
    if (grants == nullptr) return Invalid("grants is NULL");
    GrantSet& set = *Of(grants);
    RETURN_IF_ERROR(CheckClient(set.client()));
    ASSIGN_OR_RETURN(const Deadline deadline, set.client().DeadlineOf(timeout_ms));
    return set.Commit({valid_tokens, valid_tokens != nullptr ? set.size() : 0}, deadline);
  });
}

void kvc_grants_destroy(kvc_grants* grants) {
  if (grants == nullptr || Of(grants)->client().in_child()) return;
  Run(nullptr, [&]() -> Status {
    delete Of(grants);
    return {};
  });
}

kvc_code kvc_drop(kvc_client* client, const kvc_space* space, const kvc_key* keys, size_t count,
                  int32_t timeout_ms, uint32_t* dropped, kvc_error* error) {
  return Run(error, [&]() -> Status {
    RETURN_IF_ERROR(CheckBatch(client, space, keys, count));
    Client& core = *Of(client)->client;
    RETURN_IF_ERROR(CheckWriter(core));
    ASSIGN_OR_RETURN(const Deadline deadline, core.DeadlineOf(timeout_ms));
    ASSIGN_OR_RETURN(const client::Contact now, core.contact());
    const client::Space& opened = *Of(space)->space;
    const client::Binding& binding = opened.binding();
    if (binding.life_epoch != now.life->epoch()) {
      return Status(Code::kStale, "the space could not be opened again after a reconnect");
    }
    const messages::Drop request{
        .slot = binding.ref().slot,
        .epoch = binding.ref().epoch,
        .part = opened.facts().part,
        .keys = {reinterpret_cast<const char*>(keys), count * sizeof(kvc_key)}};
    ASSIGN_OR_RETURN(const auto answer, now.connection->Call(request, deadline));
    if (dropped != nullptr) *dropped = answer.reply.dropped;
    return {};
  });
}
