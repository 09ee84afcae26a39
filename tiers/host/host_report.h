// HostReportBuilder: sums what arenas say about their memory, and puts it into two sentences that
// an operator can act on.
#pragma once

#include <cstddef>

#include "tiers/host/host_arena.h"
#include "tiers/host/host_system.h"
#include "tiers/tier.h"

namespace terrace {

class HostReportBuilder {
 public:
  void Add(const HostArena& arena);
  // The fields of pages and locks, and their sentences.
  HostReport Build(bool wanted_huge_pages, bool wanted_lock, HostSystem& system) const;

 private:
  size_t hugetlb_bytes_ = 0;
  size_t thp_bytes_ = 0;
  size_t small_bytes_ = 0;
  size_t locked_bytes_ = 0;
  int huge_page_error_ = 0;
  int lock_error_ = 0;
};

}  // namespace terrace
