// SpaceRecord: what the journal keeps of a space that has pages in the store, so that a restarted
// daemon knows whose they are and what they mean before anybody opens the space.
//
// Key: "space/" and the space's id in hex. Value, all numbers little-endian:
//   u32 format (kSpaceRecordFormat)
//   text tenant, text model
//   32 bytes digest of the weights, 32 bytes of the adapter, text salt
//   text dtype; u32 layers, kv heads, head size, page tokens, planes; text order
// where a text is a u32 length and its bytes. Nothing follows. A record of another format, one that
// does not end where it should, or whose id is not that of its fields, is refused.
#pragma once

#include <string>
#include <string_view>

#include "base/digest.h"
#include "base/status.h"
#include "daemon/engine/engine.h"

namespace terrace {

inline constexpr uint32_t kSpaceRecordFormat = 1;
inline constexpr std::string_view kSpaceRecordPrefix = "space/";

struct SpaceRecord {
  Digest id;
  std::string tenant;
  SpaceSpec spec;
};

// Of the tenant's space with that specification.
Digest SpaceIdOf(const std::string& tenant, const SpaceSpec& spec);
// A word that differs between layouts: it is kept with each stored page.
uint64_t LayoutFingerprint(const KvLayout& layout);

std::string SpaceRecordKey(const Digest& id);
std::string EncodeSpaceRecord(const SpaceRecord& record);
Result<SpaceRecord> DecodeSpaceRecord(std::string_view key, std::string_view value);

}  // namespace terrace
