// The one door to toml++: turns a file into (path, text) pairs for the table of fields.
// Debian's library is built with exceptions: they stop here.
#include <toml++/toml.h>

#include <cerrno>
#include <charconv>
#include <cstdio>
#include <fstream>
#include <sstream>

#include "daemon/service/config.h"

namespace terrace {

namespace {

constexpr size_t kMaxConfigBytes = 1u << 20;

// The text of a value as SetConfigField takes it; nothing for arrays, tables and dates.
std::optional<std::string> TextOf(const toml::node& node) {
  if (const auto* array = node.as_array()) {
    // As "[a,b]": no element has a comma, and no field that is no list takes the brackets.
    std::string text = "[";
    for (const toml::node& element : *array) {
      const auto* item = element.as_string();
      if (item == nullptr || item->get().find(',') != std::string::npos) return std::nullopt;
      text += (&element == &array->front() ? "" : ",") + item->get();
    }
    return text + "]";
  }
  if (const auto* text = node.as_string()) return text->get();
  if (const auto* number = node.as_integer()) return std::to_string(number->get());
  if (const auto* flag = node.as_boolean()) return flag->get() ? "true" : "false";
  if (const auto* number = node.as_floating_point()) {
    char digits[64];
    const auto end = std::to_chars(digits, digits + sizeof digits, number->get());
    return std::string(digits, end.ptr);
  }
  return std::nullopt;
}

std::string Place(const std::string& source, const toml::source_region& region) {
  return source + ":" + std::to_string(region.begin.line);
}

Status ReadSection(const toml::table& section, const std::string& name, const std::string& source,
                   Config* config) {
  for (const auto& [key, node] : section) {
    const std::string path = name + "." + std::string(key.str());
    const std::optional<std::string> text = TextOf(node);
    const Status status =
        text ? SetConfigField(config, path, *text)
             : Status(Code::kInvalidArgument, path + ": expected a string or a number");
    if (!status.ok()) return Status(status).WithContext(Place(source, node.source()));
  }
  return {};
}

// The rows of [[socket]] or another table, each made by `set` from its fields.
template <typename Row>
Status ReadTables(const toml::node& node, const std::string& name, const std::string& source,
                  Status (*set)(Row*, std::string_view, std::string_view), std::vector<Row>* rows) {
  const toml::array* tables = node.as_array();
  if (tables == nullptr || !tables->is_array_of_tables()) {
    return {Code::kInvalidArgument, Place(source, node.source()) + ": " + name +
                                        ": is written as [[" + name + "]], once for each"};
  }
  rows->clear();
  for (const toml::node& table : *tables) {
    Row row;
    for (const auto& [key, value] : *table.as_table()) {
      const std::optional<std::string> text = TextOf(value);
      const Status status =
          text ? set(&row, key.str(), *text)
               : Status(Code::kInvalidArgument,
                        name + "." + std::string(key.str()) + ": expected a string or a number");
      if (!status.ok()) return Status(status).WithContext(Place(source, value.source()));
    }
    rows->push_back(std::move(row));
  }
  return {};
}

}  // namespace

Status ReadConfigText(std::string_view text, const std::string& source, Config* config) {
  toml::table table;
  try {
    table = toml::parse(text, source);
  } catch (const toml::parse_error& error) {
    return {Code::kInvalidArgument,
            Place(source, error.source()) + ": " + std::string(error.description())};
  }
  for (const auto& [key, node] : table) {
    const std::string name(key.str());
    if (name == "socket" && node.is_array()) {
      RETURN_IF_ERROR(ReadTables(node, name, source, &SetSocketField, &config->sockets));
      continue;
    }
    if (name == "peer" && node.is_array()) {
      RETURN_IF_ERROR(ReadTables(node, name, source, &SetPeerField, &config->peers));
      continue;
    }
    if (name == "nvme" && node.is_array()) {
      RETURN_IF_ERROR(ReadTables(node, name, source, &SetNvmeField, &config->nvme));
      continue;
    }
    if (name == "device" && node.is_array()) {
      RETURN_IF_ERROR(ReadTables(node, name, source, &SetDeviceField, &config->devices));
      continue;
    }
    const toml::table* section = node.as_table();
    if (section == nullptr) {
      return {Code::kInvalidArgument,
              Place(source, node.source()) + ": " + name +
                  ": fields stand in a section: [daemon], [host], [devices], [store], "
                  "[metrics] or [limits]"};
    }
    bool known = false;
    for (const ConfigField& field : ConfigFields()) {
      known = known || field.path.substr(0, field.path.find('.')) == name;
    }
    if (!known) {
      return {Code::kInvalidArgument, Place(source, node.source()) + ": [" + name +
                                          "]: there is no such section: [daemon], [host], "
                                          "[devices], [store], [metrics], [limits], "
                                          "[[socket]], [[peer]], [[nvme]], [[device]]"};
    }
    RETURN_IF_ERROR(ReadSection(*section, name, source, config));
  }
  return {};
}

Status ReadConfigFile(const std::string& file, Config* config) {
  std::ifstream stream(file, std::ios::binary);
  if (!stream) return SystemError(file, errno);
  std::string text(kMaxConfigBytes + 1, '\0');
  stream.read(text.data(), static_cast<std::streamsize>(text.size()));
  if (stream.bad()) return SystemError(file, EIO);
  text.resize(static_cast<size_t>(stream.gcount()));
  if (text.size() > kMaxConfigBytes) {
    return {Code::kInvalidArgument, file + ": longer than 1MiB, which no configuration is"};
  }
  return ReadConfigText(text, file, config);
}

}  // namespace terrace
