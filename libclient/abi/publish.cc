// The C ABI: grants, commit, persist, fetch, drop.
#include <optional>
#include <span>
#include <string>
#include <utility>

#include "libclient/abi/abi.h"

using namespace terrace;               // NOLINT(google-build-using-namespace)
using namespace terrace::client::abi;  // NOLINT(google-build-using-namespace)
using terrace::client::Client;
using terrace::client::Deadline;
using terrace::client::Fetch;
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

// Of the daemon life that `now` is of.
Result<SpaceRef> RefOf(const client::Space& space, const client::Contact& now) {
  const client::Binding& binding = space.binding();
  if (binding.life_epoch == now.life->epoch()) return binding.ref();
  return Status(Code::kStale, "the space could not be opened again after a reconnect");
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
    RETURN_IF_ERROR(CheckDevice(asked.device, *core));
    ASSIGN_OR_RETURN(const Deadline deadline, core->DeadlineOf(timeout_ms));
    const client::GrantOptions wanted{
        .deadline_ms = asked.deadline_ms,
        .parent = asked.parent == nullptr ? std::nullopt : std::optional(*Of(asked.parent)),
        .position = asked.position,
        .device = asked.device == nullptr ? nullptr : Of(asked.device)->device.get()};
    ASSIGN_OR_RETURN(std::unique_ptr<GrantSet> set,
                     GrantSet::Ask(core, *Of(space)->space, {Of(keys), count}, wanted, deadline));
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

kvc_code kvc_persist(kvc_client* client, const kvc_space* space, const kvc_key* keys, size_t count,
                     int32_t timeout_ms, kvc_code* codes, kvc_error* error) {
  return Run(error, [&]() -> Status {
    RETURN_IF_ERROR(CheckBatch(client, space, keys, count));
    Client& core = *Of(client)->client;
    RETURN_IF_ERROR(CheckWriter(core));
    ASSIGN_OR_RETURN(const Deadline deadline, core.DeadlineOf(timeout_ms));
    ASSIGN_OR_RETURN(const client::Contact now, core.contact());
    RETURN_IF_ERROR(now.CheckDoes(wire::kStoreCapability, "make pages durable"));
    ASSIGN_OR_RETURN(const SpaceRef at, RefOf(*Of(space)->space, now));
    const messages::Persist request{
        .slot = at.slot,
        .epoch = at.epoch,
        .part = Of(space)->space->facts().part,
        .keys = {reinterpret_cast<const char*>(keys), count * sizeof(kvc_key)}};
    ASSIGN_OR_RETURN(const auto answer, now.connection->Call(request, deadline));
    if (answer.reply.codes.size() != count) {
      return Status(Code::kDataLoss, "the daemon answered for another number of pages");
    }
    Status first;
    for (size_t i = 0; i < count; ++i) {
      const Code code = messages::PageCodeOf(answer.reply.codes[i]);
      if (codes != nullptr) codes[i] = static_cast<kvc_code>(code);
      if (code != Code::kOk && first.ok()) {
        first = {code, "page " + std::to_string(i) + " is not durable"};
      }
    }
    return codes == nullptr ? first : Status();
  });
}

kvc_code kvc_prefetch(kvc_client* client, const kvc_space* space, const kvc_key* keys, size_t count,
                      const kvc_prefetch_options* options, int32_t timeout_ms, kvc_fetch** fetch,
                      kvc_error* error) {
  return Run(error, [&]() -> Status {
    if (fetch == nullptr) return Invalid("fetch is NULL");
    RETURN_IF_ERROR(CheckBatch(client, space, keys, count));
    const std::shared_ptr<Client>& core = Of(client)->client;
    ASSIGN_OR_RETURN(const kvc_prefetch_options asked, Read(options));
    RETURN_IF_ERROR(CheckDevice(asked.device, *core));
    if (asked.min_percent > 100) return Invalid("min_percent is over 100");
    ASSIGN_OR_RETURN(const Deadline deadline, core->DeadlineOf(timeout_ms));
    ASSIGN_OR_RETURN(
        std::unique_ptr<Fetch> begun,
        Fetch::Ask(core, *Of(space)->space, {Of(keys), count},
                   {.deadline_ms = asked.deadline_ms,
                    .min_percent = asked.min_percent,
                    .recompute_us = asked.recompute_us,
                    .device = asked.device == nullptr ? nullptr : Of(asked.device)->device.get()},
                   deadline));
    *fetch = ToHandle<kvc_fetch>(begun.release());
    return {};
  });
}

kvc_code kvc_wait(kvc_fetch* fetch, int32_t timeout_ms, size_t* worth, kvc_code* codes,
                  kvc_error* error) {
  return Run(error, [&]() -> Status {
    if (fetch == nullptr) return Invalid("fetch is NULL");
    Fetch& waiting = *Of(fetch);
    RETURN_IF_ERROR(CheckClient(waiting.client()));
    ASSIGN_OR_RETURN(const Deadline deadline, waiting.client().DeadlineOf(timeout_ms));
    RETURN_IF_ERROR(waiting.Wait(deadline));
    if (worth != nullptr) *worth = waiting.worth();
    for (size_t i = 0; codes != nullptr && i < waiting.size(); ++i)
      codes[i] = static_cast<kvc_code>(waiting.code(i));
    return {};
  });
}

kvc_code kvc_wait_any(kvc_fetch* const* fetches, size_t count, int32_t timeout_ms, size_t* index,
                      kvc_error* error) {
  return Run(error, [&]() -> Status {
    if (fetches == nullptr || index == nullptr) return Invalid("fetches or index is NULL");
    if (count == 0 || count > Fetch::kMostAtOnce) return Invalid("count is not 1 to 256");
    std::vector<Fetch*> waiting;
    for (size_t i = 0; i < count; ++i) {
      if (fetches[i] == nullptr) return Invalid("a fetch is NULL");
      waiting.push_back(Of(fetches[i]));
      if (&waiting.back()->client() != &waiting.front()->client()) {
        return Invalid("the fetches are not of one client");
      }
    }
    Client& client = waiting.front()->client();
    RETURN_IF_ERROR(CheckClient(client));
    ASSIGN_OR_RETURN(const Deadline deadline, client.DeadlineOf(timeout_ms));
    ASSIGN_OR_RETURN(*index, Fetch::WaitAny(waiting, deadline));
    return {};
  });
}

void kvc_fetch_destroy(kvc_fetch* fetch) {
  if (fetch == nullptr || Of(fetch)->client().in_child()) return;
  Run(nullptr, [&]() -> Status {
    delete Of(fetch);
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
    ASSIGN_OR_RETURN(const SpaceRef at, RefOf(*Of(space)->space, now));
    const messages::Drop request{
        .slot = at.slot,
        .epoch = at.epoch,
        .part = Of(space)->space->facts().part,
        .keys = {reinterpret_cast<const char*>(keys), count * sizeof(kvc_key)}};
    ASSIGN_OR_RETURN(const auto answer, now.connection->Call(request, deadline));
    if (dropped != nullptr) *dropped = answer.reply.dropped;
    return {};
  });
}
