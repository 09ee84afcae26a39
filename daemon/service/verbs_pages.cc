// Verbs on spaces and pages.
#include <algorithm>

#include "daemon/service/verb_messages.h"

namespace terrace {

namespace {

constexpr size_t kMaxSalt = 64;
constexpr size_t kKeyBytes = sizeof(Digest);

KvLayout LayoutOf(const wire::Layout& message) {
  KvLayout layout;
  layout.dtype = message.dtype();
  layout.layers = message.layers();
  layout.kv_heads = message.kv_heads();
  layout.head_size = message.head_size();
  layout.page_tokens = message.page_tokens();
  layout.planes = message.planes();
  layout.order = message.order();
  return layout;
}

void FillLayout(const KvLayout& layout, wire::Layout* message) {
  message->set_dtype(layout.dtype);
  message->set_layers(layout.layers);
  message->set_kv_heads(layout.kv_heads);
  message->set_head_size(layout.head_size);
  message->set_page_tokens(layout.page_tokens);
  message->set_planes(layout.planes);
  message->set_order(layout.order);
}

Result<SpaceSpec> SpecOf(const wire::OpenSpace& message) {
  SpaceSpec spec;
  ASSIGN_OR_RETURN(spec.weights, DigestField("weights_digest", message.weights_digest(), true));
  ASSIGN_OR_RETURN(spec.adapter, DigestField("adapter_digest", message.adapter_digest(), true));
  if (message.salt().size() > kMaxSalt) {
    return Status(Code::kInvalidArgument, "salt: " + std::to_string(message.salt().size()) +
                                              " bytes, at most " + std::to_string(kMaxSalt));
  }
  spec.salt.assign(message.salt().begin(), message.salt().end());
  spec.layout = LayoutOf(message.layout());
  spec.model = message.model();
  return spec;
}

}  // namespace

Status Verbs::OnOpenSpace(Caller& caller, Frame& frame) {
  ASSIGN_OR_RETURN(const wire::OpenSpace request, ParseFrame<wire::OpenSpace>(frame));
  Result<SpaceGiven> given{SpaceGiven{}};
  if (!request.space_id().empty()) {
    ASSIGN_OR_RETURN(const Digest id, DigestField("space_id", request.space_id(), false));
    given = parts_.engine->OpenSpaceById(caller.client->id, id);
  } else {
    ASSIGN_OR_RETURN(const SpaceSpec spec, SpecOf(request));
    given = parts_.engine->OpenSpace(caller.client->id, spec);
  }
  if (!given) return std::move(given).error();
  wire::OpenSpaceReply reply;
  reply.set_space_id(DigestBytes(given->id));
  reply.set_slot(given->slot);
  reply.set_epoch(given->epoch);
  reply.set_generation_index(given->generation_index);
  reply.set_generation(given->generation);
  reply.set_page_bytes(given->page_bytes);
  FillLayout(given->layout, reply.mutable_layout());
  caller.connection.Send(wire::Type::kOpenSpaceReply, frame.header.request, reply);
  return {};
}

Status Verbs::OnCloseSpace(Caller& caller, Frame& frame) {
  ASSIGN_OR_RETURN(const wire::CloseSpace request, ParseFrame<wire::CloseSpace>(frame));
  RETURN_IF_ERROR(parts_.engine->CloseSpace(caller.client->id, request.slot(), request.epoch()));
  caller.connection.Send(wire::Type::kCloseSpaceReply, frame.header.request,
                         wire::CloseSpaceReply());
  return {};
}

// Splits a field of keys into messages_->keys.
Status Verbs::TakeKeys(const std::string& bytes) {
  if (bytes.size() % kKeyBytes != 0) {
    return {Code::kInvalidArgument, "keys: " + std::to_string(bytes.size()) +
                                        " bytes, which is no multiple of 32, the size of a key"};
  }
  const size_t count = bytes.size() / kKeyBytes;
  if (count > kMaxBatch) return TooMany("keys", static_cast<int64_t>(count), kMaxBatch);
  messages_->keys.resize(count);
  for (size_t i = 0; i < count; ++i) {
    std::memcpy(messages_->keys[i].bytes.data(), bytes.data() + i * kKeyBytes, kKeyBytes);
  }
  return {};
}

Status Verbs::OnGrant(Caller& caller, Frame& frame) {
  wire::Grant& request = messages_->grant;
  RETURN_IF_ERROR(ParseFrame(frame, &request));
  RETURN_IF_ERROR(TakeKeys(request.keys()));
  ClientRecord& client = *caller.client;
  GrantSpec spec;
  spec.slot = request.slot();
  spec.epoch = request.epoch();
  spec.part = request.part();
  spec.deadline_ms = request.deadline_ms();
  spec.chain = !request.parent().empty();
  ASSIGN_OR_RETURN(spec.parent, DigestField("parent", request.parent(), true));
  spec.position = request.position();
  spec.device = request.device();
  RETURN_IF_ERROR(CheckKnowsDevice(caller, spec.device));
  spec.keys = messages_->keys;
  std::vector<GrantGiven>& given = messages_->given;
  given.clear();
  RETURN_IF_ERROR(parts_.engine->Grant(client.id, spec, &given));
  if (given.size() == spec.keys.size()) {
    SendGrants(caller, frame.header.request, given);
    return {};
  }
  // Large pages, or those of a device: the memory for the rest is got in steps.
  spec.keys = {};
  BeginLong(caller, frame.header.request,
            [this, spec, keys = messages_->keys, all = GrantSoFar{.given = given}](
                Caller& waiting, uint64_t id) mutable {
              return GrantMore(waiting, id, spec, keys, &all);
            });
  return {};
}

Verbs::StepEnd Verbs::GrantMore(Caller& caller, uint64_t request, GrantSpec spec,
                                std::span<const Digest> keys, GrantSoFar* so_far) {
  std::vector<GrantGiven>* const given = &so_far->given;
  const ClientId client = caller.client->id;
  const uint32_t first_position = spec.position;
  // The rest of the chain.
  if (spec.chain && !given->empty()) spec.parent = keys[given->size() - 1];
  spec.position = first_position + static_cast<uint32_t>(given->size());
  spec.keys = keys.subspan(given->size());
  std::vector<GrantGiven>& more = messages_->given;
  if (const Status status = parts_.engine->Grant(client, spec, &more); !status.ok()) {
    std::vector<uint64_t> grants;
    for (const GrantGiven& grant : *given) {
      if (grant.code == Code::kOk) grants.push_back(grant.grant);
    }
    (void)parts_.engine->Abort(client, grants);
    caller.connection.SendError(request, status);
    return StepEnd::kDone;
  }
  given->insert(given->end(), more.begin(), more.end());
  const MonotonicNs now = parts_.clock->Now();
  if (!more.empty()) {
    so_far->waits_since = 0;
  } else if (so_far->waits_since == 0) {
    so_far->waits_since = now;
  }
  if (given->size() < keys.size()) {
    if (!more.empty()) return StepEnd::kMore;
    // Memory of a device comes when others have let go of it, or not; or this client, so its LetGo
    // must be handled meanwhile: neither does it wait itself, nor fill the requests in flight.
    const bool may_wait = caller.connection.in_flight().size() <= kMaxInFlight / 2 &&
                          now - so_far->waits_since < parts_.limits->reader_stall_ms * kNsPerMs / 2;
    if (may_wait) return StepEnd::kYields;
    given->resize(keys.size(), {.code = Code::kExhausted});
  }
  SendGrants(caller, request, *given);
  return StepEnd::kDone;
}

void Verbs::SendGrants(Caller& caller, uint64_t request, std::span<const GrantGiven> given) {
  ClientRecord& client = *caller.client;
  wire::GrantReply& reply = messages_->grant_reply;
  reply.Clear();
  std::vector<UniqueFd> fds;
  ArenaId last = 0;
  for (const GrantGiven& grant : given) {
    reply.add_codes(static_cast<uint32_t>(grant.code));
    reply.add_grants(grant.grant);
    reply.add_handles(grant.handle);
    const ArenaId arena = shm::ArenaOf(grant.handle);
    if (grant.code != Code::kOk || arena == last) continue;
    last = arena;
    const auto known = client.arenas.find(arena);
    if (known != client.arenas.end() && known->second) continue;
    // What does not fit, or cannot be given now, is asked for by an Arenas message.
    if (fds.size() == wire::kMaxFds || !caller.connection.MayQueueFds(fds.size() + 1)) continue;
    const std::optional<ArenaFacts> facts = parts_.engine->FindArena(client.id, arena);
    if (!facts) continue;
    wire::Arena message;
    FillArena(*facts, true, &message);
    if (AddArena(caller, *facts, true, &message, &fds).ok()) *reply.add_arenas() = message;
  }
  caller.connection.Send(wire::Type::kGrantReply, request, reply, std::move(fds));
}

Status Verbs::OnCommit(Caller& caller, Frame& frame) {
  wire::Commit& request = messages_->commit;
  RETURN_IF_ERROR(ParseFrame(frame, &request));
  const int count = request.grants_size();
  if (count > static_cast<int>(kMaxBatch)) return TooMany("grants", count, kMaxBatch);
  if (request.valid_tokens_size() != 0 && request.valid_tokens_size() != count) {
    return {Code::kInvalidArgument, "valid_tokens: " + std::to_string(request.valid_tokens_size()) +
                                        " for " + std::to_string(count) +
                                        " grants; one each, or none"};
  }
  std::vector<Code>& codes = messages_->codes;
  codes.clear();
  RETURN_IF_ERROR(parts_.engine->Commit(
      caller.client->id, {request.grants().data(), static_cast<size_t>(count)},
      {request.valid_tokens().data(), static_cast<size_t>(request.valid_tokens_size())}, &codes));
  wire::CommitReply& reply = messages_->commit_reply;
  reply.Clear();
  for (const Code code : codes)
    reply.add_codes(static_cast<uint32_t>(code));
  caller.connection.Send(wire::Type::kCommitReply, frame.header.request, reply);
  return {};
}

Status Verbs::OnAbort(Caller& caller, Frame& frame) {
  ASSIGN_OR_RETURN(const wire::Abort request, ParseFrame<wire::Abort>(frame));
  const auto count = static_cast<size_t>(request.grants_size());
  if (count > kMaxBatch) return TooMany("grants", request.grants_size(), kMaxBatch);
  RETURN_IF_ERROR(parts_.engine->Abort(caller.client->id, {request.grants().data(), count}));
  caller.connection.Send(wire::Type::kAbortReply, frame.header.request, wire::AbortReply());
  return {};
}

Status Verbs::OnDrop(Caller& caller, Frame& frame) {
  ASSIGN_OR_RETURN(const wire::Drop request, ParseFrame<wire::Drop>(frame));
  RETURN_IF_ERROR(TakeKeys(request.keys()));
  ASSIGN_OR_RETURN(const uint32_t dropped,
                   parts_.engine->Drop(caller.client->id, request.slot(), request.epoch(),
                                       request.part(), messages_->keys));
  wire::DropReply reply;
  reply.set_dropped(dropped);
  caller.connection.Send(wire::Type::kDropReply, frame.header.request, reply);
  return {};
}

}  // namespace terrace
