#include "tiers/device/mover/arenas.h"

#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <string>
#include <utility>

namespace terrace {
namespace {

constexpr uint64_t kPage = 4096;

Status NotFound(ArenaId arena, const char* why) {
  return {Code::kNotFound, "arena " + std::to_string(arena) + why};
}

}  // namespace

Status MoverArenas::CheckNew(ArenaId arena) const {
  if (arenas_.contains(arena)) {
    return {Code::kAlreadyExists, "arena " + std::to_string(arena) + " is known already"};
  }
  if (arenas_.size() >= most_) {
    return {Code::kExhausted, "arena: " + std::to_string(most_) + " are known"};
  }
  return {};
}

// Gives the slab back where it cannot be mapped.
Result<MoverArenas::Arena> MoverArenas::MapSlab(GpuSlab slab, uint64_t bytes) {
  const Result<GpuAddress> at = gpu_.ReserveRange(bytes);
  Status status = at.status();
  if (status.ok()) status = gpu_.MapSlab(*at, slab);
  const bool mapped = status.ok();
  if (mapped) status = gpu_.SetAccess(*at, bytes, GpuAccess::kReadWrite);
  if (!status.ok()) {
    // What these say is not worth more than why they are called.
    if (mapped) (void)gpu_.UnmapSlab(*at);
    if (at) (void)gpu_.FreeRange(*at);
    (void)gpu_.ReleaseSlab(slab);
    return status;
  }
  Arena arena;
  arena.kind = Kind::kSlab;
  arena.bytes = bytes;
  arena.at = *at;
  arena.slab = slab;
  return arena;
}

Status MoverArenas::AddSlab(ArenaId arena, uint64_t bytes) {
  RETURN_IF_ERROR(CheckNew(arena));
  ASSIGN_OR_RETURN(const GpuSlab slab, gpu_.CreateSlab(bytes));
  ASSIGN_OR_RETURN(Arena made, MapSlab(slab, bytes));
  arenas_.emplace(arena, std::move(made));
  return {};
}

Status MoverArenas::AddImport(ArenaId arena, uint64_t bytes, const UniqueFd& fd) {
  RETURN_IF_ERROR(CheckNew(arena));
  ASSIGN_OR_RETURN(const GpuSlab slab, gpu_.ImportSlab(fd.get(), bytes));
  ASSIGN_OR_RETURN(Arena made, MapSlab(slab, bytes));
  arenas_.emplace(arena, std::move(made));
  return {};
}

Status MoverArenas::AddAllocation(ArenaId arena, uint64_t bytes) {
  RETURN_IF_ERROR(CheckNew(arena));
  Arena made;
  made.kind = Kind::kAllocation;
  made.bytes = bytes;
  ASSIGN_OR_RETURN(made.at, gpu_.Allocate(bytes));
  arenas_.emplace(arena, std::move(made));
  return {};
}

Status MoverArenas::AddOpened(ArenaId arena, uint64_t bytes, const IpcHandle& handle) {
  RETURN_IF_ERROR(CheckNew(arena));
  Arena made;
  made.kind = Kind::kOpened;
  made.bytes = bytes;
  ASSIGN_OR_RETURN(made.at, gpu_.OpenAllocation(handle, bytes));
  arenas_.emplace(arena, std::move(made));
  return {};
}

Status MoverArenas::AddHost(ArenaId arena, uint64_t bytes, bool writable, const UniqueFd& fd) {
  RETURN_IF_ERROR(CheckNew(arena));
  if (bytes % kPage != 0) return {Code::kInvalidArgument, "bytes: not a multiple of 4096"};
  struct stat file {};
  if (::fstat(fd.get(), &file) != 0) return SystemError("fstat of a host arena", errno);
  // Touching a mapping behind the end of its file kills.
  if (static_cast<uint64_t>(file.st_size) < bytes) {
    return {Code::kInvalidArgument, "bytes: " + std::to_string(bytes) + ", and the file has " +
                                        std::to_string(file.st_size)};
  }
  Arena made;
  made.kind = Kind::kHost;
  made.bytes = bytes;
  ASSIGN_OR_RETURN(
      made.mapping,
      Mapping::Of(fd.get(), 0, bytes, writable ? Protection::kReadWrite : Protection::kRead));
  made.at = reinterpret_cast<GpuAddress>(made.mapping.data());
  made.writable = writable;
  host_bytes_ += bytes;
  arenas_.emplace(arena, std::move(made));
  return {};
}

uint64_t MoverArenas::RegisteredBytes(const Arena& host) const {
  return std::min(host.bytes, host.regions.size() * piece_bytes_);
}

std::optional<MoverArenas::Piece> MoverArenas::BeginPiece(ArenaId arena) {
  const auto found = arenas_.find(arena);
  if (found == arenas_.end() || found->second.release || found->second.ended) return std::nullopt;
  Arena& host = found->second;
  const uint64_t at = RegisteredBytes(host);
  if (at == host.bytes || piece_bytes_ == 0) return std::nullopt;
  ++host.in_use;
  return Piece{.memory = host.mapping.bytes().subspan(at, std::min(piece_bytes_, host.bytes - at)),
               .access = host.writable ? GpuAccess::kReadWrite : GpuAccess::kRead};
}

void MoverArenas::Registered(ArenaId arena, const Result<HostRegion>& region) {
  Arena& host = arenas_.at(arena);
  if (!region) {
    host.ended = true;
    refused_ = region.error();
    return;
  }
  const uint64_t before = RegisteredBytes(host);
  host.regions.push_back(*region);
  registered_bytes_ += RegisteredBytes(host) - before;
}

Result<MoverArenas::Arena*> MoverArenas::FindArena(ArenaId arena) {
  const auto found = arenas_.find(arena);
  if (found == arenas_.end()) return NotFound(arena, " is unknown");
  return &found->second;
}

Result<UniqueFd> MoverArenas::Export(ArenaId arena) {
  ASSIGN_OR_RETURN(const Arena* found, FindArena(arena));
  return gpu_.ExportSlab(found->slab);
}

Result<IpcHandle> MoverArenas::Handle(ArenaId arena) {
  ASSIGN_OR_RETURN(const Arena* found, FindArena(arena));
  return gpu_.ExportAllocation(found->at);
}

Result<GpuAddress> MoverArenas::Find(const MoverPlace& place, uint64_t bytes, GpuAccess access,
                                     const std::string& what) const {
  const auto found = arenas_.find(place.arena);
  const char* why = nullptr;
  if (found == arenas_.end()) {
    why = " is unknown";
  } else if (found->second.release) {
    why = " is being released";
  }
  if (why != nullptr) return NotFound(place.arena, why).WithContext(what);
  const Arena& arena = found->second;
  if (place.offset > arena.bytes || bytes > arena.bytes - place.offset) {
    return Status(Code::kInvalidArgument, what + ": " + std::to_string(bytes) + " bytes at " +
                                              std::to_string(place.offset) + ", and arena " +
                                              std::to_string(place.arena) + " has " +
                                              std::to_string(arena.bytes));
  }
  if (access == GpuAccess::kReadWrite && arena.kind == Kind::kHost && !arena.writable) {
    return Status(Code::kInvalidArgument,
                  what + ": arena " + std::to_string(place.arena) + " is only read");
  }
  return arena.at + place.offset;
}

bool MoverArenas::IsHost(ArenaId arena) const {
  return arenas_.at(arena).kind == Kind::kHost;
}

MoverArenas::Run MoverArenas::RunAt(const MoverPlace& place) const {
  const Arena& host = arenas_.at(place.arena);
  const uint64_t registered = RegisteredBytes(host);
  if (place.offset >= registered) return {.registered = false, .bytes = host.bytes - place.offset};
  const uint64_t end = std::min(registered, (place.offset / piece_bytes_ + 1) * piece_bytes_);
  return {.registered = true, .bytes = end - place.offset};
}

std::optional<uint64_t> MoverArenas::EndUse(ArenaId arena) {
  Arena& used = arenas_.at(arena);
  return --used.in_use == 0 ? used.release : std::nullopt;
}

Result<bool> MoverArenas::BeginRelease(ArenaId arena, uint64_t request) {
  ASSIGN_OR_RETURN(Arena* const found, FindArena(arena));
  if (found->release) return NotFound(arena, " is being released");
  found->release = request;
  return found->in_use == 0;
}

Status MoverArenas::Remove(ArenaId arena) {
  ASSIGN_OR_RETURN(const Arena* found, FindArena(arena));
  Status status;
  const auto keep = [&status](Status next) {
    if (status.ok()) status = std::move(next);
  };
  switch (found->kind) {
    case Kind::kSlab:
      keep(gpu_.UnmapSlab(found->at));
      keep(gpu_.FreeRange(found->at));
      keep(gpu_.ReleaseSlab(found->slab));
      break;
    case Kind::kAllocation:
      keep(gpu_.FreeAllocation(found->at));
      break;
    case Kind::kOpened:
      keep(gpu_.CloseAllocation(found->at));
      break;
    case Kind::kHost:
      host_bytes_ -= found->bytes;
      registered_bytes_ -= RegisteredBytes(*found);
      for (const HostRegion region : found->regions)
        keep(gpu_.UnregisterHost(region));
      break;
  }
  arenas_.erase(arena);
  return status;
}

}  // namespace terrace
