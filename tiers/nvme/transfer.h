// Transfer: one read or write of a slot, one sync of a slot file, or one probe of a device, on its
// way through a Device. Made on the owner thread, carried to other threads one after the other and
// back; nobody touches it from two at once.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>

#include "base/clock.h"
#include "base/unique_fd.h"
#include "tiers/io/disk_io.h"
#include "tiers/nvme/aligned_buffers.h"
#include "tiers/nvme/format.h"

namespace terrace::nvme {

// A file as it is open. Written by the device's thread before any transfer of it ends, or at the
// start.
struct OpenFile {
  SlotFileName name;
  UniqueFd fd;
  IoFileId id = 0;
  Status status{Code::kUnavailable, "is not made yet"};
};

struct Transfer {
  enum class Kind : uint8_t { kRead, kWrite, kSync, kProbe };
  Kind kind = Kind::kRead;
  std::shared_ptr<OpenFile> file;  // None of a probe.
  SlotHeader header;               // Reads: what is expected. Writes: what is written.
  std::span<uint8_t> memory;       // Of the page; a write only reads it.
  MonotonicNs deadline = 0;
  bool check_data = false;        // A read: whatever the options say.
  bool looks_for_damage = false;  // What the device cannot read is what it was to find.

  // Owner thread. `answered` once, then `ended` once: nothing touches the memory any more.
  std::function<void(Transfer&, const Status&)> answered;
  std::function<void(Transfer&)> ended;
  bool told = false;      // `answered` was called.
  MonotonicNs began = 0;  // When it was its turn; 0: it waits.

  // The answer.
  Status status;
  ReadFault fault = ReadFault::kNone;
  // The device or the file system failed, or did not answer; not what was found there.
  bool device_failed = false;

  // While it is under way.
  AlignedBuffer header_buffer;
  AlignedBuffer bounce;      // Where O_DIRECT does not take `memory`.
  bool prepared = false;     // A write: header and bounce are filled in.
  bool answer_sent = false;  // On the completion thread.
};

inline bool NeedsBounce(std::span<const uint8_t> memory) {
  return reinterpret_cast<uintptr_t>(memory.data()) % kAlignment != 0 ||
         memory.size() % kAlignment != 0;
}

}  // namespace terrace::nvme
