// Verbs on the page store.
#include "daemon/service/verb_messages.h"

namespace terrace {

Status Verbs::OnPrefetch(Caller& caller, Frame& frame) {
  ASSIGN_OR_RETURN(const wire::Prefetch request, ParseFrame<wire::Prefetch>(frame));
  RETURN_IF_ERROR(TakeKeys(request.keys()));
  if (request.min_percent() > 100) {
    return {Code::kInvalidArgument, "min_percent: " + std::to_string(request.min_percent())};
  }
  PrefetchSpec spec;
  spec.slot = request.slot();
  spec.epoch = request.epoch();
  spec.part = request.part();
  spec.keys = messages_->keys;
  spec.deadline_ms = request.deadline_ms();
  spec.min_fraction = request.min_percent() / 100.0;
  spec.recompute_us_per_page = request.recompute_us();
  spec.device = request.device();
  RETURN_IF_ERROR(CheckKnowsDevice(caller, spec.device));
  const Ticket ticket = Begin(caller, frame.header.request);
  parts_.engine->Prefetch(
      ticket.client, spec, [this, ticket](const Result<Prefetched>& prefetched) {
        Caller* waiting = Finish(ticket);
        if (waiting == nullptr) return;
        if (!prefetched) return waiting->connection.SendError(ticket.request, prefetched.error());
        wire::PrefetchReply reply;
        for (const Code code : prefetched->codes)
          reply.add_codes(static_cast<uint32_t>(code));
        reply.set_worth(prefetched->worth);
        waiting->connection.Send(wire::Type::kPrefetchReply, ticket.request, reply);
      });
  return {};
}

Status Verbs::OnPersist(Caller& caller, Frame& frame) {
  ASSIGN_OR_RETURN(const wire::Persist request, ParseFrame<wire::Persist>(frame));
  RETURN_IF_ERROR(TakeKeys(request.keys()));
  PersistSpec spec;
  spec.slot = request.slot();
  spec.epoch = request.epoch();
  spec.part = request.part();
  spec.keys = messages_->keys;
  const Ticket ticket = Begin(caller, frame.header.request);
  parts_.engine->Persist(
      ticket.client, spec, [this, ticket](const Result<std::vector<Code>>& codes) {
        Caller* waiting = Finish(ticket);
        if (waiting == nullptr) return;
        if (!codes) return waiting->connection.SendError(ticket.request, codes.error());
        wire::PersistReply reply;
        for (const Code code : *codes)
          reply.add_codes(static_cast<uint32_t>(code));
        waiting->connection.Send(wire::Type::kPersistReply, ticket.request, reply);
      });
  return {};
}

Status Verbs::OnDemote(Caller& caller, Frame& frame) {
  RETURN_IF_ERROR(CheckAdmin(caller, "Demote"));
  ASSIGN_OR_RETURN(const wire::Demote request, ParseFrame<wire::Demote>(frame));
  RETURN_IF_ERROR(CheckKnowsDevice(caller, request.device()));
  const Ticket ticket = Begin(caller, frame.header.request);
  auto done = [this, ticket](const Result<Demoted>& demoted) {
    Caller* waiting = Finish(ticket);
    if (waiting == nullptr) return;
    if (!demoted) return waiting->connection.SendError(ticket.request, demoted.error());
    wire::DemoteReply reply;
    reply.set_pages(demoted->pages);
    reply.set_bytes(demoted->bytes);
    waiting->connection.Send(wire::Type::kDemoteReply, ticket.request, reply);
  };
  if (request.device() != 0) {
    parts_.engine->DemoteDevice(request.device(), request.bytes(), ProgressTo(ticket),
                                std::move(done));
  } else {
    parts_.engine->Demote(request.bytes(), ProgressTo(ticket), std::move(done));
  }
  return {};
}

Status Verbs::OnPromote(Caller& caller, Frame& frame) {
  RETURN_IF_ERROR(CheckAdmin(caller, "Promote"));
  ASSIGN_OR_RETURN(const wire::Promote request, ParseFrame<wire::Promote>(frame));
  PromoteSpec spec;
  spec.tenant = request.tenant();
  ASSIGN_OR_RETURN(spec.space, DigestField("space_id", request.space_id(), true));
  spec.bytes = request.bytes();
  const Ticket ticket = Begin(caller, frame.header.request);
  // Who does not wait is told at once what it came to at once: that it has begun, or why not.
  const auto answered = std::make_shared<bool>(false);
  const auto answer = [this, ticket, answered](const Result<Promoted>& promoted) {
    if (std::exchange(*answered, true)) return;
    Caller* waiting = Finish(ticket);
    if (waiting == nullptr) return;
    if (!promoted) return waiting->connection.SendError(ticket.request, promoted.error());
    wire::PromoteReply reply;
    reply.set_pages(promoted->pages);
    reply.set_bytes(promoted->bytes);
    waiting->connection.Send(wire::Type::kPromoteReply, ticket.request, reply);
  };
  parts_.engine->Promote(spec, request.no_wait() ? Progress() : ProgressTo(ticket), answer);
  if (request.no_wait()) answer(Promoted());
  return {};
}

Status Verbs::OnFsck(Caller& caller, Frame& frame) {
  RETURN_IF_ERROR(CheckAdmin(caller, "Fsck"));
  ASSIGN_OR_RETURN(const wire::Fsck request, ParseFrame<wire::Fsck>(frame));
  const StoreCheckSpec spec{.read_data = request.read_data(), .repair = request.repair()};
  const Ticket ticket = Begin(caller, frame.header.request);
  parts_.engine->CheckStore(
      ticket.client, spec, ProgressTo(ticket),
      [this, ticket, spec](const Result<StoreCheckReport>& checked) {
        Caller* waiting = Finish(ticket);
        if (waiting == nullptr) return;
        if (!checked) return waiting->connection.SendError(ticket.request, checked.error());
        wire::FsckReply reply;
        reply.set_json(StoreCheckJson(*checked, spec));
        waiting->connection.Send(wire::Type::kFsckReply, ticket.request, reply);
      });
  return {};
}

Status Verbs::OnFlush(Caller& caller, Frame& frame) {
  RETURN_IF_ERROR(CheckAdmin(caller, "Flush"));
  RETURN_IF_ERROR(ParseFrame<wire::Flush>(frame).status());
  const Ticket ticket = Begin(caller, frame.header.request);
  parts_.engine->Flush(ProgressTo(ticket), [this, ticket](const Status& flushed) {
    Caller* waiting = Finish(ticket);
    if (waiting == nullptr) return;
    if (!flushed.ok()) return waiting->connection.SendError(ticket.request, flushed);
    waiting->connection.Send(wire::Type::kFlushReply, ticket.request, wire::FlushReply());
  });
  return {};
}

}  // namespace terrace
