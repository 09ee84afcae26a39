// Space: an open space as this client knows it, over daemon lives.
//
// What names it for good is constant. Where it is in the present daemon life (its binding) is
// replaced after a reconnect, while readers read it: any thread, without a lock.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>

#include "base/digest.h"
#include "base/status.h"
#include "libclient/directory_view.h"
#include "libclient/messages.h"
#include "libclient/page_keys.h"
#include "libclient/page_range.h"

namespace terrace::client {

// The space in one daemon life; life_epoch 0: in none.
struct Binding {
  uint64_t life_epoch = 0;
  SpaceRef ref;
};

// kDataLoss unless the daemon's numbers can be looked up with.
Result<Binding> BindingOf(const messages::OpenSpaceReply& reply, uint64_t life_epoch);
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

  Binding binding() const {
    constexpr auto kAcquire = std::memory_order_acquire;
    for (;;) {
      const uint64_t before = changes_.load(kAcquire);
      Binding binding;
      binding.life_epoch = life_epoch_.load(kAcquire);
      const uint64_t slot_epoch = slot_epoch_.load(kAcquire);
      binding.ref.slot = shm::LowOf(slot_epoch);
      binding.ref.epoch = shm::HighOf(slot_epoch);
      binding.ref.generation_index = generation_index_.load(kAcquire);
      binding.ref.generation = generation_.load(kAcquire);
      // Whoever read one new word with acquire also sees the odd count that was stored before it.
      if (changes_.load(std::memory_order_relaxed) == before && before % 2 == 0) return binding;
    }
  }

  // One thread at a time: the client's, or the one that opens the space.
  void Bind(const Binding& binding) {
    constexpr auto kRelease = std::memory_order_release;
    const uint64_t changes = changes_.load(std::memory_order_relaxed);
    changes_.store(changes + 1, std::memory_order_relaxed);
    life_epoch_.store(binding.life_epoch, kRelease);
    slot_epoch_.store(shm::PackPair(binding.ref.slot, binding.ref.epoch), kRelease);
    generation_index_.store(binding.ref.generation_index, kRelease);
    generation_.store(binding.ref.generation, kRelease);
    changes_.store(changes + 2, kRelease);
  }

 private:
  const SpaceFacts facts_;
  const messages::OpenSpace request_;
  const KeyHasher hasher_;

  std::atomic<uint64_t> changes_ = 0;  // Odd while the binding is being replaced.
  std::atomic<uint64_t> life_epoch_ = 0;
  std::atomic<uint64_t> slot_epoch_ = 0;
  std::atomic<uint32_t> generation_index_ = 0;
  std::atomic<uint64_t> generation_ = 0;
};

}  // namespace terrace::client
