#include "libclient/fetch.h"

#include <optional>
#include <string>
#include <utility>

namespace terrace::client {

Result<std::unique_ptr<Fetch>> Fetch::Ask(std::shared_ptr<Client> client, const Space& space,
                                          std::span<const Digest> keys, const FetchOptions& options,
                                          Deadline deadline) {
  ASSIGN_OR_RETURN(Contact now, client->contact());
  RETURN_IF_ERROR(now.CheckDoes(wire::kStoreCapability, "prefetch pages"));
  const Binding& binding = space.binding();
  if (binding.life_epoch != now.life->epoch()) {
    return Status(Code::kStale, "the space could not be opened again after a reconnect");
  }
  messages::Prefetch request{
      .slot = binding.ref().slot,
      .epoch = binding.ref().epoch,
      .part = space.facts().part,
      .keys = {reinterpret_cast<const char*>(keys.data()), keys.size_bytes()},
      .deadline_ms = options.deadline_ms,
      .min_percent = options.min_percent,
      .recompute_us = options.recompute_us};
  if (options.device != nullptr) {
    ASSIGN_OR_RETURN(request.device, options.device->CheckedNumberIn(now.life->epoch()));
  }
  ASSIGN_OR_RETURN(Connection::Begun call, now.connection->Begin(request, deadline));
  return std::unique_ptr<Fetch>(
      new Fetch(std::move(now), std::move(client), std::move(call), keys.size()));
}

Status Fetch::Wait(Deadline deadline) {
  if (call_ == nullptr) return outcome_;
  const auto reply = contact_.connection->End<messages::Prefetch>(*call_, deadline);
  if (!reply && reply.status().code() == Code::kDeadlineExceeded &&
      contact_.connection->broken().ok()) {
    return reply.status();
  }
  call_.reset();
  outcome_ = reply.status();
  if (!reply) return outcome_;
  if (reply->codes.size() != count_) {
    outcome_ = {Code::kDataLoss, "the daemon answered for another number of pages"};
    return outcome_;
  }
  codes_.reserve(count_);
  for (const uint32_t code : reply->codes)
    codes_.push_back(messages::PageCodeOf(code));
  worth_ = reply->worth;
  return outcome_;
}

Result<size_t> Fetch::WaitAny(std::span<Fetch* const> fetches, Deadline deadline) {
  std::vector<Connection::Slot*> calls;
  for (size_t i = 0; i < fetches.size(); ++i) {
    const Fetch& fetch = *fetches[i];
    // Whatever is of an earlier connection has its answer: that none comes.
    if (fetch.call_ == nullptr || !fetch.contact_.connection->broken().ok()) return i;
    calls.push_back(fetch.call_.get());
  }
  const std::optional<size_t> ended =
      fetches.front()->contact_.connection->WaitAny(calls, deadline);
  if (!ended) return Status(Code::kDeadlineExceeded, "none of the fetches is answered");
  return *ended;
}

}  // namespace terrace::client
