// Space: an open space as this client knows it, over daemon lives.
//
// What names it for good is constant. Where it is in the present daemon life (its binding) is
// replaced after a reconnect, while readers read it: any thread, without a lock. A binding never
// changes once it is published and stays until the space is gone, so a lookup follows one pointer
// and copies nothing: there is one binding a daemon life, and a copy made from words that were
// stored a moment ago would hold the processor up (no store forwarding) until the lookup before is
// through.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/digest.h"
#include "base/status.h"
#include "libclient/lookup.h"
#include "libclient/messages.h"
#include "libclient/page_keys.h"
#include "libclient/page_range.h"

namespace terrace::client {

// The space in one daemon life; life_epoch 0: in none.
struct Binding {
  uint64_t life_epoch = 0;
  LookupSpec spec;

  const SpaceRef& ref() const { return spec.space; }
};

// kDataLoss unless the daemon's numbers can be looked up with.
Result<Binding> BindingOf(const messages::OpenSpaceReply& reply, uint32_t part,
                          uint64_t life_epoch);
// Of a field of 32 bytes.
Digest DigestOf(const std::string& bytes);

struct SpaceFacts {
  Digest id;
  uint32_t page_tokens = 0;
  uint32_t part = 0;        // As in messages::Grant.
  uint32_t page_bytes = 0;  // Of the part.
  PageRange* range = nullptr;
};

class Space {
 public:
  // `request` opens it again.
  Space(const SpaceFacts& facts, messages::OpenSpace request)
      : facts_(facts), request_(std::move(request)), hasher_(facts.id) {}
  Space(const Space&) = delete;
  Space& operator=(const Space&) = delete;

  const SpaceFacts& facts() const { return facts_; }
  const messages::OpenSpace& request() const { return request_; }
  const KeyHasher& hasher() const { return hasher_; }

  // Valid as long as the space.
  const Binding& binding() const { return *binding_.load(std::memory_order_acquire); }

  // One thread at a time: the client's, or the one that opens the space.
  void Bind(const Binding& binding) {
    bindings_.push_back(std::make_unique<const Binding>(binding));
    binding_.store(bindings_.back().get(), std::memory_order_release);
  }

 private:
  const SpaceFacts facts_;
  const messages::OpenSpace request_;
  const KeyHasher hasher_;

  const Binding unbound_;
  std::atomic<const Binding*> binding_ = &unbound_;
  std::vector<std::unique_ptr<const Binding>> bindings_;  // Of all lives so far.
};

}  // namespace terrace::client
