#include "tiers/nvme/nvme_store.h"

#include <algorithm>
#include <chrono>
#include <iterator>
#include <utility>

#include "base/check.h"
#include "tiers/nvme/device.h"
#include "tiers/nvme/directories.h"
#include "tiers/nvme/file_syncs.h"
#include "tiers/nvme/format.h"
#include "tiers/nvme/index.h"
#include "tiers/nvme/index_queue.h"
#include "tiers/nvme/mailbox.h"
#include "tiers/nvme/page_writer.h"

namespace terrace::nvme {
namespace {

// Serials of one life of the store: more than it can write, so that none is ever given twice, even
// those of pages that were erased again.
constexpr uint64_t kSerialsOfLife = uint64_t{1} << 40;

Status WithCure(Status status) {
  if (status.code() != Code::kDataLoss) return status;
  return {Code::kDataLoss, status.message() + "; `terraced --fsck=repair` builds the index anew"};
}

// One call of Read or Check, as its pages hold it.
struct ReadCall {
  std::function<void(size_t, ReadFault, Status)> done;
  std::function<void(size_t)> ended;
};

class NvmeStore final : public PageStore {
 public:
  NvmeStore(NvmeStoreOptions options, StoreDirectories directories, std::unique_ptr<Index> index,
            DiskIo& io, Executor& owner, const Clock& clock)
      : options_(std::move(options)),
        io_(io),
        uuid_(directories.store),
        box_(std::make_shared<Mailbox>(owner)),
        index_({.sync = options_.durability == Durability::kPower, .retry_ns = options_.retry_ns},
               std::move(index), clock, box_),
        syncs_(devices_, options_.sync_deadline_ns, clock, box_),
        writer_({.store = uuid_,
                 .sync = options_.durability == Durability::kPower,
                 .most = options_.waiting_writes},
                devices_, syncs_, index_, clock, box_) {
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
  void Release(PlaceId place) override { writer_.Free(place); }
  uint64_t PlaceBytes(uint32_t bytes) const override { return SlotBytes(bytes); }
  bool writable() const override;
  uint64_t free_bytes() const override;
  uint64_t capacity_bytes() const override;
  bool Readable(PlaceId place) const override;

  void Write(std::vector<PageWrite> pages, MonotonicNs deadline,
             std::function<void(size_t, Result<uint64_t>)> done,
             std::function<void(size_t)> ended) override {
    writer_.Write(std::move(pages), deadline, std::move(done), std::move(ended));
  }
  void Read(std::vector<PageRead> pages, MonotonicNs deadline,
            std::function<void(size_t, ReadFault, Status)> done,
            std::function<void(size_t)> ended) override;
  void Erase(std::vector<StoredPage> pages, std::function<void(Status)> done) override {
    writer_.Erase(std::move(pages), std::move(done));
  }
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

  // Whether the index' entry is of a place that is there; takes it then.
  bool Claim(const StoredPage& page);

  void Start(const std::shared_ptr<Transfer>& read);
  std::shared_ptr<Transfer> ReadTransfer(const PageRead& read, MonotonicNs deadline,
                                         const std::shared_ptr<ReadCall>& call, size_t i);

  const NvmeStoreOptions options_;
  DiskIo& io_;
  const StoreUuid uuid_;
  const std::shared_ptr<Mailbox> box_;
  IndexQueue index_;
  Devices devices_;
  FileSyncs syncs_;
  PageWriter writer_;

  size_t next_device_ = 0;  // Where the next Allocate begins.
  uint64_t faults_[kReadFaults] = {};
  uint64_t orphans_ = 0;
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
  ASSIGN_OR_RETURN(const uint64_t first, index.ReserveSerials(kSerialsOfLife, last_serial));
  writer_.UseSerials(first, kSerialsOfLife);
  return index_.Start();
}

bool NvmeStore::Claim(const StoredPage& page) {
  Device* const device = DeviceOf(devices_, page.place);
  if (device == nullptr) return false;
  // What is on a device that is off is known and missed, and there again when the device is.
  if (device->off()) return true;
  return device->space().Take(FromPlaceId(page.place), page.bytes) == SlotSpace::Taken::kOk;
}

// ---- Places

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
  const Device* const device = DeviceOf(devices_, place);
  return device != nullptr && device->readable();
}

// ---- Reads

void NvmeStore::Read(std::vector<PageRead> pages, MonotonicNs deadline,
                     std::function<void(size_t, ReadFault, Status)> done,
                     std::function<void(size_t)> ended) {
  const auto call = std::make_shared<ReadCall>(ReadCall{std::move(done), std::move(ended)});
  for (size_t i = 0; i < pages.size(); ++i)
    Start(ReadTransfer(pages[i], deadline, call, i));
  PumpAll(devices_);
}

void NvmeStore::Start(const std::shared_ptr<Transfer>& read) {
  const StoredPage& page = read->header.page;
  Device* const device = DeviceOf(devices_, page.place);
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
  if (const Device* const device = DeviceOf(devices_, read.page.place)) {
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

// ---- Flushing

void NvmeStore::Flush(std::function<void(uint64_t, uint64_t)> progress,
                      std::function<void(Status)> done) {
  syncs_.Flush(std::move(progress), [this, done = std::move(done)](const Status& status) {
    if (!status.ok()) return done(status);
    index_.Sync(done);
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
  PumpAll(devices_);
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
          if (writer_.IsLate(search->pages[i].place)) search->found[i] = false;
        }
        done(std::move(search->found));
      });
}

void NvmeStore::BeginCensus() {
  for (const auto& device : devices_)
    device->space().BeginCensus();
}

void NvmeStore::Name(PlaceId place) {
  if (Device* const device = DeviceOf(devices_, place)) device->space().Name(FromPlaceId(place));
}

std::vector<PlaceId> NvmeStore::EndCensus() {
  std::vector<PlaceId> unnamed;
  for (const auto& device : devices_) {
    for (const PlaceId place : device->space().EndCensus()) {
      if (!writer_.IsLate(place)) unnamed.push_back(place);
    }
  }
  return unnamed;
}

void NvmeStore::Turn() {
  for (const auto& device : devices_)
    device->Turn();
  writer_.Turn();
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
  report.waiting = writer_.waiting();
  report.oldest_write_ns = writer_.oldest_ns();
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
