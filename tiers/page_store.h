// PageStore: pages that outlive memory and the daemon, as the engine sees them. The engine decides
// which page is kept and knows by name what is there; the store has the places, moves the bytes,
// and checks them.
//
// Owner thread only. Callbacks come on the owner thread, never from within the call that started
// the work, in any order.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/digest.h"
#include "base/status.h"

namespace terrace {

// What a durable acknowledgement promises.
enum class Durability : uint8_t {
  kNone,     // Nothing: nobody gets one.
  kProcess,  // The page survives the end of the daemon, however it ends.
  kPower,    // And that of the host.
};

struct StoredName {
  Digest space;
  Digest key;
  uint32_t part = 0;

  friend bool operator==(const StoredName&, const StoredName&) = default;
};

// A slot of a file of a device: opaque, never 0, and the same after a restart.
using PlaceId = uint64_t;

// What is kept beside a page's bytes and must be the same when it is read.
struct StoredPage {
  StoredName name;
  PlaceId place = 0;
  uint64_t serial = 0;  // Of this writing of the page: given by the store, never used again.
  uint32_t bytes = 0;
  uint32_t valid_tokens = 0;
  uint64_t generation = 0;
  uint64_t layout = 0;       // Fingerprint of the space's layout.
  Digest parent;             // The key that this page extends; zero: none, or not told.
  uint32_t position = 0;     // Pages before it in its chain; 0 where that was not told.
  uint8_t item_class = 0;    // As ItemClass of the policies.
  int64_t committed_ms = 0;  // Unix time.
};

// How a device of the store is. Pages on one that is not read from are misses, and stay known.
enum class DeviceState : uint8_t {
  kServing,
  kReadOnly,     // It took no write (full, read-only, failing): nothing is written any more.
  kQuarantined,  // It stopped answering or failed too often: probed, and taken back when it
                 // answers.
  kOff,          // Its directory is gone or damaged beyond use; until the next start.
};

struct DeviceReport {
  std::string path;
  DeviceState state = DeviceState::kServing;
  std::string why;  // Of any other state; of this one, that its file system is full.
  uint64_t capacity_bytes = 0;
  uint64_t allocated_bytes = 0;  // Slots with a page or about to have one, headers included.
  uint64_t file_bytes = 0;       // Of slot files.
  uint64_t reads = 0;
  uint64_t writes = 0;
  uint64_t read_bytes = 0;
  uint64_t written_bytes = 0;
  uint64_t read_errors = 0;  // Of the file system or device.
  uint64_t write_errors = 0;
  uint64_t overdue = 0;  // Deadlines missed.
  uint32_t in_flight = 0;
  uint64_t waiting = 0;  // Transfers whose turn has not come.
};

// Why a page that was read was not served.
enum class ReadFault : uint8_t {
  kNone,
  kIo,       // The device or the file system: EIO, a file that is gone or too short.
  kOverdue,  // No answer within the deadline.
  kHeader,   // The header's own checksum, or its magic and format.
  kName,     // Another page's: a swapped or reused slot.
  kStale,    // An older writing, or another generation or layout.
  kData,     // The bytes' checksum.
  kRefused,  // Not tried: the device is not read from, or too much is waiting.
};
inline constexpr int kReadFaults = 8;
// A page that can never be right again.
inline bool IsLost(ReadFault fault) {
  return fault == ReadFault::kHeader || fault == ReadFault::kName || fault == ReadFault::kStale ||
         fault == ReadFault::kData;
}

struct PageStoreReport {
  std::string io;  // The means, in words.
  Durability durability = Durability::kNone;
  std::vector<DeviceReport> devices;
  uint64_t faults[kReadFaults] = {};
  uint64_t orphans = 0;             // Entries that the last Restore left out.
  uint64_t index_bytes = 0;         // On disk.
  uint64_t index_syncs = 0;         // Of its log, since it was opened last.
  uint64_t waiting = 0;             // Pages given to Write and not answered.
  MonotonicNs oldest_write_ns = 0;  // Since the first of them was given.
};

// At pages that are checked: for the first time, or once more at those that could not be read.
enum class Looks : uint8_t { kFirst, kAgain };

class PageStore {
 public:
  virtual ~PageStore() = default;

  // Tells every page that is there, once and before anything else. Blocks for as long as reading
  // the index takes. What the index says of places that are not there is left out and counted as
  // orphans.
  virtual Status Restore(const std::function<void(const StoredPage&)>& visit) = 0;

  // ---- Places
  // Up to `count` places for pages of `bytes`: neighbours of one file as far as there are any, and
  // fewer than asked for when no device that is written to has more.
  virtual std::vector<PlaceId> Allocate(uint32_t bytes, size_t count) = 0;
  // Of Allocate, and neither written nor to be written.
  virtual void Release(PlaceId place) = 0;
  // What a page of that size takes of the capacity.
  virtual uint64_t PlaceBytes(uint32_t bytes) const = 0;
  // Whether any device is written to now.
  virtual bool writable() const = 0;
  // Of all devices that are written to, and not allocated.
  virtual uint64_t free_bytes() const = 0;
  virtual uint64_t capacity_bytes() const = 0;
  // Whether the device of the place is read from now.
  virtual bool Readable(PlaceId place) const = 0;

  // ---- Pages
  struct PageWrite {
    StoredPage page;                 // All but the serial.
    std::span<const uint8_t> bytes;  // The store's until `ended`.
  };
  // `done(i, serial or why not)`: the page is found by the next Restore, as durable as the store
  // is. After a failure the place is the store's again; it must not be released.
  // `ended(i)`: nothing reads the bytes any more; after `done`, with it or later.
  virtual void Write(std::vector<PageWrite> pages, MonotonicNs deadline,
                     std::function<void(size_t, Result<uint64_t>)> done,
                     std::function<void(size_t)> ended) = 0;

  struct PageRead {
    StoredPage page;          // As it was told by Restore, or written with its serial.
    std::span<uint8_t> into;  // page.bytes; the store's until `ended`.
  };
  // `done(i, fault, status)`: kNone: the bytes are those of that page. With any other the memory
  // holds anything.
  // `ended(i)`: nothing writes into the memory any more; after `done`, with it or later.
  virtual void Read(std::vector<PageRead> pages, MonotonicNs deadline,
                    std::function<void(size_t, ReadFault, Status)> done,
                    std::function<void(size_t)> ended) = 0;

  // The pages are found no more, not even after a restart, when `done` is called; their places are
  // free then. Nobody reads or writes them.
  virtual void Erase(std::vector<StoredPage> pages, std::function<void(Status)> done) = 0;

  // All that was acknowledged before is durable as kPower says, whatever the store's durability.
  // `progress`, which may be empty: how many bytes of pages are, of those that were to become so.
  virtual void Flush(std::function<void(uint64_t done_bytes, uint64_t total_bytes)> progress,
                     std::function<void(Status)> done) = 0;

  // ---- Checking, beside all that goes on
  // As Read, into memory of the store's own, header and bytes: a few MiB of pages a call. What the
  // device cannot read is found, and not held against it; no answer within the deadline is. At a
  // second look it is held against the device too: one that answers nothing any more has no damage
  // in its pages.
  virtual void Check(std::vector<StoredPage> pages, Looks looks, MonotonicNs deadline,
                     std::function<void(size_t, ReadFault, Status)> done) = 0;
  // Entries of the index: those after `after`, at most `limit` of them.
  struct Entries {
    std::vector<StoredPage> pages;
    uint64_t unreadable = 0;  // Records there that are none.
    std::string last;         // Where the next call goes on; empty: these were the last.
  };
  virtual void ListEntries(std::string after, size_t limit,
                           std::function<void(Result<Entries>)> done) = 0;
  // Of each page whether the index has this very writing of it. What was erased before, or is about
  // to be erased after a write that failed, it has not.
  virtual void FindEntries(std::vector<StoredPage> pages,
                           std::function<void(Result<std::vector<bool>>)> done) = 0;
  // As Erase, of entries that nobody knows: their places stay as they are.
  virtual void DropEntries(std::vector<StoredPage> pages, std::function<void(Status)> done) = 0;
  // A census of places, one at a time: between begin and end every place is named that anybody
  // knows of. Answers those that were allocated all the while, are not in use by the store itself,
  // and were not named.
  virtual void BeginCensus() = 0;
  virtual void Name(PlaceId place) = 0;
  virtual std::vector<PlaceId> EndCensus() = 0;

  // About every 100 ms: probes devices in quarantine, gives files without pages back.
  virtual void Turn() = 0;
  virtual PageStoreReport Report() const = 0;
};

}  // namespace terrace
