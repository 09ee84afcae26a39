// Notifier: what the daemon tells the service manager that started it (sd_notify(3)): that it is
// ready, reloading, stopping, alive, and one line for `systemctl status`.
//
// Without a service manager it is silent. A message that cannot be sent is logged and otherwise
// ignored: the manager has its own deadlines. A manager that is behind is waited for, at most
// DatagramSender::kPatienceMs, by what it must hear: Ready, Reloading and Stopping. Owner thread
// only.
#pragma once

#include <chrono>
#include <optional>
#include <string>
#include <string_view>

#include "base/clock.h"
#include "base/status.h"
#include "daemon/service/systemd/datagram.h"

namespace terrace {

class Notifier {
 public:
  // What the manager put into the environment; texts as they are there.
  struct Environment {
    std::string notify_socket;  // NOTIFY_SOCKET
    std::string watchdog_usec;  // WATCHDOG_USEC
    std::string watchdog_pid;   // WATCHDOG_PID
  };
  // Reads the environment and removes these variables, so that no child speaks in our name. To be
  // called before there are threads.
  static Environment TakeEnvironment();

  Notifier() = default;  // Silent.
  static Result<Notifier> Open(const Environment& environment, pid_t self);

  bool speaks() const { return sender_.has_value(); }
  // How often Alive is expected; zero: not at all. Half of what the manager waits for.
  std::chrono::milliseconds alive_every() const { return alive_every_; }

  void Ready(std::string_view status);
  void Reloading(MonotonicNs now);  // To be followed by Ready. `now`: of CLOCK_MONOTONIC.
  void Stopping();
  void Alive();
  void Describe(std::string_view status);

 private:
  void Send(const std::string& message, DatagramSender::Patience patience);

  std::optional<DatagramSender> sender_;
  std::chrono::milliseconds alive_every_{0};
};

}  // namespace terrace
