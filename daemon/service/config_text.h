// What the field table of config.cc and the tables of config_tables.cc share: the texts of values.
#pragma once

#include <sys/types.h>

#include <optional>
#include <string>
#include <string_view>

#include "daemon/service/config.h"

namespace terrace {

inline constexpr std::string_view kExpectedPath = "an absolute path, at most 4095 bytes";
inline constexpr std::string_view kExpectedMode =
    "an octal mode between \"0600\" and \"0777\", such as \"0660\"";

std::string TomlString(std::string_view text);  // As a TOML basic string.
bool IsAbsolutePath(std::string_view text);
std::optional<mode_t> SocketModeOf(std::string_view text);
std::string SocketModeText(mode_t mode);

// The parts of CheckConfig and ConfigText that are about the tables.
Status CheckConfigTables(const Config& config);
std::string ConfigTablesText(const Config& config);

}  // namespace terrace
