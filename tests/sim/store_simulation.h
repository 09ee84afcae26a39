// StoreSimulation: the engine with a store below it under one seed: clients, faults, crashes and
// restarts.
//
// The engine is the daemon's own, over simulated tiers and a manual clock. One step is one verb of
// a client, one completion of a tier, in any order, or something that befalls the world. Unlike
// EngineSimulation it has no fibers: what readers and evictor do to each other at each access of
// shared memory is that one's matter; here it is what the tiers do to each other over many verbs.
//
// Judged: every page that is found in memory has the bytes of its name, and of a writing that may
// still be read; what is held for a client stays; what was acknowledged as durable is found again
// after a crash; bytes used in each tier are the sum over its extents; nothing is left when all is
// over. The bytes of a page follow from its name and how often it was dropped before: a commit of a
// stored page may be answered by the copy that is there.
#pragma once

#include <cstdint>
#include <list>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "base/clock.h"
#include "base/random.h"
#include "daemon/engine/engine.h"
#include "tests/heart/plain_memory.h"
#include "tests/sim/omitting_store.h"
#include "tiers/sim/sim_host_tier.h"
#include "tiers/sim/sim_journal.h"
#include "tiers/sim/sim_page_store.h"
#include "tiers/sim/sim_weight_sources.h"

namespace terrace {

struct StoreSimulationResult {
  std::string wrong;  // Empty: nothing was.
  uint64_t commits = 0;
  uint64_t spilled = 0;
  uint64_t promoted = 0;
  uint64_t prefetched = 0;  // Keys that were asked for.
  uint64_t faults = 0;      // Of reads.
  uint64_t unspilled = 0;
  uint64_t erased = 0;
  uint64_t made_room = 0;  // Of those.
  uint64_t persisted = 0;
  uint64_t demoted = 0;
  uint64_t promoted_by_hand = 0;
  uint64_t checks = 0;
  uint64_t crashes = 0;
  uint64_t found_again = 0;  // Durable pages, after a crash.
  uint64_t held = 0;
};

class StoreSimulation final : public EngineEvents {
 public:
  explicit StoreSimulation(uint64_t seed, StoreOmission omission = StoreOmission::kNothing);
  ~StoreSimulation() override;
  StoreSimulationResult Run();

  // ---- EngineEvents
  void GrantsExpired(ClientId, std::span<const uint64_t>) override {}
  void ArenasGone(TenantId, std::span<const ArenaId>) override {}
  void ClientCut(ClientId, const Status& why) override {
    Fail("a client was cut: " + why.message());
  }
  void UnmapWanted(ClientId, const UnmapRequest&) override {}

 private:
  // A page whatever slot its space has: tenant, space, key.
  using Name = std::tuple<size_t, size_t, uint64_t>;
  // Versions of its bytes that may be read: a drop ends all that were, a crash may bring back what
  // was dropped and not erased yet.
  struct Page {
    uint64_t least = 0;
    uint64_t present = 0;
  };
  struct Client {
    ClientGiven given;
    size_t tenant = 0;
    PlainChannel channel;
    std::map<size_t, SpaceGiven> spaces;
  };
  struct Held {
    ClientId client = 0;
    Name name;
    MonotonicNs until = 0;
  };

  void Start();
  void Crash();
  void Arrive();
  SpaceSpec SpecOf(size_t kind) const;
  void Step();
  void World(uint64_t chance);
  void Care();
  void Put(Client& client, size_t kind, const SpaceGiven& space);
  void Prefetch(Client& client, size_t kind, const SpaceGiven& space);
  void Prefetched(Client* client, size_t kind, const std::vector<uint64_t>& keys,
                  const terrace::Prefetched& answer, MonotonicNs until);
  void Persist(Client& client, size_t kind, const SpaceGiven& space);
  void Drop(Client& client, size_t kind, const SpaceGiven& space);
  void FailSomething();
  void ClearFaults();
  void CheckPages();
  void CheckHeld();
  void CheckBooks();
  void FindDurable();
  void FindAgain(const Name& name);
  void WindUp();
  void AddUp();
  void Settle();

  std::optional<shm::Handle> Find(const Client& client, const SpaceGiven& space, uint64_t key);
  std::span<uint8_t> BytesOf(shm::Handle handle, uint32_t bytes);
  static uint64_t WordOf(const Name& name, uint64_t version, uint64_t offset);
  void Check(const Name& name, shm::Handle handle, uint32_t bytes);
  Client* FindClient(ClientId id);
  void Fail(const std::string& what);
  uint64_t Below(uint64_t bound) { return random_.Below(bound); }
  uint64_t SomeKey() { return Below(keys_); }

  Random random_;
  const StoreOmission omission_;
  uint64_t keys_ = 24;
  uint32_t page_bytes_[2] = {4096, 8192};
  EngineOptions options_;
  bool roomy_ = false;  // No page ever leaves the store to make room.
  ManualClock clock_;
  SimJournal journal_;
  SimPageStore store_;
  OmittingStore shown_store_;
  OmittingJournal shown_journal_;
  SimWeightSources sources_;
  // Of one life of the daemon.
  std::unique_ptr<SimHostTier> tier_;
  std::unique_ptr<PlainDirectory> directories_;
  std::unique_ptr<Engine> engine_;
  std::list<Client> clients_;
  std::vector<Held> held_;

  std::map<Name, Page> pages_;
  std::map<Name, uint64_t> durable_;  // Acknowledged, and the version.
  uint64_t life_ = 0;
  uint64_t steps_ = 0;
  StoreSimulationResult result_;
};

}  // namespace terrace
