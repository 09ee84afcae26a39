#include "tiers/device/gpu_addresses.h"

#include <algorithm>
#include <iterator>
#include <limits>
#include <utility>

#include "base/check.h"

namespace terrace {
namespace {

constexpr uint64_t kHostAlignment = 4096;

Status Refused(std::string words) {
  return {Code::kInvalidArgument, std::move(words)};
}

std::string Piece(uint64_t bytes, GpuAddress at) {
  return std::to_string(bytes) + " bytes at " + AddressText(at);
}

bool Wraps(GpuAddress at, uint64_t bytes) {
  return bytes > std::numeric_limits<uint64_t>::max() - at;
}

}  // namespace

std::string AddressText(GpuAddress address) {
  static constexpr char kDigits[] = "0123456789abcdef";
  std::string text;
  do {
    text.insert(text.begin(), kDigits[address % 16]);
    address /= 16;
  } while (address != 0);
  return "0x" + text;
}

Status GpuAddresses::CheckGranules(const char* what, uint64_t bytes) const {
  if (bytes != 0 && bytes % granularity_ == 0) return {};
  return Refused(std::string(what) + ": " + std::to_string(bytes) + " is not a multiple of " +
                 std::to_string(granularity_));
}

GpuAddresses::Areas::const_iterator GpuAddresses::Find(GpuAddress at) const {
  const auto after = areas_.upper_bound(at);
  if (after == areas_.begin()) return areas_.end();
  const auto area = std::prev(after);
  return at < area->second.end ? area : areas_.end();
}

std::map<GpuAddress, uint64_t>::const_iterator GpuAddresses::FindRange(GpuAddress at) const {
  const auto after = ranges_.upper_bound(at);
  if (after == ranges_.begin()) return ranges_.end();
  const auto range = std::prev(after);
  return at < range->second ? range : ranges_.end();
}

bool GpuAddresses::Overlaps(GpuAddress at, uint64_t bytes) const {
  const auto behind = areas_.lower_bound(at + bytes);
  return behind != areas_.begin() && std::prev(behind)->second.end > at;
}

// ---- Ranges and mappings ------------------------------------------------------------------------

void GpuAddresses::AddRange(GpuAddress at, uint64_t bytes) {
  MutexLock lock(mu_);
  ranges_.emplace(at, at + bytes);
}

Result<uint64_t> GpuAddresses::CheckFree(GpuAddress range) const {
  MutexLock lock(mu_);
  const auto found = ranges_.find(range);
  if (found == ranges_.end()) return Refused("range: none begins at " + AddressText(range));
  const uint64_t bytes = found->second - range;
  if (Overlaps(range, bytes)) {
    return Refused("range: something is mapped in the one at " + AddressText(range));
  }
  return bytes;
}

void GpuAddresses::RemoveRange(GpuAddress range) {
  MutexLock lock(mu_);
  ranges_.erase(range);
}

Status GpuAddresses::CheckMap(GpuAddress at, uint64_t bytes) const {
  if (at % granularity_ != 0) {
    return Refused("at: " + AddressText(at) + " is not a multiple of " +
                   std::to_string(granularity_));
  }
  MutexLock lock(mu_);
  const auto range = FindRange(at);
  if (range == ranges_.end() || bytes > range->second - at) {
    return Refused("at: " + Piece(bytes, at) + " are not in one reserved range");
  }
  if (Overlaps(at, bytes)) return Refused("at: something is mapped in " + Piece(bytes, at));
  return {};
}

void GpuAddresses::AddMapping(GpuAddress at, uint64_t bytes) {
  MutexLock lock(mu_);
  areas_.emplace(at, Area{.end = at + bytes, .kind = Kind::kMapping});
}

Status GpuAddresses::CheckAccess(GpuAddress at, uint64_t bytes) const {
  const Status refused =
      Refused("at: " + Piece(bytes, at) + " are not whole mappings of one range");
  if (bytes == 0 || Wraps(at, bytes)) return refused;
  MutexLock lock(mu_);
  const auto range = FindRange(at);
  if (range == ranges_.end() || bytes > range->second - at) return refused;
  GpuAddress next = at;
  while (next < at + bytes) {
    const auto area = areas_.find(next);
    if (area == areas_.end()) return refused;
    next = area->second.end;
  }
  return next == at + bytes ? Status() : refused;
}

void GpuAddresses::SetAccess(GpuAddress at, uint64_t bytes, GpuAccess access) {
  MutexLock lock(mu_);
  for (auto area = areas_.find(at); area != areas_.end() && area->first < at + bytes; ++area)
    area->second.access = access;
}

Result<uint64_t> GpuAddresses::RemoveMapping(GpuAddress at) {
  MutexLock lock(mu_);
  const auto area = areas_.find(at);
  if (area == areas_.end() || area->second.kind != Kind::kMapping) {
    return Refused("at: no mapping begins at " + AddressText(at));
  }
  const uint64_t bytes = area->second.end - at;
  areas_.erase(area);
  return bytes;
}

// ---- Allocations --------------------------------------------------------------------------------

void GpuAddresses::AddAllocation(GpuAddress at, uint64_t bytes, bool opened) {
  MutexLock lock(mu_);
  areas_.emplace(at, Area{.end = at + bytes,
                          .kind = opened ? Kind::kOpened : Kind::kAllocation,
                          .access = GpuAccess::kReadWrite});
}

Status GpuAddresses::CheckAllocation(GpuAddress at, bool opened) const {
  MutexLock lock(mu_);
  return FindAllocation(at, opened).status();
}

Result<uint64_t> GpuAddresses::RemoveAllocation(GpuAddress at, bool opened) {
  MutexLock lock(mu_);
  Result<uint64_t> bytes = FindAllocation(at, opened);
  if (bytes) areas_.erase(at);
  return bytes;
}

Result<uint64_t> GpuAddresses::FindAllocation(GpuAddress at, bool opened) const {
  const auto area = areas_.find(at);
  if (area == areas_.end() || area->second.kind != (opened ? Kind::kOpened : Kind::kAllocation)) {
    return Refused((opened ? "opened: none begins at " : "allocation: none begins at ") +
                   AddressText(at));
  }
  return area->second.end - at;
}

// ---- Host memory --------------------------------------------------------------------------------

Status GpuAddresses::ClaimHost(std::span<const uint8_t> memory) {
  const auto at = reinterpret_cast<GpuAddress>(memory.data());
  if (memory.empty() || at % kHostAlignment != 0 || memory.size() % kHostAlignment != 0) {
    return Refused("memory: " + Piece(memory.size(), at) + " are not whole pages of 4096");
  }
  MutexLock lock(mu_);
  if (Overlaps(at, memory.size())) {
    return Refused("memory: some of " + Piece(memory.size(), at) +
                   " is registered, or of the device");
  }
  areas_.emplace(at, Area{.end = at + memory.size(), .kind = Kind::kHost});
  return {};
}

void GpuAddresses::AdmitHost(std::span<const uint8_t> memory, GpuAccess access,
                             uint64_t piece_bytes) {
  MutexLock lock(mu_);
  const auto area = areas_.find(reinterpret_cast<GpuAddress>(memory.data()));
  TERRACE_CHECK(area != areas_.end());
  area->second.access = access;
  area->second.piece_bytes = piece_bytes;
}

void GpuAddresses::RemoveHost(std::span<const uint8_t> memory) {
  MutexLock lock(mu_);
  areas_.erase(reinterpret_cast<GpuAddress>(memory.data()));
}

// ---- Work ---------------------------------------------------------------------------------------

bool GpuAddresses::OfDevice(GpuAddress at, uint64_t bytes, GpuAccess access) const {
  if (bytes == 0 || Wraps(at, bytes)) return false;
  for (auto area = Find(at); area != areas_.end(); area = areas_.find(area->second.end)) {
    if (area->second.kind == Kind::kHost || area->second.access < access) return false;
    if (area->second.end >= at + bytes) return true;
  }
  return false;
}

uint64_t GpuAddresses::Run(GpuAddress at, uint64_t bytes, GpuAccess access) const {
  const auto area = Find(at);
  if (area == areas_.end()) return 0;
  if (area->second.kind != Kind::kHost) return OfDevice(at, bytes, access) ? bytes : 0;
  if (area->second.access < access || bytes > area->second.end - at) return 0;
  return std::min(bytes, area->second.piece_bytes - (at - area->first) % area->second.piece_bytes);
}

Result<std::vector<GpuCopy>> GpuAddresses::Plan(std::span<const GpuCopy> copies) const {
  if (copies.size() > kMostCopies) {
    return Refused("copies: " + std::to_string(copies.size()) + ", more than " +
                   std::to_string(kMostCopies));
  }
  std::vector<GpuCopy> plan;
  plan.reserve(copies.size());
  MutexLock lock(mu_);
  for (size_t i = 0; i < copies.size(); ++i) {
    GpuCopy left = copies[i];
    const auto refused = [i](const char* field, const GpuCopy& copy, GpuAddress at) {
      return Refused("copies[" + std::to_string(i) + "]." + field + ": " + Piece(copy.bytes, at) +
                     " are not of the device with the access that it takes, nor registered");
    };
    do {
      const uint64_t to = Run(left.dst, left.bytes, GpuAccess::kReadWrite);
      if (to == 0) return refused("dst", left, left.dst);
      const uint64_t from = Run(left.src, left.bytes, GpuAccess::kRead);
      if (from == 0) return refused("src", left, left.src);
      const uint64_t now = std::min(to, from);
      plan.push_back({.dst = left.dst, .src = left.src, .bytes = now});
      left = {.dst = left.dst + now, .src = left.src + now, .bytes = left.bytes - now};
    } while (left.bytes > 0);
  }
  return plan;
}

Status GpuAddresses::CheckClear(GpuAddress at, uint64_t bytes) const {
  MutexLock lock(mu_);
  if (OfDevice(at, bytes, GpuAccess::kReadWrite)) return {};
  return Refused("at: " + Piece(bytes, at) + " are not writable memory of the device");
}

Status GpuAddresses::CheckPages(const PagedLayout& layout, std::span<const PagedBlock> blocks,
                                bool gather) const {
  if (const char* problem = PagedCopyProblem(layout, blocks); problem != nullptr) {
    return Refused(problem);
  }
  if (blocks.empty()) return {};
  // A pool's layers are in one piece each, so the first and the last block stand for all.
  const auto [first, last] = std::ranges::minmax_element(blocks, {}, &PagedBlock::block);
  const uint64_t begin = first->block * layout.block_stride;
  const uint64_t bytes = last->block * layout.block_stride - begin + layout.block_bytes;
  MutexLock lock(mu_);
  for (size_t i = 0; i < layout.bases.size(); ++i) {
    const GpuAddress at = layout.bases[i] + begin;
    if (!OfDevice(at, bytes, gather ? GpuAccess::kRead : GpuAccess::kReadWrite)) {
      return Refused("bases[" + std::to_string(i) + "]: " + Piece(bytes, at) +
                     " are not of the device with the access that it takes");
    }
  }
  const uint64_t behind = (layout.bases.size() - 1) * layout.segment_stride;
  for (size_t i = 0; i < blocks.size(); ++i) {
    if (!OfDevice(blocks[i].page, behind + blocks[i].bytes,
                  gather ? GpuAccess::kReadWrite : GpuAccess::kRead)) {
      return Refused("blocks[" + std::to_string(i) +
                     "].page: " + Piece(behind + blocks[i].bytes, blocks[i].page) +
                     " are not of the device with the access that it takes");
    }
  }
  return {};
}

GpuLeftovers GpuAddresses::Leftovers() const {
  GpuLeftovers left;
  MutexLock lock(mu_);
  for (const auto& [at, end] : ranges_)
    left.ranges.push_back({.at = at, .bytes = end - at});
  for (const auto& [at, area] : areas_) {
    if (area.kind == Kind::kMapping) left.mappings.push_back({.at = at, .bytes = area.end - at});
    if (area.kind == Kind::kAllocation) left.allocations.push_back(at);
    if (area.kind == Kind::kOpened) left.opened.push_back(at);
  }
  return left;
}

}  // namespace terrace
