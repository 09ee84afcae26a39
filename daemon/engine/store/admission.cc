#include "daemon/engine/store/admission.h"

#include <algorithm>

namespace terrace {
namespace {

constexpr double kNsPerDay = 86'400.0 * 1e9;

}  // namespace

Unspilled Admit(const AdmissionFigures& figures) {
  if (!figures.device_writes) return Unspilled::kDevice;
  if (figures.queued_pages >= figures.max_queued_pages) return Unspilled::kQueue;
  // Before what the page is worth: who writes it regardless of that has no more budget than others.
  if (figures.budget_bytes == 0) return Unspilled::kBudget;
  const uint64_t used =
      figures.capacity_bytes - std::min(figures.capacity_bytes, figures.free_bytes);
  if (used + figures.place_bytes > figures.high_bytes &&
      figures.frequency <= figures.victim_frequency) {
    return Unspilled::kRare;
  }
  return Unspilled::kNone;
}

uint64_t WriteBudget::Left(MonotonicNs now) {
  if (bytes_per_day_ == 0) return UINT64_MAX;
  const auto passed = static_cast<double>(std::max<MonotonicNs>(0, now - filled_at_));
  left_ = std::min(burst_bytes_, left_ + passed / kNsPerDay * static_cast<double>(bytes_per_day_));
  filled_at_ = std::max(filled_at_, now);
  return left_ < 1 ? 0 : static_cast<uint64_t>(left_);
}

void WriteBudget::Take(uint64_t bytes, MonotonicNs now) {
  if (Left(now) != UINT64_MAX) left_ -= static_cast<double>(bytes);
}

void WriteBudget::GiveBack(uint64_t bytes) {
  left_ = std::min(burst_bytes_, left_ + static_cast<double>(bytes));
}

}  // namespace terrace
