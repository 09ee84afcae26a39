// LogRecord: what is to be logged, and the forms that it can take. Values come from clients too:
// no form lets one start a line, end a string or be taken for a field of its own.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "daemon/service/log.h"

namespace terrace {

struct LogRecord {
  LogLevel level = LogLevel::kInfo;
  std::string_view event;
  std::span<const LogField> fields;
  uint64_t left_out = 0;  // Records that were not written before this one; 0 is not said.
};

// Of a value, in each form; what is longer ends with "...".
inline constexpr size_t kMaxLogValueBytes = 4096;

// "event key=value key="two words"", without a line break. Time and level are for the caller to
// add.
std::string LogText(const LogRecord& record);
// "event":"...","key":"value": the members of a JSON object after time and level. All values are
// strings; bytes that are not UTF-8 become U+FFFD.
std::string LogJsonMembers(const LogRecord& record);
// A datagram of the journal's native protocol (systemd.io/JOURNAL_NATIVE_PROTOCOL): MESSAGE (as
// LogText), PRIORITY, SYSLOG_IDENTIFIER, TERRACE_EVENT, and TERRACE_<KEY> for each field.
std::string LogJournal(const LogRecord& record);

}  // namespace terrace
