// Verbs on models. Most wait for a tier, so they answer by ticket.
#include <algorithm>
#include <numeric>

#include "daemon/service/log.h"
#include "daemon/service/verb_messages.h"

namespace terrace {

namespace {

constexpr size_t kMaxPath = 4095;

// Models are named by the operator of the host; who may do that is decided here, what a name may be
// by the engine.
Status CheckFiles(const wire::ModelAdd& request, size_t fds) {
  const auto files = static_cast<size_t>(request.files_size());
  if (files == 0) return {Code::kInvalidArgument, "files: none"};
  if (files > kMaxModelFiles) return TooMany("files", request.files_size(), kMaxModelFiles);
  if (fds != 0 && files > wire::kMaxFds) {
    return {Code::kInvalidArgument,
            "files: " + std::to_string(files) + " of them, and a frame has at most " +
                std::to_string(wire::kMaxFds) +
                " descriptors: send none, so that the daemon opens the paths itself"};
  }
  if (fds != 0 && fds != files) {
    return {Code::kInvalidArgument, "fds: " + std::to_string(fds) + " descriptors for " +
                                        std::to_string(files) + " files; one each, or none"};
  }
  for (const std::string& file : request.files()) {
    if (file.empty() || file.front() != '/' || file.size() > kMaxPath ||
        file.find('\0') != std::string::npos) {
      return {Code::kInvalidArgument,
              "files: '" + file.substr(0, 200) + "' is no absolute path of at most 4095 bytes"};
    }
  }
  return {};
}

}  // namespace

Status Verbs::OnModelAdd(Caller& caller, Frame& frame) {
  RETURN_IF_ERROR(CheckAdmin(caller, "ModelAdd"));
  wire::ModelAdd request;
  RETURN_IF_ERROR(ParseFrame(frame, &request));
  RETURN_IF_ERROR(CheckFiles(request, frame.fds.size()));
  ModelSpec spec;
  spec.name = request.name();
  spec.version = request.version();
  spec.tenant = caller.identity.tenant;
  spec.source.paths.assign(request.files().begin(), request.files().end());
  spec.source.fds = std::move(frame.fds);
  spec.source.index = std::move(*request.mutable_index());
  spec.import_image = request.import_image();
  const Ticket ticket = Begin(caller, frame.header.request);
  if (spec.import_image) spec.progress = ProgressTo(ticket);
  parts_.engine->AddModel(std::move(spec), [this, ticket](const Result<ModelAdded>& added) {
    Caller* waiting = Finish(ticket);
    if (waiting == nullptr) return;
    if (!added) return waiting->connection.SendError(ticket.request, added.error());
    wire::ModelAddReply reply;
    reply.set_tensors(added->tensors);
    reply.set_bytes(added->bytes);
    reply.set_blocks(added->blocks);
    reply.set_durable(added->durable);
    reply.set_why_not(added->why_not);
    reply.set_imported(added->imported);
    reply.set_why_not_imported(added->why_not_imported);
    waiting->connection.Send(wire::Type::kModelAddReply, ticket.request, reply);
  });
  return {};
}

Status Verbs::OnModelRemove(Caller& caller, Frame& frame) {
  RETURN_IF_ERROR(CheckAdmin(caller, "ModelRemove"));
  ASSIGN_OR_RETURN(const wire::ModelRemove request, ParseFrame<wire::ModelRemove>(frame));
  const Ticket ticket = Begin(caller, frame.header.request);
  parts_.engine->RemoveModel(request.name(), request.version(),
                             [this, ticket](const Status& status) {
                               Caller* waiting = Finish(ticket);
                               if (waiting == nullptr) return;
                               if (!status.ok())
                                 return waiting->connection.SendError(ticket.request, status);
                               waiting->connection.Send(wire::Type::kModelRemoveReply,
                                                        ticket.request, wire::ModelRemoveReply());
                             });
  return {};
}

Status Verbs::OnModelAccess(Caller& caller, Frame& frame) {
  RETURN_IF_ERROR(CheckAdmin(caller, "ModelAccess"));
  ASSIGN_OR_RETURN(const wire::ModelAccess request, ParseFrame<wire::ModelAccess>(frame));
  const Ticket ticket = Begin(caller, frame.header.request);
  parts_.engine->SetModelAccess(
      request.name(), request.tenant(), request.granted(), [this, ticket](const Status& status) {
        Caller* waiting = Finish(ticket);
        if (waiting == nullptr) return;
        if (!status.ok()) return waiting->connection.SendError(ticket.request, status);
        waiting->connection.Send(wire::Type::kModelAccessReply, ticket.request,
                                 wire::ModelAccessReply());
      });
  return {};
}

Status Verbs::OnLoad(Caller& caller, Frame& frame) {
  ASSIGN_OR_RETURN(const wire::Load request, ParseFrame<wire::Load>(frame));
  if (!caller.identity.may_administer) {
    RETURN_IF_ERROR(parts_.engine->CheckModelAccess(caller.identity.tenant, request.name()));
    if (request.device() == kAnyDevice) return CheckAdmin(caller, "Load to any device");
    if (request.device() != 0) {
      RETURN_IF_ERROR(parts_.engine->CheckDeviceAccess(caller.identity.tenant, request.device()));
    }
  }
  RETURN_IF_ERROR(CheckKnowsDevice(caller, request.device()));
  const Ticket ticket = Begin(caller, frame.header.request);
  const auto done = [this, ticket](const Result<ModelLoaded>& loaded) {
    Caller* waiting = Finish(ticket);
    if (waiting == nullptr) return;
    if (!loaded) return waiting->connection.SendError(ticket.request, loaded.error());
    wire::LoadReply reply;
    reply.set_version(loaded->version);
    reply.set_bytes(loaded->bytes);
    reply.set_digest(DigestBytes(loaded->digest));
    reply.set_device(loaded->device);
    waiting->connection.Send(wire::Type::kLoadReply, ticket.request, reply);
  };
  if (request.device() != 0) {
    parts_.engine->LoadToDevice(ticket.client, request.device(), request.name(), request.version(),
                                ProgressTo(ticket), done);
  } else {
    parts_.engine->Load(ticket.client, request.name(), request.version(), ProgressTo(ticket), done);
  }
  return {};
}

Status Verbs::OnUnload(Caller& caller, Frame& frame) {
  RETURN_IF_ERROR(CheckAdmin(caller, "Unload"));
  ASSIGN_OR_RETURN(const wire::Unload request, ParseFrame<wire::Unload>(frame));
  RETURN_IF_ERROR(CheckKnowsDevice(caller, request.device()));
  ASSIGN_OR_RETURN(
      const Unloaded unloaded,
      request.device() != 0
          ? parts_.engine->UnloadFromDevice(request.device(), request.name(), request.version())
          : parts_.engine->Unload(request.name(), request.version()));
  wire::UnloadReply reply;
  reply.set_freed_bytes(unloaded.freed_bytes);
  reply.set_held_bytes(unloaded.held_bytes);
  caller.connection.Send(wire::Type::kUnloadReply, frame.header.request, reply);
  return {};
}

Status Verbs::OnAttach(Caller& caller, Frame& frame) {
  ASSIGN_OR_RETURN(const wire::Attach request, ParseFrame<wire::Attach>(frame));
  if (request.early() && !request.load()) {
    return {Code::kInvalidArgument, "early: without load there is nothing to be early for"};
  }
  RETURN_IF_ERROR(CheckKnowsDevice(caller, request.device()));
  if (request.early() && request.device() != 0) {
    return {Code::kInvalidArgument,
            "early: not with device, whose memory is seen when all is there"};
  }
  const Ticket ticket = Begin(caller, frame.header.request);
  const auto done = [this, ticket](const Result<Attached>& attached) {
    FinishAttach(ticket, attached);
  };
  const ClientId client = caller.client->id;
  if (request.device() != 0) {
    parts_.engine->AttachOnDevice(client, request.device(), request.name(), request.version(),
                                  request.load(), request.deadline_ms(), done);
  } else if (request.early()) {
    parts_.engine->AttachEarly(client, request.name(), request.version(), request.deadline_ms(),
                               done);
  } else {
    parts_.engine->Attach(client, request.name(), request.version(), request.load(),
                          request.deadline_ms(), done);
  }
  return {};
}

void Verbs::FinishAttach(const Ticket& ticket, const Result<Attached>& attached) {
  Caller* waiting = Finish(ticket);
  if (!attached) {
    if (waiting != nullptr) waiting->connection.SendError(ticket.request, attached.error());
    return;
  }
  Status status;
  if (waiting == nullptr || waiting->client == nullptr) {
    status = Status(Code::kUnavailable, "its connection is gone");
  } else {
    // Asked for again: it was room for one when the request came, and many may have waited since.
    Result<UniqueFd> manifest = waiting->connection.MayQueueFds(1)
                                    ? parts_.host->Descriptor(attached->manifest, Protection::kRead)
                                    : waiting->connection.WhyShortOfFds();
    if (manifest) {
      wire::AttachReply reply;
      reply.set_attachment(attached->attachment);
      reply.set_version(attached->version);
      reply.set_digest(DigestBytes(attached->digest));
      reply.set_manifest_bytes(attached->manifest_bytes);
      reply.set_arriving(attached->arriving);
      reply.set_device(attached->device);
      std::vector<UniqueFd> fds;
      fds.push_back(*std::move(manifest));
      waiting->client->unused_attachments.push_back(attached->attachment);
      waiting->connection.Send(wire::Type::kAttachReply, ticket.request, reply, std::move(fds));
      return;
    }
    status = manifest.error();
    waiting->connection.SendError(ticket.request, status);
  }
  // Nobody knows the attachment's number, so nobody could ever end it but by ending. `not_found` is
  // the answer when the client itself has ended.
  (void)parts_.engine->Detach(ticket.client, attached->attachment);
}

Status Verbs::OnAttachBlocks(Caller& caller, Frame& frame) {
  ASSIGN_OR_RETURN(const wire::AttachBlocks request, ParseFrame<wire::AttachBlocks>(frame));
  if (request.blocks_size() > static_cast<int>(kMaxAttachBlocks)) {
    return TooMany("blocks", request.blocks_size(), kMaxAttachBlocks);
  }
  // Who names it has learned of it.
  std::erase(caller.client->unused_attachments, request.attachment());
  ASSIGN_OR_RETURN(const std::vector<ArenaId> arenas,
                   parts_.engine->BlocksOf(
                       caller.client->id, request.attachment(),
                       {request.blocks().data(), static_cast<size_t>(request.blocks_size())}));
  if (arenas.size() > kMaxAttachBlocks) {
    return {Code::kInvalidArgument, "blocks: the model has " + std::to_string(arenas.size()) +
                                        "; name at most " + std::to_string(kMaxAttachBlocks) +
                                        " of them at a time"};
  }
  std::vector<uint32_t> numbers(request.blocks().begin(), request.blocks().end());
  if (numbers.empty()) {
    numbers.resize(arenas.size());
    std::iota(numbers.begin(), numbers.end(), 0);
  }
  BeginLong(caller, frame.header.request,
            [this, attachment = request.attachment(), numbers = std::move(numbers),
             next = size_t{0}](Caller& waiting, uint64_t id) mutable {
              return SendBlocks(waiting, id, attachment, numbers, &next);
            });
  return {};
}

// Several frames, none with more descriptors than a message may have, and none before there is room
// for them. Their order is the order of the request, and of the image where that names no blocks.
// The engine is asked for each: access may end in between.
Verbs::StepEnd Verbs::SendBlocks(Caller& caller, uint64_t request, uint64_t attachment,
                                 std::span<const uint32_t> numbers, size_t* next) {
  size_t count = std::min<size_t>(numbers.size() - *next, wire::kMaxFds);
  // A few at a time where others of its user hoard.
  if (!caller.connection.MayQueueFds(count)) count = std::min(count, kBlocksWhenShort);
  if (!caller.connection.MayQueueFds(count)) return StepEnd::kWaits;
  const std::span<const uint32_t> blocks = numbers.subspan(*next, count);
  const auto refuse = [&](const Status& why) {
    caller.connection.SendError(request, why);
    return StepEnd::kDone;
  };
  const Result<std::vector<ArenaId>> arenas =
      parts_.engine->BlocksOf(caller.client->id, attachment, blocks);
  if (!arenas) return refuse(arenas.error());
  wire::AttachBlocksReply reply;
  std::vector<UniqueFd> fds;
  for (size_t i = 0; i < arenas->size(); ++i) {
    if ((*arenas)[i] == 0) continue;  // It has not come.
    const Status added = AddBlock(caller, (*arenas)[i], &reply, &fds);
    if (!added.ok()) return refuse(added);
    reply.add_blocks(blocks[i]);
  }
  *next += count;
  const bool last = *next == numbers.size();
  reply.set_last(last);
  caller.connection.Send(wire::Type::kAttachBlocksReply, request, reply, std::move(fds));
  return last ? StepEnd::kDone : StepEnd::kMore;
}

Status Verbs::OnAttachWait(Caller& caller, Frame& frame) {
  ASSIGN_OR_RETURN(const wire::AttachWait request, ParseFrame<wire::AttachWait>(frame));
  if (request.blocks_size() > static_cast<int>(kMaxAttachBlocks)) {
    return TooMany("blocks", request.blocks_size(), kMaxAttachBlocks);
  }
  std::erase(caller.client->unused_attachments, request.attachment());
  const Ticket ticket = Begin(caller, frame.header.request);
  parts_.engine->AwaitBlocks(
      caller.client->id, request.attachment(),
      {request.blocks().data(), static_cast<size_t>(request.blocks_size())}, request.deadline_ms(),
      [this, ticket](const Result<Arrival>& arrival) {
        Caller* waiting = Finish(ticket);
        if (waiting == nullptr) return;
        if (!arrival) return waiting->connection.SendError(ticket.request, arrival.error());
        wire::AttachWaitReply reply;
        reply.set_arriving(arrival->arriving);
        reply.set_digest(DigestBytes(arrival->digest));
        waiting->connection.Send(wire::Type::kAttachWaitReply, ticket.request, reply);
      });
  return {};
}

Status Verbs::OnDetach(Caller& caller, Frame& frame) {
  ASSIGN_OR_RETURN(const wire::Detach request, ParseFrame<wire::Detach>(frame));
  RETURN_IF_ERROR(parts_.engine->Detach(caller.client->id, request.attachment()));
  std::erase(caller.client->unused_attachments, request.attachment());
  caller.connection.Send(wire::Type::kDetachReply, frame.header.request, wire::DetachReply());
  return {};
}

}  // namespace terrace
