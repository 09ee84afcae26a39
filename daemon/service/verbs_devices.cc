// Verbs on devices, and on what clients map of them.
#include "daemon/service/verb_messages.h"

namespace terrace {

Status Verbs::OnDevices(Caller& caller, Frame& frame) {
  RETURN_IF_ERROR(ParseFrame<wire::Devices>(frame).status());
  wire::DevicesReply reply;
  for (const GpuReport& gpu : parts_.engine->Devices()) {
    // What is kept for other tenants is none of theirs.
    const bool theirs = caller.identity.may_administer ||
                        parts_.engine->CheckDeviceAccess(caller.identity.tenant, gpu.device).ok();
    if (!theirs) continue;
    wire::Device& device = *reply.add_devices();
    device.set_number(gpu.device);
    device.set_uuid(gpu.tier.uuid);
    device.set_name(gpu.tier.name);
    device.set_kind(gpu.kind);
    device.set_slabs(gpu.tier.slabs);
    device.set_granularity(gpu.tier.granularity);
    device.set_serving(gpu.tier.state == DeviceTierState::kServing);
    device.set_capacity_bytes(gpu.capacity_bytes);
  }
  caller.connection.Send(wire::Type::kDevicesReply, frame.header.request, reply);
  return {};
}

Status Verbs::OnLetGo(Caller& caller, Frame& frame) {
  ASSIGN_OR_RETURN(const wire::LetGo request, ParseFrame<wire::LetGo>(frame));
  if (request.arenas_size() > static_cast<int>(kMaxLetGo)) {
    return TooMany("arenas", request.arenas_size(), kMaxLetGo);
  }
  // Should it map one anew, it is given it anew.
  for (const uint32_t arena : request.arenas())
    caller.client->arenas.erase(arena);
  parts_.engine->LetGoArenas(caller.client->id,
                             {request.arenas().data(), static_cast<size_t>(request.arenas_size())});
  caller.connection.Send(wire::Type::kLetGoReply, frame.header.request, wire::LetGoReply());
  return {};
}

void Verbs::TellUnmapWanted(ClientRecord& client, const UnmapRequest& request) {
  // Nothing of it is given again.
  for (const ArenaId arena : request.arenas)
    client.arenas.erase(arena);
  if (client.caller == nullptr) return;
  wire::UnmapWantedEvent event;
  event.set_device(request.device);
  event.mutable_arenas()->Add(request.arenas.begin(), request.arenas.end());
  event.mutable_attachments()->Add(request.attachments.begin(), request.attachments.end());
  event.set_deadline_ms(request.deadline_ms);
  event.set_lost(request.lost);
  client.caller->connection.Send(wire::Type::kUnmapWantedEvent, 0, event);
}

Status Verbs::AddBlock(Caller& caller, ArenaId arena, wire::AttachBlocksReply* reply,
                       std::vector<UniqueFd>* fds) {
  if (arena < kFirstDeviceBlockId) {
    ASSIGN_OR_RETURN(UniqueFd fd, parts_.host->Descriptor(arena, Protection::kRead));
    fds->push_back(std::move(fd));
    return {};
  }
  ASSIGN_OR_RETURN(const DeviceMemory memory,
                   parts_.engine->GiveDeviceArena(caller.client->id, arena));
  if (memory.slab == nullptr) {
    reply->add_handles(memory.handle.data(), memory.handle.size());
    return {};
  }
  ASSIGN_OR_RETURN(UniqueFd fd, memory.slab->Duplicate());
  fds->push_back(std::move(fd));
  return {};
}

}  // namespace terrace
