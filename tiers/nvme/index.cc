#include "tiers/nvme/index.h"

#include <rocksdb/cache.h>
#include <rocksdb/db.h>
#include <rocksdb/filter_policy.h>
#include <rocksdb/options.h>
#include <rocksdb/rate_limiter.h>
#include <rocksdb/slice_transform.h>
#include <rocksdb/statistics.h>
#include <rocksdb/table.h>

#include <algorithm>
#include <charconv>
#include <cstdarg>
#include <filesystem>
#include <system_error>
#include <utility>

#include "base/hex.h"

namespace terrace::nvme {
namespace {

// No entry has a key of their length.
constexpr char kOwnerKey[] = "terrace-nvme-index";
constexpr char kSerialsKey[] = "terrace-nvme-serials";
constexpr size_t kErasesOfBatch = 1024;

// What RocksDB has to say comes as a Status; its log would grow beside the index.
class SilentLogger final : public rocksdb::Logger {
 public:
  using rocksdb::Logger::Logv;
  void Logv(const char*, va_list) override {}
};

std::string OwnerValue(const StoreUuid& store) {
  return std::to_string(kFormatVersion) + " " + HexEncode(store);
}

rocksdb::BlockBasedTableOptions TableOptions() {
  rocksdb::BlockBasedTableOptions table;
  // Debian's RocksDB has no hardware CRC32C; XXH3 is as good a guard and costs nothing to speak of.
  table.checksum = rocksdb::kXXH3;
  // An erase looks its entry up to see whether it was replaced: one read of one level, not of all.
  table.filter_policy.reset(rocksdb::NewBloomFilterPolicy(10, false));
  table.whole_key_filtering = true;
  table.format_version = 5;
  table.block_size = 16u << 10;
  table.block_cache = rocksdb::NewLRUCache(32u << 20);
  return table;
}

rocksdb::Options IndexOptions() {
  rocksdb::Options options;
  options.info_log = std::make_shared<SilentLogger>();
  options.create_if_missing = false;
  // The pages of a space are neighbours: filters know the space, so that one can be listed without
  // reading what belongs to others. It is written into the files, so it is there from the start.
  options.prefix_extractor.reset(rocksdb::NewFixedPrefixTransform(kSpaceBytes));
  options.memtable_prefix_bloom_size_ratio = 0.05;
  options.memtable_whole_key_filtering = true;
  // A start replays the log: at most 16 MiB, some 80,000 entries, a fraction of a second.
  options.write_buffer_size = 4u << 20;
  options.max_write_buffer_number = 3;
  options.max_total_wal_size = 16u << 20;
  // Digests do not compress.
  options.compression = rocksdb::kNoCompression;
  // The index is small beside the pages, whose device it shares: one compaction at a time, at a
  // rate that reads of pages do not notice.
  options.target_file_size_base = 16u << 20;
  options.max_bytes_for_level_base = 64u << 20;
  options.level_compaction_dynamic_level_bytes = true;
  options.max_background_jobs = 2;
  options.rate_limiter.reset(rocksdb::NewGenericRateLimiter(64 << 20));
  options.bytes_per_sync = 1u << 20;
  options.max_open_files = 256;
  options.max_manifest_file_size = 4u << 20;
  // Counts alone, which cost next to nothing.
  options.statistics = rocksdb::CreateDBStatistics();
  options.statistics->set_stats_level(rocksdb::StatsLevel::kExceptHistogramOrTimers);
  options.stats_dump_period_sec = 0;
  options.stats_persist_period_sec = 0;
  options.paranoid_checks = true;
  // An entry that was cut off at the end of the log was never acknowledged; anything else that does
  // not check out is damage.
  options.wal_recovery_mode = rocksdb::WALRecoveryMode::kTolerateCorruptedTailRecords;
  options.table_factory.reset(rocksdb::NewBlockBasedTableFactory(TableOptions()));
  return options;
}

Status FromRocks(const rocksdb::Status& status, const std::string& what) {
  if (status.ok()) return {};
  Code code = Code::kInternal;
  if (status.IsCorruption()) {
    code = Code::kDataLoss;
  } else if (status.IsNoSpace()) {
    code = Code::kExhausted;
  } else if (status.IsBusy() || status.IsTimedOut()) {
    code = Code::kUnavailable;
  }
  return {code, what + ": " + status.ToString()};
}

template <typename Bytes>
rocksdb::Slice ToSlice(const Bytes& bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

std::span<const uint8_t> ToBytes(const rocksdb::Slice& slice) {
  return {reinterpret_cast<const uint8_t*>(slice.data()), slice.size()};
}

rocksdb::WriteOptions WithSync(bool sync) {
  rocksdb::WriteOptions options;
  options.sync = sync;
  return options;
}

bool IsOurRecord(const rocksdb::Slice& key) {
  return key == kOwnerKey || key == kSerialsKey;
}

Result<std::unique_ptr<rocksdb::DB>> OpenDatabase(const std::string& directory,
                                                  const rocksdb::Options& options) {
  rocksdb::DB* opened = nullptr;
  const rocksdb::Status status = rocksdb::DB::Open(options, directory, &opened);
  if (status.ok()) return std::unique_ptr<rocksdb::DB>(opened);
  if (status.ToString().find("lock") != std::string::npos && status.IsIOError()) {
    return Status(Code::kUnavailable, directory + ": is in use: " + status.ToString());
  }
  // A part that is missing, or of a shape that RocksDB does not know, is damage as well: the marker
  // of the directory says that it is ours.
  const bool damaged =
      status.IsInvalidArgument() || status.IsNotFound() || status.IsNotSupported() ||
      (status.IsIOError() && status.subcode() == rocksdb::Status::SubCode::kPathNotFound);
  if (damaged) return Status(Code::kDataLoss, directory + ": " + status.ToString());
  return FromRocks(status, directory);
}

class RocksIndex final : public Index {
 public:
  RocksIndex(std::unique_ptr<rocksdb::DB> db, std::string directory)
      : db_(std::move(db)), directory_(std::move(directory)) {}

  Result<std::vector<std::string>> Visit(
      const std::function<void(const IndexEntry&)>& visit) override {
    if (db_ == nullptr) return Closed();
    rocksdb::ReadOptions options;
    options.total_order_seek = true;
    options.fill_cache = false;
    options.readahead_size = 2u << 20;
    const std::unique_ptr<rocksdb::Iterator> at(db_->NewIterator(options));
    std::vector<std::string> unreadable;
    for (at->SeekToFirst(); at->Valid(); at->Next()) {
      const auto entry = DecodeIndexEntry(ToBytes(at->key()), ToBytes(at->value()));
      if (entry) {
        visit(*entry);
      } else if (!IsOurRecord(at->key()) && unreadable.size() < kMostUnreadable) {
        unreadable.push_back(at->key().ToString());
      }
    }
    RETURN_IF_ERROR(FromRocks(at->status(), directory_));
    return unreadable;
  }

  Result<std::string> List(const std::string& after, size_t limit,
                           const std::function<void(const IndexEntry&)>& visit,
                           uint64_t* unreadable) override {
    if (db_ == nullptr) return Closed();
    rocksdb::ReadOptions options;
    options.total_order_seek = true;
    options.fill_cache = false;
    const std::unique_ptr<rocksdb::Iterator> at(db_->NewIterator(options));
    at->Seek(after);
    if (at->Valid() && at->key() == after) at->Next();
    std::string last;
    for (; at->Valid() && limit > 0; at->Next(), --limit) {
      last = at->key().ToString();
      const auto entry = DecodeIndexEntry(ToBytes(at->key()), ToBytes(at->value()));
      if (entry) {
        visit(*entry);
      } else if (!IsOurRecord(at->key())) {
        ++*unreadable;
      }
    }
    RETURN_IF_ERROR(FromRocks(at->status(), directory_));
    return at->Valid() ? last : std::string();
  }

  Result<std::optional<IndexEntry>> Find(const StoredName& name) override {
    if (db_ == nullptr) return Closed();
    const auto key = EncodeIndexKey(name);
    rocksdb::PinnableSlice value;
    const rocksdb::Status got =
        db_->Get(rocksdb::ReadOptions(), db_->DefaultColumnFamily(), ToSlice(key), &value);
    if (got.IsNotFound()) return std::optional<IndexEntry>();
    RETURN_IF_ERROR(FromRocks(got, directory_));
    return DecodeIndexEntry(key, ToBytes(value));
  }

  Status Put(std::span<const IndexEntry> entries, bool sync) override {
    rocksdb::WriteBatch batch;
    for (const IndexEntry& entry : entries) {
      const auto key = EncodeIndexKey(entry.page.name);
      const auto value = EncodeIndexValue(entry);
      RETURN_IF_ERROR(FromRocks(batch.Put(ToSlice(key), ToSlice(value)), directory_));
    }
    return Write(batch, sync);
  }

  Status Erase(std::span<const StoredPage> pages, bool sync) override {
    rocksdb::WriteBatch batch;
    for (const StoredPage& page : pages) {
      const auto found = Find(page.name);
      const bool replaced =
          found && *found &&
          ((*found)->page.serial != page.serial || (*found)->page.place != page.place);
      if (replaced) continue;
      // Also where none can be read, for the others' sake, and where none is found: a write that
      // failed may be in the log, and be there at the next start, unless a delete comes after it.
      const auto key = EncodeIndexKey(page.name);
      RETURN_IF_ERROR(FromRocks(batch.Delete(ToSlice(key)), directory_));
    }
    if (batch.Count() == 0) return sync ? Sync() : Status();
    return Write(batch, sync);
  }

  Status Drop(std::span<const std::string> keys) override {
    rocksdb::WriteBatch batch;
    for (const std::string& key : keys)
      RETURN_IF_ERROR(FromRocks(batch.Delete(key), directory_));
    return Write(batch, true);
  }

  Result<uint64_t> ReserveSerials(uint64_t count, uint64_t beyond) override {
    if (db_ == nullptr) return Closed();
    std::string text;
    const rocksdb::Status got = db_->Get(rocksdb::ReadOptions(), kSerialsKey, &text);
    if (!got.IsNotFound()) RETURN_IF_ERROR(FromRocks(got, directory_));
    uint64_t next = 1;
    const char* const end = text.data() + text.size();
    if (!text.empty() && std::from_chars(text.data(), end, next).ptr != end) {
      return Status(Code::kDataLoss, directory_ + ": the record of serials is damaged");
    }
    next = std::max(next, beyond + 1);
    rocksdb::WriteBatch batch;
    RETURN_IF_ERROR(FromRocks(batch.Put(kSerialsKey, std::to_string(next + count)), directory_));
    RETURN_IF_ERROR(Write(batch, true));
    return next;
  }

  Status Sync() override {
    if (db_ == nullptr) return Closed();
    return CloseIfFailed(db_->FlushWAL(true));
  }

  Status Resume() override {
    if (db_ != nullptr) return {};
    ASSIGN_OR_RETURN(db_, OpenDatabase(directory_, IndexOptions()));
    return {};
  }

  uint64_t bytes_on_disk() override {
    if (db_ == nullptr) return 0;
    uint64_t tables = 0;
    uint64_t unflushed = 0;
    (void)db_->GetIntProperty(rocksdb::DB::Properties::kTotalSstFilesSize, &tables);
    (void)db_->GetIntProperty(rocksdb::DB::Properties::kCurSizeAllMemTables, &unflushed);
    return tables + unflushed;
  }

  uint64_t syncs() override {
    if (db_ == nullptr) return 0;
    return db_->GetDBOptions().statistics->getTickerCount(rocksdb::WAL_FILE_SYNCED);
  }

 private:
  Status Closed() const { return {Code::kUnavailable, directory_ + ": is closed after an error"}; }

  Status Write(rocksdb::WriteBatch& batch, bool sync) {
    if (db_ == nullptr) return Closed();
    return CloseIfFailed(db_->Write(WithSync(sync), &batch));
  }

  // After an error of its log RocksDB 7.8 with assertions, as Debian builds it, aborts the process
  // when it mends itself or is asked to (DB::Resume). So it is closed at once and opened anew.
  Status CloseIfFailed(const rocksdb::Status& status) {
    if (!status.ok()) db_.reset();
    return FromRocks(status, directory_);
  }

  std::unique_ptr<rocksdb::DB> db_;  // Null after a failed write, until Resume.
  const std::string directory_;
};

}  // namespace

Status EraseAll(Index& index, std::span<const StoredPage> pages) {
  while (!pages.empty()) {
    const auto batch = pages.first(std::min(pages.size(), kErasesOfBatch));
    RETURN_IF_ERROR(index.Erase(batch, false));
    pages = pages.subspan(batch.size());
  }
  return {};
}

Status CreateIndex(const std::string& directory, const StoreUuid& store) {
  rocksdb::Options options = IndexOptions();
  std::error_code error;
  if (std::filesystem::exists(directory, error)) {
    RETURN_IF_ERROR(FromRocks(rocksdb::DestroyDB(directory, options), directory));
  }
  options.create_if_missing = true;
  options.error_if_exists = true;
  ASSIGN_OR_RETURN(const std::unique_ptr<rocksdb::DB> db, OpenDatabase(directory, options));
  return FromRocks(db->Put(WithSync(true), kOwnerKey, OwnerValue(store)), directory);
}

Result<std::unique_ptr<Index>> OpenIndex(const std::string& directory, const StoreUuid& store) {
  std::error_code error;
  if (!std::filesystem::exists(directory + "/CURRENT", error)) {
    return Status(Code::kDataLoss, directory + ": holds no index");
  }
  ASSIGN_OR_RETURN(std::unique_ptr<rocksdb::DB> db, OpenDatabase(directory, IndexOptions()));
  std::string owner;
  const rocksdb::Status got = db->Get(rocksdb::ReadOptions(), kOwnerKey, &owner);
  if (got.IsNotFound()) {
    return Status(Code::kDataLoss, directory + ": lacks the record that says whose it is");
  }
  RETURN_IF_ERROR(FromRocks(got, directory));
  if (owner != OwnerValue(store)) {
    return Status(Code::kMismatch, directory + ": is the index of another store or format (" +
                                       owner + ", not " + OwnerValue(store) + ")");
  }
  return std::unique_ptr<Index>(std::make_unique<RocksIndex>(std::move(db), directory));
}

}  // namespace terrace::nvme
