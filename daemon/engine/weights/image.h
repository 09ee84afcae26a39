// Image: where each tensor of a weight set lies, and what follows from that: the blocks, the
// manifest and the digests.
//
// Tensors follow each other in the natural order of their names ("layers.2" before "layers.10"), so
// that a layer is contiguous, each at the next multiple of manifest::kTensorAlignment. The image is
// cut into blocks of block_bytes; the last one ends with the image, and its memory is rounded up to
// kBlockGranularity. The order depends on nothing but the names: shards do not show.
//
// Thread safety: functions and values without hidden state.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/digest.h"
#include "base/status.h"
#include "tiers/tier.h"

namespace terrace::weights {

inline constexpr uint64_t kBlockGranularity = 4096;
inline constexpr uint64_t kMaxBlockBytes = 512u << 20;
inline constexpr uint64_t kBlocksAMessage = 253;  // Descriptors that fit one message.
inline constexpr uint64_t kMaxImageBytes = uint64_t{1} << 48;

struct ImageTensor {
  uint32_t spec = 0;  // Index into WeightSource::tensors().
  uint64_t offset = 0;
  uint64_t bytes = 0;
};

struct Image {
  std::vector<ImageTensor> tensors;  // In the order of the image.
  std::vector<uint32_t> by_name;     // Indexes into `tensors`, names in bytewise order.
  uint64_t bytes = 0;                // A multiple of the alignment.
  uint64_t tensor_bytes = 0;         // Without the gaps.
  uint64_t block_bytes = 0;

  uint32_t blocks() const { return static_cast<uint32_t>((bytes + block_bytes - 1) / block_bytes); }
  uint64_t BlockBegin(uint32_t block) const { return block * block_bytes; }
  uint64_t BlockEnd(uint32_t block) const {
    return block + 1 < blocks() ? (block + 1) * block_bytes : bytes;
  }
  // Of its arena.
  uint64_t BlockMemory(uint32_t block) const {
    return (BlockEnd(block) - BlockBegin(block) + kBlockGranularity - 1) / kBlockGranularity *
           kBlockGranularity;
  }
  // The first tensor of `tensors` that ends after `offset`; empty tensors count as one byte.
  size_t FirstEndingAfter(uint64_t offset) const;
};

// `wanted` block bytes, doubled up to kMaxBlockBytes while the image has more than kBlocksAMessage.
uint64_t ChooseBlockBytes(uint64_t image_bytes, uint64_t wanted);
// Refuses a set without a byte, and one beyond the limits of image and manifest.
Result<Image> PlanImage(const std::vector<TensorSpec>& specs, uint64_t wanted_block_bytes);

// "model.layers.7.mlp.up_proj.weight" is of layer 7; manifest::kNoLayer for names without a layer.
uint32_t LayerOf(std::string_view name);
// Sorts bytewise as `name` does where runs of digits count as numbers. Names have less than 2^16
// bytes.
std::string NaturalKey(std::string_view name);

// What the headers say: names, dtypes and shapes, in bytewise order of the names.
Digest ListingDigest(const std::vector<TensorSpec>& specs, const Image& image);
// docs/keys.md, "content digest". `digests` has one for each of image.tensors: SHA-256 of its
// bytes.
Digest ContentDigest(const std::vector<TensorSpec>& specs, const Image& image,
                     const std::vector<Digest>& digests);
// What registering or loading a source needs to know of it.
struct Plan {
  Image image;
  Digest listing;
};
// Of all of the source's tensors, made on its threads; `done` as by WeightSource::Run.
void PlanOf(const std::shared_ptr<WeightSource>& source, uint64_t wanted_block_bytes,
            std::function<void(Result<Plan>)> done);
// The bytes of the manifest (proto/manifest.h).
std::vector<uint8_t> BuildManifest(const std::vector<TensorSpec>& specs, const Image& image,
                                   const Digest& content);

}  // namespace terrace::weights
