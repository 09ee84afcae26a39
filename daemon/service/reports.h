// Reports as JSON. docs/protocol.md has every member; the two change together. Pure functions.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "daemon/engine/device_verbs.h"
#include "daemon/engine/report.h"
#include "daemon/service/connection.h"

namespace terrace {

struct StoreCheckReport;
struct StoreCheckSpec;

// What the service knows beside the engine.
struct ServiceReport {
  std::string version;
  uint64_t life = 0;
  int64_t pid = 0;
  uint32_t uid = 0;
  uint64_t uptime_ms = 0;
  std::string socket;
  std::string state_dir;
  std::string isolation;
  uint64_t connections = 0;
  uint64_t clients_away = 0;           // Without a connection at present.
  uint64_t capacity_wanted_bytes = 0;  // By configuration; the present one is the engine's.
  uint64_t memory_limit_bytes = 0;
  std::string memory_limit_source;
  std::string device_choice;  // devices.device.
  std::string device_kind;    // "cuda", "host", "none": of those that there are.
  std::string devices_why;    // Why there are no devices, or less than were named.
  Traffic traffic;
};

// The same for a scrape of metrics: numbers alone.
struct ServiceFigures {
  uint64_t connections = 0;
  uint64_t clients_away = 0;
  uint64_t capacity_wanted_bytes = 0;
  uint64_t memory_limit_bytes = 0;
  uint64_t requests_in_flight = 0;  // Of all connections, about a second ago at most.
  uint64_t output_bytes = 0;        // Replies and events that wait to be sent.
  uint64_t large_input_bytes = 0;   // Of kLargeInputBudget, in use.
  Traffic traffic;
};

std::string StatusJson(const StatusReport& engine, const ServiceReport& service,
                       const std::vector<GpuReport>& devices);
std::string ModelsJson(const std::vector<ModelReport>& models);
std::string SpacesJson(const std::vector<SpaceReport>& spaces);
std::string ClientsJson(const std::vector<ClientReport>& clients);
std::string TiersJson(const EngineFigures& figures);
std::string StoreCheckJson(const StoreCheckReport& checked, const StoreCheckSpec& spec);
std::string PagesJson(const std::vector<PageReport>& pages);

// "serving", "resting".
std::string_view GpuStateName(DeviceTierState state);

// "grant", "commit_reply": the name of a type in the frame counters; empty for numbers without one.
std::string_view FrameTypeName(size_t type);

}  // namespace terrace
