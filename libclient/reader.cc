#include "libclient/reader.h"

#include <time.h>

#include <algorithm>
#include <cstring>
#include <new>
#include <set>
#include <utility>

namespace terrace::client {
namespace {

// How often one lookup may find its directory superseded: each time the directory at least doubles.
constexpr int kMaxRenewals = 16;
// Lookups between two looks at whether what was pinned in a life before is released by now.
constexpr uint32_t kDropEvery = 64;
// Sets beyond this are not kept for the next lookup.
constexpr size_t kMaxSpareBytes = 1 << 20;

constexpr size_t SetBytes(size_t places) {
  return sizeof(PageSet) + places * (sizeof(Pinned) + sizeof(Digest));
}

// ---- Hit times

int64_t NowNs() {
  timespec now{};
  ::clock_gettime(CLOCK_MONOTONIC, &now);  // By the vDSO: no system call.
  return int64_t{now.tv_sec} * 1'000'000'000 + now.tv_nsec;
}

// A lookup that is timed begins with BeginTime and ends with CountTime, both out of line: around
// the one place that looks up, so that this stays inline and what others pay is two branches.
//
// When it began, later by what reading the clock takes, for that is as long as many a hit; not 0.
[[gnu::noinline, gnu::cold]] int64_t BeginTime() {
  const int64_t before = NowNs();
  const int64_t begin = NowNs();
  return begin + (begin - before);
}
// Counts the time of each page that it found.
[[gnu::noinline, gnu::cold]] void CountTime(Lane<>& lane, int64_t begin, uint32_t hits) {
  const int64_t ns = std::max<int64_t>(NowNs() - begin, 0);
  if (hits > 0) lane.CountHitTime(static_cast<uint64_t>(ns) / hits);
}

// ---- Tickets: life (16 bits, never 0) | pin word (16) | bytes (32).

uint64_t LifeTag(uint64_t epoch) {
  return (epoch - 1) % 0xffff + 1;
}

Ticket MakeTicket(Life& life, const Pinned& page) {
  const shm::Word* first = life.pins().channel().lines[0].pins;
  const auto word = static_cast<uint64_t>(page.pin - first);
  return LifeTag(life.epoch()) << 48 | word << 32 | page.bytes;
}

}  // namespace

// ---- Berth

Berth* Berth::Take(std::shared_ptr<Life> life) {
  const std::optional<uint32_t> lane = life->TakeLane();
  return lane ? new Berth(std::move(life), *lane) : nullptr;
}

Berth::Berth(std::shared_ptr<Life> life, uint32_t index)
    : life_(std::move(life)),
      number_{*life_, index},
      lane_(life_->pins(), index),
      directory_(life_->directory()) {}

Berth::~Berth() {
  ::operator delete(spare_.load(std::memory_order_acquire));
}

void Berth::Drop() {
  if (holders_.fetch_sub(1, std::memory_order_acq_rel) == 1) delete this;
}

void Berth::GiveSpare(PageSet* set) {
  if (SetBytes(set->capacity_) > kMaxSpareBytes) return ::operator delete(set);
  ::operator delete(spare_.exchange(set, std::memory_order_acq_rel));
}

// ---- PageSet

PageSet* PageSet::Make(Berth& berth, const SpaceFacts& space, size_t places) {
  PageSet* set = berth.TakeSpare();
  if (set != nullptr && set->capacity_ < places) {
    ::operator delete(std::exchange(set, nullptr));
  }
  if (set == nullptr) set = new (::operator new(SetBytes(places))) PageSet(places);
  berth.Hold();
  set->berth_ = &berth;
  set->range_ = space.range;
  set->space_ = space.id;
  set->places_ = 0;
  set->found_ = 0;
  set->tokens_ = 0;
  return set;
}

void PageSet::Release() {
  Berth* berth = berth_;
  berth->lane().Release(pages());
  berth->GiveSpare(this);
  berth->Drop();
}

// The header's size is a multiple of the alignment of what follows.
Pinned* PageSet::Pages() const {
  static_assert(sizeof(PageSet) % alignof(Pinned) == 0);
  return reinterpret_cast<Pinned*>(const_cast<PageSet*>(this) + 1);
}

Digest* PageSet::Keys() const {
  return reinterpret_cast<Digest*>(Pages() + capacity_);
}

const uint8_t* PageSet::DataAt(size_t place) const {
  const Pinned& page = Pages()[place];
  return page.pin == nullptr ? nullptr : std::as_const(berth_->life()).arenas().PageAt(page.handle);
}

// ---- Reader

Result<std::unique_ptr<Reader>> Reader::Make(std::shared_ptr<Client> client) {
  ASSIGN_OR_RETURN(const Contact now, client->contact());
  if (!client->AddReader()) return Status(Code::kExhausted, "this client has 64 readers already");
  Berth* berth = Berth::Take(now.life);
  if (berth == nullptr) {
    client->RemoveReader();
    return Status(Code::kExhausted, "pages that readers before left pinned hold all 64 lanes");
  }
  return std::unique_ptr<Reader>(new Reader(std::move(client), berth));
}

Reader::~Reader() {
  berth_->Drop();
  MutexLock lock(mu_);
  for (Berth* berth : old_)
    berth->Drop();
  client_->RemoveReader();
}

void Reader::SetDevice(std::shared_ptr<Device> device) {
  device_ = std::move(device);
  number_ = device_ == nullptr ? 0 : device_->NumberIn(berth_->life().epoch());
}

bool Reader::Move() {
  std::shared_ptr<Life> life = client_->life();
  Berth* before = berth_;
  if (life == nullptr || life->epoch() == before->life().epoch()) return life != nullptr;
  Berth* berth = Berth::Take(std::move(life));
  if (berth == nullptr) return false;
  moved_.store(true, std::memory_order_release);
  {
    MutexLock lock(mu_);
    berth_ = berth;
    old_.push_back(before);
  }
  if (device_ != nullptr) number_ = device_->NumberIn(berth->life().epoch());
  DropOld();
  return true;
}

void Reader::DropOld() {
  MutexLock lock(mu_);
  // A release is the last that anybody does with a berth, and it is seen here to be over.
  std::erase_if(old_, [](Berth* old) { return old->lane().pins() == 0 && (old->Drop(), true); });
  has_old_ = !old_.empty();
  since_drop_ = 0;
}

Reader::Setting Reader::Ready(const Space& space, uint64_t count, shm::Miss* why) {
  // Nothing of the daemon's is mapped in a forked child, not even the counters.
  *why = shm::Miss::kDisconnected;
  if (client_->in_child()) return {};
  const uint64_t epoch = client_->epoch();
  Berth* berth = berth_;
  if (epoch != 0 && berth->life().epoch() != epoch) {
    if (!Move()) {
      *why = shm::Miss::kBudget;
    } else {
      berth = berth_;
    }
  }
  // What was pinned when a daemon died keeps all of that life's memory: not longer than needed.
  if (has_old_ && ++since_drop_ == kDropEvery) [[unlikely]]
    DropOld();
  // A daemon that was started anew may learn of its devices later.
  if (device_ != nullptr && number_ == 0) [[unlikely]]
    number_ = device_->NumberIn(berth->life().epoch());
  if (epoch != 0 && berth->life().epoch() == epoch) {
    // Read after the epoch: spaces are bound again before the client shows a new one.
    const Binding& binding = space.binding();
    if (binding.life_epoch == epoch) return {berth, &binding.spec};
    *why = shm::Miss::kStale;
  }
  berth->lane().CountMisses(*why, count);
  return {};
}

bool Reader::Renew(Berth& berth) {
  auto newer = client_->NewerDirectory(berth.life(), berth.directory().view.id(),
                                       Deadline::In(client_->options().timeout_ms));
  if (!newer) return false;
  berth.SetDirectory(*std::move(newer));
  return true;
}

bool Reader::MapMissing(Berth& berth, std::span<const Pinned> pages) {
  const ArenaMap& arenas = std::as_const(berth.life()).arenas();
  const auto unmapped = [&](const Pinned& page) {
    return page.pin != nullptr && arenas.PageAt(page.handle) == nullptr;
  };
  if (std::ranges::none_of(pages, unmapped)) [[likely]]
    return false;
  std::set<uint32_t> missing;
  for (const Pinned& page : pages) {
    if (unmapped(page)) missing.insert(shm::ArenaOf(page.handle));
  }
  // What could not be mapped shows below, whatever the reason.
  static_cast<void>(client_->MapArenas(berth.life(), {missing.begin(), missing.end()}, false,
                                       Deadline::In(client_->options().timeout_ms)));
  return std::ranges::any_of(pages, unmapped);
}

Ticket Reader::Pin(const Space& space, const Digest& key, Pinned* page, const uint8_t** data,
                   shm::Miss* why) {
  return device_ == nullptr ? PinBy<false>(space, key, page, data, why)
                            : PinBy<true>(space, key, page, data, why);
}

template <bool kPrefersDevice>
Ticket Reader::PinBy(const Space& space, const Digest& key, Pinned* page, const uint8_t** data,
                     shm::Miss* why) {
  const auto [berth, spec] = Ready(space, 1, why);
  if (berth == nullptr) return 0;
  for (int renewals = 0; renewals < kMaxRenewals; ++renewals) {
    const int64_t begin = berth->lane().TimesNext(1) ? BeginTime() : 0;
    Lookup<shm::StdAtomics, kPrefersDevice> lookup(berth->directory().view, berth->lane(), *spec,
                                                   kPrefersDevice ? number_ : 0);
    const LookupResult result = lookup.One(key, page);
    if (begin != 0) [[unlikely]]
      CountTime(berth->lane(), begin, result.hits);
    if (result.outcome == Outcome::kSuperseded) {
      if (Renew(*berth)) continue;
      break;
    }
    *why = result.reason;
    if (result.outcome == Outcome::kMiss) return 0;
    const ArenaMap& arenas = std::as_const(berth->life()).arenas();
    *data = arenas.PageAt(page->handle);
    if (*data == nullptr) [[unlikely]] {
      if (MapMissing(*berth, {page, 1})) {
        berth->lane().Release({page, 1});
        berth->lane().CountLost(page->tier, shm::Miss::kUnmapped, 1);
        *why = shm::Miss::kUnmapped;
        return 0;
      }
      *data = arenas.PageAt(page->handle);
    }
    return MakeTicket(berth->life(), *page);
  }
  *why = client_->epoch() == 0 ? shm::Miss::kDisconnected : shm::Miss::kBusy;
  berth->lane().CountMisses(*why, 1);
  return 0;
}

void Reader::Unpin(Ticket ticket) {
  const uint64_t tag = ticket >> 48;
  const auto release = [&](Berth& berth) {
    Pinned page;
    page.bytes = static_cast<uint32_t>(ticket);
    page.pin = berth.life().pins().channel().lines[0].pins + (ticket >> 32 & 0xffff);
    berth.lane().Release({&page, 1});
  };
  // A ticket of a later life was handed out after moved_ was set.
  if (!moved_.load(std::memory_order_acquire)) return release(*first_);
  MutexLock lock(mu_);
  if (LifeTag(berth_->life().epoch()) == tag) return release(*berth_);
  for (Berth* old : old_) {
    if (LifeTag(old->life().epoch()) == tag) return release(*old);
  }
}

template <bool kPrefersDevice>
LookupResult Reader::Fill(Berth& berth, const LookupSpec& spec, std::span<const Digest> keys,
                          Want want, PageSet* set) {
  for (int renewals = 0; renewals < kMaxRenewals; ++renewals) {
    const int64_t begin = berth.lane().TimesNext(keys.size()) ? BeginTime() : 0;
    Lookup<shm::StdAtomics, kPrefersDevice> lookup(berth.directory().view, berth.lane(), spec,
                                                   kPrefersDevice ? number_ : 0);
    const std::span<Pinned> pages(set->Pages(), keys.size());
    const LookupResult result =
        want == Want::kPrefix ? lookup.Prefix(keys, pages) : lookup.Each(keys, pages);
    if (begin != 0) [[unlikely]]
      CountTime(berth.lane(), begin, result.hits);
    if (result.outcome != Outcome::kSuperseded) return result;
    if (!Renew(berth)) break;
  }
  std::fill_n(set->Pages(), keys.size(), Pinned());
  const shm::Miss why = client_->epoch() == 0 ? shm::Miss::kDisconnected : shm::Miss::kBusy;
  berth.lane().CountMisses(why, keys.size());
  return {Outcome::kMiss, why, 0};
}

void Reader::LeaveUnmapped(Berth& berth, Want want, PageSet* set, Found* found) {
  const std::span<Pinned> pages(set->Pages(), set->places_);
  bool cut = false;  // A prefix ends before its first page without an address.
  for (size_t i = 0; i < pages.size(); ++i) {
    if (pages[i].pin == nullptr || (!cut && set->DataAt(i) != nullptr)) continue;
    berth.lane().Release(pages.subspan(i, 1));
    berth.lane().CountLost(pages[i].tier, cut ? shm::Miss::kBeyond : shm::Miss::kUnmapped, 1);
    pages[i].pin = nullptr;
    --set->found_;
    if (want == Want::kEach || cut) continue;
    cut = true;
    set->places_ = i;
  }
  found->all = false;
  found->why = shm::Miss::kUnmapped;
}

Reader::Found Reader::Look(const Space& space, std::span<const Digest> keys, Want want) {
  Found found;
  const auto [berth, spec] = Ready(space, keys.size(), &found.why);
  if (berth == nullptr) {
    // An empty set all the same: its places are of no life.
    found.set = PageSet::Make(*berth_, space.facts(), keys.size());
    if (want == Want::kEach) found.set->places_ = keys.size();
    std::fill_n(found.set->Pages(), found.set->places_, Pinned());
    return found;
  }
  PageSet* set = PageSet::Make(*berth, space.facts(), keys.size());
  set->device_ = number_;
  found.set = set;
  const LookupResult result = device_ == nullptr ? Fill<false>(*berth, *spec, keys, want, set)
                                                 : Fill<true>(*berth, *spec, keys, want, set);
  found.all = result.outcome == Outcome::kHit;
  found.why = result.reason;
  set->found_ = result.hits;
  set->places_ = want == Want::kPrefix ? result.hits : keys.size();
  if (MapMissing(*berth, set->pages())) [[unlikely]]
    LeaveUnmapped(*berth, want, set, &found);
  for (const Pinned& page : set->pages())
    set->tokens_ += page.pin != nullptr ? page.valid_tokens : 0;
  std::copy_n(keys.begin(), set->places_, set->Keys());
  return found;
}

}  // namespace terrace::client
