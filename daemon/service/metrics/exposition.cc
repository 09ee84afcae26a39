#include "daemon/service/metrics/exposition.h"

#include <prometheus/collectable.h>
#include <prometheus/metric_family.h>
#include <prometheus/text_serializer.h>

#include <array>
#include <initializer_list>
#include <span>
#include <string_view>
#include <vector>

#include "daemon/service/metrics/family.h"
#include "daemon/service/metrics/process_figures.h"
#include "proto/shared_memory.h"

namespace terrace {

namespace {

using prometheus::MetricFamily;
using prometheus::MetricType;

constexpr std::string_view kHost = "host";
constexpr std::string_view kNvme = "nvme";
constexpr std::array<std::string_view, kItemClasses> kClasses = {"weights", "kv", "object"};
constexpr std::array<std::string_view, shm::kTiers> kTiers = {"device", kHost, kNvme, "remote"};
constexpr std::array<std::string_view, shm::kMisses> kMisses = {
    "absent", "beyond", "stale", "busy", "budget", "disconnected", "unmapped"};
constexpr std::array<std::string_view, kEvictionReasons> kReasons = {"pages", "weights", "reserve",
                                                                     "capacity", "operator"};
constexpr double kNsPerSecondF = 1e9;
constexpr size_t kSpaceHexDigits = 32;  // 128 bits: nobody finds two ids that begin alike.

class Exposition final : public prometheus::Collectable {
 public:
  explicit Exposition(const Snapshot& snapshot) : snapshot_(snapshot), engine_(snapshot.engine) {
    for (const TenantFigures& tenant : engine_.tenants)
      names_.push_back(LabelText(tenant.name));
  }

  std::vector<MetricFamily> Collect() const override {
    std::vector<MetricFamily> families;
    families.reserve(kMostFamilies);
    AddDaemon(&families);
    AddMemory(&families);
    AddLookups(&families);
    AddPages(&families);
    AddEvictions(&families);
    AddTenants(&families);
    AddSpaces(&families);
    AddWeights(&families);
    AddTransferTimes(&families);
    AddService(&families);
    AddQueues(&families);
    AddLoop(&families);
    AddStore(&families, engine_.store);
    AddGpus(&families, engine_.devices);
    return families;
  }

 private:
  template <typename Visit>
  void EachTenant(const Visit& visit) const {
    for (size_t i = 0; i < names_.size(); ++i)
      visit(std::string_view(names_[i]), engine_.tenants[i]);
  }
  // One number a tenant.
  template <typename Value>
  void AddByTenant(Family family, const Value& value) const {
    EachTenant([&](std::string_view name, const TenantFigures& tenant) {
      family.Add({{"tenant", name}}, value(tenant));
    });
  }

  void AddDaemon(Families* families) const {
    Gauge(families, "terrace_build_info", "1; the labels tell what runs.")
        .Add({{"version", TERRACE_VERSION},
              {"layout_version", std::to_string(shm::kLayoutVersion)},
              {"compiler", __VERSION__}},
             1.0);
    const ProcessFigures process = ReadProcessFigures();
    Gauge(families, "process_start_time_seconds", "When the daemon started, since the epoch.")
        .Add({}, process.start_time_seconds);
    Counter(families, "process_cpu_seconds_total", "Processor time of all threads of the daemon.")
        .Add({}, process.cpu_seconds);
    Gauge(families, "process_resident_memory_bytes",
          "Resident memory of the daemon, shared memory included.")
        .Add({}, process.resident_bytes);
    Gauge(families, "process_open_fds", "Descriptors that the daemon has open.")
        .Add({}, process.open_fds);
    Gauge(families, "process_max_fds", "Descriptors that the daemon may have open.")
        .Add({}, process.max_fds);
  }

  void AddMemory(Families* families) const {
    const ServiceFigures& service = snapshot_.service;
    const HostReport& host = engine_.host;
    Gauge(families, "terrace_memory_limit_bytes",
          "Memory limit of the control group or machine that the daemon found.")
        .Add({}, service.memory_limit_bytes);
    const StoreFigures& store = engine_.store;
    Family capacity =
        Gauge(families, "terrace_tier_capacity_bytes", "What the tier may hold at present.");
    capacity.Add({{"tier", kHost}}, engine_.host_capacity_bytes);
    if (store.present) capacity.Add({{"tier", kNvme}}, store.capacity_bytes);
    Gauge(families, "terrace_tier_capacity_wanted_bytes", "What it may hold by configuration.")
        .Add({{"tier", kHost}}, service.capacity_wanted_bytes);
    Family used = Gauge(families, "terrace_tier_used_bytes",
                        "In use of the tier: the sum of its terrace_extent_bytes.");
    used.Add({{"tier", kHost}}, engine_.used_bytes);
    if (store.present) used.Add({{"tier", kNvme}}, store.used_bytes);
    AddExtents(families, "terrace_extents",
               "Extents by state: pages of KV, blocks and manifests of weights.",
               [](const Amount& amount) { return amount.extents; });
    AddExtents(families, "terrace_extent_bytes",
               "Bytes of extents by state; of weights no tenant is the owner.",
               [](const Amount& amount) { return amount.bytes; });
    Gauge(families, "terrace_arena_bytes", "Sizes of the tier's arenas, holes included.")
        .Add({{"tier", kHost}}, uint64_t{host.arena_bytes});
    Gauge(families, "terrace_blank_bytes", "Pre-touched memory that nothing has used yet.")
        .Add({{"tier", kHost}}, uint64_t{host.blank_bytes});
    Gauge(families, "terrace_blank_target_bytes", "How much of that is wanted.")
        .Add({{"tier", kHost}}, uint64_t{host.blank_target_bytes});
    Family resident = Gauge(families, "terrace_resident_bytes",
                            "Populated memory of the tier, blanks included, by kind of page.");
    resident.Add({{"tier", kHost}, {"pages", "hugetlb"}}, uint64_t{host.hugetlb_bytes});
    resident.Add({{"tier", kHost}, {"pages", "transparent"}}, uint64_t{host.thp_bytes});
    resident.Add({{"tier", kHost}, {"pages", "small"}}, uint64_t{host.small_page_bytes});
    Gauge(families, "terrace_locked_bytes", "Of that, memory that the kernel will not swap.")
        .Add({{"tier", kHost}}, uint64_t{host.locked_bytes});
  }

  template <typename Part>
  void AddExtents(Families* families, const char* name, const char* help, const Part& part) const {
    Family family = Gauge(families, name, help);
    const auto add = [&](std::string_view of_class, std::string_view tenant, std::string_view state,
                         const Amount& amount) {
      family.Add({{"tier", kHost}, {"class", of_class}, {"tenant", tenant}, {"state", state}},
                 part(amount));
    };
    EachTenant([&](std::string_view tenant, const TenantFigures& figures) {
      add("kv", tenant, "linked", figures.linked);
      add("kv", tenant, "granted", figures.granted);
      add("kv", tenant, "abandoned", figures.abandoned);
      add("kv", tenant, "limbo", figures.limbo);
      add("kv", tenant, "filling", figures.filling);
      add("kv", tenant, "free", figures.free);
    });
    add("weights", "", "held", engine_.weights.held);
    add("weights", "", "idle", engine_.weights.idle);
    add("weights", "", "gone", engine_.weights.gone);
    if (!engine_.store.present) return;
    const auto add_stored = [&](std::string_view tenant, const Amount(&stored)[kItemClasses]) {
      for (int of = 0; of < kItemClasses; ++of) {
        if (stored[of].extents == 0 && kClasses[of] != "kv") continue;
        family.Add(
            {{"tier", kNvme}, {"class", kClasses[of]}, {"tenant", tenant}, {"state", "stored"}},
            part(stored[of]));
      }
    };
    EachTenant([&](std::string_view tenant, const TenantFigures& figures) {
      add_stored(tenant, figures.stored);
    });
    add_stored("", engine_.store.absent);
  }

  void AddLookups(Families* families) const {
    AddByTenant(Counter(families, "terrace_lookups_total",
                        "Pages that clients asked for: the sum of hits and misses."),
                [](const TenantFigures& tenant) { return tenant.lookups.lookups; });
    Family hits = Counter(families, "terrace_hits_total", "Pages found, by tier.");
    Family misses = Counter(families, "terrace_misses_total", "Pages not found, by reason.");
    EachTenant([&](std::string_view name, const TenantFigures& tenant) {
      for (uint32_t tier = 0; tier < shm::kTiers; ++tier) {
        // A client may claim hits in a tier that is not there; told, so that the sum holds.
        if (tier != static_cast<uint32_t>(shm::Tier::kHost) && tenant.lookups.hits[tier] == 0) {
          continue;
        }
        hits.Add({{"tenant", name}, {"tier", kTiers[tier]}}, tenant.lookups.hits[tier]);
      }
      for (uint32_t miss = 0; miss < shm::kMisses; ++miss)
        misses.Add({{"tenant", name}, {"reason", kMisses[miss]}}, tenant.lookups.misses[miss]);
    });
    AddByTenant(Counter(families, "terrace_dropped_ring_records_total",
                        "Touches and misses that found a client's ring full."),
                [](const TenantFigures& tenant) { return tenant.lookups.dropped; });
    AddHitTimes(families);
  }

  void AddHitTimes(Families* families) const {
    std::array<double, shm::kHitTimeBuckets - 1> bounds;
    for (uint32_t i = 0; i < bounds.size(); ++i)
      bounds[i] = static_cast<double>(shm::HitTimeBoundNs(i)) / kNsPerSecondF;
    Family family(families, "terrace_hit_duration_seconds",
                  "Time of a page's hit as clients tell it, sampled: one in about 1024.",
                  MetricType::Histogram);
    EachTenant([&](std::string_view name, const TenantFigures& tenant) {
      family.AddHistogram({{"tenant", name}}, bounds, tenant.lookups.hit_times,
                          static_cast<double>(tenant.lookups.hit_ns) / kNsPerSecondF);
    });
  }

  void AddPages(Families* families) const {
    Family grants =
        Gauge(families, "terrace_grants",
              "Pages being written; abandoned: past the deadline and not given back yet.");
    EachTenant([&](std::string_view name, const TenantFigures& tenant) {
      grants.Add({{"tenant", name}, {"state", "open"}}, tenant.granted.extents);
      grants.Add({{"tenant", name}, {"state", "abandoned"}}, tenant.abandoned.extents);
    });
    const auto add = [&](const char* name, const char* help, const auto& value) {
      AddByTenant(Counter(families, name, help),
                  [&](const TenantFigures& tenant) { return value(tenant.pages); });
    };
    add("terrace_granted_pages_total", "Pages granted to writers.",
        [](const PageCounts& pages) { return pages.granted.extents; });
    add("terrace_failed_grants_total", "Pages refused for want of memory: all is pinned or in use.",
        [](const PageCounts& pages) { return pages.failed_allocations; });
    add("terrace_expired_grants_total", "Grants whose deadline passed.",
        [](const PageCounts& pages) { return pages.expired_grants; });
    Family commits =
        Counter(families, "terrace_commits_total",
                "Pages committed: linked, or a duplicate, stale by then, or refused (too late).");
    EachTenant([&](std::string_view name, const TenantFigures& tenant) {
      const PageCounts& pages = tenant.pages;
      commits.Add({{"tenant", name}, {"result", "linked"}}, pages.committed.extents);
      commits.Add({{"tenant", name}, {"result", "duplicate"}}, pages.duplicate_commits);
      commits.Add({{"tenant", name}, {"result", "stale"}}, pages.stale_commits);
      commits.Add({{"tenant", name}, {"result", "refused"}}, pages.refused_commits);
    });
    add("terrace_committed_bytes_total", "Bytes of the pages that were linked.",
        [](const PageCounts& pages) { return pages.committed.bytes; });
    add("terrace_reused_pages_total",
        "Of the pages that were linked, those that somebody has found at least once.",
        [](const PageCounts& pages) { return pages.reused; });
    add("terrace_dropped_pages_total", "Pages that writers dropped.",
        [](const PageCounts& pages) { return pages.dropped; });
    if (!engine_.store.present) return;
    add("terrace_promoted_pages_total", "Pages brought back into memory from the store.",
        [](const PageCounts& pages) { return pages.promoted.extents; });
    add("terrace_evicted_unstored_pages_total", "Pages evicted that the store did not have.",
        [](const PageCounts& pages) { return pages.evicted_unstored.extents; });
  }

  template <typename Part>
  void AddEvicted(Families* families, const char* name, const char* help, const Part& part) const {
    Family family = Counter(families, name, help);
    const auto add = [&](std::string_view of_class, std::string_view tenant,
                         const Amount(&by_reason)[kEvictionReasons]) {
      for (int reason = 0; reason < kEvictionReasons; ++reason) {
        family.Add({{"tier", kHost},
                    {"class", of_class},
                    {"tenant", tenant},
                    {"reason", kReasons[reason]}},
                   part(by_reason[reason]));
      }
    };
    EachTenant([&](std::string_view tenant, const TenantFigures& figures) {
      add("kv", tenant, figures.evicted);
    });
    add("weights", "", engine_.weights.evicted);
  }

  void AddEvictions(Families* families) const {
    AddEvicted(families, "terrace_evicted_extents_total", "Pages and blocks evicted, by reason.",
               [](const Amount& amount) { return amount.extents; });
    AddEvicted(families, "terrace_evicted_bytes_total", "Their bytes.",
               [](const Amount& amount) { return amount.bytes; });
    Counter(families, "terrace_spared_victims_total",
            "Pages chosen for eviction that were found pinned, and kept.")
        .Add({}, engine_.evictions_pinned);
  }

  void AddTenants(Families* families) const {
    const auto add = [&](const char* name, const char* help, const auto& value) {
      AddByTenant(Gauge(families, name, help), value);
    };
    add("terrace_clients", "Clients, those without a connection included.",
        [](const TenantFigures& tenant) { return tenant.clients; });
    add("terrace_pins", "Pages that clients have pinned, each pin counted.",
        [](const TenantFigures& tenant) { return tenant.pins; });
    add("terrace_pinned_bytes", "Bytes of pinned pages, once for each client, at the last scan.",
        [](const TenantFigures& tenant) { return tenant.pinned_bytes; });
    add("terrace_spaces", "Spaces that are present.",
        [](const TenantFigures& tenant) { return tenant.spaces; });
    add("terrace_directory_entries", "Entries that the tenant's directory has room for.",
        [](const TenantFigures& tenant) { return tenant.directory_capacity; });
  }

  void AddSpaces(Families* families) const {
    std::vector<std::array<std::string, 2>> words;  // Of each space: id, model.
    words.reserve(engine_.spaces.size());
    for (const SpaceFigures& space : engine_.spaces)
      words.push_back({space.id.Hex().substr(0, kSpaceHexDigits), LabelText(space.model)});
    const auto add = [&](Family family, const auto& value) {
      for (size_t i = 0; i < words.size(); ++i) {
        const SpaceFigures& space = engine_.spaces[i];
        family.Add(
            {{"tenant", names_[space.tenant]}, {"model", words[i][1]}, {"space", words[i][0]}},
            value(space));
      }
    };
    add(Gauge(families, "terrace_space_pages", "Pages of a space."),
        [](const SpaceFigures& space) { return space.pages; });
    add(Gauge(families, "terrace_space_bytes", "Their bytes."),
        [](const SpaceFigures& space) { return space.bytes; });
    add(Counter(families, "terrace_space_hits_total", "Pages found in a space, as rings told it."),
        [](const SpaceFigures& space) { return space.hits; });
    add(Counter(families, "terrace_space_misses_total",
                "Pages looked for in vain in a space, likewise."),
        [](const SpaceFigures& space) { return space.misses; });
  }

  void AddWeights(Families* families) const {
    const WeightsFigures& weights = engine_.weights;
    Gauge(families, "terrace_model_versions", "Registered versions of models.")
        .Add({}, weights.versions);
    Gauge(families, "terrace_attachments", "Attachments of clients to weights.")
        .Add({}, weights.attachments);
    Gauge(families, "terrace_loads", "Loads of weights that are running.").Add({}, weights.loads);
    Family moved = Counter(families, "terrace_transfer_bytes_total", "Bytes moved between places.");
    moved.Add({{"from", "file"}, {"to", kHost}}, weights.read_bytes);
    if (!engine_.store.present) return;
    moved.Add({{"from", kHost}, {"to", kNvme}}, engine_.store.spilled.bytes);
    moved.Add({{"from", kNvme}, {"to", kHost}}, engine_.store.promoted.bytes);
  }

  void AddTransferTimes(Families* families) const {
    std::array<double, Durations::kBoundsNs.size()> bounds;
    for (size_t i = 0; i < bounds.size(); ++i)
      bounds[i] = static_cast<double>(Durations::kBoundsNs[i]) / kNsPerSecondF;
    Family family(families, "terrace_transfer_duration_seconds",
                  "From sending a page or a block on its way until it may be used where it went.",
                  MetricType::Histogram);
    const auto add = [&](std::string_view from, std::string_view to, const Durations& times) {
      family.AddHistogram({{"from", from}, {"to", to}}, bounds, times.counts,
                          static_cast<double>(times.total_ns) / kNsPerSecondF);
    };
    add("file", kHost, engine_.weights.read_times);
    if (!engine_.store.present) return;
    add(kHost, kNvme, engine_.store.spill_times);
    add(kNvme, kHost, engine_.store.promote_times);
  }

  void AddService(Families* families) const {
    const ServiceFigures& service = snapshot_.service;
    const Traffic& traffic = service.traffic;
    Gauge(families, "terrace_clients_away", "Clients that have no connection at present.")
        .Add({}, service.clients_away);
    Gauge(families, "terrace_connections", "Connections to the sockets of clients.")
        .Add({}, service.connections);
    Counter(families, "terrace_connections_accepted_total", "Connections that were accepted.")
        .Add({}, traffic.connections_accepted);
    Counter(families, "terrace_connections_refused_total", "Connections that were refused.")
        .Add({}, traffic.connections_refused);
    Counter(families, "terrace_protocol_violations_total",
            "What clients sent that no client may send; each closed a connection.")
        .Add({}, traffic.protocol_violations);
    Counter(families, "terrace_slow_connections_cut_total",
            "Connections cut because their client took or ended nothing in time.")
        .Add({}, traffic.slow_readers_cut);
    Family bytes = Counter(families, "terrace_socket_bytes_total", "Bytes on clients' sockets.");
    bytes.Add({{"direction", "received"}}, traffic.bytes_received);
    bytes.Add({{"direction", "sent"}}, traffic.bytes_sent);
    Family frames =
        Counter(families, "terrace_frames_total", "Frames on them, by type; errors are sent.");
    for (size_t type = 0; type < Traffic::kTypes; ++type) {
      const std::string_view name = FrameTypeName(type);
      if (name.empty()) continue;
      if (traffic.frames_received[type] > 0) {
        frames.Add({{"direction", "received"}, {"type", name}}, traffic.frames_received[type]);
      }
      if (traffic.frames_sent[type] > 0) {
        frames.Add({{"direction", "sent"}, {"type", name}}, traffic.frames_sent[type]);
      }
    }
  }

  void AddQueues(Families* families) const {
    uint64_t ring_records = 0;
    for (const TenantFigures& tenant : engine_.tenants)
      ring_records += tenant.ring_records;
    Family depth = Gauge(families, "terrace_queue_depth", "What waits in the daemon's queues.");
    depth.Add({{"queue", "requests"}}, snapshot_.service.requests_in_flight);
    depth.Add({{"queue", "load_waiters"}}, engine_.weights.waiters);
    depth.Add({{"queue", "ring_records"}}, ring_records);
    depth.Add({{"queue", "touch_tasks"}}, snapshot_.queues.touch_tasks);
    depth.Add({{"queue", "read_tasks"}}, snapshot_.queues.read_tasks);
    depth.Add({{"queue", "journal_writes"}}, snapshot_.queues.journal_writes);
    Family bytes = Gauge(families, "terrace_queue_bytes", "Bytes of what waits, likewise.");
    bytes.Add({{"queue", "output"}}, snapshot_.service.output_bytes);
    bytes.Add({{"queue", "large_input"}}, snapshot_.service.large_input_bytes);
    const StoreFigures& store = engine_.store;
    if (!store.present) return;
    depth.Add({{"queue", "to_be_stored"}}, store.queued_pages);
    depth.Add({{"queue", "store_writes"}}, store.writing_pages);
    depth.Add({{"queue", "store_reads"}}, store.reading_pages);
    depth.Add({{"queue", "store_erasures"}}, store.erasing_pages);
    depth.Add({{"queue", "prefetches"}}, store.requests);
    depth.Add({{"queue", "held_pages"}}, store.holds);
    bytes.Add({{"queue", "store_writes"}}, store.writing_bytes);
    bytes.Add({{"queue", "store_reads"}}, store.reading_bytes);
    bytes.Add({{"queue", "held_pages"}}, store.held_bytes);
  }

  void AddLoop(Families* families) const {
    std::array<double, LoopTimes::kBoundsNs.size()> bounds;
    for (size_t i = 0; i < bounds.size(); ++i)
      bounds[i] = static_cast<double>(LoopTimes::kBoundsNs[i]) / kNsPerSecondF;
    Family(families, "terrace_loop_duration_seconds",
           "How long one callback kept the owner thread: all else waits so long.",
           MetricType::Histogram)
        .AddHistogram({}, bounds, snapshot_.loop.counts,
                      static_cast<double>(snapshot_.loop.total_ns) / kNsPerSecondF);
  }

  const Snapshot& snapshot_;
  const EngineFigures& engine_;
  std::vector<std::string> names_;  // Of tenants, as labels.
};

}  // namespace

std::string ExpositionOf(const Snapshot& snapshot) {
  return prometheus::TextSerializer().Serialize(Exposition(snapshot).Collect());
}

}  // namespace terrace
