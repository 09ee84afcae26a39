// The manifest of a weight set: a read-only memory that says where each tensor lies.
//
// A weight set is one linear image of `image_bytes`: tensors at offsets aligned to 256 bytes, cut
// into blocks of `block_bytes` (the last one may be shorter; its memory is rounded up to 4096). A
// client maps the blocks it wants side by side at their place of the image, so a tensor that
// crosses a border is still contiguous. Tensors lie in the natural order of their names, so that
// the tensors of a layer are neighbours; an empty tensor has an offset of at most image_bytes.
//
// Layout of the memfd, all little-endian: ManifestHeader, then `tensors` TensorRecords sorted by
// name (bytewise), then the strings that they point to. It is written by the daemon and sealed
// against any later write; a client may trust it as far as it trusts the daemon.
// docs/shared_memory.md specifies it; the two change together, with kManifestVersion.
#pragma once

#include <cstdint>

namespace terrace::manifest {

inline constexpr uint64_t kManifestMagic = 0x314e414d43525254;  // "TRRCMAN1" in memory order.
inline constexpr uint32_t kManifestVersion = 1;
inline constexpr uint32_t kTensorAlignment = 256;
inline constexpr uint32_t kMaxRank = 8;
inline constexpr uint32_t kNoLayer = 0xffffffff;

struct ManifestHeader {
  uint64_t magic;
  uint32_t version;
  uint32_t tensors;
  uint64_t image_bytes;
  uint64_t block_bytes;
  uint32_t blocks;
  uint32_t layers;          // 1 + the highest layer number of a tensor's name; 0 if none has one.
  uint64_t strings_offset;  // Of the string area, from the start of the manifest.
  uint64_t strings_bytes;
  uint8_t digest[32];  // Content digest (docs/keys.md); zeros if made before it was known.
};
static_assert(sizeof(ManifestHeader) == 88);

struct TensorRecord {
  uint64_t offset;  // In the image.
  uint64_t bytes;
  uint64_t shape[kMaxRank];  // The first `rank` count; the others are 0.
  uint32_t rank;
  uint32_t name_offset;  // In the string area; not zero-terminated.
  uint32_t name_bytes;
  uint32_t layer;  // Number after "layers.", "h." or "blocks." in the name, or kNoLayer.
  char dtype[16];  // The safetensors word ("BF16"), zero-padded.
};
static_assert(sizeof(TensorRecord) == 112);

}  // namespace terrace::manifest
