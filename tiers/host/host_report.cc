#include "tiers/host/host_report.h"

#include <cstring>
#include <string>

namespace terrace {
namespace {

std::string Mebibytes(size_t bytes) {
  return std::to_string(bytes >> 20) + " MiB";
}

std::string ErrorText(int error) {
  char buffer[128];
  return ::strerror_r(error, buffer, sizeof buffer);
}

}  // namespace

void HostReportBuilder::Add(const HostArena& arena) {
  const Residency& residency = arena.residency();
  (arena.hugetlb() ? hugetlb_bytes_ : thp_bytes_) += residency.huge_bytes();
  small_bytes_ += residency.small_bytes();
  if (arena.locked()) locked_bytes_ += residency.present_bytes();
  if (arena.huge_page_error() != 0) huge_page_error_ = arena.huge_page_error();
  if (arena.lock_error() != 0) lock_error_ = arena.lock_error();
}

HostReport HostReportBuilder::Build(bool wanted_huge_pages, bool wanted_lock,
                                    HostSystem& system) const {
  HostReport report;
  report.hugetlb_bytes = hugetlb_bytes_;
  report.thp_bytes = thp_bytes_;
  report.small_page_bytes = small_bytes_;
  report.locked_bytes = locked_bytes_;

  const size_t huge = hugetlb_bytes_ + thp_bytes_;
  const size_t all = huge + small_bytes_;
  std::string& words = report.huge_pages;
  if (!wanted_huge_pages) {
    words = "none: switched off by the configuration";
  } else if (all == 0) {
    words = "no memory is populated yet";
  } else {
    words = Mebibytes(huge) + " of " + Mebibytes(all) +
            " on huge pages: " + Mebibytes(hugetlb_bytes_) + " reserved (hugetlb), " +
            Mebibytes(thp_bytes_) + " transparent (shmem_enabled is " + system.ShmemHugePages() +
            ")";
    if (huge_page_error_ != 0) {
      words += "; madvise(COLLAPSE) failed at times: " + ErrorText(huge_page_error_);
    }
  }

  if (!wanted_lock) {
    report.locking = "none: switched off by the configuration";
  } else if (lock_error_ != 0) {
    report.locking = Mebibytes(locked_bytes_) + " of " + Mebibytes(all) +
                     " locked; mlock failed: " + ErrorText(lock_error_) +
                     " (raise RLIMIT_MEMLOCK or grant CAP_IPC_LOCK)";
  } else {
    report.locking = Mebibytes(locked_bytes_) + " of " + Mebibytes(all) + " locked";
  }
  return report;
}

}  // namespace terrace
