// What the engine's verbs take and answer: models and their weights.
#pragma once

#include <cstdint>
#include <string>

#include "base/digest.h"
#include "daemon/engine/client_verbs.h"
#include "tiers/tier.h"

namespace terrace {

struct ModelSpec {
  std::string name;
  std::string version;
  TenantId tenant = 0;  // Who adds it: may attach it from then on, others when granted. 0: nobody.
  SourceRequest source;
  bool import_image = false;  // Load it, and write its image to a file that later loads read.
  Progress progress = {};     // Of that.
};
struct ModelAdded {
  uint32_t tensors = 0;
  uint64_t bytes = 0;
  uint32_t blocks = 0;
  bool durable = false;
  std::string why_not;
  bool imported = false;
  std::string why_not_imported;  // Empty also where nobody asked for it.
};
struct ModelLoaded {
  std::string version;
  uint64_t bytes = 0;
  Digest digest;
  uint32_t device = 0;  // In whose memory they are; 0: that of the host.
};
struct Attached {
  uint64_t attachment = 0;
  std::string version;
  Digest digest;
  uint64_t manifest_bytes = 0;
  ArenaId manifest = 0;   // Sealed; of manifest_bytes, rounded up to 4096. Lasts until Detach.
  uint32_t device = 0;    // Where its blocks are.
  bool arriving = false;  // The load runs; `digest` is what is on record, or zeros.
};
// What an arriving attachment has come to.
struct Arrival {
  bool arriving = false;  // The load runs on.
  Digest digest;          // Likewise.
};
struct Unloaded {
  uint64_t freed_bytes = 0;
  uint64_t held_bytes = 0;
};
}  // namespace terrace
