// GrantSet: space for pages that this process writes, until it is published or given back.
//
// Used by one thread at a time. Its memory stays mapped while the set lives; what was not published
// is given back when it ends.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "base/digest.h"
#include "base/status.h"
#include "libclient/client.h"

namespace terrace::client {

struct GrantOptions {
  uint32_t deadline_ms = 0;        // 0: the daemon's default.
  std::optional<Digest> parent;    // Of the first key, the others following it; zero: it has none.
  uint32_t position = 0;           // Pages before the first key in its chain.
  const Device* device = nullptr;  // Where they are to lie; nullptr: in host memory.
};

class GrantSet {
 public:
  // At most kMaxBatch keys; every page has its own code.
  static Result<std::unique_ptr<GrantSet>> Ask(std::shared_ptr<Client> client, const Space& space,
                                               std::span<const Digest> keys,
                                               const GrantOptions& options, Deadline deadline);
  ~GrantSet();
  GrantSet(const GrantSet&) = delete;
  GrantSet& operator=(const GrantSet&) = delete;

  Client& client() const { return *client_; }
  size_t size() const { return pages_.size(); }
  Code code(size_t index) const { return pages_[index].code; }
  // nullptr: no grant, or published.
  uint8_t* data(size_t index) const { return pages_[index].data; }

  // Publishes all pages; `valid_tokens` is empty (all full) or has one number a page. After a
  // failure it may be repeated; kNotFound then is what became of pages that had been published.
  Status Commit(std::span<const uint32_t> valid_tokens, Deadline deadline);

 private:
  struct Page {
    Code code = Code::kInternal;
    uint64_t grant = 0;  // 0: none, or the daemon no longer knows it.
    shm::Handle handle = 0;
    uint8_t* data = nullptr;
    bool borrowed = false;  // Its arena stays mapped while the set lives.
  };

  GrantSet(std::shared_ptr<Client> client, std::shared_ptr<Life> life)
      : client_(std::move(client)), life_(std::move(life)) {}

  // Takes over what the daemon granted; from here on the destructor gives it back.
  Status Take(const messages::GrantReply& reply, size_t count);
  Status Map(const Answer<messages::GrantReply>& answer, Deadline deadline);
  std::vector<uint64_t> Held() const;

  const std::shared_ptr<Client> client_;
  const std::shared_ptr<Life> life_;
  std::vector<Page> pages_;
};

}  // namespace terrace::client
