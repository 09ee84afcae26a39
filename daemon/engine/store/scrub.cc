#include "daemon/engine/store/scrub.h"

#include <algorithm>

namespace terrace {
namespace {

constexpr BatchLimits kBatch = {.bytes = 1u << 20, .pages = 64};

}  // namespace

void Scrub::Turn(bool others_read) {
  const MonotonicNs now = parts_.clock.Now();
  if (bytes_per_second_ == 0 || under_way_ || now < next_at_ || parts_.stored.pages() == 0) return;
  if (!patience_.MayRead(others_read, now)) return;
  if (round_began_ == 0) round_began_ = now;
  const std::vector<ItemId> ids = NextToCheck(parts_.stored, kBatch, &at_);
  uint64_t bytes = 0;
  for (const ItemId id : ids)
    bytes += parts_.stored.at(id).bytes;
  next_at_ = now + static_cast<MonotonicNs>(static_cast<double>(bytes) * kNsPerSecond /
                                            static_cast<double>(bytes_per_second_));
  if (at_ >= parts_.stored.end_of_ids()) EndRound(now);
  if (ids.empty()) return;
  under_way_ = true;
  CheckPages(parts_, ids, Mend::kLost, [this](const PagesChecked& checked) { Checked(checked); });
}

void Scrub::EndRound(MonotonicNs now) {
  at_ = 0;
  ++rounds_;
  next_at_ = std::max({next_at_, now, round_began_ + kRoundNs});
  round_began_ = 0;
}

void Scrub::Checked(const PagesChecked& checked) {
  under_way_ = false;
  read_.extents += checked.read.extents;
  read_.bytes += checked.read.bytes;
  for (int i = 0; i < kReadFaults; ++i)
    faults_[i] += checked.faults[i];
}

}  // namespace terrace
