// Gpus and Gpu: what Terrace asks of graphics processors. The one door to CUDA of everything above
// it; implementations are cuda_gpu.h (the driver), host_gpu.h (memfds and threads, for machines
// without a GPU) and, over either, a faulty one (tiers/sim/faulty_gpu.h).
//
// A Gpu is one device as this process uses it, with a context of its own: it owns all that was made
// by its verbs, and what is left goes with it. Things are named by ids, which are never used again,
// and by addresses; an id or address that names nothing is `invalid_argument`, and nothing was
// done. Bytes everywhere.
//
// What an error says, besides the words:
//   invalid_argument   the call can never succeed as written; the message names the argument
//   not_found          there is no such device, or no driver
//   permission_denied  the device files or the driver refuse this process
//   mismatch           this device, driver or build cannot do that: GpuFacts says so beforehand
//   exhausted          no device memory, addresses, or host memory that may be pinned; the Gpu is
//                      sound
//   stale              the context is dead (a sticky error): every later call answers the same,
//                      and what was on its streams may or may not have happened. Open it anew, with
//                      CUDA in a new process: a driver does not promise more
//   unavailable        the device is gone or refuses contexts: likewise, and opening may fail too
//   internal           the driver failed without a better name
// Work on streams that fails is told by whichever verb comes next, QueryEvent for one.
//
// Thread safety: all of it but the destructor. A thread that calls has the Gpu's CUDA context
// current afterwards. Work is in the order of calls on one stream, and in none between streams but
// where WaitEvent makes one. Verbs that are not work take effect at once and look at no stream:
// what is unmapped, released, freed or unregistered must not be in use by work that may still run,
// which the caller knows by an event.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "base/unique_fd.h"
#include "kernels/paged_copy.h"

namespace terrace {

struct GpuUuid {
  std::array<uint8_t, 16> bytes{};
  // "GPU-01234567-89ab-cdef-0123-456789abcdef", as the driver's tools have it.
  std::string Text() const;
  friend auto operator<=>(const GpuUuid&, const GpuUuid&) = default;
};
// Of that text, in either case; "MIG-" for a part of a GPU is taken too.
std::optional<GpuUuid> ParseGpuUuid(std::string_view text);
// Of the index-th device that is memory of the host (host_gpu.h): stable, and alike on every host.
GpuUuid HostGpuUuid(uint32_t index);

// An address that work on streams can use. Of host memory, its address in this process.
using GpuAddress = uint64_t;

enum class GpuSlab : uint64_t {};     // Physical memory, mapped or not.
enum class GpuStream : uint64_t {};   // Work in order.
enum class GpuEvent : uint64_t {};    // A place in a stream's work.
enum class HostRegion : uint64_t {};  // Registered host memory.

// What can be known of a device without a context.
struct GpuFacts {
  GpuUuid uuid;
  std::string name;
  std::string driver;  // "CUDA driver 13.0", "host memory".
  uint64_t total_bytes = 0;
  // Slabs, ranges and mappings; their sizes and places are multiples of the granularity, a power of
  // two. Without it there are allocations only.
  bool slabs = false;
  uint64_t granularity = 0;
  bool allocations = false;  // Memory that is shared by legacy IPC handles.
  bool batches = false;  // The driver takes a batch of copies in one call. They are slower without.
  bool paged_copies = false;            // GatherPages and ScatterPages.
  bool read_only_registration = false;  // RegisterHost of memory that is mapped read-only.
  uint64_t registration_bytes = 0;      // What one call to the driver registers at most.
};

struct GpuMemory {
  uint64_t free_bytes = 0;  // Of the device, whoever uses the rest.
  uint64_t total_bytes = 0;
  friend bool operator==(const GpuMemory&, const GpuMemory&) = default;
};

enum class GpuAccess : uint8_t { kNone, kRead, kReadWrite };

// Source and destination do not overlap, and other copies of the batch touch neither. What is host
// memory is registered, with all of it in one region.
struct GpuCopy {
  GpuAddress dst = 0;
  GpuAddress src = 0;
  uint64_t bytes = 0;  // At least 1; no alignment is needed.
};

enum class SourceOrder : uint8_t {
  kStream,  // Sources are read when it is the copy's turn.
  kAny,     // Before, too: nothing on the stream writes them. Host memory that is complete.
};

inline constexpr size_t kMostCopies = 8192;  // Of one call.
inline constexpr size_t kIpcHandleBytes = 64;
using IpcHandle = std::array<uint8_t, kIpcHandleBytes>;

// Memory of the device that this process has by other ways than a Gpu, and how others share it.
struct GpuForeign {
  GpuAddress base = 0;  // Of the whole allocation,
  uint64_t bytes = 0;   // and how much of it, in whole granules, others can have.
  UniqueFd slab;        // As of ExportSlab; or none, and
  IpcHandle handle{};   // as of ExportAllocation.
};

class Gpu {
 public:
  // Waits for what is on its streams, unless the context is dead. With a device that hangs that may
  // be for ever: such a process ends by _exit.
  virtual ~Gpu() = default;

  // As Gpus has them, without paged_copies where the device did not take the kernels.
  virtual const GpuFacts& facts() const = 0;
  virtual Result<GpuMemory> Memory() = 0;

  // ---- Slabs
  // Memory of the device with no address. Its contents are whatever was there before: Clear it
  // before anybody else sees it.
  virtual Result<GpuSlab> CreateSlab(uint64_t bytes) = 0;
  // A descriptor that other processes import. Who has it can map the slab for writing; it keeps the
  // memory taken even if no process maps it.
  virtual Result<UniqueFd> ExportSlab(GpuSlab slab) = 0;
  // Of a descriptor that a Gpu of the same device made; it is the caller's and may be closed after.
  // `bytes` as it was created, which a descriptor does not tell: more is refused here or by
  // MapSlab, less too where the driver notices.
  virtual Result<GpuSlab> ImportSlab(int fd, uint64_t bytes) = 0;
  // The id goes. The memory is free when nothing maps it, in any process, and no descriptor is
  // open.
  virtual Status ReleaseSlab(GpuSlab slab) = 0;

  // ---- Ranges of addresses
  // Nobody else gets these addresses before FreeRange, whatever is mapped there meanwhile.
  virtual Result<GpuAddress> ReserveRange(uint64_t bytes) = 0;
  // Nothing is mapped in it.
  virtual Status FreeRange(GpuAddress range) = 0;
  // The whole slab, inside one range, where nothing is mapped; without access. One slab may be
  // mapped several times.
  virtual Status MapSlab(GpuAddress at, GpuSlab slab) = 0;
  // [at, at + bytes) begins and ends with mappings, of one range, and has no hole. Who imported a
  // slab chooses for itself: reading only is a guard against bugs.
  virtual Status SetAccess(GpuAddress at, uint64_t bytes, GpuAccess access) = 0;
  // Of one mapping. Its addresses stay reserved.
  virtual Status UnmapSlab(GpuAddress at) = 0;

  // ---- Allocations, where slabs lack: memory with an address, shared by handles
  // Whole granules, so that a handle shows nobody the memory of others. Readable and writable.
  virtual Result<GpuAddress> Allocate(uint64_t bytes) = 0;
  // What others have opened of it is invalid from then on, and undefined to touch: they closed it.
  virtual Status FreeAllocation(GpuAddress allocation) = 0;
  virtual Result<IpcHandle> ExportAllocation(GpuAddress allocation) = 0;
  // Of another process's, for reading and writing; good while that process lives and has not freed
  // it. `bytes` from its begin on, that can be used here.
  virtual Result<GpuAddress> OpenAllocation(const IpcHandle& handle, uint64_t bytes) = 0;
  virtual Status CloseAllocation(GpuAddress opened) = 0;

  // ---- Memory that somebody else in this process made
  // Of the allocation that the address lies in. It is its owner's and stays as it is.
  virtual Result<GpuForeign> ShareForeign(GpuAddress at) = 0;

  // ---- Host memory
  // Pins memory of this process, which is resident and mapped as `access` says, until
  // UnregisterHost. Begins and ends at multiples of 4096. Takes as long as the kernel needs to pin
  // it. The driver gets it in pieces of facts().registration_bytes; if one fails none stays.
  virtual Result<HostRegion> RegisterHost(std::span<uint8_t> memory, GpuAccess access) = 0;
  virtual Status UnregisterHost(HostRegion region) = 0;

  // ---- Streams and events
  virtual Result<GpuStream> CreateStream() = 0;
  // Waits for its work.
  virtual Status DestroyStream(GpuStream stream) = 0;
  virtual Result<GpuEvent> CreateEvent() = 0;
  virtual Status DestroyEvent(GpuEvent event) = 0;
  // From now on the event stands for all that was put on `stream` so far.
  virtual Status RecordEvent(GpuEvent event, GpuStream stream) = 0;
  // Later work of `stream` comes after what the event stands for now. Never recorded: no wait.
  virtual Status WaitEvent(GpuStream stream, GpuEvent event) = 0;
  // Whether what it stands for is done; its writes are visible then to this process and, in memory
  // that is shared, to others. Never recorded: true. Does not wait.
  virtual Result<bool> QueryEvent(GpuEvent event) = 0;
  // Adds 1 to an eventfd after all that was put on `stream` so far. Only a hint to look at events:
  // it does not come once the context is dead. It holds the stream up for some microseconds, so
  // those that must not wait have another stream for it, which waits for their event.
  virtual Status Notify(GpuStream stream, int eventfd) = 0;

  // ---- Work. Puts it on the stream and returns; waits only where some 1000 calls wait already.
  // Addresses are checked at the call: of the device with the access that the work needs, or
  // registered. What fails otherwise than by `invalid_argument` may have put some of its work
  // there. At most kMostCopies; none is allowed.
  virtual Status Copy(GpuStream stream, std::span<const GpuCopy> copies, SourceOrder order) = 0;
  // Zeros in memory of the device.
  virtual Status Clear(GpuStream stream, GpuAddress at, uint64_t bytes) = 0;
  // As kernels/paged_copy.h defines them, in memory of the device: pool to pages, pages to pool.
  virtual Status GatherPages(GpuStream stream, const PagedLayout& layout,
                             std::span<const PagedBlock> blocks) = 0;
  virtual Status ScatterPages(GpuStream stream, const PagedLayout& layout,
                              std::span<const PagedBlock> blocks) = 0;
};

class Gpus {
 public:
  virtual ~Gpus() = default;
  // Those that there were when it was opened. Needs and makes no context.
  virtual const std::vector<GpuFacts>& devices() const = 0;
  // A new context, which this outlives.
  virtual Result<std::unique_ptr<Gpu>> Open(const GpuUuid& uuid) = 0;
};

}  // namespace terrace
