// What the engine's verbs take and answer: tenants, clients and spaces.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "base/digest.h"
#include "daemon/engine/layout.h"
#include "daemon/engine/tenant_index.h"

namespace terrace {

using TenantId = uint32_t;

// Told now and then by what takes long, before its completion.
using Progress = std::function<void(uint64_t done_bytes, uint64_t total_bytes)>;

struct ClientSpec {
  TenantId tenant = 0;
  std::string name;
  int64_t pid = 0;
  uint32_t uid = 0;
  bool writer = false;
  uint32_t max_pins = 0;  // Wanted; 0: the default.
};
struct ClientGiven {
  ClientId id = 0;
  uint32_t max_pins = 0;
  uint64_t max_pinned_bytes = 0;
  uint32_t max_grants = 0;
};

struct SpaceSpec {
  Digest weights;
  Digest adapter;
  std::vector<uint8_t> salt;
  KvLayout layout;
  std::string model;  // Empty: fenced by no model.
};
struct SpaceGiven {
  Digest id;
  uint32_t slot = 0;
  uint32_t epoch = 0;
  uint32_t generation_index = 0;
  uint64_t generation = 0;
  uint32_t page_bytes = 0;
  KvLayout layout;
};

}  // namespace terrace
