// Admission: whether a page is worth a write to the store. Pure functions of figures, and the
// budget of bytes that may be written.
//
// Flash wears by what is written to it, and most pages are never asked for again. So while the
// store has room every page is written that the budget pays for, and above the high watermark only
// those that were used more often than the page that would leave for them.
#pragma once

#include <cstdint>

#include "base/clock.h"

namespace terrace {

// Why a page was not written to the store.
enum class Unspilled : uint8_t {
  kNone,
  kDevice,  // No device is written to.
  kQueue,   // Too many pages wait for it.
  kRare,    // The store is nearly full of pages that are used as often.
  kBudget,  // Enough bytes were written for now.
  kPlace,   // The store has no place of that size.
  kSpace,   // The space could not be put on record.
  kGone,    // It left memory, or its generation ended, before its turn.
  kFailed,  // The store failed to write it.
};
inline constexpr int kUnspilled = 9;

struct AdmissionFigures {
  bool device_writes = false;
  uint64_t place_bytes = 0;  // What the page takes of the store.
  uint64_t free_bytes = 0;
  uint64_t capacity_bytes = 0;
  uint64_t high_bytes = 0;        // In use: above it a page has to be better than the victim.
  uint32_t frequency = 0;         // Estimated uses of the page lately,
  uint32_t victim_frequency = 0;  // and of the page that leaves the store next.
  uint64_t queued_pages = 0;
  uint64_t max_queued_pages = 0;
  uint64_t budget_bytes = 0;
};
Unspilled Admit(const AdmissionFigures& figures);

// A token bucket: fills by so many bytes a day up to a burst, and is full at first. 0 a day: no
// limit. What is taken may exceed what is there by the last page, so that a page larger than the
// burst can be written at all.
class WriteBudget {
 public:
  WriteBudget(uint64_t bytes_per_day, uint64_t burst_bytes, MonotonicNs now)
      : bytes_per_day_(bytes_per_day),
        burst_bytes_(static_cast<double>(burst_bytes)),
        left_(burst_bytes_),
        filled_at_(now) {}

  // UINT64_MAX where there is no limit.
  uint64_t Left(MonotonicNs now);
  void Take(uint64_t bytes, MonotonicNs now);
  // Of Take, for a write that did not come about.
  void GiveBack(uint64_t bytes);

 private:
  const uint64_t bytes_per_day_;
  const double burst_bytes_;
  double left_;
  MonotonicNs filled_at_;
};

}  // namespace terrace
