// PageWriter: pages on their way into the store, and out of it. One that is written goes into its
// slot, onto the device where it shall survive a power failure, then into the index; one that is
// erased leaves the index before its slot is free.
//
// A write is answered by its deadline, wherever it is then. What is late all the same does no harm:
// a slot that bytes may still go into is not given to another page, and an entry of which nobody
// knows whether it is in the index is erased.
//
// Owner thread, as the callbacks. Limits: options.most pages that have no answer.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <set>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "base/status.h"
#include "tiers/nvme/device.h"
#include "tiers/nvme/file_syncs.h"
#include "tiers/nvme/index_queue.h"
#include "tiers/nvme/mailbox.h"
#include "tiers/page_store.h"

namespace terrace::nvme {

class PageWriter {
 public:
  struct Options {
    StoreUuid store{};
    bool sync = false;  // Pages are on the device before the index may say so.
    size_t most = 4096;
  };

  // All outlive it but `box`, which is shared.
  PageWriter(const Options& options, const Devices& devices, FileSyncs& syncs, IndexQueue& index,
             const Clock& clock, std::shared_ptr<Mailbox> box)
      : options_(options),
        devices_(devices),
        syncs_(syncs),
        index_(index),
        clock_(clock),
        box_(std::move(box)) {}

  // Before the first write: the serials it may give.
  void UseSerials(uint64_t first, uint64_t count) {
    next_serial_ = first;
    end_of_serials_ = first + count;
  }

  // As of PageStore.
  void Write(std::vector<PageStore::PageWrite> pages, MonotonicNs deadline,
             std::function<void(size_t, Result<uint64_t>)> done, std::function<void(size_t)> ended);
  void Erase(std::vector<StoredPage> pages, std::function<void(Status)> done);
  // The slot of a page that is not stored, or not any more.
  void Free(PlaceId place);
  // A write into the place failed, and it is not free yet: bytes may still go there, or an entry of
  // it be in the index.
  bool IsLate(PlaceId place) const { return late_.contains(place); }

  // Answers what is overdue, and erases what is doubtful.
  void Turn();

  size_t waiting() const { return unanswered_.size(); }
  MonotonicNs oldest_ns() const;

 private:
  // One call of Write, as its pages hold it.
  struct Call {
    std::function<void(size_t, Result<uint64_t>)> done;
    std::function<void(size_t)> ended;
  };
  // One page on its way: into its slot, made durable, into the index.
  struct Writing {
    std::shared_ptr<Call> call;
    size_t i = 0;
    IndexEntry entry;
    MonotonicNs began = 0;
    MonotonicNs deadline = 0;
    enum class Stage : uint8_t { kSlot, kSync, kIndex };
    Stage stage = Stage::kSlot;
    std::weak_ptr<Transfer> transfer;  // Into its slot.
    bool io_ended = false;
    bool answered = false;
    bool frees = true;  // Its place, at the end.
  };

  Status Check(const PageStore::PageWrite& write) const;
  std::shared_ptr<Transfer> TransferOf(const PageStore::PageWrite& write,
                                       const std::shared_ptr<Writing>& writing);
  void Written(const std::shared_ptr<Writing>& writing);
  void PutIntoIndex(const std::shared_ptr<Writing>& writing);
  void Answer(const std::shared_ptr<Writing>& writing, const Status& status);
  void AnswerOverdue();
  void End(Writing& writing);
  void Settle(const Writing& writing);
  void EraseDoubtful();

  const Options options_;
  const Devices& devices_;
  FileSyncs& syncs_;
  IndexQueue& index_;
  const Clock& clock_;
  const std::shared_ptr<Mailbox> box_;

  uint64_t next_serial_ = 0;
  uint64_t end_of_serials_ = 0;
  std::set<std::shared_ptr<Writing>> unanswered_;
  std::set<PlaceId> late_;
  // Their entries may or may not be in the index: erased before the slot is used again.
  std::vector<StoredPage> doubtful_;
  bool erasing_doubtful_ = false;
};

}  // namespace terrace::nvme
