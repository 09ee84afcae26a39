#include "daemon/engine/store/store_tier.h"

#include <algorithm>
#include <unordered_map>
#include <utility>

namespace terrace {
namespace {

constexpr MonotonicNs kStoreTurnNs = 100 * kNsPerMs;
// Pages looked at and let go by one step of a demotion.
constexpr uint64_t kDemotedAStep = 512;
// So long without a page that left, and a demotion is over: the device does not answer.
constexpr MonotonicNs kDemotionStallNs = 30 * kNsPerSecond;

}  // namespace

StoreTier::StoreTier(const StoreOptions& options, const Parts& parts)
    : parts_(parts),
      sketch_(options.sketch_counters),
      stored_(parts.store, parts.journal, parts.clock),
      spill_(options, PartsOfAll()),
      holds_(parts.clients),
      promote_(options, PartsOfAll(), parts.residents, parts.placement, holds_),
      promotion_(PartsOfAll(), promote_),
      check_(PartsOfChecks(options), [this] { return promote_.reading_pages() > 0; }),
      scrub_(PartsOfChecks(options), options.scrub_bytes_per_second) {
  stored_.SetWaiter(&spill_);
}

StoreParts StoreTier::PartsOfAll() {
  return {.stored = stored_,
          .catalog = parts_.catalog,
          .memory = parts_.memory,
          .host = parts_.host,
          .store = parts_.store,
          .sketch = sketch_,
          .clock = parts_.clock};
}

CheckParts StoreTier::PartsOfChecks(const StoreOptions& options) {
  return {.stored = stored_,
          .store = parts_.store,
          .clock = parts_.clock,
          .deadline_ns = options.read_deadline_ms * kNsPerMs};
}

void StoreTier::SpaceOpened(const Space& space) {
  const StoredSpace* stored = stored_.FindSpace(space.id);
  if (stored != nullptr && stored->record.spec.model != space.spec.model) {
    stored_.DoomSpace(space.id);
  }
}

const SpaceSpec* StoreTier::SpecOf(const std::string& tenant, const Digest& space) const {
  const StoredSpace* stored = stored_.FindSpace(space);
  const bool served = stored != nullptr && !stored->doomed && stored->pages > 0;
  return served && stored->record.tenant == tenant ? &stored->record.spec : nullptr;
}

bool StoreTier::Drop(const Space& space, uint32_t part, const Digest& key) {
  const ItemId id = stored_.Find(space.id, part, key);
  if (id == kNoRecord || stored_.at(id).doomed) return false;
  stored_.Erase(id, StoredErasure::kDropped);
  return true;
}

void StoreTier::Prefetch(const Client& client, const Space& space, const PrefetchSpec& spec,
                         Promote::Done done) {
  // What it found before it asked says nothing of what it waits for from here on.
  parts_.placement.DrainRingsOf(client.spec.tenant, client.given.id);
  // It is refused for what it has pinned, not for what it had.
  const uint64_t pages = spec.keys.size();
  if (client.pins > 0 && !holds_.WithinBudget(client, pages, pages * space.page_bytes)) {
    parts_.pins.ScanIfDue(client.spec.tenant);
  }
  if (Status served = client.Served(); !served.ok()) return done(std::move(served));
  promote_.Prefetch(client, space, spec, std::move(done));
}

void StoreTier::Told(TenantId tenant, const TenantIndex::RingVisit& visit) {
  sketch_.Add(SketchItem(visit.key[0], visit.part));
  if (visit.kind != shm::RingKind::kTouch) return;
  const auto slot = parts_.memory.slabs().FindSlot(tenant, shm::ExtentOf(visit.handle));
  // Of an earlier stay of another page in that slot it says nothing.
  if (!slot || (*slot)->state != SlotState::kLinked ||
      (*slot)->sequence != shm::SequenceOf(visit.handle)) {
    return;
  }
  holds_.Release(visit.client, *slot);
}

// ---- Making pages durable

void StoreTier::Persist(const Client& client, const Space& space, const PersistSpec& spec,
                        Persisted done) {
  if (parts_.store.Report().durability == Durability::kNone) {
    return done(Status(Code::kMismatch, "the store promises no durability"));
  }
  if (persists_ == kMaxPersists) {
    return done(Status(Code::kExhausted, "too many requests wait for pages to be durable already"));
  }
  ++persists_;
  struct Request {
    std::vector<Code> codes;
    std::vector<size_t> same_as;  // Of each key, the last index with it: that one is asked for.
    size_t left = 0;
    Persisted done;
  };
  const auto request = std::make_shared<Request>();
  request->codes.assign(spec.keys.size(), Code::kNotFound);
  request->left = 1;  // For this call, so that none answers before it ends.
  request->done = std::move(done);
  const auto answer = [this, request](size_t index, Code code) {
    if (index < request->codes.size()) request->codes[index] = code;
    if (--request->left > 0) return;
    --persists_;
    for (size_t i = 0; i < request->codes.size(); ++i)
      request->codes[i] = request->codes[request->same_as[i]];
    request->done(std::move(request->codes));
  };
  const Tenant& tenant = parts_.catalog.At(client.spec.tenant);
  const uint64_t generation = tenant.index->generation(space.generation_index);
  request->same_as.resize(spec.keys.size());
  std::unordered_map<Digest, size_t, DigestHash> asked;
  // Backwards, since each goes to the head of the queue.
  for (size_t i = spec.keys.size(); i-- > 0;) {
    const auto [first, added] = asked.emplace(spec.keys[i], i);
    request->same_as[i] = first->second;
    if (!added) continue;
    ++request->left;
    if (stored_.Serves(stored_.Find(space.id, spec.part, spec.keys[i]), generation)) {
      answer(i, Code::kOk);
      continue;
    }
    const auto page = tenant.index->Find({spec.slot, spec.epoch, spec.part, spec.keys[i]});
    if (!page) {
      answer(i, Code::kNotFound);
      continue;
    }
    const auto slot = parts_.memory.slabs().FindSlot(tenant.id, shm::ExtentOf(page->handle));
    spill_.Persist(client.given.id, *slot, [answer, i](Code code) { answer(i, code); });
  }
  (void)spill_.Pump();
  answer(spec.keys.size(), Code::kOk);
}

void StoreTier::Demote(uint64_t bytes, Progress progress,
                       std::function<void(Result<Demoted>)> done) {
  if (demotion_ != nullptr) {
    return done(Status(Code::kExhausted, "pages are being demoted already"));
  }
  demotion_ = std::make_unique<Demotion>();
  demotion_->wanted = bytes;
  const uint64_t linked = parts_.memory.books().bytes[static_cast<size_t>(SlotState::kLinked)];
  demotion_->total = bytes == 0 ? linked : std::min(bytes, linked);
  demotion_->told = std::move(progress);
  demotion_->left_at = parts_.clock.Now();
  demotion_->done = std::move(done);
}

// True if the next step need not wait for the store.
bool StoreTier::StepDemotion() {
  if (demotion_ == nullptr) return false;
  Demotion& under_way = *demotion_;
  const uint64_t left = under_way.wanted == 0 ? 0 : under_way.wanted - under_way.so_far.bytes;
  const EvictionDone done = parts_.placement.Demote(left, kDemotedAStep);
  under_way.so_far.pages += done.pages;
  under_way.so_far.bytes += done.bytes;
  const MonotonicNs now = parts_.clock.Now();
  if (done.pages > 0) {
    under_way.left_at = now;
    if (under_way.told) {
      under_way.told(under_way.so_far.bytes, std::max(under_way.total, under_way.so_far.bytes));
    }
  }
  const bool enough = under_way.wanted != 0 && under_way.so_far.bytes >= under_way.wanted;
  const bool deferred = parts_.evictor.deferred_pages() > 0;
  under_way.in_vain = done.pages > 0 || deferred ? 0 : under_way.in_vain + done.looked;
  const bool nothing = done.pages == 0 && !deferred &&
                       (done.refused || under_way.in_vain >= parts_.residents.count());
  if (!enough && !nothing && now < under_way.left_at + kDemotionStallNs) {
    return done.pages > 0 || under_way.in_vain > 0;
  }
  const std::unique_ptr<Demotion> over = std::move(demotion_);
  over->done(over->so_far);
  return false;
}

// ---- Time

void StoreTier::ClientGone(ClientId client) {
  promote_.ClientGone(client);
  spill_.ClientGone(client);
  holds_.ClientGone(client);
  check_.ClientGone(client);
}

bool StoreTier::Turn() {
  const MonotonicNs now = parts_.clock.Now();
  if (now >= turned_at_ + kStoreTurnNs) {
    turned_at_ = now;
    parts_.store.Turn();
  }
  holds_.Turn(now);
  bool more = promote_.Turn();
  more |= promotion_.Turn();
  more |= StepDemotion();
  more |= stored_.Turn(spill_.watermarks());
  more |= spill_.Turn();
  more |= check_.Turn();
  scrub_.Turn(promote_.reading_pages() > 0 || check_.under_way());
  return more;
}

// ---- Figures

const std::array<Amount, kItemClasses>* StoreTier::TotalsOf(const std::string& tenant) const {
  const auto found = stored_.tenants().find(tenant);
  return found == stored_.tenants().end() ? nullptr : &found->second.totals;
}

StoreFigures StoreTier::Figures() {
  StoreFigures figures;
  figures.present = true;
  figures.store = parts_.store.Report();
  figures.capacity_bytes = parts_.store.capacity_bytes();
  figures.free_bytes = parts_.store.free_bytes();
  figures.used_bytes = stored_.used_bytes();
  for (const auto& [tenant, stored] : stored_.tenants()) {
    if (parts_.catalog.Find(tenant) != nullptr) continue;
    for (int of = 0; of < kItemClasses; ++of) {
      figures.absent[of].extents += stored.totals[of].extents;
      figures.absent[of].bytes += stored.totals[of].bytes;
    }
  }
  figures.pages = stored_.pages();
  figures.spaces = stored_.spaces();
  figures.catalog_bytes = stored_.bytes();
  figures.spilled = spill_.spilled();
  figures.promoted = promote_.promoted();
  figures.spill_times = spill_.times();
  figures.promote_times = promote_.times();
  std::copy(stored_.erased().begin(), stored_.erased().end(), figures.erased);
  std::copy(spill_.unspilled().begin(), spill_.unspilled().end(), figures.unspilled);
  std::copy(promote_.faults().begin(), promote_.faults().end(), figures.faults);
  figures.prefetched_keys = promote_.asked_keys();
  figures.prefetched_in_memory = promote_.found_in_memory();
  figures.stale_reads = promote_.stale_reads();
  figures.scrub_bytes_per_second = scrub_.bytes_per_second();
  figures.scrubbed = scrub_.read();
  std::copy(std::begin(scrub_.faults()), std::end(scrub_.faults()), figures.scrub_faults);
  figures.scrub_rounds = scrub_.rounds();
  figures.queued_pages = spill_.queued_pages();
  figures.writing_pages = spill_.writing_pages();
  figures.writing_bytes = spill_.writing_bytes();
  figures.erasing_pages = stored_.erasing();
  figures.reading_pages = promote_.reading_pages();
  figures.reading_bytes = promote_.reading_bytes();
  figures.requests = promote_.requests();
  figures.holds = holds_.count();
  figures.held_bytes = holds_.bytes();
  figures.write_budget_bytes = spill_.budget_left();
  figures.fetch_latency_ns = promote_.speed().latency_ns();
  figures.fetch_bytes_per_second = promote_.speed().bytes_per_second();
  return figures;
}

Status StoreTier::CheckInvariants() const {
  RETURN_IF_ERROR(stored_.CheckInvariants());
  return promote_.CheckInvariants();
}

}  // namespace terrace
