// The frame header and the message types of the Unix socket.
//
// A connection is a byte stream of frames: a header of 16 bytes and then `length` bytes of one
// protobuf message (wire.proto), whose type the header names. `fds` descriptors travel with the
// frame's first byte (SCM_RIGHTS), at most 253. docs/protocol.md has the order of the verbs.
#pragma once

#include <cstdint>
#include <cstring>
#include <span>

#include "proto/shared_memory.h"

namespace terrace::wire {

// The versions that this code speaks. A connection uses the highest that both sides do.
inline constexpr uint32_t kProtocolVersionMin = 2;
inline constexpr uint32_t kProtocolVersion = 2;
// A layout of shared memory bears the number of the version that brought it, and older versions are
// spoken no more: who cannot use the memory is refused by its hello, before it maps any.
static_assert(kProtocolVersionMin >= shm::kLayoutVersion);

// What has been added within a version: bits of Hello.capabilities (what the client knows) and of
// HelloReply.capabilities (of these, what the daemon does). Bits of later releases are ignored.
enum Capability : uint64_t {
  kModelAccessCapability = 1 << 0,  // The verb ModelAccess.
  kStoreCapability = 1 << 1,        // The verbs Prefetch, Persist, Demote, Flush.
  kStoreCareCapability = 1 << 2,    // The verbs Promote and Fsck.
  kDeviceCapability = 1 << 3,       // Memory of devices: verbs, fields, and entries of directories.
};
inline constexpr uint64_t kCapabilities =
    kModelAccessCapability | kStoreCapability | kStoreCareCapability | kDeviceCapability;

inline constexpr uint32_t kMaxFrameBytes = 8u << 20;  // Of the message, without its header.
inline constexpr uint16_t kMaxFds = 253;              // The kernel's SCM_MAX_FD.
inline constexpr size_t kFrameHeaderBytes = 16;

// Requests are even, their replies the next odd number; events have no request. kError may answer
// any request.
enum class Type : uint16_t {
  kError = 1,
  kHello = 2,
  kHelloReply = 3,
  kPing = 4,
  kPingReply = 5,
  kGoodbye = 6,
  kGoodbyeReply = 7,
  kDirectory = 8,
  kDirectoryReply = 9,
  kArenas = 10,
  kArenasReply = 11,
  kOpenSpace = 12,
  kOpenSpaceReply = 13,
  kGrant = 14,
  kGrantReply = 15,
  kCommit = 16,
  kCommitReply = 17,
  kAbort = 18,
  kAbortReply = 19,
  kDrop = 20,
  kDropReply = 21,
  kModelAdd = 22,
  kModelAddReply = 23,
  kModelRemove = 24,
  kModelRemoveReply = 25,
  kLoad = 26,
  kLoadReply = 27,
  kUnload = 28,
  kUnloadReply = 29,
  kAttach = 30,
  kAttachReply = 31,
  kAttachBlocks = 32,
  kAttachBlocksReply = 33,  // One or more frames; the last says so.
  kDetach = 34,
  kDetachReply = 35,
  kEvict = 36,
  kEvictReply = 37,
  kReport = 38,
  kReportReply = 39,
  kCloseSpace = 40,
  kCloseSpaceReply = 41,
  kModelAccess = 42,
  kModelAccessReply = 43,
  kPrefetch = 44,
  kPrefetchReply = 45,
  kPersist = 46,
  kPersistReply = 47,
  kDemote = 48,
  kDemoteReply = 49,
  kFlush = 50,
  kFlushReply = 51,
  kAttachWait = 52,
  kAttachWaitReply = 53,
  kPromote = 54,
  kPromoteReply = 55,
  kFsck = 56,
  kFsckReply = 57,
  kDevices = 58,
  kDevicesReply = 59,
  kLetGo = 60,
  kLetGoReply = 61,
  kPoolAdd = 62,
  kPoolAddReply = 63,
  kPoolRemove = 64,
  kPoolRemoveReply = 65,
  kPoolStore = 66,
  kPoolStoreReply = 67,
  kPoolFetch = 68,
  kPoolFetchReply = 69,

  kProgressEvent = 101,      // Of a verb that takes long; carries the request's id.
  kGrantExpiredEvent = 103,  // Grants whose deadline passed: abort them to give the memory back.
  kUnmapEvent = 105,         // Arenas that are gone: unmap them.
  kUnmapWantedEvent = 107,   // Memory of a device that is asked back, or was lost.
};

// Little-endian on the wire.
struct FrameHeader {
  uint32_t length = 0;  // Bytes of the message.
  Type type = Type::kError;
  uint16_t fds = 0;
  uint64_t request =
      0;  // Chosen by the client, echoed in the reply; 0 in events without a request.
};
static_assert(sizeof(FrameHeader) == kFrameHeaderBytes);

inline void EncodeHeader(const FrameHeader& header, std::span<uint8_t, kFrameHeaderBytes> out) {
  std::memcpy(out.data(), &header, sizeof header);
}
inline FrameHeader DecodeHeader(std::span<const uint8_t, kFrameHeaderBytes> in) {
  FrameHeader header;
  std::memcpy(&header, in.data(), sizeof header);
  return header;
}

}  // namespace terrace::wire
