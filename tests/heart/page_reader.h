// Test support: pages of plain bytes, and a reader that looks them up and verifies every byte.
#pragma once

#include <atomic>
#include <cstdint>
#include <span>
#include <vector>

#include "base/random.h"
#include "libclient/lookup.h"
#include "tests/heart/pager.h"

namespace terrace {

// Slots of kPageBytes. Plain memory on purpose: ThreadSanitizer then sees whether the protocol
// orders a reader's reads and the evictor's next write.
class PlainPages {
 public:
  static constexpr uint32_t kPageBytes = 256;
  static constexpr size_t kWords = kPageBytes / 8;

  explicit PlainPages(std::span<uint8_t> memory)
      : words_(reinterpret_cast<uint64_t*>(memory.data())) {}

  static Digest Key(uint64_t number) { return KeyOf(number); }
  void Write(uint32_t slot, const PageContent& content) {
    uint64_t* const page = words_ + slot * kWords;
    page[0] = content.key;
    page[1] = content.generation;
    page[2] = content.nonce;
    for (size_t i = 3; i < kWords; ++i)
      page[i] = Filling(content, i);
  }
  // False if not all bytes are of one writing.
  bool Read(uint32_t slot, PageContent* content) const {
    const uint64_t* const page = words_ + slot * kWords;
    *content = {page[0], page[1], page[2]};
    bool whole = true;
    for (size_t i = 3; i < kWords; ++i)
      whole &= page[i] == Filling(*content, i);
    return whole;
  }

 private:
  static uint64_t Filling(const PageContent& content, size_t i) {
    return (content.key << 40 ^ content.generation << 32 ^ content.nonce) * 0x9e3779b97f4a7c15 + i;
  }

  uint64_t* words_;
};

struct ReaderFigures {
  uint64_t lookups = 0;  // Keys asked for.
  uint64_t hits = 0;
  uint64_t wrong = 0;  // Pages that were not what was asked for, or changed while pinned.
};

// Where a reader gets the newest directory and the open space from.
class Board {
 public:
  virtual ~Board() = default;
  virtual void Fetch(DirectoryView<>* view, SpaceRef* space) = 0;
};

class PageReader {
 public:
  struct Held {
    Pinned page;
    PageContent content;
  };

  // Prefers copies on that device; 0: host memory alone.
  PageReader(Board& board, const PlainPages& pages, Lane<>& lane, uint64_t keys, uint64_t seed,
             uint32_t device = 0)
      : board_(board), pages_(pages), lane_(lane), keys_(keys), device_(device), random_(seed) {
    for (uint64_t key = 0; key < keys + kMaxCount; ++key)
      digests_.push_back(KeyOf(key));
    board_.Fetch(&view_, &space_);
  }

  // The page of one key, held for no longer than it takes to verify it.
  void Touch() {
    LookUp(1, /*holes=*/false);
    if (!held_.empty()) Release(TakeHeld());
  }
  // One lookup of some kind, and the release of something held.
  void Step() {
    switch (random_.Below(4)) {
      case 0:
        LookUp(kMaxCount, /*holes=*/false);
        break;
      case 1:
        LookUp(kMaxCount, /*holes=*/true);
        break;
      default:
        LookUp(1, false);
    }
    while (held_.size() > 24 || (!held_.empty() && random_.Chance(1, 2)))
      Release(TakeHeld());
  }
  // Verifies once more, then lets go.
  void Release(const Held& held) {
    figures_.wrong += Unchanged(held) ? 0 : 1;
    lane_.Release({&held.page, 1});
  }
  // The same, for any other thread.
  void ReleaseFromElsewhere(const Held& held) {
    wrong_elsewhere_ += Unchanged(held) ? 0 : 1;
    lane_.Release({&held.page, 1});
  }
  uint64_t wrong_elsewhere() const { return wrong_elsewhere_; }
  Held TakeHeld() {
    std::swap(held_[random_.Below(held_.size())], held_.back());
    const Held held = held_.back();
    held_.pop_back();
    return held;
  }
  bool holds_any() const { return !held_.empty(); }
  void ReleaseAll() {
    while (!held_.empty())
      Release(TakeHeld());
  }

  const ReaderFigures& figures() const { return figures_; }

 private:
  static constexpr size_t kMaxCount = 8;  // Keys of one lookup.

  void LookUp(size_t count, bool holes) {
    const uint64_t first = random_.Below(keys_);
    const std::span<const Digest> keys = std::span(digests_).subspan(first, count);
    Pinned room[kMaxCount];
    const std::span<Pinned> pages(room, count);
    LookupResult result;
    // A fence or a growth may come again before the next try; each try is a new chance.
    for (int attempt = 0; attempt < 100; ++attempt) {
      Lookup<shm::StdAtomics, true> lookup(view_, lane_, {space_, 0}, device_);
      result = count == 1 ? lookup.One(keys[0], room)
               : holes    ? lookup.Each(keys, pages)
                          : lookup.Prefix(keys, pages);
      if (result.outcome != Outcome::kSuperseded) break;
      board_.Fetch(&view_, &space_);
    }
    if (result.outcome == Outcome::kSuperseded) return;
    figures_.lookups += count;
    if (result.outcome == Outcome::kMiss && result.reason == shm::Miss::kStale) {
      board_.Fetch(&view_, &space_);
    }
    for (size_t i = 0; i < count; ++i) {
      if (pages[i].pin != nullptr) Verify(first + i, pages[i]);
    }
  }

  bool Unchanged(const Held& held) const {
    PageContent now;
    return pages_.Read(shm::SlotOf(held.page.handle), &now) && now == held.content;
  }

  void Verify(uint64_t key, const Pinned& page) {
    Held held{page, {}};
    const bool whole = pages_.Read(shm::SlotOf(page.handle), &held.content);
    const bool right = whole && held.content.key == key &&
                       held.content.generation == space_.generation &&
                       page.bytes == PlainPages::kPageBytes && page.valid_tokens == 16;
    ++figures_.hits;
    figures_.wrong += right ? 0 : 1;
    held_.push_back(held);
  }

  Board& board_;
  const PlainPages& pages_;
  Lane<>& lane_;
  const uint64_t keys_;
  const uint32_t device_;
  Random random_;
  std::vector<Digest> digests_;
  DirectoryView<> view_;
  SpaceRef space_;
  std::vector<Held> held_;
  ReaderFigures figures_;
  std::atomic<uint64_t> wrong_elsewhere_ = 0;
};

}  // namespace terrace
