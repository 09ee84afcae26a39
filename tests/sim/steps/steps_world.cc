#include "tests/sim/steps/steps_world.h"

#include <cstddef>
#include <cstring>
#include <utility>

namespace terrace {
namespace {

constexpr auto kRelaxed = std::memory_order_relaxed;

constexpr int kTurns = 80;      // Verbs of the owner.
constexpr int kLookups = 30;    // Of each reader.
constexpr size_t kMaxHeld = 3;  // Pages of each reader.
constexpr uint64_t kStrides[] = {2, 4, 8, 32, 128};

// Almost as many pages as make a directory grow; the run links the rest.
constexpr uint64_t kPagesBefore = 445;

bool Inside(std::span<uint8_t> bytes, const shm::Word& word) {
  const auto* const at = reinterpret_cast<const uint8_t*>(&word);
  return at >= bytes.data() && at < bytes.data() + bytes.size();
}

uint64_t FirstWord(uint64_t key, uint64_t generation) {
  return key << 32 | generation;
}
uint64_t SecondWord(const PageContent& content) {
  return content.nonce << 32 | content.key << 16 | content.generation;
}

}  // namespace

StepsWorld::StepsWorld(uint64_t seed, Omitted omitted)
    : omitted_(omitted), random_(seed), fibers_(seed ^ 0x5eed, kStrides[seed % 5]) {
  SimAtomics::access = this;
  index_ = *IndexOn<SimAtomics>::Make(memory_);
  pager_ = std::make_unique<Pager<StepsWorld>>(*index_, *this, kSlots, seed);
  growth_ = std::make_unique<Growth>(*index_, kPagesBefore + 200);
  growth_->Link(kPagesBefore + random_.Below(15));
  for (size_t i = 0; i < channels_.size(); ++i) {
    // With one line or two the lanes of a client share them.
    index_->AddChannel(i + 1, channels_[i].span(), 1 + static_cast<uint32_t>(seed / 5 % 3));
    pools_.push_back(std::make_unique<PinPool<SimAtomics>>(channels_[i].channel(), 1u << 20));
  }
  Post();
  for (int i = 0; i < kReaders; ++i) {
    Reader& reader = readers_[static_cast<size_t>(i)];
    MakeLane(i);
    reader.view = posted_view_;
    reader.space = posted_space_;
  }
}

StepsWorld::~StepsWorld() {
  for (Reader& reader : readers_)
    reader.lane.reset();
  index_.reset();
  SimAtomics::access = nullptr;
}

StepsResult StepsWorld::Run() {
  fibers_.Add([this] { Owner(); });
  for (int i = 0; i < kReaders; ++i) {
    fibers_.Add([this, i] { ReaderBody(i); });
  }
  fibers_.Run();
  result_.evicted = pager_->evicted();
  result_.linked_again = pager_->linked_again();
  result_.growths = index_->directory_id() - 1;
  if (!result_.wrong.empty()) return result_;
  // Nothing is left behind, and everything was counted.
  if (pager_->Scan() != 0) Fail("a pin outlived its release");
  pager_->ReapLimbo();
  if (pager_->in_limbo() != 0) Fail("a page stays in limbo");
  const ChannelTotals totals = index_->totals();
  uint64_t hits = 0;
  for (const uint64_t count : totals.hits)
    hits += count;
  uint64_t misses = 0;
  for (const uint64_t count : totals.misses)
    misses += count;
  if (hits != result_.hits || misses != result_.misses || totals.lookups != hits + misses) {
    Fail("the counters differ from what the readers were told");
  }
  return result_;
}

void StepsWorld::Fail(const std::string& what) {
  if (result_.wrong.empty()) result_.wrong = what;
}

// ---- The owner ----------------------------------------------------------------------------------

void StepsWorld::Owner() {
  for (int turn = 0; turn < kTurns && result_.wrong.empty(); ++turn) {
    in_verb_ = true;
    const uint64_t dice = random_.Below(100);
    if (dice < 45) {
      pager_->Publish(random_.Below(kKeys));
    } else if (dice < 66) {
      pager_->Evict(1 + static_cast<uint32_t>(random_.Below(2)));
    } else if (dice < 78) {
      pager_->Drop(random_.Below(kKeys));
    } else if (dice < 86) {
      pager_->ReapLimbo();
    } else if (dice < 95) {
      growth_->Link(8);
    } else if (dice < 98) {
      pager_->Fence();
    } else {
      pager_->Reopen();
    }
    Post();
    in_verb_ = false;
  }
}

void StepsWorld::Post() {
  for (size_t i = 0; i < memory_.regions(); ++i) {
    const auto view = *DirectoryView<SimAtomics>::Of(memory_.region(i));
    if (view.id() == index_->directory_id()) posted_view_ = view;
  }
  posted_space_ = pager_->space();
}

const shm::DirectoryHeader& StepsWorld::published() const {
  const uint64_t id = index_->directory_id();
  for (size_t i = memory_.regions(); i > 0; --i) {
    const auto& header =
        *reinterpret_cast<const shm::DirectoryHeader*>(memory_.region(i - 1).data());
    if (header.directory_id.load(kRelaxed) == id) return header;
  }
  TERRACE_CHECK(false);
}

// All keys agree in the bits that choose the home line.
Digest StepsWorld::Key(uint64_t number) {
  Digest key = KeyOf(number);
  const uint16_t zero = 0;
  std::memcpy(key.bytes.data(), &zero, sizeof zero);
  return key;
}

void StepsWorld::Write(uint32_t slot, const PageContent& content) {
  Store(page_words_[2 * slot], FirstWord(content.key, content.generation), kRelaxed);
  Store(page_words_[2 * slot + 1], SecondWord(content), kRelaxed);
}

std::array<uint64_t, 2> StepsWorld::Read(uint32_t slot) {
  return {Load(page_words_[2 * slot], kRelaxed), Load(page_words_[2 * slot + 1], kRelaxed)};
}

// ---- The readers --------------------------------------------------------------------------------

void StepsWorld::ReaderBody(int index) {
  Reader& reader = readers_[static_cast<size_t>(index)];
  for (int i = 0; i < kLookups && result_.wrong.empty(); ++i) {
    LookUp(index);
    while (reader.held.size() > kMaxHeld || (!reader.held.empty() && random_.Chance(1, 2))) {
      ReleaseOne(index);
    }
    // The end of a lane clears marks; the next one sets them again.
    if (reader.held.empty() && random_.Chance(1, 2)) MakeLane(index);
  }
  while (!reader.held.empty())
    ReleaseOne(index);
}

void StepsWorld::MakeLane(int index) {
  std::unique_ptr<Lane<SimAtomics>>& lane = readers_[static_cast<size_t>(index)].lane;
  lane.reset();
  lane = std::make_unique<Lane<SimAtomics>>(*pools_[static_cast<size_t>(index / 2)],
                                            static_cast<uint32_t>(index % 2));
}

void StepsWorld::LookUp(int index) {
  Reader& reader = readers_[static_cast<size_t>(index)];
  const uint64_t dice = random_.Below(4);
  const size_t count = dice < 2 ? 1 : 3;
  const uint64_t first = random_.Below(kKeys - count + 1);
  std::array<Digest, 3> keys;
  for (size_t i = 0; i < count; ++i)
    keys[i] = Key(first + i);
  std::array<Pinned, 3> pages;
  LookupResult looked;
  // The owner makes at most two directories in a run.
  for (int attempt = 0; attempt < 4; ++attempt) {
    reader.pins_of_lookup = 0;
    Lookup<SimAtomics> lookup(reader.view, *reader.lane, {reader.space, 0});
    const auto some_keys = std::span(keys).first(count);
    looked = dice < 2    ? lookup.One(keys[0], pages.data())
             : dice == 2 ? lookup.Prefix(some_keys, pages)
                         : lookup.Each(some_keys, pages);
    if (looked.outcome != Outcome::kSuperseded) break;
    Fetch(index);
  }
  if (looked.outcome == Outcome::kSuperseded) return Fail("superseded without end");
  result_.hits += looked.hits;
  result_.misses += count - looked.hits;
  for (size_t i = 0; i < count; ++i) {
    if (pages[i].pin != nullptr) Verify(index, first + i, pages[i]);
  }
  if (looked.outcome == Outcome::kMiss && looked.reason == shm::Miss::kStale) Fetch(index);
}

void StepsWorld::Fetch(int index) {
  // A message to the owner, which answers between two verbs.
  do
    fibers_.GiveWay();
  while (in_verb_);
  Reader& reader = readers_[static_cast<size_t>(index)];
  reader.view = posted_view_;
  reader.space = posted_space_;
}

void StepsWorld::Verify(int index, uint64_t key, const Pinned& page) {
  Reader& reader = readers_[static_cast<size_t>(index)];
  Held held{page, Read(shm::SlotOf(page.handle))};
  const uint64_t generation = reader.space.generation;
  if (held.content[0] != FirstWord(key, generation) ||
      (held.content[1] & UINT32_MAX) != (key << 16 | generation)) {
    Fail("a page has bytes of another");
  }
  const Truth& truth = truth_[page.pin];
  if (truth.generation != generation) Fail("a page was pinned after its generation's fence");
  if (truth.epoch != reader.space.epoch) Fail("a page was pinned after its space was closed");
  reader.held.push_back(held);
}

void StepsWorld::ReleaseOne(int index) {
  Reader& reader = readers_[static_cast<size_t>(index)];
  std::swap(reader.held[random_.Below(reader.held.size())], reader.held.back());
  const Held held = reader.held.back();
  reader.held.pop_back();
  if (Read(shm::SlotOf(held.page.handle)) != held.content) Fail("a page changed while pinned");
  reader.lane->Release({&held.page, 1});
}

// ---- Accesses -----------------------------------------------------------------------------------

StepsWorld::Place StepsWorld::PlaceOf(const shm::Word& word) const {
  Place place;
  for (size_t i = 0; i < memory_.regions(); ++i) {
    const std::span<uint8_t> region = memory_.region(i);
    if (!Inside(region, word)) continue;
    PlaceInDirectory(region, word, &place);
    // A directory that is still being filled is seen by nobody.
    const auto& header = *reinterpret_cast<shm::DirectoryHeader*>(region.data());
    place.shared =
        index_ != nullptr && header.directory_id.load(kRelaxed) <= index_->directory_id();
    return place;
  }
  for (const PlainChannel& channel : channels_) {
    if (!Inside(channel.span(), word)) continue;
    PlaceInChannel(channel.channel(), word, &place);
    // Counters and rings are no part of the protocol.
    place.shared = place.kind != Kind::kOther;
    return place;
  }
  place.shared = true;  // A page.
  return place;
}

void StepsWorld::PlaceInDirectory(std::span<uint8_t> region, const shm::Word& word, Place* place) {
  auto& header = *reinterpret_cast<shm::DirectoryHeader*>(region.data());
  const auto offset = static_cast<size_t>(reinterpret_cast<const uint8_t*>(&word) - region.data());
  if (offset >= shm::kEntriesOffset) {
    const size_t within = (offset - shm::kEntriesOffset) % sizeof(shm::Entry);
    if (within == offsetof(shm::Entry, handle)) place->kind = Kind::kHandle;
  } else if (&word == &header.superseded) {
    place->kind = Kind::kSuperseded;
  } else if (offset >= offsetof(shm::DirectoryHeader, spaces)) {
    const size_t within =
        (offset - offsetof(shm::DirectoryHeader, spaces)) % sizeof(shm::SpaceLine);
    if (within == offsetof(shm::SpaceLine, epoch)) place->kind = Kind::kEpoch;
  } else if (offset >= offsetof(shm::DirectoryHeader, generations)) {
    place->kind = Kind::kGeneration;
  }
}

void StepsWorld::PlaceInChannel(shm::Channel& channel, const shm::Word& word, Place* place) {
  const auto offset = static_cast<size_t>(reinterpret_cast<const uint8_t*>(&word) -
                                          reinterpret_cast<const uint8_t*>(&channel));
  if (offset >= offsetof(shm::Channel, counters)) return;
  if (offset >= offsetof(shm::Channel, lines)) {
    const size_t line = (offset - offsetof(shm::Channel, lines)) / sizeof(shm::PinLine);
    place->kind = Kind::kPin;
    place->summary = &channel.summary[line / 64];
    place->mark = uint64_t{1} << line % 64;
  } else if (offset >= offsetof(shm::Channel, upper_summary)) {
    place->kind = Kind::kMark;
  }
}

void StepsWorld::BeforeAccess(const Place& place) {
  if (outside() || !place.shared) return;
  ++result_.accesses;
  fibers_.Yield();
}

uint64_t StepsWorld::Load(const shm::Word& word, std::memory_order order) {
  const Place place = PlaceOf(word);
  BeforeAccess(place);
  if (outside() || owner()) return word.load(kRelaxed);
  return LoadOfReader(reader(), place, word, order);
}

void StepsWorld::Store(shm::Word& word, uint64_t value, std::memory_order) {
  const Place place = PlaceOf(word);
  BeforeAccess(place);
  if (outside() || owner()) return word.store(value, kRelaxed);
  StoreOfReader(reader(), place, word, value);
}

uint64_t StepsWorld::FetchOr(shm::Word& word, uint64_t bits) {
  const Place place = PlaceOf(word);
  BeforeAccess(place);
  if (!outside() && place.kind == Kind::kMark) {
    if (omitted_ == Omitted::kMarkNotRaised) return word.load(kRelaxed);
    if (omitted_ == Omitted::kMarkRaisedAfterPin) {
      reader().delayed_marks.emplace_back(&word, bits);
      return word.load(kRelaxed);
    }
  }
  return word.fetch_or(bits, kRelaxed);
}

uint64_t StepsWorld::FetchAnd(shm::Word& word, uint64_t bits) {
  BeforeAccess(PlaceOf(word));
  return word.fetch_and(bits, kRelaxed);
}

bool StepsWorld::CompareExchange(shm::Word& word, uint64_t expected, uint64_t wanted) {
  const Place place = PlaceOf(word);
  BeforeAccess(place);
  if (omitted_ != Omitted::kPinStoredOverAnother && word.load(kRelaxed) != expected) return false;
  StoreOfReader(reader(), place, word, wanted);
  return true;
}

// ---- What is left out ---------------------------------------------------------------------------

uint64_t StepsWorld::LoadOfReader(Reader& reader, const Place& place, const shm::Word& word,
                                  std::memory_order order) {
  const bool after_pin = reader.pins_of_lookup > 0;
  const bool confirms = place.kind == Kind::kHandle && order == std::memory_order_seq_cst;
  switch (omitted_) {
    case Omitted::kHandleNotReadAgain:
      if (confirms) return reader.last_pin;
      break;
    case Omitted::kSupersededNotReadAgain:
      if (place.kind == Kind::kSuperseded && after_pin) return 0;
      break;
    case Omitted::kGenerationNotReadAgain:
      if (place.kind == Kind::kGeneration && after_pin) return reader.space.generation;
      break;
    case Omitted::kSpaceNotReadAgain:
      if (place.kind == Kind::kEpoch && after_pin) return reader.space.epoch;
      break;
    case Omitted::kPinAfterConfirmation:
      if (confirms && reader.delayed_pin.first != nullptr) {
        const uint64_t handle = word.load(kRelaxed);
        fibers_.Yield();
        StorePin(reader, *reader.delayed_pin.first, reader.delayed_pin.second);
        reader.delayed_pin = {};
        return handle;
      }
      break;
    case Omitted::kPinStoredOverAnother:
      if (place.kind == Kind::kPin) return 0;
      break;
    default:
      break;
  }
  return word.load(kRelaxed);
}

void StepsWorld::StorePin(Reader& reader, shm::Word& word, shm::Handle handle) {
  const shm::DirectoryHeader& header = published();
  truth_[&word] = {header.generations[Pager<StepsWorld>::kGeneration].load(kRelaxed),
                   header.spaces[reader.space.slot].epoch.load(kRelaxed)};
  word.store(handle, kRelaxed);
}

void StepsWorld::StoreOfReader(Reader& reader, const Place& place, shm::Word& word,
                               uint64_t value) {
  if (place.kind != Kind::kPin) return word.store(value, kRelaxed);
  if (value == 0) {
    word.store(0, kRelaxed);
    if (omitted_ == Omitted::kMarkClearedBeforeLastPin) {
      fibers_.Yield();
      place.summary->fetch_and(~place.mark, kRelaxed);
    }
    return;
  }
  ++reader.pins_of_lookup;
  reader.last_pin = value;
  if (omitted_ == Omitted::kPinAfterConfirmation) {
    reader.delayed_pin = {&word, value};
    return;
  }
  StorePin(reader, word, value);
  for (const auto& [mark, bits] : std::exchange(reader.delayed_marks, {})) {
    for (int i = 0; i < 20; ++i)
      fibers_.Yield();
    mark->fetch_or(bits, kRelaxed);
  }
}

}  // namespace terrace
