// Reader: one thread's way to look pages up, over daemon lives; and the sets of pages that it pins.
//
// A reader holds a lane of the channel of each life that it still has pins in. What it pinned stays
// readable until released, whatever becomes of the daemon, the reader or the client.
// A reader is used by one thread at a time; releases come from any thread.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "base/digest.h"
#include "base/mutex.h"
#include "base/status.h"
#include "libclient/client.h"
#include "libclient/lane.h"
#include "libclient/life.h"
#include "libclient/lookup.h"
#include "libclient/space.h"

namespace terrace::client {

class PageSet;

// A reader's lane in one life. Counted: its reader holds it, and so does every set that was pinned
// through it.
class Berth {
 public:
  // nullptr: the life has no free lane.
  static Berth* Take(std::shared_ptr<Life> life);
  void Hold() { holders_.fetch_add(1, std::memory_order_relaxed); }
  void Drop();

  Life& life() const { return *life_; }
  Lane<>& lane() { return lane_; }
  const Directory& directory() const { return *directory_; }
  void SetDirectory(std::shared_ptr<const Directory> directory) {
    directory_ = std::move(directory);
  }

  // One released set is kept, so that the next lookup allocates nothing.
  PageSet* TakeSpare() { return spare_.exchange(nullptr, std::memory_order_acq_rel); }
  void GiveSpare(PageSet* set);

 private:
  // The lane's number, given back when the lane has left the pool: the next to take it joins there.
  struct Number {
    Life& life;
    const uint32_t index;
    ~Number() { life.ReturnLane(index); }
  };

  Berth(std::shared_ptr<Life> life, uint32_t index);
  ~Berth();

  const std::shared_ptr<Life> life_;
  const Number number_;
  Lane<> lane_;
  std::shared_ptr<const Directory> directory_;  // The reader's.
  std::atomic<uint32_t> holders_ = 1;
  std::atomic<PageSet*> spare_ = nullptr;
};

// Pinned pages in one block of memory: this header, then a Pinned and a key for each place.
// Constant once its lookup has returned.
class PageSet {
 public:
  static PageSet* Make(Berth& berth, const SpaceFacts& space, size_t places);
  // Unpins. Any thread.
  void Release();

  size_t places() const { return places_; }
  size_t found() const { return found_; }
  uint64_t tokens() const { return tokens_; }
  uint64_t epoch() const { return berth_->life().epoch(); }
  bool in_child() const { return berth_->life().in_child(); }
  const Digest& space() const { return space_; }
  const PageRange& range() const { return *range_; }
  std::span<const Pinned> pages() const { return {Pages(), places_}; }
  std::span<const Digest> keys() const { return {Keys(), places_}; }
  // nullptr for an empty place.
  const uint8_t* DataAt(size_t place) const;
  // The number of the device in whose memory it is; 0: in host memory.
  uint32_t DeviceOf(size_t place) const {
    return Pages()[place].tier == shm::Tier::kDevice ? device_ : 0;
  }

 private:
  friend class Berth;   // Frees it.
  friend class Reader;  // Fills it.

  explicit PageSet(size_t capacity) : capacity_(capacity) {}
  Pinned* Pages() const;
  Digest* Keys() const;

  const size_t capacity_;
  Berth* berth_ = nullptr;
  const PageRange* range_ = nullptr;
  Digest space_;
  uint32_t device_ = 0;  // That the lookup preferred.
  size_t places_ = 0;
  size_t found_ = 0;
  uint64_t tokens_ = 0;
};

// A pin by itself: life, pin word and bytes in one number that is never 0.
using Ticket = uint64_t;

class Reader {
 public:
  static constexpr size_t kMaxKeys = 1 << 20;  // Of one lookup.

  static Result<std::unique_ptr<Reader>> Make(std::shared_ptr<Client> client);
  ~Reader();

  const std::shared_ptr<Client>& client() const { return client_; }

  // Whose copies are preferred from now on; null: host memory alone. The reader's thread's.
  void SetDevice(std::shared_ptr<Device> device);
  uint32_t device_number() const { return number_; }

  // 0: a miss, for `why`.
  Ticket Pin(const Space& space, const Digest& key, Pinned* page, const uint8_t** data,
             shm::Miss* why);
  void Unpin(Ticket ticket);

  enum class Want : uint8_t { kPrefix, kEach };
  struct Found {
    PageSet* set = nullptr;
    bool all = false;
    shm::Miss why = shm::Miss::kAbsent;  // Unless all was found.
  };
  Found Look(const Space& space, std::span<const Digest> keys, Want want);

 private:
  explicit Reader(std::shared_ptr<Client> client, Berth* berth)
      : client_(std::move(client)), first_(berth), berth_(berth) {}

  // The berth and the lookup to make; berth nullptr after `count` misses were counted for `why`.
  struct Setting {
    Berth* berth = nullptr;
    const LookupSpec* spec = nullptr;
  };
  Setting Ready(const Space& space, uint64_t count, shm::Miss* why);
  // Takes a lane in the present life. False: there is none.
  bool Move();
  // Lets go of berths before that have no pins any more, and with the last one of a life its
  // memory.
  void DropOld() EXCLUDES(mu_);
  // Fetches the directory that superseded the berth's.
  bool Renew(Berth& berth);
  // Maps what arenas of `pages` are not; true if some page still has no address.
  bool MapMissing(Berth& berth, std::span<const Pinned> pages);
  template <bool kPrefersDevice>
  Ticket PinBy(const Space& space, const Digest& key, Pinned* page, const uint8_t** data,
               shm::Miss* why);
  template <bool kPrefersDevice>
  LookupResult Fill(Berth& berth, const LookupSpec& spec, std::span<const Digest> keys, Want want,
                    PageSet* set);
  // Gives back the pages of `set` that could not be mapped.
  void LeaveUnmapped(Berth& berth, Want want, PageSet* set, Found* found);

  const std::shared_ptr<Client> client_;
  Berth* const first_;  // Not to be touched any more once moved_ and without pins.
  std::shared_ptr<Device> device_;
  uint32_t number_ = 0;      // Of device_ in the berth's life.
  Berth* berth_;             // The present one. Written by the reader's thread, under mu_.
  bool has_old_ = false;     // Whether old_ has any; the reader's thread's.
  uint32_t since_drop_ = 0;  // Lookups since DropOld, while there are some; likewise.
  // Whether berth_ is no longer first_. Until then a release, which may come from any thread, knows
  // its berth; afterwards it looks for it under mu_.
  std::atomic<bool> moved_ = false;
  Mutex mu_;
  std::vector<Berth*> old_ GUARDED_BY(mu_);  // Berths before, while they have pins.
};

}  // namespace terrace::client
