// What a scrape tells of GPUs, by number and UUID.
#include <array>
#include <string>

#include "daemon/service/metrics/family.h"
#include "daemon/service/reports.h"

namespace terrace {

namespace {

constexpr std::array<DeviceTierState, 4> kStates = {
    DeviceTierState::kStarting, DeviceTierState::kServing, DeviceTierState::kEnding,
    DeviceTierState::kResting};

// Adds samples of all GPUs, a family at a time.
class GpuFamilies {
 public:
  GpuFamilies(Families* families, const std::vector<GpuReport>& gpus)
      : families_(families), gpus_(gpus) {
    for (const GpuReport& gpu : gpus)
      words_.push_back({std::to_string(gpu.device), LabelText(gpu.tier.uuid)});
  }

  template <typename Value>
  void AddGauge(const char* name, const char* help, const Value& value) {
    Add(Gauge(families_, name, help), value);
  }
  template <typename Value>
  void AddCounter(const char* name, const char* help, const Value& value) {
    Add(Counter(families_, name, help), value);
  }
  // `add` is called with a function that adds a sample with one label more.
  template <typename AddSamples>
  void AddLabelled(Family family, std::string_view label, const AddSamples& add) {
    for (size_t i = 0; i < gpus_.size(); ++i) {
      add(gpus_[i], [&](std::string_view value, uint64_t number) {
        family.Add({{"device", words_[i][0]}, {"uuid", words_[i][1]}, {label, value}}, number);
      });
    }
  }

 private:
  template <typename Value>
  void Add(Family family, const Value& value) {
    for (size_t i = 0; i < gpus_.size(); ++i) {
      family.Add({{"device", words_[i][0]}, {"uuid", words_[i][1]}}, uint64_t{value(gpus_[i])});
    }
  }

  Families* const families_;
  const std::vector<GpuReport>& gpus_;
  std::vector<std::array<std::string, 2>> words_;
};

void AddMemory(Families* families, GpuFamilies& gpus) {
  gpus.AddGauge("terrace_gpu_capacity_bytes", "What of the device's memory may be used.",
                [](const GpuReport& gpu) { return gpu.capacity_bytes; });
  gpus.AddLabelled(
      Gauge(
          families, "terrace_gpu_bytes",
          "Of that, in use: weights, slabs of pages, and what clients were asked to unmap, before "
          "and past the deadline."),
      "class", [](const GpuReport& gpu, const auto& sample) {
        sample("weights", gpu.bytes.weights);
        sample("pages", gpu.bytes.pages);
        sample("leaving", gpu.bytes.leaving);
        sample("zombies", gpu.bytes.zombies);
      });
  gpus.AddLabelled(Gauge(families, "terrace_gpu_tenant_bytes",
                         "Of that, slabs of pages of each tenant, those asked back included."),
                   "tenant", [](const GpuReport& gpu, const auto& sample) {
                     for (const auto& [tenant, bytes] : gpu.tenant_bytes)
                       sample(LabelText(tenant), bytes);
                   });
  gpus.AddLabelled(
      Gauge(families, "terrace_gpu_page_bytes", "Extents in slabs of pages, by state."), "state",
      [](const GpuReport& gpu, const auto& sample) {
        sample("linked", gpu.linked_bytes);
        sample("granted", gpu.granted_bytes);
        sample("limbo", gpu.limbo_bytes);
        sample("filling", gpu.filling_bytes);
        sample("free", gpu.free_bytes);
      });
  gpus.AddGauge("terrace_gpu_zombie_arenas", "Arenas that clients still map past the deadline.",
                [](const GpuReport& gpu) { return gpu.zombie_arenas; });
  gpus.AddGauge("terrace_gpu_free_bytes", "Free of the device, whoever uses the rest.",
                [](const GpuReport& gpu) { return gpu.tier.free_bytes; });
  gpus.AddGauge("terrace_gpu_host_bytes", "Host arenas that its mover maps.",
                [](const GpuReport& gpu) { return gpu.tier.host_bytes; });
  gpus.AddGauge("terrace_gpu_registered_bytes", "Of these, what is copied without staging.",
                [](const GpuReport& gpu) { return gpu.tier.registered_bytes; });
}

void AddMover(Families* families, GpuFamilies& gpus) {
  gpus.AddLabelled(Gauge(families, "terrace_gpu_state", "1 for the state of its mover, else 0."),
                   "state", [](const GpuReport& gpu, const auto& sample) {
                     for (const DeviceTierState state : kStates)
                       sample(GpuStateName(state), gpu.tier.state == state ? 1 : 0);
                   });
  gpus.AddLabelled(
      Counter(families, "terrace_gpu_copied_bytes_total",
              "Copied by its present mover, by way: from and to registered memory, or staged."),
      "way", [](const GpuReport& gpu, const auto& sample) {
        sample("direct", gpu.tier.direct_bytes);
        sample("staged", gpu.tier.staged_bytes);
      });
  gpus.AddLabelled(Gauge(families, "terrace_gpu_requests", "Requests that are not done."), "state",
                   [](const GpuReport& gpu, const auto& sample) {
                     sample("waiting", gpu.tier.waiting);
                     sample("in_flight", gpu.tier.in_flight);
                   });
  gpus.AddCounter("terrace_gpu_mover_starts_total", "Processes that were started for it.",
                  [](const GpuReport& gpu) { return gpu.tier.starts; });
  gpus.AddLabelled(Counter(families, "terrace_gpu_mover_ends_total", "How those ended, by reason."),
                   "reason", [](const GpuReport& gpu, const auto& sample) {
                     sample("crash", gpu.tier.crashes);
                     sample("hang", gpu.tier.hangs);
                     sample("broken", gpu.tier.broken);
                     sample("distrusted", gpu.tier.distrusted);
                   });
  gpus.AddLabelled(Counter(families, "terrace_gpu_requests_total",
                           "Requests: completed, with any answer; done again by a later process; "
                           "failed for want of one."),
                   "result", [](const GpuReport& gpu, const auto& sample) {
                     sample("completed", gpu.tier.completed);
                     sample("replayed", gpu.tier.replayed);
                     sample("failed", gpu.tier.failed);
                   });
  gpus.AddCounter("terrace_gpu_lost_arenas_total", "Arenas whose memory was lost.",
                  [](const GpuReport& gpu) { return gpu.tier.lost_arenas; });
}

void AddPlacement(Families* families, GpuFamilies& gpus) {
  gpus.AddLabelled(Counter(families, "terrace_gpu_moved_bytes_total",
                           "Moved between host memory and the device, by what and whereto."),
                   "what", [](const GpuReport& gpu, const auto& sample) {
                     sample("pages_promoted", gpu.promoted_bytes);
                     sample("pages_demoted", gpu.demoted_bytes);
                     sample("weights_loaded", gpu.loaded_bytes);
                   });
  gpus.AddLabelled(Counter(families, "terrace_gpu_evicted_extents_total",
                           "Pages and blocks of weights that left the device; pages lost with it."),
                   "what", [](const GpuReport& gpu, const auto& sample) {
                     sample("pages", gpu.evicted_pages);
                     sample("blocks", gpu.evicted_blocks);
                     sample("lost_pages", gpu.lost_pages);
                   });
  gpus.AddCounter("terrace_gpu_unmap_requests_total", "Clients asked to unmap memory of it.",
                  [](const GpuReport& gpu) { return gpu.unmap_requests; });
}

}  // namespace

void AddGpus(Families* families, const std::vector<GpuReport>& devices) {
  if (devices.empty()) return;
  GpuFamilies gpus(families, devices);
  AddMemory(families, gpus);
  AddMover(families, gpus);
  AddPlacement(families, gpus);
}

}  // namespace terrace
