#include "daemon/engine/store/stored.h"

#include <algorithm>
#include <utility>

#include "base/check.h"
#include "daemon/engine/layout.h"

namespace terrace {
namespace {

// Among so many of the oldest the next victim is looked for: those being read or written are few.
constexpr uint64_t kVictimLooks = 16;
// Records looked at a turn for pages of spaces that are served no more.
constexpr size_t kSweepStep = 4096;
// Among so many of the oldest those of a wanted size are looked for.
constexpr uint64_t kPlaceLooks = 16384;
constexpr MonotonicNs kRetryNs = kNsPerSecond;
constexpr size_t kFirstHeads = 8;

}  // namespace

Stored::Stored(PageStore& store, Journal& journal, const Clock& clock)
    : store_(store), journal_(journal), clock_(clock), policy_(MakeLru()), shards_(kShards) {}

// ---- The start

Status Stored::Restore(std::vector<std::string>* problems) {
  ASSIGN_OR_RETURN(const std::vector<Journal::Record> records, journal_.Load(kSpaceRecordPrefix));
  for (const Journal::Record& entry : records) {
    const Result<SpaceRecord> record = DecodeSpaceRecord(entry.key, entry.value);
    if (!record) {
      problems->push_back(record.error().message());
      continue;
    }
    const SpaceNo space = NewSpace(*record, LayoutFingerprint(record->spec.layout));
    spaces_[space].on_record = StoredSpace::OnRecord::kYes;
    numbers_.emplace(record->id, space);
  }
  Unknown unknown;
  RETURN_IF_ERROR(store_.Restore([&](const StoredPage& page) { RestorePage(page, &unknown); }));
  // The store tells them in any order; the oldest leave first.
  std::vector<std::pair<int64_t, ItemId>> by_age(records_.size());
  for (ItemId id = 0; id < records_.size(); ++id)
    by_age[id] = {records_[id].committed_ms, id};
  std::sort(by_age.begin(), by_age.end());
  for (const auto& [committed_ms, id] : by_age) {
    InsertIntoPolicy(id);
    Use(records_[id].space);
  }
  sweep_left_ = records_.size();  // Some may be of unknown spaces.
  // Records whose last page left just before the end.
  for (SpaceNo space = 0; space < spaces_.size(); ++space)
    ForgetIfUnused(space);
  return {};
}

void Stored::RestorePage(const StoredPage& page, Unknown* unknown) {
  const auto number = numbers_.find(page.name.space);
  SpaceNo space = 0;
  const bool known = number != numbers_.end() && !spaces_[number->second].doomed;
  bool right = known && spaces_[number->second].layout == page.layout &&
               Find(page.name.space, page.name.part, page.name.key) == kNoRecord;
  if (right) {
    space = number->second;
    const KvLayout& layout = spaces_[space].record.spec.layout;
    const Result<uint32_t> bytes = PartBytes(layout, page.name.part);
    right = bytes && *bytes == page.bytes && page.valid_tokens <= layout.page_tokens;
  }
  if (!right) space = UnknownSpace(page, unknown);
  const ItemId id = NewRecord(space, page);
  records_[id].serial = page.serial;
  records_[id].state = StoredState::kStored;
}

SpaceNo Stored::UnknownSpace(const StoredPage& page, Unknown* unknown) {
  const auto [entry, added] = unknown->try_emplace({page.name.space, page.layout}, 0);
  if (!added) return entry->second;
  SpaceRecord record;
  record.id = page.name.space;
  entry->second = NewSpace(record, page.layout);
  // While pages of that id are being erased no others can be written.
  numbers_.try_emplace(record.id, entry->second);
  Doom(entry->second, StoredErasure::kUnknown);
  return entry->second;
}

// ---- Spaces

SpaceNo Stored::NewSpace(const SpaceRecord& record, uint64_t layout) {
  SpaceNo number = static_cast<SpaceNo>(spaces_.size());
  if (free_spaces_.empty()) {
    spaces_.emplace_back();
  } else {
    number = free_spaces_.back();
    free_spaces_.pop_back();
  }
  StoredSpace& space = spaces_[number];
  space = {};
  space.record = record;
  space.layout = layout;
  space.tenant = &tenants_[record.tenant];
  space.in_tenant = space.tenant->spaces.insert(space.tenant->spaces.end(), number);
  NoteEmpty(number);
  return number;
}

const StoredSpace* Stored::FindSpace(const Digest& id) const {
  const auto found = numbers_.find(id);
  return found == numbers_.end() ? nullptr : &spaces_[found->second];
}

std::optional<SpaceNo> Stored::AddSpace(const Digest& id, const std::string& tenant,
                                        const SpaceSpec& spec) {
  if (const auto found = numbers_.find(id); found != numbers_.end()) {
    if (spaces_[found->second].doomed) return std::nullopt;
    return found->second;
  }
  if (!MakeSpaceRoom(&tenants_[tenant])) return std::nullopt;
  const SpaceNo number =
      NewSpace({.id = id, .tenant = tenant, .spec = spec}, LayoutFingerprint(spec.layout));
  numbers_.emplace(id, number);
  return number;
}

bool Stored::MakeSpaceRoom(StoredTenant* tenant) {
  const auto full = [&] {
    return numbers_.size() >= kMaxSpaces || tenant->spaces.size() >= kMaxSpacesOfTenant;
  };
  if (full() && !empty_spaces_.empty()) ForgetIfUnused(*empty_spaces_.begin());
  if (!full()) return true;
  // One at a time.
  if (leaving_spaces_ > 0) return false;
  StoredTenant* from = tenant;
  if (tenant->spaces.size() < kMaxSpacesOfTenant) {
    for (auto& [name, other] : tenants_) {
      if (other.spaces.size() > from->spaces.size()) from = &other;
    }
  }
  const auto oldest = std::find_if(from->spaces.begin(), from->spaces.end(), [this](SpaceNo space) {
    return !spaces_[space].doomed && spaces_[space].pages > 0;
  });
  if (oldest != from->spaces.end()) Doom(*oldest, StoredErasure::kRoom);
  return false;
}

void Stored::NoteEmpty(SpaceNo number) {
  const StoredSpace& space = spaces_[number];
  if (space.pages == 0 && space.on_record != StoredSpace::OnRecord::kSaving) {
    empty_spaces_.insert(number);
  } else {
    empty_spaces_.erase(number);
  }
}

void Stored::Use(SpaceNo number) {
  const StoredSpace& space = spaces_[number];
  std::list<SpaceNo>& spaces = space.tenant->spaces;
  spaces.splice(spaces.end(), spaces, space.in_tenant);
}

Stored::Readiness Stored::Prepare(SpaceNo number) {
  StoredSpace& space = spaces_[number];
  if (space.on_record == StoredSpace::OnRecord::kYes) return Readiness::kReady;
  if (space.on_record == StoredSpace::OnRecord::kSaving) return Readiness::kWait;
  if (clock_.Now() < space.refused_until) return Readiness::kRefused;
  space.on_record = StoredSpace::OnRecord::kSaving;
  NoteEmpty(number);
  // Writes of the journal take effect in their order: also after a deletion that is not durable
  // yet.
  journal_.Put(SpaceRecordKey(space.record.id), EncodeSpaceRecord(space.record),
               [this, number](const Status& saved) {
                 StoredSpace& of = spaces_[number];
                 of.on_record =
                     saved.ok() ? StoredSpace::OnRecord::kYes : StoredSpace::OnRecord::kNo;
                 if (!saved.ok()) of.refused_until = clock_.Now() + kRetryNs;
                 NoteEmpty(number);
                 if (of.doomed) ForgetIfUnused(number);
                 waiter_->RecordAnswered(number);
                 waiter_->GoOn();
               });
  return Readiness::kWait;
}

void Stored::DoomSpace(const Digest& id) {
  const auto found = numbers_.find(id);
  if (found == numbers_.end() || spaces_[found->second].doomed) return;
  Doom(found->second, StoredErasure::kStale);
  ForgetIfUnused(found->second);
}

void Stored::Doom(SpaceNo space, StoredErasure why) {
  spaces_[space].doomed = true;
  spaces_[space].doom = why;
  if (why == StoredErasure::kRoom) ++leaving_spaces_;
  sweep_left_ = records_.size();
}

void Stored::ForgetIfUnused(SpaceNo number) {
  StoredSpace& space = spaces_[number];
  // Free numbers have no tenant.
  if (space.tenant == nullptr || space.pages > 0 ||
      space.on_record == StoredSpace::OnRecord::kSaving) {
    return;
  }
  if (space.on_record == StoredSpace::OnRecord::kYes) {
    // Lost, the deletion is made up for at the next start.
    journal_.Delete(SpaceRecordKey(space.record.id), [](const Status&) {});
  }
  if (space.doomed && space.doom == StoredErasure::kRoom) --leaving_spaces_;
  space.tenant->spaces.erase(space.in_tenant);
  empty_spaces_.erase(number);
  const auto named = numbers_.find(space.record.id);
  if (named != numbers_.end() && named->second == number) numbers_.erase(named);
  space = {};
  free_spaces_.push_back(number);
}

// ---- Pages

uint64_t Stored::HashOf(SpaceNo space, uint32_t part, const Digest& key) {
  const uint64_t place = uint64_t{space} << 32 | part;
  const uint64_t mixed = (key.Word(0) ^ place * 0x9e3779b97f4a7c15) * 0xd6e8feb86659fd93;
  return mixed ^ mixed >> 32;
}

ItemId Stored::Find(const Digest& id, uint32_t part, const Digest& key) const {
  const auto found = numbers_.find(id);
  if (found == numbers_.end()) return kNoRecord;
  const uint64_t hash = HashOf(found->second, part, key);
  const Shard& shard = ShardOf(hash);
  if (shard.heads.empty()) return kNoRecord;
  ItemId at = shard.heads[hash & (shard.heads.size() - 1)];
  for (; at != kNoRecord; at = records_[at].next) {
    const StoredRecord& record = records_[at];
    if (record.key == key && record.space == found->second && record.part == part) return at;
  }
  return kNoRecord;
}

bool Stored::Serves(ItemId id, uint64_t generation) const {
  return id != kNoRecord && Stays(id) && records_[id].generation == generation;
}

bool Stored::Writes(ItemId id, uint64_t generation) const {
  const StoredRecord& record = records_[id];
  return record.state == StoredState::kWriting && !record.doomed && !spaces_[record.space].doomed &&
         record.generation == generation;
}

StoredPage Stored::PageOf(ItemId id) const {
  const StoredRecord& record = records_[id];
  const StoredSpace& space = spaces_[record.space];
  return {.name = {.space = space.record.id, .key = record.key, .part = record.part},
          .place = record.place,
          .serial = record.serial,
          .bytes = record.bytes,
          .valid_tokens = record.valid_tokens,
          .generation = record.generation,
          .layout = space.layout,
          .parent = record.parent,
          .position = record.position,
          .item_class = record.item_class,
          .committed_ms = record.committed_ms};
}

void Stored::Touch(ItemId id) {
  policy_->Touch(id, clock_.Now());
  Use(records_[id].space);
}

ItemId Stored::NextVictim() {
  ItemId victim = kNoRecord;
  policy_->Victims(kVictimLooks, clock_.Now(), [&](ItemId id) {
    if (!Idle(records_[id])) return Policy::Verdict::kSkip;
    victim = id;
    return Policy::Verdict::kStop;
  });
  return victim;
}

ItemId Stored::NewRecord(SpaceNo space, const StoredPage& page) {
  ItemId id = free_;
  if (id == kNoRecord) {
    id = static_cast<ItemId>(records_.size());
    records_.emplace_back();
  } else {
    free_ = records_[id].next;
    --free_count_;
  }
  StoredRecord& record = records_[id];
  record = {.key = page.name.key,
            .parent = page.parent,
            .place = page.place,
            .generation = page.generation,
            .committed_ms = page.committed_ms,
            .space = space,
            .part = page.name.part,
            .bytes = page.bytes,
            .valid_tokens = page.valid_tokens,
            .position = page.position,
            // Of a header that was not written by us, perhaps.
            .item_class = std::min<uint8_t>(page.item_class, kItemClasses - 1)};
  const uint64_t hash = HashOf(record);
  Shard& shard = ShardOf(hash);
  if (++shard.records > shard.heads.size()) Grow(&shard);
  ItemId& head = shard.heads[hash & (shard.heads.size() - 1)];
  record.next = head;
  head = id;
  ++spaces_[space].pages;
  NoteEmpty(space);
  TotalOf(record).Add(store_.PlaceBytes(record.bytes));
  used_bytes_ += store_.PlaceBytes(record.bytes);
  return id;
}

void Stored::InsertIntoPolicy(ItemId id) {
  const StoredRecord& record = records_[id];
  policy_->Insert(id,
                  {.item_class = static_cast<ItemClass>(record.item_class), .bytes = record.bytes},
                  clock_.Now());
}

// One shard at a time, so that with millions of pages no call moves more than some thousands.
void Stored::Grow(Shard* shard) {
  std::vector<ItemId> heads(std::max(kFirstHeads, 2 * shard->heads.size()), kNoRecord);
  for (ItemId at : shard->heads) {
    while (at != kNoRecord) {
      const ItemId next = records_[at].next;
      ItemId& head = heads[HashOf(records_[at]) & (heads.size() - 1)];
      records_[at].next = head;
      head = at;
      at = next;
    }
  }
  shard->heads = std::move(heads);
}

void Stored::Remove(ItemId id) {
  StoredRecord& record = records_[id];
  const uint64_t hash = HashOf(record);
  Shard& shard = ShardOf(hash);
  ItemId* link = &shard.heads[hash & (shard.heads.size() - 1)];
  while (*link != id)
    link = &records_[*link].next;
  *link = record.next;
  --shard.records;
  Amount& total = TotalOf(record);
  --total.extents;
  total.bytes -= store_.PlaceBytes(record.bytes);
  used_bytes_ -= store_.PlaceBytes(record.bytes);
  const SpaceNo space = record.space;
  record = {};
  record.next = free_;
  free_ = id;
  ++free_count_;
  --spaces_[space].pages;
  NoteEmpty(space);
  ForgetIfUnused(space);
  waiter_->PageGone(id);
}

// ---- Their states

ItemId Stored::BeginWrite(SpaceNo space, const StoredPage& page) {
  TERRACE_CHECK(spaces_[space].on_record == StoredSpace::OnRecord::kYes);
  const ItemId id = NewRecord(space, page);
  InsertIntoPolicy(id);
  Use(space);
  records_[id].state = StoredState::kWriting;
  return id;
}

void Stored::Written(ItemId id, uint64_t serial) {
  StoredRecord& record = records_[id];
  TERRACE_CHECK(record.state == StoredState::kWriting);
  record.serial = serial;
  record.state = StoredState::kStored;
  if (record.doomed) StartErasing(id);
}

void Stored::WriteFailed(ItemId id) {
  TERRACE_CHECK(records_[id].state == StoredState::kWriting);
  policy_->Erase(id);
  Remove(id);
}

void Stored::BeginRead(ItemId id) {
  TERRACE_CHECK(records_[id].state == StoredState::kStored);
  ++records_[id].reads;
}

void Stored::EndRead(ItemId id) {
  StoredRecord& record = records_[id];
  TERRACE_CHECK(record.state == StoredState::kStored && record.reads > 0);
  if (--record.reads == 0 && record.doomed) StartErasing(id);
}

void Stored::Erase(ItemId id, StoredErasure why) {
  StoredRecord& record = records_[id];
  if (record.doomed) return;
  record.doomed = true;
  record.why = why;
  if (Idle(record)) StartErasing(id);
}

void Stored::StartErasing(ItemId id) {
  records_[id].state = StoredState::kErasing;
  policy_->Erase(id);
  erasing_bytes_ += store_.PlaceBytes(records_[id].bytes);
  ++erasing_of_[records_[id].bytes];
  to_erase_.push_back(id);
}

// ---- Time

bool Stored::Turn(const Watermarks& marks) {
  const bool sweeping = Sweep();
  MakeRoom(marks);
  MakePlaces();
  SendErasures();
  return sweeping;
}

// True while there is more to look at now.
bool Stored::Sweep() {
  for (size_t looks = 0; looks < kSweepStep && sweep_left_ > 0 && !BacklogFull(); ++looks) {
    const ItemId id = sweep_;
    sweep_ = (sweep_ + 1) % static_cast<ItemId>(records_.size());
    --sweep_left_;
    const StoredRecord& record = records_[id];
    if (record.state == StoredState::kFree || !spaces_[record.space].doomed) continue;
    Erase(id, spaces_[record.space].doom);
  }
  return sweep_left_ > 0 && !BacklogFull();
}

// What devices that take no write hold is no reason to erase what others hold: of what is known to
// be there and what the devices say is used the lesser counts.
void Stored::MakeRoom(const Watermarks& marks) {
  const uint64_t capacity = store_.capacity_bytes();
  const uint64_t taken = capacity - std::min(capacity, store_.free_bytes());
  const uint64_t in_use = std::min(taken, used_bytes_);
  uint64_t used = in_use - std::min(in_use, erasing_bytes_);
  if (used > marks.high_bytes) making_room_ = true;
  if (used <= marks.low_bytes) making_room_ = false;
  if (!making_room_ || BacklogFull()) return;
  std::vector<ItemId> victims;
  policy_->Victims(2 * kErasedATurn, clock_.Now(), [&](ItemId id) {
    if (used <= marks.low_bytes || victims.size() == kErasedATurn) return Policy::Verdict::kStop;
    if (records_[id].reads > 0) return Policy::Verdict::kInUse;
    if (!Idle(records_[id])) return Policy::Verdict::kSkip;
    victims.push_back(id);
    used -= std::min(used, store_.PlaceBytes(records_[id].bytes));
    return Policy::Verdict::kTake;
  });
  for (const ItemId id : victims)
    Erase(id, StoredErasure::kRoom);
}

void Stored::WantPlaces(uint32_t bytes, size_t count) {
  size_t& wanted = wanted_places_[bytes];
  wanted = std::min(wanted + count, kErasedATurn);
}

// A device has its places by size: it may have room and none of this size.
void Stored::MakePlaces() {
  if (wanted_places_.empty() || BacklogFull()) return;
  std::map<uint32_t, size_t> wanted = std::exchange(wanted_places_, {});
  // What is leaving already makes room for those that ask again meanwhile.
  for (auto at = wanted.begin(); at != wanted.end();) {
    const auto leaving = erasing_of_.find(at->first);
    at->second -= leaving == erasing_of_.end() ? 0 : std::min(at->second, leaving->second);
    at = at->second == 0 ? wanted.erase(at) : std::next(at);
  }
  std::vector<ItemId> victims;
  policy_->Victims(kPlaceLooks, clock_.Now(), [&](ItemId id) {
    if (wanted.empty() || victims.size() == kErasedATurn) return Policy::Verdict::kStop;
    const auto of_size = wanted.find(records_[id].bytes);
    if (of_size == wanted.end() || !Idle(records_[id])) return Policy::Verdict::kSkip;
    victims.push_back(id);
    if (--of_size->second == 0) wanted.erase(of_size);
    return Policy::Verdict::kTake;
  });
  for (const ItemId id : victims)
    Erase(id, StoredErasure::kRoom);
}

void Stored::SendErasures() {
  if (clock_.Now() < retry_at_) return;
  while (!to_erase_.empty() && erasing_ < kMaxErasing) {
    std::vector<ItemId> ids;
    std::vector<StoredPage> pages;
    while (!to_erase_.empty() && ids.size() < kErasedATurn) {
      ids.push_back(to_erase_.front());
      pages.push_back(PageOf(to_erase_.front()));
      to_erase_.pop_front();
    }
    erasing_ += ids.size();
    store_.Erase(std::move(pages), [this, ids](const Status& status) { Erased(ids, status); });
  }
}

void Stored::Erased(const std::vector<ItemId>& ids, const Status& status) {
  erasing_ -= ids.size();
  if (!status.ok()) {
    // They may still be there: nothing else can have their names before they are gone.
    to_erase_.insert(to_erase_.end(), ids.begin(), ids.end());
    retry_at_ = clock_.Now() + kRetryNs;
    return;
  }
  std::set<uint32_t> sizes;
  for (const ItemId id : ids) {
    const uint64_t bytes = store_.PlaceBytes(records_[id].bytes);
    sizes.insert(records_[id].bytes);
    erasing_bytes_ -= bytes;
    if (--erasing_of_.at(records_[id].bytes) == 0) erasing_of_.erase(records_[id].bytes);
    erased_[static_cast<size_t>(records_[id].why)].Add(bytes);
    Remove(id);
  }
  for (const uint32_t size : sizes)
    waiter_->PlacesMade(size);
  waiter_->GoOn();
}

// ---- Figures

uint64_t Stored::bytes() const {
  // A link of the policy has 12 bytes.
  uint64_t bytes = records_.size() * (sizeof(StoredRecord) + 12);
  for (const Shard& shard : shards_)
    bytes += shard.heads.size() * sizeof(ItemId);
  return bytes;
}

Status Stored::CheckInvariants() const {
  std::map<std::string, std::array<Amount, kItemClasses>> sums;
  std::vector<uint64_t> of_space(spaces_.size());
  uint64_t used = 0;
  uint64_t erasing = 0;
  uint64_t erasing_bytes = 0;
  std::map<uint32_t, size_t> erasing_of;
  uint64_t pages_counted = 0;
  for (ItemId id = 0; id < records_.size(); ++id) {
    const StoredRecord& record = records_[id];
    if (record.state == StoredState::kFree) continue;
    ++pages_counted;
    const StoredSpace& space = spaces_[record.space];
    const uint64_t bytes = store_.PlaceBytes(record.bytes);
    sums[space.record.tenant][record.item_class].Add(bytes);
    ++of_space[record.space];
    used += bytes;
    if (record.state == StoredState::kErasing) {
      ++erasing;
      erasing_bytes += bytes;
      ++erasing_of[record.bytes];
    }
    const auto number = numbers_.find(space.record.id);
    const bool named = number != numbers_.end() && number->second == record.space;
    if (named && Find(space.record.id, record.part, record.key) != id) {
      return Status(Code::kInternal, "a stored page is not found by its name");
    }
  }
  if (used != used_bytes_ || erasing != this->erasing() || erasing_bytes != erasing_bytes_ ||
      erasing_of != erasing_of_ || pages_counted != pages()) {
    return Status(Code::kInternal, "stored pages are not what is counted of them");
  }
  for (const auto& [tenant, of] : tenants_) {
    const auto& totals = of.totals;
    for (int c = 0; c < kItemClasses; ++c) {
      if (sums[tenant][c].extents != totals[c].extents ||
          sums[tenant][c].bytes != totals[c].bytes) {
        return Status(Code::kInternal, "tenant '" + tenant + "' has other stored pages than told");
      }
    }
  }
  for (SpaceNo space = 0; space < spaces_.size(); ++space) {
    if (of_space[space] != spaces_[space].pages) {
      return Status(Code::kInternal, "a space has other stored pages than told");
    }
  }
  return {};
}

}  // namespace terrace
