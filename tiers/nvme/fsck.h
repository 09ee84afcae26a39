// Fsck: whether the index and the slots of a store at rest say the same, and what to do about it.
// Blocking; takes the store's locks, so that no daemon has it meanwhile.
//
// A slot that holds a valid header and is in no entry is no fault: pages that were erased, or whose
// writing was cut off before it was acknowledged, leave their slots so. They come back only when
// the index is built anew, which nobody can do without bringing back what had been erased: true
// pages all the same, of the generation that they say.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/status.h"

namespace terrace {

enum class FsckRepair : uint8_t {
  kNothing,
  kMend,     // Drops entries whose slot does not check; builds a damaged index anew.
  kRebuild,  // Builds the index anew from the slots, damaged or not; the old one stays beside it.
};

struct FsckOptions {
  std::vector<std::string> directories;  // As those of the store, in its order.
  bool read_data = false;                // Also checks the bytes of every page.
  FsckRepair repair = FsckRepair::kNothing;
  // Told of every slot that is read, with how many that makes; most are read twice.
  std::function<void(uint64_t)> progress = {};
};

struct FsckReport {
  std::string index_damage;  // Empty: it can be read.
  // Of the index.
  uint64_t entries = 0;
  uint64_t good = 0;           // The slot holds that page.
  uint64_t good_bytes = 0;     // Slots of those, headers included.
  uint64_t on_off_device = 0;  // Cannot be looked at now.
  uint64_t no_such_place = 0;  // No file or slot of that size there.
  uint64_t bad_header = 0;     // Unreadable, or not a header.
  uint64_t other_page = 0;     // The slot holds another page, or another writing.
  uint64_t bad_data = 0;       // With read_data.
  uint64_t unreadable = 0;     // Records that are no entries.
  // Of the slot files.
  uint64_t devices_off = 0;
  uint64_t files = 0;
  uint64_t slots = 0;
  uint64_t without_entry = 0;  // A valid header, and no good entry.
  // What was done.
  bool rebuilt = false;
  uint64_t dropped = 0;
  uint64_t added = 0;                 // By building anew.
  std::vector<std::string> findings;  // The first kMostFindings, in words.

  uint64_t bad() const { return no_such_place + bad_header + other_page + bad_data + unreadable; }
  bool clean() const { return index_damage.empty() && bad() == 0 && devices_off == 0; }
};
inline constexpr size_t kMostFindings = 100;

// Fails as OpenNvmeStore does, but for a damaged index, which is reported.
Result<FsckReport> FsckNvmeStore(const FsckOptions& options, const Clock& clock);

}  // namespace terrace
