// SimJournal: the journal in memory, whose writes become durable only when told, and which can lose
// what was not. It plays the disk: it outlives the engines that a test starts on it one after the
// other. Owner thread only.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "tiers/sim/sim_faults.h"
#include "tiers/tier.h"

namespace terrace {

class SimJournal final : public Journal {
 public:
  // Sees durable records only, as a daemon that starts does.
  Result<std::vector<Record>> Load(std::string_view prefix) override;
  void Put(std::string key, std::string value, std::function<void(Status)> done) override;
  void Delete(std::string key, std::function<void(Status)> done) override;

  // Makes up to `limit` waiting writes durable and completes them, oldest first; returns how many.
  size_t RunPending(size_t limit = SIZE_MAX);
  size_t pending() const { return pending_.size(); }
  // The daemon died: of the waiting writes the oldest `reached_disk` are durable, the others are
  // lost, and none of them completes.
  void Crash(size_t reached_disk = 0);

  size_t record_count() const { return records_.size(); }

  FaultPlan load_faults;
  FaultPlan write_faults;  // Asked when a write would become durable; it is not applied then.

 private:
  struct Write {
    std::string key;
    std::optional<std::string> value;  // Empty: a deletion.
    std::function<void(Status)> done;
  };
  void Apply(Write& write);

  std::map<std::string, std::string, std::less<>> records_;
  std::deque<Write> pending_;
};

}  // namespace terrace
