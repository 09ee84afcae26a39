#include "tiers/journal/journal.h"

#include <fcntl.h>
#include <rocksdb/cache.h>
#include <rocksdb/db.h>
#include <rocksdb/env.h>
#include <rocksdb/options.h>
#include <rocksdb/table.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdarg>
#include <cstdio>
#include <filesystem>
#include <system_error>
#include <utility>

#include "base/mutex.h"
#include "base/unique_fd.h"
#include "base/worker_pool.h"

namespace terrace {
namespace {

// Records are kept under 'r' + key, so that no key of the engine can be the marker's.
constexpr char kMarkerKey[] = "terrace-journal-format";
constexpr char kFormat[] = "1";
constexpr char kRecordPrefix = 'r';

// RocksDB's own log would grow in a directory whose contents are a few records, and opening a
// foreign one would rotate its log: what it has to say comes as a Status.
class SilentLogger final : public rocksdb::Logger {
 public:
  using rocksdb::Logger::Logv;
  void Logv(const char*, va_list) override {}
};

rocksdb::Options SmallOptions() {
  rocksdb::Options options;
  options.info_log = std::make_shared<SilentLogger>();
  options.create_if_missing = false;
  options.compression = rocksdb::kNoCompression;
  options.write_buffer_size = 1u << 20;
  options.max_write_buffer_number = 2;
  options.max_total_wal_size = 4u << 20;
  options.max_manifest_file_size = 1u << 20;
  options.max_open_files = 64;
  options.max_background_jobs = 1;
  options.stats_dump_period_sec = 0;
  options.stats_persist_period_sec = 0;
  // A write that was cut off at the end of the log was never acknowledged; anything else that does
  // not check out is damage, and not a reason to drop what comes after it. (Damage that makes a
  // record look longer than the rest of the log cannot be told from a cut.)
  options.wal_recovery_mode = rocksdb::WALRecoveryMode::kTolerateCorruptedTailRecords;
  rocksdb::BlockBasedTableOptions table;
  table.block_cache = rocksdb::NewLRUCache(1u << 20);
  options.table_factory.reset(rocksdb::NewBlockBasedTableFactory(table));
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

// The process that holds RocksDB's lock on the directory; 0 when none does or it is not known.
pid_t LockHolder(const std::string& directory) {
  const UniqueFd fd(::open((directory + "/LOCK").c_str(), O_RDWR | O_CLOEXEC));
  struct flock lock {};
  lock.l_type = F_WRLCK;
  lock.l_whence = SEEK_SET;
  if (!fd || ::fcntl(fd.get(), F_GETLK, &lock) != 0 || lock.l_type == F_UNLCK) return 0;
  return lock.l_pid;
}

Status InUse(const std::string& directory, pid_t holder) {
  return {Code::kUnavailable, directory + ": is in use by process " + std::to_string(holder)};
}

Result<std::unique_ptr<rocksdb::DB>> OpenDatabase(const std::string& directory,
                                                  const rocksdb::Options& options) {
  rocksdb::DB* opened = nullptr;
  const rocksdb::Status status = rocksdb::DB::Open(options, directory, &opened);
  if (status.ok()) return std::unique_ptr<rocksdb::DB>(opened);
  if (status.IsIOError()) {
    // Looking at the lock file of a journal that this very process has open would drop its lock
    // (closing any descriptor of a file ends POSIX locks on it); RocksDB knows that case by itself.
    const bool ours = status.ToString().find("lock hold by current process") != std::string::npos;
    const pid_t holder = ours ? ::getpid() : LockHolder(directory);
    if (holder != 0) return InUse(directory, holder);
  }
  return FromRocks(status, directory);
}

class RocksJournal final : public Journal {
 public:
  RocksJournal(std::unique_ptr<rocksdb::DB> db, std::unique_ptr<WorkerPool> writer, Executor& owner,
               std::string directory)
      : db_(std::move(db)),
        owner_(owner),
        directory_(std::move(directory)),
        writer_(std::move(writer)) {}

  Result<std::vector<Record>> Load(std::string_view prefix) override EXCLUDES(mu_) {
    MutexLock lock(mu_);
    RETURN_IF_ERROR(Reopen());
    const std::string start = kRecordPrefix + std::string(prefix);
    const std::unique_ptr<rocksdb::Iterator> at(db_->NewIterator(rocksdb::ReadOptions()));
    std::vector<Record> records;
    for (at->Seek(start); at->Valid() && at->key().starts_with(start); at->Next()) {
      rocksdb::Slice key = at->key();
      key.remove_prefix(1);
      records.push_back({key.ToString(), at->value().ToString()});
    }
    RETURN_IF_ERROR(FromRocks(at->status(), directory_));
    return records;
  }

  void Put(std::string key, std::string value, std::function<void(Status)> done) override {
    rocksdb::WriteBatch batch;
    // Adding to a batch in memory cannot fail.
    (void)batch.Put(kRecordPrefix + key, value);
    Write(std::move(batch), std::move(done));
  }

  void Delete(std::string key, std::function<void(Status)> done) override {
    rocksdb::WriteBatch batch;
    (void)batch.Delete(kRecordPrefix + key);
    Write(std::move(batch), std::move(done));
  }

 private:
  void Write(rocksdb::WriteBatch batch, std::function<void(Status)> done) {
    const Status queued = writer_->Submit([this, batch = std::move(batch), done]() mutable {
      Status status = WriteNow(batch);
      owner_.Post([done = std::move(done), status = std::move(status)] { done(status); });
    });
    if (queued.ok()) return;
    owner_.Post([done = std::move(done), queued] { done(queued); });
  }

  Status WriteNow(rocksdb::WriteBatch& batch) EXCLUDES(mu_) {
    MutexLock lock(mu_);
    RETURN_IF_ERROR(Reopen());
    rocksdb::WriteOptions options;
    options.sync = true;
    const rocksdb::Status status = db_->Write(options, &batch);
    // After an error of its log RocksDB 7.8 with assertions, as Debian builds it, aborts the
    // process when it mends itself. So it is closed at once, and the next who needs it opens it
    // anew.
    if (!status.ok()) db_.reset();
    return FromRocks(status, directory_);
  }
  Status Reopen() REQUIRES(mu_) {
    if (db_ != nullptr) return {};
    ASSIGN_OR_RETURN(db_, OpenDatabase(directory_, SmallOptions()));
    return {};
  }

  Mutex mu_;
  std::unique_ptr<rocksdb::DB> db_ GUARDED_BY(mu_);  // Null after a failed write.
  Executor& owner_;
  const std::string directory_;
  const std::unique_ptr<WorkerPool> writer_;  // Last: it stops before the database closes.
};

// Whether there is a database to open. An empty or missing directory is none; another that lacks
// RocksDB's CURRENT is somebody else's.
Result<bool> HoldsDatabase(const std::string& directory) {
  std::error_code error;
  const auto kind = std::filesystem::status(directory, error).type();
  if (kind == std::filesystem::file_type::not_found) return false;
  if (error) return SystemError(directory, error.value());
  if (kind != std::filesystem::file_type::directory) {
    return Status(Code::kMismatch, directory + ": is not a directory");
  }
  const bool empty = std::filesystem::is_empty(directory, error);
  if (error) return SystemError(directory, error.value());
  if (empty) return false;
  if (!std::filesystem::exists(directory + "/CURRENT", error)) {
    return Status(Code::kMismatch, directory + ": holds files, but no journal");
  }
  return true;
}

// Looks for the marker without writing a byte there.
Status CheckMarker(const std::string& directory) {
  rocksdb::DB* opened = nullptr;
  const rocksdb::Status status = rocksdb::DB::OpenForReadOnly(SmallOptions(), directory, &opened);
  // What cannot be opened with our options, such as a database of several column families, is not
  // ours.
  if (status.IsInvalidArgument() || status.IsNotSupported()) {
    return {Code::kMismatch, directory + ": is not a Terrace journal: " + status.ToString()};
  }
  RETURN_IF_ERROR(FromRocks(status, directory));
  const std::unique_ptr<rocksdb::DB> db(opened);
  std::string format;
  const rocksdb::Status got = db->Get(rocksdb::ReadOptions(), kMarkerKey, &format);
  if (got.IsNotFound()) {
    return {Code::kMismatch, directory + ": is a RocksDB of something else, not a Terrace journal"};
  }
  RETURN_IF_ERROR(FromRocks(got, directory));
  if (format != kFormat) {
    return {Code::kMismatch,
            directory + ": is a journal of format " + format + "; this program knows " + kFormat};
  }
  return {};
}

// Makes a journal beside `directory` and moves it there when it is complete: a crash in between
// leaves nothing that looks like a journal without its marker.
Status CreateDatabase(const std::string& directory) {
  const std::string unfinished = directory + ".new";
  rocksdb::Options options = SmallOptions();
  std::error_code error;
  if (std::filesystem::exists(unfinished, error)) {
    // Left by such a crash. Takes RocksDB's lock and removes RocksDB's files only.
    RETURN_IF_ERROR(FromRocks(rocksdb::DestroyDB(unfinished, options), unfinished));
  }
  if (::mkdir(unfinished.c_str(), 0700) != 0 && errno != EEXIST) {
    return SystemError("make " + unfinished, errno);
  }
  options.create_if_missing = true;
  {
    ASSIGN_OR_RETURN(const std::unique_ptr<rocksdb::DB> db, OpenDatabase(unfinished, options));
    rocksdb::WriteOptions synced;
    synced.sync = true;
    RETURN_IF_ERROR(FromRocks(db->Put(synced, kMarkerKey, kFormat), unfinished));
  }
  if (::rename(unfinished.c_str(), directory.c_str()) != 0) {
    return SystemError("rename " + unfinished, errno);
  }
  const std::string above = std::filesystem::path(directory).parent_path().string();
  const UniqueFd folder(::open(above.empty() ? "." : above.c_str(), O_RDONLY | O_CLOEXEC));
  if (!folder || ::fsync(folder.get()) != 0) return SystemError("sync " + above, errno);
  return {};
}

}  // namespace

Result<std::unique_ptr<Journal>> OpenJournal(const std::string& path, Executor& owner) {
  std::string directory = path;
  while (directory.size() > 1 && directory.back() == '/')
    directory.pop_back();
  ASSIGN_OR_RETURN(const bool present, HoldsDatabase(directory));
  if (!present) RETURN_IF_ERROR(CreateDatabase(directory));
  if (Status status = CheckMarker(directory); !status.ok()) {
    // Reading beside a daemon that is just replacing its files may look like damage.
    const pid_t holder = status.code() == Code::kMismatch ? 0 : LockHolder(directory);
    return holder == 0 ? status : InUse(directory, holder);
  }
  ASSIGN_OR_RETURN(auto db, OpenDatabase(directory, SmallOptions()));
  ASSIGN_OR_RETURN(
      auto writer,
      WorkerPool::Start({.name = "journal", .threads = 1, .queue_limit = kMaxWaitingWrites}));
  return std::unique_ptr<Journal>(
      std::make_unique<RocksJournal>(std::move(db), std::move(writer), owner, directory));
}

}  // namespace terrace
