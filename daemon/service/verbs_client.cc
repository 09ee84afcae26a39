// Verbs of a client's life: hello, goodbye, and the memory it shares with the daemon.
#include <fcntl.h>
#include <sys/mman.h>

#include <algorithm>
#include <cerrno>

#include "base/random.h"
#include "daemon/service/log.h"
#include "daemon/service/verb_messages.h"

namespace terrace {

namespace {

constexpr size_t kMaxClientName = 64;

struct NewChannel {
  UniqueFd fd;
  Mapping mapping;
};

// Sealed against resizing, else its client could truncate it under us, and against further seals.
Result<NewChannel> MakeChannel() {
  NewChannel channel;
  ASSIGN_OR_RETURN(channel.fd, CreateMemfd("terrace-channel", shm::kChannelBytes));
  if (::fcntl(channel.fd.get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0) {
    return SystemError("sealing a channel", errno);
  }
  ASSIGN_OR_RETURN(channel.mapping,
                   Mapping::Of(channel.fd.get(), 0, shm::kChannelBytes, Protection::kReadWrite));
  return channel;
}

std::string VersionsText(uint32_t min, uint32_t max) {
  return (min == max ? "version " : "versions " + std::to_string(min) + " to ") +
         std::to_string(max);
}

Status CheckHello(const wire::Hello& hello) {
  if (hello.version_min() > hello.version_max()) {
    return {Code::kInvalidArgument, "version_min: it is above version_max"};
  }
  if (hello.version_min() > wire::kProtocolVersion ||
      hello.version_max() < wire::kProtocolVersionMin) {
    const bool client_is_newer = hello.version_min() > wire::kProtocolVersion;
    return {Code::kMismatch, "version_min, version_max: terraced " TERRACE_VERSION " speaks " +
                                 VersionsText(wire::kProtocolVersionMin, wire::kProtocolVersion) +
                                 " of the protocol, this client " +
                                 VersionsText(hello.version_min(), hello.version_max()) +
                                 ": update " + (client_is_newer ? "the daemon" : "the client")};
  }
  if (hello.name().size() > kMaxClientName) {
    return {Code::kInvalidArgument, "name: " + std::to_string(hello.name().size()) +
                                        " bytes, at most " + std::to_string(kMaxClientName)};
  }
  if (std::any_of(hello.name().begin(), hello.name().end(),
                  [](char c) { return static_cast<unsigned char>(c) < 0x20 || c == 0x7f; })) {
    return {Code::kInvalidArgument, "name: it may have no control characters"};
  }
  return {};
}

}  // namespace

Status Verbs::OnHello(Caller& caller, Frame& frame) {
  if (caller.client != nullptr) {
    return {Code::kInvalidArgument, "hello: this connection has said it already"};
  }
  ASSIGN_OR_RETURN(const wire::Hello hello, ParseFrame<wire::Hello>(frame));
  RETURN_IF_ERROR(CheckHello(hello));
  Peer& peer = caller.connection.peer();
  if (ProcessIsGone(peer.process.get())) {
    return {Code::kUnavailable, "peer: the process that connected has ended"};
  }
  caller.version = std::min(hello.version_max(), wire::kProtocolVersion);
  caller.capabilities = hello.capabilities() & wire::kCapabilities;
  const Identity& identity = caller.identity;
  caller.connection.AllowDescriptors(identity.may_administer);
  if (hello.resume_client() != 0) {
    RETURN_IF_ERROR(Resume(caller, hello.resume_client(), hello.resume_token()));
    return SendHelloReply(caller, frame.header.request, true, UniqueFd());
  }
  ClientSpec spec;
  spec.tenant = identity.tenant;
  spec.name = hello.name();
  spec.pid = peer.pid;
  spec.uid = peer.uid;
  spec.writer = hello.writer() && identity.may_write;
  spec.max_pins = hello.max_pins();
  ASSIGN_OR_RETURN(UniqueFd channel, Arrive(caller, identity, spec));
  return SendHelloReply(caller, frame.header.request, false, std::move(channel));
}

Status Verbs::Resume(Caller& caller, ClientId id, uint64_t token) {
  const auto found = parts_.clients->find(id);
  if (found == parts_.clients->end() || found->second->token != token ||
      found->second->pid != caller.connection.peer().pid) {
    return {Code::kStale,
            "resume_client: no such client of this process here: say hello as a new one"};
  }
  ClientRecord& client = *found->second;
  if (client.cut) {
    return {Code::kStale, "resume_client: the client was cut: say hello as a new one"};
  }
  // By another socket, or after the configuration changed, it may be somebody else.
  const Identity& identity = caller.identity;
  if (client.tenant != identity.tenant || (client.writer && !identity.may_write)) {
    return {Code::kStale,
            "resume_client: the client is of another tenant or role: say hello as a new one"};
  }
  if (client.caller != nullptr) {
    Caller* old = client.caller;
    old->client = nullptr;
    old->connection.Close(Status(Code::kUnavailable, "its client came back by another one"));
  }
  EndUnusedNumbers(client);
  client.caller = &caller;
  caller.client = &client;
  caller.connection.AllowLargeFrames();
  // A reply with descriptors may have been lost with the old connection: they are given again.
  for (auto& [arena, writable] : client.arenas)
    writable = false;
  // Neither side knows which descriptions of slabs, and which LetGo, the other has received.
  parts_.engine->CountGivenOnce(client.id);
  return {};
}

Result<UniqueFd> Verbs::Arrive(Caller& caller, const Identity& identity, const ClientSpec& spec) {
  if (parts_.clients->size() >= parts_.limits->clients) {
    return Status(Code::kExhausted, "limits.clients: the daemon serves " +
                                        std::to_string(parts_.limits->clients) +
                                        " clients already");
  }
  const auto of_process =
      std::count_if(parts_.clients->begin(), parts_.clients->end(),
                    [&](const auto& item) { return item.second->pid == spec.pid; });
  if (static_cast<uint64_t>(of_process) >= parts_.limits->clients_per_process) {
    return Status(
        Code::kExhausted,
        "limits.clients_per_process: this process is " + std::to_string(of_process) +
            " clients already; those whose connection broke or was cut count until it ends");
  }
  const auto of_user =
      std::count_if(parts_.clients->begin(), parts_.clients->end(),
                    [&](const auto& item) { return item.second->uid == spec.uid; });
  if (static_cast<uint64_t>(of_user) >= parts_.limits->clients_per_user) {
    return Status(Code::kExhausted, "limits.clients_per_user: user " + std::to_string(spec.uid) +
                                        " is " + std::to_string(of_user) + " clients already");
  }
  ASSIGN_OR_RETURN(NewChannel channel, MakeChannel());
  auto client = std::make_unique<ClientRecord>();
  client->token = SecretWord();
  client->tenant = identity.tenant;
  client->tenant_name = identity.tenant_name;
  client->writer = spec.writer;
  client->pid = static_cast<pid_t>(spec.pid);
  client->uid = spec.uid;
  client->channel = std::move(channel.mapping);
  // The end of the process is watched before anything is given to it.
  ASSIGN_OR_RETURN(UniqueFd process, caller.connection.peer().process.Duplicate());
  ASSIGN_OR_RETURN(client->process,
                   parts_.loop->NewWatch(std::move(process), [this, watched = client.get()] {
                     OnProcessGone(*watched);
                   }));
  ASSIGN_OR_RETURN(client->given, parts_.engine->ClientArrived(spec, client->channel.bytes()));
  client->id = client->given.id;
  client->process.ArmRead();
  client->caller = &caller;
  caller.client = client.get();
  caller.connection.peer().process.Reset();
  caller.connection.AllowLargeFrames();
  Log(LogLevel::kDebug, "client-arrived",
      {{"client", client->id}, {"pid", spec.pid}, {"name", spec.name}});
  parts_.clients->emplace(client->id, std::move(client));
  return std::move(channel.fd);
}

Status Verbs::SendHelloReply(Caller& caller, uint64_t request, bool resumed, UniqueFd channel) {
  ClientRecord& client = *caller.client;
  Result<UniqueFd> directory = parts_.engine->index(client.tenant).DirectoryDescriptor();
  if (!directory) {
    // A new client has learned nothing of itself yet; one that came back may try again.
    if (!resumed) EndClient(client.id, directory.error());
    caller.connection.CloseAfterSending(directory.error());
    return std::move(directory).error();
  }
  std::vector<UniqueFd> fds;
  if (channel) fds.push_back(std::move(channel));
  fds.push_back(*std::move(directory));
  wire::HelloReply reply;
  reply.set_version(caller.version);
  reply.set_client(client.id);
  reply.set_token(client.token);
  reply.set_life(parts_.life);
  reply.set_resumed(resumed);
  reply.set_tenant(client.tenant_name);
  reply.set_writer(client.writer);
  reply.set_max_pins(client.given.max_pins);
  reply.set_max_pinned_bytes(client.given.max_pinned_bytes);
  reply.set_max_grants(client.given.max_grants);
  reply.set_host_capacity_bytes(parts_.limits->host_capacity_bytes);
  reply.set_daemon_version(TERRACE_VERSION);
  reply.set_capabilities(caller.capabilities);
  caller.connection.Send(wire::Type::kHelloReply, request, reply, std::move(fds));
  TellMissed(client);
  return {};
}

void Verbs::TellMissed(ClientRecord& client) {
  if (!client.missed_expired.empty()) {
    wire::GrantExpiredEvent event;
    event.mutable_grants()->Add(client.missed_expired.begin(), client.missed_expired.end());
    client.missed_expired.clear();
    client.caller->connection.Send(wire::Type::kGrantExpiredEvent, 0, event);
  }
  if (!client.missed_gone.empty()) {
    wire::UnmapEvent event;
    event.mutable_arenas()->Add(client.missed_gone.begin(), client.missed_gone.end());
    client.missed_gone.clear();
    client.caller->connection.Send(wire::Type::kUnmapEvent, 0, event);
  }
  // Also what was sent to the old connection, which may never have come.
  for (const UnmapRequest& request : parts_.engine->UnmapWantedOf(client.id))
    TellUnmapWanted(client, request);
}

void Verbs::OnProcessGone(ClientRecord& client) {
  Caller* caller = client.caller;
  const Status why(Code::kUnavailable, "its process has ended");
  EndClient(client.id, why);
  if (caller != nullptr) caller->connection.Close(why);
}

Status Verbs::OnPing(Caller& caller, Frame& frame) {
  RETURN_IF_ERROR(ParseFrame<wire::Ping>(frame).status());
  caller.connection.Send(wire::Type::kPingReply, frame.header.request, wire::PingReply());
  return {};
}

Status Verbs::OnGoodbye(Caller& caller, Frame& frame) {
  RETURN_IF_ERROR(ParseFrame<wire::Goodbye>(frame).status());
  const Status why(Code::kUnavailable, "it said goodbye");
  EndClient(caller.client->id, why);
  caller.connection.Send(wire::Type::kGoodbyeReply, frame.header.request, wire::GoodbyeReply());
  caller.connection.CloseAfterSending(why);
  return {};
}

Status Verbs::OnDirectory(Caller& caller, Frame& frame) {
  RETURN_IF_ERROR(ParseFrame<wire::Directory>(frame).status());
  const TenantIndex& index = parts_.engine->index(caller.client->tenant);
  std::vector<UniqueFd> fds(1);
  ASSIGN_OR_RETURN(fds[0], index.DirectoryDescriptor());
  wire::DirectoryReply reply;
  reply.set_directory_id(index.directory_id());
  caller.connection.Send(wire::Type::kDirectoryReply, frame.header.request, reply, std::move(fds));
  return {};
}

Status Verbs::OnArenas(Caller& caller, Frame& frame) {
  ASSIGN_OR_RETURN(const wire::Arenas request, ParseFrame<wire::Arenas>(frame));
  if (request.ids_size() > wire::kMaxFds) {
    return TooMany("ids", request.ids_size(), wire::kMaxFds);
  }
  if (SendArenas(caller, frame.header.request, request) == StepEnd::kWaits) {
    BeginLong(caller, frame.header.request, [this, request](Caller& waiting, uint64_t id) {
      return SendArenas(waiting, id, request);
    });
  }
  return {};
}

Verbs::StepEnd Verbs::SendArenas(Caller& caller, uint64_t request, const wire::Arenas& arenas) {
  ClientRecord& client = *caller.client;
  const bool writable = arenas.writable() && client.writer;
  wire::ArenasReply reply;
  for (const uint32_t id : arenas.ids()) {
    // Each once, however often it is named: every one costs a descriptor.
    const auto same = [id](const wire::Arena& arena) { return arena.id() == id; };
    if (std::any_of(reply.arenas().begin(), reply.arenas().end(), same)) continue;
    const std::optional<ArenaFacts> facts = parts_.engine->FindArena(client.id, id);
    if (facts && CheckKnowsDevice(caller, facts->device).ok()) {
      FillArena(*facts, writable, reply.add_arenas());
    }
  }
  const auto count = static_cast<size_t>(reply.arenas_size());
  if (count > 0 && !caller.connection.MayQueueFds(count)) return StepEnd::kWaits;
  std::vector<UniqueFd> fds;
  for (wire::Arena& arena : *reply.mutable_arenas()) {
    const ArenaFacts facts{.id = arena.id(), .device = arena.device()};
    if (const Status given = AddArena(caller, facts, writable, &arena, &fds); !given.ok()) {
      for (const wire::Arena& before : reply.arenas()) {
        if (&before == &arena) break;
        if (before.device() != 0) TakeBackArena(client, before.id());
      }
      caller.connection.SendError(request, given);
      return StepEnd::kDone;
    }
  }
  caller.connection.Send(wire::Type::kArenasReply, request, reply, std::move(fds));
  return StepEnd::kDone;
}

}  // namespace terrace
