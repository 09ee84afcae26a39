// EngineSimulation: the whole engine under one seed.
//
// The engine is the daemon's own, over simulated tiers and a manual clock. Client processes are
// fibers that use its verbs and look pages up with libclient's own code; another fiber is the rest
// of the world: time, turns, failures of tiers, changes of the capacity, kills. Verbs exclude each
// other as on the owner thread, but at every access of shared memory, by the engine or by a reader,
// the seed may let any other fiber go on. A process can be killed at each such access.
//
// With an Omission the engine is still the daemon's own, but works on indexes that leave one step
// of the protocol out (OmittingIndex): for tests that show what each step is good for.
//
// Judged all the time: every byte that is read (promise 1, Oracle), allocations that fail (promise
// 4), counters against extents and against the tier (promise 6), pinned pages and attached weights,
// which must not change.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "base/random.h"
#include "daemon/engine/engine.h"
#include "tests/heart/plain_memory.h"
#include "tests/sim/omitting_index.h"
#include "tests/sim/oracle.h"
#include "tests/sim/steps/fibers.h"
#include "tests/sim/steps/sim_atomics.h"
#include "tiers/sim/sim_host_tier.h"
#include "tiers/sim/sim_journal.h"
#include "tiers/sim/sim_weight_sources.h"

namespace terrace {

class SimProcess;

struct SimulationResult {
  std::string wrong;  // Empty: nothing was.
  uint64_t hits = 0;
  uint64_t commits = 0;
  uint64_t evicted_pages = 0;
  uint64_t evicted_blocks = 0;
  uint64_t linked_again = 0;
  uint64_t refused = 0;  // Allocations, all of them justified.
  uint64_t judged_refusals = 0;
  uint64_t kills = 0;
  uint64_t cuts = 0;  // Of the hostile.
  uint64_t growths = 0;
  uint64_t released_arenas = 0;
  uint64_t attached = 0;
};

class EngineSimulation final : public SharedAccess, public EngineEvents {
 public:
  explicit EngineSimulation(uint64_t seed, std::optional<Omission> omission = {});
  ~EngineSimulation() override;
  SimulationResult Run();

  // ---- For processes
  Random& random() { return random_; }
  uint64_t now() const { return accesses_; }
  Engine& engine() { return *engine_; }
  SimHostTier& tier() { return tier_; }
  Oracle& oracle() { return oracle_; }
  SimulationResult& result() { return result_; }
  // The first thing that went wrong stops the run.
  void Fail(const std::string& what);
  bool over() const { return !result_.wrong.empty() || steps_ == 0; }
  bool UseStep() { return !over() && steps_-- > 0; }
  // Lets others go on, perhaps.
  void Pause();
  // Runs `verb` on the owner thread: no other verb meanwhile.
  void OnOwner(const std::function<void()>& verb);
  // Runs `verb` on the owner thread at one stroke: nobody else acts meanwhile.
  void AtOneStroke(const std::function<void()>& verb);
  std::span<const uint8_t> PresentDirectory(TenantId tenant);
  // Answers that an allocation of pages of that size may be refused now.
  void JudgeRefusal(TenantId tenant, uint32_t page_bytes);
  bool tiers_fail() const { return tiers_fail_; }
  uint32_t page_bytes(size_t kind) const { return page_bytes_[kind % page_bytes_.size()]; }
  size_t tenants() const { return tenants_; }
  // Many small pages, so that directories grow.
  bool bulk() const { return page_bytes_[0] == 512; }
  // Many keys have the same home line, so that pages meet in the same entries.
  bool crowded() const { return crowded_; }
  static constexpr int kModels = 2;
  const std::vector<uint8_t>& model_bytes(int model) const { return models_[model]; }
  static std::string ModelName(int model) { return "model" + std::to_string(model); }

  // ---- SharedAccess
  uint64_t Load(const shm::Word& word, std::memory_order order) override;
  void Store(shm::Word& word, uint64_t value, std::memory_order order) override;
  uint64_t FetchOr(shm::Word& word, uint64_t bits) override;
  uint64_t FetchAnd(shm::Word& word, uint64_t bits) override;
  bool CompareExchange(shm::Word& word, uint64_t expected, uint64_t wanted) override;
  void GiveWay() override;

  // ---- EngineEvents
  void GrantsExpired(ClientId client, std::span<const uint64_t> grants) override;
  void ArenasGone(TenantId tenant, std::span<const ArenaId> arenas) override;
  void ClientCut(ClientId client, const Status& why) override;
  void UnmapWanted(ClientId, const UnmapRequest&) override {}

 private:
  EngineOptions ChooseOptions();
  Result<std::unique_ptr<TenantIndex>> MakeIndex(std::optional<Omission> omission);
  void AddModels();
  void World();
  void WorldStep();
  void FailSomeTier();
  void ClearFaults();
  void Kill();
  void CheckBooks();
  void WindUp();
  void Step();
  SimProcess* Running() const;
  bool ByDaemon() const;
  SimProcess* FindProcess(ClientId client) const;
  std::set<uint64_t> PinnedExtents();
  uint64_t HeldBlockBytes() const;

  Random random_;
  Fibers fibers_;
  uint64_t accesses_ = 0;
  uint64_t steps_ = 0;
  bool at_one_stroke_ = false;
  bool tiers_fail_ = false;
  std::set<FaultPlan*> faulty_;
  bool memory_may_be_lost_ = false;
  SimAtomics::Mutex owner_;

  size_t tenants_ = 1;
  std::vector<uint32_t> page_bytes_;
  bool crowded_ = false;
  bool halting_ = false;  // Readers are halted for a while where they pin.
  uint64_t capacity_ = 0;
  uint64_t slab_bytes_ = 0;
  uint64_t huge_page_bytes_ = 0;

  ManualClock clock_;
  SimHostTier tier_;
  SimWeightSources sources_;
  SimJournal journal_;
  // One a tenant. What the engine works on is the omitting one, if there is any.
  std::deque<PlainDirectory> directories_;
  std::vector<TenantIndex*> indexes_;
  std::vector<OmittingIndex*> omitting_;
  std::vector<std::vector<uint8_t>> models_;
  Oracle oracle_;
  SimulationResult result_;
  std::unique_ptr<Engine> engine_;
  std::vector<std::unique_ptr<SimProcess>> processes_;
};

}  // namespace terrace
