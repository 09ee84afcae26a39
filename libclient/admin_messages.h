// The messages of the operator's verbs: see messages.h.
#pragma once

#include "libclient/messages.h"

namespace terrace::messages {

struct ModelAdd {
  static constexpr wire::Type kType = wire::Type::kModelAdd;
  using Reply = struct ModelAddReply;
  std::string name;
  std::string version;
  std::vector<std::string> files;
  std::string index;
  bool import_image = false;
  static auto Fields(auto& m) {
    return std::tie(m.name, m.version, m.files, m.index, m.import_image);
  }
};

struct ModelAddReply {
  static constexpr wire::Type kType = wire::Type::kModelAddReply;
  uint32_t tensors = 0;
  uint64_t bytes = 0;
  uint32_t blocks = 0;
  bool durable = false;
  std::string why_not;
  bool imported = false;
  std::string why_not_imported;
  static auto Fields(auto& m) {
    return std::tie(m.tensors, m.bytes, m.blocks, m.durable, m.why_not, m.imported,
                    m.why_not_imported);
  }
};

struct ModelRemove {
  static constexpr wire::Type kType = wire::Type::kModelRemove;
  using Reply = struct ModelRemoveReply;
  std::string name;
  std::string version;
  static auto Fields(auto& m) { return std::tie(m.name, m.version); }
};

struct ModelRemoveReply {
  static constexpr wire::Type kType = wire::Type::kModelRemoveReply;
  static auto Fields(auto&) { return std::tie(); }
};

struct ModelAccess {
  static constexpr wire::Type kType = wire::Type::kModelAccess;
  using Reply = struct ModelAccessReply;
  std::string name;
  std::string tenant;
  bool granted = false;
  static auto Fields(auto& m) { return std::tie(m.name, m.tenant, m.granted); }
};

struct ModelAccessReply {
  static constexpr wire::Type kType = wire::Type::kModelAccessReply;
  static auto Fields(auto&) { return std::tie(); }
};

// In place of the number of a device: the daemon chooses.
inline constexpr uint32_t kAnyDevice = UINT32_MAX;

struct Load {
  static constexpr wire::Type kType = wire::Type::kLoad;
  using Reply = struct LoadReply;
  std::string name;
  std::string version;
  uint32_t device = 0;  // Or kAnyDevice.
  static auto Fields(auto& m) { return std::tie(m.name, m.version, m.device); }
};

struct ProgressEvent {
  static constexpr wire::Type kType = wire::Type::kProgressEvent;
  uint64_t done_bytes = 0;
  uint64_t total_bytes = 0;
  static auto Fields(auto& m) { return std::tie(m.done_bytes, m.total_bytes); }
};

struct LoadReply {
  static constexpr wire::Type kType = wire::Type::kLoadReply;
  std::string version;
  uint64_t bytes = 0;
  std::string digest;
  uint32_t device = 0;
  static auto Fields(auto& m) { return std::tie(m.version, m.bytes, m.digest, m.device); }
};

struct Unload {
  static constexpr wire::Type kType = wire::Type::kUnload;
  using Reply = struct UnloadReply;
  std::string name;
  std::string version;
  uint32_t device = 0;
  static auto Fields(auto& m) { return std::tie(m.name, m.version, m.device); }
};

struct UnloadReply {
  static constexpr wire::Type kType = wire::Type::kUnloadReply;
  uint64_t freed_bytes = 0;
  uint64_t held_bytes = 0;
  static auto Fields(auto& m) { return std::tie(m.freed_bytes, m.held_bytes); }
};

struct Evict {
  static constexpr wire::Type kType = wire::Type::kEvict;
  using Reply = struct EvictReply;
  uint64_t bytes = 0;
  static auto Fields(auto& m) { return std::tie(m.bytes); }
};

struct EvictReply {
  static constexpr wire::Type kType = wire::Type::kEvictReply;
  uint64_t pages = 0;
  uint64_t blocks = 0;
  uint64_t bytes = 0;
  static auto Fields(auto& m) { return std::tie(m.pages, m.blocks, m.bytes); }
};

struct Demote {
  static constexpr wire::Type kType = wire::Type::kDemote;
  using Reply = struct DemoteReply;
  uint64_t bytes = 0;
  uint32_t device = 0;
  static auto Fields(auto& m) { return std::tie(m.bytes, m.device); }
};

struct DemoteReply {
  static constexpr wire::Type kType = wire::Type::kDemoteReply;
  uint64_t pages = 0;
  uint64_t bytes = 0;
  static auto Fields(auto& m) { return std::tie(m.pages, m.bytes); }
};

struct Promote {
  static constexpr wire::Type kType = wire::Type::kPromote;
  using Reply = struct PromoteReply;
  std::string tenant;
  std::string space_id;
  uint64_t bytes = 0;
  bool no_wait = false;
  static auto Fields(auto& m) { return std::tie(m.tenant, m.space_id, m.bytes, m.no_wait); }
};

struct PromoteReply {
  static constexpr wire::Type kType = wire::Type::kPromoteReply;
  uint64_t pages = 0;
  uint64_t bytes = 0;
  static auto Fields(auto& m) { return std::tie(m.pages, m.bytes); }
};

struct Fsck {
  static constexpr wire::Type kType = wire::Type::kFsck;
  using Reply = struct FsckReply;
  bool read_data = false;
  bool repair = false;
  static auto Fields(auto& m) { return std::tie(m.read_data, m.repair); }
};

struct FsckReply {
  static constexpr wire::Type kType = wire::Type::kFsckReply;
  std::string json;
  static auto Fields(auto& m) { return std::tie(m.json); }
};

struct Flush {
  static constexpr wire::Type kType = wire::Type::kFlush;
  using Reply = struct FlushReply;
  static auto Fields(auto&) { return std::tie(); }
};

struct FlushReply {
  static constexpr wire::Type kType = wire::Type::kFlushReply;
  static auto Fields(auto&) { return std::tie(); }
};

struct Report {
  static constexpr wire::Type kType = wire::Type::kReport;
  using Reply = struct ReportReply;
  std::string what;
  std::string space;
  uint32_t limit = 0;
  static auto Fields(auto& m) { return std::tie(m.what, m.space, m.limit); }
};

struct ReportReply {
  static constexpr wire::Type kType = wire::Type::kReportReply;
  std::string json;
  static auto Fields(auto& m) { return std::tie(m.json); }
};

}  // namespace terrace::messages
