// For verbs*.cc only: the messages that are reused, and how a frame becomes one.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "daemon/service/verbs.h"
#include "proto/wire.pb.h"

namespace terrace {

// Clear() keeps the memory of repeated fields, so the verbs on pages come to allocate nothing. What
// one huge message has left there is given back: see Trim.
struct Verbs::Messages {
  static constexpr size_t kMaxKept = 1u << 20;

  wire::Grant grant;
  wire::GrantReply grant_reply;
  wire::Commit commit;
  wire::CommitReply commit_reply;
  std::vector<Digest> keys;
  std::vector<GrantGiven> given;
  std::vector<Code> codes;

  // To be called after a large frame. Replies are bounded by the pages of a message.
  void Trim() {
    if (grant.SpaceUsedLong() > kMaxKept) grant = wire::Grant();
    if (commit.SpaceUsedLong() > kMaxKept) commit = wire::Commit();
  }
};

template <typename Message>
Status ParseFrame(const Frame& frame, Message* message) {
  if (message->ParseFromArray(frame.message.data(), static_cast<int>(frame.message.size()))) {
    return {};
  }
  return {Code::kInvalidArgument,
          "the frame does not hold a message of type " + message->GetTypeName()};
}

// Most messages are small and rare.
template <typename Message>
Result<Message> ParseFrame(const Frame& frame) {
  Message message;
  RETURN_IF_ERROR(ParseFrame(frame, &message));
  return message;
}

inline Status TooMany(const char* field, int64_t count, int64_t limit) {
  return {Code::kInvalidArgument, std::string(field) + ": " + std::to_string(count) +
                                      " of them, at most " + std::to_string(limit) +
                                      " are allowed"};
}

// For what names a device: whoever did not say that it knows of them is given nothing of theirs.
inline Status CheckKnowsDevice(const Caller& caller, uint32_t device) {
  if (device == 0 || (caller.capabilities & wire::kDeviceCapability) != 0) return {};
  return {Code::kMismatch, "device: " + std::to_string(device) +
                               ", and this client did not announce the capability of devices"};
}

inline void FillArena(const ArenaFacts& facts, bool writable, wire::Arena* arena) {
  arena->set_id(facts.id);
  arena->set_bytes(facts.bytes);
  arena->set_page_bytes(facts.page_bytes);
  const shm::Tier tier = facts.device == 0 ? shm::Tier::kHost : shm::Tier::kDevice;
  arena->set_tier(static_cast<uint32_t>(tier));
  arena->set_device(facts.device);
  arena->set_writable(writable);
}

inline std::string DigestBytes(const Digest& digest) {
  return {reinterpret_cast<const char*>(digest.bytes.data()), digest.bytes.size()};
}

// 32 bytes; or nothing, which is the zero digest, where the field may be left out.
inline Result<Digest> DigestField(const char* field, const std::string& bytes, bool optional) {
  Digest digest;
  if (optional && bytes.empty()) return digest;
  if (bytes.size() != digest.bytes.size()) {
    return Status(Code::kInvalidArgument, std::string(field) + ": " + std::to_string(bytes.size()) +
                                              " bytes, a digest has 32");
  }
  std::memcpy(digest.bytes.data(), bytes.data(), bytes.size());
  return digest;
}

}  // namespace terrace
