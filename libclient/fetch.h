// Fetch: pages on their way from the page store into memory, asked for by one message and waited
// for later.
//
// Used by one thread at a time. The daemon holds the pages for this client until it pins them or
// the fetch's deadline passes, so a fetch that nobody waits for costs no more than that.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "base/digest.h"
#include "base/status.h"
#include "libclient/client.h"

namespace terrace::client {

struct FetchOptions {
  uint32_t deadline_ms = 0;        // 0: the daemon's default.
  uint32_t min_percent = 0;        // As of messages::Prefetch.
  uint32_t recompute_us = 0;       // Likewise.
  const Device* device = nullptr;  // Where to; nullptr: to host memory.
};

class Fetch {
 public:
  // Sends the request and returns. At most kMaxBatch keys.
  static Result<std::unique_ptr<Fetch>> Ask(std::shared_ptr<Client> client, const Space& space,
                                            std::span<const Digest> keys,
                                            const FetchOptions& options, Deadline deadline);

  Client& client() const { return *client_; }
  size_t size() const { return count_; }
  // Ok once it is answered, then and ever after; after `deadline_exceeded` it may be called again.
  Status Wait(Deadline deadline);
  // Until one of them is answered, or never will be: its number. All of one client.
  static constexpr size_t kMostAtOnce = Connection::kMaxPending;
  static Result<size_t> WaitAny(std::span<Fetch* const> fetches, Deadline deadline);
  // After Wait was Ok.
  Code code(size_t index) const { return codes_[index]; }
  size_t worth() const { return worth_; }

 private:
  Fetch(Contact contact, std::shared_ptr<Client> client, Connection::Begun call, size_t count)
      : contact_(std::move(contact)),
        client_(std::move(client)),
        call_(std::move(call)),
        count_(count) {}

  const Contact contact_;  // Outlives the call.
  const std::shared_ptr<Client> client_;
  Connection::Begun call_;  // Null when it has ended.
  const size_t count_;
  Status outcome_;
  std::vector<Code> codes_;
  size_t worth_ = 0;
};

}  // namespace terrace::client
