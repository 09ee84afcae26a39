#include "tiers/nvme/slot_space.h"

#include <algorithm>
#include <bit>
#include <utility>

#include "base/check.h"

namespace terrace::nvme {
namespace {

constexpr uint64_t kMostOfFile = uint64_t{1} << 30;
constexpr uint64_t kSharesOfCapacity = 16;
// Above this many GiB of capacity files grow beyond 1 GiB, so that their number stays.
constexpr uint64_t kFilesOfCapacity = 128;
// A run of at least this many neighbours is worth more than a file of its own.
constexpr uint32_t kGoodRun = 8;

bool BitOf(const std::vector<uint64_t>& bits, uint32_t at) {
  return (bits[at / 64] >> (at % 64) & 1) != 0;
}

}  // namespace

uint32_t SlotsOfNewFile(uint64_t slot_bytes, uint64_t capacity_bytes, uint64_t room_bytes) {
  const uint64_t wanted = std::max(std::min(kMostOfFile, capacity_bytes / kSharesOfCapacity),
                                   capacity_bytes / kFilesOfCapacity);
  const uint64_t slots = std::clamp<uint64_t>(wanted / slot_bytes, 1, kMaxSlotsOfFile);
  return static_cast<uint32_t>(std::min(slots, room_bytes / slot_bytes));
}

void SlotSpace::Adopt(const SlotFileName& name) {
  File file{.name = name, .taken = {}, .unnamed = {}, .free = name.slots, .longest = name.slots};
  file.taken.resize((name.slots + 63) / 64);
  files_.emplace(name.number, std::move(file));
  next_file_ = std::max(next_file_, name.number + 1);
  file_bytes_ += name.bytes();
}

SlotSpace::Taken SlotSpace::Take(const Place& place, uint32_t page_bytes) {
  const auto found = files_.find(place.file);
  if (found == files_.end() || place.slot >= found->second.name.slots) return Taken::kUnknown;
  File& file = found->second;
  if (SlotBytes(page_bytes) != file.name.slot_bytes) return Taken::kWrongSize;
  if (BitOf(file.taken, place.slot)) return Taken::kTwice;
  Mark(file, place.slot, 1, true);
  return Taken::kOk;
}

std::vector<PlaceId> SlotSpace::Allocate(uint64_t slot_bytes, size_t count, FileChanges& changes) {
  std::vector<PlaceId> places;
  // Runs get shorter as long ones are used up; a new file comes before crumbs.
  uint32_t run = static_cast<uint32_t>(std::min<uint64_t>(count, capacity_bytes_ / slot_bytes));
  const uint32_t good = std::min(run, kGoodRun);
  while (run > 0 && places.size() < count) {
    run = static_cast<uint32_t>(std::min<uint64_t>(run, count - places.size()));
    if (TakeRunAnywhere(slot_bytes, run, places)) continue;
    const uint32_t fresh = run <= good ? Grow(slot_bytes, changes) : 0;
    run = fresh > 0 ? std::min(fresh, static_cast<uint32_t>(count - places.size())) : run / 2;
  }
  return places;
}

void SlotSpace::Free(const Place& place, MonotonicNs now) {
  File& file = files_.at(place.file);
  TERRACE_CHECK(BitOf(file.taken, place.slot));
  Mark(file, place.slot, 1, false);
  // Whether it joins two runs is found out when one is looked for.
  file.longest = file.free;
  if (file.free == file.name.slots) file.empty_since = now;
}

bool SlotSpace::IsTaken(const Place& place) const {
  const auto found = files_.find(place.file);
  return found != files_.end() && place.slot < found->second.name.slots &&
         BitOf(found->second.taken, place.slot);
}

uint64_t SlotSpace::SlotBytesOf(uint32_t file) const {
  const auto found = files_.find(file);
  return found == files_.end() ? 0 : found->second.name.slot_bytes;
}

void SlotSpace::BeginCensus() {
  for (auto& [number, file] : files_)
    file.unnamed = file.taken;
}

void SlotSpace::Name(const Place& place) {
  const auto found = files_.find(place.file);
  if (found == files_.end() || place.slot / 64 >= found->second.unnamed.size()) return;
  found->second.unnamed[place.slot / 64] &= ~(uint64_t{1} << (place.slot % 64));
}

std::vector<PlaceId> SlotSpace::EndCensus() {
  std::vector<PlaceId> unnamed;
  for (auto& [number, file] : files_) {
    const std::vector<uint64_t> bits = std::exchange(file.unnamed, {});
    for (size_t i = 0; i < bits.size(); ++i) {
      for (uint64_t word = bits[i]; word != 0; word &= word - 1) {
        const auto slot = static_cast<uint32_t>(64 * i + std::countr_zero(word));
        unnamed.push_back(ToPlaceId({device_, number, slot}));
      }
    }
  }
  return unnamed;
}

void SlotSpace::Close(uint32_t file) {
  const auto found = files_.find(file);
  if (found != files_.end()) found->second.closed = true;
}

void SlotSpace::RemoveEmpty(MonotonicNs before, FileChanges& changes) {
  for (auto at = files_.begin(); at != files_.end();) {
    const File& file = at->second;
    const bool empty = file.free == file.name.slots && file.held == 0;
    at = empty && (file.closed || file.empty_since < before) ? Remove(at, changes) : std::next(at);
  }
}

uint64_t SlotSpace::free_bytes() const {
  if (growing_) return capacity_bytes_ - std::min(capacity_bytes_, allocated_bytes_);
  uint64_t bytes = 0;
  for (const auto& [number, file] : files_)
    bytes += file.closed ? 0 : file.free * file.name.slot_bytes;
  return bytes;
}

bool SlotSpace::HasSlots() const {
  return std::any_of(files_.begin(), files_.end(),
                     [](const auto& file) { return !file.second.closed; });
}

void SlotSpace::Mark(File& file, uint32_t slot, uint32_t count, bool taken) {
  for (uint32_t i = slot; i < slot + count; ++i) {
    const uint64_t bit = uint64_t{1} << (i % 64);
    file.taken[i / 64] = taken ? file.taken[i / 64] | bit : file.taken[i / 64] & ~bit;
    if (!file.unnamed.empty()) file.unnamed[i / 64] &= ~bit;
  }
  const uint64_t bytes = count * file.name.slot_bytes;
  file.free = taken ? file.free - count : file.free + count;
  allocated_bytes_ = taken ? allocated_bytes_ + bytes : allocated_bytes_ - bytes;
}

bool SlotSpace::TakeRun(File& file, uint32_t count, std::vector<PlaceId>& places) {
  uint32_t begin = 0;
  for (uint32_t at = 0; at < file.name.slots && at - begin < count;) {
    const uint64_t word = file.taken[at / 64] >> (at % 64);
    if (word == 0) {
      at += 64 - at % 64;
    } else if ((word & 1) != 0) {
      at += static_cast<uint32_t>(std::countr_one(word));
      begin = at;
    } else {
      at += static_cast<uint32_t>(std::countr_zero(word));
      if (at - begin < count) {
        // The slot at `at` is taken: what is free before it is too short.
        begin = at + 1;
        at = begin;
      }
    }
  }
  if (file.name.slots - begin < count) {
    file.longest = count - 1;
    return false;
  }
  for (uint32_t i = 0; i < count; ++i)
    places.push_back(ToPlaceId({device_, file.name.number, begin + i}));
  Mark(file, begin, count, true);
  file.empty_since = 0;
  return true;
}

bool SlotSpace::TakeRunAnywhere(uint64_t slot_bytes, uint32_t count, std::vector<PlaceId>& places) {
  for (auto& [number, file] : files_) {
    if (file.closed || file.name.slot_bytes != slot_bytes) continue;
    if (std::min(file.free, file.longest) < count) continue;
    if (TakeRun(file, count, places)) return true;
  }
  return false;
}

uint32_t SlotSpace::Grow(uint64_t slot_bytes, FileChanges& changes) {
  if (!growing_ || next_file_ > kMaxFileNumber) return 0;
  const auto room = [this] { return capacity_bytes_ - std::min(capacity_bytes_, file_bytes_); };
  const uint32_t full = SlotsOfNewFile(slot_bytes, capacity_bytes_, capacity_bytes_);
  const auto short_of_room = [&] {
    return room() < full * slot_bytes || files_.size() >= kMaxFilesOfDevice;
  };
  for (auto at = files_.begin(); at != files_.end() && short_of_room();) {
    const File& file = at->second;
    const bool gives =
        file.free == file.name.slots && file.held == 0 && file.name.slot_bytes != slot_bytes;
    at = gives ? Remove(at, changes) : std::next(at);
  }
  const uint32_t slots = SlotsOfNewFile(slot_bytes, capacity_bytes_, room());
  if (slots == 0 || files_.size() >= kMaxFilesOfDevice) return 0;
  const SlotFileName name{.number = next_file_, .slot_bytes = slot_bytes, .slots = slots};
  Adopt(name);
  changes.make.push_back(name);
  return slots;
}

std::map<uint32_t, SlotSpace::File>::iterator SlotSpace::Remove(
    std::map<uint32_t, File>::iterator file, FileChanges& changes) {
  file_bytes_ -= file->second.name.bytes();
  changes.remove.push_back(file->first);
  return files_.erase(file);
}

}  // namespace terrace::nvme
