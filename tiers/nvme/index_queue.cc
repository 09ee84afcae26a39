#include "tiers/nvme/index_queue.h"

#include <algorithm>
#include <iterator>
#include <limits>
#include <utility>

namespace terrace::nvme {
namespace {

constexpr uint64_t kMeasureEvery = 64;  // Batches: asking RocksDB for its size takes its mutex.

}  // namespace

Status IndexQueue::Start() {
  bytes_on_disk_ = index_->bytes_on_disk();
  ASSIGN_OR_RETURN(thread_,
                   WorkerPool::Start({.name = "nvme-index", .threads = 1, .queue_limit = 1}));
  return {};
}

void IndexQueue::Put(const IndexEntry& entry, Done done) {
  next_.puts.push_back(entry);
  next_.put.push_back(std::move(done));
  Pump();
}

void IndexQueue::Erase(std::vector<StoredPage> pages, Done done) {
  next_.erases.insert(next_.erases.end(), std::make_move_iterator(pages.begin()),
                      std::make_move_iterator(pages.end()));
  next_.erased.push_back(std::move(done));
  Pump();
}

void IndexQueue::Sync(Done done) {
  next_.synced.push_back(std::move(done));
  Pump();
}

void IndexQueue::Read(std::function<void(Index&)> read, std::function<void()> done) {
  next_.reads.push_back(std::move(read));
  next_.have_read.push_back(std::move(done));
  Pump();
}

void IndexQueue::Pump() {
  if (writing_ || next_.empty()) return;
  writing_ = true;
  const auto batch = std::make_shared<Batch>(std::exchange(next_, Batch()));
  batch->resume = failed_;
  batch->measure = batches_++ % kMeasureEvery == 0;
  const Status queued = thread_->Submit([this, batch] {
    Write(*batch);
    box_->Push([this, batch] { Finish(*batch); });
  });
  // One batch at a time: there is room for it.
  TERRACE_CHECK(queued.ok());
}

void IndexQueue::Write(Batch& batch) {
  // What keeps it from taking writes is told by the write.
  if (batch.resume) (void)index_->Resume();
  if (!batch.erases.empty()) batch.erase_status = index_->Erase(batch.erases, options_.sync);
  if (!batch.puts.empty()) batch.put_status = index_->Put(batch.puts, options_.sync);
  if (!batch.synced.empty()) batch.sync_status = index_->Sync();
  for (const auto& read : batch.reads)
    read(*index_);
  if (batch.measure) batch.bytes_on_disk = index_->bytes_on_disk();
  batch.syncs = index_->syncs();
}

void IndexQueue::Finish(const Batch& batch) {
  writing_ = false;
  if (batch.measure) bytes_on_disk_ = batch.bytes_on_disk;
  syncs_ = batch.syncs;
  // That it could be read says nothing of whether it takes writes again.
  if (batch.writes()) failed_ = false;
  for (const Status* status : {&batch.erase_status, &batch.put_status, &batch.sync_status}) {
    if (status->ok()) continue;
    failed_ = true;
    broken_until_ = std::numeric_limits<MonotonicNs>::max();
    why_ = status->message();
  }
  broken_until_ = failed_ ? std::min(broken_until_, clock_.Now() + options_.retry_ns)
                          : std::numeric_limits<MonotonicNs>::min();
  // What the callbacks ask for goes together.
  writing_ = true;
  for (const Done& done : batch.erased)
    done(batch.erase_status);
  for (const Done& done : batch.put)
    done(batch.put_status);
  for (const Done& done : batch.synced)
    done(batch.sync_status);
  for (const auto& done : batch.have_read)
    done();
  writing_ = false;
  Pump();
}

}  // namespace terrace::nvme
