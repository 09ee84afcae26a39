// GpuHandles: what a device has of one kind, by the handles that its callers know it by. No handle
// is given twice.
//
// It has no mutex: a device changes several of them, and its addresses, together.
#pragma once

#include <cstdint>
#include <string>
#include <unordered_map>
#include <utility>

#include "base/status.h"

namespace terrace {

template <typename Handle, typename Thing>
class GpuHandles {
 public:
  // The kind's name is for errors.
  explicit GpuHandles(std::string kind) : kind_(std::move(kind)) {}

  Handle Add(Thing thing) {
    const Handle handle{++last_};
    things_.emplace(handle, std::move(thing));
    return handle;
  }

  // `invalid_argument`: the handle was not given, or is taken back.
  Result<Thing> Find(Handle handle) const {
    const auto found = things_.find(handle);
    if (found == things_.end()) return NoSuch();
    return found->second;
  }
  Result<Thing> Take(Handle handle) {
    const auto found = things_.find(handle);
    if (found == things_.end()) return NoSuch();
    Thing taken = std::move(found->second);
    things_.erase(found);
    return taken;
  }
  Status Replace(Handle handle, Thing thing) {
    const auto found = things_.find(handle);
    if (found == things_.end()) return NoSuch();
    found->second = std::move(thing);
    return {};
  }

  auto begin() const { return things_.begin(); }
  auto end() const { return things_.end(); }

 private:
  Status NoSuch() const { return {Code::kInvalidArgument, kind_ + ": there is no such " + kind_}; }

  const std::string kind_;
  uint64_t last_ = 0;
  std::unordered_map<Handle, Thing> things_;
};

}  // namespace terrace
