// Log: one record an event: time, level, event, then fields. As text or JSON lines on standard
// error, or natively in systemd's journal.
//
// The one door to spdlog. Records that a client can cause are written by LogLimited, which lets a
// bounded number of each event through and counts the rest. Any thread.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <string>
#include <string_view>

#include "base/status.h"

namespace terrace {

enum class LogLevel : uint8_t { kDebug, kInfo, kWarning, kError, kOff };

std::optional<LogLevel> LogLevelOf(std::string_view name);
std::string_view LogLevelName(LogLevel level);
void SetLogLevel(LogLevel level);

// kAuto: kJournal where standard error is the journal's own stream, kText elsewhere.
enum class LogFormat : uint8_t { kAuto, kText, kJson, kJournal };

std::optional<LogFormat> LogFormatOf(std::string_view name);
std::string_view LogFormatName(LogFormat format);
// Returns what `format` comes to. kText until it is called.
LogFormat SetLogFormat(LogFormat format);

struct LogField {
  std::string_view name;  // Lower case with underscores.
  std::string value;

  LogField(std::string_view field, std::string_view text) : name(field), value(text) {}
  LogField(std::string_view field, const Status& status) : name(field), value(status.ToString()) {}
  template <typename Integer>
    requires std::is_integral_v<Integer>
  LogField(std::string_view field, Integer number) : name(field), value(std::to_string(number)) {}
};

// `event` is a string literal: a few words with dashes, the same for the same thing.
void Log(LogLevel level, const char* event, std::initializer_list<LogField> fields = {});
// At most kLogBurst records of an event in kLogWindowMs; the first one after that says how many
// were left out.
inline constexpr int kLogBurst = 10;
inline constexpr int64_t kLogWindowMs = 10'000;
void LogLimited(LogLevel level, const char* event, std::initializer_list<LogField> fields = {});

}  // namespace terrace
