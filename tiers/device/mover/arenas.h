// MoverArenas: the memory that a mover knows, by the daemon's numbers, and where it lies.
//
// Each arena is the Gpu's memory or the mapping of a host arena, and gives back what it has when it
// is removed. Places of requests become addresses here, after they were held against the arena's
// size.
//
// Thread safety: the mover's one thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <unordered_map>

#include "base/status.h"
#include "base/unique_fd.h"
#include "tiers/device/gpu.h"
#include "tiers/device/mover/messages.h"
#include "tiers/extent.h"

namespace terrace {

class MoverArenas {
 public:
  // `gpu` outlives it.
  MoverArenas(Gpu& gpu, size_t most) : gpu_(gpu), most_(most) {}

  // ---- Making them known. Those of the device can be used at once.
  Status AddSlab(ArenaId arena, uint64_t bytes);
  Status AddImport(ArenaId arena, uint64_t bytes, const UniqueFd& fd);
  Status AddAllocation(ArenaId arena, uint64_t bytes);
  Status AddOpened(ArenaId arena, uint64_t bytes, const IpcHandle& handle);
  // Mapped, and in use until EndUse after Registered: the memory to register.
  Result<std::span<uint8_t>> AddHost(ArenaId arena, uint64_t bytes, bool writable,
                                     const UniqueFd& fd);
  // What came of it. If it failed nobody finds the arena, and it is to be removed.
  void Registered(ArenaId arena, const Result<HostRegion>& region);

  Result<UniqueFd> Export(ArenaId arena);
  Result<IpcHandle> Handle(ArenaId arena);

  // ---- Work
  // The address of `bytes` there; not_found for an arena that is unknown, released or not
  // registered yet, invalid_argument for what is not all inside. `what` names the field.
  Result<GpuAddress> Find(const MoverPlace& place, uint64_t bytes, const std::string& what) const;
  bool IsHost(ArenaId arena) const;
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
    Mapping mapping;
    std::optional<HostRegion> region;
    bool usable = true;
    uint32_t in_use = 0;
    std::optional<uint64_t> release;  // The request.
  };

  Status CheckNew(ArenaId arena) const;
  Result<Arena> MapSlab(GpuSlab slab, uint64_t bytes);
  Result<Arena*> FindArena(ArenaId arena);

  Gpu& gpu_;
  const size_t most_;
  std::unordered_map<ArenaId, Arena> arenas_;
};

}  // namespace terrace
