// DeviceHealth: what to think of a device after what it answered. Owner thread; a value.
//
// Serving -> quarantined after `quarantine_after` answers in a row that failed or did not come:
// then nothing is sent to it but a probe, and one that is answered brings it back. Serving -> read
// only at the first write that the file system refuses, and back after `retry_ns`, to be refused
// again at once if nothing changed. Off for good when the directory is gone.
#pragma once

#include <cstdint>
#include <string>
#include <utility>

#include "base/clock.h"
#include "tiers/page_store.h"

namespace terrace::nvme {

struct DeviceHealthOptions {
  uint32_t quarantine_after = 4;
  MonotonicNs probe_every_ns = kNsPerSecond;
  MonotonicNs retry_ns = 5 * kNsPerSecond;
};

class DeviceHealth {
 public:
  explicit DeviceHealth(const DeviceHealthOptions& options) : options_(options) {}

  DeviceState state() const { return state_; }
  const std::string& why() const { return why_; }
  bool readable() const {
    return state_ == DeviceState::kServing || state_ == DeviceState::kReadOnly;
  }
  bool writable() const { return state_ == DeviceState::kServing; }

  void Answered() { failures_ = 0; }
  void Failed(std::string why, MonotonicNs now) {
    if (++failures_ < options_.quarantine_after || !readable()) return;
    next_probe_ = now + options_.probe_every_ns;
    Become(DeviceState::kQuarantined, std::move(why));
  }
  void RefusedWrite(std::string why, MonotonicNs now) {
    if (!readable()) return;
    retry_at_ = now + options_.retry_ns;
    Become(DeviceState::kReadOnly, std::move(why));
  }
  void Gone(std::string why) { Become(DeviceState::kOff, std::move(why)); }

  // A probe is under way until it ended, which one that a device hangs on does late or never: there
  // is one at a time.
  bool ProbeIsDue(MonotonicNs now) const {
    return state_ == DeviceState::kQuarantined && !probing_ && now >= next_probe_;
  }
  void ProbeSent() { probing_ = true; }
  void ProbeEnded() { probing_ = false; }
  void ProbeAnswered(bool ok, MonotonicNs now) {
    next_probe_ = now + options_.probe_every_ns;
    if (!ok || state_ != DeviceState::kQuarantined) return;
    failures_ = 0;
    Become(DeviceState::kServing, {});
  }
  void Turn(MonotonicNs now) {
    if (state_ == DeviceState::kReadOnly && now >= retry_at_) Become(DeviceState::kServing, {});
  }

 private:
  void Become(DeviceState state, std::string why) {
    state_ = state;
    why_ = std::move(why);
  }

  const DeviceHealthOptions options_;
  DeviceState state_ = DeviceState::kServing;
  std::string why_;
  uint32_t failures_ = 0;  // In a row.
  MonotonicNs next_probe_ = 0;
  MonotonicNs retry_at_ = 0;
  bool probing_ = false;
};

}  // namespace terrace::nvme
