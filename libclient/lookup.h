// Lookups: the reader's side of the protocol between readers and the evictor
// (docs/shared_memory.md). A hit makes no system call, takes no lock and allocates nothing.
//
// A lookup finds an entry, stores its handle in a pin word, and then, after the pin in the total
// order, reads again whatever could have changed. What is unchanged cannot change any more until
// the pin is released: the daemon scans pins after it unlinks and before it reuses.
//
// A page may lie in several places. A lookup that prefers a device takes the copy there, and that
// of host memory where there is none; one that prefers none never meets memory of a device, and
// pays nothing for that there is some. The two looks are not one moment: a page that is moved from
// one place to the other between them may be missed, as one that is just being evicted.
//
// Every function is called by the lane's owner. When it answers kSuperseded nothing was pinned and
// nothing counted: the caller fetches the newer directory and calls again. Otherwise each key is
// counted as a hit or a miss, touches and the first miss are put into the lane's ring.
#pragma once

#include <cstdint>
#include <span>

#include "base/check.h"
#include "base/digest.h"
#include "libclient/directory_view.h"
#include "libclient/lane.h"
#include "proto/shared_memory.h"

namespace terrace {

enum class Outcome : uint8_t {
  kHit,         // All that was asked for.
  kMiss,        // At least one page was missed; `reason` is that of the first.
  kSuperseded,  // There is a newer directory.
};

struct LookupResult {
  Outcome outcome = Outcome::kMiss;
  shm::Miss reason = shm::Miss::kAbsent;  // Of a miss only.
  uint32_t hits = 0;
};

// What a lookup asks for, the keys apart.
struct LookupSpec {
  SpaceRef space;  // DirectoryView::Valid
  uint32_t part = 0;
};

// kPrefersDevice is known to the compiler, so that a lookup in host memory alone is the code that
// it would be without devices.
template <class Atomics = shm::StdAtomics, bool kPrefersDevice = false>
class Lookup {
 public:
  // `device`: the number of the one whose copies are preferred, where one is.
  Lookup(const DirectoryView<Atomics>& view, Lane<Atomics>& lane, const LookupSpec& spec,
         uint32_t device = 0)
      : view_(view), lane_(lane), spec_(spec), device_(device) {}

  // One page.
  LookupResult One(const Digest& key, Pinned* page) {
    if constexpr (kPrefersDevice) PrefetchHome(key);
    const Step step = PinPage(key, page);
    switch (view_.StandingOf(spec_.space)) {
      case Standing::kSuperseded:
        TakeBack(page);
        return {Outcome::kSuperseded, {}, 0};
      case Standing::kStale:
        TakeBack(page);
        return Missed(key, shm::Miss::kStale);
      case Standing::kCurrent:
        break;
    }
    if (!step.hit) return Missed(key, step.reason);
    lane_.CountHits(page->tier, 1);
    RecordLookup(key, page->handle);
    lane_.Publish();
    return {Outcome::kHit, {}, 1};
  }

  // The longest prefix of `keys` that is there: `hits` pages in the front of `pages`, which has
  // room for all. Either no generation, space or directory changed until the last pin, or nothing
  // is pinned.
  LookupResult Prefix(std::span<const Digest> keys, std::span<Pinned> pages) {
    return Many(keys, pages, /*holes=*/false);
  }

  // Every key that is there: pages[i].pin is nullptr where keys[i] is missing. The rest as Prefix.
  LookupResult Each(std::span<const Digest> keys, std::span<Pinned> pages) {
    return Many(keys, pages, /*holes=*/true);
  }

 private:
  // How many entries ahead a home line is fetched: enough to cover a miss of all caches.
  static constexpr size_t kPrefetchAhead = 16;

  struct Step {
    bool hit = false;
    shm::Miss reason = shm::Miss::kAbsent;
  };

  // Pins the page where it is preferred. The standing of the space is still to be confirmed. Leaves
  // page->pin nullptr if it does not hit.
  Step PinPage(const Digest& key, Pinned* page) {
    if constexpr (kPrefersDevice) {
      const Step step = PinPageIn(device_, key, page);
      if (step.hit || step.reason == shm::Miss::kBudget) return step;
    }
    return PinPageIn(0, key, page);
  }

  // Pins the page in that place and confirms that the pin came in time.
  Step PinPageIn(uint32_t place, const Digest& key, Pinned* page) {
    const uint64_t home = view_.Home(spec_.space, spec_.part, key, place);
    page->pin = nullptr;
    for (int attempt = 0; attempt < shm::kMaxRetries; ++attempt) {
      const auto match = view_.Find(home, spec_.space, spec_.part, key, place);
      if (match.entry == nullptr) return {false, shm::Miss::kAbsent};
      shm::Word* pin = lane_.Pin(match.handle, match.bytes);
      if (pin == nullptr) return {false, shm::Miss::kBudget};
      // After the pin in the total order. Either this reads the handle and the evictor, which takes
      // the handle away before it scans, finds the pin; or this reads that the handle is gone. And
      // because a handle is linked only once, all that Find read belongs to this page.
      if (Atomics::Load(match.entry->handle, std::memory_order_seq_cst) == match.handle) {
        *page = {match.handle, match.bytes, shm::TokensOf(match.tokens), shm::TierOf(match.tokens),
                 pin};
        return {true, {}};
      }
      lane_.Unpin(pin, match.bytes);
    }
    return {false, shm::Miss::kBusy};
  }

  LookupResult Many(std::span<const Digest> keys, std::span<Pinned> pages, bool holes) {
    TERRACE_CHECK(pages.size() >= keys.size());
    pages = pages.first(keys.size());
    for (size_t i = 0; i < keys.size() && i < kPrefetchAhead; ++i)
      PrefetchHome(keys[i]);
    Tally tally;
    size_t looked_at = 0;
    Standing standing = view_.StandingOf(spec_.space);
    if (standing == Standing::kCurrent) {
      while (looked_at < keys.size() && (holes || tally.misses == 0)) {
        if (looked_at + kPrefetchAhead < keys.size()) {
          PrefetchHome(keys[looked_at + kPrefetchAhead]);
        }
        const Digest& key = keys[looked_at];
        const Step step = PinPage(key, &pages[looked_at]);
        tally.Add(step, pages[looked_at].tier);
        ++looked_at;
      }
      standing = view_.StandingOf(spec_.space);
    }
    if (standing != Standing::kCurrent) {
      // All or nothing: what was pinned before the change and after it does not belong together.
      lane_.Release(pages.first(looked_at));
      tally = {};
      looked_at = 0;
      if (standing == Standing::kStale) tally.Miss(shm::Miss::kStale, holes ? keys.size() : 1);
    }
    for (Pinned& page : pages.subspan(looked_at))
      page.pin = nullptr;
    if (standing == Standing::kSuperseded) return {Outcome::kSuperseded, {}, 0};
    tally.Miss(shm::Miss::kBeyond, keys.size() - tally.hits - tally.misses);
    Report(keys.first(looked_at), pages, tally);
    return {tally.misses == 0 ? Outcome::kHit : Outcome::kMiss, tally.first_reason, tally.hits};
  }

  // What became of the keys of one lookup.
  struct Tally {
    uint32_t hits = 0;
    uint64_t misses = 0;
    shm::Miss first_reason = shm::Miss::kAbsent;
    uint64_t by_tier[shm::kTiers] = {};
    uint64_t by_reason[shm::kMisses] = {};

    void Miss(shm::Miss reason, uint64_t count) {
      if (misses == 0 && count > 0) first_reason = reason;
      misses += count;
      by_reason[static_cast<uint32_t>(reason)] += count;
    }
    void Add(const Step& step, shm::Tier tier) {
      if (!step.hit) return Miss(step.reason, 1);
      ++hits;
      ++by_tier[static_cast<uint32_t>(tier)];
    }
  };

  void Report(std::span<const Digest> looked_at, std::span<const Pinned> pages,
              const Tally& tally) {
    for (uint32_t tier = 0; tier < shm::kTiers; ++tier) {
      if (tally.by_tier[tier] > 0) {
        lane_.CountHits(static_cast<shm::Tier>(tier), tally.by_tier[tier]);
      }
    }
    for (uint32_t reason = 0; reason < shm::kMisses; ++reason) {
      if (tally.by_reason[reason] > 0) {
        lane_.CountMisses(static_cast<shm::Miss>(reason), tally.by_reason[reason]);
      }
    }
    for (size_t i = 0; i < looked_at.size(); ++i)
      RecordLookup(looked_at[i], pages[i].pin != nullptr ? pages[i].handle : 0);
    lane_.Publish();
  }

  void TakeBack(Pinned* page) {
    if (page->pin == nullptr) return;
    lane_.Unpin(page->pin, page->bytes);
    page->pin = nullptr;
  }

  LookupResult Missed(const Digest& key, shm::Miss reason) {
    lane_.CountMisses(reason, 1);
    RecordLookup(key, 0);
    lane_.Publish();
    return {Outcome::kMiss, reason, 0};
  }

  // A touch, or with no handle a miss.
  void RecordLookup(const Digest& key, shm::Handle handle) {
    const auto kind = handle != 0 ? shm::RingKind::kTouch : shm::RingKind::kMiss;
    lane_.Record(shm::PackTag(kind, spec_.space.slot, spec_.part), key.Word(0), key.Word(1),
                 handle);
  }

  void PrefetchHome(const Digest& key) const {
    view_.Prefetch(view_.Home(spec_.space, spec_.part, key));
    if constexpr (kPrefersDevice) view_.Prefetch(view_.Home(spec_.space, spec_.part, key, device_));
  }

  const DirectoryView<Atomics>& view_;
  Lane<Atomics>& lane_;
  const LookupSpec spec_;
  const uint32_t device_;
};

}  // namespace terrace
