#include "daemon/engine/store/spill.h"

#include <algorithm>
#include <iterator>
#include <utility>

#include "base/check.h"

namespace terrace {
namespace {

// Items looked at by one Pump, and deadlines by one turn.
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
  figures.device_writes = parts_.store.writable();
  figures.capacity_bytes = parts_.store.capacity_bytes();
  figures.place_bytes = PlaceBytes(slot);
  figures.high_bytes = watermarks().high_bytes;
  figures.queued_pages = queued_pages_;
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

// A page is counted once, however often it is tried.
void Spill::Count(SlotRef slot, Unspilled why) {
  if (!std::exchange(slot->unspilled, true)) ++unspilled_[static_cast<size_t>(why)];
}

Spill::Place Spill::Add(SlotRef slot) {
  const Place item = Enqueue(slot);
  budget_.Take(item->charged_bytes, parts_.clock.Now());
  SetDeadline(item, NextDeadline());
  return item;
}

Spill::Place Spill::Enqueue(SlotRef slot) {
  slot->queued = true;
  queue_.emplace_front();
  const Place item = queue_.begin();
  item->in = &queue_;
  item->tenant = slot.slab->tenant();
  item->extent = shm::ExtentOf(slot.slab->HandleOf(slot.index));
  item->name = slot->name;
  item->charged_bytes = PlaceBytes(slot);
  item->serial = ++last_serial_;
  by_extent_[item->extent] = item;
  ++queued_pages_;
  return item;
}

void Spill::SetDeadline(Place item, MonotonicNs deadline) {
  deadlines_.erase({item->deadline, item->serial});
  item->late = false;
  item->deadline = deadline;
  deadlines_.emplace(std::pair(item->deadline, item->serial), item);
}

void Spill::Offer(SlotRef slot) {
  parts_.sketch.Add(SketchItem(slot->name.key.Word(0), slot->name.part));
  if (slot->queued || Has(slot)) return;
  if (const Unspilled why = Judge(slot); why != Unspilled::kNone) return Count(slot, why);
  queue_.splice(queue_.end(), queue_, Add(slot));
}

Saving Spill::Save(SlotRef slot, bool regardless) {
  if (slot->queued) {
    return by_extent_.at(shm::ExtentOf(slot.slab->HandleOf(slot.index)))->late ? Saving::kNotThisOne
                                                                               : Saving::kUnderWay;
  }
  Unspilled why = Judge(slot);
  if (regardless && why == Unspilled::kRare) why = Unspilled::kNone;
  if (why == Unspilled::kNone) {
    // It is the next to leave: before what was committed lately.
    (void)Add(slot);
    return Saving::kUnderWay;
  }
  Count(slot, why);
  return why == Unspilled::kRare ? Saving::kNotThisOne : Saving::kNoneNow;
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

// ---- Who waits until pages are durable

void Spill::Persist(ClientId client, SlotRef slot, Saved saved) {
  Waiter waiter{.client = client, .saved = std::move(saved)};
  if (slot->queued) {
    const Place item = by_extent_.at(shm::ExtentOf(slot.slab->HandleOf(slot.index)));
    Wait(item, slot, std::move(waiter));
    SetDeadline(item, NextDeadline());
    if (item->in == &queue_) queue_.splice(queue_.begin(), queue_, item);
    return;
  }
  if (Writing* writing = WritingOf(slot)) {
    writing->deadline = NextDeadline();
    writing->waiters.push_back(std::move(waiter));
    return;
  }
  const Unspilled why = Judge(slot);
  if (why != Unspilled::kNone && why != Unspilled::kRare) {
    Count(slot, why);
    return waiter.saved(why == Unspilled::kDevice ? Code::kUnavailable : Code::kExhausted);
  }
  Wait(Add(slot), slot, std::move(waiter));
}

Spill::Writing* Spill::WritingOf(SlotRef slot) {
  const Space* space = SpaceOf(slot.slab->tenant(), slot->name);
  if (space == nullptr) return nullptr;
  const ItemId id = parts_.stored.Find(space->id, slot->name.part, slot->name.key);
  if (id == kNoRecord || !parts_.stored.Writes(id, slot->facts.generation)) return nullptr;
  return &writes_.at(id);
}

void Spill::Wait(Place item, SlotRef slot, Waiter waiter) {
  if (item->waiters.empty()) ++slot->holds;
  item->waiters.push_back(std::move(waiter));
}

Spill::Waiters Spill::TakeWaiters(Place item) {
  if (item->waiters.empty()) return {};
  const std::optional<SlotRef> slot = parts_.memory.slabs().FindSlot(item->tenant, item->extent);
  TERRACE_CHECK(slot.has_value() && (*slot)->holds > 0);
  --(*slot)->holds;
  return std::exchange(item->waiters, {});
}

void Spill::Tell(const Waiters& waiters, Code code) {
  for (const Waiter& waiter : waiters)
    waiter.saved(code);
}

void Spill::ClientGone(ClientId client) {
  Waiters gone;
  const auto take = [&](Waiters* waiters) {
    const auto others = std::stable_partition(waiters->begin(), waiters->end(),
                                              [&](const Waiter& w) { return w.client != client; });
    std::move(others, waiters->end(), std::back_inserter(gone));
    waiters->erase(others, waiters->end());
  };
  // Nobody waits for what is late.
  for (const auto& [deadline, item] : deadlines_) {
    Waiters waiters = TakeWaiters(item);
    take(&waiters);
    if (waiters.empty()) continue;
    ++(*parts_.memory.slabs().FindSlot(item->tenant, item->extent))->holds;
    item->waiters = std::move(waiters);
  }
  for (auto& [id, writing] : writes_)
    take(&writing.waiters);
  Tell(gone, Code::kUnavailable);
}

bool Spill::Turn() {
  const MonotonicNs now = parts_.clock.Now();
  for (size_t i = 0; i < kLooks && !deadlines_.empty(); ++i) {
    const auto [deadline, item] = *deadlines_.begin();
    if (deadline.first > now) break;
    deadlines_.erase(deadlines_.begin());
    if (item->placeless) {
      (void)Refuse(item, Unspilled::kPlace, Code::kExhausted);
      continue;
    }
    item->late = true;
    Tell(TakeWaiters(item), Code::kUnavailable);
  }
  RetryPlaces(now);
  return Pump();
}

// ---- Parking

void Spill::Move(Place item, Queue* to) {
  to->splice(to->begin(), *item->in, item);
  item->in = to;
}

Spill::Turned Spill::Park(Place item, Cause cause) {
  Move(item, &parked_[cause]);
  return Turned::kParked;
}

void Spill::Unpark(Cause cause) {
  auto entry = parked_.extract(cause);
  if (entry.empty()) return;
  // Parked one before the other, they come to the head of the queue in the order they left it.
  Queue& parked = entry.mapped();
  while (!parked.empty())
    Move(parked.begin(), &queue_);
}

void Spill::RetryPlaces(MonotonicNs now) {
  if (placeless_sizes_.empty() || now < places_again_) return;
  places_again_ = now + kPlacesAgainNs;
  for (const uint32_t size : std::exchange(placeless_sizes_, {}))
    Unpark(OfPlaces(size));
}

// ---- Writing

bool Spill::HasRoom(size_t pages, uint64_t bytes) const {
  return writing_pages_ + pages < options_.max_writing_pages &&
         writing_bytes_ + bytes < options_.max_writing_bytes &&
         overdue_pages_ < kOverdueShare * options_.max_writing_pages;
}

bool Spill::Pump() {
  std::vector<Ready> ready;
  uint64_t bytes = 0;
  for (size_t looks = 0; looks < kLooks && !queue_.empty(); ++looks) {
    if (!HasRoom(ready.size(), bytes) || ready.size() == kPagesACall) break;
    Ready one;
    if (Prepare(queue_.begin(), &one) != Turned::kReady) continue;
    bytes += one.bytes;
    ready.push_back(one);
  }
  if (!ready.empty()) Start(ready);
  return !queue_.empty() && HasRoom(0, 0);
}

Spill::Turned Spill::Prepare(Place item, Ready* ready) {
  const std::optional<SlotRef> slot = parts_.memory.slabs().FindSlot(item->tenant, item->extent);
  const Space* space = SpaceOf(item->tenant, item->name);
  const bool there = slot && (*slot)->state == SlotState::kLinked && (*slot)->name == item->name;
  if (!there || space == nullptr) return Refuse(item, Unspilled::kGone, Code::kNotFound);
  const PageFacts& facts = (*slot)->facts;
  const TenantIndex& index = *parts_.catalog.At(item->tenant).index;
  if (facts.generation != index.generation(space->generation_index)) {
    return Refuse(item, Unspilled::kGone, Code::kStale);
  }
  const ItemId copy = parts_.stored.Find(space->id, item->name.part, item->name.key);
  if (copy != kNoRecord) return PrepareCopy(item, facts, copy);
  SpaceNo number = 0;
  const Turned turned = PrepareSpace(item, *space, &number);
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
  writing.deadline = item->deadline;
  writing.waiters = End(item);
  return Turned::kReady;
}

// There is a page of that name already.
Spill::Turned Spill::PrepareCopy(Place item, const PageFacts& facts, ItemId id) {
  if (parts_.stored.Writes(id, facts.generation)) {
    budget_.GiveBack(item->charged_bytes);
    Writing& writing = writes_.at(id);
    writing.deadline = std::max(writing.deadline, item->deadline);
    Waiters waiters = End(item);
    std::move(waiters.begin(), waiters.end(), std::back_inserter(writing.waiters));
    return Turned::kOver;
  }
  if (parts_.stored.Serves(id, facts.generation)) {
    budget_.GiveBack(item->charged_bytes);
    Tell(End(item), Code::kOk);
    return Turned::kOver;
  }
  // It is on its way out: this one has to wait until it is gone.
  parts_.stored.Erase(id, StoredErasure::kStale);
  return Park(item, OfPage(id));
}

Spill::Turned Spill::PrepareSpace(Place item, const Space& space, SpaceNo* number) {
  const std::optional<SpaceNo> added =
      parts_.stored.AddSpace(space.id, parts_.catalog.At(item->tenant).name, space.spec);
  if (!added) return Refuse(item, Unspilled::kSpace, Code::kUnavailable);
  *number = *added;
  switch (parts_.stored.Prepare(*added)) {
    case Stored::Readiness::kReady:
      return Turned::kReady;
    case Stored::Readiness::kWait:
      return Park(item, OfSpace(*added));
    case Stored::Readiness::kRefused:
      break;
  }
  return Refuse(item, Unspilled::kSpace, Code::kUnavailable);
}

Spill::Waiters Spill::End(Place item) {
  Waiters waiters = TakeWaiters(item);
  const auto latest = by_extent_.find(item->extent);
  // The slot has a later item, perhaps, or is another page's: then the mark on it is not this
  // one's.
  if (latest != by_extent_.end() && latest->second == item) {
    const std::optional<SlotRef> slot = parts_.memory.slabs().FindSlot(item->tenant, item->extent);
    if (slot && (*slot)->name == item->name) (*slot)->queued = false;
    by_extent_.erase(latest);
  }
  deadlines_.erase({item->deadline, item->serial});
  --queued_pages_;
  item->in->erase(item);
  return waiters;
}

Spill::Turned Spill::Refuse(Place item, Unspilled why, Code code) {
  const std::optional<SlotRef> slot = parts_.memory.slabs().FindSlot(item->tenant, item->extent);
  if (slot && (*slot)->name == item->name) {
    Count(*slot, why);
  } else {
    ++unspilled_[static_cast<size_t>(why)];
  }
  budget_.GiveBack(item->charged_bytes);
  Tell(End(item), code);
  return Turned::kOver;
}

void Spill::Start(const std::vector<Ready>& ready) {
  std::vector<PageStore::PageWrite> writes;
  const auto batch = std::make_shared<Batch>();
  for (size_t first = 0; first < ready.size();) {
    const uint32_t bytes = ready[first].bytes;
    size_t end = first + 1;
    while (end < ready.size() && ready[end].bytes == bytes)
      ++end;
    const std::vector<PlaceId> places = parts_.store.Allocate(bytes, end - first);
    // A device that takes no write now has no place for anything, whatever leaves it.
    if (places.size() == end - first) {
      parts_.stored.FoundPlaces(bytes);
    } else if (parts_.store.writable()) {
      parts_.stored.WantPlaces(bytes, end - first - places.size());
    }
    for (size_t i = first; i < end; ++i) {
      if (i - first >= places.size()) {
        parts_.stored.WriteFailed(ready[i].id);
        NoPlace(ready[i], std::move(writes_.extract(ready[i].id).mapped()));
        continue;
      }
      const SlotRef slot = ready[i].slot;
      parts_.stored.SetPlace(ready[i].id, places[i - first]);
      ++slot->transfers;
      ++writing_pages_;
      writing_bytes_ += bytes;
      batch->pages.push_back(ready[i]);
      writes.push_back(
          {.page = parts_.stored.PageOf(ready[i].id),
           .bytes =
               parts_.host.Bytes(slot.slab->arena()).subspan(uint64_t{slot.index} * bytes, bytes)});
    }
    first = end;
  }
  if (writes.empty()) return;
  batch->left = writes.size();
  batch->began = parts_.clock.Now();
  parts_.store.Write(
      std::move(writes), batch->began + options_.write_deadline_ms * kNsPerMs,
      [this, batch](size_t i, const Result<uint64_t>& serial) {
        Written(*batch, batch->pages[i], serial);
      },
      [this, batch](size_t i) { Ended(batch.get(), batch->pages[i].slot); });
}

void Spill::NoPlace(const Ready& ready, Writing writing) {
  // Some are being made; who wrote without anybody waiting for it goes without.
  if (!writing.waiters.empty() && parts_.store.writable()) {
    return WaitForPlace(ready, std::move(writing));
  }
  Count(ready.slot, Unspilled::kPlace);
  budget_.GiveBack(ready.charged_bytes);
  Tell(writing.waiters, Code::kUnavailable);
}

// It is paid for, and waits no longer than it would have.
void Spill::WaitForPlace(const Ready& ready, Writing writing) {
  const Place item = Enqueue(ready.slot);
  SetDeadline(item, writing.deadline);
  for (Waiter& waiter : writing.waiters)
    Wait(item, ready.slot, std::move(waiter));
  item->placeless = true;
  if (placeless_sizes_.empty()) places_again_ = parts_.clock.Now() + kPlacesAgainNs;
  placeless_sizes_.insert(ready.bytes);
  (void)Park(item, OfPlaces(ready.bytes));
}

void Spill::Written(const Batch& batch, const Ready& page, const Result<uint64_t>& serial) {
  const ItemId id = page.id;
  auto entry = writes_.extract(id);
  TERRACE_CHECK(!entry.empty());
  Writing& writing = entry.mapped();
  SlotRef slot = page.slot;
  slot->overdue = true;
  ++overdue_pages_;
  --writing_pages_;
  writing_bytes_ -= page.bytes;
  Code code = Code::kOk;
  if (!serial) {
    parts_.stored.WriteFailed(id);
    // The file system was full, perhaps.
    if (serial.error().code() == Code::kExhausted) return NoPlace(page, std::move(writing));
    code = Code::kUnavailable;
    Count(slot, Unspilled::kFailed);
  } else {
    const StoredRecord& record = parts_.stored.at(id);
    spilled_.Add(record.bytes);
    times_.Add(parts_.clock.Now() - batch.began);
    const bool dropped = record.doomed;
    const bool right = StillRight(writing, record.generation);
    parts_.stored.Written(id, *serial);
    if (!right) parts_.stored.Erase(id, StoredErasure::kStale);
    if (dropped) code = Code::kNotFound;
    if (!right) code = Code::kStale;
  }
  Tell(writing.waiters, code);
}

// A space that nobody has open keeps its pages: they are found when it is opened again.
bool Spill::StillRight(const Writing& writing, uint64_t generation) const {
  const Space* space = SpaceOf(writing.tenant, writing.name);
  const TenantIndex& index = *parts_.catalog.At(writing.tenant).index;
  return space == nullptr || index.generation(space->generation_index) == generation;
}

void Spill::Ended(Batch* batch, SlotRef slot) {
  TERRACE_CHECK(slot->transfers > 0 && overdue_pages_ > 0);
  --slot->transfers;
  --overdue_pages_;
  ++ended_writes_;
  slot->overdue = false;
  if (--batch->left == 0) (void)Pump();
}

}  // namespace terrace
