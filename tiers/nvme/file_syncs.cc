#include "tiers/nvme/file_syncs.h"

namespace terrace::nvme {

void FileSyncs::Sync(FileId file, Done done) {
  FileSync& sync = syncs_[file];
  sync.next.push_back(std::move(done));
  if (!sync.running) Start(file);
}

void FileSyncs::Start(FileId file) {
  FileSync& sync = syncs_.at(file);
  sync.running = true;
  const auto covered = std::make_shared<std::vector<Done>>(std::move(sync.next));
  sync.next.clear();
  auto transfer = std::make_shared<Transfer>();
  transfer->kind = Transfer::Kind::kSync;
  transfer->file = devices_[file.device]->FileOf(file.file);
  transfer->deadline = clock_.Now() + deadline_ns_;
  transfer->answered = [this, file, covered](Transfer&, const Status& status) {
    FileSync& now = syncs_.at(file);
    now.running = false;
    if (now.next.empty()) {
      syncs_.erase(file);
    } else {
      Start(file);
    }
    for (const Done& tell : *covered)
      tell(status);
  };
  Device& device = *devices_[file.device];
  if (transfer->file != nullptr && device.readable()) {
    device.Enqueue(transfer);
    return device.Pump();
  }
  // A file that is gone held no page any more: there is nothing to be made durable.
  if (transfer->file != nullptr) {
    transfer->status = Status(Code::kUnavailable, "the device takes no writes now");
  }
  box_->Push([transfer] { transfer->answered(*transfer, transfer->status); });
}

void FileSyncs::Flush(std::function<void(uint64_t, uint64_t)> progress, Done done) {
  struct Flushing {
    size_t left = 0;
    uint64_t done_bytes = 0;
    uint64_t total_bytes = 0;
    Status first;
    std::function<void(uint64_t, uint64_t)> progress;
    Done done;
  };
  const auto flushing = std::make_shared<Flushing>();
  flushing->progress = std::move(progress);
  flushing->done = std::move(done);
  const auto one_less = [flushing](const Status& status) {
    if (flushing->first.ok()) flushing->first = status;
    if (--flushing->left == 0) flushing->done(flushing->first);
  };
  const std::map<FileId, uint64_t> files = std::exchange(left_, {});
  flushing->left = files.size() + 1;
  for (const auto& [file, bytes] : files)
    flushing->total_bytes += bytes;
  for (const auto& [file, bytes] : files) {
    Sync(file, [this, file, bytes, flushing, one_less](const Status& status) {
      if (!status.ok()) {
        Leave(file, bytes);
        return one_less(status);
      }
      flushing->done_bytes += bytes;
      if (flushing->progress) flushing->progress(flushing->done_bytes, flushing->total_bytes);
      one_less(status);
    });
  }
  box_->Push([one_less] { one_less({}); });
}

}  // namespace terrace::nvme
