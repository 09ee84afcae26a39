// What the daemon and a mover say to each other: one process a GPU, over a socketpair of packets
// (SOCK_SEQPACKET), so that a packet is a message, whole or not there.
//
// The daemon asks, the mover answers each request once, in any order; it speaks unasked only to say
// what it is (MoverReady), first of all. Memory is named by arenas of the daemon, for addresses are
// a process's own: whoever makes an arena known chose its number, and it means nothing after its
// release. Descriptors travel with the packet (SCM_RIGHTS).
//
//     header   u32 bytes of the body | u16 type | u16 descriptors | u64 request, 0 for MoverReady
//     body     the fields of the type in the order of its struct below: numbers little-endian and
//     of
//              their size, texts and lists behind a u32 count, statuses as a u8 code and a text
//
// Both sides are of one build: a MoverReady of another version ends the mover. Whatever does not
// decode is answered by `invalid_argument` that names message and field, and never acted on.
//
// Thread safety: values and pure functions.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <variant>
#include <vector>

#include "base/status.h"
#include "tiers/device/gpu.h"
#include "tiers/device_tier.h"
#include "tiers/extent.h"

namespace terrace {

inline constexpr uint32_t kMoverVersion = 1;
inline constexpr size_t kMoverHeaderBytes = 16;
inline constexpr size_t kMostMoverBytes = 128u << 10;  // Of a packet, its header among them.
inline constexpr size_t kMostMoverText = 1024;         // A longer one is cut when it is sent.

// Memory of an arena, host or device.
using MoverPlace = DevicePlace;

// ---- Of the daemon
// A new slab, mapped and cleared; answered when it is, with its descriptor.
struct MoverCreate {
  ArenaId arena = 0;
  uint64_t bytes = 0;
  friend bool operator==(const MoverCreate&, const MoverCreate&) = default;
};
// A slab of an engine, whose descriptor comes along.
struct MoverImport {
  ArenaId arena = 0;
  uint64_t bytes = 0;
  friend bool operator==(const MoverImport&, const MoverImport&) = default;
};
// Where slabs lack: a new allocation, cleared; answered with its handle.
struct MoverAllocate {
  ArenaId arena = 0;
  uint64_t bytes = 0;
  friend bool operator==(const MoverAllocate&, const MoverAllocate&) = default;
};
// An allocation of an engine.
struct MoverOpen {
  ArenaId arena = 0;
  uint64_t bytes = 0;
  IpcHandle handle{};
  friend bool operator==(const MoverOpen&, const MoverOpen&) = default;
};
// A host arena, whose memfd comes along. Answered when it is mapped, from when on copies may name
// it; with `registered` it is registered piece by piece in the background, and MoverFigures tell
// how far.
struct MoverHost {
  ArenaId arena = 0;
  uint64_t bytes = 0;     // A multiple of 4096.
  bool writable = false;  // Else nothing is copied into it.
  bool registered = true;
  friend bool operator==(const MoverHost&, const MoverHost&) = default;
};
// Any of these. Answered when the mover has nothing of it any more; work that uses it comes first.
struct MoverRelease {
  ArenaId arena = 0;
  friend bool operator==(const MoverRelease&, const MoverRelease&) = default;
};
// Answered when all of them are done; if not ok, some may be. One side of each is memory of the
// device.
struct MoverCopies {
  using Copy = DeviceCopy;
  bool any_order = false;  // SourceOrder::kAny.
  std::vector<Copy> copies;
  friend bool operator==(const MoverCopies&, const MoverCopies&) = default;
};
struct MoverClear {
  MoverPlace at;
  uint64_t bytes = 0;
  friend bool operator==(const MoverClear&, const MoverClear&) = default;
};
using MoverPages = DevicePages;
// How it goes: answered at once, whatever work hangs.
struct MoverReport {
  friend bool operator==(const MoverReport&, const MoverReport&) = default;
};

// ---- Of the mover
// Whether it serves. If not, why: the facts mean nothing, and it ends.
struct MoverReady {
  uint32_t version = kMoverVersion;
  Status status;
  GpuFacts facts;
};
struct MoverFigures {
  GpuMemory memory;
  uint64_t host_bytes = 0;        // Of host arenas.
  uint64_t registered_bytes = 0;  // Of them: copied directly. The rest goes through staging.
  uint64_t direct_bytes = 0;      // Copied to and from host arenas since the start, so
  uint64_t staged_bytes = 0;      // or so.
  std::string registration;       // Why the last piece was refused that was; it stays staged.
  friend bool operator==(const MoverFigures&, const MoverFigures&) = default;
};
// To every request. What it does not ask for is zero. `stale` and `unavailable` are the mover's
// last words: it ends, and what was in flight is answered so too.
struct MoverAnswer {
  Status status;
  MoverFigures figures;  // To MoverReport.
  IpcHandle handle{};    // To MoverAllocate.
};

using MoverBody =
    std::variant<MoverReady, MoverAnswer, MoverCreate, MoverImport, MoverAllocate, MoverOpen,
                 MoverHost, MoverRelease, MoverCopies, MoverClear, MoverPages, MoverReport>;

struct MoverMessage {
  uint64_t request = 0;
  uint16_t descriptors = 0;  // That travel with it: 0 or 1.
  MoverBody body;
};

// The packet. The message is one that DecodeMover takes: this side is not told wrong by itself.
std::vector<uint8_t> EncodeMover(const MoverMessage& message);

// `invalid_argument`: "copies: copies[3].bytes: the message ends before it". What is checked is the
// form: places and sizes mean something to whoever knows the arenas.
Result<MoverMessage> DecodeMover(std::span<const uint8_t> packet);

// The request that a packet of at least a header is of, for an answer to what does not decode.
uint64_t RequestOfMover(std::span<const uint8_t> packet);

}  // namespace terrace
