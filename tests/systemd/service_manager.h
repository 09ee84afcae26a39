// ServiceManager: plays systemd for one terraced: makes its listening sockets, starts it with
// LISTEN_FDS, NOTIFY_SOCKET and nothing else in its environment, and hears what it tells. The
// sockets outlive the daemon, as they do under systemd.
//
// One thread. Nothing here asserts: a test does that with what is returned.
#pragma once

#include <sys/types.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/status.h"
#include "base/unique_fd.h"
#include "tests/support/daemon_process.h"
#include "tests/systemd/datagram_receiver.h"

namespace terrace {

struct ServiceManagerOptions {
  struct Socket {
    std::string name;
    std::string path;
    bool pass_credentials = true;  // PassCredentials= of the unit.
    int type = 1;                  // SOCK_STREAM
    bool listens = true;
  };
  std::vector<Socket> sockets{};
  std::vector<std::string> environment{};  // Further lines: "WATCHDOG_USEC=200000".
  // Runs in the child between fork and exec; false ends it. For a sandbox.
  std::function<bool()> in_child{};
  // Its standard error; a file of the folder when there is none.
  int standard_error = -1;
  bool abstract_notify_socket = false;
};

class ServiceManager {
 public:
  explicit ServiceManager(ServiceManagerOptions options = {});
  ~ServiceManager();  // Kills the daemon.
  ServiceManager(const ServiceManager&) = delete;
  ServiceManager& operator=(const ServiceManager&) = delete;

  const std::string& folder() const { return folder_.path(); }
  // Of the configuration that WriteConfig writes.
  std::string config_file() const { return folder() + "/terraced.toml"; }
  // [daemon] state_dir and a small [host]; then `more`.
  void WriteConfig(const std::string& more, const std::string& daemon = "",
                   const std::string& capacity = "64MiB") const;

  // Returns once it is started, not once it is ready. Without arguments: --config config_file().
  Status Launch(std::vector<std::string> arguments = {});
  // The whole notification that says READY=1.
  std::optional<std::string> AwaitReady() const { return notify_->ReceiveWith("READY=1"); }
  const DatagramReceiver& notifications() const { return *notify_; }

  void Signal(int number) const;
  Result<int> AwaitExit();  // 128 + N after signal N.
  pid_t pid() const { return pid_; }
  std::string Log() const;
  // Whether the log has this, within 20 s.
  bool AwaitLog(const std::string& part) const;

 private:
  Status Exec(const std::vector<std::string>& arguments) const;

  const ServiceManagerOptions options_;
  const TemporaryFolder folder_;
  std::string notify_address_;
  std::unique_ptr<DatagramReceiver> notify_;
  std::vector<UniqueFd> sockets_;
  pid_t pid_ = -1;
  UniqueFd process_;
};

}  // namespace terrace
