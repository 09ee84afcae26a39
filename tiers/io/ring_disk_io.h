// DiskIo by io_uring (Linux 5.19 and later): one ring, and one thread that has it. Who submits puts
// the requests into a queue and wakes that thread if it sleeps; all that is queued goes to the
// kernel in one call, where neighbours of a batch are merged before they reach the device.
//
// Submitting threads do not enter the ring themselves, for what a thread submits stays with it: the
// kernel interrupts that thread for every completion, makes its other system calls fail with EINTR,
// and cancels what is in flight when it exits. The owner thread would also pay for pinning the
// memory of every request, some 40 to 200 us for 2 MiB.
//
// Where the kernel does not submit without blocking, as io_uring promises (a fault on memory that
// is not resident, a file system that must read where its file lies), the ring's thread hangs with
// it: deadlines hold all the same, for they have a thread of their own, but other requests wait,
// and so do AddFile, RemoveFile and the registration of memory.
#pragma once

#include <memory>

#include "base/clock.h"
#include "base/status.h"
#include "tiers/io/disk_io.h"

namespace terrace {

// The error says why the kernel refuses.
Result<std::unique_ptr<DiskIo>> StartRingDiskIo(const DiskIoOptions& options, const Clock& clock);

}  // namespace terrace
