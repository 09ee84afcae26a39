#include "tests/sim/sim_process.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>

namespace terrace {
namespace {

constexpr uint64_t kKeys = 12;
constexpr size_t kMaxReadings = 24;
constexpr size_t kMaxWritings = 12;
// Pages are read and written in pieces, between which others go on.
constexpr uint64_t kPieceBytes = 256;
// Of each space, where keys are crowded.
constexpr uint16_t kHomeLines = 1;

}  // namespace

ClientId SimProcess::client() const {
  return life_ ? life_->given.id : 0;
}
TenantId SimProcess::tenant() const {
  return life_ ? life_->tenant : 0;
}

void SimProcess::Body() {
  while (!sim_.over()) {
    try {
      Live();
    } catch (const Killed&) {
    }
    // The engine may still be taking the channel away; it is done when the next life arrives.
    if (killed_) ended_.push_back(std::move(life_));
    killed_ = false;
    in_verb_ = false;
  }
}

void SimProcess::Live() {
  Arrive();
  while (sim_.UseStep()) {
    Act();
    sim_.Pause();
    if (life_->cut || Below(120) == 0) return Goodbye();
  }
}

void SimProcess::Arrive() {
  auto life = std::make_unique<Life>();
  sim_.OnOwner([&] {
    ended_.clear();
    const std::string tenant = "tenant" + std::to_string(Below(sim_.tenants()));
    life->tenant = *sim_.engine().AddTenant(tenant);
    for (int model = 0; model < EngineSimulation::kModels; ++model) {
      sim_.engine().SetModelAccess(EngineSimulation::ModelName(model), tenant, true,
                                   [](const Status&) {});
    }
    const Result<ClientGiven> given = sim_.engine().ClientArrived(
        {.tenant = life->tenant, .name = "sim", .writer = true, .max_pins = 64},
        life->channel.span());
    if (!given) return sim_.Fail("arrival: " + given.error().ToString());
    life->given = *given;
    life_ = std::move(life);
  });
  if (life_ == nullptr) return;
  life_->pool = std::make_unique<PinPool<SimAtomics>>(life_->channel.channel(),
                                                      life_->given.max_pinned_bytes);
  life_->lane = std::make_unique<Lane<SimAtomics>>(*life_->pool, 0);
  FetchDirectory();
}

void SimProcess::Act() {
  if (hostile_ && Below(4) == 0) Garble();
  const uint64_t chance = Below(64);
  if (chance < 2) return Open();
  if (chance < 3) return Below(4) == 0 ? Close() : Open();
  if (chance < 13) return Grant();
  if (chance < 21) return Commit();
  if (chance < 22) return Abort();
  if (chance < 23) return Drop();
  if (chance < 27) return VerifySome();
  if (chance < 35) return Release();
  if (chance < 36) return Attach();
  if (chance < 38) return VerifyAttached();
  if (chance < 39) return Detach();
  LookUp();
}

void SimProcess::Goodbye() {
  if (!hostile_) {
    for (const Reading& reading : life_->readings)
      Verify(reading);
  }
  sim_.OnOwner([&] {
    if (!hostile_) {
      const ChannelTotals totals = sim_.engine().index(life_->tenant).totals_of(client());
      uint64_t found = 0;
      for (const uint64_t hits : totals.hits)
        found += hits;
      for (const uint64_t misses : totals.misses)
        found += misses;
      if (found != totals.lookups) sim_.Fail("hits and misses are not the lookups");
    }
    sim_.engine().ClientGone(client());
    ended_.push_back(std::move(life_));
  });
}

void SimProcess::Leave() {
  // It may have been killed after the end of its fiber.
  if (life_ == nullptr || killed_) return;
  if (!hostile_) {
    for (const Reading& reading : life_->readings)
      Verify(reading);
  }
  sim_.engine().ClientGone(client());
  ended_.push_back(std::move(life_));
}

std::vector<std::pair<uint64_t, uint32_t>> SimProcess::WritingExtents() const {
  std::vector<std::pair<uint64_t, uint32_t>> extents;
  for (const Writing& writing : life_->writings)
    extents.emplace_back(shm::ExtentOf(writing.handle), writing.bytes);
  return extents;
}

// ---- Spaces

void SimProcess::Open() {
  const size_t kind = Below(3);
  SpaceSpec spec;
  const size_t size = Below(16) == 0 ? kind + 1 : kind;
  spec.layout = {.dtype = "i8",
                 .layers = 1,
                 .kv_heads = 1,
                 .head_size = sim_.page_bytes(size) / 16,
                 .page_tokens = 16,
                 .planes = 1,
                 .order = "layer,plane,token,head,dim"};
  spec.salt = {static_cast<uint8_t>(kind)};
  sim_.OnOwner([&] {
    const Result<SpaceGiven> given = sim_.engine().OpenSpace(client(), spec);
    if (!given) {
      if (given.error().code() != Code::kMismatch && !hostile_) {
        sim_.Fail("open: " + given.error().ToString());
      }
      return;
    }
    life_->spaces[given->id] = {
        *given, {given->slot, given->epoch, given->generation_index, given->generation}, kind};
  });
}

void SimProcess::Close() {
  OpenSpace* space = SomeSpace();
  if (space == nullptr) return;
  const SpaceGiven given = space->given;
  sim_.OnOwner([&] {
    // As often as it was opened.
    while (sim_.engine().CloseSpace(client(), given.slot, given.epoch).ok()) {
    }
    life_->spaces.erase(given.id);
  });
}

SimProcess::OpenSpace* SimProcess::SomeSpace() {
  if (life_->spaces.empty()) return nullptr;
  auto space = life_->spaces.begin();
  std::advance(space, Below(life_->spaces.size()));
  return &space->second;
}

Digest SimProcess::SomeKey() {
  const uint64_t number = Below(Below(4) == 0 ? 16 * kKeys : kKeys);
  Digest key = KeyOf(number);
  const auto home = static_cast<uint16_t>(number % kHomeLines);
  if (sim_.crowded()) std::memcpy(key.bytes.data(), &home, sizeof home);
  return key;
}

OracleName SimProcess::NameOf(const OpenSpace& space, const Digest& key) const {
  return {life_->tenant, space.given.id, 0, key};
}

// ---- Writing

void SimProcess::Grant() {
  const OpenSpace* space = SomeSpace();
  if (space == nullptr || life_->writings.size() >= kMaxWritings) return;
  std::vector<Digest> keys(1 + Below(sim_.bulk() ? 128 : 6));
  for (Digest& key : keys)
    key = SomeKey();
  const uint32_t deadline_ms = Below(4) == 0 ? 5 : 0;
  const bool at_one_stroke = Below(2) == 0;
  std::vector<GrantGiven> given;
  const auto verb = [&] {
    const Status status = sim_.engine().Grant(client(),
                                              {.slot = space->given.slot,
                                               .epoch = space->given.epoch,
                                               .deadline_ms = deadline_ms,
                                               .keys = keys},
                                              &given);
    if (!status.ok() && !hostile_) sim_.Fail("grant: " + status.ToString());
    for (size_t i = 0; i < given.size(); ++i) {
      if (given[i].code == Code::kOk) {
        life_->writings.push_back({given[i].grant, given[i].handle, NameOf(*space, keys[i]),
                                   space->given.epoch, space->given.page_bytes, 0, false});
      }
    }
    const bool refused = std::any_of(given.begin(), given.end(), [](const GrantGiven& answer) {
      return answer.code == Code::kExhausted;
    });
    if (refused && at_one_stroke) sim_.JudgeRefusal(life_->tenant, space->given.page_bytes);
    if (refused) ++sim_.result().refused;
  };
  at_one_stroke ? sim_.AtOneStroke(verb) : sim_.OnOwner(verb);
}

void SimProcess::Write(Writing& writing) {
  const auto arena = sim_.tier().Map(shm::ArenaOf(writing.handle));
  if (arena == nullptr) return sim_.Fail("the arena of a grant is gone");
  const uint64_t begin = uint64_t{shm::SlotOf(writing.handle)} * writing.bytes;
  if (!arena->Resident(begin, writing.bytes)) return sim_.Fail("a grant has no memory");
  writing.nonce = sim_.oracle().NewNonce();
  const Writing copy = writing;  // The list may change while others go on.
  for (uint64_t offset = 0; offset < copy.bytes; offset += kPieceBytes) {
    const uint64_t piece = std::min<uint64_t>(kPieceBytes, copy.bytes - offset);
    Oracle::Fill(copy.name, copy.nonce, offset, arena->bytes().subspan(begin + offset, piece));
    sim_.Pause();
  }
}

void SimProcess::Commit() {
  if (life_->writings.empty()) return;
  const size_t count = 1 + Below(life_->writings.size());
  for (size_t i = 0; i < count; ++i)
    Write(life_->writings[i]);
  const uint64_t began = sim_.now();
  sim_.OnOwner([&] {
    // Grants may have expired meanwhile, but none is gone.
    std::vector<Writing>& all = life_->writings;
    const std::vector<Writing> batch(all.begin(), all.begin() + static_cast<ptrdiff_t>(count));
    all.erase(all.begin(), all.begin() + static_cast<ptrdiff_t>(count));
    std::vector<uint64_t> grants;
    for (const Writing& writing : batch) {
      grants.push_back(writing.grant);
      sim_.oracle().Committing(writing.name, writing.nonce, began);
    }
    std::vector<Code> codes;
    const Status status = sim_.engine().Commit(client(), grants, {}, &codes);
    if (!status.ok() && !hostile_) sim_.Fail("commit: " + status.ToString());
    codes.resize(batch.size(), Code::kDeadlineExceeded);
    for (size_t i = 0; i < batch.size(); ++i)
      Committed(batch[i], codes[i], began);
  });
}

void SimProcess::Committed(const Writing& writing, Code code, uint64_t began) {
  sim_.oracle().CommitAnswered(writing.name, writing.nonce);
  switch (code) {
    case Code::kOk:
      sim_.oracle().Committed(writing.name, writing.nonce, began, sim_.now());
      ++sim_.result().commits;
      return;
    case Code::kDeadlineExceeded:
      // The grant stays until it is acknowledged.
      life_->writings.push_back(writing);
      return;
    case Code::kStale: {
      // Only if the space was closed meanwhile.
      const auto space = life_->spaces.find(writing.name.space);
      if (space != life_->spaces.end() && space->second.ref.epoch == writing.epoch) {
        sim_.Fail("a commit is stale");
      }
      return;
    }
    case Code::kAlreadyExists:
    case Code::kExhausted:
      return;
    default:
      sim_.Fail("commit answered " + std::string(CodeName(code)));
  }
}

void SimProcess::Abort() {
  if (life_->writings.empty()) return;
  const size_t place = Below(life_->writings.size());
  // A writer that was late goes on writing until it acknowledges: nobody may be hurt by it.
  if (life_->writings[place].told_expired && Below(2) == 0) return Write(life_->writings[place]);
  sim_.OnOwner([&] {
    const std::vector<uint64_t> grants = {life_->writings[place].grant};
    const Status status = sim_.engine().Abort(client(), grants);
    if (!status.ok()) sim_.Fail("abort: " + status.ToString());
    life_->writings.erase(life_->writings.begin() + static_cast<ptrdiff_t>(place));
  });
}

void SimProcess::Drop() {
  const OpenSpace* space = SomeSpace();
  if (space == nullptr) return;
  const std::vector<Digest> keys = {SomeKey(), SomeKey()};
  sim_.OnOwner([&] {
    const Result<uint32_t> dropped =
        sim_.engine().Drop(client(), space->given.slot, space->given.epoch, 0, keys);
    if (!dropped) {
      if (!hostile_) sim_.Fail("drop: " + dropped.error().ToString());
      return;
    }
    for (const Digest& key : keys)
      sim_.oracle().Dropped(NameOf(*space, key), sim_.now());
  });
}

// ---- Reading

void SimProcess::FetchDirectory() {
  sim_.OnOwner([&] {
    Result<DirectoryView<SimAtomics>> view =
        DirectoryView<SimAtomics>::Of(sim_.PresentDirectory(life_->tenant));
    if (!view) return sim_.Fail("directory: " + view.error().ToString());
    life_->view = *view;
  });
}

void SimProcess::LookUp() {
  const OpenSpace* some = SomeSpace();
  if (some == nullptr || life_->readings.size() >= kMaxReadings) return;
  const OpenSpace space = *some;
  std::vector<Digest> keys(1 + Below(4));
  for (Digest& key : keys)
    key = SomeKey();
  const int form = keys.size() == 1 ? 0 : 1 + static_cast<int>(Below(2));
  LookupResult result;
  std::vector<Pinned> pages(keys.size());
  uint64_t began = 0;
  do {
    began = sim_.now();
    Lookup<SimAtomics> lookup(life_->view, *life_->lane, {space.ref, 0});
    result = form == 0   ? lookup.One(keys[0], pages.data())
             : form == 1 ? lookup.Prefix(keys, pages)
                         : lookup.Each(keys, pages);
    if (result.outcome == Outcome::kSuperseded) FetchDirectory();
  } while (result.outcome == Outcome::kSuperseded && !sim_.over());
  if (result.outcome == Outcome::kMiss && result.reason == shm::Miss::kStale) {
    return sim_.Fail("an open space is stale");
  }
  for (size_t i = 0; i < keys.size(); ++i) {
    if (pages[i].pin != nullptr) Take(space, keys[i], pages[i], began);
  }
}

void SimProcess::Take(const OpenSpace& space, const Digest& key, const Pinned& page,
                      uint64_t began) {
  const uint64_t ended = sim_.now();
  ++sim_.result().hits;
  Reading reading{page, NameOf(space, key), 0};
  if (!hostile_) {
    if (page.bytes != space.given.page_bytes) return sim_.Fail("promise 1: a page of another size");
    const std::span<const uint8_t> bytes = BytesOf(page.handle, page.bytes);
    if (bytes.empty()) return;
    reading.nonce = Oracle::NonceIn(bytes);
    if (!sim_.oracle().Legal(reading.name, reading.nonce, began, ended)) {
      return sim_.Fail("promise 1: a read found writing " + std::to_string(reading.nonce) +
                       ", which is not of its key or not of its time");
    }
    Verify(reading);
  }
  life_->readings.push_back(reading);
}

std::span<const uint8_t> SimProcess::BytesOf(shm::Handle handle, uint32_t bytes) {
  auto& arena = life_->arenas[shm::ArenaOf(handle)];
  if (arena == nullptr) arena = sim_.tier().Map(shm::ArenaOf(handle));
  const uint64_t begin = uint64_t{shm::SlotOf(handle)} * bytes;
  if (arena == nullptr || begin + bytes > arena->bytes().size() || !arena->Resident(begin, bytes)) {
    sim_.Fail("promise 1: a pinned page has no memory");
    return {};
  }
  return arena->bytes().subspan(begin, bytes);
}

void SimProcess::Verify(const Reading& reading) {
  const std::span<const uint8_t> bytes = BytesOf(reading.page.handle, reading.page.bytes);
  for (uint64_t offset = 0; offset < bytes.size(); offset += kPieceBytes) {
    const uint64_t piece = std::min<uint64_t>(kPieceBytes, bytes.size() - offset);
    if (!Oracle::Matches(reading.name, reading.nonce, offset, bytes.subspan(offset, piece))) {
      return sim_.Fail("promise 1: bytes of a pinned page changed");
    }
    sim_.Pause();
  }
}

void SimProcess::VerifySome() {
  if (hostile_ || life_->readings.empty()) return;
  const Reading reading = life_->readings[Below(life_->readings.size())];
  Verify(reading);
}

void SimProcess::Release() {
  for (size_t count = Below(6); count > 0 && !life_->readings.empty(); --count) {
    const size_t place = Below(life_->readings.size());
    const Reading reading = life_->readings[place];
    if (!hostile_) Verify(reading);
    life_->readings.erase(life_->readings.begin() + static_cast<ptrdiff_t>(place));
    life_->lane->Release({&reading.page, 1});
  }
}

// ---- Weights

void SimProcess::Attach() {
  if (life_->attachments.size() >= 2) return;
  const int model = static_cast<int>(Below(EngineSimulation::kModels));
  sim_.OnOwner([&] {
    sim_.engine().Attach(client(), EngineSimulation::ModelName(model), "", true, 0,
                         [this, id = client(), model](const Result<Attached>& attached) {
                           if (!attached || client() != id) return;
                           life_->attachments.push_back({attached->attachment, model, {}});
                           ++sim_.result().attached;
                         });
  });
}

void SimProcess::VerifyAttached() {
  if (life_->attachments.empty()) return;
  const size_t place = Below(life_->attachments.size());
  sim_.OnOwner([&] {
    Attachment& attachment = life_->attachments[place];
    if (!attachment.blocks.empty()) return;
    const Result<std::vector<ArenaId>> blocks = sim_.engine().BlocksOf(client(), attachment.id, {});
    if (!blocks) {
      if (!hostile_) sim_.Fail("blocks: " + blocks.error().ToString());
      return;
    }
    for (const ArenaId arena : *blocks)
      attachment.blocks.push_back(sim_.tier().Map(arena));
  });
  const Attachment attachment = life_->attachments[place];
  const std::vector<uint8_t>& expected = sim_.model_bytes(attachment.model);
  uint64_t offset = 0;
  for (const auto& block : attachment.blocks) {
    if (block == nullptr || !block->sealed()) return sim_.Fail("an attached block is not sealed");
    const auto bytes = block->bytes();
    if (!std::equal(bytes.begin(), bytes.end(),
                    expected.begin() + static_cast<ptrdiff_t>(offset))) {
      return sim_.Fail("attached weights are not those of the file");
    }
    offset += bytes.size();
  }
}

void SimProcess::Detach() {
  if (life_->attachments.empty()) return;
  sim_.OnOwner([&] {
    const Status status = sim_.engine().Detach(client(), life_->attachments.back().id);
    if (!status.ok()) sim_.Fail("detach: " + status.ToString());
    life_->attachments.pop_back();
  });
}

// ---- Events

void SimProcess::GrantsExpired(std::span<const uint64_t> grants) {
  for (const uint64_t grant : grants) {
    for (Writing& writing : life_->writings)
      writing.told_expired |= writing.grant == grant;
  }
}

void SimProcess::ArenasGone(std::span<const ArenaId> arenas) {
  for (const ArenaId arena : arenas) {
    for (const Reading& reading : life_->readings) {
      if (shm::ArenaOf(reading.page.handle) == arena && !hostile_) {
        sim_.Fail("promise 1: an arena with a pinned page was released");
      }
    }
    life_->arenas.erase(arena);
  }
}

void SimProcess::Cut() {
  if (!hostile_) return sim_.Fail("a client within its budget was cut");
  life_->cut = true;
}

// ---- What a hostile client does to its channel

void SimProcess::Garble() {
  shm::Channel& channel = life_->channel.channel();
  const uint64_t garbage = sim_.random()();
  switch (Below(7)) {
    case 0:
      // Pins on anything, many of them on pages of others.
      for (uint32_t i = 0; i < 32; ++i) {
        channel.lines[Below(8)].pins[Below(8)] =
            shm::MakeHandle(static_cast<uint32_t>(Below(12)), static_cast<uint32_t>(Below(16)), 1);
      }
      channel.summary[0] = 0xff;
      channel.upper_summary[0] = 1;
      return;
    case 1:
      channel.lines[Below(shm::kMaxPinLines)].pins[Below(8)] = garbage;
      return;
    case 2:
      channel.summary[Below(shm::kSummaryWords)] = garbage;
      channel.upper_summary[Below(shm::kUpperSummaryWords)] = ~uint64_t{0};
      return;
    case 3:
      channel.lanes = garbage;
      channel.rings[Below(shm::kMaxLanes)].head = garbage;
      return;
    case 4: {
      shm::Ring& ring = channel.rings[1];
      channel.lanes |= 2;
      for (int i = 0; i < 8; ++i) {
        shm::RingRecord& record = ring.records[ring.head % shm::kRingRecords];
        record.tag = Below(4) | sim_.random()() << 8;
        record.handle = Below(2) == 0 ? sim_.random()()
                                      : shm::MakeHandle(static_cast<uint32_t>(Below(12)),
                                                        static_cast<uint32_t>(Below(16)), 1);
        ++ring.head;
      }
      return;
    }
    case 5:
      channel.counters[Below(4)].lookups = garbage;
      channel.magic = garbage;
      channel.pin_lines = garbage;
      return;
    default:
      // Verbs with anything.
      sim_.OnOwner([&] {
        std::vector<GrantGiven> given;
        std::vector<Code> codes;
        const std::vector<Digest> keys = {SomeKey()};
        const std::vector<uint64_t> grants = {Below(1000)};
        Engine& engine = sim_.engine();
        (void)engine.Grant(client(),
                           {.slot = static_cast<uint32_t>(Below(4)),
                            .epoch = static_cast<uint32_t>(Below(4)) + 1000,
                            .part = static_cast<uint32_t>(garbage),
                            .keys = keys},
                           &given);
        (void)engine.CloseSpace(client(), static_cast<uint32_t>(garbage), 1);
        (void)engine.BlocksOf(client(), garbage, {});
        (void)engine.Detach(client(), garbage);
      });
      return;
  }
}

}  // namespace terrace
