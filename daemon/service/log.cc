#include "daemon/service/log.h"

#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>

#include <array>
#include <map>

#include "base/clock.h"
#include "base/mutex.h"

namespace terrace {

namespace {

constexpr std::array<std::string_view, 5> kNames = {"debug", "info", "warning", "error", "off"};

spdlog::level::level_enum SpdlogLevel(LogLevel level) {
  switch (level) {
    case LogLevel::kDebug:
      return spdlog::level::debug;
    case LogLevel::kInfo:
      return spdlog::level::info;
    case LogLevel::kWarning:
      return spdlog::level::warn;
    case LogLevel::kError:
      return spdlog::level::err;
    case LogLevel::kOff:
      break;
  }
  return spdlog::level::off;
}

spdlog::logger& Logger() {
  static const std::shared_ptr<spdlog::logger> logger = [] {
    auto made = std::make_shared<spdlog::logger>("terraced",
                                                 std::make_shared<spdlog::sinks::stderr_sink_mt>());
    made->set_pattern("%Y-%m-%dT%H:%M:%S.%e %l %v");
    made->flush_on(spdlog::level::debug);
    return made;
  }();
  return *logger;
}

// Values come from outside too: quoted when they are more than one word, and never with a line
// break.
void AppendValue(const std::string& value, std::string* line) {
  const bool plain = !value.empty() && value.find_first_of(" \"=\\") == std::string::npos;
  if (!plain) line->push_back('"');
  for (const char c : value) {
    if (c == '"' || c == '\\') line->push_back('\\');
    const auto byte = static_cast<unsigned char>(c);
    line->push_back(byte < 0x20 || byte == 0x7f ? '?' : c);
  }
  if (!plain) line->push_back('"');
}

void Write(LogLevel level, const char* event, std::initializer_list<LogField> fields,
           uint64_t left_out) {
  std::string line = event;
  for (const LogField& field : fields) {
    line.append(" ").append(field.name).append("=");
    AppendValue(field.value, &line);
  }
  if (left_out > 0) line += " left_out=" + std::to_string(left_out);
  Logger().log(SpdlogLevel(level), spdlog::string_view_t(line.data(), line.size()));
}

struct Window {
  MonotonicNs start = 0;
  int lines = 0;
  uint64_t left_out = 0;
};

class Limiter {
 public:
  // Whether a line may be written, and how many of its event were left out before.
  bool Admit(const char* event, uint64_t* left_out) {
    const MonotonicNs now = SystemClock().Now();
    const MutexLock lock(mu_);
    Window& window = windows_[event];
    if (window.start == 0 || now - window.start > kLogWindowMs * kNsPerMs) {
      *left_out = window.left_out;
      window = Window{now, 0, 0};
    }
    if (window.lines >= kLogBurst) {
      ++window.left_out;
      return false;
    }
    ++window.lines;
    return true;
  }

 private:
  Mutex mu_;
  std::map<std::string_view, Window> windows_ GUARDED_BY(mu_);  // Bounded: events are literals.
};

}  // namespace

std::optional<LogLevel> LogLevelOf(std::string_view name) {
  for (size_t i = 0; i < kNames.size(); ++i) {
    if (kNames[i] == name) return static_cast<LogLevel>(i);
  }
  return std::nullopt;
}

std::string_view LogLevelName(LogLevel level) {
  return kNames[static_cast<size_t>(level)];
}

void SetLogLevel(LogLevel level) {
  Logger().set_level(SpdlogLevel(level));
}

void Log(LogLevel level, const char* event, std::initializer_list<LogField> fields) {
  Write(level, event, fields, 0);
}

void LogLimited(LogLevel level, const char* event, std::initializer_list<LogField> fields) {
  static Limiter limiter;
  uint64_t left_out = 0;
  if (limiter.Admit(event, &left_out)) Write(level, event, fields, left_out);
}

}  // namespace terrace
