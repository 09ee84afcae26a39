#include "daemon/engine/store/store_check.h"

#include <utility>

namespace terrace {
namespace {

constexpr BatchLimits kPagesRead = {.bytes = 8u << 20, .pages = 256};
constexpr BatchLimits kPagesCompared = {.bytes = UINT64_MAX, .pages = 128};

std::string NameOf(const StoredName& name) {
  return "page " + name.key.Hex() + " part " + std::to_string(name.part) + " of space " +
         name.space.Hex().substr(0, 12);
}

}  // namespace

void StoreCheck::Start(ClientId client, const StoreCheckSpec& spec, Progress progress, Done done) {
  if (run_ != nullptr) return done(Status(Code::kExhausted, "the store is being checked already"));
  run_ = std::make_unique<Run>();
  run_->client = client;
  run_->spec = spec;
  run_->progress = std::move(progress);
  run_->done = std::move(done);
  run_->total_bytes = parts_.stored.used_bytes();
  parts_.store.BeginCensus();
}

void StoreCheck::ClientGone(ClientId client) {
  if (run_ == nullptr || run_->client != client) return;
  run_->failed = Status(Code::kUnavailable, "the client that asked for the check is gone");
}

bool StoreCheck::Turn() {
  if (run_ == nullptr || run_->waits) return false;
  if (!run_->failed.ok()) {
    Finish();
    return false;
  }
  const ItemId at = run_->at;
  Step();
  return run_ != nullptr && !run_->waits && run_->at != at;
}

void StoreCheck::Step() {
  switch (run_->stage) {
    case Stage::kEntries:
      return ListEntries();
    case Stage::kPages:
      if (!run_->spec.read_data || patience_.MayRead(others_read_(), parts_.clock.Now())) {
        TakePages();
      }
      return;
    case Stage::kSlots:
      return EndWithSlots();
  }
}

void StoreCheck::GoOn() {
  if (run_ != nullptr && !run_->waits && run_->failed.ok()) Step();
}

// ---- Entries of the index

void StoreCheck::ListEntries() {
  run_->waits = true;
  parts_.store.ListEntries(run_->after, kEntriesAStep, [this](Result<PageStore::Entries> entries) {
    run_->waits = false;
    if (!entries) {
      run_->failed = entries.error();
      return;
    }
    Listed(*std::move(entries));
    GoOn();
  });
}

void StoreCheck::Listed(PageStore::Entries entries) {
  run_->report.entries += entries.pages.size();
  run_->report.unreadable_records += entries.unreadable;
  run_->after = entries.last;
  if (run_->after.empty()) run_->stage = Stage::kPages;
  std::vector<StoredPage> suspects;
  for (StoredPage& entry : entries.pages) {
    if (!Known(entry)) suspects.push_back(std::move(entry));
  }
  if (!suspects.empty()) LookAgain(std::move(suspects));
}

bool StoreCheck::Known(const StoredPage& entry) const {
  const ItemId id = parts_.stored.Find(entry.name.space, entry.name.part, entry.name.key);
  if (id == kNoRecord) return false;
  const StoredRecord& record = parts_.stored.at(id);
  // A page that is being written learns its serial at the end.
  return record.serial == entry.serial || record.state == StoredState::kWriting;
}

// They may have been erased or replaced between the listing and now.
void StoreCheck::LookAgain(std::vector<StoredPage> suspects) {
  run_->waits = true;
  const auto asked = std::make_shared<std::vector<StoredPage>>(suspects);
  parts_.store.FindEntries(
      std::move(suspects), [this, asked](const Result<std::vector<bool>>& found) {
        run_->waits = false;
        if (!found) {
          run_->failed = found.error();
          return;
        }
        std::vector<StoredPage> unknown;
        for (size_t i = 0; i < asked->size(); ++i) {
          if ((*found)[i] && !Known((*asked)[i])) unknown.push_back((*asked)[i]);
        }
        run_->report.unknown_entries += unknown.size();
        for (const StoredPage& entry : unknown)
          Example(NameOf(entry.name) + ": the index has it, and the catalogue does not");
        if (run_->spec.repair && !unknown.empty()) Drop(std::move(unknown));
        GoOn();
      });
}

void StoreCheck::Drop(std::vector<StoredPage> unknown) {
  run_->waits = true;
  const size_t count = unknown.size();
  parts_.store.DropEntries(std::move(unknown), [this, count](const Status& dropped) {
    run_->waits = false;
    if (!dropped.ok()) {
      run_->failed = dropped;
      return;
    }
    run_->report.repaired += count;
    GoOn();
  });
}

// ---- Pages of the catalogue

void StoreCheck::TakePages() {
  const ItemId from = run_->at;
  std::vector<ItemId> ids =
      NextToCheck(parts_.stored, run_->spec.read_data ? kPagesRead : kPagesCompared, &run_->at);
  // Also those that are written or erased now: their places are theirs.
  for (ItemId id = from; id < run_->at; ++id) {
    const StoredRecord& record = parts_.stored.at(id);
    if (record.state != StoredState::kFree) parts_.store.Name(record.place);
  }
  if (run_->at >= parts_.stored.end_of_ids()) run_->stage = Stage::kSlots;
  if (ids.empty()) return;
  std::vector<StoredPage> pages;
  for (const ItemId id : ids) {
    pages.push_back(parts_.stored.PageOf(id));
    run_->done_bytes += parts_.store.PlaceBytes(parts_.stored.at(id).bytes);
  }
  run_->waits = true;
  parts_.store.FindEntries(std::move(pages), [this, ids](const Result<std::vector<bool>>& found) {
    FoundEntries(ids, found);
  });
}

void StoreCheck::FoundEntries(const std::vector<ItemId>& ids,
                              const Result<std::vector<bool>>& found) {
  run_->waits = false;
  if (!found) run_->failed = found.error();
  std::vector<ItemId> with_entry;
  for (size_t i = 0; i < ids.size(); ++i) {
    const bool missing = found && !(*found)[i];
    if (found && !missing && run_->spec.read_data) {
      with_entry.push_back(ids[i]);
      continue;
    }
    if (missing && parts_.stored.Stays(ids[i])) {
      ++run_->report.missing_entries;
      Example(NameOf(parts_.stored.PageOf(ids[i]).name) +
              ": the index does not have it, so the next start would not find it");
      if (run_->spec.repair) {
        ++run_->report.repaired;
        parts_.stored.Erase(ids[i], StoredErasure::kFault);
      }
    }
    parts_.stored.EndRead(ids[i]);
  }
  run_->report.pages += ids.size();
  if (run_->progress) run_->progress(run_->done_bytes, run_->total_bytes);
  if (with_entry.empty()) return GoOn();
  run_->waits = true;
  CheckPages(parts_, with_entry, run_->spec.repair ? Mend::kUnreadableToo : Mend::kNothing,
             [this](const PagesChecked& checked) { PagesRead(checked); });
}

void StoreCheck::PagesRead(const PagesChecked& checked) {
  run_->waits = false;
  StoreCheckReport& report = run_->report;
  report.read_pages += checked.read.extents;
  report.read_bytes += checked.read.bytes;
  report.not_read += checked.not_read;
  report.repaired += checked.erased;
  for (int i = 0; i < kReadFaults; ++i)
    report.faults[i] += checked.faults[i];
  for (const std::string& what : checked.what)
    Example(what);
  GoOn();
}

// ---- Slots

void StoreCheck::EndWithSlots() {
  const std::vector<PlaceId> unknown = parts_.store.EndCensus();
  run_->report.unknown_slots = unknown.size();
  if (!unknown.empty()) {
    Example(std::to_string(unknown.size()) + " slots are taken by no page that is known");
  }
  if (run_->spec.repair) {
    for (const PlaceId place : unknown)
      parts_.store.Release(place);
    run_->report.repaired += unknown.size();
  }
  Finish();
}

void StoreCheck::Example(std::string what) {
  if (run_->report.examples.size() < kMaxExamples) run_->report.examples.push_back(std::move(what));
}

void StoreCheck::Finish() {
  const std::unique_ptr<Run> over = std::move(run_);
  if (!over->failed.ok()) {
    (void)parts_.store.EndCensus();
    return over->done(over->failed);
  }
  over->done(std::move(over->report));
}

}  // namespace terrace
