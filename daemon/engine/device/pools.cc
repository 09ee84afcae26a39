#include "daemon/engine/device/pools.h"

#include <algorithm>
#include <string>

#include "base/check.h"

namespace terrace {
namespace {

Status Invalid(const std::string& what) {
  return {Code::kInvalidArgument, what};
}

Status Gone(uint64_t pool) {
  return {Code::kNotFound, "pool " + std::to_string(pool) + " was removed"};
}

Status LostPool(uint64_t pool) {
  return {Code::kStale, "pool " + std::to_string(pool) + " was lost; it is to be added anew"};
}

bool Aligned(uint64_t value) {
  return value % kDeviceBlockAlignment == 0;
}

}  // namespace

// ---- Pools

void Pools::Add(ClientId client, PoolSpec spec, std::function<void(Result<uint64_t>)> done) {
  const uint64_t bytes = spec.bytes;
  const uint64_t rounded = parts_.arenas.Rounded(1);
  if (rounded == 0) {
    return done(
        Status(Code::kUnavailable, "device " + std::to_string(spec.device) +
                                       ": it is not ready: " + parts_.arenas.tier().Report().why));
  }
  if (bytes == 0 || bytes > INT64_MAX || bytes % rounded != 0) {
    return done(Invalid("bytes: " + std::to_string(bytes) + ", and the device has granules of " +
                        std::to_string(rounded)));
  }
  const ArenaId id = pools_.size() >= kMostPools ? 0 : parts_.numbers.NextBlock();
  if (id == 0) return done(Status(Code::kExhausted, "too many pools of the device"));
  Pool& pool = pools_[id];
  pool.client = client;
  pool.bytes = bytes;
  pool.added = std::move(done);
  auto came = [this, id, alive = std::weak_ptr(alive_)](const Status& status) {
    if (alive.expired()) return;
    Pool& added = pools_.at(id);
    const auto tell = std::exchange(added.added, nullptr);
    if (!status.ok()) {
      pools_.erase(id);
      return tell(status);
    }
    if (added.state == State::kLeaving) {
      Release(id);
      return tell(Gone(id));
    }
    added.state = State::kReady;
    tell(uint64_t{id});
  };
  DeviceTier& tier = parts_.arenas.tier();
  if (spec.slab) {
    tier.Import(id, bytes, std::move(spec.slab), parts_.arenas.Deadline(), std::move(came));
  } else {
    tier.Open(id, bytes, spec.handle, parts_.arenas.Deadline(), std::move(came));
  }
}

void Pools::Remove(ClientId client, uint64_t pool, std::function<void(Status)> done) {
  if (!Has(client, pool)) return done(Gone(pool));
  const auto id = static_cast<ArenaId>(pool);
  pools_.at(id).removed = std::move(done);
  Leave(id);
}

bool Pools::Has(ClientId client, uint64_t pool) const {
  if (pool > UINT32_MAX) return false;
  const auto found = pools_.find(static_cast<ArenaId>(pool));
  return found != pools_.end() && found->second.client == client &&
         found->second.state == State::kReady;
}

size_t Pools::CountOf(ClientId client) const {
  return static_cast<size_t>(std::ranges::count_if(
      pools_, [&](const auto& entry) { return entry.second.client == client; }));
}

bool Pools::Lost(ArenaId arena) {
  const auto found = pools_.find(arena);
  if (found == pools_.end()) return false;
  found->second.lost = true;
  return true;
}

void Pools::ClientGone(ClientId client) {
  std::vector<ArenaId> theirs;
  for (const auto& [id, pool] : pools_) {
    const bool here = pool.state == State::kComing || pool.state == State::kReady;
    if (pool.client == client && here) theirs.push_back(id);
  }
  for (const ArenaId id : theirs)
    Leave(id);
}

// What of it waits is answered; the copies that are under way end first.
void Pools::Leave(ArenaId id) {
  Pool& pool = pools_.at(id);
  const bool ready = pool.state == State::kReady;
  pool.state = State::kLeaving;
  std::vector<RequestId> waiting;
  for (const auto& [number, request] : requests_) {
    if (request.pool == id && !request.moving) waiting.push_back(number);
  }
  if (ready && pool.copies == 0) Release(id);
  for (const RequestId number : waiting)
    Finish(number, Gone(id));
}

void Pools::Release(ArenaId id) {
  pools_.at(id).state = State::kReleasing;
  parts_.arenas.tier().Release(id, parts_.arenas.Deadline(),
                               [this, id, alive = std::weak_ptr(alive_)](const Status& status) {
                                 if (alive.expired()) return;
                                 if (!status.ok() && status.code() != Code::kNotFound) {
                                   retries_.push_back(id);
                                   return;
                                 }
                                 const auto removed = std::move(pools_.at(id).removed);
                                 pools_.erase(id);
                                 if (removed) removed({});
                               });
}

// ---- Requests

// Everything comes from outside. Sums and products stay below 2^64: none is made before what goes
// into it is known to be small.
Status Pools::CheckLayout(const Work& work) const {
  const PoolPages& pages = work.pages;
  const PoolLayout& layout = pages.layout;
  const uint64_t bytes = pools_.at(static_cast<ArenaId>(pages.pool)).bytes;
  const uint64_t per_page = pages.blocks_per_page;
  if (layout.bases.empty() || layout.bases.size() > kMostDeviceSegments) {
    return Invalid("bases: " + std::to_string(layout.bases.size()) + " of them, between 1 and " +
                   std::to_string(kMostDeviceSegments) + " are allowed");
  }
  if (per_page == 0 || per_page > work.space.spec.layout.page_tokens ||
      work.space.spec.layout.page_tokens % per_page != 0) {
    return Invalid("blocks_per_page: " + std::to_string(per_page) + " do not divide " +
                   std::to_string(work.space.spec.layout.page_tokens) + " tokens");
  }
  if (layout.block_bytes == 0 || layout.block_bytes > work.page_bytes ||
      layout.block_bytes * layout.bases.size() * per_page != work.page_bytes) {
    return Invalid("block_bytes: " + std::to_string(layout.bases.size()) + " segments of " +
                   std::to_string(per_page) + " blocks of " + std::to_string(layout.block_bytes) +
                   " bytes are not the page's " + std::to_string(work.page_bytes));
  }
  if (layout.block_stride < layout.block_bytes) {
    return Invalid("block_stride: " + std::to_string(layout.block_stride) +
                   ", less than block_bytes");
  }
  if (pages.blocks.size() != pages.keys.size() * per_page) {
    return Invalid("blocks: " + std::to_string(pages.blocks.size()) + " for " +
                   std::to_string(pages.keys.size()) + " keys of " + std::to_string(per_page));
  }
  if (!Aligned(layout.block_bytes) || !Aligned(layout.block_stride) ||
      !std::ranges::all_of(layout.bases, Aligned)) {
    return Invalid("bases, block_stride, block_bytes: not multiples of " +
                   std::to_string(kDeviceBlockAlignment));
  }
  const uint64_t base = *std::ranges::max_element(layout.bases);
  if (base > bytes || layout.block_bytes > bytes - base) {
    return Invalid("bases: " + std::to_string(base) + ", and the pool has " +
                   std::to_string(bytes) + " bytes");
  }
  const uint64_t last = (bytes - base - layout.block_bytes) / layout.block_stride;
  for (const uint32_t block : pages.blocks) {
    if (block > last) {
      return Invalid("blocks: " + std::to_string(block) + ", and the pool ends behind block " +
                     std::to_string(last));
    }
  }
  if (!pages.valid_tokens.empty() && pages.valid_tokens.size() != pages.keys.size()) {
    return Invalid("valid_tokens: " + std::to_string(pages.valid_tokens.size()) + " for " +
                   std::to_string(pages.keys.size()) + " keys; one each, or none");
  }
  for (const uint32_t tokens : pages.valid_tokens) {
    if (tokens > work.space.spec.layout.page_tokens) {
      return Invalid("valid_tokens: " + std::to_string(tokens) + " of a page of " +
                     std::to_string(work.space.spec.layout.page_tokens));
    }
  }
  return {};
}

Result<Pools::RequestId> Pools::Begin(const Work& work, bool store, Done* done) {
  const PoolPages& pages = work.pages;
  if (pools_.at(static_cast<ArenaId>(pages.pool)).lost) return LostPool(pages.pool);
  RETURN_IF_ERROR(CheckLayout(work));
  const ClientId client = work.client.given.id;
  const auto of_client = std::ranges::count_if(
      requests_, [&](const auto& entry) { return entry.second.client == client; });
  if (requests_.size() >= kMaxRequests || of_client >= static_cast<int>(kMaxRequestsOfClient)) {
    return Status(Code::kExhausted, "too many copies of pools are waiting already");
  }
  const RequestId id = ++last_request_;
  requests_[id] = {
      .client = client,
      .tenant = work.client.spec.tenant,
      .pool = static_cast<ArenaId>(pages.pool),
      .store = store,
      .layout = pages.layout,
      .slot = pages.slot,
      .epoch = pages.epoch,
      .part = pages.part,
      .keys = {pages.keys.begin(), pages.keys.end()},
      .blocks = {pages.blocks.begin(), pages.blocks.end()},
      .blocks_per_page = pages.blocks_per_page,
      .valid_tokens = {pages.valid_tokens.begin(), pages.valid_tokens.end()},
      .chain = pages.chain,
      .parent = pages.parent,
      .position = pages.position,
      .page_bytes = work.page_bytes,
      .page_tokens = work.space.spec.layout.page_tokens,
      .generation_index = work.space.generation_index,
      .generation =
          parts_.catalog.At(work.client.spec.tenant).index->generation(work.space.generation_index),
      .deadline = work.deadline,
      .wanted = {},
      .codes = std::vector<Code>(pages.keys.size(), Code::kNotFound),
      .done = std::move(*done)};
  return id;
}

void Pools::Store(const Work& work, Done done) {
  // Before the request has it, a page of this size is known to have a place.
  const Result<SlabClass*> of = parts_.pages.ClassOf(work.client.spec.tenant, work.page_bytes);
  if (!of) return done(of.error());
  const Result<RequestId> id = Begin(work, /*store=*/true, &done);
  if (!id) return done(id.error());
  Request& request = requests_.at(*id);
  for (size_t i = request.keys.size(); i-- > 0;)
    request.wanted.push_back(i);
  Advance(*id);
}

void Pools::Fetch(const Work& work, Done done) {
  const Result<RequestId> id = Begin(work, /*store=*/false, &done);
  if (!id) return done(id.error());
  Request& request = requests_.at(*id);
  request.waits = true;
  const PrefetchSpec spec{.slot = request.slot,
                          .epoch = request.epoch,
                          .part = request.part,
                          .keys = work.pages.keys,
                          .deadline_ms = work.pages.deadline_ms,
                          .device = parts_.pages.device()};
  parts_.fetch.Fetch(
      work.client, spec, work.deadline,
      [this, id = *id, alive = std::weak_ptr(alive_)](const Result<Prefetched>& found) {
        if (alive.expired() || !requests_.contains(id)) return;
        if (!found) return Finish(id, found.error());
        Request& waiting = requests_.at(id);
        waiting.waits = false;
        waiting.codes = found->codes;
        for (size_t i = waiting.keys.size(); i-- > 0;) {
          if (waiting.codes[i] == Code::kOk) waiting.wanted.push_back(i);
        }
        Advance(id);
      });
}

PageName Pools::NameOf(const Request& request, size_t index) const {
  return {request.slot, request.epoch, request.part, request.keys[index], parts_.pages.device()};
}

std::optional<SlotRef> Pools::FindAt(const Request& request, size_t index) const {
  const std::optional<LinkedPage> page =
      parts_.catalog.At(request.tenant).index->Find(NameOf(request, index));
  if (!page) return std::nullopt;
  return parts_.slabs.FindSlot(request.tenant, shm::ExtentOf(page->handle));
}

uint32_t Pools::BlocksOf(const Request& request, uint32_t valid_tokens) const {
  const uint32_t tokens = request.page_tokens / request.blocks_per_page;
  return valid_tokens == 0 ? request.blocks_per_page : (valid_tokens + tokens - 1) / tokens;
}

size_t Pools::PagesOfStep(const Request& request) const {
  const uint64_t by_bytes = kStepBytes / request.page_bytes;
  const uint64_t by_blocks = kMostDeviceBlocks / request.blocks_per_page;
  return std::max<uint64_t>(1, std::min(by_bytes, by_blocks));
}

// Space and generation may have ended, and the client too.
Code Pools::Compare(const Request& request) const {
  const auto client = parts_.clients.all().find(request.client);
  if (client == parts_.clients.all().end() || client->second.cut) return Code::kPermissionDenied;
  Tenant& tenant = parts_.catalog.At(request.tenant);
  const bool same = tenant.FindSpace(request.slot, request.epoch) != nullptr &&
                    tenant.index->generation(request.generation_index) == request.generation;
  return same ? Code::kOk : Code::kStale;
}

void Pools::Advance(RequestId id) {
  Request& request = requests_.at(id);
  if (request.moving || request.waits) return;
  const Pool& pool = pools_.at(request.pool);
  if (pool.state != State::kReady) return Finish(id, Gone(request.pool));
  if (pool.lost) return Finish(id, LostPool(request.pool));
  if (const Code code = Compare(request); code != Code::kOk) {
    for (const size_t index : request.wanted)
      request.codes[index] = code;
    request.wanted.clear();
  }
  Batch batch = request.store ? TakeSlots(request) : TakePages(request);
  if (!batch.empty()) return Move(id, std::move(batch));
  if (request.wanted.empty()) Finish(id, {});
}

// Empty: nothing is wanted, or its memory is on its way.
Pools::Batch Pools::TakeSlots(Request& request) {
  Batch batch;
  std::vector<size_t> missing;
  const size_t most = PagesOfStep(request);
  while (!request.wanted.empty() && missing.size() < most) {
    const size_t index = request.wanted.back();
    request.wanted.pop_back();
    if (FindAt(request, index)) {
      request.codes[index] = Code::kAlreadyExists;
    } else {
      missing.push_back(index);
    }
  }
  if (missing.empty()) return batch;
  const Result<SlabClass*> of = parts_.pages.ClassOf(request.tenant, request.page_bytes);
  PagesOnDevice::Slots got;
  if (of) got = parts_.pages.Allocate(**of, missing.size());
  for (size_t n = 0; n < got.slots.size(); ++n) {
    parts_.slabs.SetState(got.slots[n], SlotState::kFilling);
    ++got.slots[n]->transfers;
    ++filling_;
    batch.push_back({.slot = got.slots[n], .index = missing[n]});
  }
  // The others are tried again: when memory for them has come, or these have.
  for (size_t n = missing.size(); n-- > got.slots.size();) {
    if (got.more) {
      request.wanted.push_back(missing[n]);
    } else {
      request.codes[missing[n]] = of ? Code::kExhausted : of.error().code();
    }
  }
  return batch;
}

Pools::Batch Pools::TakePages(Request& request) {
  Batch batch;
  const size_t most = PagesOfStep(request);
  while (!request.wanted.empty() && batch.size() < most) {
    const size_t index = request.wanted.back();
    request.wanted.pop_back();
    const std::optional<SlotRef> slot = FindAt(request, index);
    if (!slot) {
      request.codes[index] = Code::kNotFound;
      continue;
    }
    ++(*slot)->holds;
    batch.push_back({.slot = *slot, .index = index});
  }
  return batch;
}

void Pools::Move(RequestId id, Batch batch) {
  Request& request = requests_.at(id);
  const PoolLayout& layout = request.layout;
  DevicePages pages;
  pages.gather = request.store;
  pages.block_stride = layout.block_stride;
  pages.block_bytes = layout.block_bytes;
  const uint64_t next_block =
      layout.page_first ? layout.block_bytes * layout.bases.size() : layout.block_bytes;
  pages.segment_stride =
      layout.page_first ? layout.block_bytes : layout.block_bytes * request.blocks_per_page;
  for (const uint64_t base : layout.bases)
    pages.bases.push_back({.arena = request.pool, .offset = base});
  for (const Moved& page : batch) {
    const uint64_t at = uint64_t{page.slot.index} * request.page_bytes;
    const uint32_t told = request.valid_tokens.empty() ? 0 : request.valid_tokens[page.index];
    const uint32_t tokens = request.store ? told : page.slot->facts.valid_tokens;
    for (uint32_t i = 0; i < BlocksOf(request, tokens); ++i) {
      pages.blocks.push_back({.page = {page.slot.slab->arena(), at + i * next_block},
                              .block = request.blocks[page.index * request.blocks_per_page + i],
                              .bytes = static_cast<uint32_t>(layout.block_bytes)});
    }
  }
  request.moving = true;
  ++pools_.at(request.pool).copies;
  parts_.arenas.tier().MovePages(
      std::move(pages), parts_.arenas.Deadline(),
      [this, id, batch = std::move(batch), alive = std::weak_ptr(alive_)](const Status& status) {
        if (!alive.expired()) Ended(id, batch, status);
      });
}

void Pools::Ended(RequestId id, const Batch& batch, const Status& status) {
  Request& request = requests_.at(id);
  request.moving = false;
  const Code failed = status.code() == Code::kDeadlineExceeded ? status.code() : Code::kUnavailable;
  const Code same = Compare(request);
  for (const Moved& page : batch) {
    Code& code = request.codes[page.index];
    code = status.ok() ? same : failed;
    if (!request.store) {
      --page.slot->holds;
      parts_.fetch.Release(request.client, page.slot);
      continue;
    }
    --page.slot->transfers;
    --filling_;
    if (code == Code::kOk) code = Land(request, page);
    if (code != Code::kOk) parts_.slabs.Free(page.slot);
  }
  const ArenaId id_of_pool = request.pool;
  Pool& pool = pools_.at(id_of_pool);
  --pool.copies;
  if (pool.state == State::kLeaving && pool.copies == 0) Release(id_of_pool);
  Advance(id);
}

Code Pools::Land(const Request& request, const Moved& page) {
  // Only a slab that was lost is closed while a page of it is filled.
  if (page.slot.slab->closed()) return Code::kUnavailable;
  Tenant& tenant = parts_.catalog.At(request.tenant);
  const uint32_t tokens = request.valid_tokens.empty() ? 0 : request.valid_tokens[page.index];
  const auto behind = static_cast<uint32_t>(page.index);
  PageFacts facts;
  facts.valid_tokens = tokens == 0 ? request.page_tokens : tokens;
  facts.generation = request.generation;
  facts.committed_ms = parts_.clock.WallMs();
  if (request.chain) {
    facts.position = request.position + behind;
    facts.parent = behind == 0 ? request.parent : request.keys[page.index - 1];
  }
  const Code code =
      parts_.pages.residents().Link(page.slot, NameOf(request, page.index), facts).code();
  if (code == Code::kOk) {
    tenant.counts.committed.Add(request.page_bytes);
  } else if (code == Code::kAlreadyExists) {
    ++tenant.counts.duplicate_commits;
  }
  return code;
}

// Ok: with its codes.
void Pools::Finish(RequestId id, const Status& status) {
  auto entry = requests_.extract(id);
  Request& request = entry.mapped();
  if (!status.ok()) return request.done(status);
  request.done(std::move(request.codes));
}

void Pools::Turn() {
  for (const ArenaId id : std::exchange(retries_, {}))
    Release(id);
  const MonotonicNs now = parts_.clock.Now();
  std::vector<RequestId> waiting;
  for (const auto& [id, request] : requests_) {
    if (!request.moving && !request.waits) waiting.push_back(id);
  }
  for (const RequestId id : waiting) {
    const auto found = requests_.find(id);
    if (found == requests_.end()) continue;
    Request& request = found->second;
    if (request.deadline <= now) {
      for (const size_t index : std::exchange(request.wanted, {}))
        request.codes[index] = Code::kDeadlineExceeded;
    }
    Advance(id);
  }
}

Status Pools::CheckInvariants() const {
  std::map<ArenaId, size_t> copies;
  for (const auto& [id, request] : requests_) {
    if (!pools_.contains(request.pool)) {
      return Status(Code::kInternal, "a pool that is not there is asked for");
    }
    if (request.moving) ++copies[request.pool];
    if (!request.moving && !request.waits && request.wanted.empty()) {
      return Status(Code::kInternal, "a copy of a pool waits for nothing");
    }
  }
  for (const auto& [id, pool] : pools_) {
    if (pool.copies != copies[id]) {
      return Status(Code::kInternal, "a pool counts other copies than are under way");
    }
    if (pool.state == State::kReleasing && pool.copies > 0) {
      return Status(Code::kInternal, "a pool is released while a copy uses it");
    }
  }
  return {};
}

}  // namespace terrace
