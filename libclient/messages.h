// The messages of the Unix socket as plain structs, encoded and decoded without protobuf.
//
// They mirror proto/wire.proto field by field, where every message numbers its fields from 1
// without gaps: Fields() lists them in that order, and the codec takes a field's number from its
// place. A test compares both directions with protoc's classes, so that the two cannot drift apart.
// admin_messages.h has the operator's verbs. Thread safety: values.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <tuple>
#include <vector>

#include "base/status.h"
#include "proto/frame.h"

namespace terrace::messages {

// Appends the encoding of `message` to `out`: the bytes that protoc's classes write.
template <class Message>
void Encode(const Message& message, std::string* out);
// Replaces `message` by what `bytes` encode; unknown fields are skipped. False if they are not a
// message of this kind, which leaves `message` partly filled.
template <class Message>
[[nodiscard]] bool Decode(std::string_view bytes, Message* message);

// The code of a page in a reply; numbers of a newer daemon count as internal.
inline Code PageCodeOf(uint32_t number) {
  return number < static_cast<uint32_t>(kCodeCount) ? static_cast<Code>(number) : Code::kInternal;
}

struct Error {
  static constexpr wire::Type kType = wire::Type::kError;
  uint32_t code = 0;
  std::string message;
  static auto Fields(auto& m) { return std::tie(m.code, m.message); }
};

struct Hello {
  static constexpr wire::Type kType = wire::Type::kHello;
  using Reply = struct HelloReply;
  uint32_t version_min = 0;
  uint32_t version_max = 0;
  std::string name;
  bool writer = false;
  uint64_t resume_client = 0;
  uint64_t resume_token = 0;
  uint32_t max_pins = 0;
  uint64_t capabilities = 0;
  static auto Fields(auto& m) {
    return std::tie(m.version_min, m.version_max, m.name, m.writer, m.resume_client, m.resume_token,
                    m.max_pins, m.capabilities);
  }
};

struct HelloReply {
  static constexpr wire::Type kType = wire::Type::kHelloReply;
  uint32_t version = 0;
  uint64_t client = 0;
  uint64_t token = 0;
  uint64_t life = 0;
  bool resumed = false;
  std::string tenant;
  bool writer = false;
  uint32_t max_pins = 0;
  uint64_t max_pinned_bytes = 0;
  uint32_t max_grants = 0;
  uint64_t host_capacity_bytes = 0;
  std::string daemon_version;
  uint64_t capabilities = 0;
  static auto Fields(auto& m) {
    return std::tie(m.version, m.client, m.token, m.life, m.resumed, m.tenant, m.writer, m.max_pins,
                    m.max_pinned_bytes, m.max_grants, m.host_capacity_bytes, m.daemon_version,
                    m.capabilities);
  }
};

struct Ping {
  static constexpr wire::Type kType = wire::Type::kPing;
  using Reply = struct PingReply;
  static auto Fields(auto&) { return std::tie(); }
};

struct PingReply {
  static constexpr wire::Type kType = wire::Type::kPingReply;
  static auto Fields(auto&) { return std::tie(); }
};

struct Goodbye {
  static constexpr wire::Type kType = wire::Type::kGoodbye;
  using Reply = struct GoodbyeReply;
  static auto Fields(auto&) { return std::tie(); }
};

struct GoodbyeReply {
  static constexpr wire::Type kType = wire::Type::kGoodbyeReply;
  static auto Fields(auto&) { return std::tie(); }
};

struct Directory {
  static constexpr wire::Type kType = wire::Type::kDirectory;
  using Reply = struct DirectoryReply;
  static auto Fields(auto&) { return std::tie(); }
};

struct DirectoryReply {
  static constexpr wire::Type kType = wire::Type::kDirectoryReply;
  uint64_t directory_id = 0;
  static auto Fields(auto& m) { return std::tie(m.directory_id); }
};

struct Arena {
  uint32_t id = 0;
  uint64_t bytes = 0;
  uint32_t page_bytes = 0;
  uint32_t tier = 0;
  bool writable = false;
  uint32_t device = 0;
  std::string handle;
  static auto Fields(auto& m) {
    return std::tie(m.id, m.bytes, m.page_bytes, m.tier, m.writable, m.device, m.handle);
  }
};

struct Arenas {
  static constexpr wire::Type kType = wire::Type::kArenas;
  using Reply = struct ArenasReply;
  std::vector<uint32_t> ids;
  bool writable = false;
  static auto Fields(auto& m) { return std::tie(m.ids, m.writable); }
};

struct ArenasReply {
  static constexpr wire::Type kType = wire::Type::kArenasReply;
  std::vector<Arena> arenas;
  static auto Fields(auto& m) { return std::tie(m.arenas); }
};

struct Layout {
  std::string dtype;
  uint32_t layers = 0;
  uint32_t kv_heads = 0;
  uint32_t head_size = 0;
  uint32_t page_tokens = 0;
  uint32_t planes = 0;
  std::string order;
  static auto Fields(auto& m) {
    return std::tie(m.dtype, m.layers, m.kv_heads, m.head_size, m.page_tokens, m.planes, m.order);
  }
};

struct OpenSpace {
  static constexpr wire::Type kType = wire::Type::kOpenSpace;
  using Reply = struct OpenSpaceReply;
  std::string weights_digest;
  std::string adapter_digest;
  std::string salt;
  std::optional<Layout> layout;
  std::string model;
  std::string space_id;
  static auto Fields(auto& m) {
    return std::tie(m.weights_digest, m.adapter_digest, m.salt, m.layout, m.model, m.space_id);
  }
};

struct OpenSpaceReply {
  static constexpr wire::Type kType = wire::Type::kOpenSpaceReply;
  std::string space_id;
  uint32_t slot = 0;
  uint32_t epoch = 0;
  uint32_t generation_index = 0;
  uint64_t generation = 0;
  uint32_t page_bytes = 0;
  std::optional<Layout> layout;
  static auto Fields(auto& m) {
    return std::tie(m.space_id, m.slot, m.epoch, m.generation_index, m.generation, m.page_bytes,
                    m.layout);
  }
};

struct CloseSpace {
  static constexpr wire::Type kType = wire::Type::kCloseSpace;
  using Reply = struct CloseSpaceReply;
  uint32_t slot = 0;
  uint32_t epoch = 0;
  static auto Fields(auto& m) { return std::tie(m.slot, m.epoch); }
};

struct CloseSpaceReply {
  static constexpr wire::Type kType = wire::Type::kCloseSpaceReply;
  static auto Fields(auto&) { return std::tie(); }
};

struct Grant {
  static constexpr wire::Type kType = wire::Type::kGrant;
  using Reply = struct GrantReply;
  uint32_t slot = 0;
  uint32_t epoch = 0;
  uint32_t part = 0;
  std::string keys;
  uint32_t deadline_ms = 0;
  std::string parent;
  uint32_t position = 0;
  uint32_t device = 0;
  static auto Fields(auto& m) {
    return std::tie(m.slot, m.epoch, m.part, m.keys, m.deadline_ms, m.parent, m.position, m.device);
  }
};

struct GrantReply {
  static constexpr wire::Type kType = wire::Type::kGrantReply;
  std::vector<uint32_t> codes;
  std::vector<uint64_t> grants;
  std::vector<uint64_t> handles;
  std::vector<Arena> arenas;
  static auto Fields(auto& m) { return std::tie(m.codes, m.grants, m.handles, m.arenas); }
};

struct Commit {
  static constexpr wire::Type kType = wire::Type::kCommit;
  using Reply = struct CommitReply;
  std::vector<uint64_t> grants;
  std::vector<uint32_t> valid_tokens;
  static auto Fields(auto& m) { return std::tie(m.grants, m.valid_tokens); }
};

struct CommitReply {
  static constexpr wire::Type kType = wire::Type::kCommitReply;
  std::vector<uint32_t> codes;
  static auto Fields(auto& m) { return std::tie(m.codes); }
};

struct Abort {
  static constexpr wire::Type kType = wire::Type::kAbort;
  using Reply = struct AbortReply;
  std::vector<uint64_t> grants;
  static auto Fields(auto& m) { return std::tie(m.grants); }
};

struct AbortReply {
  static constexpr wire::Type kType = wire::Type::kAbortReply;
  static auto Fields(auto&) { return std::tie(); }
};

struct Drop {
  static constexpr wire::Type kType = wire::Type::kDrop;
  using Reply = struct DropReply;
  uint32_t slot = 0;
  uint32_t epoch = 0;
  uint32_t part = 0;
  std::string keys;
  static auto Fields(auto& m) { return std::tie(m.slot, m.epoch, m.part, m.keys); }
};

struct DropReply {
  static constexpr wire::Type kType = wire::Type::kDropReply;
  uint32_t dropped = 0;
  static auto Fields(auto& m) { return std::tie(m.dropped); }
};

struct Prefetch {
  static constexpr wire::Type kType = wire::Type::kPrefetch;
  using Reply = struct PrefetchReply;
  uint32_t slot = 0;
  uint32_t epoch = 0;
  uint32_t part = 0;
  std::string keys;
  uint32_t deadline_ms = 0;
  uint32_t min_percent = 0;
  uint32_t recompute_us = 0;
  uint32_t device = 0;
  static auto Fields(auto& m) {
    return std::tie(m.slot, m.epoch, m.part, m.keys, m.deadline_ms, m.min_percent, m.recompute_us,
                    m.device);
  }
};

struct PrefetchReply {
  static constexpr wire::Type kType = wire::Type::kPrefetchReply;
  std::vector<uint32_t> codes;
  uint32_t worth = 0;
  static auto Fields(auto& m) { return std::tie(m.codes, m.worth); }
};

struct Persist {
  static constexpr wire::Type kType = wire::Type::kPersist;
  using Reply = struct PersistReply;
  uint32_t slot = 0;
  uint32_t epoch = 0;
  uint32_t part = 0;
  std::string keys;
  static auto Fields(auto& m) { return std::tie(m.slot, m.epoch, m.part, m.keys); }
};

struct PersistReply {
  static constexpr wire::Type kType = wire::Type::kPersistReply;
  std::vector<uint32_t> codes;
  static auto Fields(auto& m) { return std::tie(m.codes); }
};

struct Attach {
  static constexpr wire::Type kType = wire::Type::kAttach;
  using Reply = struct AttachReply;
  std::string name;
  std::string version;
  bool load = false;
  uint32_t deadline_ms = 0;
  bool early = false;
  uint32_t device = 0;
  static auto Fields(auto& m) {
    return std::tie(m.name, m.version, m.load, m.deadline_ms, m.early, m.device);
  }
};

struct AttachReply {
  static constexpr wire::Type kType = wire::Type::kAttachReply;
  uint64_t attachment = 0;
  std::string version;
  std::string digest;
  uint64_t manifest_bytes = 0;
  bool arriving = false;
  uint32_t device = 0;
  static auto Fields(auto& m) {
    return std::tie(m.attachment, m.version, m.digest, m.manifest_bytes, m.arriving, m.device);
  }
};

struct AttachWait {
  static constexpr wire::Type kType = wire::Type::kAttachWait;
  using Reply = struct AttachWaitReply;
  uint64_t attachment = 0;
  std::vector<uint32_t> blocks;
  uint32_t deadline_ms = 0;
  static auto Fields(auto& m) { return std::tie(m.attachment, m.blocks, m.deadline_ms); }
};

struct AttachWaitReply {
  static constexpr wire::Type kType = wire::Type::kAttachWaitReply;
  bool arriving = false;
  std::string digest;
  static auto Fields(auto& m) { return std::tie(m.arriving, m.digest); }
};

struct AttachBlocks {
  static constexpr wire::Type kType = wire::Type::kAttachBlocks;
  using Reply = struct AttachBlocksReply;
  uint64_t attachment = 0;
  std::vector<uint32_t> blocks;
  static auto Fields(auto& m) { return std::tie(m.attachment, m.blocks); }
};

struct AttachBlocksReply {
  static constexpr wire::Type kType = wire::Type::kAttachBlocksReply;
  std::vector<uint32_t> blocks;
  bool last = false;
  std::vector<std::string> handles;
  static auto Fields(auto& m) { return std::tie(m.blocks, m.last, m.handles); }
};

struct Detach {
  static constexpr wire::Type kType = wire::Type::kDetach;
  using Reply = struct DetachReply;
  uint64_t attachment = 0;
  static auto Fields(auto& m) { return std::tie(m.attachment); }
};

struct DetachReply {
  static constexpr wire::Type kType = wire::Type::kDetachReply;
  static auto Fields(auto&) { return std::tie(); }
};

struct GrantExpiredEvent {
  static constexpr wire::Type kType = wire::Type::kGrantExpiredEvent;
  std::vector<uint64_t> grants;
  static auto Fields(auto& m) { return std::tie(m.grants); }
};

struct UnmapEvent {
  static constexpr wire::Type kType = wire::Type::kUnmapEvent;
  std::vector<uint32_t> arenas;
  static auto Fields(auto& m) { return std::tie(m.arenas); }
};

struct Devices {
  static constexpr wire::Type kType = wire::Type::kDevices;
  using Reply = struct DevicesReply;
  static auto Fields(auto&) { return std::tie(); }
};

struct Device {
  uint32_t number = 0;
  std::string uuid;
  std::string name;
  std::string kind;
  bool slabs = false;
  uint64_t granularity = 0;
  bool serving = false;
  uint64_t capacity_bytes = 0;
  static auto Fields(auto& m) {
    return std::tie(m.number, m.uuid, m.name, m.kind, m.slabs, m.granularity, m.serving,
                    m.capacity_bytes);
  }
};

struct DevicesReply {
  static constexpr wire::Type kType = wire::Type::kDevicesReply;
  std::vector<Device> devices;
  static auto Fields(auto& m) { return std::tie(m.devices); }
};

struct LetGo {
  static constexpr wire::Type kType = wire::Type::kLetGo;
  using Reply = struct LetGoReply;
  std::vector<uint32_t> arenas;
  static auto Fields(auto& m) { return std::tie(m.arenas); }
};

struct LetGoReply {
  static constexpr wire::Type kType = wire::Type::kLetGoReply;
  static auto Fields(auto&) { return std::tie(); }
};

struct PoolAdd {
  static constexpr wire::Type kType = wire::Type::kPoolAdd;
  using Reply = struct PoolAddReply;
  uint32_t device = 0;
  uint64_t bytes = 0;
  std::string handle;
  static auto Fields(auto& m) { return std::tie(m.device, m.bytes, m.handle); }
};

struct PoolAddReply {
  static constexpr wire::Type kType = wire::Type::kPoolAddReply;
  uint64_t pool = 0;
  static auto Fields(auto& m) { return std::tie(m.pool); }
};

struct PoolRemove {
  static constexpr wire::Type kType = wire::Type::kPoolRemove;
  using Reply = struct PoolRemoveReply;
  uint64_t pool = 0;
  static auto Fields(auto& m) { return std::tie(m.pool); }
};

struct PoolRemoveReply {
  static constexpr wire::Type kType = wire::Type::kPoolRemoveReply;
  static auto Fields(auto&) { return std::tie(); }
};

struct PoolPages {
  uint64_t pool = 0;
  std::vector<uint64_t> bases;
  uint64_t block_stride = 0;
  uint64_t block_bytes = 0;
  bool page_first = false;
  uint32_t slot = 0;
  uint32_t epoch = 0;
  uint32_t part = 0;
  std::string keys;
  std::vector<uint32_t> blocks;
  uint32_t blocks_per_page = 0;
  std::vector<uint32_t> valid_tokens;
  std::string parent;
  uint32_t position = 0;
  uint32_t deadline_ms = 0;
  static auto Fields(auto& m) {
    return std::tie(m.pool, m.bases, m.block_stride, m.block_bytes, m.page_first, m.slot, m.epoch,
                    m.part, m.keys, m.blocks, m.blocks_per_page, m.valid_tokens, m.parent,
                    m.position, m.deadline_ms);
  }
};

struct PoolStore {
  static constexpr wire::Type kType = wire::Type::kPoolStore;
  using Reply = struct PoolStoreReply;
  std::optional<PoolPages> pages;
  static auto Fields(auto& m) { return std::tie(m.pages); }
};

struct PoolStoreReply {
  static constexpr wire::Type kType = wire::Type::kPoolStoreReply;
  std::vector<uint32_t> codes;
  static auto Fields(auto& m) { return std::tie(m.codes); }
};

struct PoolFetch {
  static constexpr wire::Type kType = wire::Type::kPoolFetch;
  using Reply = struct PoolFetchReply;
  std::optional<PoolPages> pages;
  static auto Fields(auto& m) { return std::tie(m.pages); }
};

struct PoolFetchReply {
  static constexpr wire::Type kType = wire::Type::kPoolFetchReply;
  std::vector<uint32_t> codes;
  static auto Fields(auto& m) { return std::tie(m.codes); }
};

struct UnmapWantedEvent {
  static constexpr wire::Type kType = wire::Type::kUnmapWantedEvent;
  uint32_t device = 0;
  std::vector<uint32_t> arenas;
  std::vector<uint64_t> attachments;
  uint32_t deadline_ms = 0;
  bool lost = false;
  static auto Fields(auto& m) {
    return std::tie(m.device, m.arenas, m.attachments, m.deadline_ms, m.lost);
  }
};

}  // namespace terrace::messages
