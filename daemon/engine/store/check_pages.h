// CheckPages: reads stored pages to see whether they are still what was written, and erases those
// that are not. What the background scrub and the operator's check have in common.
//
// Owner thread only. Limits: BatchLimits, of which each caller has one under way; kCheckPatienceNs
// that a batch waits for reads that somebody asked for.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "base/clock.h"
#include "daemon/engine/figures.h"
#include "daemon/engine/store/stored.h"
#include "tiers/page_store.h"

namespace terrace {

// A batch ends with the page that reaches one of them.
struct BatchLimits {
  uint64_t bytes = 0;
  size_t pages = 0;
};
inline constexpr MonotonicNs kCheckPatienceNs = kNsPerSecond;

struct CheckParts {
  Stored& stored;
  PageStore& store;
  const Clock& clock;
  MonotonicNs deadline_ns = 0;  // Of a read.
};

// Which bad pages are erased. One that the device cannot give is another time, perhaps: it is read
// a second time before it is erased.
enum class Mend : uint8_t { kNothing, kLost, kUnreadableToo };

struct PagesChecked {
  Amount read;
  uint64_t not_read = 0;  // Refused, or no answer in time: that says nothing of the page.
  uint64_t faults[kReadFaults] = {};
  std::vector<std::string> what;  // Of each fault, a sentence.
  uint64_t erased = 0;
};

// The next pages of the catalogue from `*at` on, which goes on behind them, each with a read begun:
// none of them is erased before that has ended. Looks at a bounded number of ids.
std::vector<ItemId> NextToCheck(Stored& stored, const BatchLimits& most, ItemId* at);
// Ends those reads. A page that was dropped or became stale meanwhile is no fault. `done` may come
// before the call ends.
void CheckPages(const CheckParts& parts, const std::vector<ItemId>& ids, Mend mend,
                std::function<void(const PagesChecked&)> done);

// Lets those go first who wait for a page, but not for ever.
class CheckPatience {
 public:
  bool MayRead(bool others_read, MonotonicNs now);

 private:
  MonotonicNs since_ = 0;  // When it began to wait; 0: it does not.
};

}  // namespace terrace
