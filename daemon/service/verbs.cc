#include "daemon/service/verbs.h"

#include <google/protobuf/stubs/logging.h>

#include <algorithm>
#include <array>
#include <utility>

#include "daemon/service/log.h"
#include "daemon/service/verb_messages.h"

namespace terrace {

namespace {

// How often, and how many at a time, those are looked at that wait for room for descriptors.
constexpr std::chrono::milliseconds kStepsAgain{10};
constexpr size_t kWaitersAtATime = 16;

}  // namespace

Verbs::Verbs(Parts parts)
    : parts_(std::move(parts)),
      messages_(std::make_unique<Messages>()),
      steps_again_(parts_.loop->NewTimer([this] { RotateWaiting(); })) {
  // It would write a line for each malformed message of whoever sends them.
  google::protobuf::SetLogHandler(nullptr);
}
Verbs::~Verbs() = default;

const Verbs::Verb* Verbs::FindVerb(wire::Type type) {
  static constexpr std::array kVerbs = {
      Verb{wire::Type::kHello, &Verbs::OnHello, 2},
      Verb{wire::Type::kPing, &Verbs::OnPing},
      Verb{wire::Type::kGoodbye, &Verbs::OnGoodbye},
      Verb{wire::Type::kDirectory, &Verbs::OnDirectory, 1},
      Verb{wire::Type::kArenas, &Verbs::OnArenas},
      Verb{wire::Type::kOpenSpace, &Verbs::OnOpenSpace},
      Verb{wire::Type::kCloseSpace, &Verbs::OnCloseSpace},
      Verb{wire::Type::kGrant, &Verbs::OnGrant},
      Verb{wire::Type::kCommit, &Verbs::OnCommit},
      Verb{wire::Type::kAbort, &Verbs::OnAbort},
      Verb{wire::Type::kDrop, &Verbs::OnDrop},
      Verb{wire::Type::kPrefetch, &Verbs::OnPrefetch},
      Verb{wire::Type::kPersist, &Verbs::OnPersist},
      Verb{wire::Type::kDemote, &Verbs::OnDemote},
      Verb{wire::Type::kPromote, &Verbs::OnPromote},
      Verb{wire::Type::kFsck, &Verbs::OnFsck},
      Verb{wire::Type::kFlush, &Verbs::OnFlush},
      Verb{wire::Type::kModelAdd, &Verbs::OnModelAdd, 0, true},
      Verb{wire::Type::kModelRemove, &Verbs::OnModelRemove},
      Verb{wire::Type::kModelAccess, &Verbs::OnModelAccess},
      Verb{wire::Type::kLoad, &Verbs::OnLoad},
      Verb{wire::Type::kUnload, &Verbs::OnUnload},
      Verb{wire::Type::kAttach, &Verbs::OnAttach, 1},
      Verb{wire::Type::kAttachBlocks, &Verbs::OnAttachBlocks},
      Verb{wire::Type::kAttachWait, &Verbs::OnAttachWait},
      Verb{wire::Type::kDetach, &Verbs::OnDetach},
      Verb{wire::Type::kEvict, &Verbs::OnEvict},
      Verb{wire::Type::kDevices, &Verbs::OnDevices},
      Verb{wire::Type::kLetGo, &Verbs::OnLetGo},
      Verb{wire::Type::kPoolAdd, &Verbs::OnPoolAdd, 0, true},
      Verb{wire::Type::kPoolRemove, &Verbs::OnPoolRemove},
      Verb{wire::Type::kPoolStore, &Verbs::OnPoolStore},
      Verb{wire::Type::kPoolFetch, &Verbs::OnPoolFetch},
      Verb{wire::Type::kReport, &Verbs::OnReport},
  };
  for (const Verb& verb : kVerbs) {
    if (verb.type == type) return &verb;
  }
  return nullptr;
}

size_t Verbs::FdsOfReply(const wire::FrameHeader& header) {
  const Verb* verb = FindVerb(header.type);
  return verb == nullptr ? 0 : verb->reply_fds;
}

void Verbs::Handle(Caller& caller, Frame& frame) {
  const wire::FrameHeader& header = frame.header;
  const Verb* verb = FindVerb(header.type);
  Status status;
  if (verb == nullptr) {
    status = {Code::kInvalidArgument,
              "type: " + std::to_string(static_cast<uint16_t>(header.type)) +
                  " is no request of this protocol"};
  } else if (!frame.fds.empty() && !verb->takes_fds) {
    status = {Code::kInvalidArgument, "fds: this message takes no descriptors"};
  } else if (caller.client == nullptr && header.type != wire::Type::kHello) {
    status = {Code::kInvalidArgument, "hello: it has to come before any other message"};
  } else {
    if (caller.client != nullptr) caller.client->acted = true;
    status = (this->*verb->handle)(caller, frame);
    if (header.length > kSmallInput) messages_->Trim();
  }
  if (!status.ok()) caller.connection.SendError(header.request, status);
}

Status Verbs::CheckAdmin(const Caller& caller, std::string_view verb) {
  if (caller.identity.may_administer) return {};
  return {Code::kPermissionDenied,
          std::string(verb) + ": needs the role admin, on a socket that takes the verbs of admins"};
}

Verbs::Ticket Verbs::Begin(Caller& caller, uint64_t request) {
  caller.connection.BeginRequest(request);
  return {caller.connection.id(), request, caller.client->id};
}

Progress Verbs::ProgressTo(const Ticket& ticket) {
  // Copies of a function would each have what it remembers; there shall be one.
  return [this, ticket, next = std::make_shared<MonotonicNs>(0)](uint64_t done, uint64_t total) {
    const MonotonicNs now = parts_.clock->Now();
    if (now < *next) return;
    *next = now + kProgressIntervalMs * kNsPerMs;
    const auto found = parts_.callers->find(ticket.caller);
    // Progress is a courtesy: a reader that is behind gets none.
    if (found == parts_.callers->end() || found->second->connection.has_backlog()) return;
    wire::ProgressEvent event;
    event.set_done_bytes(done);
    event.set_total_bytes(total);
    found->second->connection.Send(wire::Type::kProgressEvent, ticket.request, event);
  };
}

void Verbs::BeginLong(Caller& caller, uint64_t request, Step step) {
  caller.connection.PauseFrames();
  Rotate({Begin(caller, request), std::move(step)});
}

void Verbs::Rotate(LongVerb verb) {
  long_verbs_.push_back(std::move(verb));
  if (long_verbs_.size() == 1) parts_.loop->Post([this] { RunStep(); });
}

void Verbs::RunStep() {
  LongVerb verb = std::move(long_verbs_.front());
  long_verbs_.pop_front();
  if (!long_verbs_.empty()) parts_.loop->Post([this] { RunStep(); });
  Caller* caller = Waiting(verb.ticket);
  if (caller == nullptr) return;
  const StepEnd end = verb.step(*caller, verb.ticket.request);
  if (end == StepEnd::kMore) {
    verb.waits_since = 0;
    Rotate(std::move(verb));
  } else if (end == StepEnd::kYields || (end == StepEnd::kWaits && MayWait(&verb, *caller))) {
    if (end == StepEnd::kYields) EndPause(&verb, *caller);
    waiting_.push_back(std::move(verb));
    if (waiting_.size() == 1) steps_again_.Start(kStepsAgain);
  } else {
    caller->connection.EndRequest(verb.ticket.request);
    EndPause(&verb, *caller);
  }
}

// Only its own: another long verb of the caller may have begun since it yielded.
void Verbs::EndPause(LongVerb* verb, Caller& caller) {
  if (std::exchange(verb->paused, false)) caller.connection.ResumeFrames();
}

bool Verbs::MayWait(LongVerb* verb, Caller& caller) {
  const MonotonicNs now = parts_.clock->Now();
  if (verb->waits_since == 0) verb->waits_since = now;
  if (now - verb->waits_since <= parts_.limits->reader_stall_ms * kNsPerMs) return true;
  caller.connection.SendError(verb->ticket.request, caller.connection.WhyShortOfFds());
  return false;
}

void Verbs::RotateWaiting() {
  for (size_t i = 0; i < kWaitersAtATime && !waiting_.empty(); ++i) {
    Rotate(std::move(waiting_.front()));
    waiting_.pop_front();
  }
  if (!waiting_.empty()) steps_again_.Start(kStepsAgain);
}

Caller* Verbs::Waiting(const Ticket& ticket) {
  const auto found = parts_.callers->find(ticket.caller);
  if (found == parts_.callers->end()) return nullptr;
  Caller& caller = *found->second;
  const std::vector<uint64_t>& waiting = caller.connection.in_flight();
  const bool waits = caller.connection.open() && caller.client != nullptr && !caller.client->cut &&
                     caller.client->id == ticket.client &&
                     std::find(waiting.begin(), waiting.end(), ticket.request) != waiting.end();
  return waits ? &caller : nullptr;
}

Caller* Verbs::Finish(const Ticket& ticket) {
  const auto found = parts_.callers->find(ticket.caller);
  if (found == parts_.callers->end()) return nullptr;
  Caller& caller = *found->second;
  if (!caller.connection.EndRequest(ticket.request) || !caller.connection.open()) return nullptr;
  // Who was cut meanwhile is given nothing more, though its connection may still be sending.
  if (caller.client != nullptr && caller.client->cut) return nullptr;
  return &caller;
}

void Verbs::EndClient(ClientId id, const Status& why) {
  const auto found = parts_.clients->find(id);
  if (found == parts_.clients->end()) return;
  const std::unique_ptr<ClientRecord> client = std::move(found->second);
  parts_.clients->erase(found);
  if (client->caller != nullptr) client->caller->client = nullptr;
  parts_.engine->ClientGone(id);  // Only now may the channel be unmapped.
  Log(LogLevel::kDebug, "client-ended", {{"client", id}, {"pid", client->pid}, {"why", why}});
}

void Verbs::EndUnused(ClientRecord& client) {
  if (!client.acted && !client.cut) {
    EndClient(client.id, {Code::kUnavailable, "it left before it asked for anything"});
  } else {
    EndUnusedNumbers(client);
  }
}

void Verbs::EndUnusedNumbers(ClientRecord& client) {
  for (const uint64_t attachment : client.unused_attachments)
    (void)parts_.engine->Detach(client.id, attachment);
  client.unused_attachments.clear();
  for (const uint64_t pool : client.unused_pools)
    parts_.engine->RemovePool(client.id, pool, [](const Status&) {});
  client.unused_pools.clear();
}

Result<UniqueFd> Verbs::GiveArena(ClientRecord& client, ArenaId arena, bool writable) {
  ASSIGN_OR_RETURN(UniqueFd fd, parts_.host->Descriptor(
                                    arena, writable ? Protection::kReadWrite : Protection::kRead));
  bool& given_writable = client.arenas[arena];
  given_writable = given_writable || writable;
  return fd;
}

void Verbs::TakeBackArena(ClientRecord& client, ArenaId arena) {
  client.arenas.erase(arena);
  parts_.engine->LetGoArenas(client.id, {&arena, 1});
}

Status Verbs::AddArena(Caller& caller, const ArenaFacts& facts, bool writable, wire::Arena* arena,
                       std::vector<UniqueFd>* fds) {
  ClientRecord& client = *caller.client;
  if (facts.device == 0) {
    ASSIGN_OR_RETURN(UniqueFd fd, GiveArena(client, facts.id, writable));
    fds->push_back(std::move(fd));
    return {};
  }
  ASSIGN_OR_RETURN(const DeviceMemory memory, parts_.engine->GiveDeviceArena(client.id, facts.id));
  if (memory.slab == nullptr) {
    arena->set_handle(memory.handle.data(), memory.handle.size());
  } else if (Result<UniqueFd> fd = memory.slab->Duplicate(); fd) {
    fds->push_back(*std::move(fd));
  } else {
    TakeBackArena(client, facts.id);
    return std::move(fd).error();
  }
  bool& given_writable = client.arenas[facts.id];
  given_writable = given_writable || writable;
  return {};
}

}  // namespace terrace
