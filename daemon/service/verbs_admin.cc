// Verbs of the operator: eviction by hand and reports.
#include <algorithm>

#include "base/hex.h"
#include "daemon/service/verb_messages.h"

namespace terrace {

namespace {

void HideFromOthers(const std::string& tenant, std::vector<ModelReport>* models) {
  std::erase_if(*models, [&](const ModelReport& model) {
    return std::find(model.tenants.begin(), model.tenants.end(), tenant) == model.tenants.end();
  });
  for (ModelReport& model : *models) {
    model.tenants = {tenant};
    for (ModelVersionReport& version : model.versions) {
      version.files.clear();
      version.image_problem.clear();  // These two name files.
      version.loaded.why_buffered.clear();
    }
  }
}

// What is kept for others is not told of, and of what is shared only its own part.
void HideFromOthers(const std::string& tenant, std::vector<GpuReport>* devices) {
  std::erase_if(*devices, [&](const GpuReport& device) {
    const std::vector<std::string>& of = device.tenants;
    return !of.empty() && std::find(of.begin(), of.end(), tenant) == of.end();
  });
  for (GpuReport& device : *devices) {
    if (!device.tenants.empty()) device.tenants = {tenant};
    std::erase_if(device.tenant_bytes, [&](const auto& item) { return item.first != tenant; });
  }
}

}  // namespace

Status Verbs::OnEvict(Caller& caller, Frame& frame) {
  RETURN_IF_ERROR(CheckAdmin(caller, "Evict"));
  ASSIGN_OR_RETURN(const wire::Evict request, ParseFrame<wire::Evict>(frame));
  // All is what is there now: what others bring meanwhile must not keep this going for ever.
  const uint64_t all = parts_.engine->host_capacity_bytes();
  const uint64_t wanted = request.bytes() == 0 ? all : std::min(request.bytes(), all);
  BeginLong(caller, frame.header.request,
            [this, wanted, reply = wire::EvictReply()](Caller& waiting, uint64_t id) mutable {
              const uint64_t left = wanted - std::min(wanted, reply.bytes());
              const Evicted evicted =
                  parts_.engine->Evict(std::min(left, kEvictStepBytes), kEvictStepItems);
              reply.set_pages(reply.pages() + evicted.pages);
              reply.set_blocks(reply.blocks() + evicted.blocks);
              reply.set_bytes(reply.bytes() + evicted.bytes);
              if (evicted.pages + evicted.blocks > 0 && reply.bytes() < wanted) {
                return StepEnd::kMore;
              }
              waiting.connection.Send(wire::Type::kEvictReply, id, reply);
              return StepEnd::kDone;
            });
  return {};
}

// Who is no admin is told of its own tenant only, of the models it may attach, and of no files. The
// figures of the whole host stay in `status`: pressure shows anyhow.
Result<std::string> Verbs::ReportFor(const Identity& identity, const wire::Report& request) {
  const bool all = identity.may_administer;
  const auto of_others = [&](const auto& report) { return report.tenant != identity.tenant_name; };
  Engine& engine = *parts_.engine;
  if (request.what() == "status") {
    StatusReport report = engine.Summary();
    ServiceReport service = parts_.service_report();
    std::vector<GpuReport> devices = engine.Devices();
    if (!all) {
      HideFromOthers(identity.tenant_name, &devices);
      report.restore_problems.clear();
      service.socket.clear();  // Their paths may name other tenants.
      service.state_dir.clear();
    }
    return StatusJson(report, service, devices);
  }
  if (request.what() == "models") {
    std::vector<ModelReport> models = engine.Models();
    if (!all) HideFromOthers(identity.tenant_name, &models);
    return ModelsJson(models);
  }
  if (request.what() == "spaces") {
    std::vector<SpaceReport> spaces = engine.Spaces();
    if (!all) std::erase_if(spaces, of_others);
    return SpacesJson(spaces);
  }
  if (request.what() == "clients") {
    std::vector<ClientReport> clients = engine.Clients();
    if (!all) std::erase_if(clients, of_others);
    return ClientsJson(clients);
  }
  if (request.what() == "pages") {
    if (request.limit() > kMaxReportPages) {
      return TooMany("limit", request.limit(), kMaxReportPages);
    }
    if (!request.space().empty() && !Digest::FromHex(request.space())) {
      return Status(Code::kInvalidArgument, "space: expected 64 hexadecimal digits, or nothing");
    }
    return PagesJson(engine.Pages(request.space(), request.limit() == 0 ? 100 : request.limit(),
                                  all ? 0 : identity.tenant));
  }
  if (request.what() == "tiers") {
    if (!all) return Status(Code::kPermissionDenied, "what: the tiers are the operator's to see");
    return TiersJson(engine.Figures());
  }
  return Status(Code::kInvalidArgument,
                "what: expected status, models, spaces, clients, pages or tiers, got '" +
                    request.what().substr(0, 64) + "'");
}

Status Verbs::OnReport(Caller& caller, Frame& frame) {
  ASSIGN_OR_RETURN(const wire::Report request, ParseFrame<wire::Report>(frame));
  // Some look at every page, or at every pin.
  BeginLong(caller, frame.header.request, [this, request](Caller& waiting, uint64_t id) {
    const Result<std::string> json = ReportFor(waiting.identity, request);
    if (!json) {
      waiting.connection.SendError(id, json.error());
      return StepEnd::kDone;
    }
    wire::ReportReply reply;
    reply.set_json(*json);
    waiting.connection.Send(wire::Type::kReportReply, id, reply);
    return StepEnd::kDone;
  });
  return {};
}

}  // namespace terrace
