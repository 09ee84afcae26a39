// The journal on RocksDB: what must outlive the daemon, a few small records (tiers/tier.h,
// Journal).
//
// Writes go one after the other through a thread of its own, each synced to the disk before it is
// acknowledged. At most kMaxWaitingWrites wait; beyond that a write is answered with `exhausted`.
// Load blocks, also while a write is synced: it is for the start.
// Destroying the journal waits for the write that is running and drops those that wait, without
// calling their `done`: they were not acknowledged, and may or may not be there at the next start.
//
// A directory belongs to one daemon at a time and holds a marker of ours, so that a directory of
// something else is refused and left as it is.
#pragma once

#include <cstddef>
#include <memory>
#include <string>

#include "base/executor.h"
#include "base/status.h"
#include "tiers/tier.h"

namespace terrace {

inline constexpr size_t kMaxWaitingWrites = 4096;

// Opens the journal in `directory`, or makes one there when there is nothing or an empty directory;
// the folder above must exist. Blocks. `owner` outlives the journal. Fails with
//   unavailable        another process has it open (the message names it where it can be known);
//   mismatch           the directory holds something else, or a journal of another format;
//   data_loss          it is damaged; nothing was changed, so that it can be looked at;
//   permission_denied, exhausted, internal   as the file system says.
Result<std::unique_ptr<Journal>> OpenJournal(const std::string& directory, Executor& owner);

}  // namespace terrace
