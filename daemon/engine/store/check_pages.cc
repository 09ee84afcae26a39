#include "daemon/engine/store/check_pages.h"

#include <memory>
#include <utility>

namespace terrace {
namespace {

constexpr size_t kLooks = 4096;

struct Batch {
  std::vector<ItemId> ids;
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
  std::vector<StoredPage> pages;
  for (const ItemId id : ids) {
    if (parts.store.Readable(parts.stored.at(id).place)) {
      batch->ids.push_back(id);
      pages.push_back(parts.stored.PageOf(id));
    } else {
      ++batch->checked.not_read;
      parts.stored.EndRead(id);
    }
  }
  if (pages.empty()) return batch->done(batch->checked);
  batch->left = pages.size();
  parts.store.Check(std::move(pages), parts.clock.Now() + parts.deadline_ns,
                    [parts, batch, mend](size_t i, ReadFault fault, const Status& status) {
                      Judge(parts, batch->ids[i], mend, fault, status, &batch->checked);
                      parts.stored.EndRead(batch->ids[i]);
                      if (--batch->left == 0) batch->done(batch->checked);
                    });
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
