#include "tiers/nvme/device.h"

#include <unistd.h>

#include <algorithm>
#include <limits>
#include <utility>

#include "tiers/nvme/slot_file.h"

namespace terrace::nvme {
namespace {

constexpr MonotonicNs kNever = std::numeric_limits<MonotonicNs>::max();
// Tasks of the device's thread: batches of writes, files made and removed.
constexpr size_t kMostTasks = 4096;
// Pages of a batch go to the device when so much of it is prepared: while the others are, it works.
constexpr size_t kBytesSentTogether = 1u << 20;

}  // namespace

Device::Device(const DeviceOptions& options, StoreDirectory directory, DiskIo& io,
               const Clock& clock, std::shared_ptr<Mailbox> box)
    : options_(options),
      path_(std::move(directory.path)),
      lock_(std::move(directory.lock)),
      marker_(std::move(directory.marker)),
      io_(io),
      clock_(clock),
      box_(std::move(box)),
      space_(options.number, options.capacity_bytes),
      health_(options.health),
      headers_((size_t{options.in_flight} + 1) * kHeaderBytes),
      bounces_(options.bounce_bytes) {
  reads_.most = std::max(1U, options.in_flight * 3 / 4);
  writes_.most = std::max(1U, options.in_flight / 2);
  if (!directory.off.empty()) health_.Gone(std::move(directory.off));
}

void Device::Start() {
  if (health_.state() == DeviceState::kOff) return;
  Status status = OpenFiles();
  if (status.ok()) {
    auto thread = WorkerPool::Start({.name = "nvme", .threads = 1, .queue_limit = kMostTasks});
    status = thread.status();
    if (thread) thread_ = *std::move(thread);
  }
  if (!status.ok()) health_.Gone(status.message());
}

Status Device::OpenFiles() {
  ASSIGN_OR_RETURN(const std::vector<std::string> names, NamesIn(path_));
  for (const std::string& text : names) {
    if (text.starts_with("slots-") && text.ends_with(kUnfinishedSuffix)) {
      const auto unfinished =
          ParseSlotFileName(text.substr(0, text.size() - kUnfinishedSuffix.size()));
      // Left by a crash; on a read-only file system it stays.
      if (unfinished) (void)::unlink((path_ + "/" + text).c_str());
      continue;
    }
    const auto name = ParseSlotFileName(text);
    if (!name || files_.contains(name->number)) continue;
    ASSIGN_OR_RETURN(UniqueFd fd, OpenSlotFile(path_, *name));
    ASSIGN_OR_RETURN(const IoFileId id, io_.AddFile(fd.get()));
    auto file = std::make_shared<OpenFile>();
    *file = {.name = *name, .fd = std::move(fd), .id = id, .status = {}};
    files_[name->number] = std::move(file);
    space_.Adopt(*name);
  }
  ASSIGN_OR_RETURN(marker_file_, io_.AddFile(marker_.get()));
  marker_added_ = true;
  return {};
}

void Device::CloseFiles(bool idle) {
  for (auto& [number, file] : files_) {
    if (!file->fd) continue;
    if (idle) {
      io_.RemoveFile(file->id);
    } else {
      (void)file->fd.Release();
    }
  }
  files_.clear();
  if (!marker_added_) return;
  if (idle) {
    io_.RemoveFile(marker_file_);
  } else {
    (void)marker_.Release();
  }
}

// ---- Places

std::vector<PlaceId> Device::Allocate(uint64_t slot_bytes, size_t count) {
  FileChanges changes;
  std::vector<PlaceId> places = space_.Allocate(slot_bytes, count, changes);
  Apply(changes);
  return places;
}

std::shared_ptr<OpenFile> Device::FileOf(uint32_t number) const {
  const auto found = files_.find(number);
  return found == files_.end() ? nullptr : found->second;
}

void Device::Apply(const FileChanges& changes) {
  for (const uint32_t number : changes.remove) {
    const std::shared_ptr<OpenFile> file = files_.at(number);
    files_.erase(number);
    // A file that stays because the thread is stuck, or by a crash, is empty at the next start.
    (void)thread_->Submit([this, file] {
      if (!file->fd) return;
      io_.RemoveFile(file->id);
      file->fd.Reset();
      (void)RemoveSlotFile(path_, file->name);
    });
  }
  for (const SlotFileName& name : changes.make) {
    const auto file = std::make_shared<OpenFile>();
    file->name = name;
    files_[name.number] = file;
    const auto make = [this, file] {
      Result<UniqueFd> fd = MakeSlotFile(path_, file->name);
      Result<IoFileId> id = fd ? io_.AddFile(fd->get()) : Result<IoFileId>(fd.error());
      file->status = id.status();
      if (id) {
        file->fd = *std::move(fd);
        file->id = *id;
        return;
      }
      box_->Push([this, file] { FileFailed(*file); });
    };
    if (thread_->Submit(make).ok()) continue;
    file->status = Status(Code::kUnavailable, path_ + ": too much waits for its thread");
    box_->Push([this, file] { FileFailed(*file); });
  }
}

void Device::FileFailed(const OpenFile& file) {
  space_.Close(file.name.number);
  ++counts_.write_errors;
  const MonotonicNs now = clock_.Now();
  if (file.status.code() == Code::kNotFound) {
    health_.Gone(file.status.message());
  } else if (file.status.code() == Code::kExhausted) {
    // Full: what files there are serve on. Without a free slot in them it takes no write at all.
    space_.set_growing(false);
    grow_again_ = now + options_.health.retry_ns;
    if (space_.free_bytes() == 0) health_.RefusedWrite(file.status.message(), now);
  } else {
    health_.RefusedWrite(file.status.message(), now);
  }
}

// ---- Transfers

void Device::Enqueue(std::shared_ptr<Transfer> transfer) {
  space_.Hold(transfer->file->name.number);
  QueueOf(*transfer).waiting.push_back(std::move(transfer));
}

void Device::Pump() {
  if (!thread_) return;
  Transfers reads = TakeStartable(reads_);
  Transfers writes = TakeStartable(writes_);
  if (!reads.empty()) Send(std::move(reads));
  if (!writes.empty()) SendWrites(std::move(writes));
}

Device::Transfers Device::TakeStartable(Queue& queue) {
  Transfers now;
  while (!queue.waiting.empty() && queue.under_way < queue.most && Equip(*queue.waiting.front())) {
    now.push_back(std::move(queue.waiting.front()));
    queue.waiting.pop_front();
    ++queue.under_way;
  }
  return now;
}

bool Device::Equip(Transfer& transfer) {
  if (transfer.kind == Transfer::Kind::kSync || transfer.header_buffer) return true;
  AlignedBuffer header = headers_.Take(kHeaderBytes);
  if (!header) return false;
  if (NeedsBounce(transfer.memory)) {
    transfer.bounce = bounces_.Take(transfer.memory.size());
    if (!transfer.bounce) {
      headers_.Give(std::move(header));
      return false;
    }
  }
  transfer.header_buffer = std::move(header);
  return true;
}

void Device::SendWrites(Transfers writes) {
  const auto prepare = [this, writes] {
    Transfers ready;
    size_t bytes = 0;
    for (const auto& write : writes) {
      if (!write->file->status.ok()) {
        SendBack({write}, write->file->status, false);
        continue;
      }
      if (write->kind == Transfer::Kind::kWrite) PrepareWrite(*write);
      ready.push_back(write);
      bytes += write->memory.size();
      if (bytes < kBytesSentTogether) continue;
      Send(std::exchange(ready, {}));
      bytes = 0;
    }
    if (!ready.empty()) Send(std::move(ready));
  };
  const Status queued = thread_->Submit(prepare);
  if (!queued.ok()) SendBack(std::move(writes), queued, true);
}

IoRequest Device::RequestOf(const std::shared_ptr<Transfer>& transfer) {
  using Kind = Transfer::Kind;
  IoRequest request;
  request.verb = transfer->kind == Kind::kWrite  ? IoVerb::kWrite
                 : transfer->kind == Kind::kSync ? IoVerb::kSync
                                                 : IoVerb::kRead;
  request.file = transfer->file ? transfer->file->id : marker_file_;
  request.deadline = transfer->deadline;
  if (transfer->header_buffer) {
    request.memory.push_back({transfer->header_buffer.data(), transfer->header_buffer.size()});
  }
  if (transfer->kind == Kind::kRead || transfer->kind == Kind::kWrite) {
    const uint64_t slot = FromPlaceId(transfer->header.page.place).slot;
    request.offset = slot * transfer->file->name.slot_bytes;
    const std::span<uint8_t> data = transfer->bounce ? transfer->bounce.bytes() : transfer->memory;
    request.memory.push_back({data.data(), data.size()});
  }
  // On the completion thread. What is overdue is answered at once and ends later, if ever.
  // The device may be gone then; the mailbox is not, and knows.
  request.done = [this, box = box_, transfer,
                  check_data = options_.check_data](const Status& status) {
    transfer->status = status;
    transfer->device_failed = !status.ok() && !FileIsShort(*transfer);
    if (status.ok() && transfer->kind == Kind::kRead) CheckRead(*transfer, check_data);
    if (status.code() != Code::kDeadlineExceeded) return;
    transfer->answer_sent = true;
    box->Push([this, transfer] { Answer(*transfer); });
  };
  request.ended = [this, box = box_, transfer] {
    box->Push([this, transfer, answered = transfer->answer_sent] {
      if (!answered) Answer(*transfer);
      End(*transfer);
    });
    box->Ended();
  };
  return request;
}

void Device::Send(Transfers transfers) {
  std::vector<IoRequest> requests;
  for (const auto& transfer : transfers) {
    box_->Began();
    requests.push_back(RequestOf(transfer));
  }
  const Status sent = io_.Submit(std::move(requests));
  if (sent.ok()) return;
  for (size_t i = 0; i < transfers.size(); ++i)
    box_->Ended();
  // More than there is room for: one by one, and the rest when something ended.
  const bool full = sent.code() == Code::kExhausted;
  if (!full || transfers.size() == 1) return SendBack(std::move(transfers), sent, full);
  for (auto& transfer : transfers)
    Send({transfer});
}

void Device::SendBack(Transfers transfers, const Status& why, bool again) {
  box_->Push(
      [this, transfers = std::move(transfers), why, again] { TakeBack(transfers, why, again); });
}

void Device::TakeBack(const Transfers& transfers, const Status& why, bool again) {
  for (auto at = transfers.rbegin(); at != transfers.rend(); ++at) {
    Transfer& transfer = **at;
    if (again && transfer.kind != Transfer::Kind::kProbe) {
      Queue& queue = QueueOf(transfer);
      --queue.under_way;
      queue.waiting.push_front(*at);
      continue;
    }
    transfer.status = why;
    if (transfer.kind != Transfer::Kind::kProbe) transfer.fault = ReadFault::kRefused;
    transfer.answered(transfer);
    End(transfer);
  }
}

void Device::Answer(Transfer& transfer) {
  const Status& status = transfer.status;
  if (!status.ok() && transfer.fault == ReadFault::kNone) {
    transfer.fault =
        status.code() == Code::kDeadlineExceeded ? ReadFault::kOverdue : ReadFault::kIo;
  }
  Count(transfer);
  if (transfer.kind != Transfer::Kind::kProbe) Judge(transfer);
  transfer.answered(transfer);
}

void Device::End(Transfer& transfer) {
  headers_.Give(std::move(transfer.header_buffer));
  bounces_.Give(std::move(transfer.bounce));
  if (transfer.kind != Transfer::Kind::kProbe) {
    --QueueOf(transfer).under_way;
    space_.Unhold(transfer.file->name.number);
  }
  if (transfer.ended) transfer.ended(transfer);
  // Once for all that ended together, so that neighbours go together again.
  if (std::exchange(pump_soon_, true)) return;
  box_->Push([this] {
    pump_soon_ = false;
    Pump();
  });
}

void Device::Judge(const Transfer& transfer) {
  // Bytes that do not check out, and a file that is too short, are no fault of the device.
  if (!transfer.device_failed) return health_.Answered();
  const MonotonicNs now = clock_.Now();
  const std::string why = path_ + ": " + transfer.status.message();
  const bool overdue = transfer.status.code() == Code::kDeadlineExceeded;
  if (!overdue && transfer.kind != Transfer::Kind::kRead) {
    health_.RefusedWrite(why, now);
  } else {
    health_.Failed(why, now);
  }
  if (!readable()) Refuse(reads_, kNever);
  if (!writable()) Refuse(writes_, kNever);
}

void Device::Count(const Transfer& transfer) {
  const bool ok = transfer.status.ok();
  const bool overdue = transfer.status.code() == Code::kDeadlineExceeded;
  counts_.overdue += overdue ? 1 : 0;
  if (transfer.kind == Transfer::Kind::kRead) {
    ++counts_.reads;
    counts_.read_bytes += ok ? kHeaderBytes + RoundUp(transfer.memory.size()) : 0;
    counts_.read_errors += transfer.fault == ReadFault::kIo ? 1 : 0;
  } else if (transfer.kind != Transfer::Kind::kProbe) {
    if (transfer.kind == Transfer::Kind::kWrite) {
      ++counts_.writes;
      counts_.written_bytes += ok ? kHeaderBytes + RoundUp(transfer.memory.size()) : 0;
    }
    counts_.write_errors += !ok && !overdue ? 1 : 0;
  }
}

void Device::Refuse(Queue& queue, MonotonicNs overdue_before) {
  std::deque<std::shared_ptr<Transfer>> kept;
  for (auto& transfer : queue.waiting) {
    if (transfer->deadline >= overdue_before) {
      kept.push_back(std::move(transfer));
      continue;
    }
    const bool overdue = overdue_before != kNever;
    const Status why(overdue ? Code::kDeadlineExceeded : Code::kUnavailable,
                     path_ + (overdue ? ": too much was waiting" : ": " + health_.why()));
    ++queue.under_way;  // End takes it off again.
    box_->Push([this, transfer = std::move(transfer), why, overdue] {
      transfer->status = why;
      transfer->fault = overdue ? ReadFault::kOverdue : ReadFault::kRefused;
      transfer->answered(*transfer);
      End(*transfer);
    });
  }
  queue.waiting.swap(kept);
}

// ---- Now and then

void Device::Turn() {
  const MonotonicNs now = clock_.Now();
  health_.Turn(now);
  if (!thread_) return;
  if (grow_again_ != 0 && now >= grow_again_) {
    grow_again_ = 0;
    space_.set_growing(true);
  }
  Refuse(reads_, now);
  Refuse(writes_, now);
  if (health_.TakeProbe(now)) Probe();
  FileChanges changes;
  space_.RemoveEmpty(now - options_.keep_empty_ns, changes);
  Apply(changes);
  Pump();
}

void Device::Probe() {
  auto probe = std::make_shared<Transfer>();
  probe->kind = Transfer::Kind::kProbe;
  probe->deadline = clock_.Now() + options_.probe_deadline_ns;
  probe->header_buffer = AlignedBuffer(kAlignment);
  probe->answered = [this](Transfer& transfer) {
    health_.ProbeAnswered(transfer.status.ok(), clock_.Now());
  };
  Send({std::move(probe)});
}

DeviceReport Device::Report() const {
  DeviceReport report = counts_;
  report.path = path_;
  report.state = health_.state();
  report.why = health_.why();
  report.capacity_bytes = space_.capacity_bytes();
  report.allocated_bytes = space_.allocated_bytes();
  report.file_bytes = space_.file_bytes();
  report.in_flight = reads_.under_way + writes_.under_way;
  return report;
}

}  // namespace terrace::nvme
