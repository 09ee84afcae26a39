// FaultPlan: which calls of a simulated tier fail, and with what. One plan a kind of call.
#pragma once

#include <cstdint>
#include <map>
#include <utility>

#include "base/status.h"

namespace terrace {

class FaultPlan {
 public:
  // Lets `skip` calls from now on pass and fails the one after them.
  void FailAfter(uint64_t skip, Status status) {
    faults_.insert_or_assign(calls_ + skip, std::move(status));
  }
  void Clear() { faults_.clear(); }

  // The tier asks this once a call: what the call shall answer, Ok for going on.
  Status Next() {
    const auto fault = faults_.find(calls_++);
    if (fault == faults_.end()) return {};
    Status status = std::move(fault->second);
    faults_.erase(fault);
    return status;
  }
  uint64_t calls() const { return calls_; }

 private:
  uint64_t calls_ = 0;
  std::map<uint64_t, Status> faults_;
};

}  // namespace terrace
