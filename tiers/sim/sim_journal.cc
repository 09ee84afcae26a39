#include "tiers/sim/sim_journal.h"

#include <utility>

namespace terrace {

Result<std::vector<Journal::Record>> SimJournal::Load(std::string_view prefix) {
  RETURN_IF_ERROR(load_faults.Next());
  std::vector<Record> found;
  for (auto at = records_.lower_bound(prefix);
       at != records_.end() && std::string_view(at->first).starts_with(prefix); ++at) {
    found.push_back({at->first, at->second});
  }
  return found;
}

void SimJournal::Put(std::string key, std::string value, std::function<void(Status)> done) {
  pending_.push_back({std::move(key), std::move(value), std::move(done)});
}

void SimJournal::Delete(std::string key, std::function<void(Status)> done) {
  pending_.push_back({std::move(key), std::nullopt, std::move(done)});
}

size_t SimJournal::RunPending(size_t limit) {
  size_t ran = 0;
  while (ran < limit && !pending_.empty()) {
    Write write = std::move(pending_.front());
    pending_.pop_front();
    Status status = write_faults.Next();
    if (status.ok()) Apply(write);
    write.done(std::move(status));
    ++ran;
  }
  return ran;
}

void SimJournal::Crash(size_t reached_disk) {
  std::deque<Write> lost = std::exchange(pending_, {});
  for (size_t i = 0; i < reached_disk && i < lost.size(); ++i)
    Apply(lost[i]);
}

void SimJournal::Apply(Write& write) {
  if (write.value) {
    records_.insert_or_assign(write.key, *std::move(write.value));
  } else {
    records_.erase(write.key);
  }
}

}  // namespace terrace
