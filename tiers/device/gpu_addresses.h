// GpuAddresses: the addresses that work on a Gpu may use, and for what. Both implementations keep
// one and ask it before anything is put on a stream, for what a driver makes of a wrong address
// comes late and costs the context.
//
// It knows of ranges, mappings, allocations and registered host memory what Gpu's verbs did; who
// changes memory does so between `Check...` or `Claim...` and the call that puts it down, one
// change of mappings at a time.
//
// Thread safety: all of it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "base/mutex.h"
#include "base/status.h"
#include "kernels/paged_copy.h"
#include "tiers/device/gpu.h"

namespace terrace {

// What was not given back when a Gpu ends.
struct GpuLeftovers {
  struct Piece {
    GpuAddress at = 0;
    uint64_t bytes = 0;
  };
  std::vector<Piece> mappings;
  std::vector<Piece> ranges;
  std::vector<GpuAddress> allocations;
  std::vector<GpuAddress> opened;
};

class GpuAddresses {
 public:
  explicit GpuAddresses(uint64_t granularity) : granularity_(granularity) {}

  // ---- Sizes and places
  // `what` names the argument.
  Status CheckGranules(const char* what, uint64_t bytes) const;

  // ---- Ranges and mappings
  void AddRange(GpuAddress at, uint64_t bytes) EXCLUDES(mu_);
  // Its bytes; it must be empty.
  Result<uint64_t> CheckFree(GpuAddress range) const EXCLUDES(mu_);
  void RemoveRange(GpuAddress range) EXCLUDES(mu_);
  // Whether a slab of that size may be mapped there.
  Status CheckMap(GpuAddress at, uint64_t bytes) const EXCLUDES(mu_);
  void AddMapping(GpuAddress at, uint64_t bytes) EXCLUDES(mu_);
  Status CheckAccess(GpuAddress at, uint64_t bytes) const EXCLUDES(mu_);
  void SetAccess(GpuAddress at, uint64_t bytes, GpuAccess access) EXCLUDES(mu_);
  // Takes the mapping that begins there away; its bytes.
  Result<uint64_t> RemoveMapping(GpuAddress at) EXCLUDES(mu_);

  // ---- Allocations, of this process or opened
  void AddAllocation(GpuAddress at, uint64_t bytes, bool opened) EXCLUDES(mu_);
  Status CheckAllocation(GpuAddress at, bool opened) const EXCLUDES(mu_);
  Result<uint64_t> RemoveAllocation(GpuAddress at, bool opened) EXCLUDES(mu_);

  // ---- Host memory
  // From here on nobody else registers any of it. Work cannot use it before AdmitHost.
  Status ClaimHost(std::span<const uint8_t> memory) EXCLUDES(mu_);
  // Its pieces are of that size: no copy to or from it crosses their borders.
  void AdmitHost(std::span<const uint8_t> memory, GpuAccess access, uint64_t piece_bytes)
      EXCLUDES(mu_);
  void RemoveHost(std::span<const uint8_t> memory) EXCLUDES(mu_);

  // ---- Work
  // The copies, each cut where its host memory's pieces end.
  Result<std::vector<GpuCopy>> Plan(std::span<const GpuCopy> copies) const EXCLUDES(mu_);
  Status CheckClear(GpuAddress at, uint64_t bytes) const EXCLUDES(mu_);
  Status CheckPages(const PagedLayout& layout, std::span<const PagedBlock> blocks,
                    bool gather) const EXCLUDES(mu_);

  GpuLeftovers Leftovers() const EXCLUDES(mu_);

 private:
  enum class Kind : uint8_t { kMapping, kAllocation, kOpened, kHost };
  struct Area {
    GpuAddress end = 0;
    Kind kind = Kind::kMapping;
    GpuAccess access = GpuAccess::kNone;
    uint64_t piece_bytes = 0;  // Of host memory.
  };
  using Areas = std::map<GpuAddress, Area>;

  // The area, or range, that has the byte at `at`; end() for none.
  Areas::const_iterator Find(GpuAddress at) const REQUIRES(mu_);
  std::map<GpuAddress, uint64_t>::const_iterator FindRange(GpuAddress at) const REQUIRES(mu_);
  Result<uint64_t> FindAllocation(GpuAddress at, bool opened) const REQUIRES(mu_);
  bool Overlaps(GpuAddress at, uint64_t bytes) const REQUIRES(mu_);
  // Whether all of it is of the device with that access.
  bool OfDevice(GpuAddress at, uint64_t bytes, GpuAccess access) const REQUIRES(mu_);
  // How far a copy may go from `at` on before it must be cut: at most `bytes`, 0 where it may not.
  uint64_t Run(GpuAddress at, uint64_t bytes, GpuAccess access) const REQUIRES(mu_);

  const uint64_t granularity_;
  mutable Mutex mu_;
  std::map<GpuAddress, uint64_t> ranges_ GUARDED_BY(mu_);  // With their ends.
  Areas areas_ GUARDED_BY(mu_);                            // By begin; none overlap.
};

// "0x7f0012000000", for messages.
std::string AddressText(GpuAddress address);

}  // namespace terrace
