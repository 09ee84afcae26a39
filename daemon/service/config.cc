#include "daemon/service/config.h"

#include <unistd.h>

#include <algorithm>
#include <bit>
#include <charconv>
#include <cstdlib>
#include <functional>
#include <optional>

#include "daemon/service/config_text.h"
#include "daemon/service/listen_address.h"
#include "daemon/service/size_text.h"

namespace terrace {

namespace {

// The bounds that the other rooms were built for; docs/configuration.md repeats them.
constexpr uint64_t kMinSlab = 1u << 20;
constexpr uint64_t kMaxSlab = 1u << 30;
constexpr uint64_t kMinBlock = 2u << 20;
constexpr uint64_t kMaxBlock = 512u << 20;

struct Field {
  ConfigField field;
  std::function<bool(Config&, std::string_view)> set;
  std::function<std::string(const Config&)> text;
};

std::optional<uint64_t> Number(std::string_view text, uint64_t low, uint64_t high) {
  uint64_t number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  if (number < low || number > high) return std::nullopt;
  return number;
}

Field PathField(std::string_view path, std::string Config::*member) {
  return {{path, kExpectedPath},
          [member](Config& config, std::string_view text) {
            if (!IsAbsolutePath(text)) return false;
            config.*member = text;
            return true;
          },
          [member](const Config& config) { return TomlString(config.*member); }};
}

Field CountField(std::string_view path, std::string_view expected, uint32_t Config::*member,
                 uint32_t low, uint32_t high) {
  return {{path, expected},
          [=](Config& config, std::string_view text) {
            const auto number = Number(text, low, high);
            if (!number) return false;
            config.*member = static_cast<uint32_t>(*number);
            return true;
          },
          [member](const Config& config) { return std::to_string(config.*member); }};
}

// "auto" is 0.
Field ArenaSizeField(std::string_view path, std::string_view expected, uint64_t Config::*member,
                     uint64_t low, uint64_t high) {
  return {{path, expected},
          [=](Config& config, std::string_view text) {
            const auto bytes = text == "auto" ? std::optional<uint64_t>(0) : ParseSize(text);
            if (!bytes) return false;
            if (text != "auto" && (*bytes < low || *bytes > high || *bytes % 4096 != 0))
              return false;
            config.*member = *bytes;
            return true;
          },
          [member](const Config& config) {
            return TomlString(config.*member == 0 ? "auto" : SizeText(config.*member));
          }};
}

Field DurationField(std::string_view path, std::string_view expected, uint32_t Config::*member,
                    uint32_t low_ms) {
  return {{path, expected},
          [=](Config& config, std::string_view text) {
            const auto ms = ParseDurationMs(text);
            if (!ms || *ms < low_ms || *ms > kMaxDeadlineMs) return false;
            config.*member = *ms;
            return true;
          },
          [member](const Config& config) { return TomlString(DurationText(config.*member)); }};
}

Field SocketModeField() {
  return {{"daemon.socket_mode", kExpectedMode},
          [](Config& config, std::string_view text) {
            const auto mode = SocketModeOf(text);
            if (mode) config.socket_mode = *mode;
            return mode.has_value();
          },
          [](const Config& config) { return TomlString(SocketModeText(config.socket_mode)); }};
}

// Marks a field whose change takes effect at a reload.
Field Reloads(Field field) {
  field.field.reloads = true;
  return field;
}

Field LogLevelField() {
  return {{"daemon.log_level", "one of \"debug\", \"info\", \"warning\", \"error\", \"off\""},
          [](Config& config, std::string_view text) {
            const auto level = LogLevelOf(text);
            if (level) config.log_level = *level;
            return level.has_value();
          },
          [](const Config& config) { return TomlString(LogLevelName(config.log_level)); }};
}

Field LogFormatField() {
  return {{"daemon.log_format", "one of \"auto\", \"text\", \"json\", \"journal\""},
          [](Config& config, std::string_view text) {
            const auto format = LogFormatOf(text);
            if (format) config.log_format = *format;
            return format.has_value();
          },
          [](const Config& config) { return TomlString(LogFormatName(config.log_format)); }};
}

Field MetricsListenField() {
  return {{"metrics.listen",
           "\"\", a loopback address such as \"127.0.0.1:9177\" or \"[::1]:9177\", or "
           "\"unix:/PATH\" of at most 107 bytes"},
          [](Config& config, std::string_view text) {
            if (!text.empty() && !ParseListenAddress(text)) return false;
            config.metrics_listen = text;
            return true;
          },
          [](const Config& config) { return TomlString(config.metrics_listen); }};
}

Field CapacityField() {
  return {{"host.capacity", kExpectedCapacity},
          [](Config& config, std::string_view text) {
            const auto capacity = CapacityOf(text);
            if (capacity) config.capacity = *capacity;
            return capacity.has_value();
          },
          [](const Config& config) { return CapacityText(config.capacity); }};
}

constexpr std::string_view kDeviceChoices[] = {"auto", "cuda", "host", "none"};

Field DeviceField() {
  return {{"devices.device", "one of \"auto\", \"cuda\", \"host\", \"none\""},
          [](Config& config, std::string_view text) {
            for (size_t i = 0; i < std::size(kDeviceChoices); ++i) {
              if (text != kDeviceChoices[i]) continue;
              config.device = static_cast<DeviceChoice>(i);
              return true;
            }
            return false;
          },
          [](const Config& config) { return TomlString(DeviceChoiceName(config.device)); }};
}

Field MoverField() {
  return {{"devices.mover", "\"\", or an absolute path of at most 4095 bytes"},
          [](Config& config, std::string_view text) {
            if (!text.empty() && !IsAbsolutePath(text)) return false;
            config.mover = text;
            return true;
          },
          [](const Config& config) { return TomlString(config.mover); }};
}

Field PretouchField() {
  return {
      {"host.pretouch", "\"all\", \"none\" or a size such as \"4GiB\""},
      [](Config& config, std::string_view text) {
        if (text == "all") {
          config.pretouch_bytes = UINT64_MAX;
          return true;
        }
        const auto bytes = text == "none" ? std::optional<uint64_t>(0) : ParseSize(text);
        if (bytes) config.pretouch_bytes = *bytes;
        return bytes.has_value();
      },
      [](const Config& config) {
        if (config.pretouch_bytes == UINT64_MAX) return TomlString("all");
        return TomlString(config.pretouch_bytes == 0 ? "none" : SizeText(config.pretouch_bytes));
      }};
}

template <typename Choice>
Field AutoOrNever(std::string_view path, Choice Config::*member) {
  return {{path, "\"auto\" or \"never\""},
          [member](Config& config, std::string_view text) {
            if (text != "auto" && text != "never") return false;
            config.*member = text == "auto" ? Choice::kAuto : Choice::kNever;
            return true;
          },
          [member](const Config& config) {
            return TomlString(config.*member == Choice::kAuto ? "auto" : "never");
          }};
}

Field DurabilityField() {
  static constexpr std::string_view kNames[] = {"none", "process", "power"};
  return {{"store.durability", "one of \"none\", \"process\", \"power\""},
          [](Config& config, std::string_view text) {
            for (size_t i = 0; i < std::size(kNames); ++i) {
              if (text != kNames[i]) continue;
              config.durability = static_cast<Durability>(i);
              return true;
            }
            return false;
          },
          [](const Config& config) {
            return TomlString(kNames[static_cast<size_t>(config.durability)]);
          }};
}

Field WritePerDayField() {
  return {{"store.write_per_day", "a size such as \"2TiB\", or \"unlimited\""},
          [](Config& config, std::string_view text) {
            const auto bytes = text == "unlimited" ? std::optional<uint64_t>(0) : ParseSize(text);
            if (!bytes || (*bytes == 0 && text != "unlimited")) return false;
            config.write_bytes_per_day = *bytes;
            return true;
          },
          [](const Config& config) {
            return TomlString(config.write_bytes_per_day == 0
                                  ? "unlimited"
                                  : SizeText(config.write_bytes_per_day));
          }};
}

Field ScrubField() {
  return {{"store.scrub_bytes_per_second", "a size such as \"4MiB\", or 0 for none"},
          [](Config& config, std::string_view text) {
            const auto bytes = ParseSize(text);
            if (bytes) config.scrub_bytes_per_second = *bytes;
            return bytes.has_value();
          },
          [](const Config& config) { return TomlString(SizeText(config.scrub_bytes_per_second)); }};
}

Field PinnedBytesField() {
  return {{"limits.pinned_bytes", "a size such as \"8GiB\", or 0 for half the host capacity"},
          [](Config& config, std::string_view text) {
            const auto bytes = ParseSize(text);
            if (bytes) config.pinned_bytes = *bytes;
            return bytes.has_value();
          },
          [](const Config& config) { return TomlString(SizeText(config.pinned_bytes)); }};
}

// Of clients that come after the change; who is there keeps what it was given.
void AddLimits(std::vector<Field>* fields) {
  const auto add = [fields](Field field) { fields->push_back(Reloads(std::move(field))); };
  add(CountField("limits.clients", "a number from 1 to 4096", &Config::clients, 1, 4096));
  add(CountField("limits.clients_per_process", "a number from 1 to 4096",
                 &Config::clients_per_process, 1, 4096));
  add(CountField("limits.clients_per_user", "a number from 1 to 4096", &Config::clients_per_user, 1,
                 4096));
  add(CountField("limits.connections", "a number from 1 to 32768", &Config::connections, 1, 32768));
  add(CountField("limits.connections_without_hello", "a number from 1 to 32768",
                 &Config::connections_without_hello, 1, 32768));
  add(CountField("limits.pins", "a number from 8 to 65536", &Config::pins, 8, 65536));
  add(PinnedBytesField());
  add(CountField("limits.grants", "a number from 1 to 1048576", &Config::grants, 1, 1u << 20));
  add(CountField("limits.spaces", "a number from 1 to 4096", &Config::spaces, 1, 4096));
  add(DurationField("limits.grant_deadline", "a duration such as \"30s\", 1ms to 24 hours",
                    &Config::grant_deadline_ms, 1));
  add(DurationField("limits.grant_deadline_max", "a duration such as \"10min\", 1ms to 24 hours",
                    &Config::grant_deadline_max_ms, 1));
  add(DurationField("limits.hello_deadline", "a duration such as \"10s\", 100ms to 24 hours",
                    &Config::hello_deadline_ms, 100));
  add(DurationField("limits.reader_stall", "a duration such as \"30s\", 100ms to 24 hours",
                    &Config::reader_stall_ms, 100));
}

std::vector<Field> MakeFields() {
  std::vector<Field> fields;
  fields.push_back(PathField("daemon.socket", &Config::socket));
  fields.push_back(SocketModeField());
  fields.push_back(PathField("daemon.state_dir", &Config::state_dir));
  fields.push_back(Reloads(LogLevelField()));
  fields.push_back(Reloads(LogFormatField()));
  fields.push_back(CapacityField());
  fields.push_back(ArenaSizeField(
      "host.slab", "\"auto\" or a size such as \"64MiB\", a multiple of 4096, 1MiB to 1GiB",
      &Config::slab_bytes, kMinSlab, kMaxSlab));
  fields.push_back(ArenaSizeField(
      "host.block", "\"auto\" or a size such as \"64MiB\", a multiple of 4096, 2MiB to 512MiB",
      &Config::block_bytes, kMinBlock, kMaxBlock));
  fields.push_back(PretouchField());
  fields.push_back(AutoOrNever("host.huge_pages", &Config::huge_pages));
  fields.push_back(AutoOrNever("host.lock", &Config::lock));
  fields.push_back(DeviceField());
  fields.push_back(MoverField());
  fields.push_back(DurabilityField());
  fields.push_back(WritePerDayField());
  fields.push_back(ScrubField());
  fields.push_back(AutoOrNever("store.io_uring", &Config::io_uring));
  fields.push_back(MetricsListenField());
  AddLimits(&fields);
  return fields;
}

const std::vector<Field>& Fields() {
  static const std::vector<Field> fields = MakeFields();
  return fields;
}

std::string_view SectionOf(std::string_view path) {
  return path.substr(0, path.find('.'));
}

std::string Environment(const char* name) {
  const char* value = std::getenv(name);
  return value != nullptr && value[0] == '/' ? value : "";  // XDG: relative paths are invalid.
}

}  // namespace

std::string_view DeviceChoiceName(DeviceChoice choice) {
  return kDeviceChoices[static_cast<size_t>(choice)];
}

std::optional<CapacityChoice> CapacityOf(std::string_view text) {
  if (const auto bytes = ParseSize(text); bytes && *bytes > 1) {
    if (*bytes < kMinCapacity) return std::nullopt;
    return CapacityChoice{*bytes, 0};
  }
  double fraction = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), fraction);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  if (!(fraction >= 0.001 && fraction <= 1)) return std::nullopt;
  return CapacityChoice{0, fraction};
}

std::string CapacityText(const CapacityChoice& capacity) {
  if (capacity.bytes != 0) return TomlString(SizeText(capacity.bytes));
  char digits[32];  // Without an exponent, to which ".0" could not be added.
  const auto end =
      std::to_chars(digits, digits + sizeof digits, capacity.fraction, std::chars_format::fixed);
  std::string text(digits, end.ptr);
  return text.find('.') == std::string::npos ? text + ".0" : text;
}

const std::vector<ConfigField>& ConfigFields() {
  static const std::vector<ConfigField> fields = [] {
    std::vector<ConfigField> list;
    for (const Field& field : Fields())
      list.push_back(field.field);
    return list;
  }();
  return fields;
}

Status SetConfigField(Config* config, std::string_view path, std::string_view text) {
  for (const Field& field : Fields()) {
    if (field.field.path != path) continue;
    if (field.set(*config, text)) return {};
    return {Code::kInvalidArgument, std::string(path) + ": expected " +
                                        std::string(field.field.expected) + ", got \"" +
                                        std::string(text.substr(0, 200)) + "\""};
  }
  return {Code::kInvalidArgument, std::string(path.substr(0, 200)) + ": there is no such field"};
}

Status CheckConfig(const Config& config) {
  if (config.grant_deadline_ms > config.grant_deadline_max_ms) {
    return {Code::kInvalidArgument,
            "limits.grant_deadline: " + DurationText(config.grant_deadline_ms) +
                " is above limits.grant_deadline_max, " +
                DurationText(config.grant_deadline_max_ms)};
  }
  if (config.connections < config.clients) {
    return {Code::kInvalidArgument, "limits.connections: " + std::to_string(config.connections) +
                                        " is below limits.clients, " +
                                        std::to_string(config.clients)};
  }
  return CheckConfigTables(config);
}

std::vector<FieldChange> ChangesBetween(const Config& from, const Config& to) {
  std::vector<FieldChange> changes;
  for (const Field& field : Fields()) {
    std::string before = field.text(from);
    std::string after = field.text(to);
    if (before == after) continue;
    changes.push_back({field.field.path, std::move(before), std::move(after), field.field.reloads});
  }
  return changes;
}

void TakeReloadable(const Config& from, Config* to) {
  to->log_level = from.log_level;
  to->log_format = from.log_format;
  to->clients = from.clients;
  to->clients_per_process = from.clients_per_process;
  to->clients_per_user = from.clients_per_user;
  to->connections = from.connections;
  to->connections_without_hello = from.connections_without_hello;
  to->pins = from.pins;
  to->pinned_bytes = from.pinned_bytes;
  to->grants = from.grants;
  to->spaces = from.spaces;
  to->grant_deadline_ms = from.grant_deadline_ms;
  to->grant_deadline_max_ms = from.grant_deadline_max_ms;
  to->hello_deadline_ms = from.hello_deadline_ms;
  to->reader_stall_ms = from.reader_stall_ms;
}

std::string ConfigText(const Config& config) {
  std::string text;
  std::string_view section;
  for (const Field& field : Fields()) {
    // [[socket]] tables stand in their place.
    if (!config.sockets.empty() && field.field.path.starts_with("daemon.socket")) continue;
    if (SectionOf(field.field.path) != section) {
      section = SectionOf(field.field.path);
      text.append(text.empty() ? "" : "\n").append("[").append(section).append("]\n");
    }
    text.append(field.field.path.substr(section.size() + 1));
    text.append(" = ").append(field.text(config)).append("\n");
  }
  return text + ConfigTablesText(config);
}

uint64_t DefaultArenaBytes(uint64_t capacity_bytes) {
  return std::clamp<uint64_t>(std::bit_floor(capacity_bytes / 128), 64u << 20, 512u << 20);
}

std::string DefaultSocketPath() {
  const std::string runtime = Environment("XDG_RUNTIME_DIR");
  if (!runtime.empty()) return runtime + "/terrace/terraced.sock";
  return "/tmp/terrace-" + std::to_string(::geteuid()) + "/terraced.sock";
}

std::string DefaultStateDir() {
  const std::string state = Environment("XDG_STATE_HOME");
  if (!state.empty()) return state + "/terrace";
  const std::string home = Environment("HOME");
  return home.empty() ? "" : home + "/.local/state/terrace";
}

}  // namespace terrace
