// Version: one registered version of a model, as Weights and its loads know it.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/digest.h"
#include "daemon/engine/report.h"
#include "daemon/engine/weights/checks.h"
#include "daemon/engine/weights/image.h"
#include "tiers/tier.h"

namespace terrace::weights {

struct Block {
  ArenaId arena = 0;   // 0: not resident.
  uint32_t holds = 0;  // By attachments, and by the running load. Only resident blocks are held.
};

struct Version {
  std::string name;
  std::string version;
  uint64_t ordinal = 0;

  // Known from the start, also after a restart.
  uint32_t tensors = 0;
  uint64_t tensor_bytes = 0;
  uint64_t image_bytes = 0;
  Digest listing;
  Digest digest;  // Zero until loaded once.
  std::vector<SourceFile> files;
  bool recorded = false;  // The journal has its record, or is about to.
  bool durable = false;   // It has.
  std::string why_not;

  // Null from a restart to the first load.
  std::shared_ptr<WeightSource> source;
  std::shared_ptr<const Image> image;

  std::shared_ptr<const Checks> checks;  // Null until loaded once.
  std::string image_problem;  // Why the last load, or import, did without the image file.
  LoadedBy loaded;            // How the bytes of the last load came.

  // What is published.
  std::vector<Block> blocks;
  std::vector<Digest> tensor_digests;  // In image order; empty until loaded in this life.
  ArenaId manifest = 0;                // Lasts while a block is resident or a client attached.
  uint64_t manifest_bytes = 0;
  uint32_t resident_blocks = 0;
  uint32_t attachments = 0;

  bool loading = false;
  bool let_go = false;   // Unloaded or removed: a block goes when nobody holds it any more.
  bool removed = false;  // Not registered any more.
  std::string failure;   // Of the last load; empty when it succeeded.

  // "model 'x' version 'y'", for messages, and what its image is kept by.
  std::string ImageLabel() const { return name + "@" + version; }
  std::string Label() const { return "model '" + name + "' version '" + version + "'"; }
  bool Complete() const {
    return image != nullptr && resident_blocks == blocks.size() && manifest != 0;
  }
};

inline uint64_t RoundUpToBlockGranularity(uint64_t bytes) {
  return (bytes + kBlockGranularity - 1) / kBlockGranularity * kBlockGranularity;
}

}  // namespace terrace::weights
