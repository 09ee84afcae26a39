// SlotSpace: which slots of which files of one device are taken. Books only: it touches no file and
// says which are to be made and removed. Owner thread.
//
// A file holds slots of one size. Places are given from the lowest file that has them, so that the
// last files run empty first; an empty file goes when slots of another size want its room.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <vector>

#include "base/clock.h"
#include "tiers/nvme/format.h"

namespace terrace::nvme {

// What the books want done to files, in this order.
struct FileChanges {
  std::vector<uint32_t> remove;
  std::vector<SlotFileName> make;
};

class SlotSpace {
 public:
  SlotSpace(uint8_t device, uint64_t capacity_bytes)
      : device_(device), capacity_bytes_(capacity_bytes) {}

  // ---- At the start
  // A file that is there.
  void Adopt(const SlotFileName& name);
  enum class Taken : uint8_t { kOk, kUnknown, kWrongSize, kTwice };
  Taken Take(const Place& place, uint32_t page_bytes);

  // ---- Places
  // Up to `count` places of `slot_bytes`, neighbours first.
  std::vector<PlaceId> Allocate(uint64_t slot_bytes, size_t count, FileChanges& changes);
  void Free(const Place& place, MonotonicNs now);
  bool IsTaken(const Place& place) const;
  uint64_t SlotBytesOf(uint32_t file) const;

  // ---- The census of PageStore
  void BeginCensus();
  void Name(const Place& place);
  std::vector<PlaceId> EndCensus();

  // ---- Files
  // No slot of it is given any more: it could not be made, or what is in it cannot be relied on.
  void Close(uint32_t file);
  // It stays while it is held, empty or not: something reads or writes it.
  void Hold(uint32_t file) { ++files_.at(file).held; }
  void Unhold(uint32_t file) { --files_.at(file).held; }
  // No further files for now: the file system is full.
  void set_growing(bool growing) { growing_ = growing; }
  // Whether a slot is there that is free or may become so.
  bool HasSlots() const;
  // Closed files, and those that have been empty since `before`, none of whose slots is taken.
  void RemoveEmpty(MonotonicNs before, FileChanges& changes);

  uint64_t capacity_bytes() const { return capacity_bytes_; }
  uint64_t allocated_bytes() const { return allocated_bytes_; }
  uint64_t file_bytes() const { return file_bytes_; }
  // What Allocate could give at best.
  uint64_t free_bytes() const;

 private:
  struct File {
    SlotFileName name;
    std::vector<uint64_t> taken;    // A bit a slot.
    std::vector<uint64_t> unnamed;  // Of a census: taken at its begin, and not changed or named.
    uint32_t free = 0;
    uint32_t longest = 0;  // No run of free slots is longer.
    uint32_t held = 0;
    bool closed = false;
    MonotonicNs empty_since = 0;  // 0: since the start, or not empty.
  };

  void Mark(File& file, uint32_t slot, uint32_t count, bool taken);
  // The first run of `count` free slots, which are taken; false when there is none.
  bool TakeRun(File& file, uint32_t count, std::vector<PlaceId>& places);
  bool TakeRunAnywhere(uint64_t slot_bytes, uint32_t count, std::vector<PlaceId>& places);
  // A new file of slots of that size, if there is room or emptied files of other sizes make it.
  // Returns how many slots it has; 0: none was made.
  uint32_t Grow(uint64_t slot_bytes, FileChanges& changes);
  std::map<uint32_t, File>::iterator Remove(std::map<uint32_t, File>::iterator file,
                                            FileChanges& changes);

  uint8_t device_;
  uint64_t capacity_bytes_;
  std::map<uint32_t, File> files_;  // By number.
  uint32_t next_file_ = 1;
  bool growing_ = true;
  uint64_t allocated_bytes_ = 0;
  uint64_t file_bytes_ = 0;
};

// Slots of a new file: a share of the capacity, so that several sizes have room side by side, at
// most 1 GiB of them, and no more files than kMaxFilesOfDevice whatever the capacity.
inline constexpr uint32_t kMaxFilesOfDevice = 512;
uint32_t SlotsOfNewFile(uint64_t slot_bytes, uint64_t capacity_bytes, uint64_t room_bytes);

}  // namespace terrace::nvme
