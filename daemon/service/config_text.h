// What the field table of config.cc and the tables of config_tables.cc share: the texts of values.
#pragma once

#include <sys/types.h>

#include <cstdint>
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

// 0.25 is a share, from 0.001 to 1; "16GiB" or a whole number of bytes is a size, at least
// kMinCapacity.
inline constexpr uint64_t kMinCapacity = 16u << 20;
inline constexpr std::string_view kExpectedCapacity =
    "a size such as \"16GiB\", at least 16MiB, or a fraction such as 0.25, from 0.001 to 1";
std::optional<CapacityChoice> CapacityOf(std::string_view text);
std::string CapacityText(const CapacityChoice& capacity);

inline constexpr uint32_t kMaxDeadlineMs = 24u * 3600 * 1000;

// The parts of CheckConfig and ConfigText that are about the tables.
Status CheckConfigTables(const Config& config);
std::string ConfigTablesText(const Config& config);

}  // namespace terrace
