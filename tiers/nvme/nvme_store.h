// NvmeStore: PageStore on files of one or more directories, each best on a device of its own.
//
// A page lies in a slot of a preallocated file, behind a header that says what it is; an index in
// the first directory says which page is where. docs/nvme_format.md specifies both and argues what
// a crash leaves. Whatever does not check out when it is read is a counted miss, never data.
//
// Destroying the store, which no callback may do, waits for transfers under way, at most `stop_ns`,
// and drops what waits without an answer.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/executor.h"
#include "base/status.h"
#include "tiers/io/disk_io.h"
#include "tiers/page_store.h"

namespace terrace {

struct NvmeDirectory {
  std::string path;             // It exists, and is ours; empty or a device of this store.
  uint64_t capacity_bytes = 0;  // Of slot files. The index comes on top, about 200 bytes a page.
};

struct NvmeStoreOptions {
  // In an order that stays: the first holds the index. Further ones may be added at the end.
  std::vector<NvmeDirectory> directories;
  // kNone writes as kProcess does: the log costs a page of 2 MiB nothing that can be measured.
  Durability durability = Durability::kProcess;
  uint32_t in_flight_per_device = 64;      // And a probe. See NvmeIoOptions.
  size_t waiting_writes = 4096;            // Beyond: `exhausted`.
  size_t waiting_reads_per_device = 4096;  // Beyond: kRefused.
  uint64_t bounce_bytes_per_device = 32u
                                     << 20;  // For pages that O_DIRECT does not take as they lie.
  uint32_t quarantine_after = 4;             // Answers in a row that failed or did not come.
  MonotonicNs probe_every_ns = kNsPerSecond;
  MonotonicNs probe_deadline_ns = kNsPerSecond;
  MonotonicNs retry_ns = 5 * kNsPerSecond;  // Of a device or an index that took no write.
  MonotonicNs sync_deadline_ns = 30 * kNsPerSecond;
  MonotonicNs keep_empty_ns = 60 * kNsPerSecond;  // Files without pages.
  MonotonicNs stop_ns = 2 * kNsPerSecond;
  // False: the bytes of a page are served unchecked, its header checked. To measure what it costs.
  bool check_data = true;
};

// What the DiskIo of such a store must take at least: its devices never have more requests in
// flight, or more files open. The rest is as it is by default.
DiskIoOptions NvmeIoOptions(const NvmeStoreOptions& options);

// `io`, `owner` and `clock` outlive it. Blocks. Fails with
//   not_found          the first directory, or one that is new to the store, does not exist;
//   permission_denied  it is another user's, or others may write there;
//   mismatch           a directory holds something else, or is of another store or format;
//   data_loss          the index or a marker is damaged; the message says how to rebuild it;
//   unavailable        another process has the store open;
//   invalid_argument   no directory, or a file system that knows no O_DIRECT.
// What it refuses is left as it is.
Result<std::unique_ptr<PageStore>> OpenNvmeStore(const NvmeStoreOptions& options, DiskIo& io,
                                                 Executor& owner, const Clock& clock);

}  // namespace terrace
