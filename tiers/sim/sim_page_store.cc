#include "tiers/sim/sim_page_store.h"

#include <algorithm>
#include <cstring>
#include <string>

#include "base/check.h"

namespace terrace {
namespace {

// FNV-1a, a word at a time: only to see that bytes did not change.
uint64_t CheckOf(std::span<const uint8_t> bytes) {
  uint64_t check = 0xcbf29ce484222325;
  size_t at = 0;
  for (; at + sizeof(uint64_t) <= bytes.size(); at += sizeof(uint64_t)) {
    uint64_t word;
    std::memcpy(&word, bytes.data() + at, sizeof word);
    check = (check ^ word) * 0x100000001b3;
  }
  for (; at < bytes.size(); ++at)
    check = (check ^ bytes[at]) * 0x100000001b3;
  return check;
}

Status NoDevice() {
  return {Code::kUnavailable, "simulated store: no device is written to"};
}

}  // namespace

Status SimPageStore::Restore(const std::function<void(const StoredPage&)>& visit) {
  RETURN_IF_ERROR(restore_faults.Next());
  for (const auto& [place, on_disk] : pages_)
    visit(on_disk.page);
  return {};
}

// ---- Places

uint64_t SimPageStore::PlaceBytes(uint32_t bytes) const {
  return (bytes + 2 * kHeaderBytes - 1) / kHeaderBytes * kHeaderBytes;
}

uint64_t SimPageStore::free_bytes() const {
  return state_ == DeviceState::kServing ? options_.capacity_bytes - allocated_bytes_ : 0;
}

std::vector<PlaceId> SimPageStore::Allocate(uint32_t bytes, size_t count) {
  std::vector<PlaceId> places;
  std::set<PlaceId>& free = free_[bytes];
  while (places.size() < count && free_bytes() >= PlaceBytes(bytes)) {
    PlaceId place = last_place_ + 1;
    if (free.empty()) {
      ++last_place_;
    } else {
      place = *free.begin();
      free.erase(free.begin());
    }
    allocated_[place] = bytes;
    allocated_bytes_ += PlaceBytes(bytes);
    unnamed_.erase(place);
    places.push_back(place);
  }
  return places;
}

void SimPageStore::Release(PlaceId place) {
  TERRACE_CHECK(!pages_.contains(place) && !busy_.contains(place));
  Free(place);
}

void SimPageStore::Free(PlaceId place) {
  const auto found = allocated_.find(place);
  TERRACE_CHECK(found != allocated_.end());
  allocated_bytes_ -= PlaceBytes(found->second);
  free_[found->second].insert(place);
  allocated_.erase(found);
  unnamed_.erase(place);
}

bool SimPageStore::Readable(PlaceId) const {
  return state_ == DeviceState::kServing || state_ == DeviceState::kReadOnly;
}

// ---- Pages

void SimPageStore::Write(std::vector<PageWrite> pages, MonotonicNs,
                         std::function<void(size_t, Result<uint64_t>)> done,
                         std::function<void(size_t)> ended) {
  ++write_calls_;
  for (size_t i = 0; i < pages.size(); ++i) {
    const StoredPage& page = pages[i].page;
    const auto place = allocated_.find(page.place);
    TERRACE_CHECK(place != allocated_.end() && place->second == page.bytes);
    TERRACE_CHECK(pages[i].bytes.size() == page.bytes && !pages_.contains(page.place));
    TERRACE_CHECK(++busy_[page.place] == 1);
    Work work;
    work.kind = Work::Kind::kWrite;
    work.check = CheckOf(pages[i].bytes);
    work.write = std::move(pages[i]);
    work.written = [done, i](Result<uint64_t> serial) { done(i, std::move(serial)); };
    work.ended = [ended, i] { ended(i); };
    pending_.push_back(std::move(work));
  }
}

void SimPageStore::Read(std::vector<PageRead> pages, MonotonicNs,
                        std::function<void(size_t, ReadFault, Status)> done,
                        std::function<void(size_t)> ended) {
  ++read_calls_;
  for (size_t i = 0; i < pages.size(); ++i) {
    TERRACE_CHECK(pages[i].into.size() == pages[i].page.bytes);
    TERRACE_CHECK(pages_.contains(pages[i].page.place));
    ++busy_[pages[i].page.place];
    Work work;
    work.kind = Work::Kind::kRead;
    work.read = std::move(pages[i]);
    work.have_read = [done, i](ReadFault fault, Status status) {
      done(i, fault, std::move(status));
    };
    work.ended = [ended, i] { ended(i); };
    pending_.push_back(std::move(work));
  }
}

void SimPageStore::Erase(std::vector<StoredPage> pages, std::function<void(Status)> done) {
  for (const StoredPage& page : pages) {
    if (lost_.contains(page.place)) continue;
    const auto found = pages_.find(page.place);
    TERRACE_CHECK(found != pages_.end() && found->second.page.serial == page.serial &&
                  found->second.page.name == page.name);
    TERRACE_CHECK(!busy_.contains(page.place));
  }
  Work work;
  work.kind = Work::Kind::kErase;
  work.erase = std::move(pages);
  work.done = std::move(done);
  pending_.push_back(std::move(work));
}

void SimPageStore::Flush(std::function<void(uint64_t, uint64_t)> progress,
                         std::function<void(Status)> done) {
  Work work;
  work.progress = std::move(progress);
  work.done = std::move(done);
  pending_.push_back(std::move(work));
}

// ---- Completions

size_t SimPageStore::RunPending(size_t limit) {
  size_t ran = 0;
  for (; ran < limit && !pending_.empty(); ++ran)
    RunOne(0);
  return ran;
}

void SimPageStore::RunOne(size_t index) {
  TERRACE_CHECK(index < pending_.size());
  Work work = std::move(pending_[index]);
  pending_.erase(pending_.begin() + static_cast<ptrdiff_t>(index));
  Complete(std::move(work));
}

void SimPageStore::Complete(Work work) {
  switch (work.kind) {
    case Work::Kind::kWrite:
      return CompleteWrite(std::move(work));
    case Work::Kind::kRead:
      return CompleteRead(std::move(work));
    case Work::Kind::kErase:
      return work.done(EraseNow(work.erase));
    case Work::Kind::kFlush:
      if (state_ != DeviceState::kServing) return work.done(NoDevice());
      if (work.progress) work.progress(counts_.written_bytes, counts_.written_bytes);
      return work.done({});
    case Work::Kind::kCheck:
      return work.answer();
  }
}

void SimPageStore::CompleteWrite(Work work) {
  TERRACE_CHECK(CheckOf(work.write.bytes) == work.check);
  if (Status slow = slow_faults.Next(); !slow.ok()) {
    ++counts_.overdue;
    const auto written = std::move(work.written);
    overdue_.push_back(std::move(work));
    return written(Status(Code::kDeadlineExceeded, slow.message()));
  }
  const PlaceId place = work.write.page.place;
  busy_.erase(place);
  Status status = state_ == DeviceState::kServing ? write_faults.Next() : NoDevice();
  if (!status.ok()) {
    ++counts_.write_errors;
    Free(place);
    work.written(std::move(status));
  } else {
    work.written(Put(work.write));
  }
  work.ended();
}

uint64_t SimPageStore::Put(const PageWrite& write) {
  OnDisk& on_disk = pages_[write.page.place];
  on_disk.page = write.page;
  on_disk.page.serial = ++last_serial_;
  on_disk.bytes.assign(write.bytes.begin(), write.bytes.end());
  ++counts_.writes;
  counts_.written_bytes += write.page.bytes;
  return last_serial_;
}

void SimPageStore::CompleteRead(Work work) {
  const PageRead& read = work.read;
  ReadFault fault = FaultOf(read.page);
  const bool slow = !slow_faults.Next().ok();
  if (slow) fault = ReadFault::kOverdue;
  if (const Status failed = read_faults.Next(); !failed.ok() && fault == ReadFault::kNone) {
    fault = ReadFault::kIo;
  }
  ++faults_[static_cast<int>(fault)];
  if (fault == ReadFault::kNone) {
    ++counts_.reads;
    counts_.read_bytes += read.page.bytes;
    std::memcpy(read.into.data(), pages_.at(read.page.place).bytes.data(), read.into.size());
  } else if (fault != ReadFault::kRefused) {
    std::memset(read.into.data(), 0xdb, read.into.size());
  }
  const auto have_read = std::move(work.have_read);
  if (slow) {
    ++counts_.overdue;
    overdue_.push_back(std::move(work));
    return have_read(fault, Status(Code::kDeadlineExceeded, "simulated store: slow"));
  }
  if (--busy_[read.page.place] == 0) busy_.erase(read.page.place);
  have_read(fault, fault == ReadFault::kNone ? Status()
                                             : Status(Code::kDataLoss, "simulated store: fault"));
  work.ended();
}

ReadFault SimPageStore::FaultOf(const StoredPage& page) const {
  if (!Readable(page.place)) return ReadFault::kRefused;
  const OnDisk& on_disk = pages_.at(page.place);
  if (on_disk.fault != ReadFault::kNone) return on_disk.fault;
  if (on_disk.page.name != page.name) return ReadFault::kName;
  const bool same =
      on_disk.page.serial == page.serial && on_disk.page.generation == page.generation &&
      on_disk.page.layout == page.layout && on_disk.page.parent == page.parent &&
      on_disk.page.position == page.position && on_disk.page.valid_tokens == page.valid_tokens &&
      on_disk.page.item_class == page.item_class && on_disk.page.committed_ms == page.committed_ms;
  return same ? ReadFault::kNone : ReadFault::kStale;
}

// ---- Checking

void SimPageStore::AddCheck(std::function<void()> answer) {
  Work work;
  work.kind = Work::Kind::kCheck;
  work.answer = std::move(answer);
  pending_.push_back(std::move(work));
}

void SimPageStore::Check(std::vector<StoredPage> pages, Looks, MonotonicNs,
                         std::function<void(size_t, ReadFault, Status)> done) {
  for (size_t i = 0; i < pages.size(); ++i) {
    TERRACE_CHECK(pages_.contains(pages[i].place));
    // Who asks keeps it from being erased until the answer.
    ++busy_[pages[i].place];
    AddCheck([this, done, i, page = pages[i]] {
      if (--busy_[page.place] == 0) busy_.erase(page.place);
      const ReadFault fault = CheckNow(page);
      ++faults_[static_cast<int>(fault)];
      ++checked_pages_;
      done(
          i, fault,
          fault == ReadFault::kNone ? Status() : Status(Code::kDataLoss, "simulated store: fault"));
    });
  }
}

ReadFault SimPageStore::CheckNow(const StoredPage& page) {
  if (!slow_faults.Next().ok()) return ReadFault::kOverdue;
  const ReadFault fault = FaultOf(page);
  const bool failed = !read_faults.Next().ok();
  return failed && fault == ReadFault::kNone ? ReadFault::kIo : fault;
}

// In the order of the places.
void SimPageStore::ListEntries(std::string after, size_t limit,
                               std::function<void(Result<Entries>)> done) {
  AddCheck([this, after = after.empty() ? 0 : std::stoull(after), limit, done] {
    Entries entries;
    auto at = pages_.upper_bound(after);
    for (; at != pages_.end() && entries.pages.size() < limit; ++at)
      entries.pages.push_back(at->second.page);
    if (at != pages_.end()) entries.last = std::to_string(entries.pages.back().place);
    done(std::move(entries));
  });
}

void SimPageStore::FindEntries(std::vector<StoredPage> pages,
                               std::function<void(Result<std::vector<bool>>)> done) {
  AddCheck([this, pages = std::move(pages), done] {
    std::vector<bool> found;
    for (const StoredPage& page : pages) {
      const auto on_disk = pages_.find(page.place);
      found.push_back(on_disk != pages_.end() && on_disk->second.page.name == page.name &&
                      on_disk->second.page.serial == page.serial);
    }
    done(std::move(found));
  });
}

void SimPageStore::DropEntries(std::vector<StoredPage> pages, std::function<void(Status)> done) {
  AddCheck([this, pages = std::move(pages), done] {
    for (const StoredPage& page : pages)
      pages_.erase(page.place);
    done({});
  });
}

void SimPageStore::BeginCensus() {
  unnamed_.clear();
  for (const auto& [place, bytes] : allocated_)
    unnamed_.insert(place);
}

// Places of writes that have not ended are in use by the store.
std::vector<PlaceId> SimPageStore::EndCensus() {
  std::vector<PlaceId> unnamed;
  for (const PlaceId place : std::exchange(unnamed_, {})) {
    if (!busy_.contains(place)) unnamed.push_back(place);
  }
  return unnamed;
}

void SimPageStore::LoseEntry(const StoredName& name) {
  for (auto at = pages_.begin(); at != pages_.end(); ++at) {
    if (at->second.page.name != name) continue;
    lost_.insert(at->first);
    pages_.erase(at);
    return;
  }
}

size_t SimPageStore::EndOverdue(size_t limit) {
  size_t ran = 0;
  for (; ran < limit && !overdue_.empty(); ++ran) {
    Work work = std::move(overdue_.front());
    overdue_.pop_front();
    const bool write = work.kind == Work::Kind::kWrite;
    const PlaceId place = write ? work.write.page.place : work.read.page.place;
    if (write) {
      TERRACE_CHECK(CheckOf(work.write.bytes) == work.check);
    } else {
      std::memset(work.read.into.data(), 0xdc, work.read.into.size());
    }
    if (--busy_[place] == 0) busy_.erase(place);
    if (write) Free(place);
    work.ended();
  }
  return ran;
}

Status SimPageStore::EraseNow(const std::vector<StoredPage>& pages) {
  RETURN_IF_ERROR(erase_faults.Next());
  for (const StoredPage& page : pages) {
    TERRACE_CHECK(lost_.erase(page.place) == 1 || pages_.erase(page.place) == 1);
    Free(page.place);
  }
  return {};
}

void SimPageStore::Crash(size_t reached_disk) {
  for (Work& work : pending_) {
    if (reached_disk == 0) break;
    if (work.kind == Work::Kind::kWrite) {
      Put(work.write);
      --reached_disk;
    } else if (work.kind == Work::Kind::kErase) {
      for (const StoredPage& page : work.erase)
        pages_.erase(page.place);
      --reached_disk;
    }
  }
  pending_.clear();
  overdue_.clear();
  busy_.clear();
  lost_.clear();
  // What is allocated follows from what is there.
  const std::map<PlaceId, uint32_t> allocated = std::exchange(allocated_, {});
  allocated_bytes_ = 0;
  for (const auto& [place, bytes] : allocated) {
    if (!pages_.contains(place)) {
      free_[bytes].insert(place);
      continue;
    }
    allocated_[place] = bytes;
    allocated_bytes_ += PlaceBytes(bytes);
  }
}

void SimPageStore::Corrupt(const StoredName& name, ReadFault fault) {
  for (auto& [place, on_disk] : pages_) {
    if (on_disk.page.name == name) on_disk.fault = fault;
  }
}

bool SimPageStore::Has(const StoredName& name) const {
  return std::any_of(pages_.begin(), pages_.end(),
                     [&](const auto& entry) { return entry.second.page.name == name; });
}

bool SimPageStore::Corrupted(const StoredName& name) const {
  return std::any_of(pages_.begin(), pages_.end(), [&](const auto& entry) {
    return entry.second.page.name == name && entry.second.fault != ReadFault::kNone;
  });
}

std::vector<std::pair<const uint8_t*, const uint8_t*>> SimPageStore::InUse() const {
  std::vector<std::pair<const uint8_t*, const uint8_t*>> in_use;
  for (const auto* works : {&pending_, &overdue_}) {
    for (const Work& work : *works) {
      std::span<const uint8_t> bytes;
      if (work.kind == Work::Kind::kWrite) bytes = work.write.bytes;
      if (work.kind == Work::Kind::kRead) bytes = work.read.into;
      if (!bytes.empty()) in_use.emplace_back(bytes.data(), bytes.data() + bytes.size());
    }
  }
  return in_use;
}

PageStoreReport SimPageStore::Report() const {
  PageStoreReport report;
  report.io = "simulated";
  report.durability = options_.durability;
  DeviceReport device = counts_;
  device.path = "simulated";
  device.state = state_;
  device.capacity_bytes = options_.capacity_bytes;
  device.allocated_bytes = allocated_bytes_;
  device.in_flight = static_cast<uint32_t>(pending_.size() + overdue_.size());
  report.devices.push_back(device);
  std::copy(std::begin(faults_), std::end(faults_), std::begin(report.faults));
  report.waiting =
      static_cast<uint64_t>(std::count_if(pending_.begin(), pending_.end(), [](const Work& work) {
        return work.kind == Work::Kind::kWrite;
      }));
  return report;
}

}  // namespace terrace
