// StoreCheck: the operator's check of the store while it serves.
//
// Three things have to say the same: the index on disk, which the next start believes; the
// catalogue in memory, which this one does; and the devices' books of which slots are taken. The
// check goes through the index for entries of no page, then through the catalogue for pages without
// their entry, naming the place of each and reading it if asked to, and at last through the slots
// for those that nobody named. All of it moves meanwhile: what looks wrong is asked for again, when
// whatever was under way is over, and counts only if it is wrong still. Owned by the engine; owner
// thread only.
//
// Limits: one check at a time; kEntriesAStep entries or one batch of pages under way; kMaxExamples.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "daemon/engine/engine.h"
#include "daemon/engine/store/check_pages.h"

namespace terrace {

class StoreCheck {
 public:
  static constexpr size_t kEntriesAStep = 1024;
  static constexpr size_t kMaxExamples = 20;

  // `others_read`: whether pages are being read that somebody asked for.
  StoreCheck(const CheckParts& parts, std::function<bool()> others_read)
      : parts_(parts), others_read_(std::move(others_read)) {}

  using Done = std::function<void(Result<StoreCheckReport>)>;
  void Start(ClientId client, const StoreCheckSpec& spec, Progress progress, Done done);
  void ClientGone(ClientId client);
  // True if the next step need not wait.
  bool Turn();
  bool under_way() const { return run_ != nullptr; }

 private:
  enum class Stage : uint8_t { kEntries, kPages, kSlots };
  struct Run {
    ClientId client = 0;
    StoreCheckSpec spec;
    Progress progress;
    Done done;
    Stage stage = Stage::kEntries;
    bool waits = false;  // For the store.
    Status failed;       // It ends with that.
    std::string after;   // The last entry of the index that was looked at.
    ItemId at = 0;       // In the catalogue.
    uint64_t done_bytes = 0;
    uint64_t total_bytes = 0;
    StoreCheckReport report;
  };

  void Step();
  // From the store's answers: the next step follows at once, or with the next turn.
  void GoOn();
  void ListEntries();
  void Listed(PageStore::Entries entries);
  // Whether the entry is of a page that is known, or about to be.
  bool Known(const StoredPage& entry) const;
  void LookAgain(std::vector<StoredPage> suspects);
  void Drop(std::vector<StoredPage> unknown);
  void TakePages();
  void FoundEntries(const std::vector<ItemId>& ids, const Result<std::vector<bool>>& found);
  void PagesRead(const PagesChecked& checked);
  void EndWithSlots();
  void Example(std::string what);
  void Finish();

  const CheckParts parts_;
  const std::function<bool()> others_read_;
  CheckPatience patience_;
  std::unique_ptr<Run> run_;
};

}  // namespace terrace
