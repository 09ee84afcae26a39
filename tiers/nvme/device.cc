#include "tiers/nvme/device.h"

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <future>
#include <utility>

#include "tiers/nvme/slot_file.h"

namespace terrace::nvme {
namespace {

// Tasks of the device's thread: batches of writes, files made and removed.
constexpr size_t kMostTasks = 4096;
// What had less time since its turn came and was late says nothing about the device.
constexpr MonotonicNs kFairNs = 100 * kNsPerMs;
// Pages of a batch go to the device when so much of it is prepared: while the others are, it works.
constexpr size_t kBytesSentTogether = 1u << 20;

// What slot files leave free of their file system. The index lives there too, and without room for
// its log not even what is to make room could be erased.
uint64_t KeptBytes(uint64_t capacity_bytes) {
  return std::min<uint64_t>(capacity_bytes / 16, 256u << 20);
}

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
  if (status.ok() && options_.sync_at_start) status = SyncFiles();
  if (status.ok()) {
    auto thread = WorkerPool::Start({.name = "nvme", .threads = 1, .queue_limit = kMostTasks});
    status = thread.status();
    if (thread) thread_ = *std::move(thread);
  }
  if (!status.ok()) health_.Gone(status.message());
}

Status Device::SyncFiles() {
  for (const auto& [number, file] : files_) {
    const auto answer = std::make_shared<std::promise<Status>>();
    IoRequest sync;
    sync.verb = IoVerb::kSync;
    sync.file = file->id;
    sync.deadline = clock_.Now() + options_.sync_deadline_ns;
    sync.done = [answer](const Status& status) { answer->set_value(status); };
    sync.ended = [box = box_] { box->Ended(); };
    box_->Began();
    if (Status sent = io_.Submit({std::move(sync)}); !sent.ok()) {
      box_->Ended();
      return sent;
    }
    const Status synced = answer->get_future().get();
    if (!synced.ok()) return Status(synced).WithContext(path_);
  }
  return {};
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
    struct stat facts {};
    if (::fstat(fd.get(), &facts) != 0) return SystemError(path_ + "/" + text, errno);
    ASSIGN_OR_RETURN(const IoFileId id, io_.AddFile(fd.get()));
    auto file = std::make_shared<OpenFile>();
    *file = {.name = *name, .fd = std::move(fd), .id = id, .status = {}};
    files_[name->number] = std::move(file);
    space_.Adopt(*name);
    // Not what its name says: what can be read of it is, and nothing more goes into it.
    if (static_cast<uint64_t>(facts.st_size) != name->bytes()) space_.Close(name->number);
  }
  // A file whose making was cut off after the rename may have a name that is not durable yet.
  RETURN_IF_ERROR(SyncDirectory(path_));
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

void Device::Free(const Place& place) {
  if (space_.IsTaken(place)) space_.Free(place, clock_.Now());
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
    const Status queued = thread_->Submit([this, file] {
      if (!file->fd) return;
      io_.RemoveFile(file->id);
      file->fd.Reset();
      (void)RemoveSlotFile(path_, file->name);
    });
    if (queued.ok()) continue;
    // It is there still, and goes at a later turn.
    space_.Adopt(file->name);
    files_[number] = file;
  }
  for (const SlotFileName& name : changes.make) {
    const auto file = std::make_shared<OpenFile>();
    file->name = name;
    files_[name.number] = file;
    const auto make = [this, file, kept = KeptBytes(options_.capacity_bytes)] {
      Result<UniqueFd> fd = MakeSlotFile(path_, file->name, kept);
      Result<IoFileId> id = fd ? io_.AddFile(fd->get()) : Result<IoFileId>(fd.error());
      file->status = id.status();
      // What nobody can use must not stay, or every further try would leave one.
      if (fd && !id) (void)RemoveSlotFile(path_, file->name);
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
    // Full: what files there are serve on, and what leaves them makes room. Where there is none it
    // takes no write at all.
    space_.set_growing(false);
    grow_again_ = now + options_.health.retry_ns;
    full_ = file.status.message();
    if (!space_.HasSlots()) health_.RefusedWrite(full_, now);
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
  const auto has_room = [&] {
    return queue.under_way < queue.most &&
           reads_.under_way + writes_.under_way < options_.in_flight;
  };
  const MonotonicNs time = clock_.Now();
  while (!queue.waiting.empty() && has_room()) {
    if (queue.waiting.front()->deadline <= time) {
      RefuseOverdue(std::move(queue.waiting.front()), queue);
      queue.waiting.pop_front();
      continue;
    }
    if (!Equip(*queue.waiting.front())) break;
    now.push_back(std::move(queue.waiting.front()));
    now.back()->began = time;
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
                  check_data = options_.check_data || transfer->check_data](const Status& status) {
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
      transfer.began = 0;
      queue.waiting.push_front(*at);
      continue;
    }
    transfer.status = why;
    if (transfer.kind != Transfer::Kind::kProbe) transfer.fault = ReadFault::kRefused;
    Tell(transfer, why);
    End(transfer);
  }
}

void Device::Tell(Transfer& transfer, const Status& status) {
  if (!std::exchange(transfer.told, true)) transfer.answered(transfer, status);
}

void Device::GiveUp(Transfer& transfer, const Status& why) {
  if (transfer.told || transfer.began == 0) return;
  Count(transfer, why);
  Judge(transfer, true, why);
  Tell(transfer, why);
}

void Device::Answer(Transfer& transfer) {
  if (transfer.told) return;
  const Status& status = transfer.status;
  if (!status.ok() && transfer.fault == ReadFault::kNone) {
    transfer.fault =
        status.code() == Code::kDeadlineExceeded ? ReadFault::kOverdue : ReadFault::kIo;
  }
  Count(transfer, status);
  if (transfer.kind != Transfer::Kind::kProbe) Judge(transfer, transfer.device_failed, status);
  Tell(transfer, status);
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

void Device::Judge(const Transfer& transfer, bool failed, const Status& status) {
  // Bytes that do not check out, and a file that is too short, are no fault of the device.
  if (!failed) return health_.Answered();
  const MonotonicNs now = clock_.Now();
  const std::string why = path_ + ": " + status.message();
  const bool overdue = status.code() == Code::kDeadlineExceeded;
  if (overdue && transfer.deadline - transfer.began < kFairNs) return;
  // It comes upon all that are bad one after the other, while others read good ones.
  if (!overdue && transfer.looks_for_damage) return;
  if (!overdue && transfer.kind != Transfer::Kind::kRead) {
    health_.RefusedWrite(why, now);
  } else {
    health_.Failed(why, now);
  }
  if (!readable()) RefuseAll(reads_);
  if (!writable()) RefuseAll(writes_);
}

void Device::Count(const Transfer& transfer, const Status& status) {
  const bool ok = status.ok();
  const bool overdue = status.code() == Code::kDeadlineExceeded;
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

void Device::RefuseAll(Queue& queue) {
  for (auto& transfer : std::exchange(queue.waiting, {})) {
    Refuse(std::move(transfer), queue, {Code::kUnavailable, path_ + ": " + health_.why()},
           ReadFault::kRefused);
  }
}

void Device::RefuseOverdue(Queue& queue) {
  const MonotonicNs now = clock_.Now();
  for (auto& transfer : std::exchange(queue.waiting, {})) {
    if (transfer->deadline > now) {
      queue.waiting.push_back(std::move(transfer));
    } else {
      RefuseOverdue(std::move(transfer), queue);
    }
  }
}

// It is not the device's fault: it never saw it.
void Device::RefuseOverdue(std::shared_ptr<Transfer> transfer, Queue& queue) {
  ++counts_.overdue;
  Refuse(std::move(transfer), queue, {Code::kDeadlineExceeded, path_ + ": too much was waiting"},
         ReadFault::kOverdue);
}

void Device::Refuse(std::shared_ptr<Transfer> transfer, Queue& queue, const Status& why,
                    ReadFault fault) {
  ++queue.under_way;  // End takes it off again.
  box_->Push([this, transfer = std::move(transfer), why, fault] {
    transfer->status = why;
    transfer->fault = fault;
    Tell(*transfer, why);
    End(*transfer);
  });
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
  RefuseOverdue(reads_);
  RefuseOverdue(writes_);
  if (health_.ProbeIsDue(now)) Probe();
  FileChanges changes;
  space_.RemoveEmpty(now - options_.keep_empty_ns, changes);
  Apply(changes);
  Pump();
}

void Device::Probe() {
  auto probe = std::make_shared<Transfer>();
  probe->kind = Transfer::Kind::kProbe;
  probe->deadline = clock_.Now() + options_.probe_deadline_ns;
  probe->header_buffer = headers_.Take(kHeaderBytes);
  if (!probe->header_buffer) return;  // Transfers that wait anew have it all for now.
  health_.ProbeSent();
  probe->answered = [this](Transfer&, const Status& status) {
    health_.ProbeAnswered(status.ok(), clock_.Now());
  };
  probe->ended = [this](Transfer&) { health_.ProbeEnded(); };
  Send({std::move(probe)});
}

DeviceReport Device::Report() const {
  DeviceReport report = counts_;
  report.path = path_;
  report.state = health_.state();
  report.why = report.state == DeviceState::kServing && grow_again_ != 0 ? full_ : health_.why();
  report.capacity_bytes = space_.capacity_bytes();
  report.allocated_bytes = space_.allocated_bytes();
  report.file_bytes = space_.file_bytes();
  report.in_flight = reads_.under_way + writes_.under_way;
  report.waiting = reads_.waiting.size() + writes_.waiting.size();
  return report;
}

Device* DeviceOf(const Devices& devices, PlaceId place) {
  const size_t device = FromPlaceId(place).device;
  return device < devices.size() ? devices[device].get() : nullptr;
}

void PumpAll(const Devices& devices) {
  for (const auto& device : devices)
    device->Pump();
}

}  // namespace terrace::nvme
