#include "tests/sim/store_simulation.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "base/check.h"

namespace terrace {
namespace {

constexpr uint64_t kSteps = 1500;
constexpr size_t kTenants = 2;
constexpr size_t kMaxClients = 3;

std::string TenantName(size_t tenant) {
  return "tenant" + std::to_string(tenant);
}

}  // namespace

StoreSimulation::StoreSimulation(uint64_t seed, StoreOmission omission)
    : random_(seed),
      omission_(omission),
      roomy_(random_.Chance(1, 2)),
      store_({.capacity_bytes = roomy_ ? 1u << 24 : 20 * 12288}),
      shown_store_(omission, store_),
      shown_journal_(omission, journal_) {
  options_.host_capacity_bytes = 4096 * (24 + Below(40));
  options_.slab_bytes = 8192 << Below(3);
  options_.huge_page_bytes = 4096 << Below(2);
  options_.block_bytes = 16384;
  options_.pretouch_bytes = 0;
  options_.max_pinned_bytes = options_.host_capacity_bytes / 3;
  options_.store.sketch_counters = 1024;
  options_.store.max_queued_pages = 4 + static_cast<uint32_t>(Below(20));
  options_.store.max_writing_pages = 1 + static_cast<uint32_t>(Below(16));
  options_.store.max_reading_pages = 4 + static_cast<uint32_t>(Below(16));
  options_.store.scrub_bytes_per_second = Below(2) << 16;
  if (Below(3) == 0) {
    options_.store.write_bytes_per_day = uint64_t{1} << 33;
    options_.store.write_burst_bytes = 200'000;
  }
  Start();
}

StoreSimulation::~StoreSimulation() {
  engine_.reset();
}

void StoreSimulation::Start() {
  ++life_;
  tier_ = std::make_unique<SimHostTier>(SimHostTierOptions{.blank_bytes = 32768});
  directories_ = std::make_unique<PlainDirectory>();
  EngineParts parts;
  parts.clock = &clock_;
  parts.host = tier_.get();
  parts.sources = &sources_;
  parts.journal = &shown_journal_;
  parts.directory_memory = directories_.get();
  parts.page_store = &shown_store_;
  parts.host_policy = MakeLru();
  Result<std::unique_ptr<Engine>> engine = MakeEngine(options_, std::move(parts), *this);
  TERRACE_CHECK(engine.has_value());
  engine_ = *std::move(engine);
  if (!engine_->Summary().restore_problems.empty()) {
    Fail("at the start: " + engine_->Summary().restore_problems.front());
  }
}

StoreSimulationResult StoreSimulation::Run() {
  for (steps_ = 0; steps_ < kSteps && result_.wrong.empty(); ++steps_) {
    Step();
    shown_journal_.AnswerEarly();
    if (steps_ % 16 == 0) CheckBooks();
    CheckHeld();
    if (steps_ % 16 == 8) CheckPages();
  }
  if (result_.wrong.empty()) WindUp();
  AddUp();
  return result_;
}

void StoreSimulation::Fail(const std::string& what) {
  if (result_.wrong.empty()) result_.wrong = what + " (at step " + std::to_string(steps_) + ")";
}

// ---- Steps

void StoreSimulation::Step() {
  if (clients_.size() < kMaxClients && Below(8) == 0) Arrive();
  const uint64_t chance = Below(64);
  if (chance < 40 || clients_.empty()) return World(chance);
  Client& client = *std::next(clients_.begin(), static_cast<ptrdiff_t>(Below(clients_.size())));
  const size_t kind = Below(2);
  if (!client.spaces.contains(kind)) {
    const SpaceSpec spec = SpecOf(kind);
    const Result<SpaceGiven> space = engine_->OpenSpace(client.given.id, spec);
    if (!space) return Fail("open: " + space.error().ToString());
    client.spaces.emplace(kind, *space);
  }
  const SpaceGiven space = client.spaces.at(kind);
  if (chance < 50) return Put(client, kind, space);
  if (chance < 58) return Prefetch(client, kind, space);
  if (chance < 61) return Persist(client, kind, space);
  if (chance < 62) return Drop(client, kind, space);
  if (chance < 63) {
    (void)engine_->CloseSpace(client.given.id, space.slot, space.epoch);
    client.spaces.erase(kind);
    return;
  }
  engine_->ClientGone(client.given.id);
  const ClientId gone = client.given.id;
  std::erase_if(held_, [gone](const Held& held) { return held.client == gone; });
  clients_.remove_if([gone](const Client& each) { return each.given.id == gone; });
}

void StoreSimulation::World(uint64_t chance) {
  if (chance < 12) {
    clock_.Advance(static_cast<MonotonicNs>(Below(20)) * kNsPerMs);
    (void)engine_->Turn();
  } else if (chance < 28) {
    if (store_.pending() > 0) store_.RunOne(Below(store_.pending()));
  } else if (chance < 29) {
    journal_.RunPending(1);
  } else if (chance < 31) {
    store_.EndOverdue(1);
  } else if (chance < 33) {
    FailSomething();
  } else if (chance < 35) {
    (void)engine_->Evict(Below(3) * 8192, 1 + Below(8));
  } else if (chance < 36) {
    engine_->Demote(1 + Below(65536), {}, [this](const Result<Demoted>& demoted) {
      if (demoted) result_.demoted += demoted->pages;
    });
  } else if (chance < 37) {
    clock_.Advance(static_cast<MonotonicNs>(Below(3)) * kNsPerSecond);
  } else if (chance < 38) {
    engine_->SetHostCapacity(options_.host_capacity_bytes - Below(2) * 8 * 4096);
  } else if (chance < 39) {
    Care();
  } else if (Below(4) == 0) {
    Crash();
  }
}

// What an operator does.
void StoreSimulation::Care() {
  const uint64_t what = Below(3);
  if (what == 0) return engine_->Flush({}, [](const Status&) {});
  if (what == 1) {
    PromoteSpec spec;
    spec.bytes = Below(2) * 65536;
    return engine_->Promote(spec, {}, [this](const Result<Promoted>& promoted) {
      if (promoted) result_.promoted_by_hand += promoted->pages;
    });
  }
  if (clients_.empty()) return;
  const StoreCheckSpec spec{.read_data = Below(2) == 0, .repair = Below(2) == 0};
  engine_->CheckStore(clients_.front().given.id, spec, {},
                      [this](const Result<StoreCheckReport>& report) {
                        if (!report) return;
                        ++result_.checks;
                        // Pages are damaged on purpose; the books are not, whatever moves.
                        if (report->unreadable_records + report->unknown_entries +
                                report->missing_entries + report->unknown_slots >
                            0) {
                          Fail("check: " + report->examples.front());
                        }
                      });
}

SpaceSpec StoreSimulation::SpecOf(size_t kind) const {
  SpaceSpec spec;
  spec.layout = {.dtype = "i8",
                 .layers = 1,
                 .kv_heads = 1,
                 .head_size = page_bytes_[kind] / 16,
                 .page_tokens = 16,
                 .planes = 1,
                 .order = "layer,plane,token,head,dim"};
  spec.salt = {static_cast<uint8_t>(kind)};
  return spec;
}

void StoreSimulation::Arrive() {
  Client& client = clients_.emplace_back();
  client.tenant = Below(kTenants);
  const TenantId tenant = *engine_->AddTenant(TenantName(client.tenant));
  const Result<ClientGiven> given = engine_->ClientArrived(
      {.tenant = tenant, .name = "sim", .writer = true}, client.channel.span());
  TERRACE_CHECK(given.has_value());
  client.given = *given;
}

void StoreSimulation::FailSomething() {
  switch (Below(6)) {
    case 0:
      return store_.write_faults.FailAfter(Below(3), Below(3) == 0
                                                         ? Status(Code::kExhausted, "ENOSPC")
                                                         : Status(Code::kUnavailable, "EIO"));
    case 1:
      return store_.read_faults.FailAfter(Below(3), Status(Code::kUnavailable, "EIO"));
    case 2:
      return store_.slow_faults.FailAfter(Below(3), Status(Code::kDeadlineExceeded, "slow"));
    case 3:
      return store_.erase_faults.FailAfter(Below(2), Status(Code::kUnavailable, "EIO"));
    case 4: {
      constexpr DeviceState kStates[] = {DeviceState::kServing, DeviceState::kServing,
                                         DeviceState::kReadOnly, DeviceState::kQuarantined};
      return store_.SetState(kStates[Below(4)]);
    }
    default:
      break;
  }
  // A page on the disk goes bad.
  constexpr ReadFault kFaults[] = {ReadFault::kHeader, ReadFault::kName, ReadFault::kStale,
                                   ReadFault::kData};
  const ReadFault fault = kFaults[Below(4)];
  if (pages_.empty()) return;
  auto page = pages_.begin();
  std::advance(page, Below(pages_.size()));
  const auto [tenant, kind, key] = page->first;
  for (const Client& client : clients_) {
    if (client.tenant != tenant || !client.spaces.contains(kind)) continue;
    store_.Corrupt({.space = client.spaces.at(kind).id, .key = KeyOf(key), .part = 0}, fault);
    durable_.erase(page->first);
    return;
  }
}

void StoreSimulation::ClearFaults() {
  for (FaultPlan* plan :
       {&store_.write_faults, &store_.read_faults, &store_.slow_faults, &store_.erase_faults})
    plan->Clear();
  store_.SetState(DeviceState::kServing);
}

// ---- What clients do

void StoreSimulation::Put(Client& client, size_t kind, const SpaceGiven& space) {
  std::vector<uint64_t> numbers(1 + Below(5));
  const uint64_t first = SomeKey();
  std::vector<Digest> keys;
  for (size_t i = 0; i < numbers.size(); ++i) {
    numbers[i] = (first + i) % keys_;
    keys.push_back(KeyOf(numbers[i]));
  }
  GrantSpec spec{.slot = space.slot, .epoch = space.epoch, .keys = keys};
  spec.chain = true;
  std::vector<GrantGiven> given;
  if (Status status = engine_->Grant(client.given.id, spec, &given); !status.ok()) {
    return Fail("grant: " + status.ToString());
  }
  std::vector<uint64_t> grants;
  for (size_t i = 0; i < given.size(); ++i) {
    if (given[i].code != Code::kOk) continue;
    const Name name{client.tenant, kind, numbers[i]};
    const std::span<uint8_t> bytes = BytesOf(given[i].handle, space.page_bytes);
    for (size_t at = 0; at < bytes.size(); at += sizeof(uint64_t)) {
      const uint64_t word = WordOf(name, pages_[name].present, at);
      std::memcpy(bytes.data() + at, &word, sizeof word);
    }
    grants.push_back(given[i].grant);
  }
  std::vector<Code> codes;
  if (Status status = engine_->Commit(client.given.id, grants, {}, &codes); !status.ok()) {
    return Fail("commit: " + status.ToString());
  }
  result_.commits += static_cast<uint64_t>(std::count(codes.begin(), codes.end(), Code::kOk));
}

void StoreSimulation::Prefetch(Client& client, size_t kind, const SpaceGiven& space) {
  std::vector<uint64_t> numbers(1 + Below(10));
  std::vector<Digest> keys;
  const uint64_t first = SomeKey();
  for (size_t i = 0; i < numbers.size(); ++i) {
    numbers[i] = (first + i) % keys_;
    keys.push_back(KeyOf(numbers[i]));
  }
  PrefetchSpec spec{.slot = space.slot, .epoch = space.epoch, .keys = keys};
  spec.deadline_ms = static_cast<uint32_t>(1 + Below(200));
  if (Below(4) == 0) spec.min_fraction = random_.Unit();
  if (Below(4) == 0) spec.recompute_us_per_page = static_cast<uint32_t>(1 + Below(20'000));
  const MonotonicNs until = clock_.Now() + spec.deadline_ms * kNsPerMs;
  result_.prefetched += keys.size();
  engine_->Prefetch(client.given.id, spec,
                    [this, id = client.given.id, life = life_, kind, numbers,
                     until](const Result<terrace::Prefetched>& answer) {
                      if (!answer || life != life_) return;
                      Prefetched(FindClient(id), kind, numbers, *answer, until);
                    });
}

// What was answered as being in memory is there now, and is held.
void StoreSimulation::Prefetched(Client* client, size_t kind, const std::vector<uint64_t>& keys,
                                 const terrace::Prefetched& answer, MonotonicNs until) {
  if (client == nullptr || !client->spaces.contains(kind)) return;
  for (size_t i = 0; i < answer.worth; ++i) {
    if (answer.codes[i] != Code::kOk) continue;
    const Name name{client->tenant, kind, keys[i]};
    const auto handle = Find(*client, client->spaces.at(kind), keys[i]);
    // It may have landed some time before the last of the batch, and have been dropped since.
    const bool held = std::none_of(pages_.begin(), pages_.end(), [&](const auto& page) {
      return page.first == name && page.second.least > 0;
    });
    if (handle) Check(name, *handle, client->spaces.at(kind).page_bytes);
    if (!handle && held && clock_.Now() < until) {
      Fail("a page was said to be in memory, and is not");
    }
    // One that was committed anew is not the one that is held.
    if (handle && held && clock_.Now() < until) {
      held_.push_back({client->given.id, name, until});
      ++result_.held;
    }
  }
}

void StoreSimulation::Persist(Client& client, size_t kind, const SpaceGiven& space) {
  std::vector<uint64_t> numbers(1 + Below(3));
  std::vector<Digest> keys;
  for (uint64_t& number : numbers) {
    number = SomeKey();
    keys.push_back(KeyOf(number));
  }
  const size_t tenant = client.tenant;
  std::vector<Page> when;
  for (const uint64_t number : numbers)
    when.push_back(pages_[{tenant, kind, number}]);
  engine_->Persist(client.given.id, {.slot = space.slot, .epoch = space.epoch, .keys = keys},
                   [this, tenant, kind, numbers, when, id = space.id,
                    life = life_](const Result<std::vector<Code>>& codes) {
                     if (!codes || life != life_) return;
                     for (size_t i = 0; i < numbers.size(); ++i) {
                       const Name name{tenant, kind, numbers[i]};
                       // Not if it was dropped meanwhile, or goes bad on the disk.
                       if ((*codes)[i] != Code::kOk || pages_[name].least != when[i].least)
                         continue;
                       if (store_.Corrupted({.space = id, .key = KeyOf(numbers[i]), .part = 0}))
                         continue;
                       durable_[name] = pages_[name].present;
                       ++result_.persisted;
                     }
                   });
}

void StoreSimulation::Drop(Client& client, size_t kind, const SpaceGiven& space) {
  const uint64_t number = SomeKey();
  const std::vector<Digest> keys = {KeyOf(number)};
  const Result<uint32_t> dropped = engine_->Drop(client.given.id, space.slot, space.epoch, 0, keys);
  if (!dropped) return Fail("drop: " + dropped.error().ToString());
  const Name name{client.tenant, kind, number};
  Page& page = pages_[name];
  page.least = ++page.present;
  durable_.erase(name);
  std::erase_if(held_, [&](const Held& held) { return held.name == name; });
}

// ---- The end of the daemon, and its next life

void StoreSimulation::Crash() {
  ++result_.crashes;
  AddUp();
  engine_.reset();
  held_.clear();
  clients_.clear();
  store_.Crash(Below(1 + store_.pending()));
  journal_.Crash(Below(1 + journal_.pending()));
  shown_journal_.DropEarly();
  sources_.DropPending();
  // Pages that were dropped and are still on the disk may be read again.
  for (auto& [name, page] : pages_)
    page.least = 0;
  Start();
  if (Below(2) == 0) FindDurable();
}

void StoreSimulation::FindDurable() {
  // Where pages leave the store to make room, none is sure to be there.
  if (!roomy_) durable_.clear();
  ClearFaults();
  for (const auto& [name, version] : std::map<Name, uint64_t>(durable_)) {
    if (result_.wrong.empty()) FindAgain(name);
  }
}

void StoreSimulation::FindAgain(const Name& name) {
  const auto& [tenant, kind, number] = name;
  Client client;
  client.tenant = tenant;
  const TenantId id = *engine_->AddTenant(TenantName(tenant));
  client.given =
      *engine_->ClientArrived({.tenant = id, .name = "sim", .writer = true}, client.channel.span());
  const SpaceGiven space = *engine_->OpenSpace(client.given.id, SpecOf(kind));
  const std::vector<Digest> keys = {KeyOf(number)};
  Code code = Code::kInternal;
  engine_->Prefetch(client.given.id,
                    {.slot = space.slot, .epoch = space.epoch, .keys = keys, .deadline_ms = 60'000},
                    [&code](const Result<terrace::Prefetched>& answer) {
                      code = answer ? answer->codes[0] : answer.error().code();
                    });
  store_.RunPending();
  if (code == Code::kOk) {
    Check(name, Find(client, space, number).value(), space.page_bytes);
    ++result_.found_again;
  } else {
    Fail("a page that was acknowledged as durable is gone after a crash: " +
         std::string(CodeName(code)));
  }
  engine_->ClientGone(client.given.id);
}

void StoreSimulation::Settle() {
  for (int turn = 0; turn < 300; ++turn) {
    clock_.Advance(100 * kNsPerMs);
    (void)engine_->Turn();
    store_.EndOverdue();
    store_.RunPending();
    shown_journal_.AnswerEarly();
    journal_.RunPending();
  }
}

void StoreSimulation::WindUp() {
  ClearFaults();
  engine_->SetHostCapacity(options_.host_capacity_bytes);
  Settle();
  Crash();
  FindDurable();
  Settle();
  CheckBooks();
  (void)engine_->Evict(0, UINT64_MAX);
  const StatusReport summary = engine_->Summary();
  if (summary.pages != 0) Fail("pages that nobody holds could not be evicted");
  if (summary.filling_bytes != 0) Fail("slots are being filled though nothing is read");
  if (summary.limbo_pages != 0) Fail("pages in limbo outlived their transfers");
  if (summary.store.holds != 0) Fail("pages are held though nobody is there");
  if (summary.store.requests != 0) Fail("prefetches were never answered");
  if (summary.store.queued_pages != 0) Fail("pages wait to be written though nothing keeps them");
  if (summary.store.writing_pages + summary.store.erasing_pages != 0) {
    Fail("writes or erasures never ended");
  }
}

// ---- Judging

std::span<uint8_t> StoreSimulation::BytesOf(shm::Handle handle, uint32_t bytes) {
  return tier_->Bytes(shm::ArenaOf(handle)).subspan(uint64_t{shm::SlotOf(handle)} * bytes, bytes);
}

std::optional<shm::Handle> StoreSimulation::Find(const Client& client, const SpaceGiven& space,
                                                 uint64_t key) {
  const TenantId tenant = *engine_->AddTenant(TenantName(client.tenant));
  const auto page = engine_->index(tenant).Find({space.slot, space.epoch, 0, KeyOf(key)});
  if (!page) return std::nullopt;
  return page->handle;
}

StoreSimulation::Client* StoreSimulation::FindClient(ClientId id) {
  for (Client& client : clients_) {
    if (client.given.id == id) return &client;
  }
  return nullptr;
}

// The first word tells the version, which has to be one that may be read; all follow from it.
uint64_t StoreSimulation::WordOf(const Name& name, uint64_t version, uint64_t offset) {
  if (offset == 0) return version;
  const auto& [tenant, kind, key] = name;
  return (version + 1) * 0x9e3779b97f4a7c15 + key * 0xbf58476d1ce4e5b9 + kind * 77 + tenant * 7777 +
         offset;
}

void StoreSimulation::Check(const Name& name, shm::Handle handle, uint32_t bytes) {
  const std::span<const uint8_t> page = BytesOf(handle, bytes);
  uint64_t version = 0;
  std::memcpy(&version, page.data(), sizeof version);
  const Page& may = pages_[name];
  if (version < may.least || version > may.present) {
    return Fail("promise 1: version " + std::to_string(version) + " of a page was found, where " +
                std::to_string(may.least) + " to " + std::to_string(may.present) + " may be");
  }
  for (size_t at = 0; at < page.size(); at += sizeof(uint64_t)) {
    const uint64_t word = WordOf(name, version, at);
    if (std::memcmp(page.data() + at, &word, sizeof word) != 0) {
      return Fail("promise 1: a page has bytes of something else");
    }
  }
}

void StoreSimulation::CheckPages() {
  for (const Client& client : clients_) {
    for (const auto& [kind, space] : client.spaces) {
      for (uint64_t key = 0; key < keys_; ++key) {
        const auto handle = Find(client, space, key);
        if (handle) Check({client.tenant, kind, key}, *handle, space.page_bytes);
      }
    }
  }
}

void StoreSimulation::CheckHeld() {
  std::erase_if(held_, [this](const Held& held) { return held.until <= clock_.Now(); });
  for (const Held& held : held_) {
    const Client* client = FindClient(held.client);
    const auto& [tenant, kind, key] = held.name;
    if (client == nullptr || !client->spaces.contains(kind)) continue;
    if (!Find(*client, client->spaces.at(kind), key)) {
      return Fail("a page that is held for a client left memory");
    }
  }
}

void StoreSimulation::CheckBooks() {
  if (const Status status = engine_->CheckInvariants(); !status.ok()) Fail(status.ToString());
  const StoreFigures figures = engine_->Summary().store;
  const uint64_t allocated = store_.Report().devices[0].allocated_bytes;
  // Of a write that is overdue the store alone knows.
  if (figures.used_bytes > allocated ||
      (store_.overdue() == 0 && figures.used_bytes != allocated)) {
    Fail("promise 6: the store has " + std::to_string(allocated) +
         " bytes allocated, its pages take " + std::to_string(figures.used_bytes));
  }
}

void StoreSimulation::AddUp() {
  const StoreFigures figures = engine_->Summary().store;
  result_.spilled += figures.spilled.extents;
  result_.promoted += figures.promoted.extents;
  for (int fault = 1; fault < kReadFaults; ++fault)
    result_.faults += figures.faults[fault];
  for (const uint64_t unspilled : figures.unspilled)
    result_.unspilled += unspilled;
  for (const Amount& erased : figures.erased)
    result_.erased += erased.extents;
  result_.made_room += figures.erased[static_cast<int>(StoredErasure::kRoom)].extents;
}

}  // namespace terrace
