#include "daemon/engine/store/promote.h"

#include <algorithm>
#include <string>

#include "base/check.h"

namespace terrace {
namespace {

constexpr size_t kDeadlinesATurn = 1024;

Code CodeOf(ReadFault fault) {
  if (fault == ReadFault::kOverdue) return Code::kDeadlineExceeded;
  return IsLost(fault) ? Code::kDataLoss : Code::kUnavailable;
}

}  // namespace

Promote::Promote(const StoreOptions& options, const StoreParts& parts, Residents& residents,
                 Placement& placement, Holds& holds)
    : options_(options),
      parts_(parts),
      residents_(residents),
      placement_(placement),
      holds_(holds) {}

Space* Promote::SpaceOf(TenantId tenant, uint32_t slot, uint32_t epoch) const {
  return parts_.catalog.At(tenant).FindSpace(slot, epoch);
}

// ---- Requests

void Promote::Prefetch(const Client& client, const Space& space, const PrefetchSpec& spec,
                       Done done) {
  const auto before = of_client_.find(client.given.id);
  const size_t requests = before == of_client_.end() ? 0 : before->second.requests;
  if (requests_.size() >= kMaxRequests || requests >= kMaxRequestsOfClient) {
    return done(Status(Code::kExhausted, "too many prefetches are waiting already"));
  }
  OfClient& of = of_client_[client.given.id];
  ++of.requests;
  asked_keys_ += spec.keys.size();
  const RequestId id = ++last_request_;
  Request& request = requests_[id];
  request.client = client.given.id;
  request.tenant = client.spec.tenant;
  request.space_slot = spec.slot;
  request.space_epoch = spec.epoch;
  request.part = spec.part;
  request.done = std::move(done);
  const uint32_t asked_ms =
      spec.deadline_ms == 0 ? options_.prefetch_deadline_ms : spec.deadline_ms;
  request.deadline =
      parts_.clock.Now() + std::min(asked_ms, options_.prefetch_deadline_max_ms) * kNsPerMs;
  deadlines_.emplace(request.deadline, id);

  std::vector<PrefixPage> pages;
  const Tenant& tenant = parts_.catalog.At(request.tenant);
  const uint32_t reach = FindPrefix(tenant, space, spec, &pages);
  const bool enough =
      static_cast<double>(reach) >= spec.min_fraction * static_cast<double>(spec.keys.size());
  if (enough) request.answer.worth = WorthPrefix(pages, speed_, spec.recompute_us_per_page);
  request.answer.codes.assign(spec.keys.size(), Code::kNotFound);
  request.keys.assign(spec.keys.begin(), spec.keys.begin() + request.answer.worth);
  // Where nothing is fetched, what is in memory is told all the same; it is not held.
  for (size_t i = request.keys.size(); i < pages.size(); ++i) {
    if (pages[i].in_memory) request.answer.codes[i] = Code::kOk;
  }
  if (request.keys.empty()) return FinishIfDone(id);
  of.unfinished.push_back(id);
  waiting_.insert(request.client);
  (void)Pump();
}

// Of the keys from the first on, those that are in memory or can be read.
uint32_t Promote::FindPrefix(const Tenant& tenant, const Space& space, const PrefetchSpec& spec,
                             std::vector<PrefixPage>* pages) const {
  const uint64_t generation = tenant.index->generation(space.generation_index);
  for (const Digest& key : spec.keys) {
    if (const auto page = tenant.index->Find({spec.slot, spec.epoch, spec.part, key})) {
      pages->push_back({.in_memory = true, .bytes = page->bytes});
      continue;
    }
    const ItemId id = parts_.stored.Find(space.id, spec.part, key);
    if (!parts_.stored.Serves(id, generation)) break;
    if (!parts_.store.Readable(parts_.stored.at(id).place)) break;
    pages->push_back({.in_memory = false, .bytes = parts_.stored.at(id).bytes});
  }
  return static_cast<uint32_t>(pages->size());
}

bool Promote::Pump() {
  uint64_t bytes = 0;
  for (size_t in_vain = 0; in_vain < waiting_.size();) {
    if (bytes >= kStepBytes) return true;
    const auto after = waiting_.upper_bound(served_);
    served_ = after == waiting_.end() ? *waiting_.begin() : *after;
    const RequestId id = of_client_.at(served_).unfinished.front();
    Request& request = requests_.at(id);
    const size_t before = request.next;
    bytes += Advance(id, request);
    in_vain = request.next == before ? in_vain + 1 : 0;
    if (request.next == request.keys.size()) RemoveUnfinished(request.client, id);
    FinishIfDone(id);
  }
  return false;
}

bool Promote::HasRoom(ClientId client, size_t pages, uint64_t bytes, uint32_t page_bytes) const {
  // A page that is larger than what may be read is read alone.
  if (awaited_.extents + pages == 0) return true;
  if (awaited_.extents + pages >= options_.max_reading_pages) return false;
  if (awaited_.bytes + bytes + page_bytes > options_.max_reading_bytes) return false;
  const Amount& of = of_client_.at(client).awaited;
  if (waiting_.size() == 1 || of.extents + pages == 0) return true;
  return of.extents + pages < options_.max_reading_pages / 2 &&
         of.bytes + bytes + page_bytes <= options_.max_reading_bytes / 2;
}

uint64_t Promote::Advance(RequestId id, Request& request) {
  Space* space = SpaceOf(request.tenant, request.space_slot, request.space_epoch);
  Tenant& tenant = parts_.catalog.At(request.tenant);
  std::vector<std::pair<size_t, ItemId>> wanted;
  uint64_t bytes = 0;
  for (; request.next < request.keys.size() && bytes < kStepBytes; ++request.next) {
    Code& code = request.answer.codes[request.next];
    if (space == nullptr) {
      code = Code::kStale;
      continue;
    }
    ItemId record = kNoRecord;
    const std::optional<Code> known =
        WithoutRead(tenant, *space, id, request, request.next, &record);
    if (known) {
      code = *known;
    } else if (record != kNoRecord) {
      const uint32_t page_bytes = parts_.stored.at(record).bytes;
      if (!HasRoom(request.client, wanted.size(), bytes, page_bytes)) break;
      wanted.emplace_back(request.next, record);
      bytes += page_bytes;
    }
  }
  if (!wanted.empty()) Read(id, request, wanted);
  return bytes;
}

std::optional<Code> Promote::WithoutRead(const Tenant& tenant, const Space& space, RequestId id,
                                         Request& request, size_t index, ItemId* record) {
  const Digest& key = request.keys[index];
  const PageName name{request.space_slot, request.space_epoch, request.part, key};
  if (const auto page = tenant.index->Find(name)) {
    const std::optional<SlotRef> slot =
        parts_.memory.slabs().FindSlot(request.tenant, shm::ExtentOf(page->handle));
    TERRACE_CHECK(slot.has_value());
    if (!holds_.Hold(request.client, *slot, request.deadline)) return Code::kExhausted;
    ++found_in_memory_;
    residents_.policy().Touch((*slot)->item, parts_.clock.Now());
    return Code::kOk;
  }
  const uint64_t generation = tenant.index->generation(space.generation_index);
  const ItemId found = parts_.stored.Find(space.id, request.part, key);
  if (!parts_.stored.Serves(found, generation)) {
    // What is of another generation will not come back.
    if (found != kNoRecord && parts_.stored.at(found).generation != generation) {
      parts_.stored.Erase(found, StoredErasure::kStale);
    }
    return Code::kNotFound;
  }
  if (const auto flight = flights_.find(found); flight != flights_.end()) {
    // One that failed and has not ended: nobody can be sure of the device now. One of another life
    // of the space lands nowhere.
    if (flight->second.answered || flight->second.name != name) return Code::kUnavailable;
    if (flight->second.waiters.size() == kMaxWaiters) return Code::kExhausted;
    if (Wait(request, index, flight->second.slot)) flight->second.waiters.emplace_back(id, index);
    return std::nullopt;
  }
  *record = found;
  return std::nullopt;
}

// The key's answer comes with the page that is read into the slot; false: it is over the budget.
bool Promote::Wait(Request& request, size_t index, SlotRef slot) {
  const bool held = holds_.Hold(request.client, slot, request.deadline);
  // What it is if nothing comes in time.
  request.answer.codes[index] = held ? Code::kDeadlineExceeded : Code::kExhausted;
  if (held) ++request.waiting;
  return held;
}

// ---- Flights

void Promote::Read(RequestId id, Request& request,
                   const std::vector<std::pair<size_t, ItemId>>& wanted) {
  const uint32_t bytes = parts_.stored.at(wanted.front().second).bytes;
  const Result<SlabClass*> of = parts_.memory.ClassOf(request.tenant, bytes);
  std::vector<SlotRef> slots;
  if (of) slots = placement_.Allocate(**of, wanted.size());
  std::vector<ItemId> ids;
  size_t used = 0;
  for (const auto& [index, record] : wanted) {
    // Named twice in one request, it is read once.
    const auto flight = flights_.find(record);
    const bool again = flight != flights_.end();
    if (!again && used == slots.size()) {
      request.answer.codes[index] = Code::kExhausted;
      continue;
    }
    const SlotRef slot = again ? flight->second.slot : slots[used];
    if (!Wait(request, index, slot)) continue;
    if (again) {
      flight->second.waiters.emplace_back(id, index);
      continue;
    }
    ++used;
    const PageName name{request.space_slot, request.space_epoch, request.part, request.keys[index]};
    Flight& begun = Begin(slot, {request.tenant, name, record});
    begun.client = request.client;
    begun.waiters.emplace_back(id, index);
    of_client_.at(request.client).awaited.Add(bytes);
    ids.push_back(record);
  }
  for (; used < slots.size(); ++used)
    parts_.memory.slabs().Free(slots[used]);
  if (!ids.empty()) Send(std::move(ids));
}

Promote::Flight& Promote::Begin(SlotRef slot, const StoredItem& page) {
  parts_.memory.slabs().SetState(slot, SlotState::kFilling);
  ++slot->transfers;
  parts_.stored.BeginRead(page.id);
  reading_bytes_ += parts_.stored.at(page.id).bytes;
  awaited_.Add(parts_.stored.at(page.id).bytes);
  Flight& flight = flights_[page.id];
  flight.slot = slot;
  flight.tenant = page.tenant;
  flight.name = page.name;
  return flight;
}

size_t Promote::Raise(std::span<const StoredItem> pages, const std::shared_ptr<Raised>& raised) {
  std::vector<ItemId> ids;
  for (const StoredItem& page : pages) {
    const Result<SlabClass*> of =
        parts_.memory.ClassOf(page.tenant, parts_.stored.at(page.id).bytes);
    const std::optional<SlotRef> slot = of ? placement_.TakeFree(**of) : std::nullopt;
    if (!slot) break;
    Begin(*slot, page).raised = raised;
    ++raised->under_way;
    ids.push_back(page.id);
  }
  const size_t begun = ids.size();
  if (begun > 0) Send(std::move(ids));
  return begun;
}

void Promote::Send(std::vector<ItemId> ids) {
  // Neighbours on the device are read as one.
  std::sort(ids.begin(), ids.end(), [this](ItemId a, ItemId b) {
    return parts_.stored.at(a).place < parts_.stored.at(b).place;
  });
  std::vector<PageStore::PageRead> reads;
  const auto batch = std::make_shared<Batch>();
  for (const ItemId id : ids) {
    const SlotRef slot = flights_.at(id).slot;
    const StoredPage page = parts_.stored.PageOf(id);
    const std::span<uint8_t> arena = parts_.host.Bytes(slot.slab->arena());
    reads.push_back(
        {.page = page, .into = arena.subspan(uint64_t{slot.index} * page.bytes, page.bytes)});
    batch->bytes += page.bytes;
  }
  batch->ids = std::move(ids);
  batch->left = batch->ids.size();
  batch->unended = batch->ids.size();
  batch->began = parts_.clock.Now();
  parts_.store.Read(
      std::move(reads), batch->began + options_.read_deadline_ms * kNsPerMs,
      [this, batch](size_t i, ReadFault fault, const Status&) {
        Answered(*batch, batch->ids[i], fault);
      },
      [this, batch](size_t i) { Ended(*batch, batch->ids[i]); });
}

void Promote::Answered(Batch& batch, ItemId id, ReadFault fault) {
  Flight& flight = flights_.at(id);
  flight.fault = fault;
  ++faults_[static_cast<size_t>(fault)];
  batch.faulty |= fault != ReadFault::kNone;
  if (batch.first == 0) {
    batch.first = parts_.clock.Now();
    batch.first_bytes = parts_.stored.at(id).bytes;
  }
  if (--batch.left == 0) Measure(batch);
  // What was read well is told when it is linked, which is when the device lets go of the memory.
  if (fault == ReadFault::kNone) return;
  flight.answered = true;
  AwaitNoMore(flight);
  holds_.Forget(flight.slot);
  if (IsLost(fault)) parts_.stored.Erase(id, StoredErasure::kFault);
  TellWaiters(std::exchange(flight.waiters, {}), CodeOf(fault));
}

void Promote::AwaitNoMore(Flight& flight) {
  if (!std::exchange(flight.awaited, false)) return;
  const uint32_t bytes = flight.slot.slab->shape().page_bytes;
  awaited_.Remove(bytes);
  if (flight.raised != nullptr) return;
  of_client_.at(flight.client).awaited.Remove(bytes);
  ForgetIfIdle(flight.client);
}

void Promote::Measure(const Batch& batch) {
  if (batch.faulty) return;
  speed_.Add({.first_ns = batch.first - batch.began,
              .rest_bytes = batch.bytes - batch.first_bytes,
              .rest_ns = parts_.clock.Now() - batch.first});
}

void Promote::Ended(Batch& batch, ItemId id) {
  auto entry = flights_.extract(id);
  TERRACE_CHECK(!entry.empty());
  Flight& flight = entry.mapped();
  --flight.slot->transfers;
  reading_bytes_ -= flight.slot.slab->shape().page_bytes;
  AwaitNoMore(flight);
  Code code = Code::kUnavailable;
  if (flight.fault == ReadFault::kNone && !flight.answered) code = Land(batch, id, flight);
  if (flight.slot->state == SlotState::kFilling) {
    holds_.Forget(flight.slot);
    parts_.memory.slabs().Free(flight.slot);
  }
  if (flight.raised != nullptr) {
    --flight.raised->under_way;
    if (code == Code::kOk) flight.raised->landed.Add(parts_.stored.at(id).bytes);
  }
  parts_.stored.EndRead(id);
  TellWaiters(std::move(flight.waiters), code);
  // There is room for others; not page by page, for neighbours are read as one.
  if (--batch.unended == 0) (void)Pump();
}

Code Promote::Land(const Batch& batch, ItemId id, Flight& flight) {
  const StoredRecord& record = parts_.stored.at(id);
  const Tenant& tenant = parts_.catalog.At(flight.tenant);
  // Everything is compared again: while the page was read it may have been dropped, its space
  // closed for good, or its generation ended.
  const Space* space = SpaceOf(flight.tenant, flight.name.space_slot, flight.name.space_epoch);
  const bool same = space != nullptr &&
                    parts_.stored.Serves(id, tenant.index->generation(space->generation_index));
  if (!same) {
    ++stale_reads_;
    return record.doomed ? Code::kNotFound : Code::kStale;
  }
  const PageFacts facts{.valid_tokens = record.valid_tokens,
                        .position = record.position,
                        .generation = record.generation,
                        .committed_ms = record.committed_ms,
                        .parent = record.parent};
  const bool asked_for = !flight.waiters.empty();
  const Status linked = asked_for ? residents_.Link(flight.slot, flight.name, facts)
                                  : residents_.LinkUnasked(flight.slot, flight.name, facts);
  if (linked.ok()) {
    promoted_.Add(record.bytes);
    times_.Add(parts_.clock.Now() - batch.began);
    parts_.catalog.At(flight.tenant).counts.promoted.Add(record.bytes);
    // Brought up for nobody it was not used.
    if (asked_for) parts_.stored.Touch(id);
    return Code::kOk;
  }
  if (linked.code() != Code::kAlreadyExists) return linked.code();
  // Somebody committed it meanwhile: that page is the one that is held.
  const auto page = tenant.index->Find(flight.name);
  TERRACE_CHECK(page.has_value());
  const auto there = parts_.memory.slabs().FindSlot(flight.tenant, shm::ExtentOf(page->handle));
  TERRACE_CHECK(there.has_value());
  holds_.Move(flight.slot, *there);
  return Code::kOk;
}

// ---- Answers

void Promote::TellWaiters(std::vector<std::pair<RequestId, size_t>> waiters, Code code) {
  for (const auto& [id, index] : waiters) {
    const auto found = requests_.find(id);
    if (found == requests_.end()) continue;
    found->second.answer.codes[index] = code;
    --found->second.waiting;
    FinishIfDone(id);
  }
}

void Promote::FinishIfDone(RequestId id) {
  const Request& request = requests_.at(id);
  if (request.waiting == 0 && request.next == request.keys.size()) Finish(id, Code::kOk);
}

// `rest`: of the keys that nothing was done about; kOk: there are none.
void Promote::Finish(RequestId id, Code rest) {
  auto entry = requests_.extract(id);
  if (entry.empty()) return;
  Request& request = entry.mapped();
  deadlines_.erase({request.deadline, id});
  RemoveUnfinished(request.client, id);
  --of_client_.at(request.client).requests;
  ForgetIfIdle(request.client);
  if (rest != Code::kOk) {
    for (size_t i = request.next; i < request.keys.size(); ++i)
      request.answer.codes[i] = rest;
  }
  request.done(std::move(request.answer));
}

void Promote::RemoveUnfinished(ClientId client, RequestId id) {
  OfClient& of = of_client_.at(client);
  std::erase(of.unfinished, id);
  if (of.unfinished.empty()) waiting_.erase(client);
}

void Promote::ForgetIfIdle(ClientId client) {
  const OfClient& of = of_client_.at(client);
  if (of.requests == 0 && of.awaited.extents == 0) of_client_.erase(client);
}

void Promote::ClientGone(ClientId client) {
  if (!of_client_.contains(client)) return;
  std::vector<RequestId> ids;
  for (const auto& [id, request] : requests_) {
    if (request.client == client) ids.push_back(id);
  }
  for (const RequestId id : ids)
    Finish(id, Code::kNotFound);
}

bool Promote::Turn() {
  const MonotonicNs now = parts_.clock.Now();
  for (size_t i = 0; i < kDeadlinesATurn && !deadlines_.empty(); ++i) {
    const auto [deadline, id] = *deadlines_.begin();
    if (deadline > now) break;
    Finish(id, Code::kDeadlineExceeded);
  }
  return Pump();
}

Status Promote::CheckInvariants() const {
  uint64_t bytes = 0;
  Amount awaited;
  std::map<ClientId, Amount> awaited_of;
  for (const auto& [id, flight] : flights_) {
    const uint32_t page_bytes = flight.slot.slab->shape().page_bytes;
    bytes += page_bytes;
    if (flight.awaited) awaited.Add(page_bytes);
    if (flight.awaited && flight.raised == nullptr) awaited_of[flight.client].Add(page_bytes);
    if (flight.slot->state != SlotState::kFilling || flight.slot->transfers != 1) {
      return Status(Code::kInternal, "a page that is being read has no slot for it");
    }
    if (parts_.stored.at(id).reads == 0) {
      return Status(Code::kInternal, "a page that is being read is not counted so");
    }
  }
  if (bytes != reading_bytes_ || awaited != awaited_) {
    return Status(Code::kInternal, "bytes being read are not those of the flights");
  }
  for (const auto& [client, of] : of_client_) {
    if (of.awaited != awaited_of[client] || of.unfinished.empty() == waiting_.contains(client)) {
      return Status(Code::kInternal, "a client's reads or requests are not what is counted of it");
    }
  }
  return {};
}

}  // namespace terrace
