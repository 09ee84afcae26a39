// FileSyncs: brings slot files onto their devices. Who asks while a file is being synced waits for
// the next sync of it, which covers all who asked by then: its write may have come after the one
// under way began.
//
// Owner thread, as the callbacks. Limits: one sync a file at a time, each with a deadline.
#pragma once

#include <compare>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "base/status.h"
#include "tiers/nvme/device.h"
#include "tiers/nvme/mailbox.h"

namespace terrace::nvme {

struct FileId {
  uint8_t device = 0;
  uint32_t file = 0;
  friend auto operator<=>(const FileId&, const FileId&) = default;
};

class FileSyncs {
 public:
  using Done = std::function<void(const Status&)>;

  // `devices` and `clock` outlive it.
  FileSyncs(const Devices& devices, MonotonicNs deadline_ns, const Clock& clock,
            std::shared_ptr<Mailbox> box)
      : devices_(devices), deadline_ns_(deadline_ns), clock_(clock), box_(std::move(box)) {}

  // `done` when everything that was written into the file before is on the device.
  void Sync(FileId file, Done done);

  // Bytes of a page that lie in the file and may stay off the device until the next flush.
  void Leave(FileId file, uint64_t bytes) { left_[file] += bytes; }
  // Syncs what was left. `progress`, which may be empty, is told the bytes that are through and
  // those there are; `done` the first error.
  void Flush(std::function<void(uint64_t, uint64_t)> progress, Done done);

 private:
  struct FileSync {
    bool running = false;
    std::vector<Done> next;  // Whom the one after covers.
  };

  void Start(FileId file);

  const Devices& devices_;
  const MonotonicNs deadline_ns_;
  const Clock& clock_;
  const std::shared_ptr<Mailbox> box_;
  std::map<FileId, FileSync> syncs_;
  std::map<FileId, uint64_t> left_;
};

}  // namespace terrace::nvme
