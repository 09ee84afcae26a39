#include "daemon/service/log.h"

#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <map>

#include "base/clock.h"
#include "base/mutex.h"
#include "daemon/service/log_record.h"
#include "daemon/service/systemd/datagram.h"

namespace terrace {

namespace {

constexpr std::array<std::string_view, 5> kLevels = {"debug", "info", "warning", "error", "off"};
constexpr std::array<std::string_view, 4> kFormats = {"auto", "text", "json", "journal"};

template <typename Choice, size_t kCount>
std::optional<Choice> ChoiceOf(const std::array<std::string_view, kCount>& names,
                               std::string_view name) {
  for (size_t i = 0; i < kCount; ++i) {
    if (names[i] == name) return static_cast<Choice>(i);
  }
  return std::nullopt;
}

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

// One logger a form on standard error, so that a change of the format never splits a line.
std::shared_ptr<spdlog::logger> MakeLogger(const char* pattern) {
  auto made = std::make_shared<spdlog::logger>("terraced",
                                               std::make_shared<spdlog::sinks::stderr_sink_mt>());
  made->set_pattern(pattern);
  made->flush_on(spdlog::level::debug);
  made->set_level(spdlog::level::trace);  // Write has the level already.
  return made;
}

spdlog::logger& TextLogger() {
  static const std::shared_ptr<spdlog::logger> logger = MakeLogger("%Y-%m-%dT%H:%M:%S.%e %l %v");
  return *logger;
}

spdlog::logger& JsonLogger() {
  static const std::shared_ptr<spdlog::logger> logger =
      MakeLogger(R"({"time":"%Y-%m-%dT%H:%M:%S.%e%z","level":"%l",%v})");
  return *logger;
}

constexpr char kJournalSocket[] = "/run/systemd/journal/socket";

// Null when there can be no such socket.
const DatagramSender* Journal() {
  static const Result<DatagramSender> sender = DatagramSender::To(kJournalSocket);
  return sender ? &*sender : nullptr;
}

// systemd says which device and inode it made our standard error; somebody may have redirected it
// since.
bool StandardErrorIsTheJournal() {
  const char* stream = std::getenv("JOURNAL_STREAM");
  struct stat info {};
  if (stream == nullptr || ::fstat(STDERR_FILENO, &info) != 0) return false;
  return std::to_string(info.st_dev) + ":" + std::to_string(info.st_ino) == stream;
}

// Each is read alone: a record that is written while they change may have either.
std::atomic<LogLevel> level_now{LogLevel::kInfo};
std::atomic<LogFormat> format_now{LogFormat::kText};

void WriteLine(spdlog::logger& logger, LogLevel level, const std::string& line) {
  logger.log(SpdlogLevel(level), spdlog::string_view_t(line.data(), line.size()));
}

// Records that a journal which is behind did not take, since the last one that it took.
std::atomic<uint64_t> not_taken{0};

// Whether there is nothing left to do: the journal has it, or is behind and must not stop the
// daemon.
bool WriteToJournal(LogRecord record) {
  if (Journal() == nullptr) return false;
  const uint64_t before = not_taken.exchange(0, std::memory_order_relaxed);
  record.left_out += before;
  const int error = Journal()->Send(LogJournal(record), DatagramSender::Patience::kNone);
  if (error == 0) return true;
  not_taken.fetch_add(before, std::memory_order_relaxed);
  if (error != EAGAIN) return false;
  not_taken.fetch_add(1, std::memory_order_relaxed);
  return true;
}

void Write(const LogRecord& record) {
  if (record.level < level_now.load(std::memory_order_relaxed)) return;
  const LogFormat format = format_now.load(std::memory_order_relaxed);
  if (format == LogFormat::kJson) {
    return WriteLine(JsonLogger(), record.level, LogJsonMembers(record));
  }
  // While the journal is being restarted, standard error has the record: it reads that too.
  if (format == LogFormat::kJournal && WriteToJournal(record)) return;
  WriteLine(TextLogger(), record.level, LogText(record));
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
  return ChoiceOf<LogLevel>(kLevels, name);
}

std::string_view LogLevelName(LogLevel level) {
  return kLevels[static_cast<size_t>(level)];
}

void SetLogLevel(LogLevel level) {
  level_now = level;
}

std::optional<LogFormat> LogFormatOf(std::string_view name) {
  return ChoiceOf<LogFormat>(kFormats, name);
}

std::string_view LogFormatName(LogFormat format) {
  return kFormats[static_cast<size_t>(format)];
}

LogFormat SetLogFormat(LogFormat format) {
  if (format == LogFormat::kAuto) {
    format = StandardErrorIsTheJournal() ? LogFormat::kJournal : LogFormat::kText;
  }
  format_now = format;
  return format;
}

void Log(LogLevel level, const char* event, std::initializer_list<LogField> fields) {
  Write({level, event, {fields.begin(), fields.size()}, 0});
}

void LogLimited(LogLevel level, const char* event, std::initializer_list<LogField> fields) {
  static Limiter limiter;
  uint64_t left_out = 0;
  if (limiter.Admit(event, &left_out)) {
    Write({level, event, {fields.begin(), fields.size()}, left_out});
  }
}

}  // namespace terrace
