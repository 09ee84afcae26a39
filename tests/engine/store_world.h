// StoreWorld: an EngineWorld with a simulated store, for the tests of what goes there and back.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "tests/engine/engine_world.h"

namespace terrace {

struct StoreWorld {
  static constexpr uint32_t kPage = EngineWorld::kPage;

  explicit StoreWorld(EngineOptions options = Options(), SimPageStoreOptions of_store = {})
      : store(of_store), world(options, &store) {}

  static EngineOptions Options() {
    EngineOptions options = EngineWorld::SmallOptions();
    options.store.sketch_counters = 4096;
    return options;
  }

  StoreFigures Figures() const { return world.engine->Summary().store; }
  uint64_t Unspilled(Unspilled why) const { return Figures().unspilled[static_cast<int>(why)]; }
  uint64_t Erased(StoredErasure why) const {
    return Figures().erased[static_cast<int>(why)].extents;
  }
  uint64_t Faults(ReadFault why) const { return Figures().faults[static_cast<int>(why)]; }
  // All that nobody holds leaves memory.
  void EvictAll() { (void)world.engine->Evict(0, UINT64_MAX); }

  SimPageStore store;
  EngineWorld world;
};

// A client whose pages have bytes of their own, with the verbs on stored pages.
class StoringClient : public ClientOfTest {
 public:
  explicit StoringClient(StoreWorld& of, const std::string& tenant = "t", bool writer = true)
      : ClientOfTest(of.world, tenant, writer), of_(of) {}

  StoredName NameOf(const SpaceGiven& space, uint64_t key) const {
    return {.space = space.id, .key = KeyOf(key), .part = 0};
  }
  static uint64_t WordOf(uint64_t key) { return key * 0x9e3779b97f4a7c15 + 1; }
  std::span<uint8_t> BytesOf(shm::Handle handle, uint32_t bytes) {
    return of_.world.tier.Bytes(shm::ArenaOf(handle))
        .subspan(uint64_t{shm::SlotOf(handle)} * bytes, bytes);
  }
  // Commits keys first to first + count - 1 in one batch, as a chain.
  void PutChain(const SpaceGiven& space, uint64_t first, uint64_t count) {
    std::vector<Digest> keys;
    for (uint64_t key = first; key < first + count; ++key)
      keys.push_back(KeyOf(key));
    std::vector<GrantGiven> granted;
    GrantSpec spec{.slot = space.slot, .epoch = space.epoch, .keys = keys};
    spec.chain = true;
    if (first > 0) spec.parent = KeyOf(first - 1);
    spec.position = static_cast<uint32_t>(first);
    TERRACE_CHECK(of_.world.engine->Grant(given.id, spec, &granted).ok());
    std::vector<uint64_t> grants;
    for (uint64_t i = 0; i < count; ++i) {
      if (granted[i].code != Code::kOk) continue;
      const std::span<uint8_t> bytes = BytesOf(granted[i].handle, space.page_bytes);
      const uint64_t word = WordOf(first + i);
      for (size_t at = 0; at < bytes.size(); at += sizeof word)
        std::memcpy(bytes.data() + at, &word, sizeof word);
      grants.push_back(granted[i].grant);
    }
    std::vector<Code> codes;
    TERRACE_CHECK(of_.world.engine->Commit(given.id, grants, {}, &codes).ok());
    for (const Code code : codes)
      TERRACE_CHECK(code == Code::kOk);
  }
  // Whether the page is in memory with its own bytes; aborts where it has others.
  bool Reads(const SpaceGiven& space, uint64_t key) {
    const std::optional<shm::Handle> handle = Find(space, key);
    if (!handle) return false;
    const std::span<uint8_t> bytes = BytesOf(*handle, space.page_bytes);
    const uint64_t word = WordOf(key);
    for (size_t at = 0; at < bytes.size(); at += sizeof word)
      TERRACE_CHECK(std::memcmp(bytes.data() + at, &word, sizeof word) == 0);
    return true;
  }

  struct Fetch {
    std::vector<Digest> keys;
    std::optional<Result<Prefetched>> answer;
    std::vector<Code> codes() const { return (*answer)->codes; }
  };
  // The answer is filled in when it comes.
  std::shared_ptr<Fetch> Prefetch(const SpaceGiven& space, uint64_t first, uint64_t count,
                                  PrefetchSpec spec = {}) {
    auto fetch = std::make_shared<Fetch>();
    for (uint64_t key = first; key < first + count; ++key)
      fetch->keys.push_back(KeyOf(key));
    spec.slot = space.slot;
    spec.epoch = space.epoch;
    spec.keys = fetch->keys;
    of_.world.engine->Prefetch(given.id, spec, [fetch](Result<Prefetched> answer) {
      TERRACE_CHECK(!fetch->answer.has_value());
      fetch->answer = std::move(answer);
    });
    return fetch;
  }
  using Persisted = std::optional<Result<std::vector<Code>>>;
  std::shared_ptr<Persisted> Persist(const SpaceGiven& space, std::vector<uint64_t> numbers) {
    auto persisted = std::make_shared<Persisted>();
    std::vector<Digest> keys;
    for (const uint64_t number : numbers)
      keys.push_back(KeyOf(number));
    of_.world.engine->Persist(given.id, {.slot = space.slot, .epoch = space.epoch, .keys = keys},
                              [persisted](Result<std::vector<Code>> codes) {
                                TERRACE_CHECK(!persisted->has_value());
                                *persisted = std::move(codes);
                              });
    return persisted;
  }
  uint32_t Drop(const SpaceGiven& space, uint64_t key) {
    const std::vector<Digest> keys = {KeyOf(key)};
    return *of_.world.engine->Drop(given.id, space.slot, space.epoch, 0, keys);
  }

 private:
  StoreWorld& of_;
};

}  // namespace terrace
