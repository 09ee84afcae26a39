#include "daemon/engine/device/device_fetch.h"

#include <algorithm>

#include "base/check.h"

namespace terrace {

PageName DeviceFetch::NameOf(const Request& request, size_t index, uint32_t place) const {
  return {request.spec.slot, request.spec.epoch, request.spec.part, request.keys[index], place};
}

std::optional<SlotRef> DeviceFetch::FindAt(TenantId tenant, const PageName& name) const {
  const std::optional<LinkedPage> page = parts_.catalog.At(tenant).index->Find(name);
  if (!page) return std::nullopt;
  return parts_.slabs.FindSlot(tenant, shm::ExtentOf(page->handle));
}

// ---- Requests

void DeviceFetch::Fetch(const Client& client, const PrefetchSpec& spec, MonotonicNs deadline,
                        Done done) {
  const TenantId tenant = client.spec.tenant;
  // What it found before it asked says nothing of what it waits for from here on.
  parts_.placement.DrainRingsOf(tenant, client.given.id);
  // It is refused for what it has pinned, not for what it had.
  const Space* space = parts_.catalog.At(tenant).FindSpace(spec.slot, spec.epoch);
  const uint64_t bytes = space == nullptr ? 0 : spec.keys.size() * space->page_bytes;
  if (client.pins > 0 && !holds_.WithinBudget(client, spec.keys.size(), bytes)) {
    parts_.pins.ScanIfDue(tenant);
  }
  if (Status served = client.Served(); !served.ok()) return done(std::move(served));
  size_t& requests = requests_of_[client.given.id];
  if (requests_.size() >= kMaxRequests || requests >= kMaxRequestsOfClient) {
    return done(Status(Code::kExhausted, "too many prefetches are waiting already"));
  }
  ++requests;
  const RequestId id = ++last_request_;
  Request& request = requests_[id];
  request.client = client.given.id;
  request.tenant = client.spec.tenant;
  request.spec = spec;
  request.keys.assign(spec.keys.begin(), spec.keys.end());
  request.spec.keys = request.keys;
  request.deadline = deadline;
  request.done = std::move(done);
  // What nothing is known of when its time is over.
  request.answer.codes.assign(request.keys.size(), Code::kDeadlineExceeded);
  deadlines_.emplace(deadline, id);

  std::vector<size_t> asked;
  std::vector<Digest> keys;
  for (size_t i = 0; i < request.keys.size(); ++i) {
    if (FindAt(request.tenant, NameOf(request, i, parts_.pages.device()))) {
      request.wanted.push_back(i);
    } else {
      asked.push_back(i);
      keys.push_back(request.keys[i]);
    }
  }
  std::reverse(request.wanted.begin(), request.wanted.end());
  if (keys.empty()) {
    request.answer.worth = static_cast<uint32_t>(request.keys.size());
    return Advance(id);
  }
  // What is here already counts towards the fraction that has to be there.
  PrefetchSpec below = spec;
  below.keys = keys;
  below.device = 0;
  const double least = spec.min_fraction * static_cast<double>(request.keys.size()) -
                       static_cast<double>(request.wanted.size());
  below.min_fraction = std::clamp(least / static_cast<double>(keys.size()), 0.0, 1.0);
  request.asked_below = true;
  parts_.below(request.client, below,
               [this, id, asked, alive = std::weak_ptr(alive_)](const Result<Prefetched>& found) {
                 if (!alive.expired()) Below(id, found, asked);
               });
}

void DeviceFetch::Below(RequestId id, const Result<Prefetched>& found,
                        const std::vector<size_t>& asked) {
  const auto entry = requests_.find(id);
  if (entry == requests_.end()) return;
  Request& request = entry->second;
  request.asked_below = false;
  for (size_t i = 0; i < asked.size(); ++i) {
    const Code code = found ? found->codes[i] : found.error().code();
    request.answer.codes[asked[i]] = code;
    if (code == Code::kOk) request.wanted.push_back(asked[i]);
  }
  // A chain: from its first page on, and nothing behind a gap.
  std::set<size_t> there(request.wanted.begin(), request.wanted.end());
  size_t worth = 0;
  while (there.contains(worth))
    ++worth;
  const double least = request.spec.min_fraction * static_cast<double>(request.keys.size());
  if (static_cast<double>(worth) < least) worth = 0;
  request.answer.worth = static_cast<uint32_t>(worth);
  for (const size_t index : there) {
    const bool here =
        FindAt(request.tenant, NameOf(request, index, parts_.pages.device())).has_value();
    if (index >= worth) request.answer.codes[index] = here ? Code::kOk : Code::kNotFound;
  }
  request.wanted.clear();
  for (size_t i = worth; i-- > 0;)
    request.wanted.push_back(i);
  Advance(id);
}

void DeviceFetch::Advance(RequestId id) {
  Request& request = requests_.at(id);
  const Space* space =
      parts_.catalog.At(request.tenant).FindSpace(request.spec.slot, request.spec.epoch);
  std::vector<size_t> copied;  // In their order.
  std::set<Digest> named;      // Named twice in one request, it is copied once.
  while (!request.wanted.empty() && flights_.size() + copied.size() < kMostFlights) {
    const size_t index = request.wanted.back();
    if (named.contains(request.keys[index])) break;
    const std::optional<Code> known =
        space == nullptr ? Code::kStale : WithoutFlight(id, request, index);
    request.wanted.pop_back();
    if (known) {
      request.answer.codes[index] = *known;
    } else {
      copied.push_back(index);
      named.insert(request.keys[index]);
    }
  }
  if (!copied.empty()) {
    const SlotRef first = *FindAt(request.tenant, NameOf(request, copied[0], 0));
    const Result<SlabClass*> of =
        parts_.pages.ClassOf(request.tenant, first.slab->shape().page_bytes);
    PagesOnDevice::Slots got;
    if (of) got = parts_.pages.Allocate(**of, copied.size());
    const auto batch = std::make_shared<Batch>();
    for (size_t n = 0; n < got.slots.size(); ++n) {
      const SlotRef to = got.slots[n];
      // Getting memory may have taken a page out of that of the host.
      const auto from = FindAt(request.tenant, NameOf(request, copied[n], 0));
      if (!from || !Wait(request, copied[n], to)) {
        if (!from) request.answer.codes[copied[n]] = Code::kNotFound;
        parts_.slabs.Free(to);
        continue;
      }
      parts_.slabs.SetState(to, SlotState::kFilling);
      ++to->transfers;
      ++(*from)->transfers;
      const Key key{request.tenant, request.spec.slot, request.spec.epoch, request.spec.part,
                    request.keys[copied[n]]};
      flights_[key] = {.from = *from,
                       .to = to,
                       .sequence = (*from)->sequence,
                       .name = NameOf(request, copied[n], parts_.pages.device()),
                       .facts = (*from)->facts,
                       .waiters = {{id, copied[n]}}};
      batch->flights.push_back(key);
    }
    // The others are tried again while memory for them is on its way.
    for (size_t n = copied.size(); n-- > got.slots.size();) {
      if (got.more) {
        request.wanted.push_back(copied[n]);
      } else {
        request.answer.codes[copied[n]] = of ? Code::kExhausted : of.error().code();
      }
    }
    if (!batch->flights.empty()) Send(batch);
  }
  FinishIfDone(id);
}

std::optional<Code> DeviceFetch::WithoutFlight(RequestId id, Request& request, size_t index) {
  const PageName name = NameOf(request, index, parts_.pages.device());
  if (const auto here = FindAt(request.tenant, name)) {
    if (!holds_.Hold(request.client, *here, request.deadline)) return Code::kExhausted;
    parts_.pages.residents().policy().Touch((*here)->item, parts_.clock.Now());
    return Code::kOk;
  }
  const auto flight =
      flights_.find({request.tenant, name.space_slot, name.space_epoch, name.part, name.key});
  if (flight != flights_.end()) {
    if (Wait(request, index, flight->second.to)) flight->second.waiters.emplace_back(id, index);
    return request.answer.codes[index];
  }
  if (!FindAt(request.tenant, NameOf(request, index, 0))) return Code::kNotFound;
  return std::nullopt;
}

// The key's answer comes with the page that is copied into the slot; false: it is over the budget.
bool DeviceFetch::Wait(Request& request, size_t index, SlotRef slot) {
  const bool held = holds_.Hold(request.client, slot, request.deadline);
  // What it is if nothing comes in time.
  request.answer.codes[index] = held ? Code::kDeadlineExceeded : Code::kExhausted;
  if (held) ++request.waiting;
  return held;
}

// ---- Flights

void DeviceFetch::Send(std::shared_ptr<Batch> batch) {
  std::map<ArenaId, uint64_t> slabs;
  for (const Key& key : batch->flights) {
    const Slab& slab = *flights_.at(key).from.slab;
    slabs[slab.arena()] = slab.shape().arena_bytes;
  }
  batch->waits = slabs.size();
  for (const auto& [slab, bytes] : slabs) {
    parts_.pages.host_slabs().Use(
        slab, bytes, [this, batch, alive = std::weak_ptr(alive_)](const Status& status) {
          if (alive.expired()) return;
          if (!status.ok()) batch->status = status;
          if (--batch->waits == 0) Copy(batch);
        });
  }
}

void DeviceFetch::Copy(const std::shared_ptr<Batch>& batch) {
  const auto end = [this, batch](const Status& status) {
    for (const Key& key : batch->flights)
      Ended(key, status);
  };
  if (!batch->status.ok()) return end(batch->status);
  std::vector<DeviceCopy> copies;
  for (const Key& key : batch->flights) {
    const Flight& flight = flights_.at(key);
    const uint64_t bytes = flight.to.slab->shape().page_bytes;
    copies.push_back({.dst = {flight.to.slab->arena(), flight.to.index * bytes},
                      .src = {flight.from.slab->arena(), flight.from.index * bytes},
                      .bytes = bytes});
  }
  parts_.arenas.tier().Copy(std::move(copies), /*complete=*/true, parts_.arenas.Deadline(),
                            [end, alive = std::weak_ptr(alive_)](const Status& status) {
                              if (!alive.expired()) end(status);
                            });
}

void DeviceFetch::Ended(const Key& key, const Status& status) {
  auto entry = flights_.extract(key);
  TERRACE_CHECK(!entry.empty());
  Flight& flight = entry.mapped();
  --flight.from->transfers;
  --flight.to->transfers;
  Code code = status.code() == Code::kDeadlineExceeded ? status.code() : Code::kUnavailable;
  if (status.ok()) code = Land(flight);
  if (flight.to->state == SlotState::kFilling) {
    holds_.Forget(flight.to);
    parts_.slabs.Free(flight.to);
  }
  for (const auto& [id, index] : flight.waiters) {
    const auto found = requests_.find(id);
    if (found == requests_.end()) continue;
    found->second.answer.codes[index] = code;
    --found->second.waiting;
    FinishIfDone(id);
  }
}

// Everything is compared again: while it was copied it may have been dropped, its space closed for
// good, or its generation ended.
Code DeviceFetch::Land(Flight& flight) {
  if (flight.to.slab->closed()) return Code::kUnavailable;
  const TenantId id = flight.to.slab->tenant();
  const Tenant& tenant = parts_.catalog.At(id);
  const Space* space =
      parts_.catalog.At(id).FindSpace(flight.name.space_slot, flight.name.space_epoch);
  if (space == nullptr ||
      tenant.index->generation(space->generation_index) != flight.facts.generation) {
    return Code::kStale;
  }
  const bool dropped =
      flight.from->state != SlotState::kLinked || flight.from->sequence != flight.sequence;
  if (dropped) return Code::kNotFound;
  Residents& residents = parts_.pages.residents();
  const Status linked = residents.Link(flight.to, flight.name, flight.facts);
  if (linked.ok()) {
    promoted_.Add(flight.to.slab->shape().page_bytes);
    return Code::kOk;
  }
  if (linked.code() != Code::kAlreadyExists) return linked.code();
  // Somebody committed it there meanwhile: that page is the one that is held.
  const std::optional<SlotRef> there = FindAt(id, flight.name);
  TERRACE_CHECK(there.has_value());
  holds_.Move(flight.to, *there);
  return Code::kOk;
}

// ---- Answers

void DeviceFetch::FinishIfDone(RequestId id) {
  const auto found = requests_.find(id);
  if (found == requests_.end()) return;
  const Request& request = found->second;
  if (request.waiting == 0 && request.wanted.empty() && !request.asked_below) {
    Finish(id, Code::kOk);
  }
}

// `rest`: of the keys that nothing was done about.
void DeviceFetch::Finish(RequestId id, Code rest) {
  auto entry = requests_.extract(id);
  if (entry.empty()) return;
  Request& request = entry.mapped();
  deadlines_.erase({request.deadline, id});
  const auto of = requests_of_.find(request.client);
  if (--of->second == 0) requests_of_.erase(of);
  for (const size_t index : request.wanted)
    request.answer.codes[index] = rest;
  request.done(std::move(request.answer));
}

void DeviceFetch::ClientGone(ClientId client) {
  std::vector<RequestId> ids;
  for (const auto& [id, request] : requests_) {
    if (request.client == client) ids.push_back(id);
  }
  for (const RequestId id : ids)
    Finish(id, Code::kNotFound);
  holds_.ClientGone(client);
}

void DeviceFetch::Turn() {
  const MonotonicNs now = parts_.clock.Now();
  holds_.Turn(now);
  while (!deadlines_.empty() && deadlines_.begin()->first <= now)
    Finish(deadlines_.begin()->second, Code::kDeadlineExceeded);
  std::vector<RequestId> ids;
  for (const auto& [id, request] : requests_) {
    if (!request.wanted.empty() && !request.asked_below) ids.push_back(id);
  }
  for (const RequestId id : ids) {
    if (requests_.contains(id)) Advance(id);
  }
}

void DeviceFetch::Told(TenantId tenant, const TenantIndex::RingVisit& visit) {
  if (visit.kind != shm::RingKind::kTouch) return;
  const auto slot = parts_.slabs.FindSlot(tenant, shm::ExtentOf(visit.handle));
  if (!slot || (*slot)->state != SlotState::kLinked ||
      (*slot)->sequence != shm::SequenceOf(visit.handle)) {
    return;
  }
  holds_.Release(visit.client, *slot);
}

Status DeviceFetch::CheckInvariants() const {
  for (const auto& [key, flight] : flights_) {
    if (flight.to->state != SlotState::kFilling || flight.to->transfers != 1 ||
        flight.from->transfers == 0) {
      return Status(Code::kInternal, "a page on its way to a device has no slots for it");
    }
  }
  return {};
}

}  // namespace terrace
