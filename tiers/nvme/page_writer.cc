#include "tiers/nvme/page_writer.h"

#include <algorithm>
#include <iterator>
#include <string>

#include "base/check.h"

namespace terrace::nvme {

void PageWriter::Write(std::vector<PageStore::PageWrite> pages, MonotonicNs deadline,
                       std::function<void(size_t, Result<uint64_t>)> done,
                       std::function<void(size_t)> ended) {
  const auto call = std::make_shared<Call>(Call{std::move(done), std::move(ended)});
  for (size_t i = 0; i < pages.size(); ++i) {
    const auto writing = std::make_shared<Writing>();
    writing->call = call;
    writing->i = i;
    writing->entry.page = pages[i].page;
    const Status refused = Check(pages[i]);
    if (!refused.ok()) {
      box_->Push([this, writing, refused] {
        Answer(writing, refused);
        End(*writing);
      });
      continue;
    }
    writing->began = clock_.Now();
    writing->deadline = deadline;
    writing->entry.page.serial = next_serial_++;
    unanswered_.insert(writing);
    DeviceOf(devices_, pages[i].page.place)->Enqueue(TransferOf(pages[i], writing));
  }
  PumpAll(devices_);
}

Status PageWriter::Check(const PageStore::PageWrite& write) const {
  const StoredPage& page = write.page;
  const Device* const device = DeviceOf(devices_, page.place);
  // Of Allocate, for pages of that size: whatever else comes is a bug of the caller.
  TERRACE_CHECK(device != nullptr && device->space().IsTaken(FromPlaceId(page.place)));
  TERRACE_CHECK(device->space().SlotBytesOf(FromPlaceId(page.place).file) == SlotBytes(page.bytes));
  TERRACE_CHECK(write.bytes.size() == page.bytes);
  if (unanswered_.size() >= options_.most) {
    return {Code::kExhausted, std::to_string(unanswered_.size()) + " pages wait to be written"};
  }
  if (!device->writable()) return {Code::kUnavailable, "the device takes no writes now"};
  if (next_serial_ >= end_of_serials_) return {Code::kExhausted, "no serial is left"};
  return {};
}

std::shared_ptr<Transfer> PageWriter::TransferOf(const PageStore::PageWrite& write,
                                                 const std::shared_ptr<Writing>& writing) {
  auto transfer = std::make_shared<Transfer>();
  transfer->kind = Transfer::Kind::kWrite;
  transfer->file = DeviceOf(devices_, write.page.place)->FileOf(FromPlaceId(write.page.place).file);
  transfer->header = {.store = options_.store, .page = writing->entry.page, .data_crc = 0};
  transfer->memory = {const_cast<uint8_t*>(write.bytes.data()), write.bytes.size()};
  transfer->deadline = writing->deadline;
  writing->transfer = transfer;
  transfer->answered = [this, writing](Transfer& done, const Status& status) {
    if (!status.ok()) return Answer(writing, status);
    writing->entry.data_crc = done.header.data_crc;
    Written(writing);
  };
  transfer->ended = [this, writing](Transfer&) { End(*writing); };
  return transfer;
}

// The bytes are in the slot; where they shall be durable, they go to the device before the index
// may say so.
void PageWriter::Written(const std::shared_ptr<Writing>& writing) {
  const Place place = FromPlaceId(writing->entry.page.place);
  const FileId file{place.device, place.file};
  if (!options_.sync) {
    syncs_.Leave(file, writing->entry.page.bytes);
    return PutIntoIndex(writing);
  }
  writing->stage = Writing::Stage::kSync;
  syncs_.Sync(file, [this, writing](const Status& status) {
    if (writing->answered) return;
    if (!status.ok()) return Answer(writing, status);
    PutIntoIndex(writing);
  });
}

void PageWriter::PutIntoIndex(const std::shared_ptr<Writing>& writing) {
  writing->stage = Writing::Stage::kIndex;
  writing->frees = false;
  index_.Put(writing->entry, [this, writing](const Status& status) {
    // Whether it is in the log all the same is not known; or it is, and was given up before.
    if (!status.ok() || writing->answered) doubtful_.push_back(writing->entry.page);
    if (!writing->answered) Answer(writing, status);
  });
}

void PageWriter::Answer(const std::shared_ptr<Writing>& writing, const Status& status) {
  unanswered_.erase(writing);
  writing->answered = true;
  if (!status.ok()) late_.insert(writing->entry.page.place);
  if (status.ok()) {
    writing->call->done(writing->i, writing->entry.page.serial);
  } else {
    writing->call->done(writing->i, status);
  }
  Settle(*writing);
}

// A device's thread and that of the index have no deadline for what they do.
void PageWriter::AnswerOverdue() {
  const MonotonicNs now = clock_.Now();
  std::vector<std::shared_ptr<Writing>> overdue;
  std::copy_if(unanswered_.begin(), unanswered_.end(), std::back_inserter(overdue),
               [now](const auto& writing) { return writing->deadline <= now; });
  for (const auto& writing : overdue) {
    const Status why(Code::kDeadlineExceeded,
                     "page " + writing->entry.page.name.key.Hex() + ": not written after " +
                         std::to_string((now - writing->began) / kNsPerMs) + " ms");
    if (writing->stage == Writing::Stage::kSlot) {
      const auto transfer = writing->transfer.lock();
      if (transfer) DeviceOf(devices_, writing->entry.page.place)->GiveUp(*transfer, why);
      continue;
    }
    // A sync has a deadline of its own, which the device answers for.
    if (writing->stage == Writing::Stage::kIndex) index_.GiveUp(why.message());
    Answer(writing, why);
  }
}

void PageWriter::End(Writing& writing) {
  writing.io_ended = true;
  Settle(writing);
}

// A slot that a late write may still go into is not given to another page.
void PageWriter::Settle(const Writing& writing) {
  if (!writing.answered || !writing.io_ended) return;
  if (writing.frees) Free(writing.entry.page.place);
  writing.call->ended(writing.i);
}

void PageWriter::EraseDoubtful() {
  if (doubtful_.empty() || erasing_doubtful_ || !index_.healthy()) return;
  erasing_doubtful_ = true;
  const auto pages = std::make_shared<std::vector<StoredPage>>(std::exchange(doubtful_, {}));
  Erase(*pages, [this, pages](const Status& status) {
    erasing_doubtful_ = false;
    if (!status.ok()) doubtful_.insert(doubtful_.end(), pages->begin(), pages->end());
  });
}

void PageWriter::Erase(std::vector<StoredPage> pages, std::function<void(Status)> done) {
  const auto erased = std::make_shared<std::vector<StoredPage>>(pages);
  index_.Erase(std::move(pages), [this, erased, done = std::move(done)](const Status& status) {
    // After a failure the entries may still be there, and the slots are theirs.
    if (status.ok()) {
      for (const StoredPage& page : *erased)
        Free(page.place);
    }
    done(status);
  });
}

void PageWriter::Free(PlaceId place) {
  Device* const device = DeviceOf(devices_, place);
  TERRACE_CHECK(device != nullptr);
  late_.erase(place);
  device->Free(FromPlaceId(place));
}

void PageWriter::Turn() {
  AnswerOverdue();
  EraseDoubtful();
}

MonotonicNs PageWriter::oldest_ns() const {
  MonotonicNs oldest = 0;
  for (const auto& writing : unanswered_)
    oldest = std::max(oldest, clock_.Now() - writing->began);
  return oldest;
}

}  // namespace terrace::nvme
