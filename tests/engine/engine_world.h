// EngineWorld: an engine on simulated tiers and a manual clock, and clients that act by its verbs
// and by the words of their channels, for the tests of the engine.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "base/check.h"
#include "base/clock.h"
#include "base/digest.h"
#include "daemon/engine/engine.h"
#include "proto/shared_memory.h"
#include "tests/heart/plain_memory.h"
#include "tiers/sim/sim_host_tier.h"
#include "tiers/sim/sim_journal.h"
#include "tiers/sim/sim_page_store.h"
#include "tiers/sim/sim_weight_sources.h"

namespace terrace {

class RecordedEvents final : public EngineEvents {
 public:
  void GrantsExpired(ClientId client, std::span<const uint64_t> grants) override {
    expired[client].insert(expired[client].end(), grants.begin(), grants.end());
  }
  void ArenasGone(TenantId tenant, std::span<const ArenaId> arenas) override {
    gone[tenant].insert(gone[tenant].end(), arenas.begin(), arenas.end());
  }
  void ClientCut(ClientId client, const Status& why) override { cut.emplace(client, why); }
  void UnmapWanted(ClientId client, const UnmapRequest& request) override {
    unmap_wanted[client].push_back(request);
  }

  std::map<ClientId, std::vector<uint64_t>> expired;
  std::map<TenantId, std::vector<ArenaId>> gone;
  std::map<ClientId, Status> cut;
  std::map<ClientId, std::vector<UnmapRequest>> unmap_wanted;
};

// A channel and what a well-behaved client does with it, one thread.
class ChannelOfTest {
 public:
  std::span<uint8_t> bytes() { return memory_.span(); }
  shm::Channel& channel() { return memory_.channel(); }

  // Returns the number of the pin word.
  uint32_t Pin(shm::Handle handle) {
    uint32_t word = 0;
    while (At(word).load() != 0)
      ++word;
    const uint32_t line = word / shm::kPinsPerLine;
    channel().summary[line / 64] |= uint64_t{1} << line % 64;
    channel().upper_summary[line / 64 / 64] |= uint64_t{1} << line / 64 % 64;
    At(word) = handle;
    return word;
  }
  void Unpin(uint32_t word) { At(word) = 0; }
  void Touch(shm::Handle handle) {
    channel().lanes |= 1;
    shm::Ring& ring = channel().rings[0];
    shm::RingRecord& record = ring.records[ring.head % shm::kRingRecords];
    record.tag = shm::PackTag(shm::RingKind::kTouch, 0, 0);
    record.handle = handle;
    ++ring.head;
  }

 private:
  shm::Word& At(uint32_t word) {
    return channel().lines[word / shm::kPinsPerLine].pins[word % shm::kPinsPerLine];
  }
  PlainChannel memory_;
};

// A layout whose pages have `bytes`, a multiple of 64.
inline KvLayout LayoutOf(uint32_t bytes, uint32_t page_tokens = 16) {
  return {.dtype = "i8",
          .layers = 1,
          .kv_heads = 1,
          .head_size = bytes / page_tokens,
          .page_tokens = page_tokens,
          .planes = 1,
          .order = "layer,plane,token,head,dim"};
}

// The daemon's policy, and how often it was asked for victims: each time is a pass of eviction.
class CountingPolicy final : public Policy {
 public:
  explicit CountingPolicy(uint64_t* walks) : walks_(walks) {}
  const char* name() const override { return of_->name(); }
  void Insert(ItemId item, const ItemTraits& traits, MonotonicNs now) override {
    of_->Insert(item, traits, now);
  }
  void Touch(ItemId item, MonotonicNs now) override { of_->Touch(item, now); }
  void Erase(ItemId item) override { of_->Erase(item); }
  void Victims(uint64_t limit, MonotonicNs now,
               const std::function<Verdict(ItemId)>& offer) override {
    ++*walks_;
    of_->Victims(limit, now, offer);
  }
  ItemId Best(ItemId after, uint64_t limit,
              const std::function<bool(ItemId)>& offer) const override {
    return of_->Best(after, limit, offer);
  }

 private:
  const std::unique_ptr<Policy> of_ = MakeLru();
  uint64_t* const walks_;
};

struct EngineWorld {
  static constexpr uint32_t kPage = 16384;

  // `given_store` outlives the world.
  // `add_parts` is asked at each start for what else there is.
  using AddParts = std::function<void(EngineParts&)>;
  explicit EngineWorld(EngineOptions given = SmallOptions(), SimPageStore* given_store = nullptr,
                       AddParts more = {})
      : options(given),
        tier({.blank_bytes = 1u << 20, .blanks_per_step = 1, .descriptors = more != nullptr}),
        page_store(given_store),
        add_parts(std::move(more)) {
    Start();
  }

  // The daemon dies and is started again: of the store's and the journal's pending writes the
  // oldest so many reached the disk. Clients are to be made anew.
  void Restart(size_t stored = 0, size_t journalled = 0) {
    engine.reset();
    sources.DropPending();
    journal.Crash(journalled);
    if (page_store != nullptr) page_store->Crash(stored);
    Start();
  }
  // Turns, and completes what they asked for, until nothing more comes of it.
  void Settle() {
    for (int turn = 0; turn < 50; ++turn) {
      clock.Advance(10 * kNsPerMs);
      (void)engine->Turn();
      const size_t ran = journal.RunPending() + (page_store ? page_store->RunPending() : 0);
      if (ran == 0 && turn > 2) return;
    }
  }

 private:
  void Start() {
    EngineParts parts;
    parts.page_store = page_store;
    parts.clock = &clock;
    parts.host = &tier;
    parts.sources = &sources;
    parts.journal = &journal;
    parts.directory_memory = &directories;
    parts.host_policy = std::make_unique<CountingPolicy>(&walks);
    if (add_parts) add_parts(parts);
    Result<std::unique_ptr<Engine>> made = MakeEngine(options, std::move(parts), events);
    TERRACE_CHECK(made.has_value());
    engine = *std::move(made);
  }

 public:
  // 16 pages of kPage, slabs of 4 of them, "huge pages" of 2.
  static EngineOptions SmallOptions() {
    EngineOptions options;
    options.host_capacity_bytes = 16 * kPage;
    options.slab_bytes = 4 * kPage;
    options.block_bytes = 4 * kPage;
    options.huge_page_bytes = 2 * kPage;
    options.max_pinned_bytes = 16 * kPage;
    return options;
  }

  EngineOptions options;
  ManualClock clock;
  SimHostTier tier;
  SimPageStore* const page_store;
  const AddParts add_parts;
  SimWeightSources sources;
  SimJournal journal;
  PlainDirectory directories;
  RecordedEvents events;
  uint64_t walks = 0;                  // Of the policy of memory.
  std::deque<ChannelOfTest> channels;  // Mapped as long as the engine may look at them.
  std::unique_ptr<Engine> engine;
};

// One client of a world: short forms of the verbs.
class ClientOfTest {
 public:
  ClientOfTest(EngineWorld& world, const std::string& tenant = "t", bool writer = true)
      : channel(world.channels.emplace_back()), world_(world) {
    tenant_ = *world.engine->AddTenant(tenant);
    const Result<ClientGiven> arrived = world.engine->ClientArrived(
        {.tenant = tenant_, .name = "test", .writer = writer}, channel.bytes());
    TERRACE_CHECK(arrived.has_value());
    given = *arrived;
  }

  SpaceGiven Open(uint32_t page_bytes = EngineWorld::kPage, uint8_t salt = 0) {
    SpaceSpec spec;
    spec.layout = LayoutOf(page_bytes);
    spec.salt = {salt};
    const Result<SpaceGiven> space = world_.engine->OpenSpace(given.id, spec);
    TERRACE_CHECK(space.has_value());
    return *space;
  }
  std::vector<GrantGiven> Grant(const SpaceGiven& space, const std::vector<Digest>& keys,
                                uint32_t deadline_ms = 0) {
    std::vector<GrantGiven> answer;
    const Status status = world_.engine->Grant(
        given.id,
        {.slot = space.slot, .epoch = space.epoch, .deadline_ms = deadline_ms, .keys = keys},
        &answer);
    TERRACE_CHECK(status.ok());
    return answer;
  }
  GrantGiven Grant(const SpaceGiven& space, uint64_t key, uint32_t deadline_ms = 0) {
    return Grant(space, std::vector<Digest>{KeyOf(key)}, deadline_ms).front();
  }
  Code Commit(uint64_t grant, uint32_t valid_tokens = 0) {
    std::vector<Code> codes;
    const std::vector<uint32_t> tokens = {valid_tokens};
    const std::vector<uint64_t> grants = {grant};
    const Status status = world_.engine->Commit(given.id, grants, tokens, &codes);
    TERRACE_CHECK(status.ok() && codes.size() == 1);
    return codes.front();
  }
  void Abort(uint64_t grant) {
    const std::vector<uint64_t> grants = {grant};
    TERRACE_CHECK(world_.engine->Abort(given.id, grants).ok());
  }
  // Grants and commits; the handle it can be found by, or none.
  std::optional<shm::Handle> Put(const SpaceGiven& space, uint64_t key) {
    const GrantGiven grant = Grant(space, key);
    if (grant.code != Code::kOk || Commit(grant.grant) != Code::kOk) return std::nullopt;
    return Find(space, key);
  }
  std::optional<shm::Handle> Find(const SpaceGiven& space, uint64_t key, uint32_t part = 0) {
    const std::optional<LinkedPage> page =
        world_.engine->index(tenant_).Find({space.slot, space.epoch, part, KeyOf(key)});
    if (!page) return std::nullopt;
    return page->handle;
  }

  ChannelOfTest& channel;
  ClientGiven given;
  TenantId tenant() const { return tenant_; }

 private:
  EngineWorld& world_;
  TenantId tenant_ = 0;
};

}  // namespace terrace
