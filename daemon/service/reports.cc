// The one door to nlohmann-json.
#include "daemon/service/reports.h"

#include <array>
#include <nlohmann/json.hpp>

#include "base/hex.h"
#include "daemon/engine/engine.h"

namespace terrace {

namespace {

using Json = nlohmann::ordered_json;

constexpr std::array<std::string_view, 70> kRequestNames = {"",
                                                            "error",
                                                            "hello",
                                                            "hello_reply",
                                                            "ping",
                                                            "ping_reply",
                                                            "goodbye",
                                                            "goodbye_reply",
                                                            "directory",
                                                            "directory_reply",
                                                            "arenas",
                                                            "arenas_reply",
                                                            "open_space",
                                                            "open_space_reply",
                                                            "grant",
                                                            "grant_reply",
                                                            "commit",
                                                            "commit_reply",
                                                            "abort",
                                                            "abort_reply",
                                                            "drop",
                                                            "drop_reply",
                                                            "model_add",
                                                            "model_add_reply",
                                                            "model_remove",
                                                            "model_remove_reply",
                                                            "load",
                                                            "load_reply",
                                                            "unload",
                                                            "unload_reply",
                                                            "attach",
                                                            "attach_reply",
                                                            "attach_blocks",
                                                            "attach_blocks_reply",
                                                            "detach",
                                                            "detach_reply",
                                                            "evict",
                                                            "evict_reply",
                                                            "report",
                                                            "report_reply",
                                                            "close_space",
                                                            "close_space_reply",
                                                            "model_access",
                                                            "model_access_reply",
                                                            "prefetch",
                                                            "prefetch_reply",
                                                            "persist",
                                                            "persist_reply",
                                                            "demote",
                                                            "demote_reply",
                                                            "flush",
                                                            "flush_reply",
                                                            "attach_wait",
                                                            "attach_wait_reply",
                                                            "promote",
                                                            "promote_reply",
                                                            "fsck",
                                                            "fsck_reply",
                                                            "devices",
                                                            "devices_reply",
                                                            "let_go",
                                                            "let_go_reply",
                                                            "pool_add",
                                                            "pool_add_reply",
                                                            "pool_remove",
                                                            "pool_remove_reply",
                                                            "pool_store",
                                                            "pool_store_reply",
                                                            "pool_fetch",
                                                            "pool_fetch_reply"};
constexpr std::array<const char*, shm::kTiers> kTierNames = {"device", "host", "nvme", "remote"};
constexpr std::array<const char*, shm::kMisses> kMissNames = {
    "absent", "beyond", "stale", "busy", "budget", "disconnected", "unmapped"};

// Texts come from outside, also from before this daemon: what is no UTF-8 is replaced.
std::string Dump(const Json& json) {
  return json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

Json FrameCounters(const std::array<uint64_t, Traffic::kTypes>& counters) {
  Json json = Json::object();
  for (size_t type = 0; type < counters.size(); ++type) {
    const std::string_view name = FrameTypeName(type);
    if (!name.empty() && counters[type] != 0) json[std::string(name)] = counters[type];
  }
  return json;
}

Json Lookups(const ChannelTotals& totals) {
  Json hits = Json::object();
  for (uint32_t tier = 0; tier < shm::kTiers; ++tier)
    hits[kTierNames[tier]] = totals.hits[tier];
  Json misses = Json::object();
  for (uint32_t miss = 0; miss < shm::kMisses; ++miss) {
    misses[kMissNames[miss]] = totals.misses[miss];
  }
  return {{"lookups", totals.lookups},
          {"hits", std::move(hits)},
          {"misses", std::move(misses)},
          {"dropped_records", totals.dropped}};
}

Json Daemon(const ServiceReport& service) {
  return {{"version", service.version},
          {"life", HexEncode({reinterpret_cast<const uint8_t*>(&service.life), 8})},
          {"pid", service.pid},
          {"uid", service.uid},
          {"uptime_ms", service.uptime_ms},
          {"socket", service.socket},
          {"state_dir", service.state_dir},
          {"isolation", service.isolation}};
}

Json TrafficOf(const ServiceReport& service) {
  const Traffic& traffic = service.traffic;
  return {{"connections", service.connections},
          {"connections_accepted", traffic.connections_accepted},
          {"connections_refused", traffic.connections_refused},
          {"protocol_violations", traffic.protocol_violations},
          {"slow_readers_cut", traffic.slow_readers_cut},
          {"bytes_received", traffic.bytes_received},
          {"bytes_sent", traffic.bytes_sent},
          {"frames_received", FrameCounters(traffic.frames_received)},
          {"frames_sent", FrameCounters(traffic.frames_sent)}};
}

Json Host(const StatusReport& engine, const ServiceReport& service) {
  const HostReport& host = engine.host;
  return {{"capacity_bytes", engine.host_capacity_bytes},
          {"capacity_wanted_bytes", service.capacity_wanted_bytes},
          {"memory_limit_bytes", service.memory_limit_bytes},
          {"memory_limit_source", service.memory_limit_source},
          {"used_bytes", engine.used_bytes},
          {"linked_bytes", engine.linked_bytes},
          {"granted_bytes", engine.granted_bytes},
          {"limbo_bytes", engine.limbo_bytes},
          {"filling_bytes", engine.filling_bytes},
          {"free_bytes", engine.free_bytes},
          {"block_bytes", engine.block_bytes},
          {"held_gone_bytes", engine.held_gone_bytes},
          {"arena_bytes", host.arena_bytes},
          {"pretouch",
           {{"done_bytes", host.blank_bytes},
            {"target_bytes", host.blank_target_bytes},
            {"state", host.reserve}}},
          {"hugetlb_bytes", host.hugetlb_bytes},
          {"thp_bytes", host.thp_bytes},
          {"small_page_bytes", host.small_page_bytes},
          {"locked_bytes", host.locked_bytes},
          {"huge_pages", host.huge_pages},
          {"locking", host.locking},
          {"policy", engine.policy}};
}

Json Layout(const KvLayout& layout) {
  return {{"dtype", layout.dtype},
          {"layers", layout.layers},
          {"kv_heads", layout.kv_heads},
          {"head_size", layout.head_size},
          {"page_tokens", layout.page_tokens},
          {"planes", layout.planes},
          {"order", layout.order}};
}

Json Version(const ModelVersionReport& version) {
  Json files = Json::array();
  for (const SourceFile& file : version.files) {
    files.push_back({{"path", file.path},
                     {"bytes", file.bytes},
                     {"reopenable", file.reopenable},
                     {"why_not", file.why_not}});
  }
  return {{"version", version.version},
          {"state", version.state},
          {"tensors", version.tensors},
          {"bytes", version.bytes},
          {"blocks", version.blocks},
          {"blocks_resident", version.blocks_resident},
          {"loading_done_bytes", version.loading_done_bytes},
          {"imported", version.imported},
          {"image_problem", version.image_problem},
          {"loaded",
           {{"image_bytes", version.loaded.image_bytes},
            {"direct_bytes", version.loaded.direct_bytes},
            {"cached_bytes", version.loaded.cached_bytes},
            {"buffered_bytes", version.loaded.buffered_bytes},
            {"why_buffered", version.loaded.why_buffered},
            {"checked_by", version.loaded.checked_by}}},
          {"attachments", version.attachments},
          {"durable", version.durable},
          {"digest", version.digest.IsZero() ? "" : version.digest.Hex()},
          {"files", std::move(files)}};
}

constexpr std::array<const char*, kItemClasses> kClassNames = {"weights", "kv", "object"};
constexpr std::array<const char*, kReadFaults> kFaultNames = {
    "none", "io", "overdue", "header", "name", "stale", "data", "refused"};
constexpr std::array<const char*, kUnspilled> kUnspilledNames = {
    "none", "device", "queue", "rare", "budget", "place", "space", "gone", "failed"};
constexpr std::array<const char*, kStoredErasures> kErasureNames = {"room", "dropped", "stale",
                                                                    "unknown", "fault"};

Json AmountOf(const Amount& amount) {
  return {{"pages", amount.extents}, {"bytes", amount.bytes}};
}

Json ByClass(const Amount (&amounts)[kItemClasses]) {
  Json json = Json::object();
  for (int i = 0; i < kItemClasses; ++i) {
    if (amounts[i].extents != 0) json[kClassNames[i]] = AmountOf(amounts[i]);
  }
  return json;
}

// By reason; the first is that there was none.
template <size_t n, typename Counts>
Json NotZero(const std::array<const char*, n>& names, const Counts& counts) {
  Json json = Json::object();
  for (size_t i = 1; i < n; ++i) {
    if (counts[i] != 0) json[names[i]] = counts[i];
  }
  return json;
}

const char* StateName(DeviceState state) {
  switch (state) {
    case DeviceState::kServing:
      return "serving";
    case DeviceState::kReadOnly:
      return "read_only";
    case DeviceState::kQuarantined:
      return "quarantined";
    case DeviceState::kOff:
      break;
  }
  return "off";
}

Json DeviceJson(const DeviceReport& device) {
  return {{"path", device.path},
          {"state", StateName(device.state)},
          {"why", device.why},
          {"capacity_bytes", device.capacity_bytes},
          {"allocated_bytes", device.allocated_bytes},
          {"file_bytes", device.file_bytes},
          {"reads", device.reads},
          {"writes", device.writes},
          {"read_bytes", device.read_bytes},
          {"written_bytes", device.written_bytes},
          {"read_errors", device.read_errors},
          {"write_errors", device.write_errors},
          {"overdue", device.overdue},
          {"in_flight", device.in_flight},
          {"waiting", device.waiting}};
}

Json StoreTierJson(const EngineFigures& figures) {
  constexpr std::array<const char*, 3> kDurabilities = {"none", "process", "power"};
  const StoreFigures& store = figures.store;
  Json json = {{"tier", "nvme"},
               {"capacity_bytes", store.capacity_bytes},
               {"used_bytes", store.used_bytes},
               {"free_bytes", store.free_bytes},
               {"pages", store.pages},
               {"spaces", store.spaces},
               {"io", store.store.io},
               {"durability", kDurabilities[static_cast<size_t>(store.store.durability)]},
               {"index_bytes", store.store.index_bytes},
               {"catalog_bytes", store.catalog_bytes},
               {"tenants", Json::object()},
               {"absent_tenants", ByClass(store.absent)},
               {"spilled", AmountOf(store.spilled)},
               {"promoted", AmountOf(store.promoted)},
               {"erased", Json::object()},
               {"unspilled", NotZero(kUnspilledNames, store.unspilled)},
               {"faults", NotZero(kFaultNames, store.faults)},
               {"scrub",
                {{"bytes_per_second", store.scrub_bytes_per_second},
                 {"pages", store.scrubbed.extents},
                 {"bytes", store.scrubbed.bytes},
                 {"rounds", store.scrub_rounds},
                 {"faults", NotZero(kFaultNames, store.scrub_faults)}}},
               {"queued_pages", store.queued_pages},
               {"writing_pages", store.writing_pages},
               {"reading_pages", store.reading_pages},
               {"erasing_pages", store.erasing_pages},
               {"requests", store.requests},
               {"held_bytes", store.held_bytes},
               {"fetch_latency_ns", store.fetch_latency_ns},
               {"fetch_bytes_per_second", store.fetch_bytes_per_second},
               {"devices", Json::array()}};
  // Without a limit there is no budget to tell.
  if (store.write_budget_bytes != UINT64_MAX) json["write_budget_bytes"] = store.write_budget_bytes;
  for (const TenantFigures& tenant : figures.tenants)
    json["tenants"][tenant.name] = ByClass(tenant.stored);
  for (int i = 0; i < kStoredErasures; ++i) {
    if (store.erased[i].extents != 0) json["erased"][kErasureNames[i]] = AmountOf(store.erased[i]);
  }
  for (const DeviceReport& device : store.store.devices)
    json["devices"].push_back(DeviceJson(device));
  return json;
}

Json GpuBytes(const GpuReport& gpu) {
  return {{"weights", gpu.bytes.weights},
          {"pages", gpu.bytes.pages},
          {"leaving", gpu.bytes.leaving},
          {"zombies", gpu.bytes.zombies}};
}

Json GpuTransfers(const GpuReport& gpu) {
  return {{"promoted", {{"pages", gpu.promoted_pages}, {"bytes", gpu.promoted_bytes}}},
          {"demoted", {{"pages", gpu.demoted_pages}, {"bytes", gpu.demoted_bytes}}},
          {"evicted_pages", gpu.evicted_pages},
          {"evicted_blocks", gpu.evicted_blocks},
          {"lost_pages", gpu.lost_pages},
          {"loaded_bytes", gpu.loaded_bytes},
          {"unmap_requests", gpu.unmap_requests}};
}

Json Mover(const DeviceTierReport& tier) {
  return {{"pid", tier.process},
          {"host_bytes", tier.host_bytes},
          {"registered_bytes", tier.registered_bytes},
          {"registration", tier.registration},
          {"direct_bytes", tier.direct_bytes},
          {"staged_bytes", tier.staged_bytes},
          {"waiting", tier.waiting},
          {"in_flight", tier.in_flight},
          {"completed", tier.completed},
          {"replayed", tier.replayed},
          {"failed", tier.failed},
          {"starts", tier.starts},
          {"crashes", tier.crashes},
          {"hangs", tier.hangs},
          {"broken", tier.broken},
          {"distrusted", tier.distrusted},
          {"lost_arenas", tier.lost_arenas}};
}

// Before its first process was ready, it has neither name nor mode.
Json GpuJson(const GpuReport& gpu) {
  const DeviceTierReport& tier = gpu.tier;
  Json json = {{"device", gpu.device},
               {"uuid", tier.uuid},
               {"name", tier.name},
               {"kind", gpu.kind},
               {"driver", tier.driver},
               {"mode", tier.granularity == 0 ? ""
                        : tier.slabs          ? "slabs"
                                              : "legacy handles"},
               {"state", GpuStateName(tier.state)},
               {"why", tier.why},
               {"tenants", gpu.tenants},
               {"capacity_bytes", gpu.capacity_bytes},
               {"used_bytes", gpu.bytes.used()},
               {"bytes", GpuBytes(gpu)},
               {"tenant_bytes", gpu.tenant_bytes},
               {"zombie_arenas", gpu.zombie_arenas},
               {"arenas", tier.arenas},
               {"total_bytes", tier.total_bytes},
               {"total_free_bytes", tier.free_bytes},
               {"granularity", tier.granularity},
               {"pages", gpu.linked_pages},
               {"linked_bytes", gpu.linked_bytes},
               {"granted_bytes", gpu.granted_bytes},
               {"limbo_bytes", gpu.limbo_bytes},
               {"filling_bytes", gpu.filling_bytes},
               {"free_bytes", gpu.free_bytes},
               {"policy", gpu.policy}};
  json.update(GpuTransfers(gpu));
  json["mover"] = Mover(tier);
  return json;
}

Json GpusJson(const std::vector<GpuReport>& devices) {
  Json json = Json::array();
  for (const GpuReport& device : devices)
    json.push_back(GpuJson(device));
  return json;
}

}  // namespace

std::string_view GpuStateName(DeviceTierState state) {
  constexpr std::array<std::string_view, 4> kNames = {"starting", "serving", "ending", "resting"};
  return kNames[static_cast<size_t>(state)];
}

std::string_view FrameTypeName(size_t type) {
  if (type < kRequestNames.size()) return kRequestNames[type];
  switch (static_cast<wire::Type>(type)) {
    case wire::Type::kProgressEvent:
      return "progress_event";
    case wire::Type::kGrantExpiredEvent:
      return "grant_expired_event";
    case wire::Type::kUnmapEvent:
      return "unmap_event";
    case wire::Type::kUnmapWantedEvent:
      return "unmap_wanted_event";
    default:
      return "";
  }
}

std::string StatusJson(const StatusReport& engine, const ServiceReport& service,
                       const std::vector<GpuReport>& devices) {
  const Json json = {
      {"daemon", Daemon(service)},
      {"host", Host(engine, service)},
      {"clients",
       {{"count", engine.clients}, {"away", service.clients_away}, {"pins", engine.pins}}},
      {"pages",
       {{"count", engine.pages},
        {"spaces", engine.spaces},
        {"grants", engine.grants},
        {"abandoned_grants", engine.abandoned_grants},
        {"limbo", engine.limbo_pages},
        {"committed", engine.committed_pages},
        {"duplicate_commits", engine.duplicate_commits},
        {"expired_grants", engine.expired_grants},
        {"evicted", engine.evicted_pages},
        {"evictions_pinned", engine.evictions_pinned},
        {"failed_allocations", engine.failed_allocations},
        {"directory_growths", engine.directory_growths}}},
      {"blocks", {{"evicted", engine.evicted_blocks}}},
      {"devices", GpusJson(devices)},
      {"devices_by",
       {{"choice", service.device_choice},
        {"kind", service.device_kind},
        {"why", service.devices_why}}},
      {"lookups", Lookups(engine.lookups)},
      {"traffic", TrafficOf(service)},
      {"restore_problems", engine.restore_problems}};
  return Dump(json);
}

std::string ModelsJson(const std::vector<ModelReport>& models) {
  Json list = Json::array();
  for (const ModelReport& model : models) {
    Json versions = Json::array();
    for (const ModelVersionReport& version : model.versions)
      versions.push_back(Version(version));
    list.push_back(
        {{"name", model.name}, {"tenants", model.tenants}, {"versions", std::move(versions)}});
  }
  return Dump({{"models", std::move(list)}});
}

std::string SpacesJson(const std::vector<SpaceReport>& spaces) {
  Json list = Json::array();
  for (const SpaceReport& space : spaces) {
    list.push_back({{"id", space.id.Hex()},
                    {"tenant", space.tenant},
                    {"model", space.model},
                    {"layout", Layout(space.layout)},
                    {"slot", space.slot},
                    {"epoch", space.epoch},
                    {"page_bytes", space.page_bytes},
                    {"open_by", space.open_by},
                    {"pages", space.pages},
                    {"bytes", space.bytes}});
  }
  return Dump({{"spaces", std::move(list)}});
}

std::string ClientsJson(const std::vector<ClientReport>& clients) {
  Json list = Json::array();
  for (const ClientReport& client : clients) {
    list.push_back({{"id", client.id},
                    {"name", client.name},
                    {"tenant", client.tenant},
                    {"pid", client.pid},
                    {"uid", client.uid},
                    {"writer", client.writer},
                    {"pins", client.pins},
                    {"pinned_bytes", client.pinned_bytes},
                    {"grants", client.grants},
                    {"granted_bytes", client.granted_bytes},
                    {"attachments", client.attachments},
                    {"attached_bytes", client.attached_bytes},
                    {"lookups", Lookups(client.lookups)}});
  }
  return Dump({{"clients", std::move(list)}});
}

std::string TiersJson(const EngineFigures& figures) {
  Json tiers = Json::array();
  Json host = {{"tier", "host"},
               {"capacity_bytes", figures.host_capacity_bytes},
               {"used_bytes", figures.used_bytes},
               {"tenants", Json::object()}};
  for (const TenantFigures& tenant : figures.tenants)
    host["tenants"][tenant.name] = {{"kv", tenant.linked.bytes}};
  tiers.push_back(std::move(host));
  if (figures.store.present) tiers.push_back(StoreTierJson(figures));
  return Dump({{"tiers", std::move(tiers)}, {"devices", GpusJson(figures.devices)}});
}

std::string StoreCheckJson(const StoreCheckReport& checked, const StoreCheckSpec& spec) {
  Json findings = {{"unreadable_record", checked.unreadable_records},
                   {"unknown_entry", checked.unknown_entries},
                   {"missing_entry", checked.missing_entries},
                   {"unknown_slot", checked.unknown_slots}};
  for (const ReadFault fault : {ReadFault::kHeader, ReadFault::kName, ReadFault::kStale,
                                ReadFault::kData, ReadFault::kIo}) {
    const auto i = static_cast<size_t>(fault);
    findings[kFaultNames[i]] = checked.faults[i];
  }
  return Dump({{"clean", checked.findings() == 0},
               {"read_data", spec.read_data},
               {"repair", spec.repair},
               {"entries", checked.entries},
               {"pages", checked.pages},
               {"read_pages", checked.read_pages},
               {"read_bytes", checked.read_bytes},
               {"not_read", checked.not_read},
               {"findings", std::move(findings)},
               {"repaired", checked.repaired},
               {"examples", checked.examples}});
}

std::string PagesJson(const std::vector<PageReport>& pages) {
  Json list = Json::array();
  for (const PageReport& page : pages) {
    list.push_back({{"space", page.space.Hex()},
                    {"key", page.key.Hex()},
                    {"part", page.part},
                    {"bytes", page.bytes},
                    {"valid_tokens", page.valid_tokens},
                    {"arena", page.arena},
                    {"slot", page.slot}});
  }
  return Dump({{"pages", std::move(list)}});
}

}  // namespace terrace
