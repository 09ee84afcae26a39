// Verbs of the operator: eviction by hand and reports.
#include <algorithm>

#include "base/hex.h"
#include "daemon/service/verb_messages.h"

namespace terrace {

Status Verbs::OnEvict(Caller& caller, Frame& frame) {
  RETURN_IF_ERROR(CheckAdmin(caller, "Evict"));
  ASSIGN_OR_RETURN(const wire::Evict request, ParseFrame<wire::Evict>(frame));
  const Evicted evicted = parts_.engine->Evict(request.bytes());
  wire::EvictReply reply;
  reply.set_pages(evicted.pages);
  reply.set_blocks(evicted.blocks);
  reply.set_bytes(evicted.bytes);
  caller.connection.Send(wire::Type::kEvictReply, frame.header.request, reply);
  return {};
}

Status Verbs::OnReport(Caller& caller, Frame& frame) {
  ASSIGN_OR_RETURN(const wire::Report request, ParseFrame<wire::Report>(frame));
  wire::ReportReply reply;
  if (request.what() == "status") {
    reply.set_json(StatusJson(parts_.engine->Summary(), parts_.service_report()));
  } else if (request.what() == "models") {
    reply.set_json(ModelsJson(parts_.engine->Models()));
  } else if (request.what() == "spaces") {
    reply.set_json(SpacesJson(parts_.engine->Spaces()));
  } else if (request.what() == "clients") {
    reply.set_json(ClientsJson(parts_.engine->Clients()));
  } else if (request.what() == "pages") {
    if (request.limit() > kMaxReportPages) {
      return TooMany("limit", request.limit(), kMaxReportPages);
    }
    if (!request.space().empty() && !Digest::FromHex(request.space())) {
      return {Code::kInvalidArgument, "space: expected 64 hexadecimal digits, or nothing"};
    }
    reply.set_json(PagesJson(
        parts_.engine->Pages(request.space(), request.limit() == 0 ? 100 : request.limit())));
  } else {
    return {Code::kInvalidArgument,
            "what: expected status, models, spaces, clients or pages, got '" +
                request.what().substr(0, 64) + "'"};
  }
  caller.connection.Send(wire::Type::kReportReply, frame.header.request, reply);
  return {};
}

}  // namespace terrace
