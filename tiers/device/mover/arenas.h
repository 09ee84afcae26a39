// MoverArenas: the memory that a mover knows, by the daemon's numbers, and where it lies.
//
// Each arena is the Gpu's memory or the mapping of a host arena, and gives back what it has when it
// is removed. Places of requests become addresses here, after they were held against the arena's
// size. A host arena is registered in pieces, in their order: one that is refused ends that, and
// leaves those before it registered.
//
// Thread safety: the mover's one thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "base/status.h"
#include "base/unique_fd.h"
#include "tiers/device/gpu.h"
#include "tiers/device/mover/messages.h"
#include "tiers/extent.h"

namespace terrace {

class MoverArenas {
 public:
  // `gpu` outlives it.
  // `piece_bytes`: of host arenas, a multiple of 4096.
  MoverArenas(Gpu& gpu, size_t most, uint64_t piece_bytes)
      : gpu_(gpu), most_(most), piece_bytes_(piece_bytes) {}

  // ---- Making them known
  Status AddSlab(ArenaId arena, uint64_t bytes);
  Status AddImport(ArenaId arena, uint64_t bytes, const UniqueFd& fd);
  Status AddAllocation(ArenaId arena, uint64_t bytes);
  Status AddOpened(ArenaId arena, uint64_t bytes, const IpcHandle& handle);
  Status AddHost(ArenaId arena, uint64_t bytes, bool writable, const UniqueFd& fd);

  // ---- Registration
  struct Piece {
    std::span<uint8_t> memory;
    GpuAccess access = GpuAccess::kRead;
  };
  // The piece that is to be registered next; none where that is over. The arena is in use until
  // EndUse after Registered.
  std::optional<Piece> BeginPiece(ArenaId arena);
  void Registered(ArenaId arena, const Result<HostRegion>& region);
  uint64_t host_bytes() const { return host_bytes_; }
  uint64_t registered_bytes() const { return registered_bytes_; }
  // Why the last piece was refused that was.
  const Status& refused() const { return refused_; }

  Result<UniqueFd> Export(ArenaId arena);
  Result<IpcHandle> Handle(ArenaId arena);

  // ---- Work
  // The address of `bytes` there; not_found for an arena that is unknown or released,
  // invalid_argument for what is not all inside, or to be written and of a host arena that is not
  // writable. `what` names the field.
  Result<GpuAddress> Find(const MoverPlace& place, uint64_t bytes, GpuAccess access,
                          const std::string& what) const;
  bool IsHost(ArenaId arena) const;
  // Of a host arena: how far its bytes from `offset` on are one registered piece, or of one that is
  // not.
  struct Run {
    bool registered = false;
    uint64_t bytes = 0;
  };
  Run RunAt(const MoverPlace& place) const;
  void Use(ArenaId arena) { ++arenas_.at(arena).in_use; }
  // The request that waits to have it released, if this was the last use.
  std::optional<uint64_t> EndUse(ArenaId arena);

  // ---- The end
  // From here on nobody finds it. True: it may be removed; false: EndUse tells when.
  Result<bool> BeginRelease(ArenaId arena, uint64_t request);
  Status Remove(ArenaId arena);

 private:
  enum class Kind : uint8_t { kSlab, kAllocation, kOpened, kHost };
  struct Arena {
    Kind kind = Kind::kSlab;
    uint64_t bytes = 0;
    GpuAddress at = 0;
    GpuSlab slab{};
    Mapping mapping;  // This and what follows until in_use: of a host arena.
    bool writable = false;
    std::vector<HostRegion> regions;  // Of the first pieces.
    bool ended = false;               // A piece was refused.
    uint32_t in_use = 0;
    std::optional<uint64_t> release;  // The request.
  };

  Status CheckNew(ArenaId arena) const;
  Result<Arena> MapSlab(GpuSlab slab, uint64_t bytes);
  Result<Arena*> FindArena(ArenaId arena);
  uint64_t RegisteredBytes(const Arena& host) const;

  Gpu& gpu_;
  const size_t most_;
  const uint64_t piece_bytes_;
  uint64_t host_bytes_ = 0;
  uint64_t registered_bytes_ = 0;
  Status refused_;
  std::unordered_map<ArenaId, Arena> arenas_;
};

}  // namespace terrace
