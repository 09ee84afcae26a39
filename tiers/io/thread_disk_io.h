// DiskIo by threads: preadv, pwritev and fdatasync, one request on a thread.
//
// A thread that hangs in the kernel beyond its request's deadline is replaced, at most
// DiskIoOptions::threads times. When all of them hang, requests wait for a thread until their
// deadline and are answered and end then, and what is submitted meanwhile waits likewise.
#pragma once

#include <memory>
#include <string>

#include "base/clock.h"
#include "base/status.h"
#include "tiers/io/disk_io.h"

namespace terrace {

// `why`: for the report, why it is threads.
Result<std::unique_ptr<DiskIo>> StartThreadDiskIo(const DiskIoOptions& options, const Clock& clock,
                                                  std::string why);

}  // namespace terrace
