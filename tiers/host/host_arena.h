// HostArena: one memfd with the daemon's mapping of it.
//
// It is made and may be filled by one thread and then handed to another; at any time one thread
// uses it. It goes (mapping and descriptor) with the value; the memory is free when clients have
// unmapped it too.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "base/status.h"
#include "base/unique_fd.h"
#include "tiers/host/host_system.h"
#include "tiers/host/residency.h"

namespace terrace {

struct HostArenaOptions {
  bool huge_pages = true;
  bool lock = true;
};

class HostArena {
 public:
  // `bytes` (a multiple of 4096) of zeros, nothing of it in memory, open to seals. On reserved huge
  // pages where enough are free and `bytes` is a multiple of 2 MiB.
  static Result<std::unique_ptr<HostArena>> Make(HostSystem& system, size_t bytes,
                                                 const HostArenaOptions& options);
  ~HostArena();
  HostArena(const HostArena&) = delete;
  HostArena& operator=(const HostArena&) = delete;

  // Makes every page that the range touches present and claims it. With an error, what was got on
  // the way is given back. Chunks that become wholly claimed are put on a huge page where that
  // works. A range must be populated before anybody writes it: unclaimed pages of a
  // chunk may be freed with their neighbours.
  Status Populate(size_t offset, size_t bytes);
  // The range reads as zeros; pages that lie inside it whole are freed, and what is left of a chunk
  // whose last claim this was.
  Status Punch(size_t offset, size_t bytes);
  // Gives up the end. `invalid_argument` where the kind of page does not allow that size.
  Status ShrinkTo(size_t bytes);
  // The whole arena counts as asked for.
  void ClaimAll() { residency_.Claim({0, residency_.pages()}); }
  // Nobody can resize it or add seals any more.
  Status SealSize();
  // Nor write, except through mappings that exist; the daemon's own becomes read-only.
  Status SealWrites();
  Result<UniqueFd> Descriptor(Protection protection) const;

  std::span<uint8_t> bytes() const { return {data_, bytes_}; }
  const Residency& residency() const { return residency_; }
  bool hugetlb() const { return hugetlb_; }
  bool locked() const { return locked_; }
  int lock_error() const { return lock_error_; }  // An errno value, or 0.
  int huge_page_error() const {
    return huge_page_error_;
  }  // Of the last MADV_COLLAPSE that failed.

 private:
  HostArena(HostSystem& system, UniqueFd fd, uint8_t* data, size_t bytes, bool hugetlb);
  static Result<std::unique_ptr<HostArena>> MakeOn(HostSystem& system, size_t bytes, bool hugetlb);

  Status Prepare(const HostArenaOptions& options);
  void KeepTailSmall();
  bool WantsHugePage(size_t chunk, PageRange range) const;
  void PopulateHuge(PageRange range);
  void Collapse(size_t first_chunk, size_t end_chunk);
  Status PopulateSmall(PageRange range);
  Status PopulateHugetlb(PageRange range);
  void GiveBackUnclaimed(PageRange range);
  Status PunchHugetlb(size_t offset, size_t bytes);
  Status CheckInside(size_t offset, size_t bytes) const;
  uint8_t* At(size_t page) const { return data_ + page * kSmallPageBytes; }

  HostSystem& system_;
  const UniqueFd fd_;
  uint8_t* const data_;
  size_t bytes_;
  const bool hugetlb_;
  enum class Sealed : uint8_t { kNot, kSize, kWrites };
  Sealed sealed_ = Sealed::kNot;
  bool wants_huge_pages_ = false;
  bool locked_ = false;
  int lock_error_ = 0;
  int huge_page_error_ = 0;
  Residency residency_;
};

}  // namespace terrace
