#include "daemon/service/systemd/notify.h"

#include <algorithm>
#include <charconv>
#include <cstdlib>

#include "daemon/service/log.h"

namespace terrace {

using Patience = DatagramSender::Patience;

namespace {

std::string Take(const char* name) {
  const char* value = std::getenv(name);
  std::string taken = value == nullptr ? "" : value;
  ::unsetenv(name);
  return taken;
}

std::optional<uint64_t> Number(std::string_view text) {
  uint64_t number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return number;
}

// A variable ends with its line.
std::string StatusLine(std::string_view status) {
  std::string line = "STATUS=" + std::string(status);
  std::replace_if(
      line.begin(), line.end(), [](char c) { return static_cast<unsigned char>(c) < 0x20; }, ' ');
  return line;
}

}  // namespace

Notifier::Environment Notifier::TakeEnvironment() {
  return {Take("NOTIFY_SOCKET"), Take("WATCHDOG_USEC"), Take("WATCHDOG_PID")};
}

Result<Notifier> Notifier::Open(const Environment& environment, pid_t self) {
  Notifier notifier;
  if (environment.notify_socket.empty()) return notifier;
  Result<DatagramSender> sender = DatagramSender::To(environment.notify_socket);
  if (!sender) return Status(sender.error()).WithContext("NOTIFY_SOCKET");
  notifier.sender_ = *std::move(sender);
  if (environment.watchdog_usec.empty()) return notifier;
  const std::optional<uint64_t> usec = Number(environment.watchdog_usec);
  if (!usec || *usec == 0) {
    return Status(Code::kInvalidArgument,
                  "WATCHDOG_USEC: '" + environment.watchdog_usec + "' is no interval");
  }
  // Somebody else's watchdog, inherited.
  if (!environment.watchdog_pid.empty() &&
      Number(environment.watchdog_pid) != static_cast<uint64_t>(self)) {
    return notifier;
  }
  constexpr uint64_t kMostMs = 3600u * 1000;
  notifier.alive_every_ = std::chrono::milliseconds(std::clamp<uint64_t>(*usec / 2000, 1, kMostMs));
  return notifier;
}

void Notifier::Ready(std::string_view status) {
  Send("READY=1\n" + StatusLine(status), Patience::kSome);
}

void Notifier::Reloading(MonotonicNs now) {
  Send("RELOADING=1\nMONOTONIC_USEC=" + std::to_string(now / 1000), Patience::kSome);
}

void Notifier::Stopping() {
  Send("STOPPING=1\nSTATUS=Stopping", Patience::kSome);
}

void Notifier::Alive() {
  Send("WATCHDOG=1", Patience::kNone);
}

void Notifier::Describe(std::string_view status) {
  Send(StatusLine(status), Patience::kNone);
}

void Notifier::Send(const std::string& message, Patience patience) {
  if (!sender_) return;
  const int error = sender_->Send(message, patience);
  if (error == 0) return;
  LogLimited(LogLevel::kWarning, "notify-failed", {{"why", SystemError("NOTIFY_SOCKET", error)}});
}

}  // namespace terrace
