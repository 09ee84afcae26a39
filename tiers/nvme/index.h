// The index of the store: which page is in which slot, on RocksDB, whose one door in this room it
// is. One thread at a time; every call blocks for as long as the file system takes.
//
// A write is in the write-ahead log when it returns, so it outlives the process; with `sync` it is
// on the device too.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/status.h"
#include "tiers/nvme/format.h"

namespace terrace::nvme {

class Index {
 public:
  virtual ~Index() = default;

  // Every entry, in the order of the keys. `visit` must not call it: a write that fails closes it.
  // Returns the keys of records that are no entries of ours, at most kMostUnreadable of them.
  // `data_loss`: a part of it cannot be read.
  static constexpr size_t kMostUnreadable = 100'000;
  virtual Result<std::vector<std::string>> Visit(
      const std::function<void(const IndexEntry&)>& visit) = 0;
  // The entries after that key (empty: from the first on), of at most `limit` records. Returns the
  // last key; empty when nothing comes after it.
  virtual Result<std::string> List(const std::string& after, size_t limit,
                                   const std::function<void(const IndexEntry&)>& visit,
                                   uint64_t* unreadable) = 0;
  virtual Result<std::optional<IndexEntry>> Find(const StoredName& name) = 0;
  // An entry of the same name is replaced. All or none.
  virtual Status Put(std::span<const IndexEntry> entries, bool sync) = 0;
  // Only entries of the same writing: one that has been replaced since stays. All or none.
  virtual Status Erase(std::span<const StoredPage> pages, bool sync) = 0;
  // Records by their keys, whatever they are.
  virtual Status Drop(std::span<const std::string> keys) = 0;
  // The first of `count` serials that were never given before, on the device when it returns; all
  // of them are above `beyond`.
  virtual Result<uint64_t> ReserveSerials(uint64_t count, uint64_t beyond) = 0;
  // What was written before is on the device.
  virtual Status Sync() = 0;
  // After a failed write everything is `unavailable` until this succeeded. What had failed may be
  // there then.
  virtual Status Resume() = 0;
  virtual uint64_t bytes_on_disk() = 0;
  // How often its log went to the device since it was opened last.
  virtual uint64_t syncs() = 0;
};

// Erases them, some at a time, until that fails. Not synced.
Status EraseAll(Index& index, std::span<const StoredPage> pages);

// Makes an empty index in a directory that does not exist or holds an index whose making did not
// end, which goes.
Status CreateIndex(const std::string& directory, const StoreUuid& store);

// Fails with
//   data_loss     it is damaged or gone; nothing was changed;
//   mismatch      it is that of another store, or of another format;
//   unavailable   a process has it open.
Result<std::unique_ptr<Index>> OpenIndex(const std::string& directory, const StoreUuid& store);

}  // namespace terrace::nvme
