// DeviceTier: the memory of one GPU, as the engine sees it: arenas of the device, copies between
// them and those of the host, and how it goes. The engine decides what lies where; the tier moves
// bytes, in a process of its own that may crash, hang or lose its context and is started anew.
//
// Owner thread only. Callbacks come on the owner thread, each once, never from within the call that
// started the work, in any order; none after the tier is gone.
//
// A `done` that says ok: all of it happened. With any other, whatever is written may hold anything;
// but nothing of it is under way any more, so memory may be used for something else. What a
// process that ended had not completed is done again by the next one, for all of it may be:
// sources do not change and nobody reads what is written before `done`.
//
// What an error says, besides the words:
//   invalid_argument, already_exists, mismatch   the request is wrong, or nothing for this device
//   not_found          an arena that it names is unknown, or on its way in or out
//   exhausted          no memory of the device, or too much waits already
//   deadline_exceeded  it was not done by then; the process that had it is gone
//   stale              an arena that it names was lost; it is to be released
//   unavailable        no process can be had (Report says why), or this request was with several
//                      when they ended
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/status.h"
#include "base/unique_fd.h"
#include "tiers/extent.h"

namespace terrace {

// In an arena, of the device or of the host.
struct DevicePlace {
  ArenaId arena = 0;
  uint64_t offset = 0;
  friend bool operator==(const DevicePlace&, const DevicePlace&) = default;
};

struct DeviceCopy {
  DevicePlace dst;
  DevicePlace src;
  uint64_t bytes = 0;  // At least 1; no alignment is needed.
  friend bool operator==(const DeviceCopy&, const DeviceCopy&) = default;
};
inline constexpr size_t kMostDeviceCopies = 2048;

// Of a host arena. What is not registered is copied by way of staging.
enum class Registration : uint8_t {
  kInBackground,  // Whole: holes in it are filled by that.
  kNever,         // For memory that its owner punches.
};

// Between an engine's blocks and pages, within the device: kernels/paged_copy.h, with places for
// addresses.
struct DevicePages {
  struct Block {
    DevicePlace page;
    uint32_t block = 0;
    uint32_t bytes = 0;
    friend bool operator==(const Block&, const Block&) = default;
  };
  bool gather = true;  // Pool to pages; else scatter.
  uint64_t block_stride = 0;
  uint64_t block_bytes = 0;
  uint64_t segment_stride = 0;
  std::vector<DevicePlace> bases;
  std::vector<Block> blocks;
  friend bool operator==(const DevicePages&, const DevicePages&) = default;
};
inline constexpr size_t kMostDeviceBlocks = 2048;
inline constexpr size_t kMostDeviceSegments = 4096;
// Bases, strides, blocks and pages are at multiples of it: what a thread copies at once.
inline constexpr uint64_t kDeviceBlockAlignment = 16;

inline constexpr size_t kDeviceHandleBytes = 64;
using DeviceHandle = std::array<uint8_t, kDeviceHandleBytes>;

// What other processes share an arena by: a descriptor where the device has slabs, else a legacy
// handle. Memory with a descriptor is taken while any is open, and outlives the process that made
// it; that of a handle goes with it.
struct DeviceMemory {
  std::shared_ptr<const UniqueFd> slab;  // Null: it is the handle.
  DeviceHandle handle{};
};

enum class DeviceTierState : uint8_t {
  kStarting,  // No process yet, or one that gets ready. Requests wait.
  kServing,
  kEnding,   // The process is being killed. Requests wait until it is gone.
  kResting,  // No process could be had, or too many ended; tried again. Requests are `unavailable`.
};

struct DeviceTierReport {
  DeviceTierState state = DeviceTierState::kStarting;
  std::string why;      // The last process ended, or could not start.
  int32_t process = 0;  // Its pid, 0 for none.

  // Of the device, as the last process said.
  std::string uuid;
  std::string name;
  std::string driver;
  bool slabs = false;
  uint64_t granularity = 0;  // Sizes of arenas are multiples of it.
  uint64_t free_bytes = 0;
  uint64_t total_bytes = 0;

  // Of this process, as it said last. What is not registered is copied through staging.
  uint64_t host_bytes = 0;
  uint64_t registered_bytes = 0;
  uint64_t direct_bytes = 0;  // Copied since its start.
  uint64_t staged_bytes = 0;
  std::string registration;  // Why a piece was refused, if one was.

  // Since the tier was opened.
  uint64_t starts = 0;
  uint64_t crashes = 0;     // Ended by themselves, or closed their socket.
  uint64_t hangs = 0;       // Killed at a deadline.
  uint64_t broken = 0;      // Lost their context or device.
  uint64_t distrusted = 0;  // Killed for a message that cannot be.
  uint64_t completed = 0;   // Requests, with any answer of a process.
  uint64_t replayed = 0;
  uint64_t failed = 0;  // For want of a process, by deadlines, for memory that was lost.
  uint64_t lost_arenas = 0;

  uint64_t arenas = 0;
  uint64_t waiting = 0;    // Requests that no process has,
  uint64_t in_flight = 0;  // and those that one has.
};

class DeviceTier {
 public:
  using Done = std::function<void(Status)>;
  virtual ~DeviceTier() = default;
  // It begins to end: nothing is done nor answered any more. Its end waits for a process; who ends
  // several has them all begin first.
  virtual void BeginEnd() {}

  // ---- Arenas. Numbers are the caller's, never used again, those of host arenas among them.
  // Memory of the device, all zeros.
  virtual void Create(ArenaId arena, uint64_t bytes, MonotonicNs deadline,
                      std::function<void(Result<DeviceMemory>)> done) = 0;
  // An engine's own: a slab by its descriptor, or an allocation by its handle.
  virtual void Import(ArenaId arena, uint64_t bytes, UniqueFd slab, MonotonicNs deadline,
                      Done done) = 0;
  virtual void Open(ArenaId arena, uint64_t bytes, const DeviceHandle& handle, MonotonicNs deadline,
                    Done done) = 0;
  // A host arena by a descriptor of its file, which nobody truncates. It can be copied from at
  // once, and into with kReadWrite. A multiple of 4096 bytes.
  virtual void AddHost(ArenaId arena, uint64_t bytes, UniqueFd file, Protection protection,
                       Registration registration, MonotonicNs deadline, Done done) = 0;
  // Of any of these, when nothing that names it is under way. When `done` says ok no process has
  // anything of it: what is in host memory may be punched, and memory of the device is free when
  // others have closed and unmapped theirs.
  virtual void Release(ArenaId arena, MonotonicNs deadline, Done done) = 0;

  // ---- Work. What is named by several requests at once is in no order: who needs one done before
  // another asks for the other in its `done`.
  // One side of each copy is memory of the device; none overlap. At most kMostDeviceCopies.
  // `complete`: nothing writes the sources any more, so they may be read at any time.
  virtual void Copy(std::vector<DeviceCopy> copies, bool complete, MonotonicNs deadline,
                    Done done) = 0;
  virtual void Clear(DevicePlace at, uint64_t bytes, MonotonicNs deadline, Done done) = 0;
  // At most kMostDeviceBlocks blocks.
  virtual void MovePages(DevicePages pages, MonotonicNs deadline, Done done) = 0;

  virtual DeviceTierReport Report() const = 0;
};

}  // namespace terrace
