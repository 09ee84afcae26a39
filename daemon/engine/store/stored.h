// Stored: the catalogue of what the page store has: every page by name, with where it lies and what
// has to be the same when it is read; the spaces that they are of; and who leaves next.
//
// A page is in one of three states: being written, stored, being erased; reads of a stored page are
// counted, and what is read or written is erased only afterwards. Names are unique over all states.
// It knows nothing of memory, slots or clients. Owned by the engine; owner thread only.
//
// Memory: 128 bytes a record, 12 in the policy and 4 to 8 in the table: about 150 bytes a page,
// told by bytes(). Limits: kMaxSpaces spaces,
// kMaxSpacesOfTenant of a tenant; kErasedATurn pages a turn leave to make room or are
// found to be of no use, kMaxErasing are being erased for that.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <functional>
#include <list>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <unordered_map>
#include <vector>

#include "base/clock.h"
#include "base/status.h"
#include "daemon/engine/figures.h"
#include "daemon/engine/store/space_record.h"
#include "daemon/policy/policy.h"
#include "tiers/page_store.h"
#include "tiers/tier.h"

namespace terrace {

using SpaceNo = uint32_t;
inline constexpr ItemId kNoRecord = ~ItemId{0};

enum class StoredState : uint8_t { kFree, kWriting, kStored, kErasing };

struct StoredRecord {
  Digest key;
  Digest parent;
  PlaceId place = 0;
  uint64_t serial = 0;
  uint64_t generation = 0;
  int64_t committed_ms = 0;
  SpaceNo space = 0;
  uint32_t part = 0;
  uint32_t bytes = 0;
  uint32_t valid_tokens = 0;
  uint32_t position = 0;
  ItemId next = kNoRecord;  // In its bucket, or of the free ones.
  uint16_t reads = 0;       // That have not ended.
  StoredState state = StoredState::kFree;
  uint8_t item_class = 0;
  bool doomed = false;  // To be erased as soon as it is neither read nor written.
  StoredErasure why = StoredErasure::kRoom;
};
static_assert(sizeof(StoredRecord) == 128);

// A tenant with spaces that have pages there, or had some.
struct StoredTenant {
  std::array<Amount, kItemClasses> totals = {};
  std::list<SpaceNo> spaces;  // The one that was written or read least lately first.
};

// A space with pages in the store, or about to have some.
struct StoredSpace {
  SpaceRecord record;
  uint64_t layout = 0;  // Fingerprint.
  uint64_t pages = 0;
  // Its journal record: none, being written, durable.
  enum class OnRecord : uint8_t { kNo, kSaving, kYes } on_record = OnRecord::kNo;
  MonotonicNs refused_until = 0;  // After a failure of the journal.
  // Nothing of it is served: its pages are erased by and by, for that reason.
  bool doomed = false;
  StoredErasure doom = StoredErasure::kUnknown;
  StoredTenant* tenant = nullptr;
  std::list<SpaceNo>::iterator in_tenant;
};

// Who waits for the journal, or for pages to be gone.
class StoredWaiter {
 public:
  virtual ~StoredWaiter() = default;
  // Prepare has something else to say of the space than to wait.
  virtual void RecordAnswered(SpaceNo space) = 0;
  // The record is another page's from now on.
  virtual void PageGone(ItemId id) = 0;
  // Pages of that size were erased.
  virtual void PlacesMade(uint32_t page_bytes) = 0;
  // After some of these: what waited may go on.
  virtual void GoOn() = 0;
};

class Stored {
 public:
  static constexpr size_t kMaxSpaces = 65536;
  static constexpr size_t kMaxSpacesOfTenant = 4096;
  static constexpr size_t kErasedATurn = 256;
  static constexpr size_t kMaxErasing = 4096;

  Stored(PageStore& store, Journal& journal, const Clock& clock);

  // The spaces from the journal, the pages from the store; once and before anything else. What
  // could not be read back is told in `problems`, one sentence each.
  Status Restore(std::vector<std::string>* problems);

  // ---- Spaces
  // Null unless pages of that space are, or may come to be, in the store.
  const StoredSpace* FindSpace(const Digest& id) const;
  // The space's number, kept as long as it has pages; nullopt while its pages of old are being
  // erased, or when there are too many: then the pages of the one leave that was written or read
  // least lately, of the same tenant if that has too many and else of the one with the most.
  std::optional<SpaceNo> AddSpace(const Digest& id, const std::string& tenant,
                                  const SpaceSpec& spec);
  enum class Readiness : uint8_t { kReady, kWait, kRefused };
  // Whether pages of it may be written: its record has to be durable first.
  Readiness Prepare(SpaceNo space);
  // Its model is another than on record: pages of old are no more what they were.
  void DoomSpace(const Digest& id);

  // ---- Pages
  // In any state.
  ItemId Find(const Digest& space, uint32_t part, const Digest& key) const;
  const StoredRecord& at(ItemId id) const { return records_[id]; }
  // Stored, to be read, and of that generation.
  bool Serves(ItemId id, uint64_t generation) const;
  // Being written, to be served, and of that generation.
  bool Writes(ItemId id, uint64_t generation) const;
  StoredPage PageOf(ItemId id) const;
  uint64_t pages() const { return records_.size() - free_count_; }
  void Touch(ItemId id);
  // Ids are below this; not all of them are pages.
  ItemId end_of_ids() const { return static_cast<ItemId>(records_.size()); }
  const StoredSpace& SpaceAt(SpaceNo space) const { return spaces_[space]; }
  // Stored and to be served, whatever its generation.
  bool Stays(ItemId id) const {
    const StoredRecord& record = records_[id];
    return record.state == StoredState::kStored && !record.doomed && !spaces_[record.space].doomed;
  }
  // As Policy::Best.
  ItemId Best(ItemId after, uint64_t limit, const std::function<bool(ItemId)>& offer) const {
    return policy_->Best(after, limit, offer);
  }
  // Who leaves the store next, among the oldest few; kNoRecord if none of them can.
  ItemId NextVictim();

  // A page about to be written; all of `page` but place, serial and layout. No page has that name,
  // and the space is ready.
  ItemId BeginWrite(SpaceNo space, const StoredPage& page);
  // Of such a page, before it is given to the store.
  void SetPlace(ItemId id, PlaceId place) { records_[id].place = place; }
  void Written(ItemId id, uint64_t serial);
  void WriteFailed(ItemId id);
  void BeginRead(ItemId id);
  void EndRead(ItemId id);
  // It is served no more, and erased as soon as it may be.
  void Erase(ItemId id, StoredErasure why);

  // Erases what is to be erased and makes room ahead of need; true if more is waiting.
  struct Watermarks {
    uint64_t high_bytes = 0;
    uint64_t low_bytes = 0;
  };
  bool Turn(const Watermarks& marks);
  // There was no place for so many pages of that size, though there is room: in the next turn as
  // many of that size leave, at most kErasedATurn.
  void WantPlaces(uint32_t bytes, size_t count);
  // There are some: what was wanted before is not made any more.
  void FoundPlaces(uint32_t bytes) { wanted_places_.erase(bytes); }
  void SetWaiter(StoredWaiter* waiter) { waiter_ = waiter; }

  // ---- Figures
  // What pages take of the store, by tenant and class.
  const std::map<std::string, StoredTenant>& tenants() const { return tenants_; }
  const std::array<Amount, kStoredErasures>& erased() const { return erased_; }
  uint64_t erasing() const { return to_erase_.size() + erasing_; }
  uint64_t used_bytes() const { return used_bytes_; }
  uint64_t spaces() const { return numbers_.size(); }
  uint64_t bytes() const;
  Status CheckInvariants() const;

 private:
  // A part of the hash table, which grows by itself: no call moves more than its share of pages.
  struct Shard {
    std::vector<ItemId> heads;
    size_t records = 0;
  };
  static constexpr size_t kShards = 1024;
  static uint64_t HashOf(SpaceNo space, uint32_t part, const Digest& key);
  Shard& ShardOf(uint64_t hash) { return shards_[hash >> 54]; }
  const Shard& ShardOf(uint64_t hash) const { return shards_[hash >> 54]; }
  uint64_t HashOf(const StoredRecord& record) const {
    return HashOf(record.space, record.part, record.key);
  }
  void Grow(Shard* shard);

  SpaceNo NewSpace(const SpaceRecord& record, uint64_t layout);
  // Pages that nobody can tell the meaning of, by their space and layout.
  using Unknown = std::map<std::pair<Digest, uint64_t>, SpaceNo>;
  void RestorePage(const StoredPage& page, Unknown* unknown);
  SpaceNo UnknownSpace(const StoredPage& page, Unknown* unknown);
  void Doom(SpaceNo space, StoredErasure why);
  // Whether there is room for one more space of the tenant; if not, it is being made.
  bool MakeSpaceRoom(StoredTenant* tenant);
  // After a change of its pages or of its record.
  void NoteEmpty(SpaceNo space);
  // It was written or read.
  void Use(SpaceNo space);
  // Not known to the policy yet.
  ItemId NewRecord(SpaceNo space, const StoredPage& page);
  void InsertIntoPolicy(ItemId id);
  void Remove(ItemId id);
  // Its last page left, or none came.
  void ForgetIfUnused(SpaceNo space);
  void StartErasing(ItemId id);
  bool Idle(const StoredRecord& record) const {
    return record.state == StoredState::kStored && record.reads == 0;
  }
  void MakeRoom(const Watermarks& marks);
  void MakePlaces();
  bool Sweep();
  void SendErasures();
  void Erased(const std::vector<ItemId>& ids, const Status& status);
  Amount& TotalOf(const StoredRecord& record) {
    return spaces_[record.space].tenant->totals[record.item_class];
  }
  bool BacklogFull() const { return to_erase_.size() + erasing_ >= kMaxErasing; }

  PageStore& store_;
  Journal& journal_;
  const Clock& clock_;
  const std::unique_ptr<Policy> policy_;
  StoredWaiter* waiter_ = nullptr;

  std::deque<StoredRecord> records_;  // In pieces: growing moves nothing.
  ItemId free_ = kNoRecord;
  uint64_t free_count_ = 0;
  std::vector<Shard> shards_;

  std::deque<StoredSpace> spaces_;
  std::vector<SpaceNo> free_spaces_;
  std::unordered_map<Digest, SpaceNo, DigestHash> numbers_;  // Of those not doomed.
  // Without pages, and without a journal record that is being written: spaces that were added and
  // got no page.
  std::set<SpaceNo> empty_spaces_;
  size_t leaving_spaces_ = 0;  // Doomed to make room for others.
  std::map<std::string, StoredTenant> tenants_;

  std::deque<ItemId> to_erase_;               // In state kErasing, not sent yet.
  uint64_t erasing_ = 0;                      // Sent.
  uint64_t erasing_bytes_ = 0;                // Of all in state kErasing: room that is coming.
  std::map<uint32_t, size_t> erasing_of_;     // Of all in state kErasing: how many, by page bytes.
  uint64_t used_bytes_ = 0;                   // Of all records.
  MonotonicNs retry_at_ = 0;                  // After a failed erasure.
  std::map<uint32_t, size_t> wanted_places_;  // Of the next turn, by page bytes.
  bool making_room_ = false;  // From above the high watermark until below the low one.
  // The search for pages of doomed spaces: where it goes on, and how many records it has to look at
  // still. Once around for each doom finds them all: none gets a page any more.
  ItemId sweep_ = 0;
  size_t sweep_left_ = 0;
  std::array<Amount, kStoredErasures> erased_ = {};
};

}  // namespace terrace
