#include "daemon/engine/store/promotion.h"

#include <algorithm>
#include <utility>
#include <vector>

namespace terrace {
namespace {

// Clients are numbered from 1 on.
constexpr ClientId kNobody = 0;

}  // namespace

void Promotion::Start(const PromoteSpec& spec, KnowsModel knows_model, Progress progress,
                      Done done) {
  if (const Status status = Check(spec); !status.ok()) return done(status);
  if (run_ != nullptr) return done(Status(Code::kExhausted, "pages are being promoted already"));
  run_ = std::make_unique<Run>();
  run_->spec = spec;
  run_->knows_model = std::move(knows_model);
  run_->progress = std::move(progress);
  run_->done = std::move(done);
  run_->total_bytes = TotalOf(spec);
  run_->raised = std::make_shared<Promote::Raised>();
  run_->progress_at = parts_.clock.Now();
}

Status Promotion::Check(const PromoteSpec& spec) const {
  if (!spec.tenant.empty() && parts_.catalog.Find(spec.tenant) == nullptr) {
    return {Code::kNotFound, "tenant '" + spec.tenant + "' is not in the configuration"};
  }
  if (spec.space.IsZero()) return {};
  const StoredSpace* space = parts_.stored.FindSpace(spec.space);
  if (space != nullptr && !space->doomed && space->pages > 0) return {};
  return {Code::kNotFound, "the store has no pages of space " + spec.space.Hex()};
}

// What may come at most, for the progress alone.
uint64_t Promotion::TotalOf(const PromoteSpec& spec) const {
  uint64_t stored = 0;
  for (const auto& [name, tenant] : parts_.stored.tenants()) {
    if (!spec.tenant.empty() && name != spec.tenant) continue;
    for (const Amount& amount : tenant.totals)
      stored += amount.bytes;
  }
  const uint64_t total = std::min(stored, parts_.memory.room());
  return spec.bytes == 0 ? total : std::min(total, spec.bytes);
}

bool Promotion::Turn() {
  if (run_ == nullptr) return false;
  const MonotonicNs now = parts_.clock.Now();
  Amount room = promote_.RoomToRaise();
  room.extents = std::min<uint64_t>(
      room.extents, kPagesUnderWay - std::min(kPagesUnderWay, run_->raised->under_way));
  room.bytes = std::min(room.bytes, kBytesAStep);
  const bool steps = !run_->over && room.extents > 0 && room.bytes > 0;
  if (steps) {
    if (run_->raised->under_way == 0) run_->progress_at = now;  // The device had nothing to do.
    Step(room);
  }
  const Amount& landed = run_->raised->landed;
  if (landed.extents > run_->told_pages) {
    run_->told_pages = landed.extents;
    run_->progress_at = now;
    if (run_->progress) run_->progress(landed.bytes, std::max(run_->total_bytes, landed.bytes));
  }
  const bool idle = run_->raised->under_way == 0;
  if ((run_->over && idle) || now >= run_->progress_at + kStallNs) {
    Finish();
    return false;
  }
  // While clients read all that it leaves them, there is nothing to do before they end.
  return steps && idle;
}

void Promotion::Step(const Amount& room) {
  std::vector<StoredItem> wanted;
  uint64_t bytes = 0;
  const auto offer = [&](ItemId id) {
    ++run_->looked;
    const std::optional<StoredItem> page = Wanted(id);
    if (!page) return true;
    const uint64_t with_it = bytes + parts_.stored.at(id).bytes;
    if (run_->spec.bytes != 0 && run_->taken_bytes + with_it > run_->spec.bytes) {
      run_->over = true;
      return false;
    }
    bytes = with_it;
    wanted.push_back(*page);
    return wanted.size() < room.extents && bytes < room.bytes;
  };
  run_->after = parts_.stored.Best(run_->after, kLooksAStep, offer);
  // Where clients read what is at the turn, the walk begins anew: twice around is enough.
  const uint64_t enough = 2 * parts_.stored.pages() + kLooksAStep;
  run_->over |= run_->after == kNoItem || run_->looked > enough;
  run_->over |= promote_.Raise(wanted, run_->raised) < wanted.size();
  run_->taken_bytes += bytes;
}

std::optional<StoredItem> Promotion::Wanted(ItemId id) {
  if (!parts_.stored.Stays(id)) return std::nullopt;
  const StoredRecord& record = parts_.stored.at(id);
  if (!parts_.store.Readable(record.place) || promote_.InFlight(id)) return std::nullopt;
  const std::optional<OpenSpace>& space = Opened(record.space);
  if (!space) return std::nullopt;
  const Tenant& tenant = parts_.catalog.At(space->tenant);
  const Space* present = parts_.catalog.At(space->tenant).FindSpace(space->slot, space->epoch);
  const PageName name{space->slot, space->epoch, record.part, record.key};
  // The number may be another space's by now.
  if (present == nullptr || present->id != parts_.stored.SpaceAt(record.space).record.id ||
      tenant.index->Find(name) ||
      tenant.index->generation(present->generation_index) != record.generation) {
    return std::nullopt;
  }
  return StoredItem{.tenant = space->tenant, .name = name, .id = id};
}

const std::optional<Promotion::OpenSpace>& Promotion::Opened(SpaceNo number) {
  const auto [entry, added] = run_->spaces.try_emplace(number, std::nullopt);
  if (!added) return entry->second;
  const SpaceRecord& record = parts_.stored.SpaceAt(number).record;
  const Tenant* known = parts_.catalog.Find(record.tenant);
  const bool chosen = (run_->spec.tenant.empty() || run_->spec.tenant == record.tenant) &&
                      (run_->spec.space.IsZero() || run_->spec.space == record.id);
  if (known == nullptr || !chosen) return entry->second;
  Tenant& tenant = parts_.catalog.At(known->id);
  const Result<Space*> space = parts_.catalog.Open(tenant, kNobody, record.spec, run_->knows_model);
  if (space) entry->second = OpenSpace{tenant.id, (*space)->slot, (*space)->epoch};
  return entry->second;
}

void Promotion::Finish() {
  const std::unique_ptr<Run> over = std::move(run_);
  for (const auto& tenant : parts_.catalog.tenants())
    parts_.catalog.ClientGone(*tenant, kNobody);
  const Amount& landed = over->raised->landed;
  over->done(Promoted{.pages = landed.extents, .bytes = landed.bytes});
}

}  // namespace terrace
