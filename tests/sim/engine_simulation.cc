#include "tests/sim/engine_simulation.h"

#include <algorithm>

#include "daemon/engine/index/index_on.h"
#include "daemon/engine/placement/slab.h"
#include "tests/sim/sim_process.h"

namespace terrace {
namespace {

constexpr uint64_t kSteps = 2000;
constexpr uint64_t kStride = 16;      // Accesses between two switches, on average.
constexpr uint64_t kPinsToHalt = 4;   // Between two halts of a reader, on average, and how many
constexpr uint64_t kHaltTurns = 256;  // turns of others one lasts at most.
constexpr uint64_t kBlockBytes = 16384;

}  // namespace

EngineSimulation::EngineSimulation(uint64_t seed, std::optional<Omission> omission)
    : random_(seed),
      fibers_(seed + 1, kStride),
      steps_(kSteps),
      tier_({.blank_bytes = 32768, .blanks_per_step = 1}) {
  SimAtomics::access = this;
  const EngineOptions options = ChooseOptions();
  EngineParts parts;
  parts.clock = &clock_;
  parts.host = &tier_;
  parts.sources = &sources_;
  parts.journal = &journal_;
  parts.host_policy = MakeLru();
  parts.make_index = [this, omission] { return MakeIndex(omission); };
  Result<std::unique_ptr<Engine>> engine = MakeEngine(options, std::move(parts), *this);
  TERRACE_CHECK(engine.has_value());
  engine_ = *std::move(engine);
  AddModels();
  const size_t processes = 2 + random_.Below(4);
  for (size_t i = 0; i < processes; ++i) {
    // At most one hostile one: others must be able to get something done.
    const bool hostile = i == 0 && random_.Chance(1, 3);
    processes_.push_back(std::make_unique<SimProcess>(*this, hostile));
  }
}

EngineSimulation::~EngineSimulation() {
  processes_.clear();
  engine_.reset();
  SimAtomics::access = nullptr;
}

EngineOptions EngineSimulation::ChooseOptions() {
  tenants_ = 1 + random_.Below(2);
  // 1536: eight fill three pages of memory. 512: many pages, so that directories grow.
  const std::vector<std::vector<uint32_t>> sizes = {{4096, 4096, 4096},
                                                    {4096, 16384, 8192},
                                                    {1536, 4096, 12288},
                                                    {512, 512, 512},
                                                    {8192, 512, 20480}};
  page_bytes_ = sizes[random_.Below(sizes.size())];
  crowded_ = !bulk() && random_.Chance(1, 2);
  halting_ = crowded_ && random_.Chance(1, 2);
  capacity_ = 4096 * (24 + random_.Below(100));
  if (crowded_) capacity_ = 4096 * (8 + random_.Below(24));
  if (bulk()) {
    steps_ = 2 * kSteps;
    tenants_ = 1;
    capacity_ = 4096 * (100 + random_.Below(80));
  }
  slab_bytes_ = 8192 << random_.Below(4);
  huge_page_bytes_ = 4096 << random_.Below(3);
  EngineOptions options;
  options.host_capacity_bytes = capacity_;
  options.slab_bytes = slab_bytes_;
  options.huge_page_bytes = huge_page_bytes_;
  options.block_bytes = kBlockBytes;
  options.pretouch_bytes = random_.Chance(1, 2) ? UINT64_MAX : 0;
  options.max_pinned_bytes = std::max<uint64_t>(capacity_ / 3, 32768);
  options.grant_deadline_ms = 500;
  return options;
}

Result<std::unique_ptr<TenantIndex>> EngineSimulation::MakeIndex(std::optional<Omission> omission) {
  PlainDirectory& memory = directories_.emplace_back();
  ASSIGN_OR_RETURN(std::unique_ptr<TenantIndex> index, IndexOn<SimAtomics>::Make(memory));
  indexes_.push_back(index.get());
  if (!omission) return index;
  auto omitting =
      std::make_unique<OmittingIndex>(*omission, std::move(index), memory, [this] { Pause(); });
  omitting_.push_back(omitting.get());
  return std::unique_ptr<TenantIndex>(std::move(omitting));
}

void EngineSimulation::AddModels() {
  for (int model = 0; model < kModels; ++model) {
    std::vector<uint8_t> bytes(kBlockBytes * (1 + model));
    for (uint8_t& byte : bytes)
      byte = static_cast<uint8_t>(random_());
    models_.push_back(bytes);
    const std::string path = "/" + ModelName(model);
    sources_.AddFile(path, {{.name = "w", .dtype = "U8", .shape = {bytes.size()}, .bytes = bytes}});
    ModelSpec spec;
    spec.name = ModelName(model);
    spec.version = "1";
    spec.tenant = *engine_->AddTenant("tenant0");
    spec.source.paths = {path};
    engine_->AddModel(std::move(spec), [this](const Result<ModelAdded>& added) {
      if (!added) Fail("add: " + added.error().ToString());
    });
  }
  while (sources_.RunPending() + journal_.RunPending() > 0) {
  }
  for (uint64_t tenant = 1; tenant < tenants_; ++tenant) {
    const std::string name = "tenant" + std::to_string(tenant);
    static_cast<void>(*engine_->AddTenant(name));
    for (int model = 0; model < kModels; ++model) {
      engine_->SetModelAccess(ModelName(model), name, true, [this](const Status& granted) {
        if (!granted.ok()) Fail("grant: " + granted.ToString());
      });
    }
  }
  journal_.RunPending();
}

SimulationResult EngineSimulation::Run() {
  fibers_.Add([this] { World(); });
  for (const auto& process : processes_)
    fibers_.Add([&process = *process] { process.Body(); });
  fibers_.Run();
  if (result_.wrong.empty()) WindUp();
  const StatusReport summary = engine_->Summary();
  result_.evicted_pages = summary.evicted_pages;
  result_.evicted_blocks = summary.evicted_blocks;
  result_.linked_again = summary.evictions_pinned;
  result_.growths = summary.directory_growths;
  return result_;
}

void EngineSimulation::Fail(const std::string& what) {
  if (result_.wrong.empty()) {
    result_.wrong = what + " (after " + std::to_string(accesses_) + " accesses)";
  }
}

// ---- Who acts

SimProcess* EngineSimulation::Running() const {
  const int fiber = fibers_.current();
  return fiber > 0 ? processes_[static_cast<size_t>(fiber - 1)].get() : nullptr;
}

// The owner thread, for which a process's fiber carries its own verbs out.
bool EngineSimulation::ByDaemon() const {
  const SimProcess* process = Running();
  return process == nullptr || process->in_verb();
}

void EngineSimulation::Step() {
  ++accesses_;
  for (OmittingIndex* index : omitting_)
    index->Accessed();
  if (at_one_stroke_) return;
  fibers_.Yield();
  if (const SimProcess* process = Running(); process != nullptr && process->killed()) {
    throw Killed();
  }
}

void EngineSimulation::Pause() {
  Step();
}

void EngineSimulation::GiveWay() {
  fibers_.GiveWay();
  if (const SimProcess* process = Running(); process != nullptr && process->killed()) {
    throw Killed();
  }
}

uint64_t EngineSimulation::Load(const shm::Word& word, std::memory_order order) {
  Step();
  uint64_t value = word.load(order);
  if (omitting_.empty() || !ByDaemon()) return value;
  for (const OmittingIndex* index : omitting_)
    value = index->Loaded(word, value);
  return value;
}
void EngineSimulation::Store(shm::Word& word, uint64_t value, std::memory_order order) {
  Step();
  if (!omitting_.empty() && ByDaemon()) {
    for (OmittingIndex* index : omitting_) {
      if (index->LeavesOut(word, value)) return;
    }
  }
  word.store(value, order);
}
uint64_t EngineSimulation::FetchOr(shm::Word& word, uint64_t bits) {
  Step();
  return word.fetch_or(bits);
}
uint64_t EngineSimulation::FetchAnd(shm::Word& word, uint64_t bits) {
  Step();
  return word.fetch_and(bits);
}
bool EngineSimulation::CompareExchange(shm::Word& word, uint64_t expected, uint64_t wanted) {
  Step();
  // A pin, between a page that was found and its confirmation: as if the thread got no core.
  if (halting_ && random_.Chance(1, kPinsToHalt)) {
    for (uint64_t turns = random_.Below(kHaltTurns); turns > 0; --turns)
      GiveWay();
  }
  return word.compare_exchange_strong(expected, wanted);
}

void EngineSimulation::OnOwner(const std::function<void()>& verb) {
  SimAtomics::MutexLock lock(owner_);
  SimProcess* process = Running();
  // Nobody is killed in the middle of a verb: it is the daemon that carries it out.
  if (process != nullptr) process->SetInVerb(true);
  verb();
  for (OmittingIndex* index : omitting_)
    index->VerbEnded();
  if (process != nullptr) process->SetInVerb(false);
}

void EngineSimulation::AtOneStroke(const std::function<void()>& verb) {
  OnOwner([&] {
    at_one_stroke_ = true;
    verb();
    at_one_stroke_ = false;
  });
}

std::span<const uint8_t> EngineSimulation::PresentDirectory(TenantId tenant) {
  const PlainDirectory& memory = directories_[tenant - 1];
  const uint64_t id = engine_->index(tenant).directory_id();
  for (size_t region = memory.regions(); region > 0; --region) {
    const std::span<uint8_t> bytes = memory.region(region - 1);
    const auto* header = reinterpret_cast<const shm::DirectoryHeader*>(bytes.data());
    if (header->directory_id.load() == id) return bytes;
  }
  return {};
}

// ---- The rest of the world

void EngineSimulation::World() {
  while (!over()) {
    if (processes_.empty()) return;
    OnOwner([this] { WorldStep(); });
    for (uint64_t pause = random_.Below(64); pause > 0; --pause)
      Pause();
    fibers_.GiveWay();
  }
}

void EngineSimulation::WorldStep() {
  const uint64_t chance = random_.Below(64);
  if (chance < 1) return Kill();
  if (chance < 2) return FailSomeTier();
  if (chance < 6) return ClearFaults();
  if (chance < 7) {
    return clock_.Advance(static_cast<MonotonicNs>(random_.Below(60)) * kNsPerSecond);
  }
  // Where directories shall grow, memory is not taken away all the time.
  if (bulk() && (chance == 7 || (chance >= 11 && chance < 16)) && random_.Chance(31, 32)) return;
  if (chance < 8) return engine_->SetHostCapacity(capacity_ / 4 + random_.Below(capacity_));
  if (chance < 11) return engine_->SetHostCapacity(capacity_);
  if (chance < 16) {
    const uint64_t bytes = 1 + random_.Below(capacity_ / (bulk() ? 64 : 4));
    (void)engine_->Evict(bytes, random_.Chance(1, 2) ? UINT64_MAX : 1 + random_.Below(8));
    return;
  }
  if (chance < 22) return CheckBooks();
  if (chance < 23) {
    (void)engine_->Unload(ModelName(static_cast<int>(random_.Below(kModels))), "");
    return;
  }
  if (chance < 30) {
    sources_.RunPending(1 + random_.Below(4));
    journal_.RunPending();
    return;
  }
  if (chance < 34) {
    tier_.MakeBlanks();
    return;
  }
  clock_.Advance(static_cast<MonotonicNs>(random_.Below(20)) * kNsPerMs);
  engine_->Turn();
}

void EngineSimulation::FailSomeTier() {
  tiers_fail_ = true;
  FaultPlan* const plans[] = {&tier_.create_faults, &tier_.populate_faults, &tier_.punch_faults,
                              &tier_.seal_faults, &sources_.read_faults};
  FaultPlan* const plan = plans[random_.Below(5)];
  plan->FailAfter(random_.Below(3), Status(Code::kUnavailable, "told to fail"));
  faulty_.insert(plan);
  memory_may_be_lost_ |=
      faulty_.contains(&tier_.populate_faults) && faulty_.contains(&tier_.punch_faults);
  if (!directories_.empty()) directories_.back().refuse = random_.Chance(1, 4);
}

void EngineSimulation::ClearFaults() {
  tier_.create_faults.Clear();
  tier_.populate_faults.Clear();
  tier_.punch_faults.Clear();
  tier_.seal_faults.Clear();
  sources_.read_faults.Clear();
  faulty_.clear();
  for (PlainDirectory& directory : directories_)
    directory.refuse = false;
  tiers_fail_ = false;
}

void EngineSimulation::Kill() {
  SimProcess& process = *processes_[random_.Below(processes_.size())];
  if (!process.killable()) return;
  ++result_.kills;
  process.Kill();
  engine_->ClientGone(process.client());
}

SimProcess* EngineSimulation::FindProcess(ClientId client) const {
  for (const auto& process : processes_) {
    if (process->alive() && !process->killed() && process->client() == client) {
      return process.get();
    }
  }
  return nullptr;
}

void EngineSimulation::GrantsExpired(ClientId client, std::span<const uint64_t> grants) {
  if (SimProcess* process = FindProcess(client)) process->GrantsExpired(grants);
}

void EngineSimulation::ArenasGone(TenantId tenant, std::span<const ArenaId> arenas) {
  result_.released_arenas += arenas.size();
  for (const auto& process : processes_) {
    if (process->alive() && !process->killed() && process->tenant() == tenant) {
      process->ArenasGone(arenas);
    }
  }
}

void EngineSimulation::ClientCut(ClientId client, const Status&) {
  ++result_.cuts;
  if (SimProcess* process = FindProcess(client)) process->Cut();
}

// ---- Judging

void EngineSimulation::CheckBooks() {
  at_one_stroke_ = true;
  if (const Status status = engine_->CheckInvariants(); !status.ok()) Fail(status.ToString());
  const StatusReport summary = engine_->Summary();
  const HostReport host = tier_.Report();
  const uint64_t resident = host.small_page_bytes - host.blank_bytes;
  // Blocks are charged whole before they are populated; so is memory that could neither be
  // populated nor be punched.
  const bool less = resident + summary.block_bytes < summary.used_bytes && !memory_may_be_lost_;
  if (resident > summary.used_bytes || less) {
    Fail("the tier has " + std::to_string(resident) + " bytes resident, the books say " +
         std::to_string(summary.used_bytes));
  }
  if (summary.used_bytes <= summary.host_capacity_bytes &&
      summary.used_bytes + host.blank_target_bytes > summary.host_capacity_bytes) {
    Fail("blanks and used memory are over the capacity");
  }
  at_one_stroke_ = false;
}

std::set<uint64_t> EngineSimulation::PinnedExtents() {
  std::set<uint64_t> pinned;
  for (TenantIndex* index : indexes_) {
    index->ScanPins([&](ClientId, std::span<const uint64_t> extents) {
      pinned.insert(extents.begin(), extents.end());
    });
  }
  return pinned;
}

uint64_t EngineSimulation::HeldBlockBytes() const {
  uint64_t bytes = engine_->Summary().block_bytes;
  for (const ModelReport& model : engine_->Models()) {
    for (const ModelVersionReport& version : model.versions) {
      if (version.attachments == 0 && version.state != "loading") {
        bytes -= version.blocks_resident * kBlockBytes;
      }
    }
  }
  return bytes;
}

// A refusal is justified if no page of the size can be evicted, and what has to stay leaves less
// than the smallest piece of memory for that size.
void EngineSimulation::JudgeRefusal(TenantId tenant, uint32_t page_bytes) {
  // What is larger than everything never fits, whatever is evicted.
  const uint64_t least = SlabShape::Of(page_bytes, slab_bytes_, huge_page_bytes_).BytesOf(0, 1);
  const uint64_t capacity = engine_->Summary().host_capacity_bytes;
  if (tiers_fail_ || least > capacity) return;
  ++result_.judged_refusals;
  const std::set<uint64_t> pinned = PinnedExtents();
  std::map<ArenaId, uint32_t> size_of;  // Page bytes, of arenas with something in them.
  std::set<uint64_t> staying;           // Extents of slots that have to stay.
  std::map<Digest, std::string> tenant_of;
  for (const SpaceReport& space : engine_->Spaces())
    tenant_of[space.id] = space.tenant;
  for (const PageReport& page : engine_->Pages("", UINT32_MAX, 0)) {
    const uint64_t extent = shm::ExtentOf(shm::MakeHandle(page.arena, page.slot, 0));
    size_of[page.arena] = page.bytes;
    if (pinned.contains(extent)) {
      staying.insert(extent);
    } else if (page.bytes == page_bytes &&
               *engine_->AddTenant(tenant_of.at(page.space)) == tenant) {
      return Fail("promise 4: an allocation failed though a page of its size could be evicted");
    }
  }
  for (const auto& process : processes_) {
    if (!process->alive()) continue;
    for (const auto& [extent, bytes] : process->WritingExtents()) {
      staying.insert(extent);
      size_of[static_cast<ArenaId>(extent >> shm::kSlotBits)] = bytes;
    }
    // Pages in limbo, and pins on pages that are gone.
    for (const uint64_t extent : pinned) {
      const auto arena = static_cast<ArenaId>(extent >> shm::kSlotBits);
      if (const auto facts = engine_->FindArena(process->client(), arena)) {
        staying.insert(extent);
        size_of[arena] = facts->page_bytes;
      }
    }
  }
  std::set<std::pair<ArenaId, uint32_t>> grains;
  uint64_t needed = HeldBlockBytes();
  for (const uint64_t extent : staying) {
    const auto arena = static_cast<ArenaId>(extent >> shm::kSlotBits);
    const auto slot = static_cast<uint32_t>(extent & (shm::kMaxSlots - 1));
    const auto size = size_of.find(arena);
    if (size == size_of.end()) continue;
    const SlabShape shape = SlabShape::Of(size->second, slab_bytes_, huge_page_bytes_);
    if (slot >= shape.slots) continue;
    const uint32_t grain = slot / shape.grain_slots;
    if (grains.emplace(arena, grain).second) needed += shape.BytesOf(grain, 1);
  }
  if (needed + least <= capacity) {
    Fail("promise 4: an allocation failed though only " + std::to_string(needed) + " of " +
         std::to_string(capacity) + " bytes have to stay");
  }
}

// Everybody leaves: nothing may be held any more, and everything can be evicted.
void EngineSimulation::WindUp() {
  ClearFaults();
  engine_->SetHostCapacity(capacity_);
  for (const auto& process : processes_)
    process->Leave();
  while (sources_.RunPending() + journal_.RunPending() > 0) {
  }
  for (int turn = 0; turn < 50; ++turn) {
    clock_.Advance(kNsPerSecond);
    engine_->Turn();
    sources_.RunPending();
    journal_.RunPending();
  }
  CheckBooks();
  (void)engine_->Evict(0, UINT64_MAX);
  const StatusReport summary = engine_->Summary();
  if (summary.grants != 0) Fail("grants outlived their writers");
  if (summary.limbo_pages != 0) Fail("pages in limbo outlived their readers");
  if (summary.pages != 0) Fail("pages that nobody holds could not be evicted");
  if (summary.clients != 0) Fail("clients outlived their processes");
  CheckBooks();
}

}  // namespace terrace
