// What a scrape tells of the page store and of its devices, beside what it tells of every tier.
#include <array>
#include <string>

#include "daemon/service/metrics/family.h"

namespace terrace {

namespace {

constexpr std::string_view kNvme = "nvme";
// By their enumerations; of some the first is that there is nothing to tell.
constexpr std::array<std::string_view, kReadFaults> kFaults = {
    "", "io", "overdue", "header", "name", "stale", "data", "refused"};
constexpr std::array<std::string_view, kUnspilled> kReasonsUnspilled = {
    "", "device", "queue", "rare", "budget", "place", "space", "gone", "failed"};
constexpr std::array<std::string_view, kStoredErasures> kErasures = {"room", "dropped", "stale",
                                                                     "unknown", "fault"};
constexpr std::array<std::string_view, 4> kStates = {"serving", "read_only", "quarantined", "off"};
constexpr std::array<std::string_view, 3> kDurabilities = {"none", "process", "power"};
constexpr double kNsPerSecondF = 1e9;

void AddPages(Families* families, const StoreFigures& store) {
  Family erased = Counter(families, "terrace_store_erased_pages_total",
                          "Pages that left the store, by reason.");
  Family erased_bytes = Counter(families, "terrace_store_erased_bytes_total",
                                "What they took of it, headers included.");
  for (int i = 0; i < kStoredErasures; ++i) {
    erased.Add({{"reason", kErasures[i]}}, store.erased[i].extents);
    erased_bytes.Add({{"reason", kErasures[i]}}, store.erased[i].bytes);
  }
  Family unspilled = Counter(families, "terrace_store_unspilled_pages_total",
                             "Pages that were not written to the store, by reason.");
  for (int i = 1; i < kUnspilled; ++i)
    unspilled.Add({{"reason", kReasonsUnspilled[i]}}, store.unspilled[i]);
  Family faults = Counter(families, "terrace_store_faults_total",
                          "Pages asked of the store's devices and not served, by reason.");
  for (int i = 1; i < kReadFaults; ++i)
    faults.Add({{"reason", kFaults[i]}}, store.faults[i]);
  Counter(families, "terrace_store_spilled_pages_total", "Pages written to the store.")
      .Add({}, store.spilled.extents);
  Counter(families, "terrace_store_stale_reads_total",
          "Pages whose space or generation ended while they were read.")
      .Add({}, store.stale_reads);
  Counter(families, "terrace_prefetched_keys_total", "Pages that prefetches asked for.")
      .Add({}, store.prefetched_keys);
  Counter(families, "terrace_prefetched_in_memory_total", "Of these, pages in memory already.")
      .Add({}, store.prefetched_in_memory);
}

void AddScrub(Families* families, const StoreFigures& store) {
  Counter(families, "terrace_store_scrubbed_pages_total",
          "Stored pages read in the background to check them.")
      .Add({}, store.scrubbed.extents);
  Counter(families, "terrace_store_scrubbed_bytes_total", "Their bytes.")
      .Add({}, store.scrubbed.bytes);
  Counter(families, "terrace_store_scrub_rounds_total",
          "Times that the background check came round.")
      .Add({}, store.scrub_rounds);
  Family faults = Counter(families, "terrace_store_scrub_faults_total",
                          "Pages that the background check found bad, by reason.");
  for (const ReadFault fault : {ReadFault::kIo, ReadFault::kHeader, ReadFault::kName,
                                ReadFault::kStale, ReadFault::kData}) {
    const auto i = static_cast<size_t>(fault);
    faults.Add({{"reason", kFaults[i]}}, store.scrub_faults[i]);
  }
}

void AddState(Families* families, const StoreFigures& store) {
  Gauge(families, "terrace_store_info", "1; the labels tell how the store works.")
      .Add({{"io", LabelText(store.store.io)},
            {"durability", kDurabilities[static_cast<size_t>(store.store.durability)]}},
           1.0);
  Gauge(families, "terrace_tier_free_bytes", "What is free on devices that take writes.")
      .Add({{"tier", kNvme}}, store.free_bytes);
  Gauge(families, "terrace_store_spaces", "Spaces with pages in the store.").Add({}, store.spaces);
  Gauge(families, "terrace_store_index_bytes", "The index on disk.")
      .Add({}, store.store.index_bytes);
  Gauge(families, "terrace_store_catalog_bytes", "Memory that knows the stored pages by name.")
      .Add({}, store.catalog_bytes);
  Gauge(families, "terrace_store_orphans", "Entries of the index that the start left out.")
      .Add({}, store.store.orphans);
  Family budget = Gauge(families, "terrace_store_write_budget_bytes",
                        "What may be written now; without a limit there is no sample.");
  if (store.write_budget_bytes != UINT64_MAX) budget.Add({}, store.write_budget_bytes);
  Gauge(families, "terrace_store_fetch_latency_seconds",
        "Until the first page of a fetch comes, a moving average.")
      .Add({}, static_cast<double>(store.fetch_latency_ns) / kNsPerSecondF);
  Gauge(families, "terrace_store_fetch_bytes_per_second",
        "How fast the others follow, a moving average.")
      .Add({}, store.fetch_bytes_per_second);
}

void AddDevices(Families* families, const StoreFigures& store) {
  const auto each = [&](Family family, const auto& add) {
    for (const DeviceReport& device : store.store.devices)
      add(family, LabelText(device.path), device);
  };
  const auto gauge = [&](const char* name, const char* help, const auto& value) {
    each(Gauge(families, name, help),
         [&](Family& family, const std::string& path, const DeviceReport& device) {
           family.Add({{"device", path}}, uint64_t{value(device)});
         });
  };
  const auto by_operation = [&](const char* name, const char* help, const auto& reads,
                                const auto& writes) {
    each(Counter(families, name, help),
         [&](Family& family, const std::string& path, const DeviceReport& device) {
           family.Add({{"device", path}, {"operation", "read"}}, uint64_t{reads(device)});
           family.Add({{"device", path}, {"operation", "write"}}, uint64_t{writes(device)});
         });
  };
  each(Gauge(families, "terrace_device_state", "1 for the state in which a device is, else 0."),
       [](Family& family, const std::string& path, const DeviceReport& device) {
         for (size_t i = 0; i < kStates.size(); ++i) {
           family.Add({{"device", path}, {"state", kStates[i]}},
                      uint64_t{static_cast<size_t>(device.state) == i});
         }
       });
  gauge("terrace_device_capacity_bytes", "What its slot files may take.",
        [](const DeviceReport& device) { return device.capacity_bytes; });
  gauge("terrace_device_allocated_bytes", "Slots with a page or about to have one.",
        [](const DeviceReport& device) { return device.allocated_bytes; });
  gauge("terrace_device_file_bytes", "Sizes of its slot files.",
        [](const DeviceReport& device) { return device.file_bytes; });
  gauge("terrace_device_in_flight", "Transfers under way.",
        [](const DeviceReport& device) { return device.in_flight; });
  gauge("terrace_device_waiting", "Transfers whose turn has not come.",
        [](const DeviceReport& device) { return device.waiting; });
  by_operation(
      "terrace_device_transfers_total", "Transfers of pages with a device.",
      [](const DeviceReport& device) { return device.reads; },
      [](const DeviceReport& device) { return device.writes; });
  by_operation(
      "terrace_device_bytes_total", "Their bytes, headers included.",
      [](const DeviceReport& device) { return device.read_bytes; },
      [](const DeviceReport& device) { return device.written_bytes; });
  by_operation(
      "terrace_device_errors_total", "Errors of the device or its file system.",
      [](const DeviceReport& device) { return device.read_errors; },
      [](const DeviceReport& device) { return device.write_errors; });
  each(Counter(families, "terrace_device_overdue_total", "Transfers that missed their deadline."),
       [](Family& family, const std::string& path, const DeviceReport& device) {
         family.Add({{"device", path}}, device.overdue);
       });
}

}  // namespace

void AddStore(Families* families, const StoreFigures& store) {
  if (!store.present) return;
  AddPages(families, store);
  AddScrub(families, store);
  AddState(families, store);
  AddDevices(families, store);
}

}  // namespace terrace
