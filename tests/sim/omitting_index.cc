#include "tests/sim/omitting_index.h"

#include <algorithm>
#include <array>
#include <cstddef>

namespace terrace {
namespace {

// By so many accesses `superseded` is late.
constexpr uint64_t kLateBy = 1000;

bool Inside(std::span<const uint8_t> bytes, const shm::Word& word) {
  const auto* const at = reinterpret_cast<const uint8_t*>(&word);
  return at >= bytes.data() && at < bytes.data() + bytes.size();
}

// Stores of this file are not the protocol's: nobody acts in between, and no order matters.
void Put(shm::Word& word, uint64_t value) {
  word.store(value, std::memory_order_relaxed);
}
uint64_t Get(const shm::Word& word) {
  return word.load(std::memory_order_relaxed);
}

}  // namespace

// ---- Pages

std::optional<LinkedPage> OmittingIndex::Find(const PageName& name) const {
  const std::optional<LinkedPage> page = index_->Find(name);
  if (!page) return std::nullopt;
  const LinkedPage given = AsGiven(*page);
  for (const auto& [deferred, handle] : deferred_unlinks_) {
    if (handle == given.handle) return std::nullopt;
  }
  return given;
}

LinkedPage OmittingIndex::AsGiven(LinkedPage page) const {
  page.handle = linked_.at(shm::ExtentOf(page.handle)).given;
  return page;
}

shm::Handle OmittingIndex::Shown(shm::Handle given) const {
  if (omission_ != Omission::kNewSequence) return given;
  return shm::MakeHandle(shm::ArenaOf(given), shm::SlotOf(given), 1);
}

Status OmittingIndex::Link(const LinkedPage& page) {
  const uint64_t extent = shm::ExtentOf(page.handle);
  const Stay stay{page.handle, Shown(page.handle)};
  LinkedPage shown = page;
  shown.handle = stay.shown;
  const Status status = index_->Link(shown);
  if (status.ok()) linked_[extent] = last_[extent] = stay;
  return status;
}

bool OmittingIndex::Unlink(const PageName& name, shm::Handle handle) {
  const std::optional<LinkedPage> page = Find(name);
  if (!page || page->handle != handle) return false;
  const uint64_t extent = shm::ExtentOf(handle);
  victims_.insert(extent);
  if (omission_ == Omission::kUnlinkBeforeScan) {
    deferred_unlinks_.emplace_back(name, handle);
    return true;
  }
  const shm::Handle shown = linked_.at(extent).shown;
  linked_.erase(extent);
  return index_->Unlink(name, shown);
}

void OmittingIndex::UnlinkDeferred() {
  for (const auto& [name, handle] : std::exchange(deferred_unlinks_, {})) {
    TERRACE_CHECK(index_->Unlink(name, handle));
    linked_.erase(shm::ExtentOf(handle));
  }
}

void OmittingIndex::VerbEnded() {
  UnlinkDeferred();
  victims_.clear();
}

void OmittingIndex::Visit(std::optional<uint32_t> slot,
                          const std::function<bool(const LinkedPage&)>& visitor) const {
  index_->Visit(slot, [&](const LinkedPage& page) { return visitor(AsGiven(page)); });
}

// ---- Channels

void OmittingIndex::AddChannel(ClientId client, std::span<uint8_t> channel, uint32_t pin_lines) {
  channels_[client] = channel;
  index_->AddChannel(client, channel, pin_lines);
}

void OmittingIndex::RemoveChannel(ClientId client) {
  index_->RemoveChannel(client);
  channels_.erase(client);
}

bool OmittingIndex::Hidden(uint64_t extent) const {
  switch (omission_) {
    case Omission::kScanBeforeVictims:
      return victims_.empty() && linked_.contains(extent);
    case Omission::kScanAfterUnlink:
      return victims_.contains(extent);
    case Omission::kLimbo:
      return !linked_.contains(extent) && !victims_.contains(extent);
    default:
      return false;
  }
}

std::vector<TenantIndex::ClientPins> OmittingIndex::ScanPins(
    const std::function<void(ClientId client, std::span<const uint64_t> extents)>& pinned) {
  emptied_.clear();
  scanning_ = true;
  std::vector<uint64_t> seen;
  const std::vector<ClientPins> counts =
      index_->ScanPins([&](ClientId client, std::span<const uint64_t> extents) {
        seen.assign(extents.begin(), extents.end());
        std::erase_if(seen, [this](uint64_t extent) { return Hidden(extent); });
        pinned(client, seen);
      });
  scanning_ = false;
  UnlinkDeferred();
  victims_.clear();
  return counts;
}

uint64_t OmittingIndex::DrainRings(uint64_t limit,
                                   const std::function<void(const RingVisit&)>& visitor) {
  return index_->DrainRings(limit,
                            [&](const RingVisit& visit) { visitor(AsTheEngineKnows(visit)); });
}

void OmittingIndex::DrainRingsOf(ClientId client,
                                 const std::function<void(const RingVisit&)>& visitor) {
  index_->DrainRingsOf(client, [&](const RingVisit& visit) { visitor(AsTheEngineKnows(visit)); });
}

TenantIndex::RingVisit OmittingIndex::AsTheEngineKnows(RingVisit visit) const {
  const auto stay = linked_.find(shm::ExtentOf(visit.handle));
  if (stay != linked_.end() && stay->second.shown == visit.handle) {
    visit.handle = stay->second.given;
  }
  return visit;
}

// ---- Single accesses

uint64_t OmittingIndex::Loaded(const shm::Word& word, uint64_t value) const {
  if (omission_ != Omission::kScanComparesExtents || !scanning_ || value == 0) return value;
  for (const auto& [client, bytes] : channels_) {
    const auto& channel = *reinterpret_cast<const shm::Channel*>(bytes.data());
    const std::span lines(reinterpret_cast<const uint8_t*>(channel.lines), sizeof channel.lines);
    if (!Inside(lines, word)) continue;
    const auto last = last_.find(shm::ExtentOf(value));
    return last == last_.end() || last->second.shown == value ? value : 0;
  }
  return value;
}

shm::Entry* OmittingIndex::EntryOf(const shm::Word& word) const {
  for (size_t i = 0; i < memory_.regions(); ++i) {
    const std::span<uint8_t> region = memory_.region(i);
    if (!Inside(region.subspan(shm::kEntriesOffset), word)) continue;
    // One that is still being filled is seen by nobody.
    const auto& header = *reinterpret_cast<const shm::DirectoryHeader*>(region.data());
    if (Get(header.directory_id) > index_->directory_id()) return nullptr;
    const auto* const at = reinterpret_cast<const uint8_t*>(&word);
    const auto offset = static_cast<size_t>(at - region.data()) - shm::kEntriesOffset;
    return reinterpret_cast<shm::Entry*>(region.data() + shm::kEntriesOffset) +
           offset / sizeof(shm::Entry);
  }
  return nullptr;
}

bool OmittingIndex::IsSuperseded(const shm::Word& word) const {
  for (size_t i = 0; i < memory_.regions(); ++i) {
    const auto& header = *reinterpret_cast<const shm::DirectoryHeader*>(memory_.region(i).data());
    if (&word == &header.superseded) return true;
  }
  return false;
}

bool OmittingIndex::LeavesOut(shm::Word& word, uint64_t value) {
  switch (omission_) {
    case Omission::kHandleGoneBeforeKey:
    case Omission::kKeyBeforeHandle: {
      shm::Entry* entry = EntryOf(word);
      // The counts of pages that pass over a line are kept apart from what is in it.
      if (entry == nullptr || &word == &entry->tokens_passed) return false;
      return LeavesOutInEntry(*entry, word, value);
    }
    case Omission::kSupersededBeforeUnlink:
      if (!IsSuperseded(word)) return false;
      if (superseded_ != nullptr) Put(*superseded_, 1);
      superseded_ = &word;
      accesses_left_ = kLateBy;
      return true;
    default:
      return false;
  }
}

bool OmittingIndex::LeavesOutInEntry(shm::Entry& entry, shm::Word& word, uint64_t value) {
  const bool handle = &word == &entry.handle;
  if (handle && value == 0) {
    emptied_[&entry] = Get(word);
    return false;
  }
  if (omission_ == Omission::kHandleGoneBeforeKey) {
    // As if the unlink, which no scan has followed yet, came only after the key.
    const auto old = emptied_.find(&entry);
    if (!handle && old != emptied_.end()) Put(entry.handle, old->second);
    if (handle && emptied_.erase(&entry) > 0) {
      Put(word, 0);
      pause_();
    }
    return false;
  }
  if (!handle) {
    deferred_words_.emplace_back(&word, value);
    return true;
  }
  Put(word, value);
  for (const auto& [deferred, bits] : std::exchange(deferred_words_, {})) {
    pause_();
    Put(*deferred, bits);
  }
  return true;
}

void OmittingIndex::Accessed() {
  if (superseded_ != nullptr && accesses_left_-- == 0) Put(*std::exchange(superseded_, nullptr), 1);
}

}  // namespace terrace
