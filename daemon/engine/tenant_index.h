// TenantIndex: one tenant's shared memory as the engine sees it: its directory, and the channels of
// its clients.
//
// The engine decides what to link, unlink and free; this carries it out in shared memory by the
// protocol of docs/shared_memory.md. The implementation is a template over the atomics policy
// (index/index_on.h), so that the simulation runs the same code with its own. Owner thread only.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "base/digest.h"
#include "base/status.h"
#include "base/unique_fd.h"
#include "proto/shared_memory.h"

namespace terrace {

using ClientId = uint64_t;

struct PageName {
  uint32_t space_slot = 0;
  uint32_t space_epoch = 0;
  uint32_t part = 0;
  Digest key;
  uint32_t place = 0;  // 0: host memory; else the device of that number.

  friend bool operator==(const PageName&, const PageName&) = default;
};

struct LinkedPage {
  PageName name;
  shm::Handle handle = 0;
  uint32_t bytes = 0;
  uint32_t valid_tokens = 0;
  shm::Tier tier = shm::Tier::kHost;
};

struct ChannelTotals {
  uint64_t lookups = 0;
  uint64_t hits[shm::kTiers] = {};
  uint64_t misses[shm::kMisses] = {};
  uint64_t dropped = 0;
  // Of hits that were timed: all their times, and how many were in each bucket of
  // shm::HitTimeBoundNs.
  uint64_t hit_ns = 0;
  uint64_t hit_times[shm::kHitTimeBuckets] = {};

  void Add(const ChannelTotals& more) {
    lookups += more.lookups;
    for (uint32_t i = 0; i < shm::kTiers; ++i)
      hits[i] += more.hits[i];
    for (uint32_t i = 0; i < shm::kMisses; ++i)
      misses[i] += more.misses[i];
    dropped += more.dropped;
    hit_ns += more.hit_ns;
    for (uint32_t i = 0; i < shm::kHitTimeBuckets; ++i)
      hit_times[i] += more.hit_times[i];
  }
};

// Where memory for directories comes from: sealed memfds in the daemon, plain memory in simulation.
class DirectoryMemory {
 public:
  virtual ~DirectoryMemory() = default;
  struct Region {
    std::span<uint8_t> bytes;  // Zeroed.
    uint64_t token = 0;        // For Free and Descriptor.
  };
  // Cheap: the memory is zeroed but need not be resident yet. At least `bytes`.
  virtual Result<Region> Allocate(size_t bytes) = 0;
  // Makes [offset, offset + kStepBytes) of a region resident, on huge pages where possible: so that
  // a large directory is prepared in steps of bounded length. Best effort.
  static constexpr size_t kStepBytes = 2u << 20;
  virtual void Populate(uint64_t token, size_t offset) = 0;
  virtual void Free(uint64_t token) = 0;  // Clients may still map it.
  // A descriptor that nobody can map writable.
  virtual Result<UniqueFd> Descriptor(uint64_t token) = 0;
};

class TenantIndex {
 public:
  virtual ~TenantIndex() = default;

  // ---- Spaces and generations
  virtual Result<uint32_t> AddSpace(const Digest& id, uint32_t generation_index,
                                    uint64_t page_bytes, uint32_t* epoch) = 0;
  // From here on no reader finds a page of the space; its entries are still to be unlinked. The
  // slot is reused, with a new epoch, after the last of them is gone.
  virtual void RetireSpace(uint32_t slot) = 0;
  virtual uint64_t generation(uint32_t index) const = 0;
  // Every local reader misses from here on.
  virtual void SetGeneration(uint32_t index, uint64_t value) = 0;

  // ---- Pages
  virtual std::optional<LinkedPage> Find(const PageName& name) const = 0;
  // kAlreadyExists if the name is linked, kExhausted if its probe sequence is full. Grows the
  // directory by load factor, a bounded number of entries a call.
  virtual Status Link(const LinkedPage& page) = 0;
  // False if that handle is not linked under that name.
  virtual bool Unlink(const PageName& name, shm::Handle handle) = 0;
  virtual uint64_t linked() const = 0;
  virtual uint64_t linked_in_space(uint32_t slot) const = 0;
  // Visits linked pages of a space (or all: nullopt), until the visitor answers false. The visitor
  // may unlink the page that it is shown, and nothing else.
  virtual void Visit(std::optional<uint32_t> slot,
                     const std::function<bool(const LinkedPage&)>& visitor) const = 0;

  // ---- Channels. The memory stays mapped until RemoveChannel returns.
  virtual void AddChannel(ClientId client, std::span<uint8_t> channel, uint32_t pin_lines) = 0;
  // Folds the channel's counters into totals(). Its pins count no more.
  virtual void RemoveChannel(ClientId client) = 0;
  struct ClientPins {
    ClientId client = 0;
    uint64_t pins = 0;
  };
  // Calls `pinned` with batches of ExtentOf(handle) of every pin word that is set, extents
  // repeated, one client after the other, each batch of one client. Words may hold anything: an
  // extent need not exist. Returns how many pins each client holds.
  virtual std::vector<ClientPins> ScanPins(
      const std::function<void(ClientId client, std::span<const uint64_t> extents)>& pinned) = 0;
  // Reads at most `limit` ring records; handles and slots are unchecked.
  struct RingVisit {
    ClientId client = 0;
    shm::RingKind kind = shm::RingKind::kTouch;
    uint32_t space_slot = 0;
    uint32_t part = 0;
    uint64_t key[2] = {};
    shm::Handle handle = 0;
  };
  virtual uint64_t DrainRings(uint64_t limit,
                              const std::function<void(const RingVisit&)>& visitor) = 0;
  // What the client has written by now; of very much the first part.
  virtual void DrainRingsOf(ClientId client,
                            const std::function<void(const RingVisit&)>& visitor) = 0;
  // Of channels that ended and of live ones.
  virtual ChannelTotals totals() const = 0;
  virtual ChannelTotals totals_of(ClientId client) const = 0;

  // ---- The same in bounded steps, for who asks often. Reread reads live channels, of the clients
  // after `after` in the order in which they were added (their ids only grow), until it has read
  // about `lines` lines of shared memory; a channel has at most some 9,000. `told` adds up what was
  // read of each last, and of channels that ended all.
  struct ReadStep {
    ClientId last = 0;  // The client whose channel was read last; 0: there were no more.
    size_t lines = 0;
  };
  virtual ReadStep Reread(ClientId after, size_t lines) = 0;
  struct Told {
    ChannelTotals totals;
    uint64_t ring_records = 0;  // That waited to be drained.
    uint64_t pins = 0;          // Words that were set.
  };
  virtual Told told() const = 0;

  // ---- The directory itself
  virtual uint64_t directory_id() const = 0;
  virtual uint64_t capacity() const = 0;
  virtual Result<UniqueFd> DirectoryDescriptor() const = 0;
};

// Fails if there is no memory for the first directory. `memory` outlives the index.
Result<std::unique_ptr<TenantIndex>> MakeTenantIndex(DirectoryMemory& memory);

}  // namespace terrace
