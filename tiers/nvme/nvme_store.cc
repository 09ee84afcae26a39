#include "tiers/nvme/nvme_store.h"

#include <algorithm>
#include <chrono>
#include <iterator>
#include <map>
#include <set>
#include <utility>

#include "base/check.h"
#include "tiers/nvme/device.h"
#include "tiers/nvme/directories.h"
#include "tiers/nvme/format.h"
#include "tiers/nvme/index.h"
#include "tiers/nvme/index_queue.h"
#include "tiers/nvme/mailbox.h"

namespace terrace::nvme {
namespace {

// Serials of one life of the store: more than it can write, so that none is ever given twice, even
// those of pages that were erased again.
constexpr uint64_t kSerialsOfLife = uint64_t{1} << 40;

Status WithCure(Status status) {
  if (status.code() != Code::kDataLoss) return status;
  return {Code::kDataLoss, status.message() + "; `terraced --fsck=repair` builds the index anew"};
}

struct FileId {
  uint8_t device = 0;
  uint32_t file = 0;
  friend auto operator<=>(const FileId&, const FileId&) = default;
};

// One call of Write, Read or Erase, as its pages hold it.
struct WriteCall {
  std::function<void(size_t, Result<uint64_t>)> done;
  std::function<void(size_t)> ended;
};
struct ReadCall {
  std::function<void(size_t, ReadFault, Status)> done;
  std::function<void(size_t)> ended;
};

// One page on its way: into its slot, made durable, into the index.
struct Writing {
  std::shared_ptr<WriteCall> call;
  size_t i = 0;
  IndexEntry entry;
  MonotonicNs began = 0;
  MonotonicNs deadline = 0;
  enum class Stage : uint8_t { kSlot, kSync, kIndex };
  Stage stage = Stage::kSlot;
  std::weak_ptr<Transfer> transfer;  // Into its slot.
  bool io_ended = false;
  bool answered = false;
  bool frees = true;  // Its place, at the end.
};

class NvmeStore final : public PageStore {
 public:
  NvmeStore(NvmeStoreOptions options, StoreDirectories directories, std::unique_ptr<Index> index,
            DiskIo& io, Executor& owner, const Clock& clock)
      : options_(std::move(options)),
        io_(io),
        clock_(clock),
        uuid_(directories.store),
        box_(std::make_shared<Mailbox>(owner)),
        index_({.sync = options_.durability == Durability::kPower, .retry_ns = options_.retry_ns},
               std::move(index), clock, box_) {
    for (size_t i = 0; i < directories.devices.size(); ++i) {
      devices_.push_back(std::make_unique<Device>(OptionsOf(i), std::move(directories.devices[i]),
                                                  io, clock, box_));
    }
  }
  ~NvmeStore() override;

  void Start() {
    for (const auto& device : devices_)
      device->Start();
  }

  Status Restore(const std::function<void(const StoredPage&)>& visit) override;

  std::vector<PlaceId> Allocate(uint32_t bytes, size_t count) override;
  void Release(PlaceId place) override { Free(place); }
  uint64_t PlaceBytes(uint32_t bytes) const override { return SlotBytes(bytes); }
  bool writable() const override;
  uint64_t free_bytes() const override;
  uint64_t capacity_bytes() const override;
  bool Readable(PlaceId place) const override;

  void Write(std::vector<PageWrite> pages, MonotonicNs deadline,
             std::function<void(size_t, Result<uint64_t>)> done,
             std::function<void(size_t)> ended) override;
  void Read(std::vector<PageRead> pages, MonotonicNs deadline,
            std::function<void(size_t, ReadFault, Status)> done,
            std::function<void(size_t)> ended) override;
  void Erase(std::vector<StoredPage> pages, std::function<void(Status)> done) override;
  void Flush(std::function<void(uint64_t, uint64_t)> progress,
             std::function<void(Status)> done) override;
  void Check(std::vector<StoredPage> pages, Looks looks, MonotonicNs deadline,
             std::function<void(size_t, ReadFault, Status)> done) override;
  void ListEntries(std::string after, size_t limit,
                   std::function<void(Result<Entries>)> done) override;
  void FindEntries(std::vector<StoredPage> pages,
                   std::function<void(Result<std::vector<bool>>)> done) override;
  void DropEntries(std::vector<StoredPage> pages, std::function<void(Status)> done) override {
    index_.Erase(std::move(pages), std::move(done));
  }
  void BeginCensus() override;
  void Name(PlaceId place) override;
  std::vector<PlaceId> EndCensus() override;
  void Turn() override;
  PageStoreReport Report() const override;

 private:
  DeviceOptions OptionsOf(size_t device) const;
  Device* DeviceOf(PlaceId place) const;
  void Free(PlaceId place);

  // Whether the index' entry is of a place that is there; takes it then.
  bool Claim(const StoredPage& page);

  void Start(const std::shared_ptr<Transfer>& read);
  Status CheckWrite(const PageWrite& write) const;
  std::shared_ptr<Transfer> ReadTransfer(const PageRead& read, MonotonicNs deadline,
                                         const std::shared_ptr<ReadCall>& call, size_t i);
  std::shared_ptr<Transfer> WriteTransfer(const PageWrite& write, MonotonicNs deadline,
                                          const std::shared_ptr<Writing>& writing);
  void Written(const std::shared_ptr<Writing>& writing);
  void PutIntoIndex(const std::shared_ptr<Writing>& writing);
  void AnswerWrite(const std::shared_ptr<Writing>& writing, const Status& status);
  void AnswerOverdue();
  void EndWrite(Writing& writing);
  void Settle(const Writing& writing);
  void EraseDoubtful();

  // `done` when everything that was written into the file before is on the device.
  void SyncFile(FileId file, IndexQueue::Done done);
  void StartSync(FileId file);

  const NvmeStoreOptions options_;
  DiskIo& io_;
  const Clock& clock_;
  const StoreUuid uuid_;
  const std::shared_ptr<Mailbox> box_;
  IndexQueue index_;
  std::vector<std::unique_ptr<Device>> devices_;

  uint64_t next_serial_ = 0;
  uint64_t end_of_serials_ = 0;
  size_t next_device_ = 0;  // Where the next Allocate begins.
  std::set<std::shared_ptr<Writing>> unanswered_;
  uint64_t faults_[kReadFaults] = {};
  uint64_t orphans_ = 0;

  struct FileSync {
    bool running = false;
    std::vector<IndexQueue::Done> next;  // Whom the one after covers.
  };
  std::map<FileId, FileSync> syncs_;
  std::map<FileId, uint64_t> dirty_;  // Bytes of pages written since they were synced.
  // Of writes that failed, until they are free: a late write may still go there, or the entry be in
  // the index.
  std::set<PlaceId> late_;
  // Their entries may or may not be in the index: erased before the slot is used again.
  std::vector<StoredPage> doubtful_;
  bool erasing_doubtful_ = false;
};

DeviceOptions NvmeStore::OptionsOf(size_t device) const {
  return {.number = static_cast<uint8_t>(device),
          .capacity_bytes = options_.directories[device].capacity_bytes,
          .in_flight = options_.in_flight_per_device,
          .waiting_reads = options_.waiting_reads_per_device,
          .bounce_bytes = options_.bounce_bytes_per_device,
          .probe_deadline_ns = options_.probe_deadline_ns,
          .keep_empty_ns = options_.keep_empty_ns,
          .check_data = options_.check_data,
          .sync_at_start = options_.durability == Durability::kPower,
          .sync_deadline_ns = options_.sync_deadline_ns,
          .health = {.quarantine_after = options_.quarantine_after,
                     .probe_every_ns = options_.probe_every_ns,
                     .retry_ns = options_.retry_ns}};
}

// Nothing is sent any more, then nothing is under way any more, then nothing is open any more.
NvmeStore::~NvmeStore() {
  for (const auto& device : devices_)
    device->Stop();
  index_.Stop();
  const bool idle = box_->Close(std::chrono::nanoseconds(options_.stop_ns));
  for (const auto& device : devices_)
    device->CloseFiles(idle);
}

// ---- The start

Status NvmeStore::Restore(const std::function<void(const StoredPage&)>& visit) {
  Index& index = index_.index();
  std::vector<StoredPage> orphans;
  uint64_t last_serial = 0;
  auto unreadable = index.Visit([&](const IndexEntry& entry) {
    last_serial = std::max(last_serial, entry.page.serial);
    if (Claim(entry.page)) return visit(entry.page);
    orphans.push_back(entry.page);
  });
  if (!unreadable) return WithCure(std::move(unreadable).error());
  // Their slots count as free from here on, so no entry may go on pointing there.
  RETURN_IF_ERROR(EraseAll(index, orphans));
  orphans_ = orphans.size() + unreadable->size();
  if (!unreadable->empty()) RETURN_IF_ERROR(index.Drop(*unreadable));
  if (options_.durability == Durability::kPower) RETURN_IF_ERROR(index.Sync());
  ASSIGN_OR_RETURN(next_serial_, index.ReserveSerials(kSerialsOfLife, last_serial));
  end_of_serials_ = next_serial_ + kSerialsOfLife;
  return index_.Start();
}

bool NvmeStore::Claim(const StoredPage& page) {
  Device* const device = DeviceOf(page.place);
  if (device == nullptr) return false;
  // What is on a device that is off is known and missed, and there again when the device is.
  if (device->off()) return true;
  return device->space().Take(FromPlaceId(page.place), page.bytes) == SlotSpace::Taken::kOk;
}

// ---- Places

Device* NvmeStore::DeviceOf(PlaceId place) const {
  const size_t device = FromPlaceId(place).device;
  return device < devices_.size() ? devices_[device].get() : nullptr;
}

std::vector<PlaceId> NvmeStore::Allocate(uint32_t bytes, size_t count) {
  std::vector<PlaceId> places;
  if (bytes == 0 || bytes > kMaxPageBytes || !index_.healthy()) return places;
  std::vector<Device*> devices;
  for (size_t i = 0; i < devices_.size(); ++i) {
    Device* const device = devices_[(next_device_ + i) % devices_.size()].get();
    if (device->writable()) devices.push_back(device);
  }
  if (devices.empty()) return places;
  next_device_ = (next_device_ + 1) % devices_.size();
  // A run of neighbours on each, so that a batch is read from all of them at once; then, whoever
  // has room.
  const size_t share = (count + devices.size() - 1) / devices.size();
  for (const size_t most : {share, count}) {
    for (Device* const device : devices) {
      const size_t want = std::min(most, count - places.size());
      if (want == 0) return places;
      const auto got = device->Allocate(SlotBytes(bytes), want);
      places.insert(places.end(), got.begin(), got.end());
    }
  }
  return places;
}

void NvmeStore::Free(PlaceId place) {
  Device* const device = DeviceOf(place);
  TERRACE_CHECK(device != nullptr);
  late_.erase(place);
  // A page of a device that was off at the start has no slot in the books.
  if (!device->space().IsTaken(FromPlaceId(place))) return;
  device->space().Free(FromPlaceId(place), clock_.Now());
}

// Without the index nothing is written: who erases for room then erases for nothing.
bool NvmeStore::writable() const {
  return index_.healthy() && std::any_of(devices_.begin(), devices_.end(),
                                         [](const auto& device) { return device->writable(); });
}

uint64_t NvmeStore::free_bytes() const {
  uint64_t bytes = 0;
  if (!index_.healthy()) return bytes;
  for (const auto& device : devices_)
    bytes += device->writable() ? device->space().free_bytes() : 0;
  return bytes;
}

uint64_t NvmeStore::capacity_bytes() const {
  uint64_t bytes = 0;
  for (const auto& device : devices_)
    bytes += device->space().capacity_bytes();
  return bytes;
}

bool NvmeStore::Readable(PlaceId place) const {
  const Device* const device = DeviceOf(place);
  return device != nullptr && device->readable();
}

// ---- Reads

void NvmeStore::Read(std::vector<PageRead> pages, MonotonicNs deadline,
                     std::function<void(size_t, ReadFault, Status)> done,
                     std::function<void(size_t)> ended) {
  const auto call = std::make_shared<ReadCall>(ReadCall{std::move(done), std::move(ended)});
  for (size_t i = 0; i < pages.size(); ++i)
    Start(ReadTransfer(pages[i], deadline, call, i));
  for (const auto& device : devices_)
    device->Pump();
}

void NvmeStore::Start(const std::shared_ptr<Transfer>& read) {
  const StoredPage& page = read->header.page;
  Device* const device = DeviceOf(page.place);
  const bool there = device != nullptr && read->file != nullptr;
  if (there && device->TakesReads()) return device->Enqueue(read);
  const bool refused = there || (device != nullptr && !device->readable());
  read->fault = refused ? ReadFault::kRefused : ReadFault::kIo;
  read->status = Status(Code::kUnavailable,
                        "page " + page.name.key.Hex() + ": its device is not read from now");
  box_->Push([read] {
    read->answered(*read, read->status);
    read->ended(*read);
  });
}

std::shared_ptr<Transfer> NvmeStore::ReadTransfer(const PageRead& read, MonotonicNs deadline,
                                                  const std::shared_ptr<ReadCall>& call, size_t i) {
  TERRACE_CHECK(read.into.size() == read.page.bytes);
  auto transfer = std::make_shared<Transfer>();
  transfer->kind = Transfer::Kind::kRead;
  if (const Device* const device = DeviceOf(read.page.place)) {
    const Place place = FromPlaceId(read.page.place);
    // The slot of a page of that size, and of none else.
    if (device->space().SlotBytesOf(place.file) == SlotBytes(read.page.bytes)) {
      transfer->file = device->FileOf(place.file);
    }
  }
  transfer->header = {.store = uuid_, .page = read.page, .data_crc = 0};
  transfer->memory = read.into;
  transfer->deadline = deadline;
  transfer->answered = [this, call, i](Transfer& done, const Status& status) {
    ++faults_[static_cast<size_t>(done.fault)];
    call->done(i, done.fault, status);
  };
  transfer->ended = [call, i](Transfer&) { call->ended(i); };
  return transfer;
}

// ---- Writes

void NvmeStore::Write(std::vector<PageWrite> pages, MonotonicNs deadline,
                      std::function<void(size_t, Result<uint64_t>)> done,
                      std::function<void(size_t)> ended) {
  const auto call = std::make_shared<WriteCall>(WriteCall{std::move(done), std::move(ended)});
  for (size_t i = 0; i < pages.size(); ++i) {
    const auto writing = std::make_shared<Writing>();
    writing->call = call;
    writing->i = i;
    writing->entry.page = pages[i].page;
    const Status refused = CheckWrite(pages[i]);
    if (!refused.ok()) {
      box_->Push([this, writing, refused] {
        AnswerWrite(writing, refused);
        EndWrite(*writing);
      });
      continue;
    }
    writing->began = clock_.Now();
    writing->deadline = deadline;
    writing->entry.page.serial = next_serial_++;
    unanswered_.insert(writing);
    DeviceOf(pages[i].page.place)->Enqueue(WriteTransfer(pages[i], deadline, writing));
  }
  for (const auto& device : devices_)
    device->Pump();
}

Status NvmeStore::CheckWrite(const PageWrite& write) const {
  const StoredPage& page = write.page;
  const Device* const device = DeviceOf(page.place);
  // Of Allocate, for pages of that size: whatever else comes is a bug of the caller.
  TERRACE_CHECK(device != nullptr && device->space().IsTaken(FromPlaceId(page.place)));
  TERRACE_CHECK(device->space().SlotBytesOf(FromPlaceId(page.place).file) == SlotBytes(page.bytes));
  TERRACE_CHECK(write.bytes.size() == page.bytes);
  if (unanswered_.size() >= options_.waiting_writes) {
    return {Code::kExhausted, std::to_string(unanswered_.size()) + " pages wait to be written"};
  }
  if (!device->writable()) return {Code::kUnavailable, "the device takes no writes now"};
  if (next_serial_ >= end_of_serials_) return {Code::kExhausted, "no serial is left"};
  return {};
}

std::shared_ptr<Transfer> NvmeStore::WriteTransfer(const PageWrite& write, MonotonicNs deadline,
                                                   const std::shared_ptr<Writing>& writing) {
  auto transfer = std::make_shared<Transfer>();
  transfer->kind = Transfer::Kind::kWrite;
  transfer->file = DeviceOf(write.page.place)->FileOf(FromPlaceId(write.page.place).file);
  transfer->header = {.store = uuid_, .page = writing->entry.page, .data_crc = 0};
  transfer->memory = {const_cast<uint8_t*>(write.bytes.data()), write.bytes.size()};
  transfer->deadline = deadline;
  writing->transfer = transfer;
  transfer->answered = [this, writing](Transfer& done, const Status& status) {
    if (!status.ok()) return AnswerWrite(writing, status);
    writing->entry.data_crc = done.header.data_crc;
    Written(writing);
  };
  transfer->ended = [this, writing](Transfer&) { EndWrite(*writing); };
  return transfer;
}

// The bytes are in the slot; for kPower they go to the device before the index may say so.
void NvmeStore::Written(const std::shared_ptr<Writing>& writing) {
  const Place place = FromPlaceId(writing->entry.page.place);
  const FileId file{place.device, place.file};
  if (options_.durability != Durability::kPower) {
    dirty_[file] += writing->entry.page.bytes;
    return PutIntoIndex(writing);
  }
  writing->stage = Writing::Stage::kSync;
  SyncFile(file, [this, writing](const Status& status) {
    if (writing->answered) return;
    if (!status.ok()) return AnswerWrite(writing, status);
    PutIntoIndex(writing);
  });
}

void NvmeStore::PutIntoIndex(const std::shared_ptr<Writing>& writing) {
  writing->stage = Writing::Stage::kIndex;
  writing->frees = false;
  index_.Put(writing->entry, [this, writing](const Status& status) {
    // Whether it is in the log all the same is not known; or it is, and was given up before.
    if (!status.ok() || writing->answered) doubtful_.push_back(writing->entry.page);
    if (!writing->answered) AnswerWrite(writing, status);
  });
}

void NvmeStore::AnswerWrite(const std::shared_ptr<Writing>& writing, const Status& status) {
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
void NvmeStore::AnswerOverdue() {
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
      if (transfer) DeviceOf(writing->entry.page.place)->GiveUp(*transfer, why);
      continue;
    }
    // A sync has a deadline of its own, which the device answers for.
    if (writing->stage == Writing::Stage::kIndex) index_.GiveUp(why.message());
    AnswerWrite(writing, why);
  }
}

void NvmeStore::EndWrite(Writing& writing) {
  writing.io_ended = true;
  Settle(writing);
}

// A slot that a late write may still go into is not given to another page.
void NvmeStore::Settle(const Writing& writing) {
  if (!writing.answered || !writing.io_ended) return;
  if (writing.frees) Free(writing.entry.page.place);
  writing.call->ended(writing.i);
}

void NvmeStore::EraseDoubtful() {
  if (doubtful_.empty() || erasing_doubtful_ || !index_.healthy()) return;
  erasing_doubtful_ = true;
  const auto pages = std::make_shared<std::vector<StoredPage>>(std::exchange(doubtful_, {}));
  Erase(*pages, [this, pages](const Status& status) {
    erasing_doubtful_ = false;
    if (!status.ok()) doubtful_.insert(doubtful_.end(), pages->begin(), pages->end());
  });
}

// ---- Syncs

void NvmeStore::SyncFile(FileId file, IndexQueue::Done done) {
  FileSync& sync = syncs_[file];
  sync.next.push_back(std::move(done));
  if (!sync.running) StartSync(file);
}

void NvmeStore::StartSync(FileId file) {
  FileSync& sync = syncs_.at(file);
  sync.running = true;
  const auto covered = std::make_shared<std::vector<IndexQueue::Done>>(std::move(sync.next));
  sync.next.clear();
  auto transfer = std::make_shared<Transfer>();
  transfer->kind = Transfer::Kind::kSync;
  transfer->file = devices_[file.device]->FileOf(file.file);
  transfer->deadline = clock_.Now() + options_.sync_deadline_ns;
  transfer->answered = [this, file, covered](Transfer&, const Status& status) {
    FileSync& now = syncs_.at(file);
    now.running = false;
    if (now.next.empty()) {
      syncs_.erase(file);
    } else {
      StartSync(file);
    }
    for (const IndexQueue::Done& tell : *covered)
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

void NvmeStore::Flush(std::function<void(uint64_t, uint64_t)> progress,
                      std::function<void(Status)> done) {
  struct Flushing {
    size_t left = 0;
    uint64_t done_bytes = 0;
    uint64_t total_bytes = 0;
    Status first;
    std::function<void(uint64_t, uint64_t)> progress;
    std::function<void(Status)> done;
  };
  const auto flushing = std::make_shared<Flushing>();
  flushing->progress = std::move(progress);
  flushing->done = std::move(done);
  const auto one_less = [this, flushing](const Status& status) {
    if (flushing->first.ok()) flushing->first = status;
    if (--flushing->left > 0) return;
    if (!flushing->first.ok()) return flushing->done(flushing->first);
    index_.Sync(flushing->done);
  };
  const std::map<FileId, uint64_t> files = std::exchange(dirty_, {});
  flushing->left = files.size() + 1;
  for (const auto& [file, bytes] : files)
    flushing->total_bytes += bytes;
  for (const auto& [file, bytes] : files) {
    SyncFile(file, [this, file, bytes, flushing, one_less](const Status& status) {
      if (!status.ok()) {
        dirty_[file] += bytes;
        return one_less(status);
      }
      flushing->done_bytes += bytes;
      if (flushing->progress) flushing->progress(flushing->done_bytes, flushing->total_bytes);
      one_less(status);
    });
  }
  box_->Push([one_less] { one_less({}); });
}

// ---- The rest

void NvmeStore::Erase(std::vector<StoredPage> pages, std::function<void(Status)> done) {
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

// ---- Checking

void NvmeStore::Check(std::vector<StoredPage> pages, Looks looks, MonotonicNs deadline,
                      std::function<void(size_t, ReadFault, Status)> done) {
  // The transfer of each holds its memory until the device has let go of it.
  const auto memory = std::make_shared<std::vector<AlignedBuffer>>(pages.size());
  const auto call = std::make_shared<ReadCall>(
      ReadCall{std::move(done), [memory](size_t i) { (*memory)[i] = AlignedBuffer(); }});
  for (size_t i = 0; i < pages.size(); ++i) {
    AlignedBuffer& buffer = (*memory)[i];
    buffer = AlignedBuffer(RoundUp(pages[i].bytes));
    if (!buffer) {
      box_->Push([call, i] {
        call->done(i, ReadFault::kRefused, Status(Code::kExhausted, "no memory to read a page"));
      });
      continue;
    }
    const PageRead read{.page = pages[i], .into = buffer.bytes().first(pages[i].bytes)};
    const auto transfer = ReadTransfer(read, deadline, call, i);
    transfer->check_data = true;
    transfer->looks_for_damage = looks == Looks::kFirst;
    Start(transfer);
  }
  for (const auto& device : devices_)
    device->Pump();
}

void NvmeStore::ListEntries(std::string after, size_t limit,
                            std::function<void(Result<Entries>)> done) {
  const auto list = std::make_shared<Entries>();
  const auto status = std::make_shared<Status>();
  index_.Read(
      [list, status, after = std::move(after), limit](Index& index) {
        auto last = index.List(
            after, limit, [&](const IndexEntry& entry) { list->pages.push_back(entry.page); },
            &list->unreadable);
        if (last) {
          list->last = *std::move(last);
        } else {
          *status = last.error();
        }
      },
      [list, status, done = std::move(done)] {
        if (!status->ok()) return done(*status);
        done(std::move(*list));
      });
}

void NvmeStore::FindEntries(std::vector<StoredPage> pages,
                            std::function<void(Result<std::vector<bool>>)> done) {
  struct Search {
    std::vector<StoredPage> pages;
    std::vector<bool> found;
    Status status;
  };
  const auto search = std::make_shared<Search>();
  search->pages = std::move(pages);
  index_.Read(
      [search](Index& index) {
        for (const StoredPage& page : search->pages) {
          const auto entry = index.Find(page.name);
          if (!entry) search->status = entry.error();
          search->found.push_back(entry && *entry && (*entry)->page.serial == page.serial &&
                                  (*entry)->page.place == page.place);
        }
      },
      [this, search, done = std::move(done)] {
        if (!search->status.ok()) return done(search->status);
        for (size_t i = 0; i < search->pages.size(); ++i) {
          if (late_.contains(search->pages[i].place)) search->found[i] = false;
        }
        done(std::move(search->found));
      });
}

void NvmeStore::BeginCensus() {
  for (const auto& device : devices_)
    device->space().BeginCensus();
}

void NvmeStore::Name(PlaceId place) {
  if (Device* const device = DeviceOf(place)) device->space().Name(FromPlaceId(place));
}

std::vector<PlaceId> NvmeStore::EndCensus() {
  std::vector<PlaceId> unnamed;
  for (const auto& device : devices_) {
    for (const PlaceId place : device->space().EndCensus()) {
      if (!late_.contains(place)) unnamed.push_back(place);
    }
  }
  return unnamed;
}

void NvmeStore::Turn() {
  for (const auto& device : devices_)
    device->Turn();
  AnswerOverdue();
  EraseDoubtful();
}

PageStoreReport NvmeStore::Report() const {
  PageStoreReport report;
  report.io = io_.Report().engine;
  report.durability = options_.durability;
  for (const auto& device : devices_) {
    report.devices.push_back(device->Report());
    DeviceReport& last = report.devices.back();
    if (last.state != DeviceState::kServing || index_.healthy()) continue;
    last.state = DeviceState::kReadOnly;
    last.why = index_.why();
  }
  std::copy(std::begin(faults_), std::end(faults_), std::begin(report.faults));
  report.orphans = orphans_;
  report.index_bytes = index_.bytes_on_disk();
  report.index_syncs = index_.syncs();
  report.waiting = unanswered_.size();
  for (const auto& writing : unanswered_)
    report.oldest_write_ns = std::max(report.oldest_write_ns, clock_.Now() - writing->began);
  return report;
}

}  // namespace
}  // namespace terrace::nvme

namespace terrace {

DiskIoOptions NvmeIoOptions(const NvmeStoreOptions& options) {
  const auto devices = static_cast<uint32_t>(options.directories.size());
  DiskIoOptions io;
  io.depth = devices * (options.in_flight_per_device + 1);
  io.files = std::min(kMostIoFiles, devices * (nvme::kMaxFilesOfDevice + 1));  // And its marker.
  return io;
}

Result<std::unique_ptr<PageStore>> OpenNvmeStore(const NvmeStoreOptions& options, DiskIo& io,
                                                 Executor& owner, const Clock& clock) {
  std::vector<std::string> paths;
  for (const NvmeDirectory& directory : options.directories)
    paths.push_back(directory.path);
  ASSIGN_OR_RETURN(nvme::StoreDirectories directories, nvme::OpenDirectories(paths, {}, clock));
  const std::string index_path = paths[0] + "/" + std::string(nvme::kIndexName);
  auto index = nvme::OpenIndex(index_path, directories.store);
  if (!index) return nvme::WithCure(std::move(index).error());
  auto store = std::make_unique<nvme::NvmeStore>(options, std::move(directories), *std::move(index),
                                                 io, owner, clock);
  store->Start();
  return std::unique_ptr<PageStore>(std::move(store));
}

}  // namespace terrace
