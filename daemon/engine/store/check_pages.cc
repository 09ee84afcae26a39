#include "daemon/engine/store/check_pages.h"

#include <memory>
#include <utility>

namespace terrace {
namespace {

constexpr size_t kLooks = 4096;

struct Batch {
  Mend mend = Mend::kNothing;
  std::vector<ItemId> ids;      // Being read.
  std::vector<ItemId> to_read;  // Once more.
  bool again = false;           // Those are.
  size_t left = 0;
  PagesChecked checked;
  std::function<void(const PagesChecked&)> done;
};

void Judge(const CheckParts& parts, ItemId id, Mend mend, ReadFault fault, const Status& status,
           PagesChecked* checked) {
  const StoredRecord& record = parts.stored.at(id);
  if (fault == ReadFault::kRefused || fault == ReadFault::kOverdue) {
    ++checked->not_read;
    return;
  }
  checked->read.Add(record.bytes);
  if (fault == ReadFault::kNone || !parts.stored.Stays(id)) return;
  ++checked->faults[static_cast<size_t>(fault)];
  checked->what.push_back(status.message());
  const bool lost =
      IsLost(fault) || (mend == Mend::kUnreadableToo && parts.store.Readable(record.place));
  if (mend == Mend::kNothing || !lost) return;
  ++checked->erased;
  parts.stored.Erase(id, StoredErasure::kFault);
}

void ReadPages(const CheckParts& parts, const std::shared_ptr<Batch>& batch) {
  std::vector<StoredPage> pages;
  for (const ItemId id : batch->ids)
    pages.push_back(parts.stored.PageOf(id));
  batch->left = pages.size();
  parts.store.Check(
      std::move(pages), batch->again ? Looks::kAgain : Looks::kFirst,
      parts.clock.Now() + parts.deadline_ns,
      [parts, batch](size_t i, ReadFault fault, const Status& status) {
        const ItemId id = batch->ids[i];
        // What is about to be erased for it may have been a fault of the moment.
        if (fault == ReadFault::kIo && batch->mend == Mend::kUnreadableToo && !batch->again) {
          batch->to_read.push_back(id);
        } else {
          Judge(parts, id, batch->mend, fault, status, &batch->checked);
          parts.stored.EndRead(id);
        }
        if (--batch->left > 0) return;
        if (batch->to_read.empty()) return batch->done(batch->checked);
        batch->again = true;
        batch->ids = std::exchange(batch->to_read, {});
        ReadPages(parts, batch);
      });
}

}  // namespace

std::vector<ItemId> NextToCheck(Stored& stored, const BatchLimits& most, ItemId* at) {
  std::vector<ItemId> ids;
  uint64_t bytes = 0;
  for (size_t looks = 0; looks < kLooks && *at < stored.end_of_ids(); ++looks, ++*at) {
    if (bytes >= most.bytes || ids.size() == most.pages) break;
    if (!stored.Stays(*at)) continue;
    stored.BeginRead(*at);
    bytes += stored.at(*at).bytes;
    ids.push_back(*at);
  }
  return ids;
}

void CheckPages(const CheckParts& parts, const std::vector<ItemId>& ids, Mend mend,
                std::function<void(const PagesChecked&)> done) {
  const auto batch = std::make_shared<Batch>();
  batch->done = std::move(done);
  batch->mend = mend;
  for (const ItemId id : ids) {
    if (parts.store.Readable(parts.stored.at(id).place)) {
      batch->ids.push_back(id);
    } else {
      ++batch->checked.not_read;
      parts.stored.EndRead(id);
    }
  }
  if (batch->ids.empty()) return batch->done(batch->checked);
  ReadPages(parts, batch);
}

bool CheckPatience::MayRead(bool others_read, MonotonicNs now) {
  if (!others_read) {
    since_ = 0;
    return true;
  }
  if (since_ == 0) since_ = now;
  if (now < since_ + kCheckPatienceNs) return false;
  since_ = now;
  return true;
}

}  // namespace terrace
