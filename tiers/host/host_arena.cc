#include "tiers/host/host_arena.h"

#include <fcntl.h>
#include <linux/memfd.h>
#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <string>
#include <utility>

#include "base/check.h"

// Newer than the C library's headers (Linux 5.14 and 6.1).
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif

namespace terrace {
namespace {

constexpr unsigned kMode = 0600;  // memfds are born with 0777.
constexpr unsigned kSizeSeals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;

Status CallStatus(const char* what, int error) {
  return error == 0 ? Status() : SystemError(what, error);
}

}  // namespace

HostArena::HostArena(HostSystem& system, UniqueFd fd, uint8_t* data, size_t bytes, bool hugetlb)
    : system_(system),
      fd_(std::move(fd)),
      data_(data),
      bytes_(bytes),
      hugetlb_(hugetlb),
      residency_(bytes) {}

HostArena::~HostArena() {
  system_.Unmap(data_, bytes_);
}

Result<std::unique_ptr<HostArena>> HostArena::Make(HostSystem& system, size_t bytes,
                                                   const HostArenaOptions& options) {
  TERRACE_CHECK(bytes > 0 && bytes % kSmallPageBytes == 0);
  const bool may_hugetlb = options.huge_pages && bytes % kHugePageBytes == 0 &&
                           system.FreeHugetlbPages() >= bytes / kHugePageBytes;
  if (may_hugetlb) {
    // Another process may have been faster; then the arena stands on ordinary memory.
    if (auto arena = MakeOn(system, bytes, true)) {
      if ((*arena)->Prepare(options).ok()) return arena;
    }
  }
  ASSIGN_OR_RETURN(auto arena, MakeOn(system, bytes, false));
  RETURN_IF_ERROR(arena->Prepare(options));
  return arena;
}

Result<std::unique_ptr<HostArena>> HostArena::MakeOn(HostSystem& system, size_t bytes,
                                                     bool hugetlb) {
  const unsigned kind = hugetlb ? MFD_HUGETLB | MFD_HUGE_2MB : 0;
  ASSIGN_OR_RETURN(UniqueFd fd,
                   system.CreateMemfd("terrace-arena", MFD_CLOEXEC | MFD_ALLOW_SEALING | kind));
  RETURN_IF_ERROR(CallStatus("fchmod of a memfd", system.ChangeMode(fd.get(), kMode)));
  RETURN_IF_ERROR(CallStatus("ftruncate of a memfd", system.Truncate(fd.get(), bytes)));
  // Mapping reserves the huge pages of a hugetlb memfd: who got here will not fault in vain.
  ASSIGN_OR_RETURN(uint8_t * data, system.Map(fd.get(), bytes, kHugePageBytes));
  return std::unique_ptr<HostArena>(new HostArena(system, std::move(fd), data, bytes, hugetlb));
}

Status HostArena::Prepare(const HostArenaOptions& options) {
  wants_huge_pages_ = options.huge_pages;
  RETURN_IF_ERROR(CallStatus("madvise(DONTFORK)", system_.Advise(data_, bytes_, MADV_DONTFORK)));
  RETURN_IF_ERROR(CallStatus("madvise(DONTDUMP)", system_.Advise(data_, bytes_, MADV_DONTDUMP)));
  KeepTailSmall();
  if (options.lock) {
    // Reserved huge pages are never swapped; locking would only fault all of them in, here and now.
    lock_error_ = hugetlb_ ? 0 : system_.LockOnFault(data_, bytes_);
    locked_ = lock_error_ == 0;
  }
  return {};
}

// MADV_HUGEPAGE is not asked for: where shared memory gets huge pages on advice, khugepaged would
// fill punched holes behind our back; collapsing gives the same pages. What shall stay on small
// pages says so, or a machine where all shared memory gets huge ones would put one under a short
// last chunk, beyond the arena's end. A kernel that does not know the advice has no huge pages to
// give.
void HostArena::KeepTailSmall() {
  if (hugetlb_) return;
  const size_t start = wants_huge_pages_ ? bytes_ / kHugePageBytes * kHugePageBytes : 0;
  if (start < bytes_) (void)system_.Advise(data_ + start, bytes_ - start, MADV_NOHUGEPAGE);
}

Status HostArena::CheckInside(size_t offset, size_t bytes) const {
  if (offset <= bytes_ && bytes <= bytes_ - offset) return {};
  return {Code::kInvalidArgument, "range " + std::to_string(offset) + "+" + std::to_string(bytes) +
                                      " is outside an arena of " + std::to_string(bytes_)};
}

// ---- Populating ---------------------------------------------------------------------------------

Status HostArena::Populate(size_t offset, size_t bytes) {
  RETURN_IF_ERROR(CheckInside(offset, bytes));
  const PageRange range = PageRange::Touched(offset, bytes);
  if (!residency_.Present(range)) {
    if (hugetlb_) {
      RETURN_IF_ERROR(PopulateHugetlb(range));
    } else {
      if (wants_huge_pages_) PopulateHuge(range);
      if (Status status = PopulateSmall(range); !status.ok()) {
        GiveBackUnclaimed(range);
        return status;
      }
    }
  }
  residency_.Claim(range);
  return {};
}

bool HostArena::WantsHugePage(size_t chunk, PageRange range) const {
  if (!residency_.Whole(chunk) || residency_.Huge(chunk)) return false;
  // Only where the chunk becomes wholly used: a huge page under less would be memory that nobody
  // asked for and no budget knows of, and collapsing moves what is there, under the feet of who
  // reads it.
  return residency_.ClaimsWith(chunk, range) == kChunkPages;
}

void HostArena::PopulateHuge(PageRange range) {
  size_t chunk = range.first / kChunkPages;
  while (chunk * kChunkPages < range.end) {
    size_t end = chunk;
    while (end * kChunkPages < range.end && WantsHugePage(end, range))
      ++end;
    if (end > chunk) Collapse(chunk, end);
    chunk = end + 1;  // `end` itself is past the range or wants none.
  }
}

void HostArena::Collapse(size_t first_chunk, size_t end_chunk) {
  // The kernel collapses a chunk only where something of it is present. Where shared memory gets
  // huge pages anyway, this first fault brings one and collapsing finds nothing left to do.
  for (size_t chunk = first_chunk; chunk < end_chunk; ++chunk) {
    if (residency_.PresentAny(chunk)) continue;
    const size_t page = chunk * kChunkPages;
    if (system_.Advise(At(page), kSmallPageBytes, MADV_POPULATE_WRITE) != 0) {
      end_chunk = chunk;  // Out of memory: populating small pages will say so.
      break;
    }
    residency_.SetSmall({page, page + 1});
  }
  if (first_chunk == end_chunk) return;
  // One call for all, since each makes every processor empty its page lists. Failing, it does not
  // tell where, so the chunks are asked for one by one; those already collapsed answer at once.
  const size_t chunks = end_chunk - first_chunk;
  const bool all =
      system_.Advise(At(first_chunk * kChunkPages), chunks * kHugePageBytes, MADV_COLLAPSE) == 0;
  for (size_t chunk = first_chunk; chunk < end_chunk; ++chunk) {
    const int error =
        all ? 0 : system_.Advise(At(chunk * kChunkPages), kHugePageBytes, MADV_COLLAPSE);
    if (error == 0) {
      residency_.SetHuge(chunk);
    } else {
      huge_page_error_ = error;
    }
  }
}

Status HostArena::PopulateSmall(PageRange range) {
  for (size_t chunk = range.first / kChunkPages; chunk * kChunkPages < range.end; ++chunk) {
    const PageRange all = PageRange::OfChunk(chunk);
    const PageRange part{std::max(range.first, all.first), std::min(range.end, all.end)};
    if (residency_.Present(part)) continue;
    RETURN_IF_ERROR(
        CallStatus("madvise(POPULATE_WRITE)",
                   system_.Advise(At(part.first), (part.end - part.first) * kSmallPageBytes,
                                  MADV_POPULATE_WRITE)));
    residency_.SetSmall(part);
  }
  return {};
}

Status HostArena::PopulateHugetlb(PageRange range) {
  const size_t first = range.first / kChunkPages;
  const size_t end = (range.end + kChunkPages - 1) / kChunkPages;
  RETURN_IF_ERROR(CallStatus("madvise(POPULATE_WRITE) of huge pages",
                             system_.Advise(At(first * kChunkPages), (end - first) * kHugePageBytes,
                                            MADV_POPULATE_WRITE)));
  for (size_t chunk = first; chunk < end; ++chunk)
    residency_.SetHuge(chunk);
  return {};
}

void HostArena::GiveBackUnclaimed(PageRange range) {
  size_t page = range.first;
  while (page < range.end) {
    size_t end = page;
    while (end < range.end && !residency_.Claimed(end))
      ++end;
    if (end > page &&
        system_.Punch(fd_.get(), page * kSmallPageBytes, (end - page) * kSmallPageBytes) == 0) {
      residency_.Clear({page, end});
    }
    page = end + 1;
  }
}

// ---- Punching -----------------------------------------------------------------------------------

Status HostArena::Punch(size_t offset, size_t bytes) {
  RETURN_IF_ERROR(CheckInside(offset, bytes));
  if (bytes == 0) return {};
  if (hugetlb_) return PunchHugetlb(offset, bytes);
  const PageRange inside = PageRange::Inside(offset, bytes);
  size_t begin = offset;
  size_t end = offset + bytes;
  PageRange cleared = inside;
  if (!inside.empty()) {
    // A chunk at either end whose last claim goes is freed whole: huge pages brought in more of it
    // than anybody asked for.
    const size_t first_chunk = inside.first / kChunkPages;
    const size_t last_chunk = (inside.end - 1) / kChunkPages;
    if (residency_.ClaimsWithout(first_chunk, inside) == 0) {
      cleared.first = first_chunk * kChunkPages;
      begin = std::min(begin, cleared.first * kSmallPageBytes);
    }
    if (residency_.ClaimsWithout(last_chunk, inside) == 0) {
      cleared.end = std::min((last_chunk + 1) * kChunkPages, residency_.pages());
      end = std::max(end, cleared.end * kSmallPageBytes);
    }
  }
  // Pages that are only partly inside are zeroed by the kernel.
  RETURN_IF_ERROR(CallStatus("punch a hole", system_.Punch(fd_.get(), begin, end - begin)));
  residency_.Clear(cleared);
  return {};
}

Status HostArena::PunchHugetlb(size_t offset, size_t bytes) {
  // The kernel frees huge pages only as a whole: one goes when its last claim does, and until then
  // what was given back is zeroed by hand.
  const PageRange inside = PageRange::Inside(offset, bytes);
  const size_t end_chunk = (offset + bytes + kHugePageBytes - 1) / kHugePageBytes;
  for (size_t chunk = offset / kHugePageBytes; chunk < end_chunk; ++chunk) {
    const size_t start = chunk * kHugePageBytes;
    const PageRange all = PageRange::OfChunk(chunk);
    const PageRange part{std::clamp(inside.first, all.first, all.end),
                         std::clamp(inside.end, all.first, all.end)};
    const bool unclaimed = part.empty() ? false : residency_.ClaimsWithout(chunk, part) == 0;
    if (unclaimed) {
      RETURN_IF_ERROR(CallStatus("punch a hole of huge pages",
                                 system_.Punch(fd_.get(), start, kHugePageBytes)));
      residency_.Clear(all);
      continue;
    }
    if (!residency_.PresentAny(chunk)) continue;
    const size_t from = std::max(offset, start);
    const size_t to = std::min(offset + bytes, start + kHugePageBytes);
    std::memset(data_ + from, 0, to - from);
    residency_.Unclaim(part);
  }
  return {};
}

// ---- Size, seals, descriptors -------------------------------------------------------------------

Status HostArena::ShrinkTo(size_t bytes) {
  TERRACE_CHECK(bytes > 0 && bytes <= bytes_ && sealed_ == Sealed::kNot);
  if (bytes == bytes_) return {};
  const size_t unit = hugetlb_ ? kHugePageBytes : kSmallPageBytes;
  if (bytes % unit != 0) {
    return {Code::kInvalidArgument,
            "an arena on reserved huge pages cannot have " + std::to_string(bytes) + " bytes"};
  }
  RETURN_IF_ERROR(CallStatus("ftruncate of a memfd", system_.Truncate(fd_.get(), bytes)));
  system_.Unmap(data_ + bytes, bytes_ - bytes);
  bytes_ = bytes;
  residency_.Truncate(bytes);
  KeepTailSmall();
  return {};
}

Status HostArena::SealSize() {
  TERRACE_CHECK(sealed_ == Sealed::kNot);
  RETURN_IF_ERROR(CallStatus("seal a memfd", system_.AddSeals(fd_.get(), kSizeSeals)));
  sealed_ = Sealed::kSize;
  return {};
}

Status HostArena::SealWrites() {
  TERRACE_CHECK(sealed_ == Sealed::kNot);
  RETURN_IF_ERROR(CallStatus("seal a memfd against writes",
                             system_.AddSeals(fd_.get(), kSizeSeals | F_SEAL_FUTURE_WRITE)));
  sealed_ = Sealed::kWrites;
  // Guards the block against bugs of the daemon itself; where it fails the block is as safe from
  // everybody else.
  (void)system_.ProtectReadOnly(data_, bytes_);
  return {};
}

Result<UniqueFd> HostArena::Descriptor(Protection protection) const {
  if (sealed_ == Sealed::kNot) {
    return Status(Code::kUnavailable, "the block is still being filled");
  }
  if (protection == Protection::kRead) return system_.ReopenReadOnly(fd_.get());
  if (sealed_ == Sealed::kWrites) {
    return Status(Code::kPermissionDenied, "the block is sealed: it can only be read");
  }
  return system_.Duplicate(fd_.get());
}

}  // namespace terrace
