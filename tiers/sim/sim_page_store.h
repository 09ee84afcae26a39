// SimPageStore: the page store in memory, whose work completes only when told, with faults by plan.
//
// It plays the disk: it outlives the engines that a test starts on it one after the other. What was
// acknowledged is there after Crash; of what was not, as much as the test says.
//
// It is stricter than the real store where that finds bugs of the engine, and aborts the program
// (TERRACE_CHECK) for: a write to a place that is not allocated or has a page, a read or an erasure
// of what is not there, an erasure of what is read or written, and bytes that changed between the
// begin of a write and its end. Bytes are copied when the work completes, not when it is asked for,
// and a read that is overdue writes into the memory once more just before it ends: memory that was
// given away too early is found by wrong bytes. Owner thread only.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <utility>
#include <vector>

#include "tiers/page_store.h"
#include "tiers/sim/sim_faults.h"

namespace terrace {

struct SimPageStoreOptions {
  uint64_t capacity_bytes = 1u << 30;
  Durability durability = Durability::kProcess;
};

class SimPageStore final : public PageStore {
 public:
  // Of each page, beside its bytes, which are rounded up to as much.
  static constexpr uint64_t kHeaderBytes = 4096;

  explicit SimPageStore(SimPageStoreOptions options = {}) : options_(options) {}

  // ---- PageStore
  Status Restore(const std::function<void(const StoredPage&)>& visit) override;
  std::vector<PlaceId> Allocate(uint32_t bytes, size_t count) override;
  void Release(PlaceId place) override;
  uint64_t PlaceBytes(uint32_t bytes) const override;
  bool writable() const override { return state_ == DeviceState::kServing; }
  uint64_t free_bytes() const override;
  uint64_t capacity_bytes() const override { return options_.capacity_bytes; }
  bool Readable(PlaceId place) const override;
  void Write(std::vector<PageWrite> pages, MonotonicNs deadline,
             std::function<void(size_t, Result<uint64_t>)> done,
             std::function<void(size_t)> ended) override;
  void Read(std::vector<PageRead> pages, MonotonicNs deadline,
            std::function<void(size_t, ReadFault, Status)> done,
            std::function<void(size_t)> ended) override;
  void Erase(std::vector<StoredPage> pages, std::function<void(Status)> done) override;
  void Flush(std::function<void(uint64_t, uint64_t)> progress,
             std::function<void(Status)> done) override;
  void Check(std::vector<StoredPage> pages, Looks looks, MonotonicNs deadline,
             std::function<void(size_t, ReadFault, Status)> done) override;
  void ListEntries(std::string after, size_t limit,
                   std::function<void(Result<Entries>)> done) override;
  void FindEntries(std::vector<StoredPage> pages,
                   std::function<void(Result<std::vector<bool>>)> done) override;
  void DropEntries(std::vector<StoredPage> pages, std::function<void(Status)> done) override;
  void BeginCensus() override;
  void Name(PlaceId place) override { unnamed_.erase(place); }
  std::vector<PlaceId> EndCensus() override;
  void Turn() override { ++turns_; }
  PageStoreReport Report() const override;

  // ---- What the test does
  // Completes up to `limit` of what is pending, oldest first; returns how many.
  size_t RunPending(size_t limit = SIZE_MAX);
  // Completes the one that was asked for as the `index`-th of those that are pending.
  void RunOne(size_t index);
  size_t pending() const { return pending_.size(); }
  // Ends up to `limit` of what is overdue: answered, but still using the memory.
  size_t EndOverdue(size_t limit = SIZE_MAX);
  size_t overdue() const { return overdue_.size(); }
  // The daemon died: of the pending writes and erasures the oldest `reached_disk` took effect.
  // Nothing completes.
  void Crash(size_t reached_disk = 0);
  // As devices of real stores: read-only takes no writes, quarantined and off are not read from
  // either.
  void SetState(DeviceState state) { state_ = state; }
  // From now on the page fails its checks at every read.
  void Corrupt(const StoredName& name, ReadFault fault);

  FaultPlan write_faults;  // Asked when a page's write would complete.
  FaultPlan slow_faults;   // Asked likewise for writes and reads: such a one is overdue.
  FaultPlan erase_faults;  // Asked once a call of Erase.
  FaultPlan read_faults;   // Asked when a page's read would complete: kIo.
  FaultPlan restore_faults;

  size_t pages() const { return pages_.size(); }
  bool Has(const StoredName& name) const;
  bool Corrupted(const StoredName& name) const;
  // The page's entry is gone from the index, and nobody knows; its slot stays.
  void LoseEntry(const StoredName& name);
  uint64_t checked_pages() const { return checked_pages_; }
  uint64_t read_calls() const { return read_calls_; }
  uint64_t write_calls() const { return write_calls_; }
  uint64_t turns() const { return turns_; }
  // Memory that work uses which has not ended: begin and end of each.
  std::vector<std::pair<const uint8_t*, const uint8_t*>> InUse() const;

 private:
  struct OnDisk {
    StoredPage page;
    std::vector<uint8_t> bytes;
    ReadFault fault = ReadFault::kNone;
  };
  // One page of a Write or Read, or one Erase or Flush.
  struct Work {
    enum class Kind : uint8_t { kWrite, kRead, kErase, kFlush, kCheck } kind = Kind::kFlush;
    PageWrite write;
    uint64_t check = 0;  // Of the bytes when the write began.
    PageRead read;
    std::vector<StoredPage> erase;
    std::function<void(Result<uint64_t>)> written;
    std::function<void(ReadFault, Status)> have_read;
    std::function<void()> ended;
    std::function<void(uint64_t, uint64_t)> progress;
    std::function<void(Status)> done;
    std::function<void()> answer;
  };
  void Complete(Work work);
  void CompleteWrite(Work work);
  void CompleteRead(Work work);
  Status EraseNow(const std::vector<StoredPage>& pages);
  // Puts the page on the disk; its serial.
  uint64_t Put(const PageWrite& write);
  ReadFault FaultOf(const StoredPage& page) const;
  ReadFault CheckNow(const StoredPage& page);
  void AddCheck(std::function<void()> answer);
  void Free(PlaceId place);

  const SimPageStoreOptions options_;
  DeviceState state_ = DeviceState::kServing;
  std::map<PlaceId, OnDisk> pages_;
  std::set<PlaceId> lost_;                      // Slots of entries that LoseEntry took.
  std::set<PlaceId> unnamed_;                   // Of a census.
  std::map<PlaceId, uint32_t> allocated_;       // Page bytes of each place that is not free.
  std::map<uint32_t, std::set<PlaceId>> free_;  // By page bytes.
  std::map<PlaceId, uint32_t> busy_;            // Reads and writes that have not ended.
  uint64_t allocated_bytes_ = 0;
  PlaceId last_place_ = 0;
  uint64_t last_serial_ = 0;
  std::deque<Work> pending_;
  std::deque<Work> overdue_;
  DeviceReport counts_;
  uint64_t faults_[kReadFaults] = {};
  uint64_t checked_pages_ = 0;
  uint64_t read_calls_ = 0;
  uint64_t write_calls_ = 0;
  uint64_t turns_ = 0;
};

}  // namespace terrace
