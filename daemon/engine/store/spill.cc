#include "daemon/engine/store/spill.h"

#include <algorithm>
#include <utility>

#include "base/check.h"

namespace terrace {
namespace {

// Items looked at by one Pump, of which those that wait for the journal or an erasure are put back.
constexpr size_t kLooks = 2048;
// Pages of one call of the store.
constexpr size_t kPagesACall = 512;

}  // namespace

Spill::Spill(const StoreOptions& options, const StoreParts& parts)
    : options_(options),
      parts_(parts),
      budget_(options.write_bytes_per_day, options.write_burst_bytes, parts.clock.Now()) {}

const Space* Spill::SpaceOf(TenantId tenant, const PageName& name) const {
  return parts_.catalog.At(tenant).FindSpace(name.space_slot, name.space_epoch);
}

Stored::Watermarks Spill::watermarks() const {
  const uint64_t percent = parts_.store.capacity_bytes() / 100;
  return {.high_bytes = percent * options_.high_percent,
          .low_bytes = percent * options_.low_percent};
}

// ---- What is to be written

Unspilled Spill::Judge(SlotRef slot) {
  AdmissionFigures figures;
  figures.free_bytes = parts_.store.free_bytes();
  figures.device_writes = figures.free_bytes > 0;
  figures.capacity_bytes = parts_.store.capacity_bytes();
  figures.place_bytes = PlaceBytes(slot);
  figures.high_bytes = watermarks().high_bytes;
  figures.queued_pages = queue_.size();
  figures.max_queued_pages = options_.max_queued_pages;
  figures.budget_bytes = budget_left();
  figures.frequency = parts_.sketch.Estimate(SketchItem(slot->name.key.Word(0), slot->name.part));
  const uint64_t used =
      figures.capacity_bytes - std::min(figures.capacity_bytes, figures.free_bytes);
  if (used + figures.place_bytes > figures.high_bytes) {
    if (const ItemId victim = parts_.stored.NextVictim(); victim != kNoRecord) {
      const StoredRecord& record = parts_.stored.at(victim);
      figures.victim_frequency =
          parts_.sketch.Estimate(SketchItem(record.key.Word(0), record.part));
    }
  }
  return Admit(figures);
}

Spill::Item Spill::ItemOf(SlotRef slot) {
  Item item;
  item.tenant = slot.slab->tenant();
  item.extent = shm::ExtentOf(slot.slab->HandleOf(slot.index));
  item.name = slot->name;
  item.charged_bytes = Paid(slot) ? 0 : PlaceBytes(slot);
  budget_.Take(item.charged_bytes, parts_.clock.Now());
  slot->queued = true;
  return item;
}

// Whether the budget was charged for the page already: it waits to be written, or is.
bool Spill::Paid(SlotRef slot) const {
  if (slot->queued) return true;
  const Space* space = SpaceOf(slot.slab->tenant(), slot->name);
  if (space == nullptr) return false;
  const ItemId id = parts_.stored.Find(space->id, slot->name.part, slot->name.key);
  return id != kNoRecord && parts_.stored.at(id).state == StoredState::kWriting &&
         !parts_.stored.at(id).doomed;
}

void Spill::Offer(SlotRef slot) {
  parts_.sketch.Add(SketchItem(slot->name.key.Word(0), slot->name.part));
  if (slot->queued || Has(slot)) return;
  if (const Unspilled why = Judge(slot); why != Unspilled::kNone) {
    ++unspilled_[static_cast<size_t>(why)];
    return;
  }
  queue_.push_back(ItemOf(slot));
}

bool Spill::Save(SlotRef slot, bool regardless) {
  if (slot->queued || slot->transfers > 0) return true;
  Unspilled why = Judge(slot);
  if (regardless && why == Unspilled::kRare) why = Unspilled::kNone;
  if (why != Unspilled::kNone) {
    ++unspilled_[static_cast<size_t>(why)];
    return false;
  }
  // It is the next to leave: before what was committed lately.
  queue_.push_front(ItemOf(slot));
  return true;
}

void Spill::Persist(SlotRef slot, Saved saved) {
  Unspilled why = Judge(slot);
  if (why == Unspilled::kBudget && Paid(slot)) why = Unspilled::kNone;
  if (why != Unspilled::kNone && why != Unspilled::kRare) {
    ++unspilled_[static_cast<size_t>(why)];
    return saved(why == Unspilled::kDevice ? Code::kUnavailable : Code::kExhausted);
  }
  Item item = ItemOf(slot);
  item.saved = std::move(saved);
  item.held = true;
  ++slot->holds;
  queue_.push_front(std::move(item));
}

void Spill::Lost(SlotRef slot) {
  parts_.catalog.At(slot.slab->tenant()).counts.evicted_unstored.Add(slot.slab->shape().page_bytes);
}

bool Spill::Has(SlotRef slot) const {
  const Space* space = SpaceOf(slot.slab->tenant(), slot->name);
  if (space == nullptr) return false;
  const ItemId id = parts_.stored.Find(space->id, slot->name.part, slot->name.key);
  return parts_.stored.Serves(id, slot->facts.generation);
}

// ---- Writing

bool Spill::Pump() {
  std::deque<Item> waiting;
  std::vector<Ready> ready;
  uint64_t bytes = 0;
  for (size_t looks = 0; looks < kLooks && !queue_.empty(); ++looks) {
    if (writing_pages_ + ready.size() >= options_.max_writing_pages ||
        writing_bytes_ + bytes >= options_.max_writing_bytes || ready.size() == kPagesACall) {
      break;
    }
    Item item = std::move(queue_.front());
    queue_.pop_front();
    Ready one;
    const Turned turned = Prepare(&item, &one);
    if (turned == Turned::kWaits) waiting.push_back(std::move(item));
    if (turned != Turned::kReady) continue;
    bytes += one.bytes;
    ready.push_back(one);
  }
  // To the back, so that those whose turn does not come for long keep nobody waiting.
  queue_.insert(queue_.end(), std::make_move_iterator(waiting.begin()),
                std::make_move_iterator(waiting.end()));
  const bool more = ready.size() == kPagesACall;
  if (!ready.empty()) Start(ready);
  return more;
}

Spill::Turned Spill::Prepare(Item* item, Ready* ready) {
  const std::optional<SlotRef> slot = parts_.memory.FindSlot(item->tenant, item->extent);
  const Space* space = SpaceOf(item->tenant, item->name);
  const bool there = slot && (*slot)->state == SlotState::kLinked && (*slot)->name == item->name;
  if (!there || space == nullptr) return Refuse(item, Unspilled::kGone, Code::kNotFound);
  const PageFacts& facts = (*slot)->facts;
  const TenantIndex& index = *parts_.catalog.At(item->tenant).index;
  if (facts.generation != index.generation(space->generation_index)) {
    return Refuse(item, Unspilled::kGone, Code::kStale);
  }
  const ItemId id = parts_.stored.Find(space->id, item->name.part, item->name.key);
  if (id != kNoRecord) {
    const StoredRecord& record = parts_.stored.at(id);
    if (record.state == StoredState::kWriting && !record.doomed) {
      if (item->saved) writes_.at(id).saved.push_back(std::exchange(item->saved, {}));
      EndItem(item);
      return Turned::kOver;
    }
    if (parts_.stored.Serves(id, facts.generation)) {
      EndItem(item);
      if (item->saved) item->saved(Code::kOk);
      return Turned::kOver;
    }
    // Another page of that name is on its way out: this one has to wait until it is gone.
    parts_.stored.Erase(id, StoredErasure::kStale);
    return Turned::kWaits;
  }
  SpaceNo number = 0;
  const Turned turned = PrepareSpace(*space, item->tenant, item, &number);
  if (turned != Turned::kReady) return turned;
  // In the catalogue from here on: the next in the queue may be the same page.
  ready->slot = *slot;
  ready->bytes = slot->slab->shape().page_bytes;
  ready->charged_bytes = item->charged_bytes;
  ready->id = parts_.stored.BeginWrite(
      number, {.name = {.space = space->id, .key = item->name.key, .part = item->name.part},
               .bytes = ready->bytes,
               .valid_tokens = facts.valid_tokens,
               .generation = facts.generation,
               .parent = facts.parent,
               .position = facts.position,
               .item_class = static_cast<uint8_t>(ItemClass::kKv),
               .committed_ms = facts.committed_ms});
  Writing& writing = writes_[ready->id];
  writing.tenant = item->tenant;
  writing.name = item->name;
  if (item->saved) writing.saved.push_back(std::exchange(item->saved, {}));
  EndItem(item);
  return Turned::kReady;
}

Spill::Turned Spill::PrepareSpace(const Space& space, TenantId tenant, Item* item,
                                  SpaceNo* number) {
  const std::optional<SpaceNo> added = parts_.stored.AddSpace(
      {.id = space.id, .tenant = parts_.catalog.At(tenant).name, .spec = space.spec});
  if (!added) return Refuse(item, Unspilled::kSpace, Code::kUnavailable);
  *number = *added;
  switch (parts_.stored.Prepare(*added)) {
    case Stored::Readiness::kReady:
      return Turned::kReady;
    case Stored::Readiness::kWait:
      return Turned::kWaits;
    case Stored::Readiness::kRefused:
      break;
  }
  return Refuse(item, Unspilled::kSpace, Code::kUnavailable);
}

// The slot is another page's by now, perhaps: then the mark on it is that page's own.
void Spill::EndItem(Item* item) {
  const std::optional<SlotRef> slot = parts_.memory.FindSlot(item->tenant, item->extent);
  if (slot && (*slot)->name == item->name) (*slot)->queued = false;
  if (item->held) {
    TERRACE_CHECK(slot.has_value() && (*slot)->holds > 0);
    --(*slot)->holds;
    item->held = false;
  }
}

Spill::Turned Spill::Refuse(Item* item, Unspilled why, Code code) {
  ++unspilled_[static_cast<size_t>(why)];
  budget_.GiveBack(item->charged_bytes);
  EndItem(item);
  if (item->saved) item->saved(code);
  return Turned::kOver;
}

void Spill::Start(const std::vector<Ready>& ready) {
  std::vector<PageStore::PageWrite> writes;
  const auto started = std::make_shared<std::vector<Ready>>();
  for (size_t first = 0; first < ready.size();) {
    const uint32_t bytes = ready[first].bytes;
    size_t end = first + 1;
    while (end < ready.size() && ready[end].bytes == bytes)
      ++end;
    const std::vector<PlaceId> places = parts_.store.Allocate(bytes, end - first);
    // A device that takes no write now has no place for anything, whatever leaves it.
    if (places.size() < end - first && parts_.store.free_bytes() > 0) {
      parts_.stored.WantPlaces(bytes, end - first - places.size());
    }
    for (size_t i = first; i < end; ++i) {
      if (i - first >= places.size()) {
        NoPlace(ready[i]);
        continue;
      }
      const SlotRef slot = ready[i].slot;
      parts_.stored.SetPlace(ready[i].id, places[i - first]);
      ++slot->transfers;
      ++writing_pages_;
      writing_bytes_ += bytes;
      started->push_back(ready[i]);
      writes.push_back(
          {.page = parts_.stored.PageOf(ready[i].id),
           .bytes =
               parts_.host.Bytes(slot.slab->arena()).subspan(uint64_t{slot.index} * bytes, bytes)});
    }
    first = end;
  }
  if (writes.empty()) return;
  parts_.store.Write(
      std::move(writes), parts_.clock.Now() + options_.write_deadline_ms * kNsPerMs,
      [this, started](size_t i, const Result<uint64_t>& serial) {
        Written((*started)[i].id, serial);
      },
      [this, started](size_t i) { Ended((*started)[i].slot); });
}

void Spill::NoPlace(const Ready& ready) {
  ++unspilled_[static_cast<size_t>(Unspilled::kPlace)];
  budget_.GiveBack(ready.charged_bytes);
  parts_.stored.WriteFailed(ready.id);
  auto entry = writes_.extract(ready.id);
  for (const Saved& saved : entry.mapped().saved)
    saved(Code::kExhausted);
}

void Spill::Written(ItemId id, const Result<uint64_t>& serial) {
  auto entry = writes_.extract(id);
  TERRACE_CHECK(!entry.empty());
  Writing& writing = entry.mapped();
  Code code = Code::kOk;
  if (!serial) {
    code = serial.error().code() == Code::kExhausted ? Code::kExhausted : Code::kUnavailable;
    ++unspilled_[static_cast<size_t>(Unspilled::kFailed)];
    parts_.stored.WriteFailed(id);
  } else {
    const StoredRecord& record = parts_.stored.at(id);
    spilled_.Add(record.bytes);
    const bool dropped = record.doomed;
    const bool right = StillRight(writing, record.generation);
    parts_.stored.Written(id, *serial);
    if (!right) parts_.stored.Erase(id, StoredErasure::kStale);
    if (dropped) code = Code::kNotFound;
    if (!right) code = Code::kStale;
  }
  for (const Saved& saved : writing.saved)
    saved(code);
}

// A space that nobody has open keeps its pages: they are found when it is opened again.
bool Spill::StillRight(const Writing& writing, uint64_t generation) const {
  const Space* space = SpaceOf(writing.tenant, writing.name);
  const TenantIndex& index = *parts_.catalog.At(writing.tenant).index;
  return space == nullptr || index.generation(space->generation_index) == generation;
}

void Spill::Ended(SlotRef slot) {
  TERRACE_CHECK(slot->transfers > 0);
  --slot->transfers;
  --writing_pages_;
  writing_bytes_ -= slot.slab->shape().page_bytes;
  if (writing_pages_ * 2 < options_.max_writing_pages) (void)Pump();
}

}  // namespace terrace
